"""Figures of the deactivation experiment, drawn from its tables. `all_figures` draws every one of a study.

Changes in purple (worse) to orange (better), which any colour vision tells apart.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from aape.figures.style import colours, legend_below, panels, save, styled
from aape.study.ablation_result import AblationResult

UNITS = {"accuracy": "accuracy, points", "log_probability": "log-probability, nats"}
KINDS = {"mean": "mean-ablated", "zero": "silenced"}
GREY = "#8C8C8C"
SHOWN = 12  # classes side by side at most
WIDE = 20  # ratio of the largest to the median effect from which a scale is logarithmic


def readable(name: str) -> str:
    """A class name as a figure shows it."""
    return name.replace("_", " ")


def _title(result: AblationResult, text: str) -> str:
    return text + (" [substitute models or sounds]" if result.substitute else "")


def _pick(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Rows where each of these columns has its value."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def _distinct(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """Values that some columns have together, in order of appearance."""
    return table[list(columns)].drop_duplicates().to_dict("records")  # type: ignore[return-value]


@styled
def forest(result: AblationResult, measure: str = "log_probability") -> Figure:
    """The effect of each target's neurons next to those of random sets: a row per target, class and model.

    Diamond: the class's neurons, with a 95 % interval. Grey bar: the 95 % range of activity-matched sets. Dashed line: that
    of sets without the target's neurons. Triangle: an effect further left would have been significant. The columns at the
    right: neurons, share of them in an activity-matched set, number of sets, and q; a star where no set was as low.
    """
    rows = result.summary(measure)
    rows = rows[rows.effect.notna()].reset_index(drop=True)
    tested = rows[rows.active_q.notna()]
    significant = int((tested.active_q < 0.05).sum())
    title = f"{significant} of {len(tested)} targeted classes fall significantly further than with activity-matched random neurons"
    figure, grid = panels(1, 1, (9.0, 1.9 + 0.3 * len(rows)), _title(result, title))
    axis = grid[0, 0]
    colour = colours(result.labels)
    for y, row in rows.iterrows():
        style = {"solid_capstyle": "butt", "zorder": 1}
        axis.plot([row.active_low, row.active_high], [y, y], color="#CFCFCF", lw=7, **style)
        axis.plot([row.active_mean] * 2, [y - 0.25, y + 0.25], color=GREY, lw=1.2)
        axis.plot([row.disjoint_low, row.disjoint_high], [y + 0.33] * 2, color=GREY, lw=1, ls="--")
        axis.plot([row.effect_low, row.effect_high], [y, y], color=colour[row.model], lw=1.2)
        axis.scatter(row.effect, y, s=26, marker="D", color=colour[row.model], zorder=3)
        axis.scatter(row.detectable, y - 0.33, s=14, marker="v", color="black", lw=0)
    names = zip(rows.target, rows["class"], rows.task, strict=True)
    axis.set_yticks(range(len(rows)), [_row_name(result, *name) for name in names])
    axis.set_ylim(len(rows) - 0.4, -0.8)
    axis.axvline(0, color="black", lw=0.6, ls=":")
    _spread(axis, rows.effect.to_numpy())
    axis.set_xlabel(
        f"change in {UNITS[measure]}, minus that of other classes   (left: its own class falls further)"
    )
    _columns(axis, rows)
    for model in rows.model.unique():
        axis.scatter(
            [],
            [],
            marker="D",
            s=26,
            color=colour[model],
            label=f"{result.labels.get(model, model)}, 95 % interval",
        )
    axis.plot([], [], color="#CFCFCF", lw=7, label="activity-matched sets, 95 % of them")
    axis.plot([], [], color=GREY, lw=1, ls="--", label="the same without the target's neurons")
    axis.scatter(
        [], [], marker="v", s=14, color="black", lw=0, label="further left, q < 0.05 (power)"
    )
    legend_below(figure, axis, "* no random set was as low: q would be smaller with more sets")
    return figure


def _row_name(result: AblationResult, target: str, class_name: str, task: str) -> str:
    name = (
        readable(class_name)
        if target == class_name
        else f"{readable(class_name)} (neurons of {readable(target)})"
    )
    return f"{name}, {result.titles.get(task, task)}"


def _spread(axis: Axes, effects: np.ndarray) -> None:
    """A symmetric logarithmic scale where single effects are many times larger than most."""
    sizes = np.abs(effects[np.isfinite(effects)])
    typical = float(np.median(sizes)) if len(sizes) else 0.0
    if typical and sizes.max() > WIDE * typical:
        axis.set_xscale("symlog", linthresh=typical)


def _columns(axis: Axes, rows: pd.DataFrame) -> None:
    """Numbers at the right of each row."""
    texts = {
        "neurons": [f"{value:,.4g}" for value in rows.neurons],
        "overlap": [f"{value:.0%}" if np.isfinite(value) else "" for value in rows.overlap],
        "sets": [f"{value:,.0f}" for value in rows.active_controls],
        "q": [
            f"{q:.2g}{' *' * bool(floor)}"
            for q, floor in zip(rows.active_q, rows.at_floor, strict=True)
        ],
    }
    for place, (name, column) in enumerate(texts.items()):
        x = 1.06 + 0.1 * place
        axis.text(x, 1.0, name, transform=axis.transAxes, ha="center", va="bottom", fontsize=7)
        for y, text in enumerate(column):
            axis.text(
                x,
                y,
                text,
                transform=axis.get_yaxis_transform(),
                ha="center",
                va="center",
                fontsize=7,
            )


@styled
def change_by_class(result: AblationResult, task: str, target: str, mode: str) -> Figure | None:
    """In the paper's manner: the change in each class. A row per measure, a column per model that has such neurons.

    Bars: the first way of changing the neurons, with a 95 % interval; those of targeted classes are darker. Grey: the 95 %
    range of activity-matched sets.
    """
    rows = _pick(result.effects, task=task, target=target, mode=mode, kind=result.headline)
    rows = rows[rows.difference.notna()]
    if rows.empty:
        return None
    controls = _pick(
        result.controls,
        task=task,
        target=target,
        mode=mode,
        kind=result.headline,
        control="activity-matched",
    )
    classes, models, colour = _shown_classes(rows), rows.model.unique(), colours(result.labels)
    ranks = rows[rows.targeted & (rows.measure == "log_probability")]["rank"]
    title = (
        f"{result.titles.get(task, task)}, neurons of {readable(target)} ({mode}) {KINDS[result.headline]}:\n"
        f"no class falls further than the targeted one in {(ranks == 1).sum()} of {len(ranks)} cases"
    )
    size = (max(2.2, 0.42 * len(classes)) * len(models) + 1.4, 5.4)
    figure, grid = panels(2, len(models), size, _title(result, title), sharey="row", sharex=True)
    for (r, c), axis in np.ndenumerate(grid):
        model, measure = models[c], list(UNITS)[r]
        here = _pick(rows, model=model, measure=measure).set_index("class").reindex(classes)
        opaque = [
            to_rgba(colour[model], 1.0 if targeted is True else 0.4) for targeted in here.targeted
        ]
        axis.bar(range(len(classes)), here.difference, width=0.6, color=opaque, zorder=2)
        axis.vlines(range(len(classes)), here.low, here.high, color="black", lw=0.9, zorder=4)
        sets = _pick(controls, model=model, measure=measure).groupby("class").difference
        for name, values in sets:
            if name in classes:
                ends = np.percentile(values, [2.5, 97.5])
                axis.plot(
                    [classes.index(str(name)) + 0.4] * 2,
                    ends,
                    color=GREY,
                    lw=4,
                    solid_capstyle="butt",
                )
        axis.axhline(0, color="black", lw=0.8)
        if r == 0:
            axis.set_title(f"{result.labels.get(model, model)}, {here.neurons.max():,.4g} neurons")
        if c == 0:
            axis.set_ylabel(f"change in {UNITS[measure]}")
        names = [readable(name) for name in classes]
        axis.set_xticks(
            range(len(classes)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8
        )
    figure.supxlabel(
        "bars: 95 % interval over groups of clips; grey: 95 % of activity-matched random sets",
        fontsize=7,
    )
    return figure


def _shown_classes(rows: pd.DataFrame) -> list[str]:
    """Classes in the task's order; of many, the targeted ones and those that change most."""
    in_nats = rows[rows.measure == "log_probability"]
    change = in_nats.difference.abs().where(~in_nats.targeted, np.inf)
    largest = change.groupby(in_nats["class"], sort=False).max()
    kept = largest.nlargest(max(SHOWN, int(np.isinf(largest).sum()))).index
    return [str(name) for name in largest.index if name in kept]


@styled
def off_target(
    result: AblationResult, task: str, measure: str = "log_probability"
) -> Figure | None:
    """Heat map: the neurons of the row's class are changed, the column's class is measured. A panel per model."""
    table = _pick(result.off_target, task=task, measure=measure)
    if table.empty:
        return None
    classes, models = table["class"].unique(), table.model.unique()
    falls_most, all_rows = _own_class_falls_most(table)
    clips = sorted(set(table.clips))
    number = (
        f"{clips[0]:.0f} clips" if len(clips) == 1 else f"{clips[0]:.0f} to {clips[-1]:.0f} clips"
    )
    title = f"{result.titles.get(task, task)}: the class itself falls most in {falls_most} of {all_rows} rows ({number} per class)"
    down, across = (len(models), 1) if len(classes) > 25 else (1, len(models))
    small = len(classes) <= SHOWN
    side = max(2.2, (0.36 if small else 0.13) * len(classes))
    size = (across * (side + 0.9) + 1.6, down * (side + 1.0) + 0.9)
    figure, grid = panels(down, across, size, _title(result, title))
    largest = float(np.nanquantile(table.difference.abs(), 0.995)) or 1.0
    names = [readable(name) for name in classes]
    for axis, model in zip(grid.flat, models, strict=True):
        here = _pick(table, model=model)
        matrix = here.pivot(index="silenced", columns="class", values="difference").reindex(
            classes, columns=classes
        )
        axis.set_facecolor("#E5E5E5")  # a class without neurons
        image = axis.imshow(matrix, cmap="PuOr_r", vmin=-largest, vmax=largest)
        axis.set_yticks(range(len(classes)), names, fontsize=7 if small else 5.5)
        axis.set_xticks(range(len(classes)), names, rotation=90, fontsize=7 if small else 5.5)
        axis.set_title(result.labels.get(model, model))
    figure.supxlabel("class measured", fontsize=8)
    figure.supylabel(f"class whose neurons are {KINDS[result.headline]}", fontsize=8)
    bar = figure.colorbar(image, ax=grid, shrink=0.7, pad=0.01, extend="both")
    bar.set_label(f"change in {UNITS[measure]}", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def _own_class_falls_most(table: pd.DataFrame) -> tuple[int, int]:
    """In how many rows (models and silenced classes) no class falls further than the silenced one; and of how many."""
    lowest = table.loc[table.groupby(["model", "silenced"]).difference.idxmin()]
    return int((lowest["class"] == lowest.silenced).sum()), len(lowest)


@styled
def dose_response(result: AblationResult, measure: str = "log_probability") -> Figure | None:
    """Change in the targeted classes by gain, from silenced (0) over intact (1). A row per target, a column per model."""
    table = _pick(result.gains, measure=measure)
    if table.empty:
        return None
    targets, models, colour = (
        _distinct(table, "task", "target", "mode"),
        table.model.unique(),
        colours(result.labels),
    )
    silenced, amplified = _pick(table, gain=0.0), table[table.gain == table.gain.max()]
    title = (
        f"Silenced, {(silenced.difference < 0).sum()} of {len(silenced)} targeted classes fall; at a gain of "
        f"{table.gain.max():g}, {(amplified.difference > 0).sum()} of {len(amplified)} rise"
    )
    size = (2.8 * len(models) + 0.8, 2.1 * len(targets) + 0.9)
    figure, grid = panels(len(targets), len(models), size, _title(result, title), sharex=True)
    for (r, c), axis in np.ndenumerate(grid):
        here = _pick(table, **targets[r], model=models[c]).sort_values("gain")
        styles = dict(
            zip(here["class"].unique(), itertools.cycle(["-", "--", ":", "-."]), strict=False)
        )
        for name, line in here.groupby("class", sort=False):
            style = {
                "ls": styles[name],
                "color": colour[models[c]],
                "marker": ".",
                "ms": 4,
                "lw": 1.3,
            }
            axis.plot(line.gain, line.difference, label=readable(str(name)), **style)
        if c == len(models) - 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axis.axhline(0, color="black", lw=0.6)
        axis.axvline(1, color="black", lw=0.6, ls=":")
        task, target = targets[r]["task"], readable(targets[r]["target"])
        axis.set_title(
            f"{result.labels.get(models[c], models[c])}: {target}, {result.titles.get(task, task)}",
            fontsize=7,
        )
    figure.supxlabel("gain (0: silenced, 1: intact)", fontsize=8)
    figure.supylabel(f"change in {UNITS[measure]}", fontsize=8)
    return figure


def all_figures(result: AblationResult) -> dict[str, Figure]:
    """Every figure of a study by file name (without suffix), the comparison with random neurons first."""
    found: dict[str, Figure | None] = {"ablation_controls": forest(result)}
    for stated in _distinct(result.effects, "task", "target", "mode"):
        slug = re.sub(r"\W+", "_", stated["target"]).strip("_").lower()
        names = (
            f"ablation_{stated['task']}-{slug}{n}-{stated['mode']}"
            for n in itertools.chain([""], itertools.count(2))
        )
        found[next(name for name in names if name not in found)] = change_by_class(result, **stated)
    found |= {
        f"ablation_off_target-{task}": off_target(result, task)
        for task in result.effects.task.unique()
    }
    found["ablation_gains"] = dose_response(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def show(result: AblationResult) -> None:
    """In a notebook: save every figure as PDF and PNG, and show the PNGs."""
    from IPython.display import Image, display

    for name, figure in all_figures(result).items():
        display(Image(filename=str(save(figure, result.directory, name))))
