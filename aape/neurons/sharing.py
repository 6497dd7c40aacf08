"""Which classes share neurons, and how much of it is chance.

    jaccard(a.members, b.members)                        # [classes of a, classes of b]
    sharing_against_chance(calibrated_a, calibrated_b)   # next to what permuted labels give
    matched(observed, alike).p                           # do classes that are alike share more than others?

Sharing between two classes, of one task or of two, is the Jaccard index of their neuron sets (Kawamura et al. 2026).

For every pair of classes the index is reported next to its distribution under permuted labels: labels are permuted by
group, neurons are selected again, and the index is computed again (`aape.neurons.null`). Neurons that are active everywhere
are selected whatever the labels say and are shared by all classes; shuffling the memberships of one selection among its
neurons would miss that. There is no p-value per pair: under permuted labels neurons prefer no class, so two classes with
unrelated preferences exceed this distribution more often than a test may where neurons differ in strength, and few shared
neurons leave little power. The number of shared neurons says how much the index rests on.

Do classes that are alike (of the same name, an octave apart) share more than classes that are not? The matching of the
classes is permuted: quadratic assignment (Hubert and Schultz 1976; Krackhardt 1988, doi 10.1016/0378-8733(88)90004-4),
on the double-centred index minus what permuted labels give for the pair, so that classes with many neurons, or many
clips, do not decide it. This test holds its level.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from aape.neurons.chance import Calibrated
from aape.neurons.null import PermutedSelections
from aape.neurons.pvalues import one_sided_p
from aape.neurons.selection import jaccard_index

SAME_CLIPS = 0.1  # share of the smaller task's clips from which on two tasks are taken to be of the same ones


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jaccard index of every pair of classes: shared neurons / neurons of either.

    Args:
        a: bool [layers, neurons, classes_a], as `Selection.members`.
        b: bool [layers, neurons, classes_b], of the same encoder.

    Returns:
        float64 [classes_a, classes_b]; 0 where both sets are empty.

    Raises:
        ValueError: the layers or neurons differ, or members are not bool.
    """
    return jaccard_index(*_overlap(a, b))


def shared_neurons(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 [classes_a, classes_b]: the number of neurons in both sets. Raises as `jaccard`."""
    return _overlap(a, b)[0].astype(np.int64)


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neurons in both sets and in either, of every pair of classes."""
    if (
        a.ndim != 3
        or b.ndim != 3
        or a.shape[:2] != b.shape[:2]
        or a.dtype != bool
        or b.dtype != bool
    ):
        raise ValueError(
            "expected the members of two selections of one encoder, bool [layers, neurons, classes]; found "
            f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    members_a = a.reshape(-1, a.shape[2]).astype(np.float64)
    members_b = b.reshape(-1, b.shape[2]).astype(np.float64)
    shared = members_a.T @ members_b
    return shared, members_a.sum(axis=0)[:, None] + members_b.sum(axis=0) - shared


@dataclass(frozen=True)
class Sharing:
    """Jaccard index of every pair of classes and what permuted labels give; all [classes_a, classes_b].

    Attributes:
        observed: the index.
        shared: int64, number of neurons in both sets.
        mean, low, high: of the index under permuted labels, and its 2.5 % and 97.5 % points; NaN where not known.
        null: float32 [permutations, classes_a, classes_b].
        within: whether the two are the same task, so that the matrix is symmetric.
    """

    observed: np.ndarray
    shared: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null: np.ndarray
    within: bool


def sharing_against_chance(a: Calibrated, b: Calibrated | None = None) -> Sharing:
    """Jaccard index of every pair of classes, compared with permuted labels and neurons selected again.

    Args:
        a: a task's selection and its permutations, from `calibrate`.
        b: the same of another task on the same encoder; both tasks' labels are permuted. Without it the classes of one
            task are compared among themselves.

    Raises:
        ValueError: as `jaccard`.
    """
    if b is None:
        return against_permuted(a.selection.members, a.null.drawn)
    return against_permuted(a.selection.members, a.null.drawn, b.selection.members, b.null.drawn)


def against_permuted(
    a: np.ndarray,
    permuted_a: PermutedSelections | None,
    b: np.ndarray | None = None,
    permuted_b: PermutedSelections | None = None,
) -> Sharing:
    """As `sharing_against_chance`, from members [layers, neurons, classes] and what their permutations selected.

    Where a task's permutations are not known (None), only `observed` and `shared` are known and the rest is NaN. The same
    holds where two tasks have the same clips but other groups exchange labels in them: their labels cannot be permuted
    together.

    Warns:
        UserWarning: two such tasks.
    """
    within = b is None
    if b is None:
        b, permuted_b = a, permuted_a
    both, either = _overlap(a, b)
    observed = jaccard_index(both, either)
    shared = both.astype(np.int64)
    if permuted_a is None or permuted_b is None or not _independent_or_same(permuted_a, permuted_b):
        unknown = np.full(observed.shape, np.nan)
        return Sharing(observed, shared, unknown, unknown, unknown, unknown[None], within)
    null = _permuted_jaccard(permuted_a, permuted_b)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    return Sharing(observed, shared, null.mean(axis=0, dtype=np.float64), low, high, null, within)


def _independent_or_same(a: PermutedSelections, b: PermutedSelections) -> bool:
    """Whether permutations of two tasks are independent (other clips) or the same; warns if they are neither."""
    if a.moved == b.moved:
        return True
    fewer = min(len(a.clips), len(b.clips))
    both = len(np.intersect1d(a.clips, b.clips))
    if both <= SAME_CLIPS * fewer:
        return True
    warnings.warn(
        f"sharing of two tasks with {both} clips in common has no null: expected the same clips, in the same order, "
        "with the same groups exchanging labels in both; found other ones.\nThe classes of one task are nested in the "
        "other's clips, so that noise of a clip would be found as sharing. Take tasks of different clips.",
        stacklevel=4,
    )
    return False


def _permuted_jaccard(a: PermutedSelections, b: PermutedSelections) -> np.ndarray:
    """Jaccard index under each permutation that both have, float32 [permutations, classes_a, classes_b]."""
    draws = []
    for (kept_a, members_a), (kept_b, members_b) in zip(a, b, strict=False):
        _, place_a, place_b = np.intersect1d(
            kept_a, kept_b, assume_unique=True, return_indices=True
        )
        shared = members_a[:, place_a].astype(np.float32) @ members_b[:, place_b].T.astype(
            np.float32
        )
        either = members_a.sum(axis=1)[:, None] + members_b.sum(axis=1) - shared
        draws.append(jaccard_index(shared, either))
    return np.array(draws, dtype=np.float32)


def centred(matrix: np.ndarray, within: bool) -> np.ndarray:
    """Row and column means subtracted, the grand mean added, [classes_a, classes_b]; NaN on a task's own diagonal."""
    known = (
        np.where(np.eye(len(matrix), matrix.shape[1], dtype=bool), np.nan, matrix)
        if within
        else matrix
    )
    rows = np.nanmean(known, axis=1, keepdims=True)
    columns = np.nanmean(known, axis=0, keepdims=True)
    return known - rows - columns + np.nanmean(known)


def pairs_of(matrix: np.ndarray, within: bool) -> np.ndarray:
    """bool, shaped as the matrix: every pair of different classes once, or all pairs of two tasks."""
    every = np.ones(matrix.shape, dtype=bool)
    return np.triu(every, k=1) if within else every


@dataclass(frozen=True)
class Matched:
    """Whether classes that are alike share more.

    Attributes:
        alike, other: mean Jaccard index of the pairs that are alike, and of the pairs they are compared with.
        p: one-sided, by permuted matchings of the classes.
        least_p: the smallest p that is possible.
    """

    alike: float
    other: float
    p: float
    least_p: float


def matched(
    observed: np.ndarray,
    alike: np.ndarray,
    other: np.ndarray | None = None,
    *,
    chance: np.ndarray | None = None,
    within: bool = False,
    permutations: int = 10_000,
    seed: int = 0,
) -> Matched:
    """Test whether pairs of classes that are alike share more than others, by quadratic assignment.

    The statistic is the mean over the alike pairs minus the mean over the others, of the double-centred index (row and
    column means subtracted, the grand mean added) minus what chance gives. Between two tasks the columns are permuted;
    within one, rows and columns together. Few classes have few matchings: all of them are then taken, and with two
    classes p cannot be below 1/2.

    Args:
        observed: Jaccard index [classes_a, classes_b].
        alike: bool, shaped as `observed`.
        other: bool, shaped as `observed`; by default all pairs that are not alike.
        chance: what permuted labels give for each pair (`Sharing.mean`), which is subtracted: two large classes share
            more by chance, by more than their two means say. None: no correction, which is only fair when the classes
            have similar sizes.
        within: whether the two are the same task; a class with itself is no pair.
        permutations: how many matchings are drawn where there are more than this.
        seed: of the draws.

    Raises:
        ValueError: no pair on one of the sides.
    """
    counted = np.ones(observed.shape, dtype=bool)
    if within:
        np.fill_diagonal(counted, False)
    first = np.nonzero(alike & counted)
    second = np.nonzero((~alike if other is None else other) & counted)
    if not len(first[0]) or not len(second[0]):
        raise ValueError("expected a pair that is alike and one that is not, found none")
    gain = centred(observed if chance is None else observed - chance, within)
    orders = _matchings(observed.shape[1], permutations, seed)

    def mean(pairs: tuple[np.ndarray, ...]) -> np.ndarray:
        """Mean over the pairs under every matching, [orders]."""
        rows, columns = pairs
        return gain[orders[:, rows] if within else rows, orders[:, columns]].mean(axis=1)

    difference = mean(first) - mean(second)
    return Matched(
        alike=float(observed[first].mean()),
        other=float(observed[second].mean()),
        p=one_sided_p(-difference[0], -difference[1:]),
        least_p=1 / len(orders),
    )


def _matchings(size: int, permutations: int, seed: int) -> np.ndarray:
    """int64 [orders, size], the first one the identity: every order where there are few enough, else random ones."""
    if math.factorial(size) <= permutations:
        return np.array(list(itertools.permutations(range(size))))
    orders = np.tile(np.arange(size), (permutations + 1, 1))
    orders[1:] = np.random.default_rng(seed).permuted(orders[1:], axis=1)
    return orders


def by_distance(
    observed: np.ndarray,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    within: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean sharing of pairs of pitches that are 0, 1, 2, ... semitones apart, and of permuted pitches (`matched`).

    Args:
        observed: Jaccard index [classes_a, classes_b], of two pitch tasks or of one.
        rows, columns: pitch of the classes of a and of b, in semitones (MIDI).
        within: whether the two are the same task: a class is not paired with itself, so distance 0 has no pairs.
        seed: of the matching.

    Returns:
        A row per distance: semitones; pairs; mean_jaccard, NaN without pairs; chance, chance_low, chance_high, the mean
        and the ends of the 95 % band of permuted pitches; above_neighbours, mean_jaccard minus the mean of the distances
        one semitone off.
    """
    apart = np.abs(np.subtract.outer(rows, columns))
    first, second = np.nonzero(pairs_of(observed, within))
    distance = np.arange(apart.max() + 1)
    pairs = np.bincount(apart[first, second], minlength=len(distance))
    membership = np.ones(len(first)), (np.arange(len(first)), apart[first, second])
    at_distance = csr_array(membership, (len(first), len(distance)))
    orders = _matchings(len(columns), 1000, seed)
    means = (
        observed[orders[:, first] if within else first, orders[:, second]] @ at_distance
    )  # [orders, distances]
    means = np.divide(means, pairs, out=np.full(means.shape, np.nan), where=pairs > 0)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    table = pd.DataFrame(
        {
            "semitones": distance,
            "pairs": pairs,
            "mean_jaccard": means[0],
            "chance": means.mean(axis=0),
            "chance_low": low,
            "chance_high": high,
        }
    )
    neighbours = pd.concat([table.mean_jaccard.shift(1), table.mean_jaccard.shift(-1)], axis=1)
    return table.assign(above_neighbours=table.mean_jaccard - neighbours.mean(axis=1))
