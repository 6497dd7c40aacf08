"""Figures of activity and selection: how active each layer is, where the neurons sit, and what chance gives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aape.artifacts import Artifacts
from aape.figures.style import colours, nothing

MEASURES = {  # column -> title, and the column that it is a share of
    "coverage": ("coverage", None),
    "per_class_mean": ("neurons per class", None),
    "classes_per_neuron": ("classes per neuron\n(share of all classes)", "classes"),
    "mean_aape": ("mean AAPE\n(share of ln classes)", "ln_classes"),
}


def activity_by_layer(artifacts: Artifacts) -> Figure:
    """Share of active tokens of every neuron by layer: median, quartiles and 5 to 95 % of the neurons."""
    share = artifacts.over_zero.double().mean(dim=2).numpy()  # [layers, neurons], classes weigh the same
    layers = np.arange(len(share))
    low, first, median, third, high = np.quantile(share, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
    figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
    axes.fill_between(layers, low, high, color="#0072B2", alpha=0.15, lw=0, label="5 to 95 % of neurons")
    axes.fill_between(layers, first, third, color="#0072B2", alpha=0.3, lw=0, label="quartiles")
    axes.plot(layers, median, color="#0072B2", marker="o", ms=4, label="median neuron")
    never = (artifacts.over_zero == 0).all(dim=2).sum(dim=1).numpy()
    axes.set_xticks(layers, [f"{layer}\n{n} never\nactive" if n else str(layer) for layer, n in enumerate(never)])
    axes.set(xlabel="layer", ylabel="share of active tokens", ylim=(0, None))
    name = artifacts.manifest.get("encoder", artifacts.path.name)
    axes.set_title(f"{name} on {artifacts.manifest.get('task', 'unknown task')}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def layer_figure(results: Mapping[tuple[str, str], Any], labels: Mapping[str, str], mark: str = "") -> Figure:
    """Where the neurons sit: class-specific, calibrated, and shared by several classes, by layer.

    Args:
        results: (task, model) -> aape.analysis.TaskResult. labels: model -> its name; a column each.
        mark: a word for the title, such as "stand-ins".
    """
    tasks = list(dict.fromkeys(task for task, _ in results))
    models = [model for model in labels if any(key[1] == model for key in results)]
    whole = Figure(figsize=(2.3 * len(models) + 0.8, 1.05 * len(tasks) + 0.9), layout="constrained")
    grid = whole.subplots(len(tasks), len(models), squeeze=False, sharex="col")
    handles: dict[str, Any] = {}
    for axes, (task, model) in zip(grid.flat, itertools.product(tasks, models), strict=True):
        result = results.get((task, model))
        axes.tick_params(labelsize=6)
        axes.set_title(labels[model] if task == tasks[0] else "", fontsize=8)
        axes.set_ylabel(task if model == models[0] else "", fontsize=7)
        axes.set_xlabel("layer" if task == tasks[-1] else "", fontsize=7)
        if result is None:
            nothing(axes, "no artifacts")
            continue
        specific, several = result.members.any(axis=2).sum(axis=1), (result.members.sum(axis=2) > 1).sum(axis=1)
        layers, alive = np.arange(len(specific)), result.calibrated.any(axis=2).sum(axis=1)
        handles["class-specific"] = axes.bar(layers, specific, width=0.85, color="#B8D4E8")
        handles["calibrated"] = axes.bar(layers, alive, width=0.55, color="#0072B2")
        (handles["shared by several classes"],) = axes.plot(layers, several, "o-", color="#D55E00", lw=0.9, ms=2.2)
        axes.set_xticks(layers)
        axes.set_ylim(0, max(1, specific.max() * 1.1))
    whole.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    whole.suptitle("Neurons by layer" + (f" [{mark}]" if mark else ""), fontsize=10)
    return whole


def chance_figure(
    results: Mapping[tuple[str, str], Any], copies: Mapping[str, Sequence[str]], mark: str = ""
) -> Figure:
    """Observed value (dot) against permuted labels (mean and 95 % bar), by task and model.

    Args:
        results: as `layer_figure`. copies: label of a model -> its models in `results`, more than one where it has
            several seeds. mark: as `layer_figure`.
    """
    known = {place: result.row for place, result in results.items() if "permutations" in result.row}
    tasks = list(dict.fromkeys(task for task, _ in known))
    whole = Figure(figsize=(8.2, 0.46 * len(tasks) + 1.6), layout="constrained")
    handles: dict[str, Any] = {}
    places = np.linspace(-0.24, 0.24, len(copies)) if len(copies) > 1 else [0.0]
    panels = whole.subplots(1, len(MEASURES), sharey=True)
    for axes, (name, (title, unit)) in zip(panels, MEASURES.items(), strict=True):
        for (label, models), colour, place in zip(copies.items(), colours(copies).values(), places, strict=True):
            for (task, model), row in known.items():
                if model not in models:
                    continue
                y, scale = tasks.index(task) + place, (row[unit] or 1) if unit else 1
                low, high, mean = (row[f"{name}_null_{end}"] / scale for end in ("low", "high", "mean"))
                axes.plot([low, high], [y, y], color=colour, lw=4, alpha=0.3, solid_capstyle="butt")
                axes.plot(mean, y, marker="|", ms=6, color=colour)
                handles[label] = axes.plot(row[name] / scale, y, marker="o", ms=4, ls="", color=colour)[0]
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", lw=0.3)
    panels[0].set_yticks(np.arange(len(tasks)), tasks)
    panels[0].set(ylim=(len(tasks) - 0.5, -0.5), xlim=(-0.03, 1.03))
    place = {"loc": "outside lower center", "ncols": len(copies), "fontsize": 7, "title_fontsize": 7, "frameon": False}
    whole.legend(
        handles.values(), handles, title="dot: labels of the data; bar: permuted labels, mean and 95 %", **place
    )
    whole.suptitle("What chance gives" + (f" [{mark}]" if mark else ""), fontsize=10)
    return whole
