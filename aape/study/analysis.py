"""The analysis of a study, from artifacts alone: tables, nulls, sharing, figures.

`analyze` walks over the study's tasks and models, writes the tables beside the artifacts and draws the figures.
What one encoder gives on one task is kept under `outputs/<study>/.analysis/`, by the checksums of the artifacts and the
settings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.display import Displayed
from aape.figures import activity
from aape.figures.sharing import sharing_figure
from aape.figures.style import save
from aape.figures.tables import table, three_digits
from aape.files import Cache, folder_lock, write_text
from aape.neurons.sharing import Sharing, against_permuted, by_distance, matched, pairs_of, shared_neurons
from aape.study.published import published_lists, published_values
from aape.study.study import SharingFigure, Study, load_study
from aape.study.task_result import TaskResult, task_result

FORMAT = 11  # of what is kept; raise it when its meaning changes
Place = tuple[str, str]  # task, encoder


@dataclass(repr=False)
class Analysis(Displayed):
    """What `analyze` found; every table stands in a CSV of the study's directory too.

    Attributes:
        results: (task, encoder) -> TaskResult; an encoder is a model, or one seed of it. missing: without artifacts.
        statistics: a row per task and encoder, all task-level statistics.
        overview: the same with a row per model, under its label: several seeds as mean and range.
        classes, sensitivity: a row per class; a row per variant of the settings and model, means over the tasks.
        sharing: one for each figure and encoder.
        sharing_summary, strongest_pairs, octaves: tables of them.
        published, published_lists: beside the paper, where the study reproduces it, else empty.
        figures: name -> PNG beside the PDF of the same name.
    """

    study: Study
    results: dict[Place, TaskResult]
    missing: list[Place]
    notes: list[str]
    sharing: list[Shared]
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
            "without artifacts": ", ".join(f"{task} ({model})" for task, model in self.missing) or "none",
            "figures": ", ".join(self.figures) or "not drawn",
            "written to": self.study.directory,
        }

    def _repr_html_(self) -> str:
        shown = table(self.overview, OVERVIEW, rows=100, csv="task_level_neuron_statistics_*.csv").to_html()
        return super()._repr_html_() + shown


OVERVIEW = {
    "task": "task",
    "model": "model",
    "coverage": "coverage",
    "per_class_mean": "neurons per class",
    "classes_per_neuron": "classes per neuron",
    "aape_share": "AAPE / ln C",
    "calibrated_coverage": "calibrated coverage",
    "calibrated_per_class_mean": "calibrated per class",
}


def analyze(study: str | Path | Study, *, draw: bool = True, progress: bool = True) -> Analysis:
    """Everything of a study that its artifacts show. Writes CSVs and figures below the study's directory.

    Tasks and models without artifacts are listed under `missing` and left out.

    Raises:
        FileNotFoundError: there are no artifacts at all.
        ValueError: damaged or edited artifacts, folders whose artifacts belong to another task, a model whose
            artifacts differ in shape or weights from task to task.
        FolderBusy: another process is analysing the study.
    """
    study = load_study(study)
    artifacts, missing = find_artifacts(study)
    notes = _check_together(artifacts)
    with folder_lock(study.directory / ".analysis"):
        results: dict[Place, TaskResult] = {}
        for place, found in tqdm(artifacts.items(), desc="tasks", disable=None if progress else True):
            results[place] = _task_result(study, place, found, progress)
            _write(results[place].neurons, found.path / "neurons.csv")
        jobs = [(f, m) for f in study.sharing for m in study.encoders if {(f.rows, m), (f.columns, m)} <= set(results)]
        sharing = [_shared(study, results, *job) for job in jobs]
        statistics = pd.DataFrame([{"task": task, "model": model} | r.row for (task, model), r in results.items()])
        tables = {
            "class_level_neuron_statistics": _stacked(results, "classes"),
            "sensitivity": _stacked(results, "sensitivity"),
            "sharing_summary": pd.DataFrame([shared.summary for shared in sharing]),
            "sharing_pairs": _under_each_other([shared.pairs for shared in sharing]),
            "sharing_by_distance": _under_each_other([s.curve for s in sharing if s.curve is not None]),
            "published_comparison": published_values(study, results, artifacts),
            "published_neuron_lists": published_lists(study, artifacts),
        }
        for name, content in tables.items():
            path = study.directory / f"{name}.csv"
            _write(content, path) if len(content) else path.unlink(missing_ok=True)  # none of an earlier study stays
        for model, spec in study.models.items():
            mine = statistics[statistics["model"].isin(study.copies(model))]
            mine = mine if spec.seeds else mine.drop(columns="model")
            if len(mine):
                _write(mine, study.directory / f"task_level_neuron_statistics_{spec.folder}.csv")
        classes, variants, summary, *others = tables.values()
        overview, summary = over_seeds(study, statistics, ["task"]), over_seeds(study, summary, ["figure"])
        shown = [statistics, overview, classes, sensitivity_table(study, variants), summary, *others]
        analysis = Analysis(study, results, missing, notes, sharing, *shown)
        if draw:
            analysis.figures = _draw(analysis)
    return analysis


def _write(content: pd.DataFrame, path: Path) -> None:
    write_text(path, content.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


# Artifacts


def find_artifacts(study: Study) -> tuple[dict[Place, Artifacts], list[Place]]:
    """(task, encoder) -> artifacts, and the pairs that have none.

    Raises:
        FileNotFoundError: there are none at all.
        ValueError: artifacts of another task in a task's folder.
    """
    found, missing = {}, []
    for task, model in itertools.product(study.tasks, study.encoders):
        path = study.artifacts_directory(task, model)
        if not (path / "over_zero.pt").is_file() and not (path / "manifest.json").is_file():
            missing.append((task, model))
            continue
        found[task, model] = load_artifacts(path)
        named = found[task, model].manifest.get("task", task)
        if named != task and named in study.tasks:
            raise ValueError(f"{path} holds artifacts of the task {named!r}, expected {task!r}; collect it again")
    if not found:
        raise FileNotFoundError(
            f"no artifacts of study {study.name!r} below {study.directory}; run a collecting notebook first, or "
            f"`python common.py collect {study.name} {next(iter(study.encoders))} {next(iter(study.tasks))}`"
        )
    return found, missing


def example(study: Study) -> Place:
    """The first task and encoder of a study whose artifacts hold counts of clips.

    Raises:
        FileNotFoundError: nothing is collected yet.
        ValueError: none of the artifacts holds counts.
    """
    for place, artifacts in find_artifacts(study)[0].items():
        if artifacts.has_counts:
            return place
    raise ValueError(f"{study.directory}: no artifacts with counts of clips; collect them with this repository")


def _check_together(artifacts: dict[Place, Artifacts]) -> list[str]:
    """Notes on what is missing or alike. ValueError where one model's or one task's artifacts do not belong together."""
    first: dict[str, Artifacts] = {}  # of each task, and of each model
    heard_by: dict[tuple[str, Any], str] = {}  # (task, hash of the weights) -> model
    by_task: dict[str, str] = {}  # the first model
    notes = set()

    def heard_of(found: Artifacts) -> list[Any]:
        return [found.manifest.get(key) for key in ("data", "clip_seconds")]

    for (task, model), mine in artifacts.items():
        of_task, of_model = (
            first.setdefault(f"{what} {name}", mine) for what, name in (("task", task), ("model", model))
        )
        weights = {found.manifest.get("identity") for found in (mine, of_model)} - {None}
        layers = {found.layers for found in (mine, of_model) if found.manifest}
        if mine.over_zero.shape[:2] != of_model.over_zero.shape[:2] or len(weights) > 1 or len(layers) > 1:
            differ = "weights" if len(weights) > 1 else "layers or neurons"
            raise ValueError(
                f"{mine.path} and {of_model.path} should be of one model ({model}), but their {differ} differ. "
                "Collect again the one that is out of date."
            )
        if of_task.classes != mine.classes:
            raise ValueError(
                f"{mine.path}: of {task!r}, but with different classes or another order than {of_task.path}"
            )
        if model != (other := by_task.setdefault(task, model)) and heard_of(mine) != heard_of(of_task):
            notes.add(f"{task}: {model} heard other clips, or other seconds of them, than {other}: do not compare them")
        for twin in {heard_by.setdefault((task, identity), model) for identity in weights} - {model}:
            notes.add(f"{task}: {twin} and {model} have the same weights")
        if not mine.has_counts:
            notes.add(f"{task}, {model}: no counts per clip, so nothing is known of chance")
        elif not mine.has_all_counts:
            some = f"counts of {len(mine.counts)} of {len(mine.labels)} clips were kept"
            notes.add(f"{task}, {model}: {some}, so it is not known what permuted labels select and share")
    return sorted(notes)


def _task_result(study: Study, place: Place, artifacts: Artifacts, progress: bool) -> TaskResult:
    """What one encoder gives on one task, kept by all that it stands on."""
    task, model = place
    settings = [study.rate(task), study.selection.model_dump(), study.chance.model_dump(), study.seed]
    known = json.dumps([artifacts.manifest.get(key) for key in ("checksums", "clips")] + [artifacts.classes])
    own = b"" if artifacts.manifest else artifacts.over_zero.numpy().tobytes()
    name, cache = f"{task}_{study.encoder(model).folder}", Cache(study.directory / ".analysis")
    key = [FORMAT, settings, hashlib.sha256(known.encode() + own).hexdigest()]
    arrays = cache.get(name, key)
    if arrays is None:
        arrays = task_result(study, task, model, artifacts, progress).arrays()
        cache.put(name, key, arrays)
    result = TaskResult.from_arrays(arrays)
    result.row["title"] = study.task(task).title  # which may be changed without computing anything again
    return result


# Tables


def _under_each_other(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _stacked(results: dict[Place, TaskResult], name: str) -> pd.DataFrame:
    """One of the results' tables over all tasks and encoders, named in front."""
    tables = {place: getattr(result, name) for place, result in results.items()}
    return pd.concat(tables, names=["task", "model"]).reset_index(["task", "model"]).reset_index(drop=True)


def spread(values: pd.Series) -> Any:
    """The mean and range of values that differ (of seeds), all texts that differ, else the first of them."""
    if values.nunique(dropna=False) == 1:
        return values.iloc[0]
    if not pd.api.types.is_numeric_dtype(values):
        return "; ".join(dict.fromkeys(map(str, values)))
    return f"{three_digits(float(values.mean()))} ({three_digits(values.min())} to {three_digits(values.max())})"


def _labelled(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """With each encoder's name replaced by its model's label."""
    labels = {copy: spec.label for model, spec in study.models.items() for copy in study.copies(model)}
    return rows.assign(model=rows["model"].map(labels))


def over_seeds(study: Study, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row a model, under its label: encoders of one model that differ by seed are put together."""
    if not len(rows):
        return rows
    groups = _labelled(study, rows).groupby([*by, "model"], sort=False)
    return pd.DataFrame([{name: spread(same[name]) for name in rows} for _, same in groups])


def panels_of(study: Study, results: dict[Place, TaskResult]) -> dict[str, str]:
    """What figures with a panel a model show: an encoder of each, of several seeds the first there is, and its label."""
    there = {model for _, model in results}
    found = [next((copy for copy in study.copies(m) if copy in there), study.copies(m)[0]) for m in study.models]
    return {copy: study.encoder(copy).label for copy in found}


def sensitivity_table(study: Study, variants: pd.DataFrame) -> pd.DataFrame:
    """One row per variant and model: means over the tasks (and seeds); the CSV has the tasks one by one."""
    stated = variants["setting"] == "as stated"
    names = variants["setting"].where(stated, variants["setting"] + ": " + variants["value"])
    named = _labelled(study, variants).assign(variant=pd.Categorical(names, names.unique()))
    columns = {"coverage": "coverage", "per_class_mean": "neurons per class"}
    columns |= {"classes_per_neuron": "classes per neuron", "overlap": "overlap with stated"}
    means = named.groupby(["variant", "model"], sort=True, observed=True)[list(columns)].mean()
    return means.rename(columns=columns).reset_index()


# Sharing


def pitch_of(name: str) -> int:
    """MIDI pitch from a class name such as "60" or "pitch_060". ValueError if there is no number in it."""
    if not (found := re.findall(r"\d+", name)):
        raise ValueError(f"class {name!r} of a pitch task has no number in its name")
    return int(found[-1])


@dataclass(frozen=True, eq=False)
class Shared:
    """One sharing figure of one encoder.

    Attributes:
        found: what is shared, and what permuted labels give.
        pairs: a row per pair of classes, the most shared first.
        summary: a row of all of them.
        pitches: MIDI pitch of each row and column, curve: sharing by their distance; None where they are not pitches.
    """

    figure: SharingFigure
    model: str
    found: Sharing
    pairs: pd.DataFrame
    summary: dict[str, Any]
    pitches: tuple[list[int], list[int]] | None
    curve: pd.DataFrame | None


def _shared(study: Study, results: dict[Place, TaskResult], figure: SharingFigure, model: str) -> Shared:
    rows, columns = results[figure.rows, model], results[figure.columns, model]
    within, named = figure.rows == figure.columns, {"figure": figure.name, "model": model}
    found = against_permuted(rows.members, rows.drawn, *(() if within else (columns.members, columns.drawn)))
    counted = pairs_of(found.observed, within)
    first, second = np.nonzero(counted)
    pairs = pd.DataFrame(
        named | {"rows": np.array(rows.class_names)[first], "columns": np.array(columns.class_names)[second]}
    )
    matrices = {
        "jaccard": found.observed, "shared_neurons": shared_neurons(rows.members, columns.members),
        "chance": found.mean, "chance_high": found.high, "p": found.p, "q": found.q, "q_centred": found.q_centred,
    }  # fmt: skip
    pairs = pairs.assign(**{name: values[counted] for name, values in matrices.items()})
    any_class = [result.members.any(axis=2) for result in (rows, columns)]
    null = found.null[:, counted].mean(axis=1) if counted.any() else found.null[:, 0, 0]
    low, high = np.quantile(null, [0.025, 0.975])
    summary = named | {
        "what": figure.title,
        "neurons in both": int((any_class[0] & any_class[1]).sum()),
        "of": " and ".join(str(mask.sum()) for mask in any_class),
        "mean Jaccard": pairs["jaccard"].mean(),
        "chance": float(null.mean()),
        "chance low": low,
        "chance high": high,
        "pairs": int(pairs["p"].notna().sum()),
        "pairs with q < 0.05": int((pairs["q"] < 0.05).sum()),
        "pairs with q < 0.05, centred": int((pairs["q_centred"] < 0.05).sum()),
    }
    names, pitches, curve = (rows.class_names, columns.class_names), None, None
    if study.task(figure.rows).kind == study.task(figure.columns).kind == "pitch":
        pitches = [pitch_of(name) for name in names[0]], [pitch_of(name) for name in names[1]]
        curve = by_distance(found.observed, *pitches, within=within, seed=study.seed).assign(**named)
        apart = np.abs(np.subtract.outer(*pitches))
        what, alike = "an octave apart", (apart > 0) & (apart % 12 == 0)
        other = (apart > 1) & np.isin(apart % 12, (1, 11))
    else:
        lower = [np.char.lower(of) for of in names]
        what, alike = "same name", (lower[0][:, None] == lower[1]) & (not within)
        other = ~alike
    if alike.any() and other.any():
        chance = None if np.isnan(found.mean).all() else found.mean
        test = matched(found.observed, alike, other, chance=chance, within=within, seed=study.seed)
        summary |= {"alike": what, "alike Jaccard": test.alike, "other Jaccard": test.other}
        summary |= {"alike p": test.p, "least p": test.least_p}
    pairs = pairs.sort_values(["jaccard", "rows", "columns"], ascending=[False, True, True])
    return Shared(figure, model, found, pairs, summary, pitches, curve)


# Figures


def _draw(analysis: Analysis) -> dict[str, Path]:
    study, results = analysis.study, analysis.results
    mark = " [stand-ins]" if study.stand_in else ""
    labels = panels_of(study, results)
    drawn = {}
    for figure in study.sharing:
        found = {labels[s.model]: s for s in analysis.sharing if s.figure == figure and s.model in labels}
        if not found:
            continue
        known, pair = next(iter(found.values())), (figure.rows, figure.columns)
        tasks = [study.task(task).title for task in pair]
        where = f"within {tasks[0]}" if known.found.within else f"{tasks[0]} (rows), {tasks[1]} (columns)"
        drawn[figure.name] = sharing_figure(
            {label: found[label].found if label in found else None for label in labels.values()},
            [results[task, known.model].class_names for task in pair],
            tasks,
            f"Shared neurons, {figure.title}: {where}{'' if 'stand-in' in where else mark}",
            known.pitches,
            {label: shared.curve for label, shared in found.items() if shared.curve is not None},
            study.chance.q,
        )
    drawn["neurons_by_layer"] = activity.layer_figure(results, labels, mark)
    if any("permutations" in result.row for result in results.values()):
        copies = {spec.label: study.copies(model) for model, spec in study.models.items()}
        drawn["chance"] = activity.chance_figure(results, copies, mark)
    return {name: save(figure, study.directory, name) for name, figure in drawn.items()}
