"""Which neurons are silenced, and which random ones beside them. A `Job` is one model on one task with its targets.

A control is drawn by a rule that does not look at the target beyond the numbers of its neurons: as many in each layer,
or in each layer and stratum of like activation rate, and it may overlap with the target. So a target that was itself
drawn by the rule is one draw among its controls, and its p is uniform, however large it is. (Leaving the target's
neurons out, the more of a layer it fills the less the controls resemble it.)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aape.artifacts.folder import Artifacts
from aape.causal.classifier import Fold, folds
from aape.neurons.selection import Selection, select
from aape.sounds.task import Task
from aape.study.study import AblationSettings, AblationTarget

STRATUM = 20  # neurons of like rate in a layer among which a rate-matched control draws


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
    unknown, count = [c for c in target.classes if c not in classes], len(set(target.classes))
    fits = {"specific": count == 1, "shared": count > 1, "all": not target.exclusive}[target.mode]
    if unknown or not fits:
        wrong = f"no class {unknown[0]!r}" if unknown else f"{target.mode!r} of {count}, exclusive: {target.exclusive}"
        raise ValueError(
            f"target {label_of(target)!r} of task {target.task}: {wrong}. 'specific' takes one class, 'shared' two or "
            f"more, 'all' any number and not exclusive; the task has {', '.join(classes)}"
        )
    return [classes.index(c) for c in target.classes or classes]


def target_neurons(selection: Selection, target: AblationTarget) -> np.ndarray:
    """Neurons [k, 2] of a target: specific to each of its classes, with `exclusive` to them alone; or to any (all)."""
    index = target_classes(target, selection.classes)
    if target.mode == "all":
        return np.argwhere(selection.members[:, :, index].any(axis=2)).reshape(-1, 2)
    return selection.shared(index, exclusive=target.exclusive)


def identify(artifacts: Artifacts, parts: Sequence[Fold], how: str, **options: Any) -> dict[str, Selection]:
    """The selection for each fold, from its training clips ("train") or from all clips, as in the paper ("all").

    Args:
        artifacts: of one model and task. parts: its folds. how: see above.
        **options: of `select`: rate, quantile, weak_filter.

    Raises:
        ValueError: training clips asked for where the artifacts hold no counts of single clips; attribution.
    """

    def chosen(p: np.ndarray) -> Selection:
        return select(p, classes=artifacts.classes, **options)

    if how == "all":
        everyone = chosen(artifacts.over_zero.double().numpy())
        return dict.fromkeys([fold.name for fold in parts], everyone)
    if not artifacts.has_all_counts:
        raise ValueError(
            f"{artifacts.path}: choosing neurons on training clips needs clip_counts.npy with every clip. Collect with "
            "counts of all clips, or set ablation.identify to 'all', the paper's way, which also sees the test clips."
        )
    return {f.name: chosen(artifacts.probabilities(clips=f.fit)) for f in parts}


def matched(neurons: np.ndarray, width: int, rng: np.random.Generator, rates: np.ndarray | None = None) -> np.ndarray:
    """Random neurons [k, 2], as many in each layer as `neurons` [k, 2] has; with `rates` in each stratum of a layer.

    Args:
        neurons: [k, 2] of (layer, neuron).
        width: neurons in each layer.
        rng: of the draw.
        rates: activation rates [layers, neurons]; a stratum is STRATUM neurons of a layer that follow in rate.
    """
    found = []
    for layer in np.unique(neurons[:, 0]):
        stratum = np.zeros(width, dtype=np.int64)  # of each neuron
        if rates is not None:
            stratum[np.argsort(rates[layer], kind="stable")] = np.arange(width) // STRATUM
        for s, needed in zip(*np.unique(stratum[neurons[neurons[:, 0] == layer, 1]], return_counts=True), strict=True):
            found += [(layer, n) for n in rng.choice(np.flatnonzero(stratum == s), needed, replace=False)]
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


@dataclass(eq=False)
class Job:
    """One model on one task: what is asked of the two, and the neurons that are chosen for it.

    Attributes:
        model, name: what tables call the model and the task.
        store: where what is done is kept.
        select_by: options of `identify`. heard: splits that the encoder was trained on.
        targets: those of this task.
        identified: "train" (where there are counts) and "all" -> the selection by fold.
        chosen, others: of these the one that the settings ask for, and the other, or None.
        in_sample: bool [clips], clips that the encoder was trained on.
    """

    model: str
    name: str
    task: Task
    artifacts: Artifacts
    store: Path
    settings: AblationSettings
    select_by: Mapping[str, Any]
    heard: Sequence[str] = ()
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        splits, how = self.artifacts.splits, self.settings.identify
        if unknown := sorted(set(self.heard) - set(splits.tolist())):
            known = ", ".join(sorted(set(splits)))
            raise ValueError(f"models.{self.model}.heard: {self.name} has no split {unknown[0]!r}; it has {known}")
        self.in_sample = np.isin(splits, list(self.heard))
        self.targets = [target for target in self.settings.targets if target.task == self.name]
        self.folds = folds(splits, self.artifacts.labels, self.artifacts.classes)
        ways = ("train", "all") if how == "train" or self.artifacts.has_all_counts else ("all",)
        self.identified = {way: identify(self.artifacts, self.folds, way, **self.select_by) for way in ways}
        self.chosen, self.others = self.identified[how], self.identified.get("all" if how == "train" else "train")

    @functools.cached_property
    def activity(self) -> dict[str, np.ndarray]:
        """By fold: activation rate [layers, neurons] over all tokens of the clips that choose the neurons."""
        if self.settings.identify == "all":  # the mean over classes
            return dict.fromkeys(self.chosen, self.artifacts.over_zero.double().mean(dim=2).numpy())
        counts, tokens = self.artifacts.counts, self.artifacts.tokens
        return {f.name: counts[f.fit].sum(axis=0, dtype=np.int64) / tokens[f.fit].sum() for f in self.folds}

    def passes(self) -> int:
        """At most so many clips are passed through the encoder for the controls."""
        settings, labels = self.settings, self.artifacts.labels[np.concatenate([fold.test for fold in self.folds])]
        sets = settings.controls + settings.layer_matched + settings.rate_matched
        sets += settings.other_modes * (len(settings.modes) - 1)
        clips = 0
        for target in self.targets:
            mine = target_classes(target, self.artifacts.classes)
            if any(len(target_neurons(selection, target)) for selection in self.chosen.values()):
                clips += np.isin(labels, mine).sum() + settings.panel * (len(self.artifacts.classes) - len(mine))
        return int(sets * clips)
