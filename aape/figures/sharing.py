"""Figures of shared neurons: heatmaps of the Jaccard index and curves of it by pitch distance, a panel a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from aape.figures.style import nothing, styled
from aape.neurons.sharing import Sharing, pairs_of

ANNOTATED_TO = 12  # up to so many classes numbers stand in the cells; with more the panels stand one above the other


@styled
def sharing_figure(
    panels: Mapping[str, Sharing | None],
    names: Sequence[Sequence[str]],
    tasks: Sequence[str],
    title: str,
    pitches: Sequence[Sequence[int]] | None = None,
    curves: Mapping[str, pd.DataFrame] | None = None,
    level: float = 0.05,
) -> Figure:
    """Heatmaps of the Jaccard index, one panel a model.

    A dot marks pairs that share more than with permuted labels, a ring those that share more than their classes do with
    others, compared with permuted labels too (q < level).

    Args:
        panels: label of the model -> its sharing, None where there are no artifacts.
        names: of the classes of rows and columns. Without pitches they are ordered by clustering, alike in all panels.
        tasks: what rows and columns are.
        title: of the whole figure.
        pitches: MIDI pitch of the classes; then the axes are pitches and `curves` are drawn below.
        curves: label -> what `by_distance` found.
    """
    known = [found for found in panels.values() if found is not None]
    count, within, most = len(panels), known[0].within, max(map(len, names))
    few = most <= ANNOTATED_TO
    seen = np.concatenate([f.observed[pairs_of(f.observed, within)] for f in known])
    # of many pairs, one outlying pair must not flatten the picture
    top = max(float(np.quantile(seen, 1 if few else 0.995)) if len(seen) else 0.0, 1e-3)
    if pitches is not None:
        down, size = 1, (3.6 * count, 6.0)
    else:  # few classes: panels side by side; many: one above the other, with room for names of 6 points
        down, cell, least = (1, 0.34, 2.0) if few else (count, max(0.125, 4.5 / most), 5.0)
        size = count // down * (max(least, cell * len(names[1])) + 1.9), down * (cell * len(names[0]) + 1.9)
    whole = Figure(figsize=size, layout="constrained")
    whole.suptitle(title)
    parts: Any = whole.subfigures(2, 1, height_ratios=[3.1, 2]) if pitches else [whole]
    order = _clustered(known, within) if pitches is None else [np.argsort(p) for p in pitches]
    for axes, (label, found) in zip(
        parts[0].subplots(down, count // down, squeeze=False).flat, panels.items(), strict=True
    ):
        if found is None:
            nothing(axes, f"{label}:\nno artifacts")
            axes.set_axis_off()
            continue
        _heatmap(axes, found, order, top, level, few=few and pitches is None)
        if pitches is None:
            size_of_text = 7 if few else 6
            y, x = ([of[i].replace("_", " ") for i in o] for of, o in zip(names, order, strict=True))
            axes.set_yticks(range(len(y)), y, fontsize=size_of_text)
            axes.set_xticks(range(len(x)), x, rotation=90, fontsize=size_of_text)
            axes.set_aspect("equal")
        else:
            _octave_axes(axes, [np.asarray(p)[o] for p, o in zip(pitches, order, strict=True)], tasks)
        masks = found.q < level, found.q_centred < level, ~np.isnan(found.p)
        above, more, tested = (int((mask & pairs_of(mask, within)).sum()) for mask in masks)
        text = f"\nof {tested} pairs {above} (dots) above permuted labels,\n{more} (rings) above their classes' other pairs"
        axes.set_title(label + text * bool(tested), fontsize=7)
    if curves:
        for axes, label in zip(np.ravel(parts[1].subplots(1, count, sharey=True)), panels, strict=True):
            _curve(axes, label, curves.get(label))
    return whole


def _clustered(known: list[Sharing], within: bool) -> list[np.ndarray]:
    """Order of rows and columns, from the panels' mean, by average linkage."""
    mean, orders = np.mean([found.observed for found in known], axis=0), []
    for profile in (mean, mean.T):
        if len(profile) < 3:  # no order to find
            orders.append(np.arange(len(profile)))
            continue
        distance = squareform((1 - (mean + mean.T) / 2) * (1 - np.eye(len(mean))), checks=False) if within else profile
        orders.append(leaves_list(linkage(distance, "average", optimal_ordering=True)))
    return orders


def _heatmap(axes: Axes, found: Sharing, order: Any, top: float, level: float, *, few: bool) -> None:
    """The index with its marks; few: the number in each cell too."""
    same = np.eye(*found.observed.shape) * found.within == 1  # a class with itself
    values = np.where(same, np.nan, found.observed)[np.ix_(*order)]
    image = axes.imshow(values, vmin=0, vmax=top, cmap="cividis", aspect="auto", interpolation="nearest")
    axes.set_facecolor("#DDDDDD")
    axes.tick_params(length=0)
    n = max(values.shape)
    thin, size = 0.35 if n < 60 else 0.15, min(16.0, 900.0 / n**1.35)
    ink = np.where(values < 0.6 * top, "white", "black")  # of what is written on a cell
    for q, colour, edges in ((found.q_centred, "none", ink), (found.q, "white", np.full(ink.shape, "black"))):
        y, x = np.nonzero(q[np.ix_(*order)] < level)
        axes.scatter(
            x, y + 0.28 * few, s=size, c=colour, edgecolors=edges[y, x].tolist(), linewidth=thin
        )  # below the number
    for i, j in np.argwhere(~np.isnan(values) & few):
        axes.text(j, i - 0.1, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=5.5, color=ink[i, j])
    extend = "max" if np.nanmax(np.append(values, 0)) > top else "neither"
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, extend=extend)
    bar.set_label("Jaccard index", fontsize=7)
    bar.ax.tick_params(labelsize=6)


def _octave_axes(axes: Axes, pitches: Sequence[np.ndarray], tasks: Sequence[str]) -> None:
    """Ticks at every C, and thin lines where the two pitches are whole octaves apart."""
    for axis, pitch, task, gap in zip((axes.yaxis, axes.xaxis), pitches, tasks, (" ", "\n"), strict=True):
        at = np.flatnonzero(pitch % 12 == 0)
        axis.set_ticks(at, [f"C{p // 12 - 1}{gap}({p})" for p in pitch[at]], fontsize=6)
        axis.set_label_text(f"{task}, MIDI pitch", fontsize=7)
    y, x = pitches
    for octave in range(-12, 13):  # y = x + 12 * octave in pitch, drawn in cells; pitches may have gaps
        cells = np.interp(x + 12 * octave, y, np.arange(len(y)), left=np.nan, right=np.nan)
        axes.plot(np.arange(len(x)), cells, color="white", lw=0.4, alpha=0.55, ls=":")
    axes.set(xlim=(-0.5, len(x) - 0.5), ylim=(-0.5, len(y) - 0.5))


def _curve(axes: Axes, label: str, curve: pd.DataFrame | None) -> None:
    """Mean sharing against pitch distance, with the 95 % band of pitches dealt anew."""
    if curve is None:
        axes.set_axis_off()
        return nothing(axes, f"{label}:\nno artifacts")
    d = curve[curve.pairs >= 5]  # the mean of fewer pairs jumps about
    axes.fill_between(d.semitones, d.chance_low, d.chance_high, color="#BBBBBB", lw=0, label="pitches dealt anew, 95 %")
    axes.plot(d.semitones, d.mean_jaccard, color="#0072B2", lw=1.1, label="observed")
    octaves = np.arange(0, d.semitones.max() + 1, 12) if len(d) else np.zeros(0)
    axes.vlines(octaves[1:], 0, 1, transform=axes.get_xaxis_transform(), color="#D55E00", lw=0.6, ls="--", zorder=0)
    axes.set_xticks(octaves)
    axes.set(title=label, xlabel="distance (semitones; dashed: whole octaves)", ylabel="mean Jaccard index")
    axes.label_outer()
    axes.tick_params(labelsize=6)
    axes.set_ylim(0, None)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=6, loc="upper right")
