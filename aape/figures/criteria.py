"""The figure of the comparison of criteria."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from aape.figures.ablation import KINDS
from aape.figures.style import legend_below, panels, styled

NAMES = {
    "aape": "AAPE",
    "p": "activation probability",
    "p_difference": "difference of probability",
    "mean_difference": "difference of mean activation",
    "d_prime": "d'",
    "auroc": "AUROC",
    "probeless": "probeless",
    "probe_weights": "weights of a linear probe",
    "attribution_zero": "attribution to zero",
    "attribution_mean": "attribution to the mean",
    "random": "random",
}
CONTROLS = {  # column of the difference to them -> colour, label
    "less_active": ("#E69F00", "random, activity-matched"),
    "less_strong": ("#7F7F7F", "random, strength-matched"),
}


@styled
def criteria(summary: pd.DataFrame, title: str, mode: str = "mean") -> Figure:
    """What each criterion's neurons do to their class, next to random sets: a panel per classifier, deepest fall on top.

    Args:
        summary: `aape.criteria.comparing.Comparison.summary()`.
        title: which model, task and classes.
        mode: how the neurons are changed.
    """
    rows = summary[summary["mode"] == mode]
    linear = rows[rows.classifier == "linear"].sort_values("effect", ascending=False, kind="stable")
    order = linear.criterion.tolist()
    best = NAMES.get(order[-1], order[-1])
    classifiers = rows.classifier.unique()
    heading = f"{title}: neurons {KINDS[mode]}; those by {best} lower their class most"
    figure, grid = panels(
        1, len(classifiers), (8.6, 1.7 + 0.27 * len(order)), heading, sharey=True, sharex=True
    )
    names = [NAMES.get(name, name) for name in order]
    for axis, classifier in zip(grid.flat, classifiers, strict=True):
        found = rows[rows.classifier == classifier].set_index("criterion").loc[order]
        error = [found.effect - found.low, found.high - found.effect]
        axis.errorbar(
            found.effect,
            names,
            xerr=error,
            fmt="D",
            ms=4,
            color="#0072B2",
            label="its neurons, 95 % over classes",
        )
        for column, (colour, label) in CONTROLS.items():
            axis.scatter(
                found.effect - found[column], names, s=14, color=colour, label=label, zorder=3
            )
        axis.axvline(0, color="0.8", lw=1, zorder=0)
        axis.set(
            title=f"{classifier} classifier",
            xlabel="change of its class minus that of others, nats",
        )
    for label in grid[0, 0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == "AAPE" else "normal")
    legend_below(figure, grid[0, 0])
    return figure
