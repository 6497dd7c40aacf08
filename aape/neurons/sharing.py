"""Which classes share neurons, and how much of it chance would give.

    jaccard(a.members, b.members)                        # [classes of a, classes of b]
    sharing_against_chance(calibrated_a, calibrated_b).q # the same shape: survives chance where q < 0.05
    matched(observed, alike).p                           # do classes that are alike share more than others?

Sharing between two classes, of one task or of two, is the Jaccard index of their neuron sets (Kawamura et al. 2026).
Two questions are asked of it:

Do these two classes share more than classes without meaning would? Labels are permuted by group, neurons are selected
again, and the index is taken again (`aape.neurons.chance`). Neurons that are active everywhere are selected whatever the labels
say and are shared by all classes; re-dealing the memberships of one selection among its neurons does not know that.

Do classes that are alike (of the same name, an octave apart) share more than classes that are not? The matching of the
classes is permuted: quadratic assignment (Hubert and Schultz 1976; Krackhardt 1988, doi 10.1016/0378-8733(88)90004-4),
on the double-centred index less what permuted labels give for the pair, so that classes with many neurons, or many
clips, do not decide it.
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

from aape.neurons.chance import Calibrated, Drawn
from aape.neurons.pvalues import benjamini_hochberg, one_sided_p, pooled_p
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
    if a.ndim != 3 or b.ndim != 3 or a.shape[:2] != b.shape[:2] or a.dtype != bool or b.dtype != bool:
        raise ValueError(
            "expected the members of two selections of one encoder, bool [layers, neurons, classes]; found "
            f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    one, two = (members.reshape(-1, members.shape[2]).astype(np.float64) for members in (a, b))
    shared = one.T @ two
    return shared, one.sum(axis=0)[:, None] + two.sum(axis=0) - shared


@dataclass(frozen=True)
class Sharing:
    """Jaccard of every pair of classes and what permuted labels give; all [classes_a, classes_b].

    Attributes:
        mean, low, high: of the null, and its 2.5 % and 97.5 % points.
        p, q: one-sided, more shared than with permuted labels, and Benjamini-Hochberg over all pairs, those that share
            nothing too; NaN for a class with itself and for a class whose labels cannot move.
        p_centred, q_centred: the same of the double-centred index: more shared than the two classes share with others.
        null: float32 [permutations, classes_a, classes_b].
        within: the two are the same task, the matrix is symmetric.
    """

    observed: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    q: np.ndarray
    p_centred: np.ndarray
    q_centred: np.ndarray
    null: np.ndarray
    within: bool


def sharing_against_chance(a: Calibrated, b: Calibrated | None = None) -> Sharing:
    """Jaccard of every pair of classes against permuted labels and neurons selected again.

    Args:
        a: a task's selection and its permutations, from `calibrate`.
        b: of another task on the same encoder; both tasks' labels are permuted. Without it the classes of one task
            among themselves.

    Raises:
        ValueError: as `jaccard`.
    """
    other = () if b is None else (b.selection.members, b.null.drawn)
    return against_drawn(a.selection.members, a.null.drawn, *other)


def against_drawn(
    a: np.ndarray, drawn_a: Drawn | None, b: np.ndarray | None = None, drawn_b: Drawn | None = None
) -> Sharing:
    """As `sharing_against_chance`, from members [layers, neurons, classes] and what their permutations selected.

    p-values pool the standardised draws over pairs of like expected overlap, so that they can be smaller than
    1 / permutations. Where a task's permutations are not known (None), nothing but `observed` is: NaN. So it is where
    two tasks are of the same clips but other groups swap labels in them: their labels cannot be permuted as one.

    Warns:
        UserWarning: two such tasks.
    """
    within = b is None
    observed, drawn_b = jaccard(a, a if b is None else b), drawn_a if within else drawn_b
    if drawn_a is not None and drawn_b is not None and drawn_a.moved != drawn_b.moved:
        fewer, both = min(len(drawn_a.clips), len(drawn_b.clips)), len(np.intersect1d(drawn_a.clips, drawn_b.clips))
        if both > SAME_CLIPS * fewer:
            warnings.warn(
                f"sharing of two tasks with {both} clips in common has no p: expected the same clips, in the same order, "
                "with the same groups swapping labels in both; found other ones.\nThe classes of one task are nested in the "
                "other's clips, so that noise of a clip would be found as sharing. Take tasks of different clips.",
                stacklevel=2,
            )
            drawn_a = None
    if drawn_a is None or drawn_b is None:
        no = np.full(observed.shape, np.nan)
        return Sharing(observed, no, no, no, no, no, no, no, no[None], within)
    draws = []
    for (kept_a, one), (kept_b, two) in zip(drawn_a, drawn_b, strict=False):  # as many as both have
        _, here, there = np.intersect1d(kept_a, kept_b, assume_unique=True, return_indices=True)
        shared = one[:, here].astype(np.float32) @ two[:, there].T.astype(np.float32)
        draws.append(jaccard_index(shared, one.sum(axis=1)[:, None] + two.sum(axis=1) - shared))
    null = np.array(draws, dtype=np.float32)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    tested = pairs_of(observed, within) & np.logical_and.outer(drawn_a.tested, drawn_b.tested)
    p_and_q = _pair_p(observed, null, tested, within)
    of_centred = _pair_p(centred(observed, within), centred(null, within), tested, within)
    return Sharing(observed, null.mean(axis=0, dtype=np.float64), low, high, *p_and_q, *of_centred, null, within)


def _pair_p(observed: np.ndarray, null: np.ndarray, tested: np.ndarray, within: bool) -> tuple[np.ndarray, np.ndarray]:
    """p and q of every tested pair, [classes_a, classes_b]; pooled over pairs of like expectation."""
    p, q = np.full((2, *observed.shape), np.nan)
    if tested.any():
        expected = null.mean(axis=0)[tested]
        bins = max(1, min(10, expected.size // 20))  # of at least 20 pairs; equal values share a bin
        edges = np.unique(np.quantile(expected, np.linspace(0, 1, bins + 1)[1:-1]))
        p[tested] = pooled_p(observed[tested], null[:, tested], np.searchsorted(edges, expected, side="right"))
        q[tested] = benjamini_hochberg(p[tested])
    return (np.fmax(p, p.T), np.fmax(q, q.T)) if within else (p, q)


def centred(matrix: np.ndarray, within: bool) -> np.ndarray:
    """Row and column means taken off, the grand mean added; [..., classes_a, classes_b], a task's diagonal left out."""
    known = np.where(np.eye(matrix.shape[-1], dtype=bool), np.nan, matrix) if within else matrix
    if within and matrix.shape[-1] < 2:
        return known
    rows, columns = (np.nanmean(known, axis=axis, keepdims=True) for axis in (-1, -2))
    return known - rows - columns + np.nanmean(known, axis=(-1, -2), keepdims=True)


def pairs_of(matrix: np.ndarray, within: bool) -> np.ndarray:
    """bool, shaped as the matrix: every pair of different classes once; of two tasks all pairs."""
    every = np.ones(matrix.shape, dtype=bool)
    return np.triu(every, k=1) if within else every


@dataclass(frozen=True)
class Matched:
    """Do classes that are alike share more?

    Attributes:
        alike, other: mean Jaccard of the pairs that are alike, and of those they are compared with.
        p: one-sided, by permuted matchings of the classes; least_p: the smallest that there can be.
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
    """Whether pairs of classes that are alike share more than others, by quadratic assignment.

    The statistic is the mean over the alike pairs minus the mean over the others, of the double-centred index (row and
    column means taken off, the grand mean added) less what chance gives. Between two tasks the columns are permuted; within one, rows and
    columns together. Few classes have few matchings: then all of them are taken, and two classes cannot give p below
    1/2.

    Args:
        observed: Jaccard [classes_a, classes_b].
        alike, other: bool, shaped as `observed`; other: by default all pairs that are not alike.
        chance: what permuted labels give for each pair (`Sharing.mean`), taken off: two large classes share more by it,
            by more than their two means. None: nothing is taken off, which is honest for classes of like size alone.
        within: the two are the same task; a class with itself is no pair.
        permutations: how many are drawn where there are more matchings than this.
        seed: of the draws.

    Raises:
        ValueError: no pair on one of the sides.
    """
    counted = ~np.eye(len(observed), dtype=bool) if within else np.ones(observed.shape, dtype=bool)
    sides = [np.nonzero(side & counted) for side in (alike, ~alike if other is None else other)]
    if not all(len(rows) for rows, _ in sides):
        raise ValueError("expected a pair that is alike and one that is not, found none")
    gain = centred(observed if chance is None else observed - chance, within)
    orders = _matchings(observed.shape[1], permutations, seed)
    means = [gain[orders[:, r] if within else r, orders[:, c]].mean(axis=1) for r, c in sides]
    found = means[0] - means[1]  # [orders]
    alike_mean, other_mean = (float(observed[side].mean()) for side in sides)
    return Matched(alike_mean, other_mean, one_sided_p(-found[0], -found[1:]), 1 / len(orders))


def _matchings(size: int, permutations: int, seed: int) -> np.ndarray:
    """int64 [orders, size], the first leaves all in place: every order where there are at most so many, else drawn."""
    if math.factorial(size) <= permutations:
        return np.array(list(itertools.permutations(range(size))))
    orders = np.tile(np.arange(size), (permutations + 1, 1))
    orders[1:] = np.random.default_rng(seed).permuted(orders[1:], axis=1)
    return orders


def by_distance(
    observed: np.ndarray, rows: Sequence[int], columns: Sequence[int], *, within: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Mean sharing of pairs of pitches that are 0, 1, 2, ... semitones apart, beside pitches dealt anew (`matched`).

    Args:
        observed: Jaccard [classes_a, classes_b], of two pitch tasks, or of one.
        rows, columns: pitch of the classes of a and of b, in semitones (MIDI).
        within: the two are the same task: a class is not paired with itself, so distance 0 has no pairs.
        seed: of the matching.

    Returns:
        A row for each distance: semitones; pairs; mean_jaccard, NaN without pairs; chance, chance_low, chance_high: of the
        pitches dealt anew, and the ends of its 95 % band; above_neighbours: mean_jaccard minus the mean of the distances
        one semitone off.
    """
    apart = np.abs(np.subtract.outer(rows, columns))
    r, c = np.nonzero(pairs_of(observed, within))
    distance = np.arange(apart.max() + 1)
    pairs = np.bincount(apart[r, c], minlength=len(distance))
    at = csr_array((np.ones(len(r)), (np.arange(len(r)), apart[r, c])), (len(r), len(distance)))
    orders = _matchings(len(columns), 1000, seed)
    means = observed[orders[:, r] if within else r, orders[:, c]] @ at  # [orders, distances]
    means = np.divide(means, pairs, out=np.full(means.shape, np.nan), where=pairs > 0)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    chance = {"chance": means.mean(axis=0), "chance_low": low, "chance_high": high}
    table = pd.DataFrame({"semitones": distance, "pairs": pairs, "mean_jaccard": means[0]} | chance)
    beside = pd.concat([table.mean_jaccard.shift(1), table.mean_jaccard.shift(-1)], axis=1).mean(axis=1)
    return table.assign(above_neighbours=table.mean_jaccard - beside)
