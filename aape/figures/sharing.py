"""Figures of shared neurons: heatmaps of the Jaccard index and curves of it by pitch distance, a panel a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

from aape.sharing import DistanceCurve, Sharing

CLUSTERED_FROM = 3  # fewer classes than this have no order to find
ANNOTATED_TO = 12  # up to so many classes numbers stand in the cells; with more the panels stand one above the other


def sharing_figure(
    panels: Mapping[str, Sharing | None],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    axes_titles: tuple[str, str],
    pitches: tuple[list[int], list[int]] | None = None,
    curves: Mapping[str, DistanceCurve | None] | None = None,
    level: float = 0.05,
) -> Figure:
    """Heatmaps of the Jaccard index, one panel a model.

    A dot marks pairs that share more than with permuted labels, a ring those that share more than their classes do with
    others, compared with permuted labels too (q < level).

    Args:
        panels: label of the model -> its sharing, None where there are no artifacts.
        rows, columns: class names. Without pitches they are ordered by clustering, the same way in all panels.
        title: of the whole figure. axes_titles: of rows and columns.
        pitches: MIDI pitch of the classes; then the axes are pitches and `curves` are drawn below.
    """
    known = [found for found in panels.values() if found is not None]
    within, most = known[0].within, max(len(rows), len(columns))
    order, trees = _clustered(known, within) if pitches is None else (tuple(np.argsort(p) for p in pitches), None)
    seen = np.concatenate(
        [f.observed[~np.eye(len(f.observed), dtype=bool)] if within else f.observed.ravel() for f in known]
    )
    # of many pairs, one outlying pair must not flatten the picture
    top = max(float(np.quantile(seen, 1 if most <= ANNOTATED_TO else 0.995)) if len(seen) else 0.0, 1e-3)
    stacked = pitches is None and most > ANNOTATED_TO
    cell = max(0.125, 4.5 / most) if stacked else 0.34  # inch a class, at least what 6 point names need
    width = max(5.0 if stacked else 2.0, cell * len(columns)) + 1.9
    size = (3.6 * len(panels), 6.0) if pitches else (width * (1 if stacked else len(panels)),
            (cell * len(rows) + 1.9) * (len(panels) if stacked else 1))  # fmt: skip
    whole = Figure(figsize=size, layout="constrained")
    whole.suptitle(title, fontsize=10)
    parts: Any = whole.subfigures(2, 1, height_ratios=[3.1, 2]) if curves else [whole.subfigures(1, 1)]
    grid = parts[0].subplots(*((len(panels), 1) if stacked else (1, len(panels))), squeeze=False).ravel()
    for axes, (label, found) in zip(grid, panels.items(), strict=True):
        if found is None:
            _nothing(axes, label)
            continue
        values = found.observed[np.ix_(*order)]
        if within:
            values = np.where(np.eye(len(values), dtype=bool), np.nan, values)
        _heatmap(axes, values, found, order, top, level, equal=pitches is None)
        if pitches is not None:
            _octave_axes(axes, pitches, order, axes_titles)
        else:
            _name_axes(axes, rows, columns, order, values, top)
        head = _trees(axes, trees, within, stacked) if trees else axes
        pairs = 2 if within else 1
        above, more, tested = (
            int(mask.sum()) // pairs for mask in (found.q < level, found.q_centred < level, ~np.isnan(found.p))
        )
        text = (
            f"of {tested} pairs {above} (dots) above permuted labels,\n{more} (rings) above their classes' other pairs"
        )
        head.set_title(f"{label}\n{text}" if tested else label, fontsize=7)
    if curves:
        _curves(parts[1], curves)
    return whole


def _nothing(axes: Axes, label: str) -> None:
    axes.text(0.5, 0.5, f"{label}:\nno artifacts", ha="center", va="center", fontsize=9, transform=axes.transAxes)
    axes.set_axis_off()


def _clustered(known: list[Sharing], within: bool) -> tuple[tuple[np.ndarray, ...], list[Any]]:
    """Order and tree of rows and columns, from the panels' mean, by average linkage."""
    mean = np.mean([found.observed for found in known], axis=0)
    trees: list[Any] = []
    for profile in (mean,) if within else (mean, mean.T):
        if len(profile) < CLUSTERED_FROM:
            trees.append(None)
            continue
        distance = squareform((1 - (mean + mean.T) / 2) * (1 - np.eye(len(mean))), checks=False) if within else profile
        trees.append(linkage(distance, "average", optimal_ordering=True))
    trees = trees * 2 if within else trees
    sizes = mean.shape
    return tuple(np.arange(n) if t is None else leaves_list(t) for t, n in zip(trees, sizes, strict=True)), trees


def _heatmap(
    axes: Axes, values: np.ndarray, found: Sharing, order: Any, top: float, level: float, *, equal: bool
) -> None:
    image = axes.imshow(
        values, cmap="cividis", vmin=0, vmax=top, aspect="equal" if equal else "auto", interpolation="nearest"
    )
    axes.set_facecolor("#DDDDDD")  # a class with itself
    n = max(values.shape)
    lower = 0.28 if equal and n <= ANNOTATED_TO else 0.0  # below the number in the cell
    thin, size = 0.35 if n < 60 else 0.15, min(16.0, 900.0 / n**1.35)
    for q, colour, edge in ((found.q_centred, "none", "white"), (found.q, "white", "black")):
        y, x = np.nonzero(q[np.ix_(*order)] < level)
        axes.scatter(x, y + lower, s=size, c=colour, edgecolor=edge, linewidth=thin)
    beyond = np.nanmax(np.append(values, 0)) > top
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, extend="max" if beyond else "neither")
    bar.set_label("Jaccard index", fontsize=7)
    bar.ax.tick_params(labelsize=6)


def _name_axes(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], order: Any, values: np.ndarray, top: float
) -> None:
    size = 6 if max(values.shape) > ANNOTATED_TO else 7
    names = [
        [all_names[i].replace("_", " ") for i in chosen]
        for all_names, chosen in zip((rows, columns), order, strict=True)
    ]
    axes.set_yticks(range(len(rows)), names[0], fontsize=size)
    axes.set_xticks(range(len(columns)), names[1], rotation=90, fontsize=size)
    axes.tick_params(length=0)
    for (i, j), value in np.ndenumerate(values) if max(values.shape) <= ANNOTATED_TO else ():
        if not np.isnan(value):
            colour = "white" if value < 0.6 * top else "black"
            axes.text(j, i - 0.1, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=colour)


def _octave_axes(axes: Axes, pitches: tuple[list[int], list[int]], order: Any, titles: tuple[str, str]) -> None:
    """Ticks at every C, and thin lines where the two pitches are whole octaves apart."""
    y, x = (np.asarray(pitch)[chosen] for pitch, chosen in zip(pitches, order, strict=True))
    for axis, ordered, title, gap in ((axes.yaxis, y, titles[0], " "), (axes.xaxis, x, titles[1], "\n")):
        at = np.flatnonzero(ordered % 12 == 0)
        axis.set_ticks(at, [f"C{p // 12 - 1}{gap}({p})" for p in ordered[at]], fontsize=6)
        axis.set_label_text(f"{title}, MIDI pitch", fontsize=7)
    for octave in range(-12, 13):  # y = x + 12 * octave in pitch, drawn in cells
        ends = np.array([max(x[0], y[0] - 12 * octave), min(x[-1], y[-1] - 12 * octave)])
        if ends[0] < ends[1]:
            axes.plot(ends - x[0], ends + 12 * octave - y[0], color="white", lw=0.4, alpha=0.55, ls=":")
    axes.set(xlim=(-0.5, len(x) - 0.5), ylim=(-0.5, len(y) - 0.5))


def _trees(axes: Axes, trees: list[Any], within: bool, stacked: bool) -> Axes:
    """Dendrograms above and, between two tasks, to the right; returns the axes that carry the title."""
    side, head = 0.06 if stacked else 0.12, axes
    for tree, upright in ((trees[1], True), (None if within else trees[0], False)):
        if tree is None:
            continue
        part = axes.inset_axes((0, 1.01, 1, side) if upright else (1.01, 0, side, 1))
        drawn = dendrogram(tree, no_plot=True)
        for leaf, height in zip(drawn["icoord"], drawn["dcoord"], strict=True):
            place = np.asarray(leaf) / 10 - 0.5  # leaves lie at 5, 15, 25, ...
            part.plot(*((place, height) if upright else (height, place)), color="#555555", lw=0.6)
        low, high, leaves = np.min(drawn["dcoord"]), np.max(drawn["dcoord"]) or 1.0, len(tree) + 1
        if upright:
            part.set(xlim=(-0.5, leaves - 0.5), ylim=(low, 1.03 * high))
            head = part
        else:
            part.set(ylim=(leaves - 0.5, -0.5), xlim=(low, 1.03 * high))
        part.set_axis_off()
    return head


def _curves(part: SubFigure, curves: Mapping[str, DistanceCurve | None]) -> None:
    """Mean sharing against pitch distance, with the 95 % band of pitches dealt anew."""
    panels = np.atleast_1d(part.subplots(1, len(curves), sharey=True))
    for axes, (label, curve) in zip(panels, curves.items(), strict=True):
        if curve is None:
            _nothing(axes, label)
            continue
        enough = curve.pairs >= 5  # the mean of fewer pairs jumps about
        d = curve.distance[enough]
        axes.fill_between(
            d, curve.low[enough], curve.high[enough], color="#BBBBBB", lw=0, label="pitches dealt anew, 95 %"
        )
        axes.plot(d, curve.observed[enough], color="#0072B2", lw=1.1, label="observed")
        octaves = np.arange(0, d.max(initial=0) + 1, 12)
        for octave in octaves[1:]:
            axes.axvline(octave, color="#D55E00", lw=0.6, ls="--", zorder=0)
        axes.set_xticks(octaves)
        axes.set_title(label, fontsize=8)
        axes.set_xlabel("distance (semitones; dashed: whole octaves)", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.set_ylim(0, None)
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=6, loc="upper right")
    panels[0].set_ylabel("mean Jaccard index", fontsize=7)
