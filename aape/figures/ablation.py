"""Figures of the deactivation experiment, drawn from its tables alone. `all_figures` draws every one of a study.

Colours as in `aape.figures`; changes in purple (worse) to orange (better), which any colour vision tells apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aape.ablation import AblationResult
from aape.figures.style import colours, save

UNITS = {"accuracy": "accuracy, points", "log_probability": "log-probability of the\ntrue class, nats"}
SHOWN = 12  # classes side by side at most
_GREY = "#9A9A9A"


def _mark(result: AblationResult) -> str:
    return " [stand-ins]" if result.stand_in else ""


def _models(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table.model))


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).strip("_").replace("___", "_").lower()


def _shown_classes(effects: pd.DataFrame) -> tuple[list[str], bool]:
    """Targeted classes first, then the others in the task's order; of many, those that change most."""
    classes = list(dict.fromkeys(effects["class"]))
    targeted = set(effects[effects.targeted]["class"])
    others = [c for c in classes if c not in targeted]
    room = max(SHOWN - len(targeted), 0)
    if len(others) > room:
        change = effects[effects.measure == "log_probability"].groupby("class").difference
        most = change.apply(lambda d: d.abs().max()).reindex(others).nlargest(room).index
        others, cut = [c for c in others if c in set(most)], True
    else:
        cut = False
    return [c for c in classes if c in targeted] + others, cut


def change_by_class(result: AblationResult, task: str, target: str, mode: str) -> Figure:
    """In the paper's manner: the change in each class, targeted neurons against controls. A column per model.

    Bars: the target's neurons silenced, with the bootstrap interval. Grey points: layer-matched controls. Diamond: the
    paper's control (index plus one). Triangle: the neurons at their mean instead of zero. Targeted classes are bold.
    """
    mine = _of(result.effects, task, target, mode)
    controls = _of(result.controls, task, target, mode)
    controls = controls[controls.control == "layer-matched"] if len(controls) else controls
    silenced = mine[mine.kind == "silenced"]
    classes, cut = _shown_classes(silenced)
    models = _models(mine)
    figure = Figure(figsize=(max(2.2, 0.42 * len(classes)) * len(models) + 1.2, 5.6), layout="constrained")
    axes = figure.subplots(2, len(models), sharey="row", sharex=True, squeeze=False)
    title = f"{result.titles.get(task, task)}: neurons of {target} ({mode}) silenced"
    figure.suptitle(title + ("" if "stand-in" in title else _mark(result)), fontsize=10)
    for column, model in enumerate(models):
        for row, measure in enumerate(UNITS):
            axis = axes[row, column]
            here = silenced[(silenced.model == model) & (silenced.measure == measure)].set_index("class")
            here = here.reindex(classes)
            x = np.arange(len(classes))
            colour = colours(result.labels)[model]
            alpha = [1.0 if t else 0.45 for t in here.targeted]
            for i, value in enumerate(here.difference):
                axis.bar(i - 0.2, value, width=0.36, color=colour, alpha=alpha[i], zorder=2)
            errors = np.stack([here.difference - here.low, here.high - here.difference])
            axis.errorbar(
                x - 0.2, here.difference, np.nan_to_num(errors).clip(0), fmt="none", ecolor="black", lw=0.9, zorder=5
            )
            _control_points(axis, controls, model, measure, classes)
            for kind, marker, face in (("index plus one", "D", "white"), ("replaced by mean", "^", "#F0E442")):
                other = mine[(mine.kind == kind) & (mine.model == model) & (mine.measure == measure)]
                values = other.set_index("class").reindex(classes).difference
                axis.scatter(x + 0.38, values, s=16, marker=marker, c=face, edgecolors="black", lw=0.7, zorder=6)
            axis.axhline(0, color="black", lw=0.8)
            axis.spines[["top", "right"]].set_visible(False)
            if not here.difference.notna().any():
                axis.text(0.5, 0.5, "no such neurons", ha="center", transform=axis.transAxes, fontsize=8)
            if row == 0:
                size = here.neurons.dropna()
                count = f"{size.iloc[0]:.4g} neurons" if size.sum() else "no neurons"
                axis.set_title(f"{result.labels.get(model, model)}\n{count}", fontsize=8)
            if column == 0:
                axis.set_ylabel(f"change in {UNITS[measure]}", fontsize=8)
            axis.tick_params(labelsize=8)
            if row == 1:
                axis.set_xticks(x, classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
                for label, aimed in zip(axis.get_xticklabels(), alpha, strict=True):
                    label.set_fontweight("bold" if aimed == 1 else "normal")
    note = "bars: silenced, 95 % interval; grey: layer-matched controls; diamond: index plus one; triangle: at the mean"
    if cut:
        aimed_at = silenced[silenced.targeted]["class"].nunique()
        note += f"\ntargeted classes (bold) and the {len(classes) - aimed_at} others that change most"
    figure.supxlabel(note, fontsize=7)
    return figure


def _control_points(axis: Axes, controls: pd.DataFrame, model: str, measure: str, classes: Sequence[str]) -> None:
    if not len(controls):
        return
    rng = np.random.default_rng(0)
    here = controls[(controls.model == model) & (controls.measure == measure)]
    for i, name in enumerate(classes):
        values = here[here["class"] == name].difference.to_numpy()
        axis.scatter(
            i + 0.14 + rng.uniform(-0.1, 0.1, len(values)), values, s=5, color="#555555", alpha=0.5, lw=0, zorder=4
        )


def _of(table: pd.DataFrame, task: str, target: str, mode: str) -> pd.DataFrame:
    if not len(table):
        return table
    return table[(table.task == task) & (table.target == target) & (table["mode"] == mode)]


def against_controls(result: AblationResult, measure: str = "log_probability") -> Figure:
    """The targeted change as a line in the distribution of its controls; a row per target and class, a column a model."""
    effects = result.effects
    rows = effects[(effects.kind == "silenced") & effects.targeted & (effects.measure == measure)]
    keys = list(dict.fromkeys(zip(rows.task, rows.target, rows["mode"], rows["class"], strict=True)))
    models = _models(rows)
    figure = Figure(figsize=(2.7 * len(models) + 1.3, 1.35 * len(keys) + 0.9), layout="constrained")
    axes = figure.subplots(len(keys), len(models), squeeze=False)
    figure.suptitle(
        f"Change in {UNITS[measure].replace(chr(10), ' ')}: \ntargeted neurons (line) against random sets{_mark(result)}",
        fontsize=10,
    )
    kinds = (("layer-matched", _GREY, "matched by layer"), ("rate-matched", "#56B4E9", "and by rate"))
    for r, (task, target, mode, name) in enumerate(keys):
        for c, model in enumerate(models):
            axis = axes[r, c]
            row = rows[
                (rows.task == task)
                & (rows.target == target)
                & (rows["mode"] == mode)
                & (rows["class"] == name)
                & (rows.model == model)
            ]
            sets = _of(result.controls, task, target, mode)
            if len(sets):
                sets = sets[(sets.model == model) & (sets.measure == measure) & (sets["class"] == name)]
            drawn = [
                (kind, colour, label) for kind, colour, label in kinds if len(sets) and (sets.control == kind).any()
            ]
            if drawn:
                wanted = sets[sets.control.isin([k for k, _, _ in drawn])].difference
                low, high = min(wanted.min(), row.difference.min()), max(wanted.max(), row.difference.max())
                margin = 0.05 * (high - low) or 1.0
                bins = np.linspace(low - margin, high + margin, 31)
                for kind, colour, label in drawn:
                    axis.hist(sets[sets.control == kind].difference, bins=bins, color=colour, alpha=0.75, label=label)
            for value, low, high in zip(row.difference, row.low, row.high, strict=True):
                if np.isfinite(value):
                    axis.axvline(value, color=colours(result.labels)[model], lw=2.2)
                    if np.isfinite(low):
                        axis.axvspan(low, high, color=colours(result.labels)[model], alpha=0.12, lw=0)
                else:
                    axis.text(
                        0.5, 0.5, "no such neurons", ha="center", va="center", transform=axis.transAxes, fontsize=8
                    )
            if len(row) and np.isfinite(row.layer_p.iloc[0]):
                axis.set_title(
                    f"p = {row.layer_p.iloc[0]:.3g}, q = {row.layer_q.iloc[0]:.3g}", fontsize=7, loc="right", pad=2
                )
            axis.axvline(0, color="black", lw=0.6, ls=":")
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.set_yticks([])
            if not row.difference.notna().any():
                axis.set_xticks([])
            axis.spines[["top", "right", "left"]].set_visible(False)
            if c == 0:
                axis.set_ylabel(
                    f"{task}\n{target}\n$\\bf{{{name.replace('_', chr(92) + '_')}}}$",
                    fontsize=7,
                    rotation=0,
                    ha="right",
                    va="center",
                )
            if r == 0:
                axis.annotate(
                    result.labels.get(model, model), (0.5, 1.32), xycoords="axes fraction", ha="center", fontsize=8
                )
                if c == 0 and len(drawn) > 1:
                    axis.legend(fontsize=6, frameon=False)
    return figure


def off_target(result: AblationResult, task: str, measure: str = "log_probability") -> Figure | None:
    """Heatmap: the neurons of the row's class are silenced, the column's class is measured. One panel a model."""
    table = result.off_target
    if not len(table):
        return None
    table = table[(table.task == task) & (table.measure == measure)]
    classes = list(dict.fromkeys(result.effects[result.effects.task == task]["class"]))
    models = _models(table)
    small = len(classes) <= SHOWN
    side = max(2.2, (0.36 if small else 0.13) * len(classes))
    stacked = len(classes) > 25
    grid = (len(models), 1) if stacked else (1, len(models))
    figure = Figure(figsize=(grid[1] * (side + 0.9) + 1.4, grid[0] * (side + 1.0) + 0.9), layout="constrained")
    axes = figure.subplots(*grid, squeeze=False).ravel()
    title = f"{result.titles.get(task, task)}: change in {UNITS[measure].replace(chr(10), ' ')}"
    figure.suptitle(title + ("" if "stand-in" in title else _mark(result)), fontsize=10)
    largest = float(np.nanquantile(table.difference.abs(), 0.995)) or 1.0
    image = None
    for axis, model in zip(axes, models, strict=True):
        here = table[table.model == model]
        matrix = here.pivot(index="silenced", columns="class", values="difference").reindex(
            index=classes, columns=classes
        )
        axis.set_facecolor("#E5E5E5")  # a class without neurons
        image = axis.imshow(matrix, cmap="PuOr_r", vmin=-largest, vmax=largest)
        sizes = here.drop_duplicates("silenced").set_index("silenced").neurons.reindex(classes).fillna(0)
        font = 7 if small else 5.5
        names = [f"{c} ({sizes[c]:.3g})" for c in classes]
        axis.set_yticks(range(len(classes)), names, fontsize=font)
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=font)
        axis.set_title(result.labels.get(model, model), fontsize=8)
        if small:
            for i, j in np.ndindex(matrix.shape):
                value = matrix.iat[i, j]
                if np.isfinite(value):
                    light = abs(value) > 0.6 * largest
                    axis.text(
                        j,
                        i,
                        f"{value:.2f}".replace("-0.00", "0.00"),
                        ha="center",
                        va="center",
                        fontsize=5.5,
                        color="white" if light else "black",
                        fontweight="bold" if i == j else "normal",
                    )
    figure.supxlabel("class measured", fontsize=8)
    figure.supylabel("neurons silenced (how many)", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes.tolist(), shrink=0.7, pad=0.01).ax.tick_params(labelsize=7)
    return figure


def dose_response(result: AblationResult, measure: str = "log_probability") -> Figure | None:
    """Change in the targeted classes by gain, from silenced (0) over intact (1) to doubled (2). A panel a target."""
    table = result.gains
    if not len(table):
        return None
    table = table[table.measure == measure]
    keys = list(dict.fromkeys(zip(table.task, table.target, table["mode"], strict=True)))
    columns = min(len(keys), 4)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.6, 2.5 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.suptitle(f"Dose response: the target's neurons multiplied by a gain{_mark(result)}", fontsize=10)
    styles = ["-", "--", ":", "-."]
    for axis, (task, target, mode) in zip(axes, keys, strict=False):
        here = _of(table, task, target, mode)
        for model in _models(here):
            for i, name in enumerate(dict.fromkeys(here["class"])):
                line = here[(here.model == model) & (here["class"] == name)].sort_values("gain")
                axis.plot(
                    line.gain,
                    line.difference,
                    styles[i % len(styles)],
                    color=colours(result.labels)[model],
                    marker=".",
                    ms=4,
                    lw=1.3,
                    label=f"{result.labels.get(model, model)}, {name}",
                )
        axis.axhline(0, color="black", lw=0.6)
        axis.axvline(1, color="black", lw=0.6, ls=":")
        axis.set_title(f"{task}: {target} ({mode})", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=5.5, frameon=False)
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    figure.supxlabel("gain (0: silenced, 1: intact)", fontsize=8)
    figure.supylabel(f"change in {UNITS[measure].replace(chr(10), ' ')}", fontsize=8)
    return figure


def all_figures(result: AblationResult) -> dict[str, Figure]:
    """Every figure of a study by file name (without suffix)."""
    found: dict[str, Figure | None] = {}
    effects = result.effects
    for task, target, mode in dict.fromkeys(zip(effects.task, effects.target, effects["mode"], strict=True)):
        found[f"ablation_{task}-{_slug(target)}-{mode}"] = change_by_class(result, task, target, mode)
    found["ablation_controls"] = against_controls(result)
    for task in dict.fromkeys(effects.task):
        found[f"ablation_off_target-{task}"] = off_target(result, task)
    found["ablation_gains"] = dose_response(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def save_all(result: AblationResult, directory: Path | None = None) -> dict[str, Path]:
    """Write every figure as PDF and PNG; name -> path of the PNG."""
    where = result.directory if directory is None else directory
    return {name: save(figure, where, name) for name, figure in all_figures(result).items()}


def show(result: AblationResult) -> Any:
    """In a notebook: save every figure and show the PNGs with their names."""
    from IPython.display import Image, Markdown, display

    for name, path in save_all(result).items():
        display(Markdown(f"`{name}.pdf`"), Image(filename=str(path)))
