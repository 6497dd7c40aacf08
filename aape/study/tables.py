"""The tables of a study's analysis: rows of several tasks and models put together, and seeds of one model summarised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from aape.figures.tables import three_digits
from aape.files import write_text
from aape.study.study import Study
from aape.study.task_result import TaskResult

Results = Mapping[tuple[str, str], TaskResult]  # (task, encoder) -> result

OVERVIEW = {  # column -> heading
    "title": "task",
    "model": "model",
    "coverage": "coverage",
    "per_class_mean": "neurons per class",
    "classes_per_neuron": "classes per neuron",
    "aape_share": "AAPE / ln C",
    "calibrated_coverage": "calibrated coverage",
    "calibrated_per_class_mean": "calibrated per class",
}


def write_table(content: pd.DataFrame, path: Path) -> None:
    """Write a CSV with six significant digits."""
    write_text(path, content.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def task_level(results: Results) -> pd.DataFrame:
    """All task-level statistics, a row per task and encoder."""
    return pd.DataFrame(
        [{"task": task, "model": model} | result.row for (task, model), result in results.items()]
    )


def write_task_level(study: Study, statistics: pd.DataFrame) -> None:
    """Write `task_level_neuron_statistics_<folder>.csv` for each model; with a column `model` if it has several seeds."""
    for model, spec in study.models.items():
        rows = statistics[statistics["model"].isin(study.copies(model))]
        if not len(rows):
            continue
        if not spec.seeds:
            rows = rows.drop(columns="model")
        write_table(rows, study.directory / f"task_level_neuron_statistics_{spec.folder}.csv")


def stacked(results: Results, name: str) -> pd.DataFrame:
    """One of the results' tables (`classes`, `sensitivity`) over all tasks and encoders."""
    tables = []
    for (task, model), result in results.items():
        content = getattr(result, name).copy()
        content.insert(0, "task", task)
        content.insert(1, "model", model)
        tables.append(content)
    return under_each_other(tables)


def under_each_other(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables with the same columns as one; an empty table if there are none."""
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def spread(values: pd.Series) -> Any:
    """The mean and range of values that differ, such as those of several seeds; all texts that differ."""
    if values.nunique(dropna=False) == 1:
        return values.iloc[0]
    if not pd.api.types.is_numeric_dtype(values):
        return "; ".join(dict.fromkeys(map(str, values)))
    return f"{three_digits(float(values.mean()))} ({three_digits(values.min())} to {three_digits(values.max())})"


def over_seeds(study: Study, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row per model, under its label: encoders of one model that differ only in their seed are summarised."""
    if not len(rows):
        return rows
    groups = _labelled(study, rows).groupby([*by, "model"], sort=False)
    return pd.DataFrame([{name: spread(group[name]) for name in rows} for _, group in groups])


def sensitivity_table(study: Study, variants: pd.DataFrame) -> pd.DataFrame:
    """One row per variant and model: means over tasks and seeds. The CSV has the tasks one by one."""
    columns = {
        "coverage": "coverage",
        "per_class_mean": "neurons per class",
        "classes_per_neuron": "classes per neuron",
        "overlap": "overlap with stated",
    }
    stated = variants["setting"] == "as stated"
    names = variants["setting"].where(stated, variants["setting"] + ": " + variants["value"])
    labelled = _labelled(study, variants).assign(variant=pd.Categorical(names, names.unique()))
    means = labelled.groupby(["variant", "model"], sort=True, observed=True)[list(columns)].mean()
    return means.rename(columns=columns).reset_index()


def _labelled(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """With each encoder's name replaced by its model's label."""
    labels: dict[str, str] = {}
    for model, spec in study.models.items():
        labels |= dict.fromkeys(study.copies(model), spec.label)
    return rows.assign(model=rows["model"].map(labels))
