"""Figures of activity and selection: how active each layer is, where the neurons sit, and what chance gives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aape.artifacts.folder import Artifacts
from aape.figures.style import colours, legend_below, nothing, panels, styled

MEASURES = {  # column -> title, and the column that it is a share of
    "coverage": ("coverage", None),
    "per_class_mean": ("neurons per class", None),
    "classes_per_neuron": ("classes per neuron\n(share of all classes)", "classes"),
    "mean_aape": ("mean AAPE\n(share of ln classes)", "ln_classes"),
}


def activity_by_layer(artifacts: Artifacts) -> Figure:
    """Share of active tokens of every neuron by layer: median, quartiles and 5 to 95 % of the neurons."""
    # Not `styled`: pyplot switches Jupyter's display on when it is first used, and leaving the style would undo that.
    share = artifacts.over_zero.double().mean(dim=2).numpy()  # [layers, neurons], classes weigh the same
    layers = np.arange(len(share))
    low, first, median, third, high = np.quantile(share, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
    figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
    axes.fill_between(layers, low, high, color="#0072B2", alpha=0.15, lw=0, label="5 to 95 % of neurons")
    axes.fill_between(layers, first, third, color="#0072B2", alpha=0.3, lw=0, label="quartiles")
    axes.plot(layers, median, color="#0072B2", marker="o", ms=4, label="median neuron")
    never = (artifacts.over_zero == 0).all(dim=2).sum(dim=1).numpy()
    for layer in np.flatnonzero(never):
        axes.text(int(layer), 1.01, f"{never[layer]}", ha="center", fontsize=6, transform=axes.get_xaxis_transform())
    axes.set_xticks(_ticks(layers))
    name, task = artifacts.manifest.get("encoder", artifacts.path.name), artifacts.manifest.get("task", "unknown task")
    axes.set(xlabel="layer", ylabel="share of active tokens", ylim=(0, None))
    axes.set_title(f"{name} on {task}" + "\n(above a layer: neurons that are never active)" * bool(never.any()), pad=12)
    legend_below(figure, axes)
    return figure


def _ticks(layers: np.ndarray) -> np.ndarray:
    """Every layer, or so many that their numbers do not run into each other."""
    return layers[:: -(-len(layers) // 16)]


@styled
def layer_figure(results: Mapping[tuple[str, str], Any], labels: Mapping[str, str], mark: str = "") -> Figure:
    """Where the neurons sit: class-specific, calibrated, and shared by several classes, by layer.

    Args:
        results: (task, model) -> aape.study.analysis.TaskResult. labels: model -> its name; a column each.
        mark: for the title, such as " [stand-ins]".
    """
    tasks = list(dict.fromkeys(task for task, _ in results))
    models = [model for model in labels if any(key[1] == model for key in results)]
    size = (2.3 * len(models) + 0.8, 1.05 * len(tasks) + 0.9)
    whole, grid = panels(len(tasks), len(models), size, f"Neurons by layer{mark}", sharex="col")
    for axes, (task, model) in zip(grid.flat, itertools.product(tasks, models), strict=True):
        axes.tick_params(labelsize=6)
        axes.set_title(labels[model] if task == tasks[0] else "")
        axes.set_ylabel(task if model == models[0] else "")
        axes.set_xlabel("layer" if task == tasks[-1] else "")
        if (task, model) not in results:
            nothing(axes, "no artifacts")
            continue
        members, calibrated = results[task, model].members, results[task, model].calibrated
        specific, layers = members.any(axis=2).sum(axis=1), np.arange(len(members))
        several = (members.sum(axis=2) > 1).sum(axis=1)
        axes.bar(layers, specific, width=0.85, color="#B8D4E8", label="class-specific")
        axes.bar(layers, calibrated.any(axis=2).sum(axis=1), width=0.55, color="#0072B2", label="calibrated")
        axes.plot(layers, several, "o-", color="#D55E00", lw=0.9, ms=2.2, label="shared by several classes")
        axes.set_xticks(_ticks(layers))
        axes.set_ylim(0, max(1, specific.max() * 1.1))
        drawn = axes
    legend_below(whole, drawn)
    return whole


@styled
def chance_figure(
    results: Mapping[tuple[str, str], Any], copies: Mapping[str, Sequence[str]], mark: str = ""
) -> Figure:
    """Observed value (dot) against permuted labels (mean and 95 % bar), by task and model.

    Args:
        results, mark: as `layer_figure`.
        copies: label of a model -> its models in `results`, more than one where it has several seeds.
    """
    known = {place: result.row for place, result in results.items() if "permutations" in result.row}
    tasks = list(dict.fromkeys(task for task, _ in known))
    size = (8.2, 0.46 * len(tasks) + 1.6)
    whole, grid = panels(1, len(MEASURES), size, f"What chance gives{mark}", sharey=True)
    places = np.linspace(-0.24, 0.24, len(copies)) if len(copies) > 1 else [0.0]
    for axes, (name, (title, unit)) in zip(grid.flat, MEASURES.items(), strict=True):
        for (label, models), colour, place in zip(copies.items(), colours(copies).values(), places, strict=True):
            rows = [(tasks.index(task) + place, row) for (task, model), row in known.items() if model in models]
            y = [at for at, _ in rows]
            what = (name, *(f"{name}_null_{end}" for end in ("low", "high", "mean")))
            found, low, high, mean = np.array([[row[w] / ((unit and row[unit]) or 1) for _, row in rows] for w in what])
            axes.hlines(y, low, high, color=colour, lw=4, alpha=0.3)
            axes.plot(mean, y, "|", ms=6, color=colour)
            axes.plot(found, y, "o", ms=4, color=colour, label=label)
        axes.set_title(title)
        axes.grid(axis="x", lw=0.3)
    grid[0, 0].set_yticks(np.arange(len(tasks)), tasks)
    grid[0, 0].set(ylim=(len(tasks) - 0.5, -0.5), xlim=(-0.03, 1.03))
    legend_below(whole, axes, "dot: labels of the data; bar: permuted labels, mean and 95 %", columns=len(copies))
    return whole
