"""Which classes share neurons, and how much of it chance would give.

    jaccard(a.members, b.members)                        # [classes of a, classes of b]
    sharing_against_chance(a.members, b.members).q       # the same shape: survives chance where q < 0.05

Sharing between two classes, of one task or of two, is the Jaccard index of their neuron sets (Kawamura et
al. 2026). Selected neurons are few and sit in few layers, so against *all* neurons everything looks shared.
The null here is drawn from the neurons that were actually selected: in each layer, class memberships are
re-dealt among the selected neurons so that every neuron keeps its number of classes and every class its
number of neurons in that layer (fixed row and column margins, as in the co-occurrence nulls of ecology;
drawn by the curveball trades of Strona et al. 2014, doi 10.1038/ncomms5114, all pairs of a random matching
at once as in Carstens et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aape.chance import benjamini_hochberg, pooled_p
from aape.selection import jaccard_index

ROUNDS = 20  # rounds of trades before a draw is taken; each round trades every neuron once


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
    return jaccard_index(*_overlap(*_checked(a, b)))


def shared_neurons(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 [classes_a, classes_b]: the number of neurons in both sets. Raises as `jaccard`."""
    return _overlap(*_checked(a, b))[0].astype(np.int64)


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, members in (("first", a), ("second", b)):
        if members.ndim != 3:
            raise ValueError(f"{name}: expected members [layers, neurons, classes], found shape {members.shape}")
        if members.dtype != np.bool_:
            raise ValueError(f"{name}: expected members as bool, found {members.dtype}")
    if a.shape[:2] != b.shape[:2]:
        raise ValueError(
            f"the two selections are of encoders of different shape: {a.shape[:2]} and {b.shape[:2]} "
            "(layers, neurons); neurons can be shared only within one encoder"
        )
    return a, b


def _overlap(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a = first.reshape(-1, first.shape[2]).astype(np.float64)
    b = second.reshape(-1, second.shape[2]).astype(np.float64)
    shared = a.T @ b
    return shared, a.sum(axis=0)[:, None] + b.sum(axis=0)[None, :] - shared


@dataclass(frozen=True)
class Sharing:
    """Jaccard of every pair of classes and what re-dealt memberships give; all [classes_a, classes_b].

    mean, low, high: of the null, and its 2.5 % and 97.5 % points.
    p: one-sided, more shared than re-dealt; NaN for a class with itself and for empty sets.
    q: Benjamini-Hochberg over all pairs tested. null: float32 [draws, classes_a, classes_b].
    within: the two are the same task, the matrix is symmetric.
    """

    observed: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    q: np.ndarray
    null: np.ndarray
    within: bool


def sharing_against_chance(a: np.ndarray, b: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0) -> Sharing:
    """Jaccard of every pair of classes against memberships re-dealt among the selected neurons.

    a, b: bool [layers, neurons, classes]; without b (or with b being a) the classes of one task among
    themselves. The draws keep, in each layer, every neuron's number of classes and every class's number of
    neurons; two tasks are re-dealt independently. p-values pool the standardised draws over pairs of like
    expected overlap, so that they can be smaller than 1 / draws.
    Raises ValueError as `jaccard`, and for fewer than 20 draws.
    """
    within = b is None or b is a
    first, second = _checked(a, a if b is None else b)
    if draws < 20:
        raise ValueError(f"draws: expected at least 20, found {draws}")
    rng = np.random.default_rng(seed)
    observed = jaccard(first, second)

    # Only neurons with a class in both can be shared; re-dealing needs all selected neurons of each task.
    where_a = np.flatnonzero(first.any(axis=2))
    where_b = np.flatnonzero(second.any(axis=2))
    dealt_a = redeal(first, draws, rng)  # bool [draws, len(where_a), classes_a]
    dealt_b = dealt_a if within else redeal(second, draws, rng)
    _, common_a, common_b = np.intersect1d(where_a, where_b, assume_unique=True, return_indices=True)
    either = first.sum(axis=(0, 1))[:, None] + second.sum(axis=(0, 1))[None, :]  # sizes never change
    null = np.zeros((draws, *observed.shape), dtype=np.float32)
    for start in range(0, draws, 64):
        block = slice(start, start + 64)
        shared = np.matmul(
            dealt_a[block][:, common_a].astype(np.float32).transpose(0, 2, 1),
            dealt_b[block][:, common_b].astype(np.float32),
        )
        np.divide(shared, either - shared, out=null[block], where=(either - shared) > 0, casting="unsafe")

    tested: np.ndarray = (either > 0) & (np.outer(first.any(axis=(0, 1)), second.any(axis=(0, 1))))
    if within:
        tested = np.triu(tested, k=1)
    p = np.full(observed.shape, np.nan)
    if tested.any():
        expected = null.mean(axis=0)[tested]
        bins = _quantile_bins(expected, max(1, min(10, expected.size // 20)))
        p[tested] = pooled_p(observed[tested], null[:, tested], bins)
    q = np.full(observed.shape, np.nan)
    q[tested] = benjamini_hochberg(p[tested])
    if within:
        p, q = _mirrored(p), _mirrored(q)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    return Sharing(observed, null.mean(axis=0, dtype=np.float64), low, high, p, q, null, within)


def _mirrored(upper: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(upper), upper.T, upper)


def _quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Index of the quantile bin of each value; equal values share a bin."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def redeal(members: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Memberships re-dealt among the selected neurons of each layer, both margins fixed.

    members: bool [layers, neurons, classes]. Returns bool [draws, k, classes] for the k neurons with any
    class, in the order of np.flatnonzero(members.any(2)).
    """
    rows = members.reshape(-1, members.shape[2])
    where = np.flatnonzero(rows.any(axis=1))
    layer = where // members.shape[1]
    by_layer = [np.flatnonzero(layer == index) for index in np.unique(layer)]
    dealt = np.empty((draws, len(where), rows.shape[1]), dtype=bool)
    step = max(1, 2**18 // max(1, len(where)))  # draws at a time: one class of them fits into the cache
    for start in range(0, draws, step):
        block = dealt[start : start + step]
        state = np.repeat(rows[where].T[:, None], len(block), axis=1)  # [classes, draws, k]
        for _ in range(ROUNDS):
            left, right = [where[:0]], [where[:0]]
            for group in by_layer:
                shuffled = rng.permutation(group)
                half = len(shuffled) // 2
                left.append(shuffled[:half])
                right.append(shuffled[half : 2 * half])
            _trade(state, np.concatenate(left), np.concatenate(right), rng)
        block[:] = state.transpose(1, 2, 0)
    return dealt


def _trade(state: np.ndarray, left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> None:
    """One curveball trade for every pair (left[i], right[i]) of neurons, in every draw, in place.

    state: bool [classes, draws, k]. Classes that only one of the two has are pooled and dealt back at
    random, each keeping its number: sampling without replacement, class after class (need / remaining),
    vectorised over draws and pairs.
    """
    if not len(left):
        return
    one, two = state[:, :, left], state[:, :, right]  # [classes, draws, pairs]
    pool = one ^ two
    need = (one & pool).sum(axis=0, dtype=np.float32)
    remaining = pool.sum(axis=0, dtype=np.float32)
    for index in range(len(state)):
        open_ = pool[index]
        if not open_.any():
            continue
        draw = rng.random(need.shape, dtype=np.float32)
        draw *= remaining
        take = draw < need
        take &= open_
        need -= take
        remaining -= open_
        np.copyto(one[index], take, where=open_)
        np.copyto(two[index], ~take, where=open_)
    state[:, :, left] = one
    state[:, :, right] = two


@dataclass(frozen=True)
class DistanceCurve:
    """Mean Jaccard against pitch distance with the null's 95 % band; arrays [distances], NaN without pairs."""

    distance: np.ndarray  # semitones
    observed: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pairs: np.ndarray


def by_distance(sharing: Sharing, rows: Any, columns: Any) -> DistanceCurve:
    """Mean sharing of pairs of pitches that are 0, 1, 2, ... semitones apart.

    rows, columns: pitch of the classes of a and of b, in semitones (MIDI). Within a task a class is not
    paired with itself, so distance 0 has no pairs. Raises ValueError if the pitches do not fit.
    """
    first, second = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
    if (len(first), len(second)) != sharing.observed.shape:
        raise ValueError(f"expected pitches for {sharing.observed.shape} classes, found {len(first)}, {len(second)}")
    apart = np.abs(first[:, None] - second[None, :])
    counted = np.triu(np.ones_like(apart, dtype=bool), k=1) if sharing.within else np.ones_like(apart, dtype=bool)
    distance = np.arange(apart.max() + 1)
    pairs = np.bincount(apart[counted], minlength=len(distance))
    weight = np.zeros((counted.sum(), len(distance)), dtype=np.float32)
    weight[np.arange(counted.sum()), apart[counted]] = 1
    with np.errstate(invalid="ignore"):
        observed = (sharing.observed[counted] @ weight) / pairs
        null = (sharing.null[:, counted] @ weight) / pairs  # [draws, distances]
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    return DistanceCurve(distance, observed, null.mean(axis=0), low, high, pairs)
