"""Figure of one model on one task: neurons of each class against permuted labels."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from aape.figures.style import legend_below, panels, styled
from aape.neurons.chance import Calibrated

SHOWN = 40  # classes at most


@styled
def class_figure(calibrated: Calibrated, title: str = "") -> Figure:
    """Class-specific neurons of each class, those that survive the calibration, and what permuted labels give.

    Of more than 40 classes those with the most; the title says so.
    """
    chosen, survive = calibrated.selection.per_class, calibrated.per_class
    order = np.lexsort((chosen.to_numpy(), survive.to_numpy()))[-SHOWN:]  # the strongest on top
    if len(chosen) > SHOWN:
        title = f"{title}\n{SHOWN} of {len(chosen)} classes, those with the most neurons".strip()
    rows, null = np.arange(len(order)), calibrated.null.per_class[:, order]
    figure, ((axes,),) = panels(1, 1, (6.4, 0.24 * len(order) + 1.5), title)
    axes.barh(rows, chosen.iloc[order], color="#B8D4E8", label="class-specific")
    axes.barh(rows, survive.iloc[order], height=0.5, color="#0072B2", label="of these, survive chance")
    axes.hlines(rows, *np.quantile(null, [0.025, 0.975], axis=0), color="#D55E00", lw=1.5)
    axes.plot(null.mean(axis=0), rows, "|", color="#D55E00", ms=9, mew=1.5, label="permuted labels, mean and 95 %")
    axes.set_yticks(rows, chosen.index[order])
    axes.set(xlabel="neurons", xlim=(0, None), ylim=(-0.7, len(order) - 0.3))
    legend_below(figure, axes)
    return figure
