"""Lists of clips: reading them from tables, writing them, and the names of classes, groups and splits."""

from __future__ import annotations

import posixpath
import re
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from natsort import natsorted, ns

SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {"val": "valid", "validation": "valid", "dev": "valid", "development": "valid"}
_SPLIT_NAMES |= {"training": "train", "testing": "test", "eval": "test", "evaluation": "test"}
_GROUP_COLUMNS = (
    "group",
    "src_file",
    "speaker_id",
)  # ours, ESC-50's recording, EVAR's CREMA-D speaker
_SEVERAL = r"[;|]|,(?! )"  # in a label: between the classes of a clip
# Columns whose names say that they tell which clips belong together.
_GROUP_LIKE = re.compile(
    r"(speaker|spk|actor|singer|artist|performer|person|subject|participant|patient|client|user|author|recording|"
    r"recordist|session|source|video|track|song|album|instrument|individual|freesound|site)(s|_?id|_?name|_?no|_?number)?",
    re.IGNORECASE,
)


class Clip(NamedTuple):
    """One clip. `split` is train, valid, test, or fold1, fold2, ..., or "" if unknown; `group` is None if unknown."""

    file_name: str
    label: str
    split: str
    group: str | None = None


class ClipList(NamedTuple):
    """Clips, the column that their groups come from (None: unknown), and notes for readers of the results."""

    clips: list[Clip]
    group_column: str | None
    notes: list[str]


def read_table(path: Path, *columns: str) -> pd.DataFrame:
    """A table with a header, separated by commas, semicolons or tabs.

    Text stays text, so that `01`, `NA` and `1.0` are kept. The index is the number of the line in a file without empty lines.

    Args:
        path: the file.
        columns: columns that it must have.

    Raises:
        ValueError: not UTF-8, a missing or repeated column, a row with too many fields, an open quote.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        table = pd.read_csv(
            path, sep=separator, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error}); save it as UTF-8 (a spreadsheet's CSV UTF-8)"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        hint = "Quote a field that holds the separator, and close every quote"
        raise ValueError(f"{path}: {str(error).strip()}. {hint}") from None
    table.columns = pd.Index([str(name).strip() for name in table.iloc[0]])
    if not table.columns.is_unique or not {*columns} <= {*table.columns}:
        expected = f"{', '.join(columns) or 'columns'}, each column once"
        raise ValueError(f"{path}: expected {expected}, found {', '.join(table.columns)}")
    table.index += 1
    return table.iloc[1:].astype(object)


def read_clips_csv(path: Path, label: str = "label", group: str | None = None) -> ClipList:
    """Read the clips of a CSV file; see `clips_of_table`."""
    return clips_of_table(read_table(path), path, label, group)


def clips_of_table(
    table: pd.DataFrame, source: str | Path, label: str = "label", group: str | None = None
) -> ClipList:
    """The clips of a table in EVAR's format, or in that of ESC-50's own `meta/esc50.csv`.

    Args:
        table: text only; see `aape.sounds.loading.from_metadata`.
        source: what errors name.
        label: column of the classes.
        group: column of the groups; None: a column that is known to be one.

    Raises:
        ValueError: names the source, the line and what was expected.
    """
    table = table.rename(columns={"filename": "file_name"})
    if label == "label" and "label" not in table:
        label = "category"
    known_groups = [column for column in _GROUP_COLUMNS if column in table and column != label]
    if group is None and known_groups:
        group = known_groups[0]
    _check_columns(table, source, label, group)
    clips = pd.DataFrame(index=table.index)
    clips["file_name"] = [posixpath.normpath(name) if name else "" for name in table["file_name"]]
    clips["label"] = table[label].map(clean)
    clips["split"] = _splits(table)
    if group is not None:
        clips["group"] = table[group].map(clean)
    without = clips["split"] == ""
    if (
        without.any() and not without.all()
    ):  # EVAR's gtzan.csv lists 70 clips that are not in the filtered split
        warnings.warn(
            f"{source}: {without.sum()} row(s) without a split or fold are left out", stacklevel=4
        )
        clips = clips[~without].copy()
    has_splits = "split" in table or "fold" in table
    _check_rows(clips, source, has_splits)
    clips["split"] = clips["split"].str.replace(r"\.0+$", "", regex=True)
    notes = [note for note in dict.fromkeys(table.get("split_note", ())) if note.strip()]
    return ClipList([Clip(*row) for row in clips.itertuples(index=False)], group, notes)


def _splits(table: pd.DataFrame) -> pd.Series:
    """The split of each row; "" where there is none."""
    if "split" in table:
        return table["split"].map(split_name)
    if "fold" in table:
        folds = table["fold"].str.strip()
        return ("fold" + folds).where(folds != "", "")
    return pd.Series("", index=table.index)


def _check_columns(table: pd.DataFrame, source: str | Path, label: str, group: str | None) -> None:
    if label == group:
        raise ValueError(
            f"{source}: expected two columns, found label and group both {label!r}, which makes each class one group.\n"
            "Give as group the column of what recordings within a class share, or none."
        )
    expected = ["file_name", label, *([group] if group else [])]
    if table.empty or not {*expected} <= {*table}:
        found = f"{', '.join(map(str, table))} with {len(table)} rows"
        raise ValueError(
            f"{source}: expected columns {', '.join(expected)}, and split or fold if there are official ones, one row per "
            f"clip, found {found}"
        )
    group_like = [
        column for column in table.columns.difference(expected) if _GROUP_LIKE.fullmatch(column)
    ]
    if group is None and group_like:
        warnings.warn(
            f"{source}: the column {group_like[0]!r} seems to say which clips belong together, and is not used. "
            f"Give group={group_like[0]!r} if it does: statistics and splits then go by group.",
            stacklevel=5,
        )


def _check_rows(clips: pd.DataFrame, source: str | Path, has_splits: bool) -> None:
    """Raise ValueError at the first row that is not valid."""
    outside = r"/|\\|\.\.(/|$)|[A-Za-z]:"
    known_split = "|".join(SPLITS) + r"|fold\d+(\.0+)?|"
    unknown_split = ~clips["split"].str.fullmatch(known_split)
    required = clips if has_splits else clips.drop(columns="split")
    complaints = {
        "a field is empty; complete the line, or remove it": (required == "").any(axis=1),
        "{file_name!r} leaves the audio folder; give the path relative to it": clips[
            "file_name"
        ].str.match(outside),
        "{file_name!r} is also on an earlier line; list each clip once": clips[
            "file_name"
        ].duplicated(),
        "label {label!r} names several classes. Several labels per clip are not supported here: give each clip one "
        "class, or one task per label": clips["label"].str.contains(_SEVERAL),
        f"{{split!r}} is no split, expected {', '.join(SPLITS)}, or a whole number in a column fold": unknown_split,
    }
    for complaint, bad in complaints.items():
        if bad.any():
            row = clips[bad].iloc[0]
            raise ValueError(f"{source}, line {row.name}: {complaint.format(**row)}")


def csv_text(clips: Iterable[Clip], split_note: str = "") -> str:
    """EVAR's format as text: a column `fold` if the splits are folds, else `split`; `group` and `split_note` if known.

    Raises:
        ValueError: a class that could not be read back.
    """
    table = pd.DataFrame(list(clips), columns=list(Clip._fields))
    several = table["label"][table["label"].str.contains(_SEVERAL)]
    if len(several):
        raise ValueError(
            f"{several.iloc[0]!r} would be read back as several classes: rename it, or put a space after the comma"
        )
    if table["split"].str.startswith("fold").all():
        table["split"] = table["split"].str.removeprefix("fold")
        table = table.rename(columns={"split": "fold"})
    if table["group"].isna().any():
        del table["group"]
    if split_note:
        table["split_note"] = split_note
    return table.to_csv(index=False, lineterminator="\n")


_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff"))


def clean(name: str) -> str:
    """A name in composed Unicode (NFC), without characters that cannot be seen and with single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).translate(_INVISIBLE).split())


def alike(name: str) -> str:
    """A key that is equal for names that a person would take for the same one."""
    return clean(name).casefold()


def warn_of_alike(kind: str, names: Iterable[str], source: str | Path) -> None:
    """Warn of names that differ only in upper and lower case."""
    first: dict[str, str] = {}
    for name in sorted({*names}):
        other = first.setdefault(alike(name), name)
        if other != name:
            message = (
                f"{source}: the {kind} {other!r} and {name!r} differ only in upper and lower case"
            )
            warnings.warn(
                f"{message}. They count as two; write them in the same way if they are one",
                stacklevel=4,
            )


def split_name(name: str) -> str:
    """A split by the name that is used here, e.g. "valid" for "Validation"; other names stay as they are."""
    name = clean(name)
    return _SPLIT_NAMES.get(name.lower(), name.lower() if is_split(name) else name)


def is_split(name: str) -> bool:
    """Whether a name is that of a split or fold."""
    name = name.lower()
    return name in SPLITS or name in _SPLIT_NAMES or re.fullmatch(r"fold\d+", name) is not None


def class_order(labels: Iterable[str], source: str | Path) -> list[str]:
    """Class names sorted, numbers as numbers (EVAR).

    Raises:
        ValueError: one number written in two ways, such as 1 and 01.
    """
    names = natsorted(sorted(set(labels)), alg=ns.REAL)
    numbers: dict[float, str] = {}
    for name in names:
        with_value = _number(name)
        if with_value is None:
            continue
        other = numbers.setdefault(with_value, name)
        if other != name:
            raise ValueError(
                f"{source}: the labels {other!r} and {name!r} are one number; write it in one way"
            )
    return names


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
