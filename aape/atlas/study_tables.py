"""What the study's own tables say of a model on a task: q, what chance gives, and what silencing did."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.atlas.scripts import rounded

KEY = ["layer", "neuron", "class"]
KINDS = ("mean", "zero")  # ways of silencing; other kinds in the tables are controls
SCORES = ("auprc", "f1", "iou")
CHANGE = ("before", "effect", "active_mean", "active_low", "active_high", "active_p", "active_q")
CHANCE = (
    "coverage_null_mean",
    "mean_aape",
    "mean_aape_null_mean",
    "calibrated_neurons",
    *SCORES,
    *(f"{score}_permuted" for score in SCORES),
    "effect",
    "q_level",
)


def study_tables(artifacts: Artifacts, task: str) -> dict[str, Path]:
    """The tables that are read. Those of the study lie next to the artifacts' folder."""
    study = artifacts.path.parent
    model = artifacts.path.name.removeprefix(f"{task}_")
    model_of_seeds = re.sub(r"-[0-9]+$", "", model)
    return {
        "neurons": artifacts.path / "neurons.csv",
        "classes": study / "class_level_neuron_statistics.csv",
        "task": study / f"task_level_neuron_statistics_{model}.csv",
        "seeds": study / f"task_level_neuron_statistics_{model_of_seeds}.csv",  # one for all seeds
        "dissection": study / "classes.csv",  # what `dissect` writes instead
        "effects": study / "ablation_effects.csv",
        "silenced": study / "ablation_neurons.csv",
    }


def _read(path: Path, columns: set[str], **where: str) -> pd.DataFrame:
    """Rows of a table in which some columns have some values; no rows if the table or a column is not there.

    All cells are text, so that names of classes stay what they are.
    """
    needed = columns | set(where)
    table = (
        pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()
    )
    if not needed <= set(table):
        return pd.DataFrame(columns=sorted(needed), dtype=str)
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def _numbers(table: pd.DataFrame, *columns: str) -> np.ndarray:
    """Columns as numbers [rows, columns], NaN where a cell is empty or a column is not there."""
    columns_as_text = table.reindex(columns=list(columns))
    return columns_as_text.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)


def with_q(table: pd.DataFrame, artifacts: Artifacts) -> pd.DataFrame:
    """A selection's table with q, calibrated (1 or 0) and scores on held-out clips from neurons.csv of the analysis.

    They are NaN where neurons.csv has no such row.

    Warns:
        UserWarning: neurons.csv was made from other artifacts, so it is not used.
    """
    analysed = _read(artifacts.path / "neurons.csv", {*KEY, "rate", "q_value", "calibrated"})
    analysed[["analysed_p", "q", *SCORES]] = _numbers(analysed, "rate", "q_value", *SCORES)
    analysed = analysed.astype({"layer": int, "neuron": int})
    analysed["calibrated"] = (analysed.calibrated == "True").astype(float)
    added = ["q", "calibrated", *SCORES]
    joined = table.merge(analysed[[*KEY, "analysed_p", *added]], "left", KEY)
    if (joined.rate - joined.analysed_p).abs().max() > 1e-4:
        message = f"{artifacts.path}/neurons.csv was made from other artifacts, so no q is shown; analyse again"
        warnings.warn(message, stacklevel=2)
        joined[added] = np.nan
    return joined.drop(columns="analysed_p")


def class_chance(artifacts: Artifacts, task: str, model: str) -> dict[str, list[float | None]]:
    """By class name: neurons under permuted labels, their mean and 95 % range, where the analysis has them."""
    table = _read(study_tables(artifacts, task)["classes"], {"class"}, task=task, model=model)
    rows = _numbers(table, "null_mean", "null_low", "null_high")
    if table.empty:
        table = _read(study_tables(artifacts, task)["dissection"], {"class"})
        rows = _numbers(table, "permuted", "", "")
    return {
        name: [rounded(value) for value in row]
        for name, row in zip(table["class"], rows, strict=True)
    }


def task_chance(artifacts: Artifacts, task: str, model: str) -> dict[str, float | None]:
    """What the analysis says of the task: coverage, mean AAPE and mean scores, also under permuted labels.

    It includes the number of calibrated neurons, and the least effect and the level of q that these pass.
    """
    paths = study_tables(artifacts, task)
    table = _read(paths["task"], set(), task=task)
    if table.empty:
        table = _read(paths["seeds"], set(), task=task, model=model)
    if table.empty:
        return {}
    values = _numbers(table, *CHANCE)[0]
    return {name: rounded(value) for name, value in zip(CHANCE, values, strict=True)}


def effects(artifacts: Artifacts, task: str, model: str) -> list[dict[str, Any]]:
    """Sets of neurons that the ablation silenced, and what changed in the targeted classes.

    Returns:
        For each set its target, mode, kind (how it was silenced: "mean" or "zero"), neurons (of any fold), size (neurons
        that are silenced together, mean over folds) and rows of [class, measure, *CHANGE]. With several folds also how many there are and in how many of them each
        neuron was chosen.
    """
    paths = study_tables(artifacts, task)
    silenced = _read(
        paths["silenced"], {"target", "mode", "layer", "neuron"}, task=task, model=model
    )
    silenced = silenced.astype({"layer": int, "neuron": int})
    columns = {"target", "mode", "kind", "class", "measure"}
    changes = _read(paths["effects"], columns, task=task, model=model, targeted="True")
    changes = changes[changes.kind.isin(KINDS)]
    sets = []
    for (target, mode, kind), rows in changes.groupby(["target", "mode", "kind"], sort=False):
        members = silenced[(silenced.target == target) & (silenced["mode"] == mode)]
        chosen = members.groupby(["layer", "neuron"], sort=False).size()  # a row for every fold
        found: dict[str, Any] = {"target": target, "mode": mode, "kind": kind}
        found["neurons"] = [list(pair) for pair in chosen.index]
        found["size"] = rounded(_numbers(rows, "neurons")[0, 0])
        found["rows"] = []
        for name, measure, values in zip(
            rows["class"], rows.measure, _numbers(rows, *CHANGE), strict=True
        ):
            found["rows"].append([name, measure, *map(rounded, values)])
        folds = members["fold"].nunique() if "fold" in members else 1
        if folds > 1:
            found |= {"folds": folds, "chosen": chosen.tolist()}
        sets.append(found)
    return sets
