"""What the study's own tables say of a model on a task: q, what chance gives, and what silencing did."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts

PAIR = ["layer", "neuron", "class"]
CHANGE = ("before", "effect", "active_mean", "active_low", "active_high", "active_p", "active_q")
SCORES = ("auprc", "f1", "iou")
CHANCE = ("coverage_null_mean", "mean_aape", "mean_aape_null_mean", "calibrated_neurons",
          *SCORES, *(f"{score}_permuted" for score in SCORES), "effect", "q_level")  # fmt: skip


def study_tables(artifacts: Artifacts, task: str) -> dict[str, Path]:
    """The tables that are looked at: those of the study lie beside the artifacts' folder."""
    study, model = artifacts.path.parent, artifacts.path.name.removeprefix(f"{task}_")
    return {
        "neurons": artifacts.path / "neurons.csv",
        "classes": study / "class_level_neuron_statistics.csv",
        "task": study / f"task_level_neuron_statistics_{model}.csv",
        "seeds": study / f"task_level_neuron_statistics_{re.sub(r'-[0-9]+$', '', model)}.csv",  # one for all seeds
        "effects": study / "ablation_effects.csv",
        "silenced": study / "ablation_neurons.csv",
    }


def _read(path: Path, columns: set[str], **where: str) -> pd.DataFrame:
    """Rows of a table, all as text so that class names stay what they are; none where it is not there."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()
    if not (columns | set(where)) <= set(table):
        return pd.DataFrame(columns=sorted(columns | set(where)), dtype=str)
    return table[np.logical_and.reduce([table[key] == value for key, value in where.items()] or [table.index >= 0])]


def _numbers(table: pd.DataFrame, *columns: str) -> np.ndarray:
    """Columns as numbers [rows, columns], NaN where a cell is empty or a column is not there."""
    found = table.reindex(columns=list(columns)).apply(pd.to_numeric, errors="coerce")
    return found.to_numpy(dtype=np.float64)


def rounded(value: Any, digits: int = 4) -> float | None:
    """For JSON: a few significant digits; None for what is no number."""
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def with_q(table: pd.DataFrame, artifacts: Artifacts) -> pd.DataFrame:
    """A selection's table with q, calibrated (1 or 0) and scores on clips held out from the analysis' neurons.csv, NaN
    where it says nothing.

    Warns:
        UserWarning: neurons.csv is of other artifacts, so it is not used.
    """
    made = _read(artifacts.path / "neurons.csv", {*PAIR, "p", "q", "calibrated"})
    found = ["q", "calibrated", *SCORES]
    made[["then", "q", *SCORES]] = _numbers(made, "p", "q", *SCORES)
    made = made.astype({"layer": int, "neuron": int}).assign(calibrated=(made.calibrated == "True").astype(float))
    both = table.merge(made[[*PAIR, "then", *found]], "left", PAIR)
    if (both.p - both.then).abs().max() > 1e-4:
        warnings.warn(f"{artifacts.path}/neurons.csv is of other artifacts: no q is shown; analyse again", stacklevel=2)
        both[found] = np.nan
    return both.drop(columns="then")


def class_chance(artifacts: Artifacts, task: str, model: str) -> dict[str, list[float | None]]:
    """By class name: neurons under permuted labels, their mean and 95 % range, where the analysis has them."""
    table = _read(study_tables(artifacts, task)["classes"], {"class"}, task=task, model=model)
    rows = _numbers(table, "null_mean", "null_low", "null_high")
    return {name: [rounded(v) for v in row] for name, row in zip(table["class"], rows, strict=True)}


def task_chance(artifacts: Artifacts, task: str, model: str) -> dict[str, float | None]:
    """Coverage, mean AAPE and mean scores, also under permuted labels, neurons above chance, and the least effect and
    level of q that these pass: what the analysis has."""
    paths = study_tables(artifacts, task)
    found = _read(paths["task"], set(), task=task)
    rows = _numbers(found if len(found) else _read(paths["seeds"], set(), task=task, model=model), *CHANCE)
    return dict(zip(CHANCE, map(rounded, rows[0]), strict=True)) if len(rows) else {}


def effects(artifacts: Artifacts, task: str, model: str) -> list[dict[str, Any]]:
    """Sets of neurons that the ablation put to their mean: target, mode, neurons of any fold, size (neurons that are put
    to their mean together, the mean of the folds), and rows of [class, measure, *CHANGE], for the classes that were
    targeted; of several folds also how many there are, and in how many each neuron was chosen. Controls are random sets
    that are as active in the class."""
    paths, found = study_tables(artifacts, task), []
    members = _read(paths["silenced"], {"target", "mode", "layer", "neuron"}, task=task, model=model)
    columns = {"target", "mode", "class", "measure"}
    changes = _read(paths["effects"], columns, task=task, model=model, kind="mean", targeted="True")
    for (target, mode), rows in changes.groupby(["target", "mode"], sort=False):
        mine = members[(members.target == target) & (members["mode"] == mode)].astype({"layer": int, "neuron": int})
        chosen = mine.groupby(["layer", "neuron"], sort=False).size()  # a row for every fold
        said = zip(rows["class"], rows.measure, _numbers(rows, *CHANGE), strict=True)
        changed = [[name, measure, *map(rounded, row)] for name, measure, row in said]
        size, folds = rounded(_numbers(rows, "neurons")[0, 0]), mine["fold"].nunique() if "fold" in mine else 1
        found.append(
            {"target": target, "mode": mode, "neurons": [*map(list, chosen.index)], "size": size, "rows": changed}
        )
        if folds > 1:
            found[-1] |= {"folds": folds, "chosen": chosen.tolist()}
    return found
