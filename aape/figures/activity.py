"""Figures of activity and selection: how active each layer is, where the neurons are, and what permuted labels give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aape.artifacts.folder import Artifacts
from aape.figures.style import (
    BLUE,
    LIGHT_BLUE,
    ORANGE,
    colours,
    legend_below,
    nothing,
    panels,
    styled,
)

MEASURES = {  # column -> title, and the column that it is a share of
    "mean_aape": ("mean AAPE\n(share of ln classes)", "ln_classes"),
    "classes_per_neuron": ("classes per neuron\n(share of all classes)", "classes"),
    "per_class_mean": ("neurons per class", None),
    "coverage": ("coverage\n(share of classes)", None),
}
Results = Mapping[tuple[str, str], Any]  # (task, model) -> aape.study.task_result.TaskResult


def activity_by_layer(artifacts: Artifacts, name: str = "") -> Figure:
    """Share of active tokens of every neuron by layer: median, quartiles and 5 to 95 % of the neurons.

    Args:
        artifacts: of one model on one task.
        name: of the model and the task, for the title; by default what the artifacts call them.
    """
    # Not `styled`: pyplot switches Jupyter's display on when it is first used, and leaving the style would undo that.
    share = (
        artifacts.over_zero.double().mean(dim=2).numpy()
    )  # [layers, neurons]; every class has the same weight
    never = (artifacts.over_zero == 0).all(dim=2).sum(dim=1).numpy()  # [layers]
    layers = np.arange(len(share))
    low, first, median, third, high = np.quantile(share, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
    figure, axes = plt.subplots(figsize=(6.4, 3.3), layout="constrained")
    axes.fill_between(layers, low, high, color=BLUE, alpha=0.15, lw=0, label="5 to 95 % of neurons")
    axes.fill_between(layers, first, third, color=BLUE, alpha=0.3, lw=0, label="quartiles")
    axes.plot(layers, median, color=BLUE, marker="o", ms=4, label="median neuron")
    shown = _ticks(layers)
    if never.any():
        axes.set_xticks(shown, [f"{layer}\n{never[layer]}" for layer in shown])
        axes.set_xlabel("layer, and how many of its neurons are never active")
    else:
        axes.set_xticks(shown)
        axes.set_xlabel("layer")
    axes.set(ylabel="share of active tokens", ylim=(0, 1))
    manifest = artifacts.manifest
    name = (
        name
        or f"{manifest.get('encoder', artifacts.path.name)} on {manifest.get('task', 'unknown task')}"
    )
    figure.suptitle(f"{_trend(median)}\n{name}", fontsize=10)
    legend_below(figure, axes)
    return figure


def _trend(median: np.ndarray) -> str:
    """How the median neuron's share of active tokens moves from the first to the last layer, as a sentence."""
    ends = f"the median neuron is active at {median[0]:.0%} of tokens in layer 0, {median[-1]:.0%} in layer {len(median) - 1}"
    if len(median) < 2 or abs(median[-1] - median[0]) < 0.05:
        return f"Activity changes little with depth: {ends}"
    direction = "sparser" if median[-1] < median[0] else "denser"
    return f"Deeper layers are {direction}: {ends}"


def _ticks(layers: np.ndarray) -> np.ndarray:
    """Every layer, or every second, third, ..., so that their numbers do not overlap."""
    step = -(-len(layers) // 16)
    return layers[::step]


@styled
def layer_figure(
    results: Results, labels: Mapping[str, str], titles: Mapping[str, str], mark: str = ""
) -> Figure:
    """Where the neurons are: class-specific, calibrated, and shared by several classes, by layer.

    Args:
        results: (task, model) -> TaskResult.
        labels: model -> its name; a column for each.
        titles: task -> its name; a row for each.
        mark: end of the title, such as " [synthetic]".
    """
    tasks = list(dict.fromkeys(task for task, _ in results))
    models = [model for model in labels if any(key[1] == model for key in results)]
    size = (2.3 * len(models) + 1.2, 1.05 * len(tasks) + 1.1)
    title = f"Most class-specific neurons: {_fullest_layers(results, labels, models)}{mark}"
    figure, grid = panels(len(tasks), len(models), size, title, sharex="col", sharey="row")
    for row, task in enumerate(tasks):
        for column, model in enumerate(models):
            axes = grid[row, column]
            axes.tick_params(labelsize=6)
            if row == 0:
                axes.set_title(labels[model])
            if column == 0:
                axes.set_ylabel(titles[task].replace(" (", "\n("), fontsize=7)
            if row == len(tasks) - 1:
                axes.set_xlabel("layer")
            if (task, model) in results:
                _layer_bars(axes, results[task, model])
                drawn = axes
            else:
                nothing(axes, "no artifacts")
    legend_below(figure, drawn, "number of neurons")
    return figure


def _layer_bars(axes: Axes, result: Any) -> None:
    specific = result.members.any(axis=2).sum(axis=1)  # [layers]
    calibrated = result.calibrated.any(axis=2).sum(axis=1)
    several = (result.members.sum(axis=2) > 1).sum(axis=1)
    layers = np.arange(len(specific))
    axes.bar(layers, specific, width=0.85, color=LIGHT_BLUE, label="class-specific")
    axes.bar(layers, calibrated, width=0.55, color=BLUE, label="calibrated")
    axes.plot(
        layers, several, "o-", color=ORANGE, lw=0.9, ms=2.2, label="shared by several classes"
    )
    axes.set_xticks(_ticks(layers))
    axes.set_ylim(0, max(1.0, specific.max() * 1.1, axes.get_ylim()[1]))


def _fullest_layers(results: Results, labels: Mapping[str, str], models: Sequence[str]) -> str:
    """The layer of each model that holds most class-specific neurons, tasks weighted equally."""
    said = []
    for model in models:
        shares = []
        for (_, name), result in results.items():
            by_layer = result.members.any(axis=2).sum(axis=1)
            if name == model and by_layer.any():
                shares.append(by_layer / by_layer.sum())
        if shares:
            said.append(f"layer {np.mean(shares, axis=0).argmax()} in {labels[model]}")
    return ", ".join(said) or "none"


@styled
def chance_figure(
    results: Results, copies: Mapping[str, Sequence[str]], titles: Mapping[str, str], mark: str = ""
) -> Figure:
    """Observed value (dot) compared with permuted labels (mean and 95 % bar), by task and model.

    Args:
        results, titles, mark: as `layer_figure`.
        copies: label of a model -> its models in `results`, more than one where it has several seeds.
    """
    known = {place: result.row for place, result in results.items() if "permutations" in result.row}
    tasks = list(dict.fromkeys(task for task, _ in known))
    size = (9.0, 0.5 * len(tasks) + 2.0)
    figure, grid = panels(
        1, len(MEASURES), size, _chance_title(list(known.values())) + mark, sharey=True
    )
    offsets = np.linspace(-0.24, 0.24, len(copies)) if len(copies) > 1 else [0.0]
    for axes, (name, (title, unit)) in zip(grid.flat, MEASURES.items(), strict=True):
        for (label, models), colour, offset in zip(
            copies.items(), colours(copies).values(), offsets, strict=True
        ):
            rows = [
                (tasks.index(task) + offset, row)
                for (task, model), row in known.items()
                if model in models
            ]
            y = [height for height, _ in rows]
            values = []
            for column in (name, f"{name}_null_low", f"{name}_null_high", f"{name}_null_mean"):
                values.append(
                    [row[column] / (row[unit] if unit and row[unit] else 1) for _, row in rows]
                )
            observed, low, high, mean = np.array(values)
            axes.hlines(y, low, high, color=colour, lw=4, alpha=0.3)
            axes.plot(mean, y, "|", ms=6, color=colour)
            axes.plot(observed, y, "o", ms=4, color=colour, label=label)
        axes.set_title(title)
        axes.grid(axis="x", lw=0.3)
    grid[0, 0].set_yticks(np.arange(len(tasks)), [titles[task] for task in tasks])
    grid[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    grid[0, -1].set_xlim(-0.03, 1.03)
    legend_below(
        figure,
        axes,
        "dot: the data's labels; bar: permuted labels, mean and 95 %",
        columns=len(copies),
    )
    return figure


def _chance_title(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the figure shows, as a sentence."""
    coverage = np.nanmean([row["coverage_null_mean"] for row in rows])
    lower = sum(row["p_mean_aape"] <= 0.05 for row in rows)
    return (
        f"Permuted labels also reach {coverage:.0%} coverage; AAPE is lower than with permuted labels in {lower} of "
        f"{len(rows)} cases (p ≤ 0.05)"
    )
