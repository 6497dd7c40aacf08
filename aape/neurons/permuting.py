"""Which clips may exchange their labels, permuted labels, and sums of counts by class for any labels.

Clips of one group (recording, speaker, instrument) are not independent:
- A group whose clips are all of one class (an ESC-50 recording, a speaker of one language) is one unit. Labels are
  permuted among such groups that have as many clips, because a class of few long recordings varies more than a class of
  many short ones. Where all groups of a size are of one class, neighbouring sizes that differ by a factor of at most
  `SIZE_RATIO` are joined until classes mix. Where that is not enough, such groups keep their label in every permutation,
  and a class none of whose clips can move cannot be tested (`Units.tested`).
- A group whose clips are of several classes (a speaker who plays every emotion, an instrument that plays every pitch) is
  a stratum: labels are permuted within the group, clip by clip.
Both kinds can occur in one task; both are then permuted at once. Without groups every clip is a unit. If labels mean
nothing but come with these groups and sizes, all permutations are equally likely (exactly so where no sizes were joined).

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

BATCH_BYTES = 1 << 28, 3 << 29  # of class sums at once: at least, and at most; the counts are read once per batch
READ = 1024  # neurons that a thread reads at a time
SIZE_RATIO = 1.1  # clips of the largest group to those of the smallest in joined sizes; see benchmarks/calibration.md
TOGETHER = 4  # labellings summed in one go over a block of neurons, whose class sums then stay in the processor's cache
THREADS = min(os.cpu_count() or 1, 4)  # does not change results


@dataclass(frozen=True, eq=False)
class Counted:
    """Clips with their counts.

    Attributes:
        counts: active tokens, unsigned [clips, layers, neurons], may be memory-mapped.
        labels, tokens, groups: class index, number of tokens, and group of each clip, [clips].
        without: counts to subtract, shaped as `counts` (those of zero padding; `tokens` then excludes padding too).
        clips: uint64 [clips], equal only for the same audio; None: not known.
    """

    counts: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    groups: np.ndarray
    without: np.ndarray | None = None
    clips: np.ndarray | None = None

    def active(self, neurons: slice | np.ndarray) -> np.ndarray:
        """Active tokens of some neurons (indices into layers * neurons), unsigned [clips, k], read from disk here."""
        clips = len(self.counts)
        found = np.ascontiguousarray(self.counts.reshape(clips, -1)[:, neurons])
        if self.without is None:
            return found
        return found - self.without.reshape(clips, -1)[:, neurons]


@dataclass(frozen=True, eq=False)
class Units:
    """What may exchange labels with what.

    Attributes:
        of_clip: int64 [clips], the unit of each clip.
        label: int32 [units].
        stratum: int64 [units]; labels are permuted within a stratum.
        group: int64 [units].
        n_classes: number of classes; some may have no unit.
        description: one sentence for tables.
        clips: uint64 [clips], equal only for the same audio; empty where that is not known.
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
        """bool [units], whether the unit's stratum has several classes; labels of the other units stay in place."""
        low, high = _extremes(self.label, self.stratum)
        return (low < high)[self.stratum]

    @property
    def tested(self) -> np.ndarray:
        """bool [classes], whether some clips of the class can move. Permutations say nothing about the others."""
        return np.bincount(self.label[self.moves], minlength=self.n_classes) > 0


def _extremes(values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value for each index."""
    by_index = pd.Series(values).groupby(index)
    return by_index.min().to_numpy(), by_index.max().to_numpy()


def exchangeable_units(
    labels: Any, groups: Sequence[str] | np.ndarray, n_classes: int | None = None, clips: np.ndarray | None = None
) -> Units:
    """The units whose labels are permuted.

    Args:
        labels: class index of each clip, [clips].
        groups: [clips], text or numbers.
        n_classes: by default one more than the largest label.
        clips: uint64 [clips], equal only for the same audio; by default not known.

    Raises:
        ValueError: no clips, lengths that differ, negative or too large labels.
    """
    label = np.asarray(labels, dtype=np.int32)
    if n_classes is None:
        n_classes = int(label.max(initial=0)) + 1
    if not 0 < len(label) == len(groups) or label.min() < 0 or label.max() >= n_classes:
        raise ValueError(
            f"expected at least one clip, a group for each, and labels 0 to {n_classes - 1}; "
            f"found {len(label)} labels ({sorted(set(label.tolist()))[:9]}) and {len(groups)} groups"
        )
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    low, high = _extremes(label, group)  # [groups]
    is_split = low < high  # [groups], several classes
    whole = ~is_split
    # a whole group is one unit; in a split group every clip is
    key = np.where(is_split[group], len(is_split) + np.arange(len(label)), group)
    _, first, of_clip = np.unique(key, return_index=True, return_inverse=True)
    size_stratum, sizes = _strata_of_size(np.bincount(group)[whole], low[whole])
    stratum = len(sizes) + np.arange(len(is_split))  # [groups]
    stratum[whole] = size_stratum
    _, stratum = np.unique(stratum[group[first]], return_inverse=True)
    description = _description(int(is_split.sum()), pd.Series(low[whole]).groupby(size_stratum), sizes)
    known = np.zeros(0, np.uint64) if clips is None else clips
    return Units(of_clip, label[first], stratum, group[first], n_classes, description, known)


def _strata_of_size(size: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Strata of groups with as many clips; neighbouring sizes are joined, nearest first, until each mixes classes.

    Sizes that differ by more than a factor of SIZE_RATIO are not joined, so some strata may be left with one class.

    Args:
        size, label: clips and class of each group, [groups].

    Returns:
        The stratum of each group, int64 [groups]; the smallest and largest size of each stratum.
    """
    strata = [(int(s), int(s), set(label[size == s].tolist())) for s in np.unique(size)]  # sizes from, to, and classes
    while True:
        gaps = []
        for i, (lower, upper) in enumerate(itertools.pairwise(strata)):
            near = upper[1] <= SIZE_RATIO * lower[0]
            if near and (len(lower[2]) == 1 or len(upper[2]) == 1):
                gaps.append((upper[0] / lower[1], i))
        if not gaps:
            break
        i = min(gaps)[1]
        lower, upper = strata[i], strata[i + 1]
        strata[i : i + 2] = [(lower[0], upper[1], lower[2] | upper[2])]
    sizes = [(low, high) for low, high, _ in strata]
    return np.searchsorted([high for _, high in sizes], size), sizes


def _description(split: int, classes: Any, sizes: list[tuple[int, int]]) -> str:
    """One sentence: what is permuted, how many groups can move, and which do not.

    Args:
        split: number of groups of several classes.
        classes: those of the other groups, by stratum.
        sizes: as `_strata_of_size`.
    """
    groups = classes.size()
    mixed = classes.nunique() > 1
    what = [f"within {split} groups of several classes"] if split else []
    if groups.sum() and sizes == [(1, 1)] and not split:
        what.append(f"among {groups.sum()} clips")
    elif groups.sum():
        spans = [f"{low}" if low == high else f"{low}-{high}" for low, high in sizes]
        fixed = [span for span, mixes in zip(spans, mixed, strict=True) if not mixes]
        why = f"; those of {_few(fixed)} keep their label: no other class has groups of about as many" if fixed else ""
        movable = f"{groups.sum()} groups of one class ({groups[mixed].sum()} can move)"
        what.append(f"among {movable} of as many clips ({_few(spans)}{why})")
    return f"labels permuted {' and '.join(what)}"


def _few(spans: list[str]) -> str:
    return ", ".join(spans) if len(spans) < 10 else f"{len(spans)} strata"


def permuted_labels(units: Units, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """`permutations` times int32 [units], labels permuted within the strata.

    The seed includes the clips where they are known, so that permutations of two tasks are independent. With one seed for
    both, tasks of as many groups would get the same permutation, and permuted classes would share what the classes share.
    """
    digest = hashlib.sha256(units.clips.tobytes()).digest()[:8] if len(units.clips) else b""
    rng = np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])
    home = np.argsort(units.stratum, kind="stable")
    for _ in range(permutations):
        # stratum + random in [0, 1): sorting shuffles inside each stratum
        order = np.argsort(units.stratum + rng.random(len(units)), kind="stable")
        shuffled = np.empty_like(units.label)
        shuffled[home] = units.label[order]
        yield shuffled


class UnitSums:
    """Active tokens of each unit, read in blocks of neurons, and summed by class for any labels of the units.

    float32 holds the sums exactly below 2**24 tokens per class.

    Args:
        data: the counts.
        units: from `exchangeable_units`.

    Raises:
        ValueError: shapes that do not fit.
    """

    def __init__(self, data: Counted, units: Units):
        clips = len(units.of_clip)
        if data.counts.ndim != 3 or not len(data.counts) == len(data.tokens) == clips:
            raise ValueError(
                f"expected counts [{clips} clips, layers, neurons] and as many tokens, "
                f"found counts {data.counts.shape} and {len(data.tokens)} tokens"
            )
        self.units = units
        self.shape = data.counts.shape[1:]
        self.width = int(np.prod(self.shape))
        self.tokens = np.bincount(units.of_clip, weights=data.tokens, minlength=len(units))  # float64 [units]
        self._data = data

    def each_block(self, work: Callable[[slice, np.ndarray], None]) -> None:
        """Calls work(neurons, float32 [units, those neurons]) for all blocks of neurons, several at a time in threads."""
        clips, units = len(self.units.of_clip), len(self.units)
        membership = np.ones(clips, np.float32), (self.units.of_clip, np.arange(clips))
        gather = csr_array(membership, (units, clips))
        width = int(np.clip(2**24 // units, 16, READ))  # a block of the sums stays near the processor

        def read(start: int) -> None:
            active = self._data.active(slice(start, start + READ))
            for first in range(0, active.shape[1], width):
                block = active[:, first : first + width].astype(np.float32)
                neurons = slice(start + first, start + first + block.shape[1])
                work(neurons, gather @ block)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, range(0, self.width, READ)))

    def class_tokens(self, labels: np.ndarray) -> np.ndarray:
        """float64 [classes]: tokens of each label."""
        return np.bincount(labels, weights=self.tokens, minlength=self.units.n_classes)

    def by_class(self, labellings: Iterable[np.ndarray]) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Batches of the labellings with their sums, float32 [labellings of the batch, classes, layers * neurons].

        The memory of the sums is used again for the next batch.
        """
        n_classes = self.units.n_classes
        room = int(np.clip(self._data.counts.nbytes // 4, *BATCH_BYTES))
        out = np.empty((max(1, room // (4 * n_classes * self.width)), n_classes, self.width), np.float32)
        remaining = iter(labellings)
        while batch := list(itertools.islice(remaining, len(out))):
            starts = range(0, len(batch), TOGETHER)
            members = [self._membership(batch[start : start + TOGETHER]) for start in starts]

            def put(neurons: slice, sums: np.ndarray, members: list[csc_array] = members) -> None:
                for start, member in zip(itertools.count(0, TOGETHER), members, strict=False):
                    by_class = (member @ sums).reshape(-1, n_classes, sums.shape[1])
                    out[start : start + len(by_class), :, neurons] = by_class

            self.each_block(put)
            yield batch, out[: len(batch)]

    def _membership(self, labellings: list[np.ndarray]) -> csc_array:
        """Which unit belongs to which (labelling, class), float32 [labellings * classes, units]."""
        n_classes = self.units.n_classes
        labels = np.stack(labellings, axis=1)  # [units, labellings]
        row = labels + np.arange(len(labellings), dtype=np.int32) * n_classes
        column = np.arange(0, labels.size + 1, len(labellings), dtype=np.int32)
        ones = np.ones(labels.size, np.float32)
        return csc_array((ones, row.reshape(-1), column), (len(labellings) * n_classes, len(labels)))
