"""What one encoder's neurons say on one task: selection, null, calibrated selection, stability, sensitivity.

`task_result` makes all of it from the artifacts; `aape.study.analysis` does so for every task and model of a study.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.criteria.held_out import held_out_scores
from aape.neurons.chance import Calibrated, calibrate_counts, counted_clips
from aape.neurons.null import PermutedSelections as Drawn
from aape.neurons.permuting import Counted, Units, UnitSums, exchangeable_units, permuted_labels
from aape.neurons.pvalues import one_sided_p
from aape.neurons.selection import Rule, Selection, jaccard_index, select
from aape.study.study import Study


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
        text = json.dumps({"row": self.row} | tables, default=lambda value: value.item())
        arrays = {"members": self.members, "calibrated": self.calibrated, "text": np.array(text)}
        return arrays | ({} if self.drawn is None else vars(self.drawn))

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> TaskResult:
        """A result from the cache."""
        row, *tables = json.loads(str(arrays["text"])).values()
        neurons, classes, sensitivity = map(pd.DataFrame, tables)
        drawn = Drawn(*(arrays[field.name] for field in fields(Drawn))) if "moved" in arrays else None
        return cls(arrays["members"], arrays["calibrated"], row, neurons, classes, sensitivity, drawn)


def task_result(study: Study, task: str, model: str, artifacts: Artifacts, progress: bool = True) -> TaskResult:
    """Selection, null, stability and sensitivity of one encoder on one task."""
    settings: dict[str, Any] = study.select_by(task)
    chosen = select(artifacts, **settings)
    numbers, ln_classes = _numbers(chosen), float(np.log(len(artifacts.classes)))
    row: dict[str, Any] = {
        "title": study.task(task).title,
        "classes": len(artifacts.classes),
        "clips": len(artifacts.labels) if artifacts.manifest else None,
        "tokens": int(artifacts.tokens.sum()) if artifacts.manifest else None,
        **numbers,
        "threshold": chosen.threshold,
        "weak_threshold": chosen.weak_threshold,
        **settings,
        "ln_classes": ln_classes,
        "aape_share": numbers["mean_aape"] / ln_classes if ln_classes else np.nan,
        "below_ln_classes": ln_classes - numbers["mean_aape"],
    }
    classes = pd.DataFrame({"class": artifacts.classes, "neurons": chosen.per_class.to_numpy()})
    neurons = chosen.table().assign(q=np.nan, q_neuron=np.nan, calibrated=False, group_share=np.nan)
    alive, drawn, variants = np.zeros_like(chosen.members), None, _variants(artifacts, chosen, study)
    by_layer = {"layer": chosen.members.any(axis=2), "several_classes_layer": chosen.members.sum(axis=2) > 1}
    if artifacts.has_counts:
        data = counted_clips(artifacts)
        found = calibrate_counts(
            data, chosen, permutations=study.chance.permutations, seed=study.seed, q=study.chance.q,
            effect=study.chance.effect, progress=progress and data.counts.nbytes > 2**26,  # seconds need no bar
        )  # fmt: skip
        halves = _stabilities(data, chosen, study.chance.resamples, study.seed)
        neurons, scores = _scored(artifacts, found, study.seed)
        row |= _chance_row(row, found) | {"groups": len(np.unique(data.groups))} | scores
        row |= {f"stability{end}": pd.Series(of).mean() for end, of in zip(("", "_shuffled"), halves, strict=True)}
        low, high = np.quantile(found.null.per_class, [0.025, 0.975], axis=0)
        classes = classes.assign(
            clips=np.bincount(artifacts.labels, minlength=len(classes)), null_mean=found.null.per_class.mean(axis=0),
            null_low=low, null_high=high, calibrated=found.per_class.to_numpy(), stability=halves[0],
            stability_shuffled=halves[1],
        )  # fmt: skip
        alive, drawn = found.members, found.null.drawn
        by_layer["calibrated_layer"] = alive.any(axis=2)
        for effect in sorted({0.0, 0.05, 0.2, study.chance.effect}):
            value, survivors = (
                f"{effect:g}{' (stated)' * (effect == found.effect)}",
                found.with_effect(effect).survivors,
            )
            named = "calibrated, least effect", value, [survivors], "of the calibrated neurons"
            variants.append(_variant(found.survivors, *named))
    row |= {f"{n}_{i:02d}": int(v) for n, mask in by_layer.items() for i, v in enumerate(mask.sum(axis=1))}
    return TaskResult(chosen.members, alive, row, neurons, classes, pd.DataFrame(variants), drawn)


def _numbers(chosen: Selection) -> dict[str, Any]:
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
    null, survivors = found.null, _numbers(found.survivors)
    draws = pd.DataFrame({name: getattr(null, name) for name in ("coverage", "classes_per_neuron", "mean_aape")})
    draws["per_class_mean"] = null.per_class.mean(axis=1)
    ends = {"mean": draws.mean(), "low": draws.quantile(0.025), "high": draws.quantile(0.975)}
    numbers: dict[str, Any] = {f"{name}_null_{end}": of[name] for name in draws for end, of in ends.items()}
    for name in ("mean_aape", "classes_per_neuron"):
        numbers[f"p_{name}"] = one_sided_p(row[name], draws[name].to_numpy(), slack=1e-6)  # the null is in float32
    kept = ("coverage", "per_class_mean", "per_class_median", "classes_per_neuron")
    numbers["below_ln_classes_null_mean"] = row["ln_classes"] - numbers["mean_aape_null_mean"]
    return numbers | {
        "permutation": null.units.description,
        "permutations": null.permutations,
        "null_clips": found.clips,
        "group_share": float(pd.Series(found.group_share[found.selection.members.any(axis=2)]).mean(skipna=False)),
        "neurons_differing": float((null.neuron_q < found.q).mean()),  # of all neurons
        "pairs_differing": null.discoveries,
        "p_task": null.task_p,
        "effect": found.effect,
        "q_level": found.q,
        "calibrated_neurons": survivors["neurons_selected"],
        **{f"calibrated_{name}": survivors[name] for name in kept},
    }


def _scored(artifacts: Artifacts, found: Calibrated, seed: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The table of class-specific pairs with scores on clips held out; their means, and those of permuted labels.

    The floor is what the neurons that the first permutation selected tell of its labels: they were chosen in the same
    way. It is not known for other criteria than AAPE.
    """
    neurons, names = found.table(), ["auprc", "f1", "iou"]
    scores, mixed = pd.DataFrame(np.nan, neurons.index, names), pd.DataFrame(np.nan, [0], names)
    with contextlib.suppress(ValueError):  # a class whose clips are all in one fold or group: nothing can be held out
        if artifacts.has_all_counts and len(neurons):
            scores = held_out_scores(artifacts, neurons)[names]
            if found.null.drawn is not None:
                permuted = next(permuted_labels(found.null.units, 1, seed))[found.null.units.of_clip]
                kept, members = next(iter(found.null.drawn))
                c, place = np.nonzero(members)
                layer, neuron = np.divmod(kept[place], artifacts.over_zero.shape[1])
                pairs = pd.DataFrame({"layer": layer, "neuron": neuron, "class": np.array(artifacts.classes)[c]})
                mixed = held_out_scores(artifacts, pairs, permuted)[names]
    return neurons.join(scores), scores.mean().to_dict() | mixed.mean().add_suffix("_permuted").to_dict()


def _stabilities(data: Counted, chosen: Selection, splits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the labels, and of labels shuffled once (halves of noise agree too, where neurons are active for all)."""
    units = exchangeable_units(data.labels, data.groups, len(chosen.classes))
    mixed = replace(units, label=next(permuted_labels(units, 1, seed + 1)))
    real = stability(UnitSums(data, units), chosen.rule, splits=splits, seed=seed)
    return real, stability(UnitSums(data, mixed), chosen.rule, splits=max(1, splits // 2), seed=seed)


def stability(sums: UnitSums, rule: Rule, *, splits: int = 10, seed: int = 0) -> np.ndarray:
    """Do two random halves of the groups give a class the same neurons? Mean Jaccard over the splits, [classes].

    Groups of one class are halved class by class. NaN where a half lacks the class (clips of a single group): it is then
    left out of both selections; 0 where neither half has a neuron for it (so a low coverage lowers the mean).

    Args:
        sums: of the clips.
        rule: thresholds of the selection.
        splits: how many times.
        seed: of the splits.
    """
    units, rng = sums.units, np.random.default_rng(seed)
    by_class = np.full((splits, units.n_classes), np.nan)
    for index in range(splits):
        half = halves(units, rng)
        labels = [np.where(half == side, units.label, np.int32(-1)) for side in (0, 1)]
        tokens = np.stack([sums.class_tokens(mine) for mine in labels])  # [2, classes]
        usable = np.flatnonzero((tokens > 0).all(axis=0))
        if not len(usable):
            continue
        active = np.concatenate([found[:, usable] for _, found in sums.by_class(labels)]).astype(np.float64)
        p = np.clip(active / tokens[:, usable, None], 0, 1).swapaxes(1, 2).reshape(2, *sums.shape, -1)
        one, two = (select(mine, **vars(rule)).members for mine in p)
        by_class[index, usable] = jaccard_index((one & two).sum(axis=(0, 1)), (one | two).sum(axis=(0, 1)))
    return pd.DataFrame(by_class).mean().to_numpy()  # NaN are left out


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


def _variants(artifacts: Artifacts, stated: Selection, study: Study) -> list[dict[str, Any]]:
    """How the numbers move with each choice."""
    rule = stated.rule

    def again(**changed: Any) -> list[Selection]:
        return [select(stated.probabilities, **vars(rule) | changed)]

    other = "paper" if rule.weak_filter == "lape" else "lape"
    unknown: tuple[list[Selection], str] = ([], "needs the counts of all clips")
    whole = artifacts.has_all_counts
    found = [
        ("as stated", f"{rule.weak_filter}, {rule.rate:g}, {rule.quantile:g}", [stated], ""),
        ("filter", other, again(weak_filter=other), ""),
        ("rate", "half", again(rate=rule.rate / 2), ""),
        ("rate", "double", again(rate=min(1.0, rule.rate * 2)), ""),
        ("quantile", "0.9", again(quantile=0.9), ""),
        ("quantile", "0.99", again(quantile=0.99), ""),
        ("clips per class", "equal", *(_equal_clips(artifacts, stated, study) if whole else unknown)),
        ("zero padding", "left out", *(_without_padding(artifacts, stated) if whole else unknown)),
    ]
    return [_variant(stated, *variant) for variant in found]


def _variant(stated: Selection, setting: str, value: str, chosen: list[Selection], note: str) -> dict[str, Any]:
    """A row of the sensitivity table: means over some selections; overlap: Jaccard of their pairs with the stated."""
    numbers = pd.DataFrame([_numbers(c) for c in chosen]).mean()
    both = [((c.members & stated.members).sum(), (c.members | stated.members).sum()) for c in chosen]
    overlap = np.mean([jaccard_index(*sizes, empty=1.0) for sizes in both]) if both else np.nan
    return {"setting": setting, "value": value, **numbers, "overlap": overlap, "note": note}


def _equal_clips(artifacts: Artifacts, stated: Selection, study: Study) -> tuple[list[Selection], str]:
    labels, rng, drawn = artifacts.labels, np.random.default_rng(study.seed), []
    size = np.bincount(labels, minlength=len(artifacts.classes))
    if size.min() == size.max():
        return [stated], "they are equal"
    for _ in range(study.chance.resamples):
        clips = [rng.choice(np.flatnonzero(labels == c), size.min(), replace=False) for c in range(len(size))]
        drawn.append(select(artifacts.probabilities(clips=np.concatenate(clips)), **vars(stated.rule)))
    return drawn, f"{size.min()} instead of {size.min()} to {size.max()}"


def _without_padding(artifacts: Artifacts, stated: Selection) -> tuple[list[Selection], str]:
    try:
        if artifacts.padding_counts is None:
            return [stated], "no clip is padded"
        share = artifacts.padding_tokens.sum() / artifacts.tokens.sum()
        return [select(artifacts.probabilities(padding=False), **vars(stated.rule))], f"{share:.1%} of the tokens"
    except ValueError as error:  # which tokens are padding is not known, or a class is nothing but padding
        return [], str(error)
