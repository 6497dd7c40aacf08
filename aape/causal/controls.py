"""Random sets of neurons that a set of neurons is compared with.

A control is drawn by a rule that uses only how many neurons the target has in each layer and stratum of like activity;
it may overlap with the target. A target that was itself drawn by this rule is then one draw among its controls, and its
p is uniform, however large it is. (If the target's neurons were left out, controls would resemble the target the less,
the more of a layer it fills.)
"""

from __future__ import annotations

import numpy as np

STRATUM = 20  # neurons of like rate in a layer among which a control draws


def activity_matched(neurons: np.ndarray, rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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
