"""The deactivation experiment: are the neurons of a class needed to recognise it?

The targets are stated before any result is seen: the neurons specific to a class, shared by several, or of all classes
of a task. For each model and task (`Experiment`):

1. A linear classifier is fitted on the intact embeddings of the training clips, and never changed afterwards.
2. The neurons of each target are chosen on the training clips and changed in the encoder: mean-ablated (replaced by
   their mean over the training clips, so that no activation leaves the range that the encoder knows) or silenced (the
   paper's way). The test clips are embedded again (`Runner`), and the classifier is tested again.
3. The effect on a class is its change minus that of other classes. Its interval is a bootstrap-t over groups of clips.
4. The same is done with activity-matched random sets: neurons that are as active in the target's classes, layer by
   layer. p = (1 + #{sets as low or lower}) / (1 + n); q is that of Benjamini and Hochberg over the targeted classes of one
   model, measure and mode. Such sets contain some of the target's neurons; how many is stated, and sets without them are
   compared too (`aape.causal.controls`). The paper's control, each neuron's successor silenced, is reported as well.

There are two measures: accuracy in percentage points, and the mean log-probability of the true class in nats, which
moves where accuracy is too coarse.

    result = ablate("miniature")                                                    # a study and its stated targets
    result = ablate(encoder, task, artifacts, targets=["rain", ("rain", "wind")])   # without a study file

Every batch of clips is kept on disk, so an interrupted run resumes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.encoders.encoder import Encoder, choose_device
from aape.files import folder_lock, write_text
from aape.sounds.task import Task
from aape.study.ablation_result import AblationResult, names_of
from aape.study.effects import against_controls
from aape.study.experiment import TABLES, Experiment, Rows
from aape.study.loading import load_encoder, load_task
from aape.study.study import AblationSettings, AblationTarget, Study, load_study
from aape.study.targets import label_of


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
    """Run the deactivation experiment for every model and task that a study's targets name, or for one of each.

    It says beforehand what it will cost, and whether q < 0.05 can be reached with these controls and targets. On a CPU
    the experiments of a study run side by side in processes; on a GPU they run one after the other.

    Args:
        subject: a study with `ablation.targets`, whose artifacts have been collected; or an encoder.
        task: with an encoder: the clips.
        artifacts: with an encoder: what `collect` made of the two.
        targets: class names; tuples of names, for the neurons that these classes share; or `AblationTarget`s. None: the
            study's.
        controls: number of activity-matched random sets. None: the study's; without one, so many that one class alone can
            reach q < 0.05 with one set as low, and at least 199.
        rate, quantile, weak_filter: of the selection, as in `select`. A study has its own.
        out_dir: of the tables and the kept results. A study has its own; None: `ablation` in the artifacts' folder.
        seed: of controls, panel and bootstrap. A study has its own.
        device: None: CUDA if available, else CPU.
        batch_size: clips at once; None: the study's, or 32.
        **settings: any other of `AblationSettings`, in place of the study's.

    Raises:
        ValueError: no targets; unknown classes; artifacts that do not belong to the encoder; a target without a neuron
            in every model.
        FileNotFoundError: artifacts that have not been collected.
        FolderBusy: another process works on the same study.
    """
    given = settings | ({} if controls is None else {"controls": controls})
    if isinstance(subject, Encoder):
        if task is None or artifacts is None or not targets:
            raise ValueError(
                "ablate(encoder, task, artifacts, targets=[...]) needs all four; targets are class names"
            )
        targets = [targets] if isinstance(targets, str) else targets
        asked = AblationSettings(
            **given, targets=[_target(target, task.name) for target in targets]
        )
        directory = artifacts.path / "ablation" if out_dir is None else Path(out_dir)
        experiment = Experiment(
            model=subject.name,
            task_name=task.name,
            task=task,
            artifacts=artifacts,
            load=lambda: subject,
            folder=directory / "ablations",
            settings=asked,
            select_by={"rate": rate, "quantile": quantile, "weak_filter": weak_filter},
            seed=seed,
            batch_size=batch_size or 32,
        )
        names = {
            "substitute": False,
            "labels": {subject.name: subject.name},
            "titles": {task.name: task.name},
        }
        return _ablate([experiment], directory, names, device, in_processes=False)
    study = load_study(subject)
    given |= {} if targets is None else {"targets": targets}
    asked = AblationSettings(**study.ablation.model_dump() | given)
    experiments = _experiments(study, asked, batch_size or study.collect.batch_size)
    return _ablate(experiments, study.directory, names_of(study), device, in_processes=True)


def _target(target: Any, task: str) -> AblationTarget:
    """A class name, several names (the neurons that they share), or an AblationTarget or its content."""
    if isinstance(target, str):
        return AblationTarget(task=task, classes=[target], mode="specific")
    if isinstance(target, (list, tuple)):
        return AblationTarget(task=task, classes=list(target), mode="shared")
    return AblationTarget(**{"task": task, **dict(target)})


def _experiments(study: Study, settings: AblationSettings, batch_size: int) -> list[Experiment]:
    if not settings.targets:
        raise ValueError(
            f"study {study.name!r} states no ablation targets: list them under ablation.targets, each with task, "
            "classes and mode (specific, shared, all)"
        )
    tasks = {
        name: load_task(study, name)
        for name in dict.fromkeys(target.task for target in settings.targets)
    }
    experiments = []
    for stated_model in settings.models or study.models:
        for model in study.copies(stated_model):
            for name, task in tasks.items():
                experiment = Experiment(
                    model=model,
                    task_name=name,
                    task=task,
                    artifacts=load_artifacts(study.artifacts_directory(name, model)),
                    load=functools.partial(load_encoder, study, model),
                    folder=study.directory / "ablations" / f"{name}_{study.encoder(model).folder}",
                    settings=settings,
                    select_by=study.select_by(name),
                    seed=study.seed,
                    batch_size=batch_size,
                )
                experiments.append(experiment)
    return experiments


def _ablate(
    experiments: Sequence[Experiment],
    directory: Path,
    names: dict[str, Any],
    device: str | torch.device | None,
    in_processes: bool,
) -> AblationResult:
    """All experiments, and their tables."""
    _refuse_empty_targets(experiments)
    _choose_controls(experiments)
    _say_costs(experiments)
    with folder_lock(directory / "ablations"):
        rows_of_experiments = _run(experiments, choose_device(device), in_processes)
        tables = {}
        for name, columns in TABLES.items():
            rows = [row for rows in rows_of_experiments for row in rows[name]]
            tables[name] = pd.DataFrame(rows, columns=None if rows else list(columns))
        tables["effects"] = against_controls(tables["effects"], tables["controls"])
        for name, table in tables.items():
            write_text(directory / f"ablation_{name}.csv", table.to_csv(index=False))
    return AblationResult(directory, **names, **tables)


def _run(experiments: Sequence[Experiment], device: torch.device, in_processes: bool) -> list[Rows]:
    """Rows of every experiment; on a CPU in as many processes as there are threads, each with its share of them."""
    workers = min(len(experiments), torch.get_num_threads())
    if workers == 1 or device.type != "cpu" or not in_processes:
        return [experiment.run(device) for experiment in experiments]
    longest_first = sorted(range(len(experiments)), key=lambda i: -experiments[i].passes())
    tasks = [joblib.delayed(experiments[i].run)(device, progress=False) for i in longest_first]
    results = joblib.Parallel(workers, return_as="generator")(tasks)
    bar = tqdm(results, total=len(tasks), unit="experiment", desc="ablation", disable=None)
    rows = dict(zip(longest_first, bar, strict=True))
    return [rows[i] for i in range(len(experiments))]


def _refuse_empty_targets(experiments: Sequence[Experiment]) -> None:
    """A target without a neuron in every model is a mistake."""
    for stated in experiments[0].settings.targets:
        label, sizes = label_of(stated), []
        for experiment in experiments:
            for target in experiment.targets:
                if (experiment.task_name, target.label, target.mode) == (
                    stated.task,
                    label,
                    stated.mode,
                ):
                    sizes.append(target.size)
        if not any(sizes):
            raise ValueError(
                f"no model has a neuron for the target {label!r} of {stated.task} ({stated.mode}): the set is empty. "
                "Choose other classes, another mode or a higher selection rate."
            )


def _tests(experiments: Sequence[Experiment]) -> int:
    """Targeted classes of one model, over all tasks: the tests of one family of q."""
    first = experiments[0].model
    targets = [
        target
        for experiment in experiments
        if experiment.model == first
        for target in experiment.targets
    ]
    return sum(len(target.classes) for target in targets)


def _choose_controls(experiments: Sequence[Experiment]) -> None:
    """Where the settings leave it open: so many that q < 0.05 can be reached by one class, also with one set as low."""
    number = max(199, 40 * _tests(experiments))
    for experiment in experiments:
        if experiment.settings.controls is None:
            experiment.settings = experiment.settings.model_copy(update={"controls": number})


def _say_costs(experiments: Sequence[Experiment]) -> None:
    """The number of passes, and the smallest q that these controls allow."""
    passes = sum(experiment.passes() for experiment in experiments)
    tqdm.write(
        f"Controls: at most {passes:,} passes of a clip through the layers from the first changed one on."
    )
    controls, tests = experiments[0].settings.controls, _tests(experiments)
    if controls and tests / (controls + 1) >= 0.05:
        tqdm.write(
            f"{controls} controls and {tests} targeted class(es): the smallest p is {1 / (controls + 1):.3g}, so that one "
            f"class alone has q = {min(1.0, tests / (controls + 1)):.3g} at best. q < 0.05 needs {20 * tests} controls."
        )
