"""Figures of the analysis. Each function returns a matplotlib Figure; `save` writes it as PDF and PNG.

Colours: cividis for sharing, Okabe and Ito's palette for models; both are told apart with any colour vision.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

from aape.files import whole_file
from aape.sharing import DistanceCurve, Sharing

PALETTE = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
CLUSTERED_FROM = 3  # fewer classes than this have no order to find
STACKED_FROM = 25  # with more classes the panels stand one above the other, so that names stay readable
ANNOTATED_TO = 12  # up to so many classes the numbers are written into the cells


def colours(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model, in the study's order."""
    return dict(zip(models, itertools.cycle(PALETTE), strict=False))


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write `name`.pdf and `name`.png (the bytes carry no time stamp); returns the path of the PNG."""
    figure.draw_without_rendering()  # the layout settles in the second pass
    with whole_file(directory / f"{name}.pdf") as file:
        figure.savefig(file, format="pdf", metadata={"CreationDate": None}, bbox_inches="tight")
    figure.set_layout_engine("none")
    with whole_file(directory / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=130, bbox_inches="tight")
    return directory / f"{name}.png"


def sharing_figure(
    panels: Mapping[str, Sharing | None],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    titles: tuple[str, str],
    what: str,
    pitches: tuple[list[int], list[int]] | None = None,
    curves: Mapping[str, DistanceCurve | None] | None = None,
    list_pairs: bool = False,
    level: float = 0.05,
    mark: str = "",
) -> Figure:
    """Heatmaps of the Jaccard index, one panel a model; a dot marks what survives chance (q < level).

    panels: label of the model -> its sharing, None where there are no artifacts. rows, columns: class names.
    titles: of the row and the column task. pitches: MIDI pitch of the classes; then the axes are pitches and
    `curves` are drawn below. Without pitches classes are ordered by clustering. list_pairs: name the most
    shared pairs below each panel. mark: a word set into the title, such as "stand-ins".
    """
    known = [found for found in panels.values() if found is not None]
    within = known[0].within
    if pitches is not None:
        order = (np.argsort(pitches[0], kind="stable"), np.argsort(pitches[1], kind="stable"))
        trees: tuple[Any, Any] = (None, None)
    else:
        order, trees = _clustered(known, within)
    shown = [np.where(np.eye(len(f.observed)) > 0, np.nan, f.observed) if within else f.observed for f in known]
    top = max([float(np.nanmax(s)) for s in shown if not np.isnan(s).all()] + [1e-3])
    if max(len(rows), len(columns)) > ANNOTATED_TO:  # one outlying pair must not flatten the picture
        top = max([float(np.nanquantile(s, 0.995)) for s in shown if not np.isnan(s).all()] + [0.02])

    stacked = pitches is None and max(len(rows), len(columns)) > STACKED_FROM
    count = len(panels)
    width, height = _size(len(rows), len(columns), stacked, pitches is not None, count, list_pairs)
    whole = Figure(figsize=(width, height), layout="constrained")
    within_words = f"within {titles[0]}" if within else f"{titles[0]} (rows) and {titles[1]} (columns)"
    whole.suptitle(
        f"Shared neurons, {what}: {within_words}"
        + (f" [{mark}]" if mark and mark.rstrip("s") not in titles[0] else ""),
        fontsize=10,
    )
    below = pitches is not None and curves is not None
    parts: Any = whole.subfigures(2, 1, height_ratios=[3.1, 2]) if below else [whole.subfigures(1, 1)]
    shape = (count, 1) if stacked else (1, count)
    cells = np.atleast_1d(parts[0].subfigures(*shape)).reshape(-1)
    image = None
    for cell, (label, found) in zip(cells, panels.items(), strict=True):
        drawn = _panel(cell, label, found, rows, columns, order, trees, pitches, top, level, list_pairs, titles)
        image = image if drawn is None else drawn
    if below:
        _curves(parts[1], curves or {}, titles, within)
    return whole


def _size(
    n_rows: int, n_columns: int, stacked: bool, is_pitch: bool, count: int, list_pairs: bool
) -> tuple[float, float]:
    """Inches."""
    if is_pitch:
        return 3.6 * count, 6.0
    lines = 1.2 if list_pairs else 0.0
    if stacked:  # 0.125 inch a class: 6 point names
        return max(7.0, 0.125 * n_columns + 2.6), count * (0.125 * n_rows + 1.9 + lines) + 0.4
    cell = 0.34 if max(n_rows, n_columns) <= ANNOTATED_TO else 0.2
    side = max(2.0, cell * n_columns)
    return count * (side + 1.7), max(2.4, cell * n_rows + 1.9) + lines


def _clustered(known: list[Sharing], within: bool) -> tuple[tuple[np.ndarray, np.ndarray], tuple[Any, Any]]:
    """One order for all panels (so that they can be compared), from their mean, by average linkage."""
    mean = np.mean([f.observed for f in known], axis=0)
    n_rows, _ = mean.shape
    if within:
        if n_rows < CLUSTERED_FROM:
            return (np.arange(n_rows), np.arange(n_rows)), (None, None)
        distance = 1 - (mean + mean.T) / 2
        np.fill_diagonal(distance, 0)
        condensed = squareform(distance, checks=False)
        tree = linkage(condensed, "average", optimal_ordering=True)
        order = leaves_list(tree)
        return (order, order), (tree, tree)
    trees: list[Any] = []
    orders: list[np.ndarray] = []
    for profile in (mean, mean.T):
        if len(profile) < CLUSTERED_FROM:
            trees.append(None)
            orders.append(np.arange(len(profile)))
            continue
        tree = linkage(profile, "average", optimal_ordering=True)
        trees.append(tree)
        orders.append(leaves_list(tree))
    return (orders[0], orders[1]), (trees[0], trees[1])


def _panel(
    cell: SubFigure,
    label: str,
    found: Sharing | None,
    rows: Sequence[str],
    columns: Sequence[str],
    order: tuple[np.ndarray, np.ndarray],
    trees: tuple[Any, Any],
    pitches: tuple[list[int], list[int]] | None,
    top: float,
    level: float,
    list_pairs: bool,
    titles: tuple[str, str],
) -> Any:
    if found is None:
        axes = cell.subplots()
        axes.text(0.5, 0.5, f"{label}:\nno artifacts", ha="center", va="center", fontsize=9)
        axes.set_axis_off()
        return None
    heights = [1.0, 0.17 if max(found.observed.shape) > STACKED_FROM else 0.4] if list_pairs else [1.0]
    grid = cell.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = cell.add_subplot(grid[0])
    values = found.observed[np.ix_(*order)]
    if found.within:
        values = np.where(order[0][:, None] == order[1][None, :], np.nan, values)
    image = axes.imshow(
        values, cmap="cividis", vmin=0, vmax=top, aspect="auto" if pitches else "equal", interpolation="nearest"
    )
    axes.set_facecolor("#DDDDDD")  # a class with itself
    q = found.q[np.ix_(*order)]
    y, x = np.nonzero(np.nan_to_num(q, nan=1.0) < level)
    n = max(values.shape)
    annotated = pitches is None and n <= ANNOTATED_TO
    axes.scatter(
        x,
        y + (0.28 if annotated else 0.0),
        s=min(16.0, 900.0 / n**1.35),
        marker="o",
        facecolor="white",
        edgecolor="black",
        linewidth=0.35 if n < 60 else 0.15,
    )
    survivors = len(x) // 2 if found.within else len(x)
    tested = int((~np.isnan(found.p)).sum()) // (2 if found.within else 1)
    titled = axes
    if pitches is not None:
        _octave_axes(axes, pitches, order, titles)
    else:
        _names(axes, rows, columns, order, values)
        for i, j in np.ndindex(values.shape) if annotated else ():
            if not np.isnan(values[i, j]):
                colour = "white" if values[i, j] < 0.6 * top else "black"
                axes.text(j, i - 0.1, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=5.5, color=colour)
    side = 0.12 if n <= STACKED_FROM else 0.06
    if trees[1] is not None:
        titled = axes.inset_axes((0, 1.01, 1, side))
        _tree(titled, trees[1], len(columns), upright=True)
    if trees[0] is not None and not found.within:
        _tree(axes.inset_axes((1.01, 0, side, 1)), trees[0], len(rows), upright=False)
    titled.set_title(f"{label}\n{survivors} of {tested} pairs above chance (q < {level:g})", fontsize=8)
    bar = cell.colorbar(
        image, ax=axes, shrink=0.7, pad=0.02, extend="max" if np.nanmax(np.append(values, 0)) > top else "neither"
    )
    bar.set_label("Jaccard index", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    if list_pairs:
        words = cell.add_subplot(grid[1])
        words.set_axis_off()
        words.text(
            0,
            1,
            strongest_pairs_text(found, rows, columns, level),
            fontsize=5.5,
            family="monospace",
            va="top",
            ha="left",
            transform=words.transAxes,
        )
    return image


def strongest_pairs_text(
    found: Sharing, rows: Sequence[str], columns: Sequence[str], level: float, most: int = 12
) -> str:
    """The most shared pairs by name in two columns; an asterisk where q < level."""
    values = (
        np.where(np.triu(np.ones_like(found.observed), k=1) > 0, found.observed, 0) if found.within else found.observed
    )
    best = [i for i in np.argsort(-values, axis=None, kind="stable")[:most] if values.flat[i] > 0]
    if not best:
        return "No pair shares a neuron."
    lines = []
    for index in best:
        i, j = np.unravel_index(index, values.shape)
        star = "*" if np.nan_to_num(found.q[i, j], nan=1.0) < level else " "
        lines.append(f"{values[i, j]:.2f}{star} {_plain_name(rows[i])} - {_plain_name(columns[j])}")
    half = (len(lines) + 1) // 2
    widest = max(len(line) for line in lines[:half]) + 4
    pairs = [a.ljust(widest) + b for a, b in zip(lines[:half], lines[half:] + [""] * half, strict=False)]
    return "Most shared (* above chance):\n" + "\n".join(pairs)


def _names(axes: Axes, rows: Sequence[str], columns: Sequence[str], order: Any, values: np.ndarray) -> None:
    size = 6 if max(values.shape) > STACKED_FROM else 7
    axes.set_xticks(np.arange(len(columns)), [_plain_name(columns[i]) for i in order[1]], rotation=90, fontsize=size)
    axes.set_yticks(np.arange(len(rows)), [_plain_name(rows[i]) for i in order[0]], fontsize=size)
    axes.tick_params(length=0)


def _plain_name(name: str) -> str:
    return name.replace("_", " ")


def _octave_axes(axes: Axes, pitches: tuple[list[int], list[int]], order: Any, titles: tuple[str, str]) -> None:
    """Ticks at every C, and thin lines where the two pitches are whole octaves apart."""
    for axis, pitch, chosen, title in (
        (axes.yaxis, pitches[0], order[0], titles[0]),
        (axes.xaxis, pitches[1], order[1], titles[1]),
    ):
        ordered = np.asarray(pitch)[chosen]
        at = np.flatnonzero(ordered % 12 == 0)
        axis.set_ticks(
            at,
            [
                f"C{ordered[i] // 12 - 1}\n({ordered[i]})"
                if axis is axes.xaxis
                else f"C{ordered[i] // 12 - 1} ({ordered[i]})"
                for i in at
            ],
        )
        axis.set_tick_params(labelsize=6)
        axis.set_label_text(f"{title}, MIDI pitch", fontsize=7)
    y, x = np.asarray(pitches[0])[order[0]], np.asarray(pitches[1])[order[1]]
    lowest, highest = min(y[0] - x[-1], 0), max(y[-1] - x[0], 0)
    for octave in range(-(-lowest // 12), highest // 12 + 1):
        # y = x + 12 * octave in pitch, drawn in cell coordinates
        low, high = max(x[0], y[0] - 12 * octave), min(x[-1], y[-1] - 12 * octave)
        if low < high:
            axes.plot(
                np.array([low, high]) - x[0],
                np.array([low, high]) + 12 * octave - y[0],
                color="white",
                lw=0.4,
                alpha=0.55,
                ls=":",
            )
    axes.set_xlim(-0.5, len(x) - 0.5)
    axes.set_ylim(-0.5, len(y) - 0.5)


def _tree(axes: Axes, tree: Any, leaves: int, *, upright: bool) -> None:
    drawn = dendrogram(tree, no_plot=True)
    for leaf, height in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        position = np.asarray(leaf) / 10 - 0.5  # leaves lie at 5, 15, 25, ...
        if upright:
            axes.plot(position, height, color="#555555", lw=0.6)
        else:
            axes.plot(height, position, color="#555555", lw=0.6)
    lowest = min(min(h) for h in drawn["dcoord"])
    highest = max(max(h) for h in drawn["dcoord"]) or 1.0
    if upright:
        axes.set(xlim=(-0.5, leaves - 0.5), ylim=(lowest, 1.03 * highest))
    else:
        axes.set(ylim=(leaves - 0.5, -0.5), xlim=(lowest, 1.03 * highest))
    axes.set_axis_off()


def _curves(part: SubFigure, curves: Mapping[str, DistanceCurve | None], titles: tuple[str, str], within: bool) -> None:
    """Mean sharing against pitch distance, one panel a model, with the null's 95 % band."""
    panels = np.atleast_1d(part.subplots(1, len(curves), sharey=True))
    for axes, (label, curve) in zip(panels, curves.items(), strict=True):
        axes.set_title(label, fontsize=8)
        if curve is None:
            axes.text(0.5, 0.5, "no artifacts", ha="center", va="center", transform=axes.transAxes)
            continue
        enough = curve.pairs >= 5  # the mean of fewer pairs jumps about
        d = curve.distance[enough]
        axes.fill_between(d, curve.low[enough], curve.high[enough], color="#BBBBBB", lw=0, label="re-dealt, 95 %")
        axes.plot(d, curve.observed[enough], color="#0072B2", lw=1.1, label="observed")
        for octave in range(12, int(d.max()) + 1, 12):
            axes.axvline(octave, color="#D55E00", lw=0.6, ls="--", zorder=0)
        axes.set_xticks(np.arange(0, int(d.max()) + 1, 12))
        axes.set_xlabel("distance (semitones; dashed: whole octaves)", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.set_ylim(0, None)
    panels[0].set_ylabel("mean Jaccard index", fontsize=7)
    panels[-1].legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=6, loc="upper right")


def layer_figure(
    results: Mapping[tuple[str, str], Any], tasks: Sequence[str], names: Mapping[str, str], mark: str = ""
) -> Figure:
    """Where the neurons sit: class-specific, calibrated, and shared by several classes, by layer.

    results: (task, model) -> aape.analysis.TaskResult; names: model -> its short name.
    """
    tasks = [task for task in tasks if any(key[0] == task for key in results)]
    models = [model for model in names if any(key[1] == model for key in results)]
    whole = Figure(figsize=(2.3 * len(models) + 0.8, 1.05 * len(tasks) + 0.9), layout="constrained")
    grid = whole.subplots(len(tasks), len(models), squeeze=False, sharex="col")
    for i, task in enumerate(tasks):
        for j, model in enumerate(models):
            axes, result = grid[i, j], results.get((task, model))
            axes.tick_params(labelsize=6)
            if i == 0:
                axes.set_title(names[model], fontsize=8)
            if j == 0:
                axes.set_ylabel(task, fontsize=7)
            if result is None:
                axes.text(0.5, 0.5, "no artifacts", ha="center", va="center", transform=axes.transAxes, fontsize=7)
                continue
            specific = result.members.any(axis=2).sum(axis=1)
            several = (result.members.sum(axis=2) > 1).sum(axis=1)
            alive = result.calibrated.any(axis=2).sum(axis=1)
            layers = np.arange(len(specific))
            axes.bar(layers, specific, width=0.85, color="#B8D4E8", label="class-specific")
            axes.bar(layers, alive, width=0.55, color="#0072B2", label="calibrated")
            axes.plot(layers, several, color="#D55E00", lw=0.9, marker="o", ms=2.2, label="shared by several classes")
            axes.set_xticks(layers)
            axes.set_ylim(0, max(1, specific.max() * 1.1))
    for axes in grid[-1]:
        axes.set_xlabel("layer", fontsize=7)
    handles, labels = _handles(grid)
    whole.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    whole.suptitle("Neurons by layer" + (f" [{mark}]" if mark else ""), fontsize=10)
    return whole


def _handles(grid: np.ndarray) -> tuple[list[Any], list[str]]:
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            return handles, labels
    return [], []


def chance_figure(
    results: Mapping[tuple[str, str], Any], tasks: Sequence[str], names: Mapping[str, str], mark: str = ""
) -> Figure:
    """Observed value (dot) against permuted labels (mean and 95 % bar), by task and model."""
    tasks = [task for task in tasks if any(key[0] == task and r.null for key, r in results.items())]
    models = [model for model in names if any(key[1] == model for key in results)]
    colour_of = colours(names)
    measures = {
        "coverage": "coverage",
        "per_class_mean": "neurons per class",
        "classes_per_neuron": "classes per neuron\n(share of all classes)",
        "mean_aape": "mean AAPE\n(share of ln classes)",
    }
    whole = Figure(figsize=(8.2, 0.46 * len(tasks) + 1.6), layout="constrained")
    panels = whole.subplots(1, len(measures), sharey=True)
    for axes, (name, title) in zip(panels, measures.items(), strict=True):
        for i, task in enumerate(tasks):
            for j, model in enumerate(models):
                result = results.get((task, model))
                if result is None or not result.null:
                    continue
                scale = {"classes_per_neuron": result.row["classes"], "mean_aape": result.row["ln_classes"]}.get(
                    name, 1
                ) or 1
                values = result.null[name] / scale
                values = values[~np.isnan(values)]
                y = i + 0.24 * (j - (len(models) - 1) / 2)
                colour = colour_of[model]
                if len(values):
                    low, high = np.quantile(values, [0.025, 0.975])
                    axes.plot([low, high], [y, y], color=colour, lw=4, alpha=0.3, solid_capstyle="butt")
                    axes.plot(values.mean(), y, marker="|", ms=6, color=colour)
                axes.plot(
                    result.row[name] / scale,
                    y,
                    marker="o",
                    ms=4,
                    ls="",
                    color=colour,
                    label=names[model] if i == 0 else None,
                )
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", lw=0.3)
    panels[0].set_yticks(np.arange(len(tasks)), tasks)
    panels[0].set_ylim(len(tasks) - 0.5, -0.5)
    panels[0].set_xlim(-0.03, 1.03)
    handles, labels = panels[0].get_legend_handles_labels()
    whole.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(models),
        frameon=False,
        fontsize=7,
        title="dot: labels of the data; bar: permuted labels, mean and 95 %",
        title_fontsize=7,
    )
    whole.suptitle("What chance gives" + (f" [{mark}]" if mark else ""), fontsize=10)
    return whole
