"""The analysis of a study, from artifacts only: tables, nulls, sharing, figures.

`analyze` goes through the study's tasks and models, writes the tables next to the artifacts and draws the figures. What
one encoder gives on one task is kept below `outputs/<study>/.analysis/` and computed again when the artifacts, the
settings or the code change.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.display import Displayed
from aape.figures.tables import table
from aape.resuming import code_version, folder_lock, resumed
from aape.study import tables
from aape.study.drawing import draw_figures
from aape.study.published import published_lists, published_values
from aape.study.shared_neurons import SharedNeurons, all_shared
from aape.study.study import Study, load_study
from aape.study.tables import OVERVIEW
from aape.study.task_result import TaskResult, task_result

Place = tuple[str, str]  # task, encoder
_CODE = ("artifacts", "criteria", "neurons", "study/sensitivity", "study/task_result")


@dataclass(repr=False)
class Analysis(Displayed):
    """What `analyze` found. Every table is also a CSV in the study's directory.

    Attributes:
        results: (task, encoder) -> TaskResult; an encoder is a model, or one seed of it.
        missing: pairs without artifacts.
        notes: what to know before comparing models.
        shared: one for each sharing figure and encoder.
        statistics: all task-level statistics, a row per task and encoder.
        overview: the same with a row per task and model, several seeds as mean and range.
        classes: a row per class.
        sensitivity: a row per variant of the settings and model, means over the tasks.
        sharing_summary, strongest_pairs, octaves: tables of shared neurons.
        published, published_lists: the paper's values and ours, where the study reproduces the paper, else empty.
        figures: name -> PNG; the PDF of the same name is next to it.
    """

    study: Study
    results: dict[Place, TaskResult]
    missing: list[Place]
    notes: list[str]
    shared: list[SharedNeurons]
    statistics: pd.DataFrame
    overview: pd.DataFrame
    classes: pd.DataFrame
    sensitivity: pd.DataFrame
    sharing_summary: pd.DataFrame
    strongest_pairs: pd.DataFrame
    octaves: pd.DataFrame
    published: pd.DataFrame
    published_lists: pd.DataFrame
    figures: dict[str, Path] = field(default_factory=dict)

    def _facts(self) -> dict[str, Any]:
        return {
            "study": self.study.description,
            "tasks": ", ".join(dict.fromkeys(task for task, _ in self.results)),
            "models": ", ".join(dict.fromkeys(model for _, model in self.results)),
            "without artifacts": ", ".join(f"{task} ({model})" for task, model in self.missing)
            or "none",
            "figures": ", ".join(self.figures) or "not drawn",
            "written to": self.study.directory,
        }

    def _repr_html_(self) -> str:
        shown = table(
            self.overview, OVERVIEW, rows=100, csv="task_level_neuron_statistics_*.csv"
        ).to_html()
        return super()._repr_html_() + shown


def analyze(study: str | Path | Study, *, draw: bool = True, progress: bool = True) -> Analysis:
    """Compute everything of a study that its artifacts show. Writes CSVs and figures into the study's directory.

    Tasks and models without artifacts are listed under `missing` and left out.

    Raises:
        FileNotFoundError: there are no artifacts at all.
        ValueError: damaged artifacts, artifacts of another task in a task's folder, or a model whose artifacts differ in
            shape or weights from task to task.
        FolderBusy: another process is analysing the study.
    """
    study = load_study(study)
    artifacts, missing = find_artifacts(study)
    notes = check_together(artifacts)
    with folder_lock(study.directory / ".analysis"):
        results = {}
        for place, result in tqdm(
            zip(artifacts, _results(study, artifacts, progress), strict=True),
            total=len(artifacts),
            desc="tasks",
            disable=None if progress else True,
        ):
            results[place] = result
            tables.write_table(result.neurons, artifacts[place].path / "neurons.csv")

        notes += untested_classes(results)
        shared = all_shared(study, results)
        statistics = tables.task_level(results)
        written = {
            "class_level_neuron_statistics": tables.stacked(results, "classes"),
            "sensitivity": tables.stacked(results, "sensitivity"),
            "sharing_summary": pd.DataFrame([s.summary for s in shared]),
            "sharing_pairs": tables.under_each_other([s.pairs for s in shared]),
            "sharing_by_distance": tables.under_each_other(
                [s.curve for s in shared if s.curve is not None]
            ),
            "published_comparison": published_values(study, results, artifacts),
            "published_neuron_lists": published_lists(study, artifacts),
        }
        for name, content in written.items():
            path = study.directory / f"{name}.csv"
            if len(content):
                tables.write_table(content, path)
            else:
                path.unlink(missing_ok=True)  # it belongs to an earlier state of the study
        tables.write_task_level(study, statistics)

        analysis = Analysis(
            study=study,
            results=results,
            missing=missing,
            notes=notes,
            shared=shared,
            statistics=statistics,
            overview=tables.over_seeds(study, statistics, ["task"]),
            classes=written["class_level_neuron_statistics"],
            sensitivity=tables.sensitivity_table(study, written["sensitivity"]),
            sharing_summary=tables.over_seeds(study, written["sharing_summary"], ["figure"]),
            strongest_pairs=written["sharing_pairs"],
            octaves=written["sharing_by_distance"],
            published=written["published_comparison"],
            published_lists=written["published_neuron_lists"],
        )
        if draw:
            analysis.figures = draw_figures(study, results, shared)
    return analysis


def untested_classes(results: Mapping[Place, TaskResult]) -> list[str]:
    """A note for each task with classes that the calibration cannot test, because too few groups are of like size."""
    notes: dict[str, str] = {}
    for (task, _), result in results.items():
        if "class_p" not in result.classes:
            continue
        names = result.classes["class"][result.classes["class_p"].isna()]
        if len(names):
            notes[task] = (
                f"{task}: {', '.join(names)} cannot be tested against permuted labels, because too few groups of clips "
                "are of like size; none of their neurons is calibrated"
            )
    return list(notes.values())


def _results(
    study: Study, artifacts: dict[Place, Artifacts], progress: bool
) -> Iterator[TaskResult]:
    """The result of every task and encoder, in order; those that are kept and still valid are not computed again."""
    places = {f"{task}_{study.encoder(model).folder}": (task, model) for task, model in artifacts}
    depends_on = {}
    for name, (task, model) in places.items():
        depends_on[name] = [study.select_by(task), content_hash(artifacts[task, model])]

    def compute(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        for name in names:
            task, model = places[name]
            yield task_result(study, task, artifacts[task, model], progress).arrays()

    key = [study.chance.model_dump(), study.seed]
    kept = resumed(
        study.directory / ".analysis", key, depends_on, compute, code=code_version(*_CODE)
    )
    for (task, _), arrays in zip(places.values(), kept, strict=True):
        result = TaskResult.from_arrays(arrays)
        result.row["title"] = study.task(task).title  # a changed title needs no new computation
        yield result


def content_hash(artifacts: Artifacts) -> str:
    """A hash of everything in a folder of artifacts that the analysis depends on."""
    manifest = artifacts.manifest
    known = json.dumps([manifest.get("checksums"), manifest.get("clips"), artifacts.classes])
    digest = hashlib.sha256(known.encode())
    if not manifest:
        digest.update(artifacts.over_zero.numpy().tobytes())
    return digest.hexdigest()


def find_artifacts(study: Study) -> tuple[dict[Place, Artifacts], list[Place]]:
    """(task, encoder) -> artifacts, and the pairs that have none.

    Raises:
        FileNotFoundError: there are no artifacts at all.
        ValueError: artifacts of another task are in a task's folder.
    """
    found: dict[Place, Artifacts] = {}
    missing: list[Place] = []
    for task, model in itertools.product(study.tasks, study.encoders):
        path = study.artifacts_directory(task, model)
        if not (path / "over_zero.pt").is_file() and not (path / "manifest.json").is_file():
            missing.append((task, model))
            continue
        artifacts = load_artifacts(path)
        collected = artifacts.manifest.get("task", task)
        if collected != task and collected in study.tasks:
            raise ValueError(
                f"{path} holds artifacts of the task {collected!r}, expected {task!r}; collect it again"
            )
        found[task, model] = artifacts
    if not found:
        raise FileNotFoundError(
            f"no artifacts of study {study.name!r} below {study.directory}; run a collecting notebook first, or "
            f"`python common.py collect {study.name} {next(iter(study.encoders))} {next(iter(study.tasks))}`"
        )
    return found, missing


def example(study: Study) -> Place:
    """The first task and encoder of a study whose artifacts hold counts per clip.

    Raises:
        FileNotFoundError: nothing is collected yet.
        ValueError: none of the artifacts holds counts.
    """
    artifacts, _ = find_artifacts(study)
    for place, found in artifacts.items():
        if found.has_counts:
            return place
    raise ValueError(
        f"{study.directory}: no artifacts hold counts per clip; collect them with this repository"
    )


def check_together(artifacts: dict[Place, Artifacts]) -> list[str]:
    """Check that the artifacts of one model, and of one task, belong together.

    Returns:
        Notes: what is missing, and models with the same weights.

    Raises:
        ValueError: one model's artifacts differ in layers, neurons or weights, or one task's in their classes.
    """
    notes = set()
    first_of_task: dict[str, Artifacts] = {}
    first_of_model: dict[str, Artifacts] = {}
    model_of_weights: dict[tuple[str, str], str] = {}  # (task, identity of the model) -> name
    for (task, model), found in artifacts.items():
        same_task = first_of_task.setdefault(task, found)
        same_model = first_of_model.setdefault(model, found)
        if found.classes != same_task.classes:
            raise ValueError(
                f"{found.path}: expected the classes of {same_task.path}, in the same order"
            )
        identities = {
            a.manifest["identity"] for a in (found, same_model) if "identity" in a.manifest
        }
        layers = {tuple(a.layers) for a in (found, same_model) if a.manifest}
        if (
            len(identities) > 1
            or len(layers) > 1
            or found.over_zero.shape[:2] != same_model.over_zero.shape[:2]
        ):
            differ = "weights" if len(identities) > 1 else "layers or neurons"
            raise ValueError(
                f"{found.path} and {same_model.path} should be of one model ({model}), but their {differ} differ. "
                "Collect the outdated one again."
            )
        for identity in identities:
            twin = model_of_weights.setdefault((task, identity), model)
            if twin != model:
                notes.add(f"{task}: {twin} and {model} have the same weights")
        if not found.has_counts:
            notes.add(
                f"{task}, {model}: no counts per clip, so there is no comparison with permuted labels"
            )
    return sorted(notes)
