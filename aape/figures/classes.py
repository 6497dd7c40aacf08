"""Figure of one model on one task: neurons of each class against permuted labels."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from aape.chance import Calibrated


def class_figure(calibrated: Calibrated, title: str = "") -> Figure:
    """Class-specific neurons of each class, those that survive the calibration, and what permuted labels give."""
    chosen, survive = calibrated.selection.per_class, calibrated.per_class
    order = np.lexsort((chosen.to_numpy(), survive.to_numpy()))[-40:]  # the strongest on top
    rows, null = np.arange(len(order)), calibrated.null.per_class[:, order]
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    figure = Figure(figsize=(6.4, 0.24 * len(order) + 1.5), layout="constrained")
    axes = figure.subplots()
    axes.barh(rows, chosen.iloc[order], color="#B8D4E8", label="class-specific")
    axes.barh(rows, survive.iloc[order], height=0.5, color="#0072B2", label="of these, survive chance")
    axes.hlines(rows, low, high, color="#D55E00", lw=1.5)
    axes.plot(null.mean(axis=0), rows, "|", color="#D55E00", ms=9, mew=1.5, label="permuted labels, mean and 95 %")
    axes.set_yticks(rows, chosen.index[order])
    axes.set(xlabel="neurons", title=title, xlim=(0, None), ylim=(-0.7, len(order) - 0.3))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
