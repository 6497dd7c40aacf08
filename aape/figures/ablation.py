"""Figures of the deactivation experiment, drawn from its tables alone. `all_figures` draws every one of a study.

Changes in purple (worse) to orange (better), which any colour vision tells apart.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aape.ablation import AblationResult
from aape.figures.style import colours, nothing, save

UNITS = {"accuracy": "accuracy, points", "log_probability": "log-probability, nats"}
KINDS = {"mean": "at their mean", "zero": "silenced", "resample": "resampled"}
MARKERS = {"zero": "^", "resample": "o", "mean": "s", "zero, index plus one": "D"}
RANDOM = {"layer-matched": ("#9A9A9A", "as many in each layer"), "as active in the classes": ("#56B4E9", "as active")}
SHOWN = 12  # classes side by side at most


def _title(result: AblationResult, text: str, task: str = "") -> str:
    """With the task in front, and the mark of stand-ins, once."""
    title = f"{result.titles.get(task, task)}: {text}" if task else text
    return title + (" [stand-ins]" if result.stand_in and "stand-in" not in title else "")


def _pick(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Rows where each of these columns has its value."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def _seen(table: pd.DataFrame, *columns: str) -> list[Any]:
    """The values of a column, or of several together, in order of appearance."""
    return list(dict.fromkeys(zip(*(table[c] for c in columns), strict=True) if columns[1:] else table[columns[0]]))


def _plain(axis: Axes, *hidden: str) -> None:
    axis.spines[["top", "right", *hidden]].set_visible(False)
    axis.tick_params(labelsize=7)


def _shown_classes(rows: pd.DataFrame) -> list[str]:
    """Classes in the task's order; of many, the targeted ones and those that change most."""
    targeted = set(rows[rows.targeted]["class"])
    others = _pick(rows, targeted=False, measure="log_probability").groupby("class").difference
    most = others.apply(lambda d: d.abs().max()).nlargest(max(SHOWN - len(targeted), 0)).index
    return [c for c in _seen(rows, "class") if c in targeted or c in most]


def change_by_class(result: AblationResult, task: str, target: str, mode: str) -> Figure:
    """In the paper's manner: the change in each class. A column per model.

    Bars: the headline's way of changing the neurons, with its interval. Markers: the other ways, and the paper's
    control (index plus one). Grey points: sets as active in the targeted classes, whose names are bold.
    """
    at = {"task": task, "target": target, "mode": mode}
    mine, head = _pick(result.effects, **at), result.headline
    controls = _pick(result.controls, **at, kind=head, control="as active in the classes")
    bars = mine[mine.kind == head]
    classes, models, colour = _shown_classes(bars), _seen(mine, "model"), colours(result.labels)
    figure = Figure(figsize=(max(2.2, 0.42 * len(classes)) * len(models) + 1.2, 5.6), layout="constrained")
    axes = figure.subplots(2, len(models), sharey="row", sharex=True, squeeze=False)
    figure.suptitle(_title(result, f"neurons of {target} ({mode}) {KINDS[head]}", task), fontsize=10)
    rng, place = np.random.default_rng(0), np.arange(len(classes))
    for (row, column), axis in np.ndenumerate(axes):
        at = {"model": models[column], "measure": list(UNITS)[row]}
        here = _pick(bars, **at).set_index("class").reindex(classes)
        shade = [to_rgba(colour[models[column]], 1.0 if targeted else 0.45) for targeted in here.targeted]
        axis.bar(place - 0.2, here.difference, width=0.36, color=shade, zorder=2)
        axis.vlines(place - 0.2, here.low, here.high, color="black", lw=0.9, zorder=5)
        sets = _pick(controls, **at).set_index("class").difference.loc[lambda d: d.index.isin(classes)]
        x = pd.Index(classes).get_indexer(sets.index) + rng.uniform(0.04, 0.24, len(sets))
        axis.scatter(x, sets, s=5, color="#555555", alpha=0.5, lw=0)
        for kind in [kind for kind in MARKERS if kind != head]:
            other = _pick(mine, **at, kind=kind).set_index("class").difference.reindex(classes)
            style = {"s": 16, "marker": MARKERS[kind], "c": "white", "edgecolors": "black", "lw": 0.7, "zorder": 6}
            axis.scatter(place + 0.38, other, label=KINDS.get(kind, kind), **style)
        axis.axhline(0, color="black", lw=0.8)
        _plain(axis)
        if not here.difference.notna().any():
            nothing(axis, "no such neurons")
        axis.set_title("" if row else f"{result.labels[models[column]]}\n{here.neurons.max():.4g} neurons", fontsize=8)
        axis.set_ylabel("" if column else f"change in {UNITS[at['measure']]}", fontsize=8)
        if row == 1:
            axis.set_xticks(place, classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
            for text, targeted in zip(axis.get_xticklabels(), here.targeted, strict=True):
                text.set_fontweight("bold" if targeted else "normal")
    cut = "; of the other classes those that change most" if len(classes) < bars["class"].nunique() else ""
    shown = axes[0, 0].get_legend_handles_labels()
    legend = figure.legend(*shown, loc="outside lower center", ncols=3, frameon=False, fontsize=7, title_fontsize=7)
    legend.set_title(f"bars: {KINDS[head]}, 95 % interval; grey: sets as active in the class{cut}")
    return figure


def against_controls(result: AblationResult, measure: str = "log_probability") -> Figure:
    """The effect on a targeted class as a line in the distribution of its controls; a row per target and class."""
    rows = _pick(result.effects, kind=result.headline, targeted=True, measure=measure)
    columns = ["task", "target", "mode", "class"]
    keys, models, colour = _seen(rows, *columns), _seen(rows, "model"), colours(result.labels)
    figure = Figure(figsize=(2.7 * len(models) + 1.3, 1.35 * len(keys) + 0.9), layout="constrained")
    axes = figure.subplots(len(keys), len(models), squeeze=False)
    text = f"Change in {UNITS[measure]}, that of other classes taken off:\n"
    figure.suptitle(_title(result, text + f"neurons {KINDS[result.headline]} (line) against random sets"), fontsize=10)
    for (r, c), axis in np.ndenumerate(axes):
        at = dict(zip(columns, keys[r], strict=True)) | {"model": models[c]}
        line: Any = _pick(rows, **at).iloc[0]
        sets = _pick(result.controls, **at, measure=measure, kind=result.headline)
        _plain(axis, "left")
        axis.set_yticks([])
        axis.xaxis.set_major_locator(MaxNLocator(5))
        if not np.isfinite(line.effect):
            nothing(axis, "no such neurons")
            axis.set_xticks([])
        else:
            bins = np.histogram_bin_edges([*sets.effect, line.effect], 30)
            for kind, (face, label) in RANDOM.items():
                if len(drawn := sets[sets.control == kind].effect):
                    axis.hist(drawn, bins=bins, density=True, color=face, alpha=0.75, label=label)
            axis.axvline(line.effect, color=colour[models[c]], lw=2.2)
            axis.axvspan(line.effect_low, line.effect_high, color=colour[models[c]], alpha=0.12, lw=0)
            axis.axvline(0, color="black", lw=0.6, ls=":")
            if np.isfinite(line.active_p):
                axis.set_title(f"p = {line.active_p:.3g}, q = {line.active_q:.3g}", fontsize=7, loc="right", pad=2)
        if c == 0:
            text = "\n".join([at["task"], at["target"], f"class {at['class']}"])
            axis.set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center")
        if r == 0:
            axis.annotate(result.labels[models[c]], (0.5, 1.32), xycoords="axes fraction", ha="center", fontsize=8)
    if len(result.controls):
        axes[0, 0].legend(fontsize=6, frameon=False)
    return figure


def off_target(result: AblationResult, task: str, measure: str = "log_probability") -> Figure | None:
    """Heatmap: the neurons of the row's class are changed, the column's class is measured. One panel a model."""
    if not len(table := _pick(result.off_target, task=task, measure=measure)):
        return None
    classes, models = _seen(table, "class"), _seen(table, "model")
    small = len(classes) <= SHOWN
    font, side = 7 if small else 5.5, max(2.2, (0.36 if small else 0.13) * len(classes))
    grid = (len(models), 1) if len(classes) > 25 else (1, len(models))
    figure = Figure(figsize=(grid[1] * (side + 0.9) + 1.4, grid[0] * (side + 1.0) + 0.9), layout="constrained")
    axes = figure.subplots(*grid, squeeze=False).ravel()
    figure.suptitle(_title(result, f"change in {UNITS[measure]}, a few clips of each class", task), fontsize=10)
    largest = float(np.nanquantile(table.difference.abs(), 0.995)) or 1.0
    for axis, model in zip(axes, models, strict=True):
        here = _pick(table, model=model)
        matrix = here.pivot(index="silenced", columns="class", values="difference").reindex(classes, columns=classes)
        sizes = here.groupby("silenced").neurons.first().reindex(classes, fill_value=0)
        axis.set_facecolor("#E5E5E5")  # a class without neurons
        image = axis.imshow(matrix, cmap="PuOr_r", vmin=-largest, vmax=largest)
        axis.set_yticks(range(len(classes)), [f"{c} ({sizes[c]:.3g})" for c in classes], fontsize=font)
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=font)
        axis.set_title(result.labels[model], fontsize=8)
        for i, j in np.argwhere(matrix.notna().to_numpy() & small):
            value = round(matrix.iat[i, j], 2) + 0.0  # no -0.00
            ink, weight = "white" if abs(value) > 0.6 * largest else "black", "bold" if i == j else "normal"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=ink, fontweight=weight)
    figure.supxlabel("class measured", fontsize=8)
    figure.supylabel(f"neurons {KINDS[result.headline]} (how many)", fontsize=8)
    figure.colorbar(image, ax=axes.tolist(), shrink=0.7, pad=0.01).ax.tick_params(labelsize=7)
    return figure


def dose_response(result: AblationResult, measure: str = "log_probability") -> Figure | None:
    """Change in the targeted classes by gain, from silenced (0) over intact (1) to doubled (2). A panel a target."""
    if not len(table := _pick(result.gains, measure=measure)):
        return None
    targets, colour = _seen(table, "task", "target", "mode"), colours(result.labels)
    across, down = min(len(targets), 4), -(-len(targets) // 4)
    figure = Figure(figsize=(2.6 * across + 0.6, 2.5 * down + 0.8), layout="constrained")
    figure.suptitle(_title(result, "Dose response: the target's neurons multiplied by a gain"), fontsize=10)
    for place, (task, target, mode) in enumerate(targets, 1):
        axis = figure.add_subplot(down, across, place)
        here = _pick(table, task=task, target=target, mode=mode)
        styles = dict(zip(_seen(here, "class"), ["-", "--", ":", "-."] * len(here), strict=False))
        for (model, name), line in here.sort_values("gain").groupby(["model", "class"], sort=False):
            style = {"color": colour[model], "linestyle": styles[name], "marker": ".", "ms": 4, "lw": 1.3}
            axis.plot(line.gain, line.difference, label=f"{result.labels[model]}, {name}", **style)
        axis.axhline(0, color="black", lw=0.6)
        axis.axvline(1, color="black", lw=0.6, ls=":")
        axis.set_title(f"{task}: {target} ({mode})", fontsize=8)
        _plain(axis)
        axis.legend(fontsize=5.5, frameon=False)
    figure.supxlabel("gain (0: silenced, 1: intact)", fontsize=8)
    figure.supylabel(f"change in {UNITS[measure]}", fontsize=8)
    return figure


def all_figures(result: AblationResult) -> dict[str, Figure]:
    """Every figure of a study by file name (without suffix)."""
    found: dict[str, Figure | None] = {}
    for task, target, mode in _seen(result.effects, "task", "target", "mode"):
        slug = re.sub(r"\W+", "_", target).strip("_").lower()
        found[f"ablation_{task}-{slug}-{mode}"] = change_by_class(result, task, target, mode)
    found["ablation_controls"] = against_controls(result)
    found |= {f"ablation_off_target-{task}": off_target(result, task) for task in _seen(result.effects, "task")}
    found["ablation_gains"] = dose_response(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def show(result: AblationResult) -> None:
    """In a notebook: save every figure as PDF and PNG, and show the PNGs with their names."""
    from IPython.display import Image, Markdown, display

    for name, figure in all_figures(result).items():
        path = save(figure, result.directory, name)
        display(Markdown(f"`{name}.pdf`"), Image(filename=str(path)))


def criteria(summary: pd.DataFrame, title: str, mode: str = "mean") -> Figure:
    """What each criterion's neurons do to their class, beside random sets: a panel per judge, the deepest fall on top.

    Args:
        summary: `aape.contest.Contest.summary()`.
        title: whose neurons.
        mode: how they are changed.
    """
    rows = _pick(summary, mode=mode)
    order = _pick(rows, judge="linear").sort_values("effect", ascending=False, kind="stable").criterion
    judges = _seen(rows, "judge")
    figure = Figure(figsize=(8.4, 1.4 + 0.25 * len(order)), layout="constrained")
    for axis, judge in zip(figure.subplots(1, len(judges), sharey=True), judges, strict=True):
        of = _pick(rows, judge=judge).set_index("criterion").loc[order]
        own = {"color": "#0072B2", "label": "its neurons, 95 % over classes"}
        axis.errorbar(of.effect, order, xerr=[of.effect - of.low, of.high - of.effect], fmt="D", ms=4, **own)
        for less, colour, name in (("less_active", "#E69F00", "as active"), ("less_strong", "#7F7F7F", "as strong")):
            axis.scatter(of.effect - of[less], order, s=14, color=colour, label=f"random, {name}", zorder=3)
        axis.axvline(0, color="0.8", lw=1, zorder=0)
        axis.set_title(f"judge: {judge}", fontsize=9)
        axis.set_xlabel("change in the class less that in the others, nats", fontsize=8)
        _plain(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(f"{title}: neurons {KINDS[mode]}", fontsize=10)
    return figure
