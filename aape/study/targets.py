"""Which neurons are changed: the neurons of the classes that a study states beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aape.artifacts.folder import Artifacts
from aape.causal.classifier import Fold
from aape.causal.runner import NeuronsByFold
from aape.neurons.selection import Selection, select
from aape.study.study import AblationTarget


@dataclass(frozen=True, eq=False)
class Target:
    """The neurons of a stated target, in one model.

    Attributes:
        label: what tables call the target: "jazz", "classical & jazz", "classical & jazz only".
        mode: "specific", "shared" or "all".
        classes: indices of its classes.
        neurons: by fold, [k, 2] of (layer, neuron).
        activity: by fold, activation rate in its classes, mean over classes, float64 [layers, neurons].
    """

    label: str
    mode: str
    classes: list[int]
    neurons: NeuronsByFold
    activity: Mapping[str, np.ndarray]

    @property
    def size(self) -> float:
        """Number of neurons, the mean over the folds."""
        return float(np.mean([len(neurons) for neurons in self.neurons.values()]))

    def mean_activity(self, neurons: NeuronsByFold) -> float:
        """Mean activation rate of some neurons in the target's classes, the mean over the folds; NaN without neurons."""
        rates = [
            self.activity[fold][tuple(of_fold.T)].mean()
            for fold, of_fold in neurons.items()
            if len(of_fold)
        ]
        return float(np.mean(rates)) if rates else np.nan


def resolve(stated: AblationTarget, selections: Mapping[str, Selection]) -> Target:
    """The neurons that the selection of each fold has for a stated target.

    Raises:
        ValueError: a class that the task does not have, or a number of classes that does not go with the mode.
    """
    classes = target_classes(stated, next(iter(selections.values())).classes)
    neurons = {fold: target_neurons(selection, stated) for fold, selection in selections.items()}
    activity = {
        fold: selection.probabilities[:, :, classes].mean(axis=2)
        for fold, selection in selections.items()
    }
    return Target(label_of(stated), stated.mode, classes, neurons, activity)


def label_of(target: AblationTarget) -> str:
    """What tables call a target: "jazz", "classical & jazz", "classical & jazz only", "all of classical, jazz"."""
    if target.mode == "all":
        return f"all of {', '.join(target.classes)}" if target.classes else "all classes"
    return " & ".join(target.classes) + (" only" if target.exclusive else "")


def target_classes(target: AblationTarget, classes: Sequence[str]) -> list[int]:
    """Indices of a target's classes.

    Raises:
        ValueError: a class that the task does not have, or a number of classes that does not go with the mode.
    """
    where = f"target {label_of(target)!r} of task {target.task}"
    unknown = [name for name in target.classes if name not in classes]
    if unknown:
        raise ValueError(f"{where}: no class {unknown[0]!r}; the task has {', '.join(classes)}")
    count = len(set(target.classes))
    fits = {"specific": count == 1, "shared": count > 1, "all": not target.exclusive}
    if not fits[target.mode]:
        raise ValueError(
            f"{where}: {target.mode!r} with {count} class(es), exclusive: {target.exclusive}. 'specific' takes one class, "
            "'shared' two or more, 'all' any number and cannot be exclusive"
        )
    return [classes.index(name) for name in target.classes or classes]


def target_neurons(selection: Selection, target: AblationTarget) -> np.ndarray:
    """Neurons [k, 2] specific to each class of a target (with `exclusive`, to no other); of "all", to any of them."""
    classes = target_classes(target, selection.classes)
    if target.mode == "all":
        return np.argwhere(selection.members[:, :, classes].any(axis=2)).reshape(-1, 2)
    return selection.shared(classes, exclusive=target.exclusive)


def identify(
    artifacts: Artifacts, parts: Sequence[Fold], clips: str, **options: Any
) -> dict[str, Selection]:
    """The selection for each fold.

    Args:
        artifacts: of one model and task.
        parts: its folds.
        clips: "train": the fold's training clips; "all": all clips, as in the paper, the test clips among them.
        **options: of `select`: rate, quantile, weak_filter.
    """

    def selected(probabilities: np.ndarray) -> Selection:
        return select(probabilities, classes=artifacts.classes, **options)

    if clips == "all":
        selection = selected(artifacts.over_zero.double().numpy())
        return {fold.name: selection for fold in parts}
    return {fold.name: selected(artifacts.probabilities(clips=fold.fit)) for fold in parts}
