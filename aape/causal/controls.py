"""Random sets of neurons that a target's neurons are compared with.

An activity-matched set is drawn by a rule that uses only how many neurons the target has in each layer and stratum of
like activity; it may overlap with the target. A target that was itself drawn by this rule is then one draw among its
controls, and its p is uniform, however large it is. The price is that controls contain many of the target's neurons
where the target fills its strata, so that the two must be alike; `overlap` says how many.

A disjoint set contains none of them. It is therefore less active than a target that holds the most active neurons of a
layer, the more so the larger the target is, and its p is too small then. The two comparisons bracket the answer.
"""

from __future__ import annotations

import numpy as np

STRATUM = 20  # neurons of like rate in a layer among which a control draws
NEAREST = 10  # free neurons nearest in rate among which a disjoint control draws


def activity_matched(
    neurons: np.ndarray, rates: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Random neurons [k, 2], as many in each layer and stratum of activity as `neurons` [k, 2] has.

    Args:
        neurons: [k, 2] of (layer, neuron).
        rates: activation rates [layers, neurons]; a stratum is STRATUM neurons of a layer that follow each other in rate.
        rng: of the draw.
    """
    drawn: list[tuple[int, int]] = []
    for layer in np.unique(neurons[:, 0]):
        stratum = np.empty(rates.shape[1], dtype=np.int64)  # of each neuron
        stratum[np.argsort(rates[layer], kind="stable")] = np.arange(rates.shape[1]) // STRATUM
        in_layer = neurons[neurons[:, 0] == layer, 1]
        for s, needed in zip(*np.unique(stratum[in_layer], return_counts=True), strict=True):
            candidates = np.flatnonzero(stratum == s)
            drawn += [(layer, neuron) for neuron in rng.choice(candidates, needed, replace=False)]
    return np.array(sorted(drawn), dtype=np.int64).reshape(-1, 2)


def disjoint_matched(
    neurons: np.ndarray, rates: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Random neurons [k, 2] that are none of `neurons` [k, 2], one for each, of the same layer and near in activity.

    Arguments as in `activity_matched`. In random order, each neuron gets one of the NEAREST neurons in rate that are
    free.

    Raises:
        ValueError: the neurons fill more than half of a layer (see `can_be_disjoint`).
    """
    if not can_be_disjoint(neurons, rates.shape[1]):
        raise ValueError(
            "the neurons fill more than half of a layer, so as many others do not exist there"
        )
    drawn: list[tuple[int, int]] = []
    for layer in np.unique(neurons[:, 0]):
        in_layer = neurons[neurons[:, 0] == layer, 1]
        free = np.setdiff1d(np.arange(rates.shape[1]), in_layer)
        for neuron in rng.permutation(in_layer):
            distance = np.abs(rates[layer, free] - rates[layer, neuron])
            nearest = np.argsort(distance, kind="stable")[:NEAREST]
            chosen = rng.choice(nearest)
            drawn.append((layer, free[chosen]))
            free = np.delete(free, chosen)
    return np.array(sorted(drawn), dtype=np.int64).reshape(-1, 2)


def can_be_disjoint(neurons: np.ndarray, width: int) -> bool:
    """Whether every layer of this width has at least as many other neurons as `neurons` [k, 2] has there."""
    _, in_layer = np.unique(neurons[:, 0], return_counts=True)
    return bool((2 * in_layer <= width).all())


def overlap(neurons: np.ndarray, control: np.ndarray) -> float:
    """Share of `neurons` [k, 2] that are also in `control` [k, 2]."""
    numbers = neurons @ [1 << 32, 1]  # one number per neuron
    return float(np.isin(numbers, control @ [1 << 32, 1]).mean())
