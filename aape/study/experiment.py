"""One model on one task: the classifier on intact embeddings, each target's neurons changed, the rows of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts
from aape.causal.classifier import folds, scores
from aape.causal.runner import Runner
from aape.encoders.encoder import Encoder
from aape.sounds.task import Task
from aape.study.effects import AT, Row, TargetEffects
from aape.study.study import AblationSettings, AblationTarget
from aape.study.targets import Target, identify, resolve

_CHANGE = ("class", "targeted", "measure", "before", "after", "difference", "off_target", "effect")
TABLES = {  # name -> columns that a table has even without a row
    "effects": (*AT, "kind", *_CHANGE),
    "controls": (*AT, "kind", "control", "number", "overlap", "activity", *_CHANGE),
    "off_target": ("task", "model", "silenced", "neurons", *_CHANGE[:-2], "clips"),
    "gains": (*AT, "gain", *_CHANGE[:-2]),
    "classifier": ("task", "model", "class", "clips", "accuracy", "log_probability"),
    "neurons": (*AT, "fold", "layer", "neuron", "name"),
}
Rows = dict[str, list[Row]]


@dataclass(eq=False)
class Experiment:
    """One model on one task.

    Args:
        model, task_name: what tables call the two.
        task, artifacts: the clips, and what `collect` made of them.
        load: returns the encoder.
        folder: where results are kept.
        settings: of the ablation.
        select_by: rate, quantile and weak_filter of the selection.

    Attributes:
        selections: by fold, of the clips that `settings.identify` names.
        targets: those stated for this task.
    """

    model: str
    task_name: str
    task: Task
    artifacts: Artifacts
    load: Callable[[], Encoder]
    folder: Path
    settings: AblationSettings
    select_by: Mapping[str, Any]
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        artifacts = self.artifacts
        self.folds = folds(artifacts.splits, artifacts.labels, artifacts.classes, artifacts.groups)
        self.selections = identify(artifacts, self.folds, self.settings.identify, **self.select_by)
        stated = [target for target in self.settings.targets if target.task == self.task_name]
        self.targets = [resolve(target, self.selections) for target in stated]

    def passes(self) -> int:
        """The largest number of clips that are passed through the encoder for the controls."""
        settings = self.settings
        sets = (
            (settings.controls or 0)
            + settings.other_modes * (len(settings.modes) - 1)
            + settings.disjoint
        )
        tested = np.concatenate([fold.test for fold in self.folds])
        per_class = np.bincount(
            self.artifacts.labels[tested], minlength=len(self.artifacts.classes)
        )
        on_panel = per_class if settings.panel is None else np.minimum(per_class, settings.panel)
        clips = 0
        for target in self.targets:
            if target.size:
                clips += per_class[target.classes].sum() + np.delete(on_panel, target.classes).sum()
        return int(sets * clips)

    def run(self, device: torch.device, progress: bool = True) -> Rows:
        """Rows of all tables."""
        runner = Runner(
            self.load().to(device),
            self.task,
            self.artifacts,
            self.folder,
            parts=self.folds,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        panel = runner.panel(self.settings.panel)
        rows: Rows = {name: [] for name in TABLES}
        rows["classifier"] = self._classifier(runner)
        bar = tqdm(
            total=self.passes(),
            unit="pass",
            desc=f"{self.model} on {self.task_name}, controls",
            disable=None if progress else True,
        )
        with bar:
            for target in self.targets:
                effects = self._effects(runner, target, panel)
                target_rows = effects.of_target()
                rows["effects"] += target_rows
                rows["neurons"] += self._neurons(target)
                if target.size:
                    rows["gains"] += effects.gains()
                    rows["controls"] += effects.of_random_sets(target_rows, bar)
        if self.settings.off_target:
            rows["off_target"] = self._off_target(runner, panel)
        return rows

    def _effects(self, runner: Runner, target: Target, panel: np.ndarray) -> TargetEffects:
        names = {
            "task": self.task_name,
            "model": self.model,
            "target": target.label,
            "mode": target.mode,
        }
        return TargetEffects(runner, target, names, panel, self.settings)

    def _classifier(self, runner: Runner) -> list[Row]:
        """Rows of the scores of the intact classifier on the tested clips."""
        log_p = np.full((len(runner.labels), len(runner.classes)), np.nan)
        for fold in runner.folds:
            classifier = runner.classifiers[fold.name][0]
            log_p[fold.test] = classifier.log_probabilities(runner.embeddings[fold.test])
        table = scores(log_p[runner.tested], runner.labels[runner.tested], runner.classes)
        names = {"task": self.task_name, "model": self.model}
        return [names | dict(row) for _, row in table.iterrows()]

    def _neurons(self, target: Target) -> list[Row]:
        rows = []
        for fold, neurons in target.neurons.items():
            for layer, neuron in neurons.tolist():
                names = (self.task_name, self.model, target.label, target.mode)
                where = {
                    "fold": fold,
                    "layer": layer,
                    "neuron": neuron,
                    "name": self.artifacts.layers[layer],
                }
                rows.append(dict(zip(AT, names, strict=True)) | where)
        return rows

    def _off_target(self, runner: Runner, panel: np.ndarray) -> list[Row]:
        """Each class's neurons changed, the change in every class measured on the panel."""
        rows = []
        for name in runner.classes:
            stated = AblationTarget(task=self.task_name, classes=[name], mode="specific")
            target = resolve(stated, self.selections)
            if target.size:
                names = {
                    "task": self.task_name,
                    "model": self.model,
                    "silenced": name,
                    "neurons": target.size,
                }
                of_class = TargetEffects(runner, target, names, panel, self.settings).on_panel(
                    panel
                )
                for row in of_class:
                    in_class = runner.labels == runner.classes.index(row["class"])
                    rows.append(row | {"clips": int((panel & in_class).sum())})
        return rows
