"""Which clips may exchange their labels, permuted labels, and sums of counts by class for any labels.

Clips of one group (recording, speaker, instrument) are not independent, and the clips of one group and class (a *cell*) are
alike for reasons that other groups may not share, such as a speaker's own way to sound angry. So a cell moves as one unit:
- A group whose clips are all of one class (an ESC-50 recording, a speaker of one language) is one cell. Labels are permuted
  among such groups of like size, because a class of few long recordings varies more than a class of many short ones. Size
  is the number of tokens; sizes are alike if they differ by a factor of at most `GROUP_RATIO`.
- The cells of a group with several classes (a speaker who plays every emotion, an instrument that plays every pitch)
  exchange labels within the group, if their sizes differ by a factor of at most `CELL_RATIO`.
Without groups every clip is a unit. If labels mean nothing but come with these groups and sizes, all permutations are
equally likely (exactly so where sizes are equal). These are the exchangeability blocks of Winkler et al. (2015, NeuroImage
123:253). Where all units of a stratum are of one class, they keep their label in every permutation.

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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, csr_array
from scipy.special import gammaln

BATCH_BYTES = (
    1 << 28,
    3 << 29,
)  # of class sums at once: at least, and at most; the counts are read once per batch
READ = 1024  # neurons that a thread reads at a time
GROUP_RATIO = 1.1  # tokens of the largest group of a stratum to those of the smallest; see benchmarks/calibration.md
CELL_RATIO = 2.0  # the same for the cells of one group
LEAST_PLACEMENTS = 20  # with fewer sets of units that a class could have, no p-value can reach 5 %
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

    def rates(self, neurons: np.ndarray) -> np.ndarray:
        """Share of active tokens of some neurons, float64 [clips, k]; 0 for a clip without tokens."""
        return self.active(neurons) / np.maximum(self.tokens, 1)[:, None]


@dataclass(frozen=True, eq=False)
class Units:
    """What may exchange labels with what.

    Attributes:
        of_clip: int64 [clips], the unit of each clip.
        label: int32 [units].
        stratum: int64 [units]; labels are permuted within a stratum.
        n_classes: number of classes; some may have no unit.
        description: one sentence for tables.
        clips: uint64 [clips], equal only for the same audio; empty where that is not known.
    """

    of_clip: np.ndarray
    label: np.ndarray
    stratum: np.ndarray
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

    def by_class_and_stratum(self) -> np.ndarray:
        """Number of units, float64 [classes, strata]."""
        count = np.zeros((self.n_classes, int(self.stratum.max()) + 1))
        np.add.at(count, (self.label, self.stratum), 1)
        return count

    @property
    def tested(self) -> np.ndarray:
        """bool [classes], whether permutations can say something about the class.

        A class that could have fewer than LEAST_PLACEMENTS different sets of units is too small, or none of its units can
        exchange labels with other classes.
        """
        units = self.by_class_and_stratum()
        total = units.sum(axis=0)
        log_placements = gammaln(total + 1) - gammaln(units + 1) - gammaln(total - units + 1)
        return log_placements.sum(axis=1) > np.log(LEAST_PLACEMENTS) - 1e-9


def _extremes(values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value for each index."""
    by_index = pd.Series(values).groupby(index)
    return by_index.min().to_numpy(), by_index.max().to_numpy()


def exchangeable_units(
    labels: Any,
    groups: Sequence[str] | np.ndarray,
    n_classes: int | None = None,
    clips: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> Units:
    """The units whose labels are permuted.

    Args:
        labels: class index of each clip, [clips].
        groups: [clips], text or numbers.
        n_classes: by default one more than the largest label.
        clips: uint64 [clips], equal only for the same audio; by default not known.
        tokens: of each clip; by default all clips have as many.

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
    cell = group.astype(np.int64) * n_classes + label
    _, first, of_clip = np.unique(cell, return_index=True, return_inverse=True)
    size = np.bincount(of_clip, weights=tokens)  # of each unit
    group = group[first]
    is_whole = np.bincount(group)[group] == 1  # the unit is all of its group
    block = np.where(
        is_whole, -1, group
    )  # labels may be exchanged within a block, between like sizes
    size_bin = np.zeros(len(size), dtype=np.int64)
    order = np.argsort(block, kind="stable")
    for units in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        ratio = GROUP_RATIO if block[units[0]] == -1 else CELL_RATIO
        size_bin[units] = _like_sizes(size[units], ratio)
    _, stratum = np.unique(np.stack([block, size_bin]), axis=1, return_inverse=True)
    known = np.zeros(0, np.uint64) if clips is None else clips
    found = Units(of_clip, label[first], stratum.reshape(-1), n_classes, "", known)
    return replace(found, description=_description(found, is_whole, block))


def _like_sizes(size: np.ndarray, ratio: float) -> np.ndarray:
    """Index of the bin of each size: bins start at the smallest size that is not yet in one, and span the ratio."""
    starts: list[float] = []
    for value in np.unique(size):
        if not starts or value > ratio * starts[-1]:
            starts.append(value)
    return np.searchsorted(starts, size, side="right") - 1


def _description(units: Units, is_whole: np.ndarray, block: np.ndarray) -> str:
    """One sentence: what is permuted, and how many units can move.

    Args:
        units: without their description.
        is_whole: bool [units], the unit is a group of one class.
        block: of each unit, -1 for whole groups.
    """
    moves = units.moves
    parts = []
    cells = ~is_whole
    if cells.any():
        groups = len(np.unique(block[cells]))
        parts.append(
            f"within {groups} groups of several classes, {cells.sum()} cells of a group and class "
            f"({moves[cells].sum()} can move)"
        )
    if is_whole.any():
        strata = len(np.unique(units.stratum[is_whole]))
        what = "clips" if len(units.of_clip) == len(units) else "groups of one class"
        kinds = "" if strata == 1 else f" in {strata} strata of like size"
        parts.append(f"among {is_whole.sum()} {what}{kinds} ({moves[is_whole].sum()} can move)")
    return f"labels permuted {' and '.join(parts)}"


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
        self.tokens = np.bincount(
            units.of_clip, weights=data.tokens, minlength=len(units)
        )  # float64 [units]
        self._data = data

    def each_block(self, work: Callable[[slice, np.ndarray], None]) -> None:
        """Calls work(neurons, float32 [units, those neurons]) for all blocks of neurons, several at a time in threads."""
        clips, units = len(self.units.of_clip), len(self.units)
        membership = np.ones(clips, np.float32), (self.units.of_clip, np.arange(clips))
        gather = csr_array(membership, (units, clips))
        width = int(
            np.clip(2**24 // units, 16, READ)
        )  # a block of the sums stays near the processor

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

    def by_class(
        self, labellings: Iterable[np.ndarray]
    ) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Batches of the labellings with their sums, float32 [labellings of the batch, classes, layers * neurons].

        The memory of the sums is used again for the next batch.
        """
        n_classes = self.units.n_classes
        room = int(np.clip(self._data.counts.nbytes // 4, *BATCH_BYTES))
        out = np.empty(
            (max(1, room // (4 * n_classes * self.width)), n_classes, self.width), np.float32
        )
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
        return csc_array(
            (ones, row.reshape(-1), column), (len(labellings) * n_classes, len(labels))
        )
