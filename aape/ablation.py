"""Does it matter? The classes' neurons silenced, against many random sets of neurons silenced in the same way.

The targets are stated in the study file before anything is seen: the neurons specific to a class, shared by several,
or of all classes, of one task. They are chosen on the training clips and tested on the others, by a linear classifier
fitted on the intact encoder's embeddings and then left alone. For each target and encoder:

* the same number of random neurons in each layer, drawn many times (layer-matched controls), and as many that are also
  of like activation rate: the distribution against which a drop is judged, p = (1 + #{control <= target}) / (1 + n);
* the paper's own control (each index plus one), and a set of like activation rate in the target's classes;
* the neurons' mean in place of zero, a sweep of gains, and the neurons that all clips would have chosen;
* an interval by bootstrap over groups of clips, before and after paired, and the spread over classifiers refitted on
  bootstrapped training groups.

q is p after Benjamini and Hochberg over the classes of all targets of one encoder and measure. Two measures: accuracy
in percentage points, and the mean log-probability of the true class in nats, which moves when accuracy is too coarse.

    result = ablate(load_study("miniature"))
    result.summary()

Every batch of clips is kept in `outputs/<study>/ablations/` as it is done, so a sweep that was cut off goes on, and a
study with more targets or controls computes only what is new.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from aape.artifacts import Artifacts, load_artifacts
from aape.chance import benjamini_hochberg, one_sided_p
from aape.classifier import STRENGTHS, Classifier, Fold, fit, folds, refits, scores
from aape.encoder import Encoder, choose_device, full_precision
from aape.files import whole_file, write_text
from aape.selection import Selection, jaccard_index, select
from aape.silencing import NeuronSet, embed_with_sets, mean_activations, neuron_set
from aape.study import AblationTarget, Study, load_encoder, load_study, load_task
from aape.task import BadClip, Task, prefetched

NEAREST = 10  # a rate-matched control takes each neuron from this many nearest in rate that are still free
SETS_AT_ONCE = 64  # sets between two writes to disk
MEASURES = {"accuracy": "accuracy (points)", "log_probability": "log-probability (nats)"}
_AT = ("task", "model", "target", "mode")
_CHANGE = ("class", "targeted", "measure", "before", "after", "difference")
TABLES = {  # name -> columns that it has even without a row
    "effects": (*_AT, "kind", *_CHANGE),
    "controls": (*_AT, "control", "number", *_CHANGE),
    "off_target": ("task", "model", "silenced", "neurons", *_CHANGE),
    "gains": (*_AT, "gain", *_CHANGE),
    "classifier": ("task", "model"),
    "identification": (*_AT, "fold", "training_clips", "all_clips", "both", "jaccard"),
    "neurons": (*_AT, "fold", "layer", "neuron", "name"),
}
_NO_CLIPS = (
    "{}: the deactivation experiment needs manifest.json and features.pt, which artifacts of other tools do not have. "
    "Collect them with this repository's notebooks."
)
_FORMAT = 1  # of the files that keep progress

Sets = Mapping[str, np.ndarray]  # fold name -> neurons [k, 2] of (layer, neuron) in the artifacts' layers


# -- targets and controls ---------------------------------------------------------------------------------------


def label_of(target: AblationTarget) -> str:
    """What tables call a target: "jazz", "classical & jazz", "all of classical, jazz"."""
    if target.mode == "all":
        return f"all of {', '.join(target.classes)}" if target.classes else "all classes"
    return " & ".join(target.classes)


def target_classes(target: AblationTarget, classes: Sequence[str]) -> list[int]:
    """Indices of a target's classes.

    Raises:
        ValueError: a class that the task does not have, one class for `shared`, or several for `specific`.
    """
    unknown = [c for c in target.classes if c not in classes]
    if unknown:
        raise ValueError(
            f"target {label_of(target)!r}: task {target.task} has no class {unknown[0]!r}; it has {', '.join(classes)}"
        )
    if target.mode == "specific" and len(target.classes) != 1:
        raise ValueError(
            f"target of task {target.task}: mode 'specific' takes one class, found {len(target.classes)}; "
            "several take 'shared' (neurons of each of them) or 'all' (neurons of any of them)"
        )
    if target.mode == "shared" and len(set(target.classes)) < 2:
        raise ValueError(f"target of task {target.task}: mode 'shared' takes two classes or more")
    names = target.classes or list(classes)
    return [classes.index(c) for c in names]


def target_neurons(selection: Selection, target: AblationTarget) -> np.ndarray:
    """Neurons [k, 2] of a target: specific to its class, to each of its classes (shared), or to any of them (all)."""
    members = selection.members[:, :, target_classes(target, selection.classes)]
    chosen = members.any(axis=2) if target.mode == "all" else members.all(axis=2)
    return np.argwhere(chosen).astype(np.int64).reshape(-1, 2)


def identify(
    artifacts: Artifacts, parts: Sequence[Fold], how: str, *, rate: float, quantile: float, weak_filter: str
) -> dict[str, Selection]:
    """The selection for each fold, from its training clips ("train") or from all clips, as in the paper ("all").

    Raises:
        ValueError: training clips asked for where the artifacts hold no counts of single clips.
    """
    options: dict[str, Any] = {
        "rate": rate,
        "quantile": quantile,
        "weak_filter": weak_filter,
        "classes": artifacts.classes,
        "layers": artifacts.layers,
    }
    if how == "all":
        selection = select(artifacts.over_zero.double().numpy(), **options)
        return {fold.name: selection for fold in parts}
    if not artifacts.has_counts or "kept_clips" in artifacts.manifest:
        raise ValueError(
            f"{artifacts.path}: choosing neurons on training clips needs clip_counts.npy with every clip. Collect with "
            "counts of all clips, or set ablation.identify to 'all', the paper's way, which also sees the test clips."
        )
    return {fold.name: select(artifacts.probabilities(clips=fold.fit), **options) for fold in parts}


def _require_candidates(layer: int, needed: int, there: int, width: int) -> None:
    if there < needed:
        raise ValueError(
            f"layer {layer}: a control needs {needed} neurons outside the target, but only {there} of its {width} are. "
            "Choose a lower rate or a smaller target."
        )


def layer_matched(neurons: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Random neurons [k, 2] outside `neurons`, as many in each layer.

    Raises:
        ValueError: fewer candidates in a layer than the control needs.
    """
    found = []
    for layer, needed in zip(*np.unique(neurons[:, 0], return_counts=True), strict=True):
        free = np.setdiff1d(np.arange(width), neurons[neurons[:, 0] == layer, 1])
        _require_candidates(int(layer), int(needed), len(free), width)
        picked = np.sort(rng.choice(free, needed, replace=False))
        found.append(np.stack([np.full(needed, layer), picked], axis=1))
    return np.concatenate(found).astype(np.int64)


def rate_matched(neurons: np.ndarray, rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random neurons [k, 2] outside `neurons`, as many in each layer, each from the nearest in activation rate.

    Args:
        neurons: [k, 2].
        rates: activation rates [layers, neurons].
        rng: of the draw; the order in which neurons choose is random too.

    Raises:
        ValueError: fewer candidates in a layer than the control needs.
    """
    width = rates.shape[1]
    found = []
    for layer in np.unique(neurons[:, 0]):
        mine = neurons[neurons[:, 0] == layer, 1]
        free = np.setdiff1d(np.arange(width), mine)
        _require_candidates(int(layer), len(mine), len(free), width)
        for neuron in rng.permutation(mine):
            distance = np.abs(rates[layer, free] - rates[layer, neuron])
            near = np.argsort(distance, kind="stable")[:NEAREST]
            place = rng.choice(near)
            found.append((layer, free[place]))
            free = np.delete(free, place)
    return np.array(sorted(found), dtype=np.int64)


def index_plus_one(neurons: np.ndarray, width: int) -> np.ndarray:
    """The paper's control: the neuron beside each one, the first after the last. May overlap with the target."""
    return np.stack([neurons[:, 0], (neurons[:, 1] + 1) % width], axis=1)


# -- running sets over clips ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to run the encoder over some clips: a set of neurons for each fold, None where it has none."""

    name: str
    sets: Mapping[str, NeuronSet | None]
    clips: np.ndarray  # bool [clips], whole classes
    refit: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the classifier made of the clips under a variant; NaN where it was not run.

    truth: log-probability of the true class [clips], right: 1 where it is the most probable one [clips], change:
    largest absolute change of the embedding [clips]; refit_truth, refit_right: the same of each refitted classifier
    [refits, clips], or None.
    """

    truth: np.ndarray
    right: np.ndarray
    change: np.ndarray
    refit_truth: np.ndarray | None = None
    refit_right: np.ndarray | None = None


def _key(change: NeuronSet | None) -> str:
    """Name of a set by its content, so that the same set is never run twice over a clip."""
    if change is None:
        return "intact"
    order = np.lexsort((change.neurons[:, 1], change.neurons[:, 0]))
    digest = hashlib.sha256(np.ascontiguousarray(change.neurons[order]).tobytes())
    digest.update(repr(float(change.gain)).encode())
    if change.replace_by is not None:
        digest.update(np.ascontiguousarray(change.replace_by[order]).tobytes())
    return digest.hexdigest()[:24]


class Bench:
    """An encoder, a task, its artifacts and the classifiers: runs variants and keeps what is done on disk.

    Raises:
        ValueError: artifacts of another model, of other classes, or without embeddings of single clips.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: Task,
        artifacts: Artifacts,
        store: Path,
        *,
        refit_count: int = 0,
        seed: int = 0,
        batch_size: int = 32,
        strengths: Sequence[float] = STRENGTHS,
    ) -> None:
        self.encoder, self.task, self.artifacts, self.store = encoder, task, artifacts, store
        self.batch_size = batch_size
        self.row_of_clip = check_belong_together(encoder, task, artifacts)
        self.layer_index = np.array([encoder.layers.index(name) for name in artifacts.layers])
        self.width = int(artifacts.over_zero.shape[1])
        self.labels = artifacts.labels
        self.groups = artifacts.groups
        self.embeddings = artifacts.embeddings()
        self.folds = folds(artifacts.splits, self.labels, artifacts.classes)
        self.classifiers: dict[str, Classifier] = {}
        self.refitted: dict[str, list[Classifier]] = {}
        for number, fold in enumerate(self.folds):
            classifier = fit(self.embeddings, self.labels, artifacts.classes, fold, strengths=strengths)
            classifier.require_classes(task.classes)
            self.classifiers[fold.name] = classifier
            self.refitted[fold.name] = refits(
                classifier,
                self.embeddings,
                self.labels,
                self.groups,
                fold,
                count=refit_count,
                seed=seed * 1000 + number,
            )
        self.tested = np.zeros(len(self.labels), dtype=bool)
        for fold in self.folds:
            self.tested[fold.test] = True
        identity = {
            "format": _FORMAT,
            "encoder": encoder.name,
            "weights": str(encoder.weights.get("sha256", encoder.weights.get("source"))),
            "layers": list(artifacts.layers),
            "artifacts": [artifacts.manifest["checksums"][f] for f in ("features.pt", "gts.pt")],
            "splits": hashlib.sha256("\n".join(artifacts.splits).encode()).hexdigest(),
            "groups": hashlib.sha256("\n".join(artifacts.groups).encode()).hexdigest(),
            "strengths": list(strengths),
            "refits": refit_count,
            "seed": seed,
        }
        self.identity = json.dumps(identity, sort_keys=True)

    def set_of(self, neurons: np.ndarray, gain: float = 0.0, replace_by: np.ndarray | None = None) -> NeuronSet | None:
        """A checked set from neurons [k, 2] in the artifacts' layers; None if there is none, or if gain is 1."""
        if len(neurons) == 0 or (gain == 1 and replace_by is None):
            return None
        theirs = np.stack([self.layer_index[neurons[:, 0]], neurons[:, 1]], axis=1)
        return neuron_set(self.encoder, theirs, gain, replace_by)

    def classifier_scores(self, in_sample: np.ndarray) -> pd.DataFrame:
        """The classifiers on the artifacts' own embeddings, each clip tested once: `aape.classifier.scores`."""
        log_p = np.full((len(self.labels), len(self.artifacts.classes)), np.nan)
        for fold in self.folds:
            log_p[fold.test] = self.classifiers[fold.name].log_probabilities(self.embeddings[fold.test])
        t = self.tested
        return scores(log_p[t], self.labels[t], self.artifacts.classes, in_sample[t])

    def _batches(self, variants: Sequence[Variant]) -> list[tuple[Fold, np.ndarray, list[int]]]:
        """(fold, clips [batch], indices of the variants that want them).

        The clips of a batch are of one class: a variant wants all test clips of a class or none, so the batches stay
        the same, and what was computed stays of use, when targets or controls are added.
        """
        found = []
        for fold in self.folds:
            for c in range(len(self.artifacts.classes)):
                mine = fold.test[self.labels[fold.test] == c]
                indices = [i for i, variant in enumerate(variants) if variant.clips[mine].any()]
                if indices:
                    for start in range(0, len(mine), self.batch_size):
                        found.append((fold, mine[start : start + self.batch_size], indices))
        return found

    def run(self, variants: Sequence[Variant]) -> dict[str, Outcome]:
        """Every variant over its clips. What is on disk already is read, the rest is computed and kept.

        Raises:
            BadClip: a clip that can no longer be read.
            ValueError: the encoder embeds a clip otherwise than the artifacts say.
        """
        blank = lambda *shape: np.full((*shape, len(self.labels)), np.nan)  # noqa: E731
        count = len(next(iter(self.refitted.values())))
        outcomes = {
            v.name: Outcome(
                blank(),
                blank(),
                blank(),
                blank(count) if v.refit and count else None,
                blank(count) if v.refit and count else None,
            )
            for v in variants
        }
        batches = self._batches(variants)
        work: list[tuple[int, Path, dict[str, np.ndarray], dict[str, tuple[NeuronSet | None, bool]]]] = []
        for number, (fold, clips, indices) in enumerate(batches):
            path = self._file(fold, clips)
            saved = _read(path)
            missing: dict[str, tuple[NeuronSet | None, bool]] = {}
            for i in indices:
                change = variants[i].sets[fold.name]
                key = _key(change)
                refit = (variants[i].refit and count > 0) or (key in missing and missing[key][1])
                if key not in saved or (refit and len(saved[key]) == 3):
                    missing[key] = (change, refit)
            if missing:
                work.append((number, path, saved, missing))
            self._hand_out(outcomes, variants, fold, clips, indices, saved)
        if not work:
            return outcomes
        total = sum(len(missing) * len(batches[number][1]) for number, _, _, missing in work)
        bar = tqdm(
            total=total, unit="pass", desc=f"{self.encoder.name} on {self.task.name}, neurons silenced", disable=None
        )
        self.store.mkdir(parents=True, exist_ok=True)
        reader = prefetched(
            self.task, [self.row_of_clip[batches[n][1]] for n, _, _, _ in work], self.encoder.sample_rate
        )
        with bar, full_precision():
            for (number, path, saved, missing), (wave, _, complaints) in zip(work, reader, strict=True):
                fold, clips, indices = batches[number]
                if complaints:
                    raise BadClip(f"{next(iter(complaints.values()))} What was computed is kept; mend it, call again.")
                keys = list(missing)
                for start in range(0, len(keys), SETS_AT_ONCE):
                    some = {key: missing[key] for key in keys[start : start + SETS_AT_ONCE]}
                    saved |= self._compute(fold, clips, torch.from_numpy(wave), some)
                    with whole_file(path) as file:
                        np.savez(file, **saved)  # type: ignore[arg-type]
                    bar.update(len(some) * len(clips))
                self._hand_out(outcomes, variants, fold, clips, indices, saved)
        return outcomes

    def _file(self, fold: Fold, clips: np.ndarray) -> Path:
        digest = hashlib.sha256(self.identity.encode())
        digest.update(fold.name.encode())
        digest.update(np.ascontiguousarray(clips).tobytes())
        return self.store / f"{fold.name}-{digest.hexdigest()[:24]}.npz"

    def _compute(
        self, fold: Fold, clips: np.ndarray, wave: torch.Tensor, sets: Mapping[str, tuple[NeuronSet | None, bool]]
    ) -> dict[str, np.ndarray]:
        """Key -> [3 or 3 + 2 * refits, batch]: truth, right, change, then truth and right of each refit."""
        changes = [None] + [change for change, _ in sets.values()]
        embedded = next(embed_with_sets(self.encoder, [wave], changes)).cpu().numpy()  # [1 + sets, batch, dim]
        self._check_intact(embedded[0], clips)
        labels = self.labels[clips]
        flat = embedded[1:].reshape(-1, embedded.shape[-1])

        def judged(classifier: Classifier, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            log_p = classifier.log_probabilities(rows).reshape(-1, len(clips), len(classifier.classes))
            truth = np.take_along_axis(log_p, np.broadcast_to(labels, log_p.shape[:2])[..., None], axis=2)
            return truth[..., 0], (log_p.argmax(axis=2) == labels).astype(np.float64)

        truth, right = judged(self.classifiers[fold.name], flat)
        moved = np.abs(embedded[1:] - embedded[:1]).max(axis=2)
        found = {key: [truth[i], right[i], moved[i]] for i, key in enumerate(sets)}
        again = [i for i, (_, refit) in enumerate(sets.values()) if refit]
        if again:
            rows = embedded[1:][again].reshape(-1, embedded.shape[-1])
            keys = list(sets)
            for classifier in self.refitted[fold.name]:
                truth, right = judged(classifier, rows)
                for place, i in enumerate(again):
                    found[keys[i]] += [truth[place], right[place]]
        return {key: np.stack(values) for key, values in found.items()}

    def _check_intact(self, embedded: np.ndarray, clips: np.ndarray) -> None:
        expected = self.embeddings[clips]
        off = float(np.abs(embedded - expected).max())
        if off > 1e-3 * max(1.0, float(np.abs(expected).max())):
            raise ValueError(
                f"{self.artifacts.path}: {self.encoder.name} embeds {self.task.files[self.row_of_clip[clips[0]]]} "
                f"and its neighbours up to {off:.3g} away from features.pt. The artifacts are of other weights or of "
                "other audio than those in hand: collect again."
            )

    def _hand_out(
        self,
        outcomes: Mapping[str, Outcome],
        variants: Sequence[Variant],
        fold: Fold,
        clips: np.ndarray,
        indices: Sequence[int],
        saved: Mapping[str, np.ndarray],
    ) -> None:
        for i in indices:
            variant = variants[i]
            values = saved.get(_key(variant.sets[fold.name]))
            if values is None:
                continue
            outcome = outcomes[variant.name]
            outcome.truth[clips], outcome.right[clips], outcome.change[clips] = values[:3]
            if outcome.refit_truth is not None and outcome.refit_right is not None and len(values) > 3:
                outcome.refit_truth[:, clips], outcome.refit_right[:, clips] = values[3::2], values[4::2]

    def means(self, neurons: np.ndarray) -> dict[str, np.ndarray]:
        """Mean activation of neurons [k, 2] over the training clips of each fold: fold name -> float32 [k]."""
        path = self.store / "means.npz"
        saved = _read(path)
        key = hashlib.sha256(self.identity.encode() + np.ascontiguousarray(neurons).tobytes()).hexdigest()
        theirs = np.stack([self.layer_index[neurons[:, 0]], neurons[:, 1]], axis=1)
        splits = self.artifacts.splits
        of_split: dict[str, np.ndarray] = {}
        for split in dict.fromkeys(splits[np.concatenate([f.fit for f in self.folds])].tolist()):
            name = f"{key}-{split}"
            if name not in saved:
                clips = self.row_of_clip[np.flatnonzero(splits == split)]
                batches = [clips[i : i + self.batch_size] for i in range(0, len(clips), self.batch_size)]
                with full_precision():
                    reader = prefetched(self.task, batches, self.encoder.sample_rate)
                    waves = (torch.from_numpy(wave) for wave, _, _ in reader)
                    saved[name] = mean_activations(self.encoder, waves, theirs)
                self.store.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as file:
                    np.savez(file, **saved)  # type: ignore[arg-type]
            of_split[split] = saved[name]
        means = {}
        for fold in self.folds:
            # All clips have the task's length, hence the same number of tokens: splits weigh as their clips.
            names, clips_in = np.unique(splits[fold.fit], return_counts=True)
            rows = np.stack([of_split[name] for name in names])
            means[fold.name] = np.average(rows, axis=0, weights=clips_in).astype(np.float32)
        return means


def _read(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file that keeps progress; nothing, and the file goes, where it is absent or damaged."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {key: saved[key] for key in saved.files}
    except (zipfile.BadZipFile, ValueError, OSError, KeyError):
        warnings.warn(f"{path} was damaged; it is computed anew", stacklevel=2)
        path.unlink()
        return {}


def check_belong_together(encoder: Encoder, task: Task, artifacts: Artifacts) -> np.ndarray:
    """Index into the task of each clip of the artifacts, once it is sure that model, task and artifacts fit.

    Raises:
        ValueError: artifacts of other tools, of another model (by the weights' SHA-256), with layers that the encoder
            does not have, or of other classes, labels or clips than the task's.
    """
    manifest = artifacts.manifest
    if "clips" not in manifest or not (artifacts.path / "features.pt").is_file():
        raise ValueError(_NO_CLIPS.format(artifacts.path))
    theirs, ours = manifest.get("weights", {}).get("sha256"), encoder.weights.get("sha256")
    if theirs != ours:
        raise ValueError(
            f"{artifacts.path} was made by {manifest.get('encoder')!r} with weights of SHA-256 {str(theirs)[:12]}..., "
            f"the encoder in hand is {encoder.name!r} with {str(ours)[:12]}... . Load the weights that made the "
            "artifacts, or collect again."
        )
    unknown = [name for name in artifacts.layers if name not in encoder.layers]
    if unknown:
        raise ValueError(f"{artifacts.path} has layer {unknown[0]!r}, {encoder.name} has {', '.join(encoder.layers)}")
    if artifacts.classes != task.classes:
        raise ValueError(
            f"{artifacts.path} has {len(artifacts.classes)} classes ({', '.join(artifacts.classes[:4])}, ...), task "
            f"{task.name} has {len(task.classes)} ({', '.join(task.classes[:4])}, ...); collect this task again"
        )
    place = {name: i for i, name in enumerate(task.files)}
    lost = [name for name in artifacts.files if name not in place]
    if lost:
        raise ValueError(
            f"{artifacts.path} knows {len(lost)} clip(s) that {task.metadata} does not list, e.g. {lost[0]}"
        )
    rows = np.array([place[name] for name in artifacts.files])
    if not np.array_equal(task.labels[rows], artifacts.labels):
        raise ValueError(f"{artifacts.path} and {task.metadata} give clips other labels; collect again")
    return rows


# -- effects ----------------------------------------------------------------------------------------------------


def _values(outcome: Outcome, measure: str) -> np.ndarray:
    """Per clip [clips], on the measure's scale: points or nats."""
    return outcome.right * 100 if measure == "accuracy" else outcome.truth


def _refit_values(outcome: Outcome, measure: str) -> np.ndarray | None:
    if outcome.refit_right is None:
        return None
    return outcome.refit_right * 100 if measure == "accuracy" else outcome.refit_truth


def paired_interval(
    difference: np.ndarray, groups: np.ndarray, *, count: int, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of a mean of paired differences [clips], by bootstrap over groups of clips.

    NaN where there are fewer than two groups, of which nothing can be said, or no bootstraps are asked for.
    """
    names, of_clip = np.unique(groups, return_inverse=True)
    if len(names) < 2 or count == 0:
        return np.nan, np.nan
    sums = np.bincount(of_clip, weights=difference)
    sizes = np.bincount(of_clip)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)  # [count, groups]
    low, high = np.percentile((drawn @ sums) / (drawn @ sizes), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Plan:
    """A target on one bench: its sets by kind, and the controls' names."""

    target: AblationTarget
    label: str
    classes: list[int]
    sets: Sets
    variants: list[Variant]
    kinds: dict[str, str]  # kind of an effect row -> variant
    sizes: dict[str, Sets]
    controls: dict[str, list[str]]  # kind of control -> variants
    gains: dict[float, str]


CONTROLS = {"layer-matched": "layer", "rate-matched": "rate", "rate-matched in the classes": "target_rate"}


def _plan(
    bench: Bench,
    study: Study,
    target: AblationTarget,
    selections: Mapping[str, Selection],
    others: Mapping[str, Selection] | None,
) -> _Plan:
    """Every variant of one target."""
    settings = study.ablation
    label = label_of(target)
    classes = target_classes(target, bench.artifacts.classes)
    here = np.isin(bench.labels, classes) & bench.tested
    sets = {name: target_neurons(selection, target) for name, selection in selections.items()}
    plan = _Plan(target, label, classes, sets, [], {}, {}, {}, {})
    if not any(len(s) for s in sets.values()):
        return plan

    def add(kind: str, members: Sets, clips: np.ndarray = bench.tested, **options: Any) -> str:
        name = f"{label} | {kind}"
        refit = options.pop("refit", False)
        values = options.pop("values", {})
        chosen = {
            fold: bench.set_of(neurons, replace_by=values.get(fold), **options) for fold, neurons in members.items()
        }
        plan.variants.append(Variant(name, chosen, clips, refit))
        return name

    def effect(kind: str, members: Sets, **options: Any) -> None:
        plan.kinds[kind] = add(kind, members, **options)
        plan.sizes[kind] = members

    effect("silenced", sets, refit=True)
    effect("index plus one", {f: index_plus_one(n, bench.width) for f, n in sets.items()})
    if settings.mean_replacement:
        union = np.unique(np.concatenate(list(sets.values())), axis=0)
        place = {tuple(row): i for i, row in enumerate(union.tolist())}
        means = bench.means(union)
        values = {f: means[f][[place[tuple(r)] for r in n.tolist()]] for f, n in sets.items() if len(n)}
        effect("replaced by mean", sets, values=values)
    if others is not None:
        other = "all clips" if settings.identify == "train" else "training clips"
        effect(f"silenced, chosen on {other}", {f: target_neurons(s, target) for f, s in others.items()})
    for gain in settings.gains:
        plan.gains[gain] = add(f"gain {gain:g}", sets, clips=here, gain=gain)

    rates: dict[str, dict[str, np.ndarray]] = {"rate-matched": {}, "rate-matched in the classes": {}}
    for fold in bench.folds:
        p = selections[fold.name].probabilities  # [layers, neurons, classes]
        rates["rate-matched"][fold.name] = _overall_rate(bench.artifacts, fold, settings.identify)
        rates["rate-matched in the classes"][fold.name] = p[:, :, classes].mean(axis=2)
    wanted = {
        "layer-matched": settings.controls,
        "rate-matched": settings.rate_matched,
        "rate-matched in the classes": settings.target_rate_matched,
    }
    everywhere = settings.controls if settings.controls_elsewhere is None else settings.controls_elsewhere
    for kind, count in wanted.items():
        plan.controls[kind] = []
        for i in range(count):
            members = {}
            for fold in bench.folds:
                seed = zlib.crc32(f"{bench.task.name}|{label}|{target.mode}|{kind}|{fold.name}".encode())
                rng = np.random.default_rng([study.seed, seed, i])
                neurons = sets[fold.name]
                if not len(neurons):
                    members[fold.name] = neurons
                elif kind == "layer-matched":
                    members[fold.name] = layer_matched(neurons, bench.width, rng)
                else:
                    members[fold.name] = rate_matched(neurons, rates[kind][fold.name], rng)
            clips = bench.tested if kind == "layer-matched" and i < everywhere else here
            plan.controls[kind].append(add(f"{kind} control {i}", members, clips))
    return plan


def _overall_rate(artifacts: Artifacts, fold: Fold, how: str) -> np.ndarray:
    """Activation rate [layers, neurons] over all tokens, of the training clips or of all (mean over classes then)."""
    if how == "all" or not artifacts.has_counts:
        return artifacts.over_zero.double().mean(dim=2).numpy()
    active = artifacts.counts[fold.fit].sum(axis=0, dtype=np.int64)
    return active / artifacts.tokens[fold.fit].sum()


def _off_target_variants(bench: Bench, selections: Mapping[str, Selection]) -> dict[str, Variant]:
    """Class name -> variant that silences its neurons; classes without any are left out."""
    found = {}
    for name in bench.artifacts.classes:
        target = AblationTarget(task=bench.task.name, classes=[name], mode="specific")
        sets = {f: bench.set_of(target_neurons(s, target)) for f, s in selections.items()}
        if any(s is not None for s in sets.values()):
            found[name] = Variant(f"neurons of {name}", sets, bench.tested)
    return found


# -- the experiment ---------------------------------------------------------------------------------------------


def judged(effects: pd.DataFrame, q: float) -> tuple[pd.DataFrame, int]:
    """The rows of silenced targets that were tested, and how many of them fall below their layer-matched controls."""
    tested = effects[effects.layer_p.notna()]
    return tested, int(((tested.layer_q < q) & (tested.difference < tested.layer_mean)).sum())


@dataclass(frozen=True, eq=False)
class AblationResult:
    """Tables of the experiment; each is also a CSV file `ablation_<name>.csv` in `directory`.

    effects: a row per task, model, target, kind of change, class and measure.
    controls: a row per control set, class and measure.
    off_target: the change in each class when another class's neurons are silenced.
    gains: the change in each class of a target by gain.
    classifier: accuracy of the intact classifier by class, clips in the encoder's training data set apart.
    identification: size and overlap of the sets chosen on training clips and on all clips.
    neurons: the silenced neurons.
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

    def summary(self, measure: str = "log_probability") -> pd.DataFrame:
        """A row per task, target, model and class of the target: before, change, controls, p and q."""
        rows = self.effects
        rows = rows[(rows.kind == "silenced") & rows.targeted & (rows.measure == measure)]
        columns = ["task", "target", "model", "class", "clips", "in_sample", "neurons", "before", "difference"]
        columns += ["low", "high", "refit_sd", "layer_mean", "layer_low", "layer_high", "layer_p", "layer_q"]
        if rows.rate_controls.gt(0).any():
            columns += ["rate_mean", "rate_p", "rate_q"]
        return rows[columns].reset_index(drop=True)

    def verdict(self, q: float = 0.05) -> str:
        """Plain sentences: for each encoder, whether silencing the targets costs more than the controls do."""
        lines = []
        for measure, unit in (("accuracy", "points of accuracy"), ("log_probability", "nats of log-probability")):
            table = self.summary(measure)
            for model, mine in table.groupby("model", sort=False):
                label = self.labels.get(str(model), str(model))
                tested, fallen = judged(mine, q)
                if tested.empty:
                    lines.append(f"{label}: nothing to test (no target has neurons, or no controls).")
                    continue
                best = tested.iloc[tested.layer_p.argmin()]
                lines.append(
                    f"{label}, {unit}: {fallen} of {len(tested)} targeted classes fall "
                    f"below their layer-matched controls (q < {q:g}); on average {tested.difference.mean():+.3g} "
                    f"against {tested.layer_mean.mean():+.3g} for the controls; smallest p = {best.layer_p:.3g} "
                    f"(q = {best.layer_q:.3g}, {best['class']} in {best.task}: {best.difference:+.3g} against "
                    f"{best.layer_mean:+.3g})."
                )
        return "\n".join(lines)


def load_result(study: Study) -> AblationResult:
    """The tables of an earlier `ablate`, without the models.

    Raises:
        FileNotFoundError: no such tables.
    """
    tables = {}
    for name in TABLES:
        path = study.directory / f"ablation_{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run Ablations.ipynb with study {study.name!r} first")
        tables[name] = pd.read_csv(path, dtype={"class": str, "silenced": str, "target": str})
    return _result(study, tables)


def _result(study: Study, tables: Mapping[str, pd.DataFrame]) -> AblationResult:
    return AblationResult(
        study.directory,
        study.stand_in,
        {name: model.label for name, model in study.encoders.items()},
        {name: task.title for name, task in study.tasks.items()},
        **tables,
    )


def ablate(
    study: str | Path | Study, *, device: str | torch.device | None = None, batch_size: int | None = None
) -> AblationResult:
    """The deactivation experiment of a study, for every model and task that its targets name.

    Args:
        study: with `ablation.targets`; the artifacts of its models and tasks must have been collected.
        device: None: CUDA if there, else CPU.
        batch_size: clips at once; None: the study's.

    Raises:
        ValueError: no targets; unknown classes; artifacts that do not belong to the encoder; a target without a neuron
            in every model; too few candidates for a control. What was computed until then is kept.
        FileNotFoundError: artifacts that have not been collected.
    """
    if not isinstance(study, Study):
        study = load_study(study)
    settings = study.ablation
    if not settings.targets:
        raise ValueError(
            f"study {study.name!r} states no ablation targets: list them under ablation.targets, each with task, "
            "classes and mode (specific, shared, all)"
        )
    models = [copy for name in settings.models or study.models for copy in study.copies(name)]
    tasks = {name: load_task(study, name) for name in dict.fromkeys(t.task for t in settings.targets)}
    artifacts = {
        (str(model), task): load_artifacts(study.artifacts_directory(task, model)) for model in models for task in tasks
    }
    chosen = {place: _selections(found, study, place[1]) for place, found in artifacts.items()}
    _require_neurons(study, chosen)  # before hours of work
    on = choose_device(device)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for model in models:
        encoder = load_encoder(study, model).to(on)
        for name, task in tasks.items():
            bench = Bench(
                encoder,
                task,
                artifacts[model, name],
                study.directory / "ablations" / f"{name}_{study.model(model).folder}",
                refit_count=settings.refits,
                seed=study.seed,
                batch_size=study.collect.batch_size if batch_size is None else batch_size,
            )
            for table, new in _one(bench, study, model, name, chosen[model, name]).items():
                rows[table] += new
    tables = {name: pd.DataFrame(new, columns=None if new else list(TABLES[name])) for name, new in rows.items()}
    _add_q(tables["effects"])
    study.directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_text(study.directory / f"ablation_{name}.csv", table.to_csv(index=False))
    return _result(study, tables)


_Choice = tuple[dict[str, Selection], dict[str, Selection] | None]


def _selections(artifacts: Artifacts, study: Study, task: str) -> _Choice:
    """Selections by fold as the study asks for them, and in the other way (training or all clips) where there are counts."""
    how: dict[str, Any] = {
        "rate": study.rate(task),
        "quantile": study.selection.quantile,
        "weak_filter": study.selection.weak_filter,
    }
    if "clips" not in artifacts.manifest:
        raise ValueError(_NO_CLIPS.format(artifacts.path))
    parts = folds(artifacts.splits, artifacts.labels, artifacts.classes)
    selections = identify(artifacts, parts, study.ablation.identify, **how)
    other = "all" if study.ablation.identify == "train" else "train"
    can_train = artifacts.has_counts and "kept_clips" not in artifacts.manifest
    return selections, identify(artifacts, parts, other, **how) if other == "all" or can_train else None


def _require_neurons(study: Study, chosen: Mapping[tuple[str, str], _Choice]) -> None:
    """A target that is empty in every model, so that there is nothing to silence, is an error in the study."""
    for target in study.ablation.targets:
        found = [
            target_neurons(selection, target)
            for (_, task), (selections, _) in chosen.items()
            if task == target.task
            for selection in selections.values()
        ]
        if not any(len(neurons) for neurons in found):
            raise ValueError(
                f"no model of study {study.name!r} has a neuron for the target {label_of(target)!r} of {target.task} "
                f"({target.mode}): the set is empty. Choose other classes, another mode or a higher selection rate."
            )


def _one(bench: Bench, study: Study, model: str, task: str, chosen: _Choice) -> dict[str, list[dict[str, Any]]]:
    """All targets of one task on one model: rows for the tables."""
    settings = study.ablation
    targets = [t for t in settings.targets if t.task == task]
    artifacts = bench.artifacts
    trained_on = study.model(model).heard.get(task, [])
    unknown = sorted(set(trained_on) - set(artifacts.splits.tolist()))
    if unknown:
        raise ValueError(
            f"models.{model}.heard: {task} has no split {unknown[0]!r}; it has {', '.join(sorted(set(artifacts.splits)))}"
        )
    in_sample = np.isin(artifacts.splits, trained_on)
    selections, others = chosen
    plans = [_plan(bench, study, target, selections, others) for target in targets]
    off_target = _off_target_variants(bench, selections) if settings.off_target else {}
    intact = Variant("intact", {fold.name: None for fold in bench.folds}, bench.tested, refit=True)
    everything = [intact, *off_target.values(), *(v for plan in plans for v in plan.variants)]
    outcomes = bench.run(everything)
    before = outcomes["intact"]

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    where = {"task": task, "model": model}
    for row in bench.classifier_scores(in_sample).to_dict("records"):
        rows["classifier"].append({**where, **{str(k): v for k, v in row.items()}})
    for plan in plans:
        target_at = where | {"target": plan.label, "mode": plan.target.mode}
        for fold in bench.folds:
            neurons = plan.sets[fold.name]
            for layer, neuron in neurons.tolist():
                rows["neurons"].append(
                    target_at | {"fold": fold.name, "layer": layer, "neuron": neuron, "name": artifacts.layers[layer]}
                )
            if others is not None:
                theirs = target_neurons(others[fold.name], plan.target)
                a, b = set(map(tuple, neurons.tolist())), set(map(tuple, theirs.tolist()))
                train, everyone = (a, b) if settings.identify == "train" else (b, a)
                rows["identification"].append(
                    target_at
                    | {
                        "fold": fold.name,
                        "training_clips": len(train),
                        "all_clips": len(everyone),
                        "both": len(a & b),
                        "jaccard": float(jaccard_index(len(a & b), len(a | b), np.nan)),
                    }
                )
        _require_change(bench, plan, outcomes)
        rows["effects"] += _effects(bench, study, plan, outcomes, in_sample, target_at)
        rows["controls"] += _control_rows(bench, plan, outcomes, target_at)
        for gain, name in plan.gains.items():
            changed = _changes(bench, before, outcomes[name], target_at | {"gain": gain}, plan.classes)
            rows["gains"] += [row for row in changed if row["targeted"]]
    for name, variant in off_target.items():
        index = [artifacts.classes.index(name)]
        size = float(np.mean([0 if s is None else len(s.neurons) for s in variant.sets.values()]))
        at = where | {"silenced": name, "neurons": size}
        rows["off_target"] += _changes(bench, before, outcomes[variant.name], at, index)
    return rows


def _require_change(bench: Bench, plan: _Plan, outcomes: Mapping[str, Outcome]) -> None:
    """A target that leaves every embedding as it was is an error, not a result of zero."""
    if "silenced" in plan.kinds:
        change = outcomes[plan.kinds["silenced"]].change[bench.tested]
        if not change.max() > 0:
            raise RuntimeError(
                f"target {plan.label!r} of {bench.task.name}: silencing its neurons in {bench.encoder.name} changes no "
                f"embedding of {len(change)} test clips, bit for bit. They are 0 there, or the hooked modules are not "
                "on the way to the embedding."
            )


def _by_class(bench: Bench, values: np.ndarray) -> np.ndarray:
    """Means over the tested clips of each class, [..., clips] -> [..., classes]; NaN where a clip was not run."""
    columns = [
        values[..., bench.tested & (bench.labels == c)].mean(axis=-1) for c in range(len(bench.artifacts.classes))
    ]
    return np.stack(columns, axis=-1)


def _changes(
    bench: Bench, before: Outcome, after: Outcome, at: Mapping[str, Any], classes: Sequence[int]
) -> list[dict[str, Any]]:
    """A row per class and measure: before, after, difference."""
    rows = []
    for measure in MEASURES:
        first, second = (_by_class(bench, _values(outcome, measure)) for outcome in (before, after))
        for c, name in enumerate(bench.artifacts.classes):
            rows.append(
                {
                    **at,
                    "class": name,
                    "targeted": c in classes,
                    "measure": measure,
                    "before": first[c],
                    "after": second[c],
                    "difference": second[c] - first[c],
                }
            )
    return rows


def _control_rows(
    bench: Bench, plan: _Plan, outcomes: Mapping[str, Outcome], at: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row per control set, class that it was tested on, and measure."""
    rows = []
    for kind, names in plan.controls.items():
        for number, name in enumerate(names):
            changed = _changes(
                bench, outcomes["intact"], outcomes[name], {**at, "control": kind, "number": number}, plan.classes
            )
            rows += [row for row in changed if np.isfinite(row["difference"])]
    return rows


def _effects(
    bench: Bench,
    study: Study,
    plan: _Plan,
    outcomes: Mapping[str, Outcome],
    in_sample: np.ndarray,
    at: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row per kind of change, class and measure, with interval, refits and controls."""
    rows: list[dict[str, Any]] = []
    before = outcomes["intact"]
    if not plan.kinds:
        empty = np.full(len(bench.labels), np.nan)
        outcomes = {**outcomes, "nothing": Outcome(empty, empty, empty)}
    for kind, name in (plan.kinds or {"silenced": "nothing"}).items():
        after = outcomes[name]
        sizes = plan.sizes.get(kind, {f.name: np.empty((0, 2)) for f in bench.folds})
        for row in _changes(bench, before, after, {**at, "kind": kind}, plan.classes):
            measure, c = row["measure"], bench.artifacts.classes.index(row["class"])
            mine = bench.tested & (bench.labels == c)
            difference = (_values(after, measure) - _values(before, measure))[mine]
            seed = zlib.crc32(f"{bench.task.name}|{plan.label}|{kind}|{c}".encode())
            low, high = paired_interval(
                difference,
                bench.groups[mine],
                count=study.ablation.bootstrap if np.isfinite(difference).all() else 0,
                rng=np.random.default_rng([study.seed, seed]),
            )
            row |= {
                "clips": int(mine.sum()),
                "in_sample": int((mine & in_sample).sum()),
                "groups": len(set(bench.groups[mine].tolist())),
                "neurons": float(np.mean([len(n) for n in sizes.values()])),
                "low": low,
                "high": high,
            }
            again, first = _refit_values(after, measure), _refit_values(before, measure)
            spread = np.array([]) if again is None or first is None else (again - first)[:, mine].mean(axis=1)
            row |= {
                "refit_mean": spread.mean() if len(spread) else np.nan,
                "refit_sd": spread.std(ddof=1) if len(spread) > 1 else np.nan,
            }
            if kind == "silenced":
                row |= _against(plan, outcomes, measure, mine, row["difference"])
            rows.append(row)
    return rows


def _against(
    plan: _Plan, outcomes: Mapping[str, Outcome], measure: str, mine: np.ndarray, difference: float
) -> dict[str, Any]:
    """The controls' mean, 95 % range and p of one class, by kind of control."""
    before = _values(outcomes["intact"], measure)[mine].mean()
    found: dict[str, Any] = {}
    for kind, short in CONTROLS.items():
        values = np.array([_values(outcomes[n], measure)[mine].mean() for n in plan.controls.get(kind, [])])
        values = values[np.isfinite(values)] - before
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
        found |= {
            f"{short}_controls": len(values),
            f"{short}_mean": values.mean() if len(values) else np.nan,
            f"{short}_low": low,
            f"{short}_high": high,
            f"{short}_p": one_sided_p(difference, values),
        }
    return found


def _add_q(effects: pd.DataFrame) -> None:
    """q over the targeted classes of all targets, for each model, measure and kind of control."""
    for short in CONTROLS.values():
        if f"{short}_p" not in effects:
            continue
        effects[f"{short}_q"] = np.nan
        tested = (effects.kind == "silenced") & effects.targeted
        for _, index in effects[tested].groupby(["model", "measure"]).groups.items():
            effects.loc[index, f"{short}_q"] = benjamini_hochberg(effects.loc[index, f"{short}_p"].to_numpy())
