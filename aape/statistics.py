"""What one encoder's neurons say on one task: selection, null, calibrated selection, stability, sensitivity.

`task_result` makes all of it from the artifacts; `aape.analysis` does so for every task and model of a study.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts import Artifacts
from aape.chance import Calibrated, Drawn, calibrate_counts, counted_clips, one_sided_p
from aape.criteria import held_out_scores
from aape.selection import AAPE, Selection, jaccard_index, select
from aape.study import Study, load_encoder, load_task
from aape.units import Counted, Units, UnitSums, exchangeable_units, permuted_labels


@dataclass
class TaskResult:
    """One encoder on one task. L layers, N neurons, C classes.

    Attributes:
        members, calibrated: bool [L, N, C].
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
    drawn: Drawn | None

    @property
    def class_names(self) -> list[str]:
        """In the order of the arrays."""
        return self.classes["class"].tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, for the cache; `from_arrays` is the way back."""
        tables = {name: getattr(self, name).to_dict(orient="list") for name in ("neurons", "classes", "sensitivity")}
        text = json.dumps({"row": self.row, **tables}, default=lambda value: value.item())
        drawn = {} if self.drawn is None else vars(self.drawn)
        flags = {"members": self.members, "calibrated": self.calibrated}
        return flags | {"text": np.frombuffer(text.encode(), dtype=np.uint8)} | drawn

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> TaskResult:
        """A result from the cache."""
        text = json.loads(arrays["text"].tobytes())
        row = text.pop("row")
        drawn = Drawn(arrays["neurons"], arrays["bits"]) if "bits" in arrays else None
        tables = {name: pd.DataFrame(content) for name, content in text.items()}
        return cls(arrays["members"], arrays["calibrated"], row, **tables, drawn=drawn)


def probabilities_of(artifacts: Artifacts) -> np.ndarray:
    """float64 [L, N, C]: from the counts where those of all clips are there, else over_zero."""
    return artifacts.probabilities() if _all_counted(artifacts) else artifacts.over_zero.double().numpy()


def _all_counted(artifacts: Artifacts) -> bool:
    return artifacts.has_counts and "kept_clips" not in artifacts.manifest


def task_result(study: Study, task: str, model: str, artifacts: Artifacts, progress: bool = True) -> TaskResult:
    """Selection, null, stability and sensitivity of one encoder on one task.

    Attribution as the study's criterion runs the encoder; everything else needs the artifacts alone.
    """
    options: dict[str, Any] = study.selection.model_dump() | {"rate": study.rate(task)}
    runs: dict[str, Any] = {}
    if study.selection.criterion.startswith("attribution"):
        runs = {"encoder": load_encoder(study, model), "task": load_task(study, task)}
    chosen = select(artifacts, **options, **runs)
    row: dict[str, Any] = {
        "title": study.task(task).title,
        "classes": len(artifacts.classes),
        "clips": len(artifacts.labels) if artifacts.manifest else None,
        "tokens": int(artifacts.tokens.sum()) if artifacts.manifest else None,
        **_selection_numbers(chosen),
        "threshold": chosen.threshold,
        "weak_threshold": chosen.weak_threshold,
        **options,
        "ln_classes": float(np.log(len(artifacts.classes))),
    }
    row["aape_share"] = row["mean_aape"] / row["ln_classes"] if len(artifacts.classes) > 1 else np.nan
    classes = pd.DataFrame({"class": artifacts.classes, "neurons": chosen.per_class.to_numpy()})
    unknown = {"q": np.nan, "q_neuron": np.nan, "calibrated": False, "group_share": np.nan}
    neurons, sensitivity = chosen.table().assign(**unknown), []
    alive, drawn = np.zeros_like(chosen.members), None
    by_layer = {"layer": chosen.members.any(axis=2), "several_classes_layer": chosen.members.sum(axis=2) > 1}
    if artifacts.has_counts:
        data = counted_clips(artifacts)
        found = calibrate_counts(
            data, chosen, permutations=study.chance.permutations, seed=study.seed, q=study.chance.q,
            effect=study.chance.effect, progress=progress and data.counts.nbytes > 2**26,  # seconds need no bar
        )  # fmt: skip
        halves = _stabilities(data, chosen, study.chance.resamples, study.seed)
        row |= _chance_row(row, found) | {"groups": len(np.unique(data.groups))}
        row |= {"stability": halves[0].mean, "stability_shuffled": halves[1].mean}
        classes = classes.assign(**_chance_columns(found, halves, artifacts.labels))
        alive, drawn = found.members, found.null.drawn
        neurons, scores = _scored(artifacts, found, study.seed)
        row |= scores
        by_layer["calibrated_layer"] = alive.any(axis=2)
        sensitivity = [_least_effect(found, effect) for effect in sorted({0.0, 0.05, 0.2, study.chance.effect})]
    row |= {f"{n}_{i:02d}": int(v) for n, mask in by_layer.items() for i, v in enumerate(mask.sum(axis=1))}
    variants = pd.DataFrame(_sensitivity(artifacts, chosen, study) + sensitivity)
    return TaskResult(chosen.members, alive, row, neurons, classes, variants, drawn)


def _selection_numbers(chosen: Selection) -> dict[str, Any]:
    per_class, kept = chosen.per_class.to_numpy(), int(chosen.selected.sum())
    return {
        "neurons_selected": kept,
        "coverage": chosen.coverage,
        **{f"per_class_{how.__name__}": how(per_class).item() for how in (np.mean, np.median, np.min, np.max)},
        "classes_per_neuron": float(per_class.sum() / kept) if kept else np.nan,
        "mean_aape": float(chosen.entropy[chosen.selected].mean()) if kept else np.nan,
    }


def _chance_row(row: dict[str, Any], found: Calibrated) -> dict[str, Any]:
    """Task-level statistics that need the counts: the null of each number, and the calibrated selection."""
    null, alive, per_class = found.null, found.members.any(axis=2), found.per_class
    draws = {name: getattr(null, name) for name in ("coverage", "classes_per_neuron", "mean_aape")}
    numbers: dict[str, Any] = {}
    for name, values in (draws | {"per_class_mean": null.per_class.mean(axis=1)}).items():
        known = values[~np.isnan(values)] if not np.isnan(values).all() else np.array([np.nan])
        low, high = np.quantile(known, [0.025, 0.975])
        numbers |= {f"{name}_null_mean": known.mean(), f"{name}_null_low": low, f"{name}_null_high": high}
    for name in ("mean_aape", "classes_per_neuron"):
        numbers[f"p_{name}"] = one_sided_p(row[name], draws[name], slack=1e-6)  # the null is in float32
    return numbers | {
        "permutation": null.units.description,
        "permutations": null.permutations,
        "null_clips": found.clips,
        "group_share": float(np.mean(found.group_share[found.selection.members.any(axis=2)]))
        if row["coverage"]
        else np.nan,
        "neurons_differing": float((np.nan_to_num(null.neuron_q, nan=1.0) < found.q).mean()),  # of all neurons
        "pairs_differing": null.discoveries,
        "p_task": null.task_p,
        "effect": found.effect,
        "calibrated_neurons": int(alive.sum()),
        "calibrated_coverage": found.coverage,
        "calibrated_per_class_mean": float(per_class.mean()),
        "calibrated_per_class_median": float(per_class.median()),
        "calibrated_classes_per_neuron": float(found.members.sum() / alive.sum()) if alive.any() else np.nan,
    }


def _scored(artifacts: Artifacts, found: Calibrated, seed: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The table of class-specific pairs with scores on clips held out; their means, and those of permuted labels.

    The floor is what the neurons that the first permutation selected tell of its labels: they were chosen in the same
    way. It is not known for other criteria than AAPE.
    """
    neurons, names = found.table(), ("auprc", "f1", "iou")
    numbers = dict.fromkeys((*names, *(f"{name}_permuted" for name in names)), np.nan)
    unknown = neurons.assign(**dict.fromkeys(names, np.nan)), numbers.copy()
    if not _all_counted(artifacts) or not len(neurons):
        return unknown
    units, width = found.null.units, artifacts.over_zero.shape[1]
    try:
        scores = held_out_scores(artifacts, neurons)[list(names)]
        if found.null.drawn is not None:
            permuted = next(permuted_labels(units, 1, seed))[units.of_clip]
            kept, members = found.null.drawn[0]
            place, c = kept[np.nonzero(members)[1]], np.array(artifacts.classes)[np.nonzero(members)[0]]
            floor = pd.DataFrame({"layer": place // width, "neuron": place % width, "class": c})
            mixed = held_out_scores(artifacts, floor, permuted)
            numbers |= {f"{name}_permuted": mixed[name].mean() for name in names}
    except ValueError:  # a class whose clips are all in one fold or group: nothing can be held out
        return unknown
    return neurons.join(scores), numbers | {name: scores[name].mean() for name in names}


def _chance_columns(found: Calibrated, halves: tuple[Stability, Stability], labels: np.ndarray) -> dict[str, Any]:
    low, high = np.quantile(found.null.per_class, [0.025, 0.975], axis=0)
    return {
        "clips": np.bincount(labels, minlength=len(low)),
        "null_mean": found.null.per_class.mean(axis=0),
        "null_low": low,
        "null_high": high,
        "calibrated": found.per_class.to_numpy(),
        "stability": halves[0].by_class,
        "stability_shuffled": halves[1].by_class,
    }


def _stabilities(data: Counted, chosen: Selection, splits: int, seed: int) -> tuple[Stability, Stability]:
    """Of the labels, and of labels shuffled once (halves of noise agree too, where neurons are active for all).

    NaN for other criteria than AAPE, which are not known of halves.
    """
    n_classes = len(chosen.classes)
    if chosen.criterion not in AAPE:
        return (Stability(np.full(n_classes, np.nan), np.nan, np.nan),) * 2
    options: dict[str, Any] = {"rate": chosen.rate, "quantile": chosen.quantile, "weak_filter": chosen.weak_filter}
    sums = UnitSums(data, exchangeable_units(data.labels, data.groups, n_classes))
    real = stability(sums, splits=splits, seed=seed, **options)
    return real, stability(sums.permuted_once(seed + 1), splits=max(1, splits // 2), seed=seed, **options)


@dataclass(frozen=True, eq=False)
class Stability:
    """Do two halves of the groups give the same neurons? Means over the splits.

    Attributes:
        by_class: float64 [classes], Jaccard of the class's two sets; NaN where a half lacks the class, 0 where neither
            half has a neuron for it (so a low coverage lowers the mean).
        mean: over classes.
        overlap: Jaccard of the selected neurons, whatever their class.
    """

    by_class: np.ndarray
    mean: float
    overlap: float


def stability(
    sums: UnitSums,
    *,
    rate: float = 0.01,
    quantile: float = 0.95,
    weak_filter: str = "lape",
    splits: int = 10,
    seed: int = 0,
) -> Stability:
    """Select in two random halves of the groups and compare; groups of one class are halved class by class.

    Args:
        sums: of the clips.
        rate, quantile, weak_filter: as `aape.selection.select`.
        splits: how many times.
        seed: of the splits.

    A class with clips of a single group cannot be in both halves: it is left out of both selections, its Jaccard is
    NaN.
    """
    units = sums.units
    rng = np.random.default_rng(seed)
    by_class = np.full((splits, units.n_classes), np.nan)
    overlap = np.full(splits, np.nan)
    for index in range(splits):
        half = halves(units, rng)
        labels = [np.where(half == side, units.label, np.int32(-1)) for side in (0, 1)]
        tokens = [sums.class_tokens(mine) for mine in labels]
        usable = np.flatnonzero((tokens[0] > 0) & (tokens[1] > 0))
        if not len(usable):
            continue
        chosen: list[Selection] = []
        for _, active in sums.by_class(labels):
            for found in active:
                p = found[usable].astype(np.float64) / tokens[len(chosen)][usable, None]
                p = np.clip(p, 0, 1).T.reshape(*sums.shape, -1)
                chosen.append(select(p, rate=rate, quantile=quantile, weak_filter=weak_filter))
        one, two = chosen
        shared, either = one.members & two.members, one.members | two.members
        by_class[index, usable] = jaccard_index(shared.sum(axis=(0, 1)), either.sum(axis=(0, 1)))
        overlap[index] = jaccard_index((one.selected & two.selected).sum(), (one.selected | two.selected).sum())
    per_class = pd.DataFrame(by_class).mean().to_numpy()  # NaN are left out
    return Stability(per_class, float(pd.Series(per_class).mean()), float(pd.Series(overlap).mean()))


def halves(units: Units, rng: np.random.Generator) -> np.ndarray:
    """int64 [units], 0 or 1: groups dealt alternately in random order, class by class where they have one."""
    first = np.unique(units.group, return_index=True)[1]
    split_group = np.bincount(units.group, minlength=units.group.max() + 1) > 1
    key = np.where(split_group[units.group[first]], -1, units.label[first])  # [groups]
    side = np.empty(units.group.max() + 1, dtype=np.int64)
    for value in np.unique(key):
        chosen = rng.permutation(units.group[first][key == value])
        side[chosen] = (np.arange(len(chosen)) + rng.integers(2)) % 2
    return side[units.group]


def _sensitivity(artifacts: Artifacts, stated: Selection, study: Study) -> list[dict[str, Any]]:
    """How the numbers move with each choice; overlap: Jaccard of the (neuron, class) pairs with the stated ones."""
    rows, aape = [], stated.criterion in AAPE
    options: dict[str, Any] = {"rate": stated.rate, "quantile": stated.quantile, "weak_filter": stated.weak_filter}

    def add(setting: str, value: str, chosen: list[Selection], note: str = "") -> None:
        numbers = pd.DataFrame([_selection_numbers(c) for c in chosen]).mean()
        overlap = np.mean([_alike(c.members, stated.members) for c in chosen]) if chosen else np.nan
        rows.append({"setting": setting, "value": value, **numbers, "overlap": overlap, "note": note})

    def again(**changed: Any) -> list[Selection]:
        criterion = "aape" if aape else stated.scores
        return [select(stated.probabilities, criterion=criterion, **options | changed)]

    other = "paper" if stated.weak_filter == "lape" else "lape"
    add("as stated", f"{stated.weak_filter}, {stated.rate:g}, {stated.quantile:g}", [stated])
    add("filter", other, again(weak_filter=other))
    add("rate", "half", again(rate=stated.rate / 2))
    add("rate", "double", again(rate=min(1.0, stated.rate * 2)))
    for quantile in (0.9, 0.99):
        add("quantile", f"{quantile:g}", again(quantile=quantile))
    whole = _all_counted(artifacts) and aape
    unknown: tuple[list[Selection], str] = ([], "needs the counts of all clips" if aape else "known for AAPE alone")
    add("clips per class", "equal", *(_equal_clips(artifacts, stated, options, study) if whole else unknown))
    add("zero padding", "left out", *(_without_padding(artifacts, stated, options) if whole else unknown))
    return rows


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(jaccard_index((a & b).sum(), (a | b).sum(), empty=1.0))


def _least_effect(found: Calibrated, effect: float) -> dict[str, Any]:
    """The calibrated selection with another least effect, beside the stated one."""
    members = found.with_effect(effect).members
    numbers = _selection_numbers(replace(found.selection, members=members, selected=np.any(members, axis=2)))
    value = f"{effect:g}" + (" (stated)" if effect == found.effect else "")
    alike = {"overlap": _alike(members, found.members), "note": "of the calibrated neurons"}
    return {"setting": "calibrated, least effect", "value": value, **numbers, **alike}


def _equal_clips(
    artifacts: Artifacts, stated: Selection, options: dict[str, Any], study: Study
) -> tuple[list[Selection], str]:
    size = np.bincount(artifacts.labels, minlength=len(artifacts.classes))
    if size.min() == size.max():
        return [stated], "they are equal"
    rng, drawn = np.random.default_rng(study.seed), []
    for _ in range(study.chance.resamples):
        clips = [rng.choice(np.flatnonzero(artifacts.labels == c), size.min(), replace=False) for c in range(len(size))]
        drawn.append(select(artifacts.probabilities(clips=np.concatenate(clips)), **options))
    return drawn, f"{size.min()} instead of {size.min()} to {size.max()}"


def _without_padding(artifacts: Artifacts, stated: Selection, options: dict[str, Any]) -> tuple[list[Selection], str]:
    if artifacts.manifest.get("padding") == "unknown":
        return [], "the encoder does not say which tokens are padding"
    if artifacts.padding_counts is None:
        return [stated], "no clip is padded"
    try:
        share = artifacts.padding_tokens.sum() / artifacts.tokens.sum()
        return [select(artifacts.probabilities(padding=False), **options)], f"{share:.1%} of the tokens"
    except ValueError as error:  # a class of nothing but padding
        return [], str(error)
