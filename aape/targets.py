"""Which neurons are silenced, and which random ones beside them.

A control is drawn by a rule that does not look at the target beyond the numbers of its neurons: as many in each layer,
or in each layer and stratum of like activation rate, and it may overlap with the target. So a target that was itself
drawn by the rule is one draw among its controls, and its p is uniform, however large it is. (Leaving the target's
neurons out, the more of a layer it fills the less the controls resemble it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aape.artifacts import Artifacts
from aape.classifier import Fold
from aape.criteria import rank
from aape.selection import AAPE, Selection, select
from aape.study import AblationTarget

STRATUM = 20  # neurons of like rate in a layer among which a rate-matched control draws


def label_of(target: AblationTarget) -> str:
    """What tables call a target: "jazz", "classical & jazz", "classical & jazz only", "all of classical, jazz"."""
    if target.mode == "all":
        return f"all of {', '.join(target.classes)}" if target.classes else "all classes"
    return " & ".join(target.classes) + (" only" if target.exclusive else "")


def target_classes(target: AblationTarget, classes: Sequence[str]) -> list[int]:
    """Indices of a target's classes.

    Raises:
        ValueError: a class that the task does not have, one class for `shared`, or several for `specific`.
    """
    unknown, count = [c for c in target.classes if c not in classes], len(set(target.classes))
    if unknown:
        wrong = f"no class {unknown[0]!r}; the task has {', '.join(classes)}"
    elif target.mode == "specific" and len(target.classes) != 1:
        wrong = f"'specific' takes one class; several take 'shared' (neurons of each) or 'all' (of any); found {count}"
    elif target.mode == "shared" and count < 2:
        wrong = "'shared' takes two classes or more"
    elif target.mode == "all" and target.exclusive:
        wrong = "exclusive goes with 'specific' and 'shared', not with 'all'"
    else:
        return [classes.index(c) for c in target.classes or classes]
    raise ValueError(f"target {label_of(target)!r} of task {target.task}: {wrong}")


def target_neurons(selection: Selection, target: AblationTarget) -> np.ndarray:
    """Neurons [k, 2] of a target: specific to each of its classes, with `exclusive` to them alone; or to any (all)."""
    index = target_classes(target, selection.classes)
    if target.mode == "all":
        return np.argwhere(selection.members[:, :, index].any(axis=2)).reshape(-1, 2)
    return selection.shared(index, exclusive=target.exclusive)


def identify(
    artifacts: Artifacts, parts: Sequence[Fold], how: str, criterion: str = "aape", **options: Any
) -> dict[str, Selection]:
    """The selection for each fold, from its training clips ("train") or from all clips, as in the paper ("all").

    Args:
        artifacts: of one model and task. parts: its folds. how: see above.
        criterion: a name of `aape.criteria`, but of those that run the model.
        **options: of `select`: rate, quantile, weak_filter.

    Raises:
        ValueError: training clips asked for where the artifacts hold no counts of single clips; attribution.
    """

    def chosen(p: np.ndarray, splits: np.ndarray) -> Selection:
        by = criterion if criterion in AAPE else rank(artifacts, criterion, split=sorted(set(splits.tolist())))
        return select(p, criterion=by, classes=artifacts.classes, **options)

    if how == "all":
        everyone = chosen(artifacts.over_zero.double().numpy(), artifacts.splits)
        return dict.fromkeys([fold.name for fold in parts], everyone)
    if not artifacts.has_all_counts:
        raise ValueError(
            f"{artifacts.path}: choosing neurons on training clips needs clip_counts.npy with every clip. Collect with "
            "counts of all clips, or set ablation.identify to 'all', the paper's way, which also sees the test clips."
        )
    return {f.name: chosen(artifacts.probabilities(clips=f.fit), artifacts.splits[f.fit]) for f in parts}


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
    return np.array(sorted(found), dtype=np.int64)


def index_plus_one(neurons: np.ndarray, width: int) -> np.ndarray:
    """The paper's control: the neuron beside each one, the first after the last."""
    return np.stack([neurons[:, 0], (neurons[:, 1] + 1) % width], axis=1)


def activity(artifacts: Artifacts, fold: Fold, how: str) -> np.ndarray:
    """Activation rate [layers, neurons] over all tokens, of the training clips or of all (mean over classes then)."""
    if how == "all" or not artifacts.has_counts:
        return artifacts.over_zero.double().mean(dim=2).numpy()
    active = artifacts.counts[fold.fit].sum(axis=0, dtype=np.int64)
    return active / artifacts.tokens[fold.fit].sum()
