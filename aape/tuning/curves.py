"""Tuning curves and contrasts of every neuron, with their reliability and their significance.

A *curve* is the response as a function of one property of the sound, averaged over independent realisations. A *contrast* is
the mean difference between two kinds of sounds. Both come with

    size          maximum minus minimum of the curve; absolute value of the contrast
    reliability   agreement of two halves of the realisations, averaged over all ways to halve them: the correlation of the
                  two curves, or the cosine between the two vectors of differences
    p             from permuted stimuli: conditions are permuted within each realisation, or the two kinds are exchanged
                  within pairs. Statistics are pooled over neurons that are about as sparse, see `pooled_p`.

A neuron is *tuned* if it is reliable, significant at a false-discovery rate of 5 % over all neurons, and has at least a
stated size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from aape.neurons.pvalues import benjamini_hochberg, pooled_p

PERMUTATIONS = 199
BINS = 10  # of sparsity, for the pooled null
BLOCK = 2048  # neurons at a time
RELIABLE = 0.8
FALSE_DISCOVERIES = 0.05
LEAST_SIZE = {  # of a curve and of a contrast
    "share": (0.2, 0.1),  # share of active tokens
    "mean": (0.5, 0.25),  # standard deviations of the neuron's activation over tokens
}


@dataclass(frozen=True)
class Effect:
    """A curve or a contrast of all neurons.

    Attributes:
        values: the curve, float32 [conditions, neurons]; of a contrast [1, neurons].
        size, reliability, p, q: float64 [neurons].
        tuned: bool [neurons].
    """

    values: np.ndarray
    size: np.ndarray
    reliability: np.ndarray
    p: np.ndarray
    q: np.ndarray
    tuned: np.ndarray


def halves(realisations: int) -> list[tuple[list[int], list[int]]]:
    """All ways to halve the realisations, each once."""
    everything = range(realisations)
    chosen = itertools.combinations(everything, realisations // 2)
    pairs = [([*half], [r for r in everything if r not in half]) for half in chosen]
    return [pair for pair in pairs if 0 in pair[0]]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine between vectors [conditions, neurons], per neuron; 0 where one of them is 0."""
    product = (a * b).sum(axis=0, dtype=np.float64)
    norms = np.sqrt((a**2).sum(axis=0, dtype=np.float64) * (b**2).sum(axis=0, dtype=np.float64))
    return np.divide(product, norms, out=np.zeros_like(product), where=norms > 1e-9)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation over conditions of two sets of curves [conditions, neurons], per neuron; 0 for a constant curve."""
    return cosine(a - a.mean(axis=0), b - b.mean(axis=0))


def curve(responses: np.ndarray, least_size: float, *, seed: int = 0) -> Effect:
    """The curve of every neuron.

    Conditions are permuted independently within each realisation and setting. The statistic is the ratio of the variance
    that the curve explains to the variance that it leaves, as in an analysis of variance.

    Args:
        responses: [realisations, settings, conditions, neurons]; the curve is the mean over settings, such as carriers.
        least_size: of a tuned neuron.
        seed: of the permutations.
    """
    halved = responses.mean(axis=1)
    values = halved.mean(axis=0)
    blocks = responses.reshape(-1, *responses.shape[2:])
    blocks = blocks - blocks.mean(axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    orders = [[rng.permutation(blocks.shape[1]) for _ in blocks] for _ in range(PERMUTATIONS)]

    def statistic(block: np.ndarray, order: list[np.ndarray] | None) -> np.ndarray:
        moved = (
            block if order is None else [x[places] for x, places in zip(block, order, strict=True)]
        )
        explained = np.square(np.mean(moved, axis=0)).mean(axis=0)
        return _ratio(explained, np.square(block).mean(axis=(0, 1)))

    p = _permutation_p(blocks, statistic, orders)
    return _verdict(
        values, np.ptp(values, axis=0), _reliability(halved, correlation), p, least_size
    )


def contrast(differences: np.ndarray, least_size: float, *, seed: int = 0) -> Effect:
    """The contrast of every neuron.

    The two kinds of sound are exchanged within pairs at random, which turns the sign of a difference. The statistic is the
    square of the mean difference relative to the variance that it leaves, as in a paired t-test.

    Args:
        differences: first kind minus second kind of sound, [realisations, pairs, neurons].
        least_size: of a tuned neuron.
        seed: of the permutations.
    """
    values = differences.mean(axis=(0, 1))[None]
    pairs = differences.reshape(-1, 1, differences.shape[2])
    rng = np.random.default_rng(seed)
    signs = [
        rng.choice([-1.0, 1.0], (len(pairs), 1, 1)).astype(np.float32) for _ in range(PERMUTATIONS)
    ]

    def statistic(block: np.ndarray, sign: np.ndarray | None) -> np.ndarray:
        moved = block if sign is None else block * sign
        explained = np.square(moved.mean(axis=(0, 1)))
        return _ratio(explained, np.square(block).mean(axis=(0, 1)))

    p = _permutation_p(pairs, statistic, signs)
    return _verdict(values, np.abs(values[0]), _reliability(differences, cosine), p, least_size)


def _ratio(explained: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Explained to unexplained variance [neurons], at most 1,000; 0 for neurons that never vary."""
    share = np.divide(explained, total, out=np.zeros_like(total), where=total > 1e-12)
    return share / (1.001 - share)


def _permutation_p(
    blocks: np.ndarray, statistic: Callable[[np.ndarray, Any], np.ndarray], draws: Sequence[Any]
) -> np.ndarray:
    """p-value of each neuron, from its statistic and the statistics under permutation.

    Args:
        blocks: responses [blocks, conditions, neurons].
        statistic: (responses of some neurons, draw or None for the data as they are) -> [neurons].
        draws: the permutations.
    """
    observed, null = [], []
    for first in range(0, blocks.shape[2], BLOCK):
        some = np.ascontiguousarray(blocks[:, :, first : first + BLOCK])
        observed.append(statistic(some, None))
        null.append(np.stack([statistic(some, draw) for draw in draws]))
    return pooled_p(np.concatenate(observed), np.concatenate(null, axis=1), _sparsity(blocks))


def _reliability(
    responses: np.ndarray, agreement: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Agreement between halves of the realisations, mean over all ways to halve them [neurons]."""
    agreements = []
    for first, second in halves(len(responses)):
        agreements.append(agreement(responses[first].mean(axis=0), responses[second].mean(axis=0)))
    return np.mean(agreements, axis=0)


def _verdict(
    values: np.ndarray, size: np.ndarray, reliability: np.ndarray, p: np.ndarray, least_size: float
) -> Effect:
    """Which neurons are tuned."""
    q = benjamini_hochberg(p)
    tuned = (reliability >= RELIABLE) & (q <= FALSE_DISCOVERIES) & (size >= least_size)
    return Effect(values, size, reliability, p, q, tuned)


def _sparsity(blocks: np.ndarray) -> np.ndarray:
    """A bin for each neuron, by the share of its variance that its most extreme response has [neurons]."""
    responses = blocks.reshape(-1, blocks.shape[2])
    deviations = np.square(responses - responses.mean(axis=0))
    peak = deviations.max(axis=0) / np.maximum(deviations.sum(axis=0), 1e-12)
    ranks = pd.Series(peak).rank(method="first", pct=True)
    return np.minimum(ranks * BINS, BINS - 1).astype(int).to_numpy()
