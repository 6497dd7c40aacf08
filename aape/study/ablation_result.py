"""The tables of the deactivation experiment, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from aape.study.experiment import TABLES
from aape.study.study import Study


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult:
    """Tables of the experiment; each is also a CSV file `ablation_<name>.csv` in `directory`.

    effects: a row per task, model, target, kind of change, class and measure.
    controls: a row per control set, targeted class and measure.
    off_target: the change in each class when another class's neurons are changed, on the panel.
    gains: the change in each class of a target by gain.
    classifier: accuracy (share) and log-probability of the intact classifier by class.
    neurons: the changed neurons.
    """

    directory: Path
    substitute: bool
    labels: Mapping[str, str]  # model -> what figures call it
    titles: Mapping[str, str]  # task -> what figures call it
    effects: pd.DataFrame
    controls: pd.DataFrame
    off_target: pd.DataFrame
    gains: pd.DataFrame
    classifier: pd.DataFrame
    neurons: pd.DataFrame

    @property
    def headline(self) -> str:
        """The kind of change that the comparison is about: the first mode."""
        return str(self.effects.kind.iloc[0])

    def __repr__(self) -> str:
        return f"Ablation in {self.directory}\n{self.verdict()}"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)

    def summary(self, measure: str = "log_probability") -> pd.DataFrame:
        """The headline's effects: a row per task, target, model and class of the target."""
        rows = self.effects
        return rows[
            (rows.kind == self.headline) & rows.targeted & (rows.measure == measure)
        ].reset_index(drop=True)

    def table(self, measure: str = "log_probability") -> pd.DataFrame:
        """The summary for a notebook: eight columns of text, the deepest fall first; classes without neurons last.

        The effect is the change of the class minus that of other classes. The star at a q says that no random set was as
        low, so that it would be smaller with more sets.
        """
        rows = self.summary(measure).sort_values("effect", kind="stable", na_position="last")
        table = pd.DataFrame({"target": self._target_names(rows)})
        table["model"] = [self.labels.get(model, model) for model in rows.model]
        table["neurons"] = _texts("{:.4g}", rows.neurons)
        unit = "points" if measure == "accuracy" else "nats"
        table[f"effect, {unit} [95 %]"] = _texts(
            "{:+.3g} [{:+.2g}, {:+.2g}]", rows.effect, rows.effect_low, rows.effect_high
        )
        matched = _texts(
            "{:+.3g} ± {:.2g} (n = {:.0f})", rows.active_mean, rows.active_sd, rows.active_controls
        )
        table["activity-matched sets"] = matched
        table["overlap"] = _texts("{:.0%}", rows.overlap)
        table["disjoint sets"] = _texts("{:+.3g} ± {:.2g}", rows.disjoint_mean, rows.disjoint_sd)
        stars = rows.at_floor.map({True: " *", False: ""})
        table["q"] = [
            text and text + star
            for text, star in zip(_texts("{:.3g}", rows.active_q), stars, strict=True)
        ]
        return table

    def _target_names(self, rows: pd.DataFrame) -> list[str]:
        """Target and task of each row, and the class in brackets where it has another name."""
        names = []
        for target, class_name, task in zip(rows.target, rows["class"], rows.task, strict=True):
            name = target if target == class_name else f"{target} ({class_name})"
            names.append(f"{name}, {self.titles.get(task, task)}")
        return names

    def verdict(self, q: float = 0.05) -> str:
        """One sentence: in how many of each model's targeted classes the effect is below that of the controls.

        `detectable` is the effect that would have been significant by itself, the median over classes.
        """
        rows = self.summary()
        counts = []
        for model in self.effects.model.unique():
            tested = rows[(rows.model == model) & rows.active_q.notna()]
            count = (
                f"{(tested.active_q < q).sum()} of {len(tested)} ({self.labels.get(model, model)}"
            )
            power = f", detectable: {tested.detectable.median():+.2g} nats)" if len(tested) else ")"
            counts.append(count + power)
        sentence = (
            "Targeted classes whose log-probability falls significantly further than with activity-matched random neurons "
            f"(q < {q:g}): {', '.join(counts)}."
        )
        at_chance = self.classifiers_at_chance()
        if not at_chance:
            return sentence
        return f"{sentence} The classifier is at chance, so that its ablation says nothing: {', '.join(at_chance)}."

    def power(self, measure: str = "log_probability") -> pd.DataFrame:
        """For every targeted class: its effect, and the effect that would have been significant by itself (`detectable`).

        That value comes from the standard deviation of n random sets (`active_controls`), whose relative standard error is
        about 1 / sqrt(2 n).
        """
        rows = self.summary(measure)
        columns = [
            "task",
            "model",
            "target",
            "class",
            "effect",
            "detectable",
            "active_controls",
            "active_q",
        ]
        return rows[columns]

    def classifiers_at_chance(self) -> list[str]:
        """Models on tasks whose intact classifier is not better than always naming the most frequent class (p > 0.05)."""
        found = []
        for (task, model), rows in self.classifier.groupby(["task", "model"], sort=False):
            total, classes = (
                rows[rows["class"] == "all classes"].iloc[0],
                rows[rows["class"] != "all classes"],
            )
            correct = round(total.accuracy * total.clips)
            most_frequent = float(classes.clips.max() / classes.clips.sum())
            if binomtest(correct, int(total.clips), most_frequent, "greater").pvalue > 0.05:
                found.append(
                    f"{self.labels.get(str(model), model)} on {self.titles.get(str(task), task)}"
                )
        return found


def _texts(form: str, *columns: pd.Series) -> list[str]:
    """Each row of some columns as text; a row whose first number is missing is empty."""
    rows = zip(*columns, strict=True)
    return [form.format(*row) if np.isfinite(row[0]) else "" for row in rows]


def read_text_table(path: Path) -> pd.DataFrame:
    """A table of results: names stay as they are, also `01` and `None`."""
    names = dict.fromkeys(
        ("class", "silenced", "target", "model", "task", "figure", "rows", "columns"), str
    )
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])  # type: ignore[arg-type]


def names_of(study: Study) -> dict[str, Any]:
    """What figures and tables call a study's models and tasks, as fields of `AblationResult`."""
    labels = {name: spec.label for name, spec in study.encoders.items()}
    titles = {name: spec.title for name, spec in study.tasks.items()}
    return {"substitute": study.substitute, "labels": labels, "titles": titles}


def load_result(study: Study) -> AblationResult:
    """The tables of an earlier `ablate`, without the models.

    Raises:
        FileNotFoundError: no such tables.
    """
    tables: dict[str, Any] = {}
    for name in TABLES:
        path = study.directory / f"ablation_{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: run Ablations.ipynb with study {study.name!r} first"
            )
        tables[name] = read_text_table(path)
    return AblationResult(study.directory, **names_of(study), **tables)
