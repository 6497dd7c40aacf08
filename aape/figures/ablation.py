"""Figures of the deactivation experiment, drawn from its tables alone. `all_figures` draws every one of a study.

Changes in purple (worse) to orange (better), which any colour vision tells apart.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aape.figures.style import colours, legend_below, nothing, panels, save, styled
from aape.study.ablation_result import AblationResult

UNITS = {"accuracy": "accuracy, points", "log_probability": "log-probability, nats"}
KINDS = {"mean": "mean-ablated", "zero": "silenced"}
MARKERS = {"zero": "^", "mean": "s", "zero, index plus one": "D"}
RANDOM = {"as active in the classes": ("#56B4E9", "as active")}
SHOWN = 12  # classes side by side at most


def _many(neurons: float) -> str:
    """How many neurons, with a decimal where folds differ."""
    return f"{round(float(neurons), 1):,g}"


def _title(result: AblationResult, text: str, task: str = "") -> str:
    """With the task in front, and the mark of stand-ins, once."""
    title = f"{result.titles.get(task, task)}: {text}" if task else text
    return title + (" [stand-ins]" if result.stand_in and "stand-in" not in title else "")


def _pick(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Rows where each of these columns has its value."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def _seen(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """What stands in some columns together, each once, in order of appearance."""
    return table[list(columns)].drop_duplicates().to_dict("records")


def _shown_classes(rows: pd.DataFrame) -> list[str]:
    """Classes in the task's order; of many, the targeted ones and those that change most."""
    largest = rows.difference.abs().where(rows.measure == "log_probability").fillna(-1)
    largest = largest.where(~rows.targeted, np.inf).groupby(rows["class"], sort=False).max()
    kept = largest.nlargest(max(SHOWN, int(np.isinf(largest).sum()))).index
    return [name for name in largest.index if name in kept]


@styled
def change_by_class(result: AblationResult, task: str, target: str, mode: str) -> Figure:
    """In the paper's manner: the change in each class. A column per model.

    Bars: the headline's way of changing the neurons, with its interval. Markers: the other ways, and the paper's
    control (index plus one). Grey points: sets as active in the targeted classes, whose bars are darker.
    """
    at, head, colour = {"task": task, "target": target, "mode": mode}, result.headline, colours(result.labels)
    mine = _pick(result.effects, **at)
    bars = _pick(mine, kind=head)
    controls = _pick(result.controls, **at, kind=head, control="as active in the classes")
    classes, models = _shown_classes(bars), mine.model.unique()
    size = (max(2.2, 0.42 * len(classes)) * len(models) + 1.2, 5.6)
    title = _title(result, f"neurons of {target} ({mode}) {KINDS[head]}", task)
    figure, grid = panels(2, len(models), size, title, sharey="row", sharex=True)
    rng, place = np.random.default_rng(0), np.arange(len(classes))
    for (row, column), axis in np.ndenumerate(grid):
        at = {"model": models[column], "measure": list(UNITS)[row]}
        here = _pick(bars, **at).set_index("class").reindex(classes)
        shade = [to_rgba(colour[models[column]], 1.0 if targeted else 0.45) for targeted in here.targeted]
        axis.bar(place - 0.2, here.difference, width=0.36, color=shade, zorder=2)
        axis.vlines(place - 0.2, here.low, here.high, color="black", lw=0.9, zorder=5)
        sets = _pick(controls, **at)
        sets = sets[sets["class"].isin(classes)]
        x = pd.Index(classes).get_indexer(sets["class"]) + rng.uniform(0.04, 0.24, len(sets))
        axis.scatter(x, sets.difference, s=5, color="#555555", alpha=0.5, lw=0)
        for kind, marker in MARKERS.items():
            if kind != head:
                other = _pick(mine, **at, kind=kind).set_index("class").difference.reindex(classes)
                style = {"s": 16, "marker": marker, "c": "white", "edgecolors": "black", "lw": 0.7, "zorder": 6}
                axis.scatter(place + 0.38, other, label=KINDS.get(kind, kind), **style)
        axis.axhline(0, color="black", lw=0.8)
        if not here.difference.notna().any():
            nothing(axis, "no such neurons")
        axis.set_title("" if row else f"{result.labels[models[column]]}\n{_many(here.neurons.max())} neurons")
        axis.set_ylabel("" if column else f"change in {UNITS[at['measure']]}")
        axis.set_xticks(place, classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    cut = "; of the other classes those that change most" if len(classes) < bars["class"].nunique() else ""
    legend_below(figure, grid[0, 0], f"bars: {KINDS[head]}, 95 % interval; grey: sets as active in the class{cut}")
    return figure


@styled
def against_controls(result: AblationResult, measure: str = "log_probability") -> Figure:
    """The effect on a targeted class as a line in the distribution of its controls; a row per target and class."""
    rows = _pick(result.effects, kind=result.headline, targeted=True, measure=measure)
    keys, models, colour = _seen(rows, "task", "target", "mode", "class"), rows.model.unique(), colours(result.labels)
    title = f"Change in {UNITS[measure]}, that of other classes taken off:\n"
    title = _title(result, title + f"neurons {KINDS[result.headline]} (line) against random sets")
    figure, grid = panels(len(keys), len(models), (2.7 * len(models) + 1.3, 1.35 * len(keys) + 0.9), title)
    for (r, c), axis in np.ndenumerate(grid):
        line: Any = _pick(rows, **keys[r], model=models[c]).iloc[0]
        sets = _pick(result.controls, **keys[r], model=models[c], measure=measure, kind=result.headline)
        axis.spines.left.set_visible(False)
        axis.set_yticks([])
        axis.xaxis.set_major_locator(MaxNLocator(5))
        if np.isfinite(line.effect):
            bins = np.histogram_bin_edges([*sets.effect, line.effect], 30)
            for kind, (face, label) in RANDOM.items():
                drawn = _pick(sets, control=kind).effect
                if len(drawn):
                    axis.hist(drawn, bins=bins, density=True, color=face, alpha=0.75, label=label)
            axis.axvline(line.effect, color=colour[models[c]], lw=2.2)
            span = {"color": colour[models[c]], "alpha": 0.12, "lw": 0, "label": "95 % interval of the line"}
            axis.axvspan(line.effect_low, line.effect_high, **span)
            axis.axvline(0, color="black", lw=0.6, ls=":")
        else:
            nothing(axis, "no such neurons")
            axis.set_xticks([])
        if np.isfinite(line.active_p):
            axis.set_title(f"p = {line.active_p:.3g}, q = {line.active_q:.3g}", fontsize=7, loc="right", pad=2)
        text = "" if c else "\n".join([line.task, line.target, f"class {line['class']}"])
        axis.set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center")
        axis.annotate("" if r else result.labels[models[c]], (0.5, 1.32), xycoords="axes fraction", ha="center", size=8)
    if len(result.controls):
        grid[0, 0].legend(fontsize=6)
    return figure


@styled
def off_target(result: AblationResult, task: str, measure: str = "log_probability") -> Figure | None:
    """Heatmap: the neurons of the row's class are changed, the column's class is measured. One panel a model."""
    if not len(table := _pick(result.off_target, task=task, measure=measure)):
        return None
    classes, models = table["class"].unique(), table.model.unique()
    small, shape = len(classes) <= SHOWN, (len(models), 1) if len(classes) > 25 else (1, len(models))
    font, side = 7 if small else 5.5, max(2.2, (0.36 if small else 0.13) * len(classes))
    size = (shape[1] * (side + 0.9) + 1.4, shape[0] * (side + 1.0) + 0.9)
    title = _title(result, f"change in {UNITS[measure]}, a few clips of each class", task)
    figure, grid = panels(*shape, size, title)
    largest = float(np.nanquantile(table.difference.abs(), 0.995)) or 1.0
    for axis, model in zip(grid.flat, models, strict=True):
        here = _pick(table, model=model)
        matrix = here.pivot(index="silenced", columns="class", values="difference").reindex(classes, columns=classes)
        sizes = here.groupby("silenced").neurons.first().reindex(classes, fill_value=0)
        axis.set_facecolor("#E5E5E5")  # a class without neurons
        image = axis.imshow(matrix, cmap="PuOr_r", vmin=-largest, vmax=largest)
        axis.set_yticks(range(len(classes)), [f"{c} ({_many(sizes[c])})" for c in classes], fontsize=font)
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=font)
        axis.set_title(result.labels[model])
        for i, j in np.argwhere(matrix.notna().to_numpy() & small):
            value = round(matrix.iat[i, j], 2) + 0.0  # no -0.00
            ink, weight = "white" if abs(value) > 0.6 * largest else "black", "bold" if i == j else "normal"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=ink, fontweight=weight)
    figure.supxlabel("class measured", fontsize=8)
    figure.supylabel(f"neurons {KINDS[result.headline]} (how many)", fontsize=8)
    beyond = table.difference.min() < -largest, table.difference.max() > largest
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    figure.colorbar(image, ax=grid, shrink=0.7, pad=0.01, extend=extend).ax.tick_params(labelsize=7)
    return figure


@styled
def dose_response(result: AblationResult, measure: str = "log_probability") -> Figure | None:
    """Change in the targeted classes by gain, from silenced (0) over intact (1) to doubled (2). A panel a target."""
    if not len(table := _pick(result.gains, measure=measure)):
        return None
    targets, colour = _seen(table, "task", "target", "mode"), colours(result.labels)
    across, down = min(len(targets), 4), -(-len(targets) // 4)
    title = _title(result, "Dose response: the target's neurons multiplied by a gain")
    figure, grid = panels(down, across, (2.6 * across + 0.6, 2.5 * down + 0.8), title)
    for axis, target in itertools.zip_longest(grid.flat, targets):
        if target is None:
            axis.set_axis_off()
            continue
        here = _pick(table, **target).sort_values("gain")
        styles = dict(zip(here["class"].unique(), itertools.cycle(["-", "--", ":", "-."]), strict=False))
        for (model, name), line in here.groupby(["model", "class"], sort=False):
            style = {"color": colour[model], "linestyle": styles[name], "marker": ".", "ms": 4, "lw": 1.3}
            axis.plot(line.gain, line.difference, label=f"{result.labels[model]}, {name}", **style)
        axis.axhline(0, color="black", lw=0.6)
        axis.axvline(1, color="black", lw=0.6, ls=":")
        axis.set_title("{task}: {target} ({mode})".format(**target))
        axis.legend(fontsize=5.5)
    figure.supxlabel("gain (0: silenced, 1: intact)", fontsize=8)
    figure.supylabel(f"change in {UNITS[measure]}", fontsize=8)
    return figure


def all_figures(result: AblationResult) -> dict[str, Figure]:
    """Every figure of a study by file name (without suffix)."""
    found: dict[str, Figure | None] = {}
    for at in _seen(result.effects, "task", "target", "mode"):
        slug = re.sub(r"\W+", "_", at["target"]).strip("_").lower()
        names = (f"ablation_{at['task']}-{slug}{n}-{at['mode']}" for n in itertools.chain([""], itertools.count(2)))
        found[next(name for name in names if name not in found)] = change_by_class(result, **at)
    found["ablation_controls"] = against_controls(result)
    found |= {f"ablation_off_target-{task}": off_target(result, task) for task in result.effects.task.unique()}
    found["ablation_gains"] = dose_response(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def show(result: AblationResult) -> None:
    """In a notebook: save every figure as PDF and PNG, and show the PNGs with their names."""
    from IPython.display import Image, Markdown, display

    for name, figure in all_figures(result).items():
        path = save(figure, result.directory, name)
        display(Markdown(f"`{name}.pdf`"), Image(filename=str(path)))


@styled
def criteria(summary: pd.DataFrame, title: str, mode: str = "mean") -> Figure:
    """What each criterion's neurons do to their class, beside random sets: a panel per judge, the deepest fall on top.

    Args:
        summary: `aape.criteria.comparing.Contest.summary()`.
        title: whose neurons.
        mode: how they are changed.
    """
    rows = _pick(summary, mode=mode)
    order = _pick(rows, judge="linear").sort_values("effect", ascending=False, kind="stable").criterion
    judges, size = rows.judge.unique(), (8.4, 1.4 + 0.25 * len(order))
    figure, grid = panels(1, len(judges), size, f"{title}: neurons {KINDS[mode]}", sharey=True)
    for axis, judge in zip(grid.flat, judges, strict=True):
        of = _pick(rows, judge=judge).set_index("criterion").loc[order]
        own = {"color": "#0072B2", "label": "its neurons, 95 % over classes"}
        axis.errorbar(of.effect, order, xerr=[of.effect - of.low, of.high - of.effect], fmt="D", ms=4, **own)
        for less, colour, name in (("less_active", "#E69F00", "as active"), ("less_strong", "#7F7F7F", "as strong")):
            axis.scatter(of.effect - of[less], order, s=14, color=colour, label=f"random, {name}", zorder=3)
        axis.axvline(0, color="0.8", lw=1, zorder=0)
        axis.set(title=f"judge: {judge}", xlabel="change in the class less that in the others, nats")
    legend_below(figure, grid[0, 0])
    return figure
