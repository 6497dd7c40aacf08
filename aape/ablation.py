"""Does it matter? The classes' neurons changed, against many random sets of neurons changed in the same way.

The targets are stated before anything is seen: the neurons specific to a class, shared by several, or of all classes,
of one task. They are chosen on the training clips and tested on the others, by a linear classifier fitted on the intact
encoder's embeddings and then left alone.

* Modes: the neurons at their mean over the training clips (the headline: nothing leaves the range that the encoder
  knows), at zero (the paper's way), or as they are in a clip of another class, token by token (resampling).
* Effect: the change in the target's class minus that in the others, the latter on a seeded panel of a few clips of each
  class. So a set that disturbs everything has no effect. Beside it: the change itself, and the rank of the class among
  all classes by how far they fall.
* Controls: random sets *as active in the target's classes* (layer by layer, stratum by stratum of the rate there) are
  the decisive ones; sets with as many neurons in each layer, or of like rate over all clips, are weaker; the paper has
  one (each index plus one). p = (1 + #{control as low or lower}) / (1 + n), two-sided p beside it, q after Benjamini
  and Hochberg over the targeted classes of one encoder, measure and mode.
* Uncertainty: bootstrap-t over groups of clips, before and after paired, and the spread over classifiers refitted on
  bootstrapped training groups.

Two measures: accuracy in percentage points, and the mean log-probability of the true class in nats, which moves when
accuracy is too coarse.

    result = ablate("miniature")                                                    # a study and its stated targets
    result = ablate(encoder, task, artifacts, targets=["rain", ("rain", "wind")])   # without a study file

Every batch of clips is kept on disk as it is done, so a sweep that was cut off goes on, and one with more targets or
controls computes only what is new.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from aape.artifacts import Artifacts, load_artifacts
from aape.classifier import folds
from aape.effects import AT, CONTROLS, MODES, Aim, against_controls
from aape.encoder import Encoder, choose_device
from aape.files import folder_lock, write_text
from aape.selection import jaccard_index
from aape.study import AblationSettings, AblationTarget, Study, load_encoder, load_study, load_task
from aape.targets import identify, label_of, target_classes, target_neurons
from aape.task import Task
from aape.trials import Bench, Trial, require_clips

_CHANGE = ("class", "targeted", "measure", "before", "after", "difference", "off_target", "effect")
TABLES = {  # name -> columns that it has even without a row
    "effects": (*AT, "kind", *_CHANGE),
    "controls": (*AT, "kind", "control", "number", *_CHANGE),
    "off_target": ("task", "model", "silenced", "neurons", *_CHANGE[:-2]),
    "gains": (*AT, "gain", *_CHANGE[:-2]),
    "classifier": ("task", "model", "class", "part", "clips", "in_sample", "accuracy", "log_probability"),
    "identification": (*AT, "fold", "training_clips", "all_clips", "both", "jaccard"),
    "neurons": (*AT, "fold", "layer", "neuron", "name"),
}
Rows = dict[str, list[dict[str, Any]]]


@dataclass(eq=False)
class _Job:
    """One model on one task, with the selection by fold as the settings ask, and in the other way where there are counts."""

    model: str
    name: str
    task: Task
    artifacts: Artifacts
    store: Path
    selection: Mapping[str, Any]
    settings: AblationSettings
    heard: Sequence[str] = ()

    def __post_init__(self) -> None:
        require_clips(self.artifacts)
        splits, labels, how = self.artifacts.splits, self.artifacts.labels, self.settings.identify
        unknown = sorted(set(self.heard) - set(splits.tolist()))
        if unknown:
            known = ", ".join(sorted(set(splits)))
            raise ValueError(f"models.{self.model}.heard: {self.name} has no split {unknown[0]!r}; it has {known}")
        self.targets = [target for target in self.settings.targets if target.task == self.name]
        parts = folds(splits, labels, self.artifacts.classes)
        tested = labels[np.concatenate([fold.test for fold in parts])]
        self.tested = np.bincount(tested, minlength=len(self.artifacts.classes))  # clips of each class
        self.chosen = identify(self.artifacts, parts, how, **self.selection)
        self.others = None
        if how == "train" or self.artifacts.has_all_counts:
            other = "all" if how == "train" else "train"
            self.others = identify(self.artifacts, parts, other, **self.selection)

    def passes(self) -> int:
        """At most so many clips are passed through the encoder for the controls."""
        settings = self.settings
        sets = settings.controls + settings.layer_matched + settings.rate_matched
        sets += settings.other_modes * (len(settings.modes) - 1)
        clips = 0
        for target in self.targets:
            mine = target_classes(target, self.artifacts.classes)
            if any(len(target_neurons(s, target)) for s in self.chosen.values()):
                clips += int(self.tested[mine].sum()) + settings.panel * (len(self.tested) - len(mine))
        return sets * clips


@dataclass(eq=False)
class _Experiment:
    """All that `ablate` was asked for."""

    directory: Path
    settings: AblationSettings
    bench: dict[str, Any]  # options of every Bench: seed, batch_size
    encoders: Mapping[str, Callable[[], Encoder]]
    jobs: list[_Job]
    names: dict[str, Any]  # what figures call models and tasks: fields of AblationResult


def _names(study: Study) -> dict[str, Any]:
    labels = {name: spec.label for name, spec in study.encoders.items()}
    titles = {name: spec.title for name, spec in study.tasks.items()}
    return {"stand_in": study.stand_in, "labels": labels, "titles": titles}


def _of_study(study: Study, settings: AblationSettings) -> _Experiment:
    if not settings.targets:
        raise ValueError(
            f"study {study.name!r} states no ablation targets: list them under ablation.targets, each with task, "
            "classes and mode (specific, shared, all)"
        )
    models = [copy for name in settings.models or study.models for copy in study.copies(name)]
    tasks = {name: load_task(study, name) for name in dict.fromkeys(t.task for t in settings.targets)}
    jobs = []
    for model, (name, task) in itertools.product(models, tasks.items()):
        spec, artifacts = study.encoder(model), load_artifacts(study.artifacts_directory(name, model))
        store = study.directory / "ablations" / f"{name}_{spec.folder}"
        select_by = study.selection.model_dump() | {"rate": study.rate(name)}
        jobs.append(_Job(model, name, task, artifacts, store, select_by, settings, spec.heard.get(name, [])))
    encoders = {model: functools.partial(load_encoder, study, model) for model in models}
    options = {"seed": study.seed, "batch_size": study.collect.batch_size}
    return _Experiment(study.directory, settings, options, encoders, jobs, _names(study))


def _target(target: Any, task: str) -> AblationTarget:
    """A class name, several names (the neurons that they share), or an AblationTarget or its content."""
    if isinstance(target, AblationTarget):
        return target
    if isinstance(target, str):
        target = {"classes": [target], "mode": "specific"}
    elif not isinstance(target, Mapping):
        target = {"classes": list(target), "mode": "shared"}
    return AblationTarget(**{"task": task, **target})


def ablate(
    subject: str | Path | Study | Encoder,
    task: Task | None = None,
    artifacts: Artifacts | None = None,
    *,
    targets: Sequence[Any] | None = None,
    controls: int | None = None,
    rate: float = 0.01,
    quantile: float = 0.95,
    weak_filter: str = "lape",
    out_dir: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    **settings: Any,
) -> AblationResult:
    """The deactivation experiment, for every model and task that a study's targets name, or for one of each.

    Says before it starts what it will cost, and whether q < 0.05 can be reached with these controls and targets.

    Args:
        subject: a study with `ablation.targets`, whose artifacts have been collected; or an encoder.
        task: with an encoder: the clips.
        artifacts: with an encoder: what `collect` made of the two.
        targets: class names; tuples of names, for the neurons that these classes share; or `AblationTarget`s. None: the
            study's.
        controls: random sets for the decisive comparison. None: the study's, or 199.
        rate, quantile, weak_filter: of the selection, as in `select`. A study has its own.
        out_dir: of the tables and of what is kept. A study has its own; None: `ablation` in the artifacts' folder.
        seed: of controls, panel, bootstrap and refits. A study has its own.
        device: None: CUDA if there, else CPU.
        batch_size: clips at once; None: the study's, or 32.
        **settings: any other of `AblationSettings`, in place of the study's.

    Raises:
        ValueError: no targets; unknown classes; artifacts that do not belong to the encoder; a target without a neuron
            in every model. What was computed until then is kept.
        FileNotFoundError: artifacts that have not been collected.
        FolderBusy: another process is at the same study.
    """
    changed = settings | ({} if controls is None else {"controls": controls})
    if isinstance(subject, Encoder):
        if task is None or artifacts is None or not targets:
            raise ValueError("ablate(encoder, task, artifacts, targets=[...]) needs all four; targets are class names")
        asked = AblationSettings(**changed, targets=[_target(target, task.name) for target in targets])
        folder = artifacts.path / "ablation" if out_dir is None else Path(out_dir)
        select_by = {"rate": rate, "quantile": quantile, "weak_filter": weak_filter}
        job = _Job(subject.name, task.name, task, artifacts, folder / "ablations", select_by, asked)
        names = {"stand_in": False, "labels": {subject.name: subject.name}, "titles": {task.name: task.name}}
        plan = _Experiment(folder, asked, {"seed": seed}, {subject.name: lambda: subject}, [job], names)
    else:
        study = subject if isinstance(subject, Study) else load_study(subject)
        changed |= {} if targets is None else {"targets": targets}
        plan = _of_study(study, AblationSettings(**study.ablation.model_dump() | changed))
    plan.bench |= {"batch_size": batch_size} if batch_size else {}
    _say(plan)
    with folder_lock(plan.directory / "ablations"):
        rows = _in_threads(plan, choose_device(device))
        tables = {name: pd.DataFrame(new, columns=None if new else list(TABLES[name])) for name, new in rows.items()}
        tables["effects"] = against_controls(tables["effects"], tables["controls"])
        for name, table in tables.items():
            write_text(plan.directory / f"ablation_{name}.csv", table.to_csv(index=False))
    return AblationResult(plan.directory, **plan.names, **tables)


def _say(plan: _Experiment) -> None:
    """What it will cost, and what it can tell; a target that is empty in every model is a mistake."""
    for target in plan.settings.targets:
        selections = [s for job in plan.jobs if target in job.targets for s in job.chosen.values()]
        if not any([len(target_neurons(selection, target)) for selection in selections]):
            raise ValueError(
                f"no model has a neuron for the target {label_of(target)!r} of {target.task} ({target.mode}): the set "
                "is empty. Choose other classes, another mode or a higher selection rate."
            )
    tests = sum(len(target_classes(t, j.artifacts.classes)) for j in plan.jobs for t in j.targets) // len(plan.encoders)
    controls, passes = plan.settings.controls, sum(job.passes() for job in plan.jobs)
    tqdm.write(f"Controls: at most {passes:,} passes of a clip through the layers from the first changed one on.")
    if controls and tests / (controls + 1) >= 0.05:
        tqdm.write(
            f"{controls} controls and {tests} targeted class(es): the smallest p is {1 / (controls + 1):.3g}, so that one "
            f"class alone has q = {min(1.0, tests / (controls + 1)):.3g} at best. q < 0.05 needs {20 * tests} controls."
        )


def _in_threads(plan: _Experiment, device: torch.device) -> Rows:
    """Every job; on a CPU of several cores the models side by side, each on its share of them."""
    threads = torch.get_num_threads()
    workers = min(len(plan.encoders), threads) if device.type == "cpu" else 1
    stop = threading.Event()

    def of_model(model: str) -> list[Rows]:
        torch.set_num_threads(max(1, threads // workers))  # of this thread
        encoder = plan.encoders[model]().to(device)
        return [_one(plan, job, encoder, stop) for job in plan.jobs if job.model == model]

    # One BLAS thread for all: the fits would set and reset it under each other.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        try:
            found = list(pool.map(of_model, plan.encoders))
        except BaseException:
            stop.set()  # what is done is kept; the others end with their batch
            raise
        finally:
            torch.set_num_threads(threads)
    return {name: [row for rows in itertools.chain(*found) for row in rows[name]] for name in TABLES}


def _one(plan: _Experiment, job: _Job, encoder: Encoder, stop: threading.Event) -> Rows:
    """All targets of one task on one model: rows for the tables."""
    settings, where = plan.settings, {"task": job.name, "model": job.model}
    options = plan.bench | {"refit_count": settings.refits, "stop": stop}
    bench = Bench(encoder, job.task, job.artifacts, job.store, **options)
    in_sample, panel = np.isin(job.artifacts.splits, list(job.heard)), bench.panel(settings.panel)
    rows: Rows = {name: [] for name in TABLES}
    rows["classifier"] = bench.classifier_scores(in_sample).assign(**where).to_dict("records")
    (intact,) = bench.run([Trial(None, bench.tested, all_judges=True)])
    desc = f"{plan.names['labels'].get(job.model, job.model)} on {job.name}, controls"
    with tqdm(total=job.passes(), unit="pass", desc=desc, disable=None) as bar:
        for target in job.targets:
            aim = Aim(bench, target, job.chosen, panel, where)
            own = aim.effects(job.others, settings, intact, in_sample)
            rows["effects"] += own
            for fold, neurons in aim.sets.items():
                layers = job.artifacts.layers
                rows["neurons"] += [
                    aim.at | {"fold": fold, "layer": i, "neuron": n, "name": layers[i]} for i, n in neurons.tolist()
                ]
                if job.others is not None:
                    pair = [neurons, target_neurons(job.others[fold], target)]
                    both = _overlap(*(pair if settings.identify == "train" else pair[::-1]))
                    rows["identification"].append(aim.at | {"fold": fold} | both)
            if aim.neurons:
                gains = [Trial(aim.sets, aim.here, float(g), at=aim.at | {"gain": g}) for g in settings.gains]
                rows["gains"] += aim.run(gains, intact[0])
                rows["controls"] += aim.controls(settings, own, intact[0], bar)
    if settings.off_target:  # the neurons of each class changed, the panel's clips of every class heard
        for name in bench.classes:
            aim = Aim(bench, AblationTarget(task=job.name, classes=[name], mode="specific"), job.chosen, panel, where)
            if aim.neurons:
                at = where | {"silenced": name, "neurons": aim.neurons}
                trial = Trial(aim.sets, panel, MODES[settings.modes[0]], at=at)
                rows["off_target"] += aim.changes(trial, intact[0], bench.run([trial])[0][0], everywhere=True)
    return rows


def _overlap(train: np.ndarray, everyone: np.ndarray) -> dict[str, Any]:
    """How far two sets of neurons [k, 2] agree."""
    a, b = set(map(tuple, train.tolist())), set(map(tuple, everyone.tolist()))
    jaccard = float(jaccard_index(len(a & b), len(a | b), np.nan))
    return {"training_clips": len(a), "all_clips": len(b), "both": len(a & b), "jaccard": jaccard}


# -- the result -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult:
    """Tables of the experiment; each is also a CSV file `ablation_<name>.csv` in `directory`.

    effects: a row per task, model, target, kind of change, class and measure.
    controls: a row per control set, targeted class and measure.
    off_target: the change in each class when another class's neurons are changed, on the panel.
    gains: the change in each class of a target by gain.
    classifier: accuracy of the intact classifier by class, clips in the encoder's training data set apart.
    identification: size and overlap of the sets chosen on training clips and on all clips.
    neurons: the changed neurons.
    """

    directory: Path
    stand_in: bool
    labels: Mapping[str, str]  # model -> what figures call it
    titles: Mapping[str, str]  # task -> what figures call it
    effects: pd.DataFrame
    controls: pd.DataFrame
    off_target: pd.DataFrame
    gains: pd.DataFrame
    classifier: pd.DataFrame
    identification: pd.DataFrame
    neurons: pd.DataFrame

    @property
    def headline(self) -> str:
        """The kind of change that the verdict is about: the first mode."""
        return str(self.effects.kind.iloc[0])

    def __repr__(self) -> str:
        return f"Ablation in {self.directory}\n{self.verdict()}"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)

    def summary(self, measure: str = "log_probability") -> pd.DataFrame:
        """A row per task, target, model and class of the target: before, change, effect, controls, p and q."""
        rows = self.effects
        rows = rows[(rows.kind == self.headline) & rows.targeted & (rows.measure == measure)]
        columns = [
            "task",
            "target",
            "model",
            "class",
            "clips",
            "groups",
            "in_sample",
            "neurons",
            "before",
            "difference",
        ]
        columns += ["low", "high", "off_target", "effect", "effect_low", "effect_high", "rank", "refit_sd"]
        for short in CONTROLS.values():
            if short == "active" or rows[f"{short}_controls"].gt(0).any():
                columns += [f"{short}_{what}" for what in ("controls", "mean", "low", "high", "p", "p_two_sided", "q")]
        return rows[columns].reset_index(drop=True)

    def table(self, measure: str = "log_probability") -> pd.DataFrame:
        """The summary for a notebook: eight columns of text, the deepest fall first; classes without neurons last."""
        found = self.summary(measure).sort_values("effect", kind="stable", na_position="last")
        where = found.task.map(lambda t: self.titles.get(t, t))
        names = zip(found.target, found["class"], where, strict=True)
        table = pd.DataFrame({"target": [f"{t}, {w}" if t == c else f"{t} ({c}), {w}" for t, c, w in names]})
        table["model"] = found.model.map(lambda m: self.labels.get(m, m)).to_numpy()
        for name, column, form in (
            ("neurons", "neurons", "{:.4g}"),
            (f"change, {'points' if measure == 'accuracy' else 'nats'}", "difference", "{:+.3g}"),
            ("less that of other classes", "effect", "{:+.3g}"),
            ("rank of the fall", "rank", "{:.0f}"),
            ("sets as active", "active_mean", "{:+.3g}"),
            ("q", "active_q", "{:.3g}"),
        ):
            table[name] = [form.format(v) if np.isfinite(v) else "" for v in found[column]]
        return table

    def verdict(self, q: float = 0.05) -> str:
        """Plain sentences: for each encoder, whether its targets' classes fall further than with sets as active."""
        lines = []
        for measure, unit in (("accuracy", "points of accuracy"), ("log_probability", "nats of log-probability")):
            for model, mine in self.summary(measure).groupby("model", sort=False):
                label, tested = self.labels.get(str(model), str(model)), mine[mine.active_p.notna()]
                if tested.empty:
                    lines.append(f"{label}: nothing to test (no target has neurons, or no controls).")
                    continue
                best = tested.iloc[tested.active_p.argmin()]
                line = (
                    f"{label}, {unit}: {(tested.active_q < q).sum()} of {len(tested)} targeted classes fall further than "
                    f"with random sets as active in them, other classes' change taken off (q < {q:g}); on average "
                    f"{tested.effect.mean():+.3g} against {tested.active_mean.mean():+.3g}; smallest p = "
                    f"{best.active_p:.3g} (q = {best.active_q:.3g}, {best['class']} in {best.task}: {best.effect:+.3g} "
                    f"against {best.active_mean:+.3g})."
                )
                for _, row in tested[(tested.effect > tested.active_mean) & (tested.active_p_two_sided < q)].iterrows():
                    line += (
                        f" {row['class']} in {row.task} rises beside them: {row.effect:+.3g} against "
                        f"{row.active_mean:+.3g} (two-sided p = {row.active_p_two_sided:.3g}, not corrected)."
                    )
                lines.append(line)
        # A classifier no better than always naming one class: its ablation says nothing.
        for (task, model), mine in self.classifier.query("part == 'all'").groupby(["task", "model"], sort=False):
            every, by_class = mine[mine["class"] == "all classes"].iloc[0], mine[mine["class"] != "all classes"]
            share = float(by_class.clips.max() / by_class.clips.sum())
            if binomtest(round(every.accuracy * every.clips), int(every.clips), share, "greater").pvalue > 0.05:
                label = self.labels.get(str(model), str(model))
                lines.append(f"{label} on {task}: the classifier is at chance, so its ablation can answer nothing.")
        return "\n".join(lines)


def load_result(study: Study) -> AblationResult:
    """The tables of an earlier `ablate`, without the models.

    Raises:
        FileNotFoundError: no such tables.
    """
    tables: dict[str, Any] = {}
    for name in TABLES:
        path = study.directory / f"ablation_{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run Ablations.ipynb with study {study.name!r} first")
        tables[name] = pd.read_csv(path, dtype={"class": str, "silenced": str, "target": str, "model": str})
    return AblationResult(study.directory, **_names(study), **tables)
