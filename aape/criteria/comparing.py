"""Criteria compared: which of them finds the neurons that matter?

For each of some classes, equally many neurons by every criterion, chosen on the training clips of a fold, are ablated in
the encoder, and its test clips are classified by two classifiers fitted on the intact encoder: a linear one, and the
nearest class mean, which no criterion has seen. The effect is the change for the class's clips minus the change for clips
of the other classes. Every criterion has two controls, random sets matched to its own sets: in activity (activation rate
in the class) and in strength (mean activation in the class), layer by layer and stratum by stratum. Criteria are compared
class by class, so that intervals are those of paired differences over classes.

    classes = draw_classes(task.classes, 10, seed=1)  # stated before anything is seen
    compare_criteria(encoder, task, artifacts, ["aape", "attribution_mean"], classes=classes).summary()
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts
from aape.causal.classifier import Fold, folds
from aape.causal.controls import activity_matched
from aape.causal.runner import MEASURES, MODES, Intervention, NeuronsByFold, Runner
from aape.criteria.ranking import CRITERIA, Criterion, rank
from aape.encoders.encoder import Encoder, choose_device
from aape.files import folder_lock
from aape.sounds.task import Task

CLASSIFIERS = ("linear", "nearest mean")
CONTROLS = {
    "activity-matched": "active",
    "strength-matched": "strong",
}  # name -> what columns call it
FOLDER = "criteria"  # of the artifacts, where results are kept

Sets = dict[tuple[str, int], dict[str, np.ndarray]]  # (criterion, class) -> its neurons


class NothingToCompare(ValueError):
    """Fewer than two of the requested classes have a neuron by every criterion."""


def draw_classes(
    classes: Sequence[str], count: int, seed: int, without: Iterable[str] = ()
) -> list[str]:
    """A seeded choice of classes, in their order. without: classes that may not be drawn."""
    left_out = set(without)
    free = [name for name in classes if name not in left_out]
    chosen = np.random.default_rng(seed).choice(len(free), min(count, len(free)), replace=False)
    return [free[i] for i in sorted(chosen)]


def strongest(scores: np.ndarray, k: int) -> np.ndarray:
    """The k neurons [<= k, 2] of largest finite score [layers, neurons]; ties by layer, then neuron."""
    order = np.argsort(-scores, axis=None, kind="stable")[:k]
    neurons = np.stack(np.unravel_index(order, scores.shape), axis=1)
    return neurons[np.isfinite(scores.reshape(-1)[order])]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The effects of all sets.

    Attributes:
        name: model, task and number of neurons.
        rows: a row per criterion, control (empty for the criterion's own set), draw, class, mode, classifier and measure.
    """

    name: str
    rows: pd.DataFrame

    def summary(self, measure: str = "log_probability") -> pd.DataFrame:
        """A row per criterion, mode and classifier: mean effect over classes, and its difference to each control.

        The ends are those of 95 % t intervals over classes. `below_*` counts the classes that fall further than the
        control.
        """
        key = ["criterion", "mode", "classifier"]
        rows = self.rows[self.rows.measure == measure]
        by_class = rows.pivot_table(
            index=[*key, "class"], columns="control", values="effect", sort=False
        )  # over draws
        lines = []
        for values, effects in by_class.groupby(level=key, sort=False):
            line = dict(zip(key, values, strict=True)) | {"classes": len(effects)}
            line |= _mean(effects[""], "effect", "low", "high")
            for control, short in CONTROLS.items():
                difference = effects[""] - effects[control]
                name = f"less_{short}"
                line |= _mean(difference, name, f"{name}_low", f"{name}_high")
                line[f"below_{short}"] = int((difference < 0).sum())
            lines.append(line)
        return pd.DataFrame(lines)

    def table(self, measure: str = "log_probability", mode: str | None = None) -> pd.DataFrame:
        """For a notebook: a row per criterion, the largest fall first, by both classifiers and minus the activity-matched
        control. mode: by default the first."""
        summary = self.summary(measure)
        chosen = summary["mode"].iloc[0] if mode is None else mode
        summary = summary[summary["mode"] == chosen].sort_values("effect", kind="stable")
        order = summary[summary.classifier == CLASSIFIERS[0]].criterion
        table = pd.DataFrame(index=order)
        for classifier in CLASSIFIERS:
            rows = summary[summary.classifier == classifier].set_index("criterion")
            table[classifier] = _with_ends(rows, "effect", "low", "high")
            ends = "less_active_low", "less_active_high"
            table[f"{classifier}, minus activity-matched"] = _with_ends(rows, "less_active", *ends)
        return table.reset_index()

    def __repr__(self) -> str:
        return f"Comparison of criteria: {self.name}\n{self.table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)


def _mean(values: pd.Series, *names: str) -> dict[str, float]:
    """Mean, and the ends of its 95 % t interval, under these names."""
    half = np.nan
    if len(values) > 1:
        half = student.ppf(0.975, len(values) - 1) * values.sem()
    mean = values.mean()
    return dict(zip(names, (mean, mean - half, mean + half), strict=True))


def _with_ends(rows: pd.DataFrame, value: str, low: str, high: str) -> pd.Series:
    """Text such as "-3.2 [-4.1, -2.2]"."""
    cells = [
        f"{middle:+.3g} [{lower:+.2g}, {upper:+.2g}]"
        for middle, lower, upper in zip(rows[value], rows[low], rows[high], strict=True)
    ]
    return pd.Series(cells, index=rows.index)


def compare_criteria(
    encoder: Encoder,
    task: Task,
    artifacts: Artifacts,
    criteria: Sequence[str] | Mapping[str, str | Criterion] = tuple(CRITERIA),
    *,
    k: int = 40,
    classes: Sequence[str] | None = None,
    tested: Sequence[str] | None = None,
    modes: Sequence[str] = tuple(MODES),
    draws: int = 3,
    panel: int = 4,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out_dir: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Comparison:
    """Ablate every criterion's sets and their controls, and classify held-out clips.

    Args:
        encoder, task, artifacts: what belongs together.
        criteria: names (`aape.criteria.ranking.CRITERIA`), or name -> a name or a function of `aape.criteria.ranking.Clips`.
        k: neurons per class; fewer, for all criteria, where a criterion has fewer.
        classes: those that are compared; None: all.
        tested: the folds whose clips are tested; None: all.
        modes: of `MODES`.
        draws: random sets of each control.
        panel: clips of each other class.
        seed: of the draws and the panel.
        options: criterion -> its own options, such as {"aape": {"rate": 0.1}}.
        out_dir: where results are kept; None: `criteria` in the artifacts' folder. The same call resumes.
        device: None: CUDA if available, else CPU.

    Raises:
        ValueError: artifacts of another model or task, an unknown class or fold, or no draws.
        NothingToCompare: fewer than two classes for which every criterion has a neuron.

    Warns:
        UserWarning: a class for which some criterion has no neuron is left out.
    """
    folder = artifacts.path / FOLDER if out_dir is None else Path(out_dir)
    named = dict(criteria) if isinstance(criteria, Mapping) else {name: name for name in criteria}
    names = list(dict.fromkeys(classes or artifacts.classes))
    if draws < 1:
        raise ValueError(f"draws: expected at least one random set of each control, found {draws}")
    unknown = sorted(set(names) - set(artifacts.classes))
    if unknown:
        raise ValueError(
            f"{artifacts.path} has no class {unknown[0]!r}; it has {', '.join(artifacts.classes)}"
        )
    with folder_lock(folder):
        device = choose_device(device)
        parts = _tested_folds(artifacts, tested)
        runner = Runner(
            encoder.to(device),
            task,
            artifacts,
            folder,
            classifiers=CLASSIFIERS,
            parts=parts,
            seed=seed,
        )
        index = [artifacts.classes.index(name) for name in names]
        chosen = _chosen(runner, named, index, k, options or {})
        sets = _equally_many(runner, chosen, list(named), index)
        others = runner.panel(panel) & np.isin(runner.labels, [c for _, c in sets])
        measured = {
            fold.name: (artifacts.probabilities(clips=fold.fit), _strength(runner, fold))
            for fold in runner.folds
        }
        clips_of = {c: runner.tested & (runner.labels == c) | others for _, c in sets}
        versions = 1 + len(CONTROLS) * draws
        total = sum(int(clips_of[c].sum()) * versions * len(modes) for _, c in sets)
        rows: list[dict[str, Any]] = []
        with tqdm(
            total=total, unit="pass", desc=f"{encoder.name} on {task.name}, criteria", disable=None
        ) as bar:
            for (name, c), neurons in sets.items():
                described, interventions = _interventions(neurons, c, modes, draws, measured, seed)
                changes = runner.run(interventions, clips_of[c], bar) - runner.intact
                for description, change in zip(described, changes, strict=True):
                    rows += _rows(
                        runner, {"criterion": name, **description}, c, clips_of[c], change
                    )
    return Comparison(
        f"{encoder.name} on {task.name}, at most {k} neurons per class", pd.DataFrame(rows)
    )


def _tested_folds(artifacts: Artifacts, tested: Sequence[str] | None) -> list[Fold]:
    """The folds whose clips are tested, by name; None: all.

    Raises:
        ValueError: no such fold.
    """
    parts = folds(artifacts.splits, artifacts.labels, artifacts.classes, artifacts.groups)
    chosen = [fold for fold in parts if tested is None or fold.name in tested]
    if not chosen:
        raise ValueError(
            f"tested: found {tested}, expected some of {', '.join(fold.name for fold in parts)}"
        )
    return chosen


def _chosen(
    runner: Runner,
    criteria: Mapping[str, Any],
    classes: Sequence[int],
    k: int,
    options: Mapping[str, Any],
) -> Sets:
    """At most k neurons by every criterion, for each class and fold."""
    chosen: Sets = {}
    for name, criterion in criteria.items():
        for fold in runner.folds:
            splits = sorted(set(runner.artifacts.splits[fold.fit].tolist()))
            model = {"encoder": runner.encoder, "task": runner.task}
            scores = rank(
                runner.artifacts, criterion, split=splits, **model, **options.get(name, {})
            )
            for c in classes:
                chosen.setdefault((name, c), {})[fold.name] = strongest(scores[:, :, c], k)
    return chosen


def _equally_many(
    runner: Runner, chosen: Sets, criteria: Sequence[str], classes: Sequence[int]
) -> Sets:
    """The same sets, cut to the smallest of the criteria in each class and fold; without classes that have none."""
    where = f"{runner.encoder.name} on {runner.task.name}"
    sets: Sets = {}
    left_out, lacking = [], set()
    for c in classes:
        least = {
            fold.name: min(len(chosen[name, c][fold.name]) for name in criteria)
            for fold in runner.folds
        }
        if not min(least.values()):
            left_out.append(runner.classes[c])
            lacking |= {name for name in criteria if not all(map(len, chosen[name, c].values()))}
            continue
        for name in criteria:
            sets[name, c] = {
                fold: neurons[: least[fold]] for fold, neurons in chosen[name, c].items()
            }
    if left_out:
        warnings.warn(
            f"{where}: left out, some criterion has no neuron: {', '.join(left_out)}", stacklevel=3
        )
    if (
        len(classes) - len(left_out) >= 2
    ):  # the effect on one class is relative to the effect on others
        return sets
    reason = ""
    if left_out:
        by = ", ".join(name for name in criteria if name in lacking)
        reason = f"; {', '.join(left_out)} left out for lack of neurons by {by}"
    raise NothingToCompare(
        f"{where}: expected at least two classes with a neuron by every criterion, found {len(classes)}{reason}.\n"
        "Choose other or more classes, other criteria, or a higher rate: options={'aape': {'rate': 0.05}}."
    )


def _interventions(
    neurons: NeuronsByFold,
    c: int,
    modes: Sequence[str],
    draws: int,
    measured: Mapping[str, tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> tuple[list[dict[str, Any]], list[Intervention]]:
    """A class's neurons and their random controls, changed in every mode: descriptions, and what is changed.

    Args:
        neurons: by fold. c: the class.
        measured: by fold, activation rates and mean activations [layers, neurons, classes], which the controls match.
    """
    versions: list[tuple[str, int, NeuronsByFold]] = [("", 0, neurons)]
    for number, control in enumerate(CONTROLS):
        for draw in range(draws):
            random = {}
            for fold, in_fold in neurons.items():
                rng = np.random.default_rng([seed, c, number, draw])
                random[fold] = activity_matched(in_fold, measured[fold][number][:, :, c], rng)
            versions.append((control, draw, random))
    size = float(np.mean([len(in_fold) for in_fold in neurons.values()]))
    described, interventions = [], []
    for control, draw, version in versions:
        for mode in modes:
            described.append({"neurons": size, "control": control, "draw": draw, "mode": mode})
            interventions.append(Intervention(version, MODES[mode]))
    return described, interventions


def _rows(
    runner: Runner, described: Mapping[str, Any], c: int, clips: np.ndarray, change: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of `Comparison` for one intervention on class c. change: [classifiers, measures, clips]."""
    of_class = clips & (runner.labels == c)
    inside = change[:, :, of_class].mean(axis=2)
    outside = change[:, :, clips & ~of_class].mean(axis=2)
    rows = []
    for i, classifier in enumerate(CLASSIFIERS):
        for j, measure in enumerate(MEASURES):
            difference, off_target = inside[i, j], outside[i, j]
            row = {"class": runner.classes[c], "classifier": classifier, "measure": measure}
            row |= {
                "difference": difference,
                "off_target": off_target,
                "effect": difference - off_target,
            }
            rows.append({**described, **row})
    return rows


def _strength(runner: Runner, fold: Fold) -> np.ndarray:
    """Mean activation over the training clips of each class, float64 [layers, neurons, classes]."""
    by_class = []
    for c in range(len(runner.classes)):
        clips = fold.fit[runner.labels[fold.fit] == c]
        by_class.append(runner.artifacts.means[clips].astype(np.float64).mean(axis=0))
    return np.stack(by_class, axis=2)
