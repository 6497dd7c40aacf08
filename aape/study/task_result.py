"""What one encoder's neurons show on one task: selection, null, calibrated selection and sensitivity.

`task_result` computes all of it from the artifacts. `aape.study.analysis` does so for every task and model of a study.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.causal.classifier import cross_folds
from aape.criteria.held_out import SCORES, held_out_scores
from aape.neurons.chance import Calibrated, calibrate_counts, counted_clips
from aape.neurons.null import PermutedSelections
from aape.neurons.permuting import permuted_labels
from aape.neurons.pvalues import one_sided_p
from aape.neurons.selection import Selection, select
from aape.study.sensitivity import effect_variants, selection_numbers, variants
from aape.study.study import Study

_LARGE = 2**26  # bytes of counts from which on a progress bar is worth showing


@dataclass
class TaskResult:
    """One encoder on one task. L layers, N neurons, C classes.

    Attributes:
        members: bool [L, N, C], the class-specific pairs.
        calibrated: bool [L, N, C], those that also pass the calibration.
        row: the task-level statistics.
        neurons: a row per class-specific (neuron, class), strongest first.
        classes: a row per class.
        sensitivity: a row per variant of the settings.
        drawn: what permuted labels select; None without counts.
    """

    members: np.ndarray
    calibrated: np.ndarray
    row: dict[str, Any]
    neurons: pd.DataFrame
    classes: pd.DataFrame
    sensitivity: pd.DataFrame
    drawn: PermutedSelections | None

    @property
    def class_names(self) -> list[str]:
        """In the order of the arrays."""
        return self.classes["class"].tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, to be kept on disk; `from_arrays` is the way back."""
        content: dict[str, Any] = {"row": self.row}
        for name in ("neurons", "classes", "sensitivity"):
            content[name] = getattr(self, name).to_dict(orient="list")
        text = json.dumps(content, default=lambda value: value.item())
        arrays = {"members": self.members, "calibrated": self.calibrated, "text": np.array(text)}
        if self.drawn is not None:
            for field in fields(PermutedSelections):
                arrays[f"drawn_{field.name}"] = getattr(self.drawn, field.name)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Any) -> TaskResult:
        """A result from what `arrays` returned."""
        content = json.loads(str(arrays["text"]))
        neurons, classes, sensitivity = (
            pd.DataFrame(content[k]) for k in ("neurons", "classes", "sensitivity")
        )
        drawn = None
        if "drawn_neurons" in arrays:
            drawn = PermutedSelections(
                **{
                    field.name: arrays[f"drawn_{field.name}"]
                    for field in fields(PermutedSelections)
                }
            )
        return cls(
            arrays["members"],
            arrays["calibrated"],
            content["row"],
            neurons,
            classes,
            sensitivity,
            drawn,
        )


def task_result(study: Study, task: str, artifacts: Artifacts, progress: bool = True) -> TaskResult:
    """Selection, null and sensitivity of one encoder on one task."""
    selection = select(artifacts, **study.select_by(task))
    row = _selection_row(study, task, artifacts, selection)
    classes = pd.DataFrame({"class": artifacts.classes, "neurons": selection.per_class.to_numpy()})
    sensitivity = variants(artifacts, selection)
    by_layer = {
        "layer": selection.members.any(axis=2),
        "several_classes_layer": selection.members.sum(axis=2) > 1,
    }
    if not artifacts.has_counts:
        neurons = selection.table().assign(calibrated=False)
        row |= _per_layer(by_layer)
        nothing = np.zeros_like(selection.members)
        return TaskResult(
            selection.members, nothing, row, neurons, classes, pd.DataFrame(sensitivity), None
        )

    data = counted_clips(artifacts)
    chance = study.chance
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".* classes cannot be tested"
        )  # the notes of the analysis say so
        calibrated = calibrate_counts(
            data,
            selection,
            permutations=chance.permutations,
            seed=study.seed,
            q=chance.q,
            effect=chance.effect,
            progress=progress and data.counts.nbytes > _LARGE,
        )
    neurons, scores = _with_scores(artifacts, calibrated, study.seed)
    row |= _chance_row(row, calibrated)
    row["groups"] = len(np.unique(data.groups))
    row |= scores
    by_layer["calibrated_layer"] = calibrated.members.any(axis=2)
    row |= _per_layer(by_layer)
    low, high = np.quantile(calibrated.null.per_class, [0.025, 0.975], axis=0)
    classes = classes.assign(
        clips=np.bincount(artifacts.labels, minlength=len(classes)),
        null_mean=calibrated.null.per_class.mean(axis=0),
        null_low=low,
        null_high=high,
        class_p=calibrated.null.class_p,
        significant_large=(calibrated.significant & calibrated.large).sum(axis=(0, 1)),
        calibrated=calibrated.per_class.to_numpy(),
    )
    sensitivity += effect_variants(calibrated)
    drawn = calibrated.null.drawn
    table = pd.DataFrame(sensitivity)
    return TaskResult(selection.members, calibrated.members, row, neurons, classes, table, drawn)


def _selection_row(
    study: Study, task: str, artifacts: Artifacts, selection: Selection
) -> dict[str, Any]:
    """Task-level statistics that need only the probabilities."""
    numbers = selection_numbers(selection)
    ln_classes = float(np.log(len(artifacts.classes)))
    return {
        "title": study.task(task).title,
        "classes": len(artifacts.classes),
        "clips": len(artifacts.labels) if artifacts.manifest else None,
        "tokens": int(artifacts.tokens.sum()) if artifacts.manifest else None,
        **numbers,
        "threshold": selection.threshold,
        "weak_threshold": selection.weak_threshold,
        **study.select_by(task),
        "ln_classes": ln_classes,
        "aape_share": numbers["mean_aape"] / ln_classes if ln_classes else np.nan,
        "below_ln_classes": ln_classes - numbers["mean_aape"],
    }


def _per_layer(masks: dict[str, np.ndarray]) -> dict[str, int]:
    """How many neurons of each layer a mask [layers, neurons] holds: `layer_00`, `layer_01`, ..."""
    numbers = {}
    for name, mask in masks.items():
        for layer, count in enumerate(mask.sum(axis=1)):
            numbers[f"{name}_{layer:02d}"] = int(count)
    return numbers


def _chance_row(row: dict[str, Any], calibrated: Calibrated) -> dict[str, Any]:
    """Task-level statistics that need the counts: the null of each number, and the calibrated selection."""
    null = calibrated.null
    survivors = selection_numbers(calibrated.survivors)
    draws = {
        "coverage": null.coverage,
        "classes_per_neuron": null.classes_per_neuron,
        "mean_aape": null.mean_aape,
        "per_class_mean": null.per_class.mean(axis=1),
    }
    numbers: dict[str, Any] = {}
    for name, values in draws.items():
        known = pd.Series(values)  # its statistics leave NaN out
        numbers[f"{name}_null_mean"] = known.mean()
        numbers[f"{name}_null_low"] = known.quantile(0.025)
        numbers[f"{name}_null_high"] = known.quantile(0.975)
    for name in ("mean_aape", "classes_per_neuron"):
        numbers[f"p_{name}"] = one_sided_p(
            row[name], draws[name], slack=1e-6
        )  # the null is in float32
    any_class = calibrated.selection.members.any(axis=2)
    return numbers | {
        "below_ln_classes_null_mean": row["ln_classes"] - numbers["mean_aape_null_mean"],
        "permutation": null.units.description,
        "permutations": null.permutations,
        "null_clips": calibrated.clips,
        "group_share": float(pd.Series(calibrated.group_share[any_class]).mean(skipna=False)),
        "neurons_differing": float((null.neuron_q < calibrated.q).mean()),  # of all neurons
        "pairs_significant": int(calibrated.significant.sum()),
        "pairs_large": int((calibrated.significant & calibrated.large).sum()),
        "significant_coverage": float(
            (calibrated.significant & calibrated.selection.members).any(axis=(0, 1)).mean()
        ),
        "p_task": null.task_p,
        "effect": calibrated.effect,
        "q_level": calibrated.q,
        "calibrated_neurons": survivors["neurons_selected"],
        "calibrated_coverage": survivors["coverage"],
        "calibrated_per_class_mean": survivors["per_class_mean"],
        "calibrated_per_class_median": survivors["per_class_median"],
        "calibrated_classes_per_neuron": survivors["classes_per_neuron"],
    }


def _with_scores(
    artifacts: Artifacts, calibrated: Calibrated, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The table of class-specific pairs with their scores on held-out clips, and the means of the scores.

    `*_permuted` are the scores of neurons that were selected, in the same way, for the labels of the first permutation:
    what a selection without meaning reaches.
    """
    neurons = calibrated.table()
    scores = pd.DataFrame(np.nan, neurons.index, list(SCORES))
    permuted_scores = pd.DataFrame(np.nan, [0], list(SCORES))
    if len(neurons) and can_be_held_out(artifacts):
        units = calibrated.null.units
        scores = held_out_scores(artifacts, neurons)[list(SCORES)]
        permuted = next(permuted_labels(units, 1, seed))[units.of_clip]
        pairs = _first_permutation(calibrated, artifacts)
        permuted_scores = held_out_scores(artifacts, pairs, permuted)[list(SCORES)]
    means = scores.mean().to_dict() | permuted_scores.mean().add_suffix("_permuted").to_dict()
    return neurons.join(scores), means


def can_be_held_out(artifacts: Artifacts) -> bool:
    """Whether every class has clips in two folds or groups, so that some of them can be held out."""
    try:
        cross_folds(artifacts, np.arange(len(artifacts.labels)))
    except ValueError:  # the only one that it raises
        return False
    return True


def _first_permutation(calibrated: Calibrated, artifacts: Artifacts) -> pd.DataFrame:
    """The pairs of neuron and class that the labels of the first permutation selected."""
    drawn = calibrated.null.drawn
    assert drawn is not None  # the selection is by AAPE
    kept, members = next(iter(drawn))  # [k], [classes, k]
    class_index, place = np.nonzero(members)
    layer, neuron = np.divmod(kept[place], artifacts.over_zero.shape[1])
    return pd.DataFrame(
        {"layer": layer, "neuron": neuron, "class": np.array(artifacts.classes)[class_index]}
    )
