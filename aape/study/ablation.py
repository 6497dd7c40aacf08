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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.causal.classifier import scores
from aape.causal.trials import Bench, Trial
from aape.encoders.encoder import Encoder, alone_with, choose_device
from aape.files import folder_lock, write_text
from aape.neurons.selection import jaccard_index
from aape.sounds.task import Task
from aape.study.effects import AT, MODES, Aim, against_controls
from aape.study.loading import load_encoder, load_task
from aape.study.study import AblationSettings, AblationTarget, Study, load_study
from aape.study.targets import Job, label_of, target_classes, target_neurons

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
        targets = [targets] if isinstance(targets, str) else targets
        asked = AblationSettings(**changed, targets=[_target(target, task.name) for target in targets])
        directory = artifacts.path / "ablation" if out_dir is None else Path(out_dir)
        select_by = {"rate": rate, "quantile": quantile, "weak_filter": weak_filter}
        of_model = subject.name, task.name, task, artifacts, directory / "ablations", asked, select_by
        jobs = [Job(*of_model, seed=seed, batch_size=batch_size or 32)]
        encoders: dict[str, Callable[[], Encoder]] = {subject.name: lambda: subject}
        names: dict[str, Any] = {
            "stand_in": False,
            "labels": {subject.name: subject.name},
            "titles": {task.name: task.name},
        }
    else:
        study = load_study(subject)
        changed |= {} if targets is None else {"targets": targets}
        asked = AblationSettings(**study.ablation.model_dump() | changed)
        directory, jobs, names = study.directory, list(_jobs(study, asked, batch_size)), _names(study)
        encoders = {job.model: functools.partial(load_encoder, study, job.model) for job in jobs}
    _say(jobs, asked, len(encoders))
    with folder_lock(directory / "ablations"):
        rows = _in_threads(jobs, encoders, choose_device(device))
        tables = {name: pd.DataFrame(new, columns=None if new else list(TABLES[name])) for name, new in rows.items()}
        tables["effects"] = against_controls(tables["effects"], tables["controls"])
        for name, table in tables.items():
            write_text(directory / f"ablation_{name}.csv", table.to_csv(index=False))
    return AblationResult(directory, **names, **tables)


def _target(target: Any, task: str) -> AblationTarget:
    """A class name, several names (the neurons that they share), or an AblationTarget or its content."""
    if isinstance(target, str):
        target = {"classes": [target], "mode": "specific"}
    elif isinstance(target, (list, tuple)):
        target = {"classes": list(target), "mode": "shared"}
    return AblationTarget(**{"task": task, **dict(target)})


def _jobs(study: Study, settings: AblationSettings, batch_size: int | None) -> Iterator[Job]:
    if not settings.targets:
        raise ValueError(
            f"study {study.name!r} states no ablation targets: list them under ablation.targets, each with task, "
            "classes and mode (specific, shared, all)"
        )
    tasks = {name: load_task(study, name) for name in dict.fromkeys(t.task for t in settings.targets)}
    models = [copy for name in settings.models or study.models for copy in study.copies(name)]
    for model, (name, task) in itertools.product(models, tasks.items()):
        spec, artifacts = study.encoder(model), load_artifacts(study.artifacts_directory(name, model))
        store = study.directory / "ablations" / f"{name}_{spec.folder}"
        select_by = study.select_by(name)
        options: dict[str, Any] = {"heard": spec.heard.get(name, ()), "seed": study.seed}
        options["batch_size"] = batch_size or study.collect.batch_size
        yield Job(model, name, task, artifacts, store, settings, select_by, **options)


def _names(study: Study) -> dict[str, Any]:
    labels = {name: spec.label for name, spec in study.encoders.items()}
    titles = {name: spec.title for name, spec in study.tasks.items()}
    return {"stand_in": study.stand_in, "labels": labels, "titles": titles}


def _say(jobs: Sequence[Job], settings: AblationSettings, models: int) -> None:
    """What it will cost, and what it can tell; a target that is empty in every model is a mistake."""
    for target in settings.targets:
        selections = [s for job in jobs if target in job.targets for s in job.chosen.values()]
        if not any([len(target_neurons(selection, target)) for selection in selections]):
            raise ValueError(
                f"no model has a neuron for the target {label_of(target)!r} of {target.task} ({target.mode}): the set "
                "is empty. Choose other classes, another mode or a higher selection rate."
            )
    passes, n = sum(job.passes() for job in jobs), settings.controls
    tqdm.write(f"Controls: at most {passes:,} passes of a clip through the layers from the first changed one on.")
    tests = sum(len(target_classes(t, job.artifacts.classes)) for job in jobs for t in job.targets) // models
    if n and tests / (n + 1) >= 0.05:
        tqdm.write(
            f"{n} controls and {tests} targeted class(es): the smallest p is {1 / (n + 1):.3g}, so that one class "
            f"alone has q = {min(1.0, tests / (n + 1)):.3g} at best. q < 0.05 needs {20 * tests} controls."
        )


def _in_threads(jobs: Sequence[Job], encoders: Mapping[str, Callable[[], Encoder]], device: torch.device) -> Rows:
    """Every job; on a CPU of several cores they run side by side, each on its share of them, the longest first."""
    threads = torch.get_num_threads()
    workers = min(len(jobs), threads) if device.type == "cpu" else 1
    stop = threading.Event()

    def run(job: Job) -> Rows:
        torch.set_num_threads(max(1, threads // workers))  # of this thread
        encoder = encoders[job.model]().to(device)
        with alone_with(encoder):
            return _one(job, encoder, stop)

    # One BLAS thread for all: the fits would set and reset it under each other.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        found = {job: pool.submit(run, job) for job in sorted(jobs, key=Job.passes, reverse=True)}
        try:
            for done in as_completed(found.values()):
                done.result()
        except BaseException:
            stop.set()  # what is done is kept; the others end with their batch
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    return {name: [row for job in jobs for row in found[job].result()[name]] for name in TABLES}


def _one(job: Job, encoder: Encoder, stop: threading.Event) -> Rows:
    """All targets of one task on one model: rows for the tables."""
    settings, where = job.settings, dict[str, Any](task=job.name, model=job.model)
    options: dict[str, Any] = {"seed": job.seed, "batch_size": job.batch_size, "stop": stop}
    bench = Bench(encoder, job.task, job.artifacts, job.store, refit_count=settings.refits, **options)
    panel = bench.panel(settings.panel)
    rows: Rows = {name: [] for name in TABLES}
    log_p = np.full((len(bench.labels), len(bench.classes)), np.nan)
    for part in bench.folds:
        log_p[part.test] = bench.judges[part.name][0].log_probabilities(bench.embeddings[part.test])
    t = bench.tested
    table = scores(log_p[t], bench.labels[t], bench.classes, job.in_sample[t])
    rows["classifier"] = table.assign(**where).to_dict("records")
    with tqdm(total=job.passes(), unit="pass", desc=f"{job.model} on {job.name}, controls", disable=None) as bar:
        for target in job.targets:
            aim = Aim(job, bench, target, panel)
            own = aim.effects()
            rows["effects"] += own
            for fold, neurons in aim.sets.items():
                at, layers = aim.at | {"fold": fold}, job.artifacts.layers
                rows["neurons"] += [at | {"layer": i, "neuron": n, "name": layers[i]} for i, n in neurons.tolist()]
                if job.others is not None:
                    both = {how: target_neurons(found[fold], target) for how, found in job.identified.items()}
                    rows["identification"].append(at | _overlap(both["train"], both["all"]))
            if aim.neurons:
                gains = [Trial(aim.sets, aim.here, float(g), at=aim.at | {"gain": g}) for g in settings.gains]
                rows["gains"] += aim.run(gains)
                rows["controls"] += aim.controls(own, bar)
    for name in bench.classes if settings.off_target else ():  # the panel's clips of every class heard
        aim = Aim(job, bench, AblationTarget(task=job.name, classes=[name], mode="specific"), panel)
        if aim.neurons:
            at = where | {"silenced": name, "neurons": aim.neurons}
            rows["off_target"] += aim.run([Trial(aim.sets, panel, MODES[settings.modes[0]], at=at)], everywhere=True)
    return rows


def _overlap(train: np.ndarray, everyone: np.ndarray) -> dict[str, Any]:
    """How far two sets of neurons [k, 2] agree."""
    a, b = set(map(tuple, train.tolist())), set(map(tuple, everyone.tolist()))
    jaccard = float(jaccard_index(len(a & b), len(a | b), np.nan))
    return {"training_clips": len(a), "all_clips": len(b), "both": len(a & b), "jaccard": jaccard}


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
        """The headline's effects: a row per task, target, model and class of the target."""
        rows = self.effects
        return rows[(rows.kind == self.headline) & rows.targeted & (rows.measure == measure)].reset_index(drop=True)

    def table(self, measure: str = "log_probability") -> pd.DataFrame:
        """The summary for a notebook: eight columns of text, the deepest fall first; classes without neurons last."""
        found = self.summary(measure).sort_values("effect", kind="stable", na_position="last")
        names = zip(found.target, found["class"], found.task, strict=True)
        targets = [(t if t == c else f"{t} ({c})") + f", {self.titles.get(task, task)}" for t, c, task in names]
        table = pd.DataFrame({"target": targets, "model": [self.labels.get(m, m) for m in found.model]})
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
        lines, units = [], {"accuracy": "points of accuracy", "log_probability": "nats of log-probability"}
        for measure, model in itertools.product(units, self.effects.model.unique()):
            label, rows = self.labels.get(model, model), self.summary(measure)
            tested = rows[(rows.model == model) & rows.active_p.notna()]
            if tested.empty:
                lines.append(f"{label}: nothing to test (no target has neurons, or no controls).")
                continue
            best = tested.iloc[tested.active_p.argmin()]
            line = (
                f"{label}, {units[measure]}: {(tested.active_q < q).sum()} of {len(tested)} targeted classes fall further "
                f"than with random sets as active in them, other classes' change taken off (q < {q:g}); on average "
                f"{tested.effect.mean():+.3g} against {tested.active_mean.mean():+.3g}; smallest p = {best.active_p:.3g} "
                f"(q = {best.active_q:.3g}, {best['class']} in {best.task}: {best.effect:+.3g} against "
                f"{best.active_mean:+.3g})."
            )
            for _, row in tested[(tested.effect > tested.active_mean) & (tested.active_p_two_sided < q)].iterrows():
                line += (
                    f" {row['class']} in {row.task} rises beside them: {row.effect:+.3g} against {row.active_mean:+.3g} "
                    f"(two-sided p = {row.active_p_two_sided:.3g}, not corrected)."
                )
            lines.append(line)
        # A classifier no better than always naming one class: its ablation says nothing.
        for (task, model), mine in self.classifier.query("part == 'all'").groupby(["task", "model"], sort=False):
            every, clips = mine[mine["class"] == "all classes"].iloc[0], mine.clips[mine["class"] != "all classes"]
            right, share = round(every.accuracy * every.clips), float(clips.max() / clips.sum())
            if binomtest(right, int(every.clips), share, "greater").pvalue > 0.05:
                label = self.labels.get(str(model), str(model))
                lines.append(f"{label} on {task}: the classifier is at chance, so its ablation can answer nothing.")
        return "\n".join(lines)


def read_text_table(path: Path) -> pd.DataFrame:
    """A table of results: names stay as they are, also `01` and `None`."""
    names = dict.fromkeys(("class", "silenced", "target", "model", "task", "figure", "rows", "columns"), str)
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])  # type: ignore[arg-type]


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
        tables[name] = read_text_table(path)
    return AblationResult(study.directory, **_names(study), **tables)
