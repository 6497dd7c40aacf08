"""Tuning curves and contrasts of every neuron, with their reliability and their significance.

A *curve* is the response as a function of one property of the sound, averaged over independent realisations. A *contrast* is
the mean difference between two kinds of sounds. Both come with

    size          maximum minus minimum of the curve; absolute value of the contrast
    reliability   agreement of two halves of the realisations, averaged over all ways to halve them: the correlation of the
                  two curves, or the cosine between the two vectors of differences
    p             from permuted stimuli: conditions are permuted within each realisation, or the two kinds are exchanged
                  within pairs. Statistics are pooled over neurons that are about as variable, see `pooled_p`.

A neuron is *tuned* if it is reliable, significant at a false-discovery rate of 5 % over all neurons, and has at least a
stated size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from aape.neurons.chance import benjamini_hochberg, pooled_p

PERMUTATIONS = 199
BINS = 10  # of variability, for the pooled null
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

    Args:
        responses: [realisations, conditions, neurons].
        least_size: of a tuned neuron.
        seed: of the permutations.
    """
    values = responses.mean(axis=0)

    def permuted(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        orders = [rng.permutation(responses.shape[1]) for _ in responses]
        return lambda block: _variance(np.stack([x[order] for x, order in zip(block, orders, strict=True)]))

    return _effect(responses, values, np.ptp(values, axis=0), correlation, _variance, permuted, least_size, seed)


def contrast(differences: np.ndarray, least_size: float, *, seed: int = 0) -> Effect:
    """The contrast of every neuron.

    Args:
        differences: first kind minus second kind of sound, [realisations, pairs, neurons].
        least_size: of a tuned neuron.
        seed: of the permutations.
    """
    values = differences.mean(axis=(0, 1))[None]

    def exchanged(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        signs = rng.choice([-1.0, 1.0], (*differences.shape[:2], 1)).astype(np.float32)
        return lambda block: _mean_difference(block * signs)

    size = np.abs(values[0])
    return _effect(differences, values, size, cosine, _mean_difference, exchanged, least_size, seed)


def _variance(responses: np.ndarray) -> np.ndarray:
    """Variance over conditions of the mean over realisations [neurons]."""
    return responses.mean(axis=0).var(axis=0)


def _mean_difference(differences: np.ndarray) -> np.ndarray:
    """Absolute mean difference [neurons]."""
    return np.abs(differences.mean(axis=(0, 1)))


def _effect(
    responses: np.ndarray,
    values: np.ndarray,
    size: np.ndarray,
    agreement: Callable[[np.ndarray, np.ndarray], np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    draw: Callable[[np.random.Generator], Callable[[np.ndarray], np.ndarray]],
    least_size: float,
    seed: int,
) -> Effect:
    """Reliability, significance and the verdict for curves and contrasts."""
    splits = halves(len(responses))
    agreements = [agreement(responses[a].mean(axis=0), responses[b].mean(axis=0)) for a, b in splits]
    reliability = np.mean(agreements, axis=0)
    rng = np.random.default_rng(seed)
    permuted_statistics = [draw(rng) for _ in range(PERMUTATIONS)]
    observed, null = [], []
    for first in range(0, responses.shape[2], BLOCK):
        block = np.ascontiguousarray(responses[:, :, first : first + BLOCK])
        observed.append(statistic(block))
        null.append(np.stack([permuted(block) for permuted in permuted_statistics]))
    p = pooled_p(np.concatenate(observed), np.concatenate(null, axis=1), _variability(responses))
    q = benjamini_hochberg(p)
    tuned = (reliability >= RELIABLE) & (q <= FALSE_DISCOVERIES) & (size >= least_size)
    return Effect(values, size, reliability, p, q, tuned)


def _variability(responses: np.ndarray) -> np.ndarray:
    """A bin for each neuron, by the share of its variance that its largest response has: sparse neurons apart [neurons]."""
    flat = responses.reshape(-1, responses.shape[2])
    deviations = (flat - flat.mean(axis=0)) ** 2
    peak = deviations.max(axis=0) / np.maximum(deviations.sum(axis=0), 1e-12)
    ranks = pd.Series(peak).rank(method="first", pct=True)
    return np.minimum(ranks * BINS, BINS - 1).astype(int).to_numpy()
