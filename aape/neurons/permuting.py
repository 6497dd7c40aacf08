"""What may swap labels with what, and its sums of counts by class for any labelling.

Clips of one group (recording, speaker, instrument) are not independent:
- a group whose clips are all of one class (an ESC-50 recording, a speaker of one language) is one unit: labels are
  permuted *among such groups*, and its clips move together. Only groups of as many clips swap labels: where one class
  has few long recordings and another many short ones, its sums vary more, and a permutation that ignores this finds
  discoveries in noise. Where all groups of a size are of one class, neighbouring sizes that differ by a factor of at
  most `SIZE_RATIO` are joined until classes mix; where that does not do it, such groups keep their label in every
  permutation, and a class none of whose clips can move cannot be tested (`Units.tested`);
- a group whose clips are of several classes (a speaker who plays every emotion, an instrument that plays every pitch)
  is a stratum: labels are permuted *within the group*, clip by clip.
Both kinds can be in one task; then both are done at once. Without groups every clip is a unit. If labels mean nothing
but come with these groups and their sizes, all permutations are equally likely (exactly so where no sizes were joined).

    units = exchangeable_units(labels, groups)
    sums = UnitSums(Counted(counts, labels, tokens, groups), units)
    for batch, active in sums.by_class(permuted_labels(units, 1000, seed=0)):
        ...                                              # active tokens [labellings, classes, layers * neurons]
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, csr_array

BATCH_BYTES = 1 << 28, 3 << 29  # of class sums at once: at least, and at most; the counts are read once a batch
READ = 1024  # neurons a thread reads at a time
SIZE_RATIO = 1.1  # clips of the largest group to those of the smallest in joined sizes; see benchmarks/calibration.md
TOGETHER = 4  # labellings summed in one go over a block of neurons: their class sums stay in the cache
THREADS = min(os.cpu_count() or 1, 4)  # their number does not change results


@dataclass(frozen=True, eq=False)
class Counted:
    """The clips of which counts are there.

    Attributes:
        counts: active tokens, unsigned [clips, layers, neurons], may be memory-mapped.
        labels, tokens, groups: class index, number of tokens, and group of each clip, [clips].
        without: counts to take off, shaped as `counts` (those of zero padding; `tokens` is then without them too).
        rows: the rows of `counts` that are these clips; None: all.
        clips: uint64 [clips], equal for the same audio alone; None: not known.
        whole: whether no clip of the selection is left out.
    """

    counts: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    groups: np.ndarray
    without: np.ndarray | None = None
    rows: np.ndarray | None = None
    clips: np.ndarray | None = None
    whole: bool = True

    def active(self, neurons: slice | np.ndarray) -> np.ndarray:
        """Active tokens of some neurons (places in [layers * neurons]), unsigned [clips, k]: read from disk here."""
        rows = slice(None) if self.rows is None else self.rows
        tables = [table for table in (self.counts, self.without) if table is not None]
        counts, *without = [table.reshape(len(table), -1)[:, neurons][rows] for table in tables]
        return counts - without[0] if without else np.ascontiguousarray(counts)


@dataclass(frozen=True, eq=False)
class Units:
    """What may swap labels with what.

    Attributes:
        of_clip: int64 [clips], the unit of each clip.
        label: int32 [units].
        stratum: int64 [units]; labels are permuted within a stratum.
        group: int64 [units].
        n_classes: number of classes, some may have no unit.
        description: one sentence for tables.
        clips: uint64 [clips], equal for the same audio alone; empty where that is not known.
    """

    of_clip: np.ndarray
    label: np.ndarray
    stratum: np.ndarray
    group: np.ndarray
    n_classes: int
    description: str
    clips: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def moves(self) -> np.ndarray:
        """bool [units], whether the unit's stratum has several classes; the label of the others stays in place."""
        low, high = pd.Series(self.label).groupby(self.stratum).agg(["min", "max"]).to_numpy().T
        return (low < high)[self.stratum]

    @property
    def tested(self) -> np.ndarray:
        """bool [classes], whether some of the class's clips can move: of the others, permutations tell nothing."""
        return np.bincount(self.label[self.moves], minlength=self.n_classes) > 0


def share_of_groups(values: np.ndarray, labels: np.ndarray, groups: Sequence[str] | np.ndarray) -> np.ndarray:
    """Share of the variance within classes that lies between groups (speakers, recordings) of a class, [k].

    The intraclass correlation from a one-way analysis of variance: 0 where clips of a group are no more alike than clips
    of a class, also where groups have few clips; NaN where every group has one.
    """
    frame = pd.DataFrame(values)
    by_cell, by_class = frame.groupby([np.asarray(labels), np.asarray(groups)]), frame.groupby(np.asarray(labels))
    cells, classes = by_cell.ngroups, by_class.ngroups  # a cell: a group's clips of one class
    if cells in (classes, len(frame)):
        return np.full(frame.shape[1], np.nan)
    mean, size = by_cell.transform("mean"), by_cell.size()
    within = ((frame - mean) ** 2).sum() / (len(frame) - cells)
    between = ((mean - by_class.transform("mean")) ** 2).sum() / (cells - classes)
    per_group = len(frame) - ((size**2).groupby(level=0).sum() / size.groupby(level=0).sum()).sum()
    variance = (between - within).clip(lower=0) * (cells - classes) / per_group
    return (variance / (variance + within)).fillna(0).to_numpy()


def exchangeable_units(
    labels: Any, groups: Sequence[str] | np.ndarray, n_classes: int | None = None, clips: np.ndarray | None = None
) -> Units:
    """The units whose labels are permuted.

    Args:
        labels: class index of each clip, [clips].
        groups: [clips], text or numbers.
        n_classes: by default one more than the largest label.
        clips: uint64 [clips], equal for the same audio alone; by default not known.

    Raises:
        ValueError: no clips, lengths that differ, negative or too large labels.
    """
    label = np.asarray(labels, dtype=np.int32)
    n_classes = int(label.max(initial=0)) + 1 if n_classes is None else n_classes
    if not 0 < len(label) == len(groups) or label.min() < 0 or label.max() >= n_classes:
        found = (
            f"{len(label)} labels{f' from {label.min()} to {label.max()}' if len(label) else ''}, {len(groups)} groups"
        )
        raise ValueError(
            f"expected at least one clip, a group for each, and labels 0 to {n_classes - 1}; found {found}"
        )
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    low, high = pd.Series(label).groupby(group).agg(["min", "max"]).to_numpy().T  # [groups]
    is_split = low < high  # [groups]
    # a whole group is one unit; in a split group every clip is
    key = np.where(is_split[group], len(is_split) + np.arange(len(label)), group)
    _, first, of_clip = np.unique(key, return_index=True, return_inverse=True)
    unit_group = group[first]
    whole = ~is_split
    of_size, sizes = _strata_of_size(np.bincount(group)[whole], low[whole])
    stratum = len(sizes) + np.arange(len(is_split))  # [groups]
    stratum[whole] = of_size
    _, stratum = np.unique(stratum[unit_group], return_inverse=True)
    description = _description(int(is_split.sum()), pd.Series(low[whole]).groupby(of_size), sizes)
    known = np.zeros(0, np.uint64) if clips is None else clips
    return Units(of_clip, label[first], stratum, unit_group, n_classes, description, known)


def _strata_of_size(size: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Strata of groups with as many clips; neighbouring sizes are joined, nearest first, until each mixes classes.

    No sizes are joined that differ by more than a factor of SIZE_RATIO; so some strata may be left with one class.

    Args:
        size, label: clips and class of each group, [groups].

    Returns:
        The stratum of each group, int64 [groups]; the smallest and largest size of each stratum.
    """
    found = [(int(s), int(s), set(label[size == s].tolist())) for s in np.unique(size)]  # sizes from, to, and classes

    def gaps() -> list[tuple[float, int]]:
        neighbours = [(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(found)) if b[1] <= SIZE_RATIO * a[0]]
        return [(b[0] / a[1], i) for i, a, b in neighbours if len(a[2]) == 1 or len(b[2]) == 1]

    while near := gaps():
        i = min(near)[1]
        (low, _, one), (_, high, two) = found[i : i + 2]
        found[i : i + 2] = [(low, high, one | two)]
    sizes = [(low, high) for low, high, _ in found]
    return np.searchsorted([high for _, high in sizes], size), sizes


def _description(split: int, classes: Any, sizes: list[tuple[int, int]]) -> str:
    """One sentence: what is permuted, how many groups can move, and which do not.

    Args:
        split: number of groups of several classes.
        classes: those of the other groups, by stratum.
        sizes: as `_strata_of_size`.
    """
    of_stratum = classes.size()
    mixed = classes.nunique() > 1
    whole, movable = of_stratum.sum(), of_stratum[mixed].sum()
    what = [f"within {split} groups of several classes"] if split else []
    if whole and sizes == [(1, 1)] and not split:
        what.append(f"among {whole} clips")
    elif whole:
        spans = [f"{low}" if low == high else f"{low}-{high}" for low, high in sizes]
        fixed = [span for span, mixes in zip(spans, mixed, strict=True) if not mixes]
        all_of, none_of = (", ".join(of) if len(of) < 10 else f"{len(of)} strata" for of in (spans, fixed))
        why = f"; those of {none_of} keep their label: no other class has groups of about as many" if fixed else ""
        what.append(f"among {whole} groups of one class ({movable} can move) of as many clips ({all_of}{why})")
    return f"labels permuted {' and '.join(what)}"


def permuted_labels(units: Units, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """`permutations` times int32 [units], labels permuted within the strata.

    Seeded by the clips too, where they are known: those of two tasks are independent. With one seed for both, tasks of as
    many groups would get the same permutation, and permuted classes would share what the classes share.
    """
    of_clips = hashlib.sha256(units.clips.tobytes()).digest()[:8] if len(units.clips) else b""
    rng = np.random.default_rng([seed, *np.frombuffer(of_clips, np.uint32).tolist()])
    home = np.argsort(units.stratum, kind="stable")
    for _ in range(permutations):
        # stratum + random in [0, 1): sorting shuffles inside each stratum
        order = np.argsort(units.stratum + rng.random(len(units)), kind="stable")
        shuffled = np.empty_like(units.label)
        shuffled[home] = units.label[order]
        yield shuffled


class UnitSums:
    """Active tokens of each unit, read in blocks of neurons, and summed by class for any labelling of the units.

    float32 holds the sums exactly below 2**24 tokens a class.

    Args:
        data: the counts.
        units: from `exchangeable_units`.

    Raises:
        ValueError: shapes that do not fit.
    """

    def __init__(self, data: Counted, units: Units):
        rows = len(data.counts if data.rows is None else data.rows)
        if data.counts.ndim != 3 or not rows == len(data.tokens) == len(units.of_clip):
            raise ValueError(
                f"expected counts [{len(units.of_clip)} clips, layers, neurons] and as many tokens, "
                f"found counts {data.counts.shape}, {rows} rows of them and {len(data.tokens)} tokens"
            )
        self.units, self.shape, self._data = units, data.counts.shape[1:], data
        self.width = int(np.prod(self.shape))
        self.tokens = np.bincount(units.of_clip, weights=data.tokens, minlength=len(units))  # float64 [units]

    def each_block(self, work: Callable[[slice, np.ndarray], None]) -> None:
        """Calls work(neurons, float32 [units, those neurons]) for all blocks of neurons, several at a time in threads."""
        clips, units = len(self.units.of_clip), len(self.units)
        gather = csr_array((np.ones(clips, np.float32), (self.units.of_clip, np.arange(clips))), (units, clips))
        width = int(np.clip(2**24 // units, 16, READ))  # a block of the sums stays near the processor

        def read(start: int) -> None:
            active = self._data.active(slice(start, start + READ))
            for first in range(0, active.shape[1], width):
                block = active[:, first : first + width].astype(np.float32)
                work(slice(start + first, start + first + block.shape[1]), gather @ block)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, range(0, self.width, READ)))

    def class_tokens(self, labels: np.ndarray) -> np.ndarray:
        """float64 [classes]: tokens by label (-1: left out)."""
        used = labels >= 0
        return np.bincount(labels[used], weights=self.tokens[used], minlength=self.units.n_classes)

    def by_class(self, labellings: Iterable[np.ndarray]) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Batches of the labellings with their sums, float32 [labellings of the batch, classes, layers * neurons].

        A label of -1 leaves its unit out. The sums' memory is used again for the next batch.
        """
        n_classes, labellings = self.units.n_classes, iter(labellings)
        room = int(np.clip(self._data.counts.nbytes // 4, *BATCH_BYTES))
        out = np.empty((max(1, room // (4 * n_classes * self.width)), n_classes, self.width), np.float32)

        def member_of(some: list[np.ndarray]) -> csc_array:
            labels = np.stack(some, axis=1)  # [units, labellings]
            row = np.maximum(labels, 0) + np.arange(len(some), dtype=np.int32) * n_classes
            column = np.arange(0, labels.size + 1, len(some), dtype=np.int32)
            used = (labels >= 0).astype(np.float32)
            return csc_array((used.reshape(-1), row.reshape(-1), column), (len(some) * n_classes, len(labels)))

        while batch := list(itertools.islice(labellings, len(out))):
            members = [member_of(batch[start : start + TOGETHER]) for start in range(0, len(batch), TOGETHER)]

            def put(where: slice, sums: np.ndarray, members: list[csc_array] = members) -> None:
                for start, member in zip(itertools.count(0, TOGETHER), members, strict=False):
                    found = (member @ sums).reshape(-1, n_classes, sums.shape[1])
                    out[start : start + len(found), :, where] = found

            self.each_block(put)
            yield batch, out[: len(batch)]
