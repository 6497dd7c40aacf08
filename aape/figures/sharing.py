"""Figures of shared neurons: heatmaps of the Jaccard index, and curves of it by pitch distance, one panel per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from aape.figures.style import BLUE, GREY, ORANGE, nothing, styled
from aape.neurons.sharing import Sharing, pairs_of

FEW_CLASSES = 12  # up to this many, numbers are written in the cells
FEWEST_PAIRS = 5  # the mean of fewer pairs of pitches is too noisy to draw


@styled
def sharing_figure(
    panels: Mapping[str, Sharing | None],
    names: Sequence[Sequence[str]],
    tasks: Sequence[str],
    title: str,
    pitches: Sequence[Sequence[int]] | None = None,
    curves: Mapping[str, pd.DataFrame] | None = None,
) -> Figure:
    """Heatmaps of the Jaccard index, one panel per model, all of one size and one colour scale.

    Single pairs are not tested: benchmarks/calibration.md shows that such a test has little power and a wrong level where
    neurons differ in strength.

    Args:
        panels: label of the model -> its sharing, None where there are no artifacts.
        names: of the classes of rows and columns. Without pitches they are ordered by clustering, the same in all panels.
        tasks: what rows and columns are.
        title: of the whole figure; a sentence with the conclusion is added.
        pitches: MIDI pitch of the classes; then the axes are pitches and `curves` are drawn below.
        curves: label -> the result of `by_distance`.
    """
    known = [sharing for sharing in panels.values() if sharing is not None]
    few = max(map(len, names)) <= FEW_CLASSES and pitches is None
    cell = 0.27 if few else 0.125  # inches
    size = 3.2 if pitches is not None else max(2.6, cell * max(map(len, names)))
    heatmap_height = size + 1.7
    height = heatmap_height + (2.4 if curves else 0)
    figure = Figure(figsize=(len(panels) * (size + 0.3) + 1.9, height), layout="constrained")
    figure.suptitle(f"{title}\n{_conclusion(panels)}")
    parts: Any = [figure]
    if curves:
        parts = figure.subfigures(2, 1, height_ratios=[heatmap_height, 2.4])
    grid = parts[0].subplots(1, len(panels), squeeze=False, sharey=True)[0]
    order = _clustered(known) if pitches is None else [np.argsort(p) for p in pitches]
    top = _top(known, few)
    for axes, (label, sharing) in zip(grid, panels.items(), strict=True):
        if sharing is None:
            nothing(axes, f"{label}:\nno artifacts")
            axes.set_axis_off()
            continue
        image = _heatmap(axes, sharing, order, top, few)
        if pitches is None:
            _class_axes(axes, names, order, few)
        else:
            ordered = [np.asarray(p)[o] for p, o in zip(pitches, order, strict=True)]
            _octave_axes(axes, ordered, tasks)
        axes.label_outer()
        axes.set_title(f"{label}\n{_counted(sharing)}")
    beyond = any(
        np.nanmax(sharing.observed[pairs_of(sharing.observed, sharing.within)], initial=0) > top
        for sharing in known
    )
    bar = parts[0].colorbar(
        image, ax=grid, shrink=0.6, pad=0.02, extend="max" if beyond else "neither"
    )
    bar.set_label("Jaccard index", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    if curves:
        for axes, label in zip(
            parts[1].subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
        ):
            _curve(axes, label, curves.get(label))
    return figure


def _mean_index(sharing: Sharing) -> float:
    """Mean Jaccard index over pairs of different classes; NaN without any."""
    counted = pairs_of(sharing.observed, sharing.within)
    return float(sharing.observed[counted].mean()) if counted.any() else np.nan


def _permuted_range(sharing: Sharing) -> tuple[float, float] | None:
    """95 % range of the mean index with permuted labels; None where that is not known."""
    counted = pairs_of(sharing.observed, sharing.within)
    if not counted.any() or np.isnan(sharing.null).all():
        return None
    low, high = np.quantile(sharing.null[:, counted].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _counted(sharing: Sharing) -> str:
    """Mean index of a panel, and what permuted labels give."""
    permuted = _permuted_range(sharing)
    compared = (
        f"permuted labels {permuted[0]:.2f} to {permuted[1]:.2f}"
        if permuted
        else "permuted labels not known"
    )
    return f"mean index {_mean_index(sharing):.2f}, {compared}"


def _conclusion(panels: Mapping[str, Sharing | None]) -> str:
    """What came out, as a sentence."""
    less, compared = [], 0
    for label, sharing in panels.items():
        permuted = None if sharing is None else _permuted_range(sharing)
        if sharing is None or permuted is None:
            continue
        compared += 1
        if _mean_index(sharing) < permuted[0]:
            less.append(label)
    if not compared:
        return "Not compared with permuted labels"
    if not less:
        return "On average classes share as many neurons as with permuted labels"
    return f"On average classes share fewer neurons than with permuted labels in {', '.join(less)}"


def _top(known: list[Sharing], few: bool) -> float:
    """Upper end of the colour scale: of many pairs, one outlying pair must not flatten the picture."""
    values = np.concatenate(
        [sharing.observed[pairs_of(sharing.observed, sharing.within)] for sharing in known]
    )
    if not len(values):
        return 1e-3
    return max(float(np.quantile(values, 1 if few else 0.995)), 1e-3)


def _clustered(known: list[Sharing]) -> list[np.ndarray]:
    """Order of rows and columns from the mean of the panels, by average linkage."""
    mean = np.mean([sharing.observed for sharing in known], axis=0)
    orders = []
    for profile in (mean, mean.T):
        if len(profile) < 3:  # there is nothing to order
            orders.append(np.arange(len(profile)))
            continue
        if known[0].within:
            distance = (1 - (mean + mean.T) / 2) * (1 - np.eye(len(mean)))
            profile = squareform(distance, checks=False)
        orders.append(leaves_list(linkage(profile, "average", optimal_ordering=True)))
    return orders


def _heatmap(
    axes: Axes, sharing: Sharing, order: Sequence[np.ndarray], top: float, few: bool
) -> Any:
    """The index, and with few classes the number in each cell; returns the image."""
    observed = sharing.observed.copy()
    if sharing.within:
        np.fill_diagonal(observed, np.nan)  # a class with itself
    values = observed[np.ix_(*order)]
    image = axes.imshow(
        values, vmin=0, vmax=top, cmap="cividis", aspect="auto", interpolation="nearest"
    )
    axes.set_facecolor("#DDDDDD")
    axes.tick_params(length=0)
    if few:
        for i, j in np.argwhere(~np.isnan(values)):
            ink = "white" if values[i, j] < 0.6 * top else "black"
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=7, color=ink)
    return image


def _class_axes(
    axes: Axes, names: Sequence[Sequence[str]], order: Sequence[np.ndarray], few: bool
) -> None:
    """Class names on both axes."""
    font = 7 if few else 6
    rows, columns = (
        [task[i].replace("_", " ") for i in places]
        for task, places in zip(names, order, strict=True)
    )
    axes.set_yticks(range(len(rows)), rows, fontsize=font)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=font)


def _octave_axes(axes: Axes, pitches: Sequence[np.ndarray], tasks: Sequence[str]) -> None:
    """Ticks at every C, and thin lines where the two pitches are whole octaves apart."""
    for axis, pitch, task, gap in zip(
        (axes.yaxis, axes.xaxis), pitches, tasks, (" ", "\n"), strict=True
    ):
        every_c = np.flatnonzero(pitch % 12 == 0)
        axis.set_ticks(every_c, [f"C{p // 12 - 1}{gap}({p})" for p in pitch[every_c]], fontsize=6)
        axis.set_label_text(f"{task}, MIDI pitch", fontsize=7)
    y, x = pitches
    for octave in range(
        -12, 13
    ):  # y = x + 12 * octave in pitch, drawn in cells; pitches may have gaps
        cells = np.interp(x + 12 * octave, y, np.arange(len(y)), left=np.nan, right=np.nan)
        axes.plot(np.arange(len(x)), cells, color="white", lw=0.4, alpha=0.55, ls=":")
    axes.set(xlim=(-0.5, len(x) - 0.5), ylim=(-0.5, len(y) - 0.5))


def octave_peaks(curve: pd.DataFrame) -> list[int]:
    """Whole octaves, in semitones, at which sharing is above both neighbours and above permuted pitches."""
    known = curve[curve.pairs >= FEWEST_PAIRS]
    octaves = known[(known.semitones % 12 == 0) & (known.semitones > 0)]
    peaks = octaves[(octaves.mean_jaccard > octaves.chance_high) & (octaves.above_neighbours > 0)]
    return peaks.semitones.tolist()


def _curve(axes: Axes, label: str, curve: pd.DataFrame | None) -> None:
    """Mean sharing by pitch distance, with the 95 % band of permuted pitches."""
    if curve is None:
        axes.set_axis_off()
        return nothing(axes, f"{label}:\nno artifacts")
    known = curve[curve.pairs >= FEWEST_PAIRS]
    band = "permuted pitches, 95 %"
    axes.fill_between(
        known.semitones, known.chance_low, known.chance_high, color="#BBBBBB", lw=0, label=band
    )
    axes.plot(known.semitones, known.mean_jaccard, color=BLUE, lw=1.1, label="observed")
    octaves = np.arange(0, known.semitones.max() + 1, 12) if len(known) else np.zeros(0)
    axes.vlines(
        octaves[1:],
        0,
        1,
        transform=axes.get_xaxis_transform(),
        color=ORANGE,
        lw=0.6,
        ls="--",
        zorder=0,
    )
    axes.set_xticks(octaves)
    peaks = octave_peaks(curve)
    found = (
        f"octave peaks at {', '.join(map(str, peaks))} semitones" if peaks else "no octave peaks"
    )
    axes.set(
        title=f"{label}: {found}",
        xlabel="distance (semitones; dashed: octaves)",
        ylabel="mean Jaccard index",
    )
    axes.label_outer()
    axes.tick_params(labelsize=6)
    highest = max(known.mean_jaccard.max(), known.chance_high.max()) if len(known) else 1.0
    axes.set_ylim(0, 1.45 * highest or 1.0)  # room for the legend
    axes.legend(fontsize=6, loc="upper right", labelcolor=GREY)
    return None
