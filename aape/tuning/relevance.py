"""Does tuning matter? Whether chosen neurons, such as class-specific ones, are tuned more or less often than others."""

from __future__ import annotations

import numpy as np
import pandas as pd

from aape.neurons.pvalues import benjamini_hochberg

DRAWS = 9999


def tuned_among(
    neurons: pd.DataFrame, members: np.ndarray, column: str, *, seed: int = 0
) -> dict[str, float]:
    """The share of tuned neurons among chosen ones, relative to other neurons of their layers.

    Chance is the same number of random neurons of every layer; p is two-sided.

    Args:
        neurons: `Tuning.table()`.
        members: bool [layers, neurons], the chosen neurons.
        column: of the table, bool.
        seed: of the random neurons.

    Returns:
        neurons, share, expected (share among random neurons of the same layers), low and high (95 % of them), p.
    """
    chosen = members[neurons.layer.to_numpy(), neurons.neuron.to_numpy()]
    tuned = neurons[column].to_numpy()
    rng = np.random.default_rng(seed)
    draws = np.zeros(DRAWS)
    expected = 0.0
    for layer in neurons.layer.unique():
        inside = (neurons.layer == layer).to_numpy()
        size, good = int(chosen[inside].sum()), int(tuned[inside].sum())
        draws += rng.hypergeometric(good, int(inside.sum()) - good, size, DRAWS)
        expected += size * good / inside.sum()
    total = max(int(chosen.sum()), 1)
    distance = np.abs(draws - expected)
    extreme = (distance >= abs(tuned[chosen].sum() - expected) - 1e-9).sum()
    low, high = np.quantile(draws / total, [0.025, 0.975])
    return {
        "neurons": int(chosen.sum()),
        "share": float(tuned[chosen].sum() / total),
        "expected": expected / total,
        "low": float(low),
        "high": float(high),
        "p": float((1 + extreme) / (1 + DRAWS)),
    }


def relevance(
    neurons: pd.DataFrame, chosen: dict[str, np.ndarray], *, seed: int = 0
) -> pd.DataFrame:
    """`tuned_among` for several choices of neurons and every property.

    Args:
        neurons: `Tuning.table()`.
        chosen: name of a choice -> bool [layers, neurons].
        seed: of the random neurons.

    Returns:
        One row per choice and property, as `tuned_among`, with q over all rows (Benjamini and Hochberg).
    """
    rows = []
    for name, members in chosen.items():
        for column in neurons.filter(like="_tuned"):
            result = tuned_among(neurons, members, column, seed=seed)
            rows.append({"chosen": name, "property": column.removesuffix("_tuned"), **result})
    table = pd.DataFrame(rows)
    return table.assign(q=benjamini_hochberg(table.p.to_numpy()))
