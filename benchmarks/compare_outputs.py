"""Do two output folders hold the same numbers? Files of the collecting pass byte by byte, tables by key.

    python -m benchmarks.compare_outputs BEFORE/outputs/miniature AFTER/outputs/miniature --rename M2D=ssl ViT=sl

Rows of a table are matched by its key columns (task, model, class, layer, neuron, target, ...), whatever happened to
their order; columns are compared where both sides have them, and named where only one side has. Exit code 0 means that
nothing differs, 1 that something does; rows and columns that came or went are listed, and fail only with --strict.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

COLLECTED = (
    "over_zero.pt",
    "classes.txt",
    "clip_counts.npy",
    "padding_counts.npy",
    "features.pt",
    "gts.pt",
)
KEYS = (
    "task", "model", "target", "mode", "kind", "control", "number", "silenced", "gain", "fold", "class", "measure",
    "layer", "neuron", "name", "figure", "rows", "columns", "row", "column", "row_class", "column_class", "first",
    "second", "a", "b", "variant", "setting", "value", "distance", "semitones", "in_sample", "filter", "classes", "clips_from",
)  # fmt: skip


@dataclass
class Found:
    """What the comparison saw: counts of what is equal, and a line for everything else."""

    equal: int = 0
    values: int = 0
    different: list[str] = field(default_factory=list)
    came_or_went: list[str] = field(default_factory=list)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare_collected(before: Path, after: Path, found: Found) -> None:
    """Every file that a collecting pass wrote below `before`, byte by byte."""
    for old in sorted(p for name in COLLECTED for p in before.glob(f"*/{name}")):
        new = after / old.relative_to(before)
        if not new.is_file():
            found.different.append(f"{old.relative_to(before)}: missing")
        elif digest(old) != digest(new):
            found.different.append(f"{old.relative_to(before)}: other bytes")
        else:
            found.equal += 1


def keyed(table: pd.DataFrame, keys: list[str], rename: Mapping[str, str]) -> pd.DataFrame:
    """The table with its key columns as index, values in `rename` replaced; equal keys are numbered."""
    table = table.copy()
    for key in keys:
        table[key] = table[key].map(lambda v: rename.get(str(v), str(v)))
    table["#"] = table.groupby(keys).cumcount() if keys else np.arange(len(table))
    return table.set_index([*keys, "#"])


def compare_tables(
    name: str, old: pd.DataFrame, new: pd.DataFrame, rename: Mapping[str, str], found: Found
) -> None:
    """Values of two tables by key."""
    both = [c for c in old.columns if c in new.columns]
    keys = [c for c in both if c in KEYS]
    for side, columns in (
        ("gone", set(old.columns) - set(both)),
        ("new", set(new.columns) - set(both)),
    ):
        if columns:
            found.came_or_went.append(f"{name}: columns {side}: {', '.join(sorted(columns))}")
    a, b = keyed(old, keys, rename), keyed(new, keys, rename)
    rows = a.index.intersection(b.index)
    if len(rows) < len(a):
        found.different.append(
            f"{name}: {len(a) - len(rows)} of {len(a)} rows are gone, e.g. {a.index.difference(b.index)[0]}"
        )
    if len(rows) < len(b):
        found.came_or_went.append(f"{name}: {len(b) - len(rows)} new rows")
    for column in (c for c in both if c not in keys):
        x, y = a.loc[rows, column], b.loc[rows, column]
        found.values += len(rows)
        # A difference of two numbers of about 1 keeps their rounding, however small it is: hence the 1.0.
        if pd.api.types.is_numeric_dtype(x) and pd.api.types.is_numeric_dtype(y):
            u, v = x.to_numpy(float), y.to_numpy(float)
            same = (
                (u == v)
                | (np.isnan(u) & np.isnan(v))
                | (np.abs(u - v) <= 1e-12 * np.maximum(1.0, np.maximum(np.abs(u), np.abs(v))))
            )
        else:
            u, v = (
                s.astype(object).where(s.notna(), "").astype(str).map(lambda t: rename.get(t, t))
                for s in (x, y)
            )
            same = (u == v).to_numpy()
        if not same.all():
            where = int(np.flatnonzero(~same)[0])
            found.different.append(
                f"{name}: {column} differs in {(~same).sum()} of {len(rows)} rows, e.g. {rows[where]}: "
                f"{x.iloc[where]} before, {y.iloc[where]} after"
            )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--rename", nargs="*", default=[], metavar="OLD=NEW", help="names that changed"
    )
    parser.add_argument(
        "--strict", action="store_true", help="columns, rows or tables that came or went fail too"
    )
    options = parser.parse_args()
    rename = dict(pair.split("=", 1) for pair in options.rename)
    found = Found()
    compare_collected(options.before, options.after, found)
    tables = 0
    for old in sorted(options.before.rglob("*.csv")):
        name = str(old.relative_to(options.before))
        if not (options.after / name).is_file():
            found.came_or_went.append(f"{name}: gone")
            continue
        tables += 1
        compare_tables(name, pd.read_csv(old), pd.read_csv(options.after / name), rename, found)
    print(
        f"{found.equal} files of the collecting passes are equal; {tables} tables, {found.values:,} values compared"
    )
    for title, lines in (("DIFFERENT", found.different), ("came or went", found.came_or_went)):
        for line in lines:
            print(f"{title}: {line}")
    return int(bool(found.different) or (options.strict and bool(found.came_or_went)))


if __name__ == "__main__":
    sys.exit(main())
