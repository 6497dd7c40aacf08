"""What a builder gets and what it returns, and seeded splits that keep groups together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from aape.datasets.files import AudioIndex


@dataclass(frozen=True)
class Source:
    """Where a builder looks.

    Attributes:
        root: the folder that the dataset was unpacked to.
        evar: a clone of EVAR, or None.
        lists: a folder with split lists that do not come with the dataset, or None.
        seed: of a split of our own, where no other exists.
    """

    root: Path
    evar: Path | None = None
    lists: Path | None = None
    seed: int = 0

    @cached_property
    def index(self) -> AudioIndex:
        """Every audio file under the root."""
        return AudioIndex(self.root)

    def companion(self, *names: str) -> Path | None:
        """The first of these files that lies in the root, its `meta` folder, or the folder of lists."""
        folders = [self.root, self.root / "meta", *([] if self.lists is None else [self.lists])]
        for folder in folders:
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        return None


@dataclass(frozen=True)
class Rows:
    """What a dataset should hold, before anything is looked for on disk.

    Attributes:
        table: file_name (as the official list has it), label, split or fold, and group where known.
        origin: where labels and splits come from.
        comparable: whether results on these splits may be put beside published ones.
        bases: folders under the root that file names may be relative to.
        shortest: no clip of this dataset is shorter, s.
        seed: of the split, where it is ours.
        notes: what a reader of the results must know.
        absent: things missing that no file name stands for, e.g. a whole folder.
    """

    table: pd.DataFrame
    origin: str
    comparable: bool = True
    bases: tuple[str, ...] = ("",)
    shortest: float = 0.0
    seed: int | None = None
    notes: tuple[str, ...] = ()
    absent: tuple[str, ...] = field(default=())


def evar_metadata(task: str, evar: str | Path | None) -> Path | None:
    """An EVAR user's own metadata file of a task, or None.

    EVAR's make_metadata.py writes `nspitch.csv.csv`, because it adds the suffix to a name that has one; both names
    are accepted, the right one first.
    """
    if evar is None:
        return None
    evar = Path(evar).expanduser()
    for folder in (evar / "evar" / "metadata", evar / "metadata"):
        for name in (f"{task}.csv", f"{task}.csv.csv"):
            if (folder / name).is_file():
                return folder / name
    return None


def read_evar(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """EVAR's metadata as it is, and notes. Rows without a split are left out, as EVAR's loader leaves them out."""
    table = pd.read_csv(path, keep_default_na=False, dtype={"file_name": str})
    missing = {"file_name", "label"} - set(table.columns)
    if missing or not {"split", "fold"} & set(table.columns):
        raise ValueError(
            f"{path}: expected EVAR's columns file_name, label and split or fold, found {', '.join(table.columns)}"
        )
    notes = []
    if path.name.endswith(".csv.csv"):
        notes.append(f"{path.name}: EVAR's make_metadata.py adds .csv twice; read as it is")
    if "split" in table:
        without = table.split.astype(str).str.strip() == ""
        if without.any():
            notes.append(f"{int(without.sum())} rows of {path.name} have no split and are left out, as EVAR does")
            table = table[~without].reset_index(drop=True)
    return table, tuple(notes)


def seeded_split(groups: Sequence[str], strata: Sequence[str], *, shares: dict[str, float], seed: int) -> list[str]:
    """A split of our own: whole groups, drawn at random within each stratum.

    Args:
        groups: of each clip; a group never straddles two splits.
        strata: of each clip; each stratum (a language, say) is divided by itself. A group belongs to its first clip's.
        shares: split -> share of the groups; the first one takes what rounding leaves.
        seed: of numpy's default generator.

    Returns:
        The split of each clip.
    """
    stratum_of: dict[str, str] = {}
    for group, stratum in zip(groups, strata, strict=True):
        stratum_of.setdefault(group, stratum)
    generator = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    first, *rest = shares
    for stratum in sorted(set(stratum_of.values())):
        members = sorted(g for g, s in stratum_of.items() if s == stratum)
        order = [members[i] for i in generator.permutation(len(members))]
        start = 0
        for name in rest:
            count = round(shares[name] * len(members))
            if count == 0 and len(members) >= len(shares):
                count = 1  # every split should know every stratum
            for group in order[start : start + count]:
                split_of[group] = name
            start += count
        for group in order[start:]:
            split_of[group] = first
    return [split_of[g] for g in groups]
