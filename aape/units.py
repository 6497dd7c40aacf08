"""What may swap labels with what, and its sums of counts by class for any labelling.

Clips of one group (recording, speaker, instrument) are not independent:
- a group whose clips are all of one class (an ESC-50 recording, a speaker of one language) is one unit: labels are
  permuted *among such groups*, and its clips move together. Only groups of as many clips swap labels: where one class
  has few long recordings and another many short ones, its sums vary more, and a permutation that ignores this finds
  discoveries in noise. Where all groups of a size are of one class, neighbouring sizes are joined until classes mix;
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

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, csr_array

BATCH_BYTES = 1 << 28, 3 << 29  # of class sums at once: at least, and at most; the counts are read once a batch
READ = 2048  # neurons read at a time
TOGETHER = 4  # labellings summed in one go over a block of neurons: their class sums stay in the cache


@dataclass(frozen=True, eq=False)
class Counted:
    """The clips of which counts are there.

    Attributes:
        counts: active tokens, unsigned [clips, layers, neurons], may be memory-mapped.
        labels, tokens, groups: class index, number of tokens, and group of each clip, [clips].
        without: counts to take off, shaped as `counts` (those of zero padding; `tokens` is then without them too).
        rows: the rows of `counts` that are these clips; None: all.
    """

    counts: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    groups: np.ndarray
    without: np.ndarray | None = None
    rows: np.ndarray | None = None

    def rates(self, neurons: np.ndarray) -> np.ndarray:
        """Share of active tokens of some neurons (index in [layers * neurons]), float64 [clips, k]."""
        tables = [t.reshape(len(t), -1)[:, neurons] for t in (self.counts, self.without) if t is not None]
        active, *without = tables if self.rows is None else [t[self.rows] for t in tables]
        return (active.astype(np.float64) - sum(without)) / np.maximum(self.tokens, 1)[:, None]


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
    """

    of_clip: np.ndarray
    label: np.ndarray
    stratum: np.ndarray
    group: np.ndarray
    n_classes: int
    description: str

    def __len__(self) -> int:
        return len(self.label)


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


def exchangeable_units(labels: Any, groups: Sequence[str] | np.ndarray, n_classes: int | None = None) -> Units:
    """The units whose labels are permuted.

    Args:
        labels: class index of each clip, [clips].
        groups: [clips], text or numbers.
        n_classes: by default one more than the largest label.

    Raises:
        ValueError: no clips, lengths that differ, negative or too large labels.
    """
    label = np.asarray(labels, dtype=np.int32)
    n_classes = int(label.max(initial=0)) + 1 if n_classes is None else n_classes
    if len(label) == 0 or len(groups) != len(label) or label.min() < 0 or label.max() >= n_classes:
        raise ValueError(
            f"expected at least one clip, a group for each, and labels from 0 to {n_classes - 1}; found "
            f"{len(label)} labels{f' from {label.min()} to {label.max()}' if len(label) else ''}, {len(groups)} groups"
        )
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    low, high = pd.Series(label).groupby(group).agg(["min", "max"]).to_numpy().T  # [groups]
    is_split = low < high  # [groups]
    # a whole group is one unit; in a split group every clip is
    key = np.where(is_split[group], len(is_split) + np.arange(len(label)), group)
    _, first, of_clip = np.unique(key, return_index=True, return_inverse=True)
    unit_group = group[first]
    one_class = np.flatnonzero(~is_split)
    of_size, sizes = _strata_of_size(np.bincount(group)[one_class], low[one_class])
    stratum = np.where(is_split, len(sizes) + np.arange(len(is_split)), 0)  # [groups]
    stratum[one_class] = of_size
    _, stratum = np.unique(stratum[unit_group], return_inverse=True)
    return Units(of_clip, label[first], stratum, unit_group, n_classes, _description(is_split, of_size, low, sizes))


def _strata_of_size(size: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Strata of groups with as many clips; neighbouring sizes are joined, nearest first, until each mixes classes.

    Args:
        size, label: clips and class of each group, [groups].

    Returns:
        The stratum of each group, int64 [groups]; the smallest and largest size of each stratum.
    """
    found = [({int(s)}, set(label[size == s].tolist())) for s in np.unique(size)]  # sizes, and their classes
    while len(found) > 1:
        neighbours = list(enumerate(itertools.pairwise(found)))
        gaps = [(min(b) / max(a), i) for i, ((a, one), (b, two)) in neighbours if len(one) == 1 or len(two) == 1]
        if not gaps:
            break
        index = min(gaps)[1]
        found[index : index + 2] = [tuple(one | two for one, two in zip(*found[index : index + 2], strict=True))]
    sizes = [(min(s), max(s)) for s, _ in found]
    return np.searchsorted([high for _, high in sizes], size), sizes


def _description(is_split: np.ndarray, of_size: np.ndarray, label: np.ndarray, sizes: list[tuple[int, int]]) -> str:
    """One sentence: what is permuted, and how many groups can move."""
    whole, split = int((~is_split).sum()), int(is_split.sum())
    what = [f"within {split} groups of several classes"] if split else []
    if whole and sizes == [(1, 1)] and not split:
        what.append(f"among {whole} clips")
    elif whole:
        classes = pd.Series(label[~is_split]).groupby(of_size)
        movable = int(classes.size()[classes.nunique() > 1].sum())
        spans = ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in sizes)
        spans = spans if len(sizes) < 10 else f"{len(sizes)} strata"
        what.append(f"among {whole} groups of one class ({movable} can move) of as many clips ({spans})")
    return f"labels permuted {' and '.join(what)}"


def permuted_labels(units: Units, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """`permutations` times int32 [units], labels permuted within the strata; seeded."""
    rng = np.random.default_rng(seed)
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
        threads: default the number of cores, at most 4; it does not change results.

    Raises:
        ValueError: shapes that do not fit, or a class without tokens.
    """

    def __init__(self, data: Counted, units: Units, *, threads: int | None = None):
        clips = len(units.of_clip)
        self._rows = np.arange(len(data.counts)) if data.rows is None else data.rows
        if data.counts.ndim != 3 or {len(self._rows), len(data.tokens)} != {clips}:
            raise ValueError(
                f"expected counts [{clips} clips, layers, neurons] and as many tokens, "
                f"found counts {data.counts.shape} and {len(data.tokens)} tokens"
            )
        self.units, self.shape, self._data = units, data.counts.shape[1:], data
        self.width = int(np.prod(self.shape))
        self.threads = threads or min(os.cpu_count() or 1, 4)
        self.tokens = np.bincount(units.of_clip, weights=data.tokens, minlength=len(units))  # float64 [units]

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of neurons: where they stand, and float32 [units, neurons of the block]."""
        clips, units = len(self._rows), len(self.units)
        gather = csr_array((np.ones(clips, np.float32), (self.units.of_clip, np.arange(clips))), (units, clips))
        width = int(np.clip(2**24 // units, 16, 1024))  # a block of the sums stays near the processor
        tables = [t.reshape(len(t), -1) for t in (self._data.counts, self._data.without) if t is not None]
        for start in range(0, self.width, READ):
            # a copy of some columns: a memory-mapped table is read from disk here and nowhere else
            raw = [table[:, start : start + READ][self._rows] for table in tables]
            for first in range(0, raw[0].shape[1], width):
                counts, *without = [r[:, first : first + width].astype(np.float32) for r in raw]
                for less in without:
                    counts -= less
                yield slice(start + first, start + first + counts.shape[1]), gather @ counts

    def class_tokens(self, labels: np.ndarray) -> np.ndarray:
        """float64 [classes]: tokens by label (-1: left out)."""
        used = labels >= 0
        return np.bincount(labels[used], weights=self.tokens[used], minlength=self.units.n_classes)

    def by_class(self, labellings: Iterable[np.ndarray]) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Batches of the labellings with their sums, float32 [labellings of the batch, classes, layers * neurons].

        A label of -1 leaves its unit out. The sums' memory is used again for the next batch.
        """
        n_units, n_classes = len(self.units), self.units.n_classes
        size = int(np.clip(self._data.counts.nbytes // 4, *BATCH_BYTES)) // (4 * n_classes * self.width)
        labellings, out = iter(labellings), np.empty((0, n_classes, self.width), np.float32)

        def member_of(some: list[np.ndarray]) -> csc_array:
            labels = np.stack(some, axis=1)  # [units, labellings]
            row = np.maximum(labels, 0) + np.arange(len(some), dtype=np.int32) * n_classes
            column = np.arange(0, labels.size + 1, len(some), dtype=np.int32)
            used = (labels >= 0).astype(np.float32)
            return csc_array((used.reshape(-1), row.reshape(-1), column), (len(some) * n_classes, n_units))

        with ThreadPoolExecutor(self.threads) as pool:
            while batch := list(itertools.islice(labellings, max(1, size))):
                out = out if len(out) else np.empty((len(batch), n_classes, self.width), np.float32)
                starts = range(0, len(batch), TOGETHER)
                members = [member_of(batch[start : start + TOGETHER]) for start in starts]
                for where, sums in self:
                    list(pool.map(functools.partial(_put, out[:, :, where], sums), starts, members))
                yield batch, out[: len(batch)]


def _put(out: np.ndarray, sums: np.ndarray, start: int, member: csc_array) -> None:
    found = (member @ sums).reshape(-1, *out.shape[1:])
    out[start : start + len(found)] = found
