"""Figure of one model on one task: neurons of each class compared with permuted labels."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from aape.figures.style import BLUE, LIGHT_BLUE, ORANGE, legend_below, panels, styled
from aape.neurons.chance import Calibrated

MOST_CLASSES = 40


@styled
def class_figure(calibrated: Calibrated, title: str = "") -> Figure:
    """Class-specific neurons of each class, those that pass the calibration, and what permuted labels give.

    Of more than 40 classes those with the most neurons are shown; the title says so.
    """
    selected = calibrated.selection.per_class
    passed = calibrated.per_class
    order = np.lexsort((selected.to_numpy(), passed.to_numpy()))[
        -MOST_CLASSES:
    ]  # most neurons on top
    title = f"{title}\n{(passed > 0).sum()} of {len(passed)} classes have neurons that pass the calibration".strip()
    if len(selected) > MOST_CLASSES:
        title += f"; {MOST_CLASSES} classes are shown"
    rows = np.arange(len(order))
    null = calibrated.null.per_class[:, order]
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    figure, ((axes,),) = panels(1, 1, (6.4, 0.24 * len(order) + 1.7), title)
    axes.barh(rows, selected.iloc[order], color=LIGHT_BLUE, label="class-specific")
    axes.barh(rows, passed.iloc[order], height=0.5, color=BLUE, label="of these, calibrated")
    axes.hlines(rows, low, high, color=ORANGE, lw=1.5)
    axes.plot(
        null.mean(axis=0),
        rows,
        "|",
        color=ORANGE,
        ms=9,
        mew=1.5,
        label="permuted labels, mean and 95 %",
    )
    axes.set_yticks(rows, selected.index[order])
    axes.set(xlabel="neurons", xlim=(0, None), ylim=(-0.7, len(order) - 0.3))
    legend_below(
        figure, axes, "unselective neurons count for many classes, so permuted labels can give more"
    )
    return figure
