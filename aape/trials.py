"""Sets of neurons changed, clips heard again, and what a classifier that knows nothing of it then says.

A `Bench` holds an encoder, a task, its artifacts, and a linear classifier for each fold, fitted on the intact encoder's
embeddings and left alone. It runs `Trial`s over test clips and keeps every batch on disk as it is done, so that a sweep
that was cut off goes on, and one with more trials computes only what is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from aape.artifacts import Artifacts
from aape.classifier import STRENGTHS, Classifier, Fold, fit, folds, refits, scores
from aape.encoder import Encoder, full_precision
from aape.files import Cache
from aape.silencing import NeuronSet, embed_with_sets, mean_activations, neuron_set
from aape.task import BadClip, Task, prefetched

MEASURES = ("accuracy", "log_probability")  # percentage points; nats
SETS_AT_ONCE = 64  # sets between two writes to disk

Sets = Mapping[str, np.ndarray]  # fold name -> neurons [k, 2] of (layer, neuron) in the artifacts' layers


@dataclass(frozen=True, eq=False)
class Trial:
    """One way to run the encoder over some clips.

    Attributes:
        neurons: what is changed when the clips of a fold are tested; None: nothing, the encoder as it is.
        clips: bool [clips], those to test, whole classes.
        gain: factor on the neurons' activations.
        values: fold name -> [k], what takes the activations' place instead.
        refit: also judged by the classifiers that were fitted again.
        at: what tells it apart in a table.
        table: the table that it belongs to.
        classes: indices of the classes that it aims at.
    """

    neurons: Sets | None
    clips: np.ndarray
    gain: float = 0.0
    values: Sets | None = None
    refit: bool = False
    at: Mapping[str, Any] | None = None
    table: str = ""
    classes: Sequence[int] = ()


class Bench:
    """See the module's docstring.

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
    ) -> None:
        self.encoder, self.task, self.artifacts, self.cache = encoder, task, artifacts, Cache(store)
        self.batch_size = batch_size
        self.row_of_clip = check_belong_together(encoder, task, artifacts)
        self.layer_index = np.array([encoder.layers.index(name) for name in artifacts.layers])
        self.labels, self.groups, self.classes = artifacts.labels, artifacts.groups, artifacts.classes
        self.embeddings = artifacts.embeddings()
        self.folds = folds(artifacts.splits, self.labels, self.classes)
        self.judges: dict[str, list[Classifier]] = {}  # fold -> the classifier, then its refits
        for number, fold in enumerate(self.folds):
            first = fit(self.embeddings, self.labels, self.classes, fold)
            again = refits(
                first, self.embeddings, self.labels, self.groups, fold, count=refit_count, seed=seed * 1000 + number
            )
            self.judges[fold.name] = [first, *again]
        self.tested = np.isin(np.arange(len(self.labels)), np.concatenate([fold.test for fold in self.folds]))
        self.identity = {  # what the numbers of a batch depend on, but for its clips and sets
            "encoder": encoder.name,
            "weights": str(encoder.weights.get("sha256", encoder.weights.get("source"))),
            "layers": list(artifacts.layers),
            "artifacts": [artifacts.manifest["checksums"][f] for f in ("features.pt", "gts.pt")],
            "splits": artifacts.splits.tolist(),
            "groups": self.groups.tolist(),
            "strengths": list(STRENGTHS),
            "refits": refit_count,
            "seed": seed,
        }

    def classifier_scores(self, in_sample: np.ndarray) -> pd.DataFrame:
        """The classifiers on the artifacts' own embeddings, each clip tested once: `aape.classifier.scores`."""
        log_p = np.full((len(self.labels), len(self.classes)), np.nan)
        for fold in self.folds:
            log_p[fold.test] = self.judges[fold.name][0].log_probabilities(self.embeddings[fold.test])
        t = self.tested
        return scores(log_p[t], self.labels[t], self.classes, in_sample[t])

    def _theirs(self, neurons: np.ndarray) -> np.ndarray:
        """[k, 2] in the artifacts' layers -> in the encoder's."""
        return np.stack([self.layer_index[neurons[:, 0]], neurons[:, 1]], axis=1)

    def _set(self, trial: Trial, fold: Fold) -> tuple[str, NeuronSet | None]:
        """What a trial changes in a fold, None for nothing, and its name by content: no set runs twice over a clip."""
        suffix = "-refit" if trial.refit else ""
        neurons = np.empty((0, 2), dtype=np.int64) if trial.neurons is None else trial.neurons[fold.name]
        if len(neurons) == 0 or (trial.gain == 1 and trial.values is None):
            return f"intact{suffix}", None
        order = np.lexsort((neurons[:, 1], neurons[:, 0]))
        values = None if trial.values is None else trial.values[fold.name][order]
        change = neuron_set(self.encoder, self._theirs(neurons[order]), trial.gain, values)
        content = [change.neurons, np.float64(trial.gain), *([] if values is None else [values])]
        return hashlib.sha256(b"".join(a.tobytes() for a in content)).hexdigest()[:24] + suffix, change

    def _batches(self, trials: Sequence[Trial]) -> Iterator[tuple[Fold, np.ndarray, list[int]]]:
        """(fold, clips [batch], places of the trials that want them).

        The clips of a batch are of one class: a trial wants all test clips of a class or none, so the batches stay the
        same, and what was computed stays of use, when trials are added.
        """
        for fold in self.folds:
            for c in range(len(self.classes)):
                mine = fold.test[self.labels[fold.test] == c]
                wanted = [i for i, trial in enumerate(trials) if trial.clips[mine].any()]
                for start in range(0, len(mine) if wanted else 0, self.batch_size):
                    yield fold, mine[start : start + self.batch_size], wanted

    def run(self, trials: Sequence[Trial]) -> list[np.ndarray]:
        """Every trial over its clips. What is on disk already is read, the rest is computed and kept.

        Returns:
            For each trial float64 [judges, measures, clips]: the classifier and, where `refit`, its refits; points (0
            or 100) and nats of the true class; NaN where it was not run.

        Raises:
            BadClip: a clip that can no longer be read.
            ValueError: the encoder embeds a clip otherwise than the artifacts say.
        """
        sets = {fold.name: [self._set(trial, fold) for trial in trials] for fold in self.folds}
        work = []
        for fold, clips, wanted in self._batches(trials):
            name = f"{fold.name}-{hashlib.sha256(clips.tobytes()).hexdigest()[:24]}"
            known = self.cache.get(name, self.identity) or {}
            missing = {key: change for key, change in (sets[fold.name][i] for i in wanted) if key not in known}
            work.append((fold, clips, wanted, name, known, missing))
        todo = [w for w in work if w[-1]]
        bar = tqdm(
            total=sum(len(w[1]) * len(w[-1]) for w in todo),
            unit="pass",
            desc=f"{self.encoder.name} on {self.task.name}, neurons silenced",
            disable=None if todo else True,
        )
        with bar, full_precision():
            reader = prefetched(self.task, [self.row_of_clip[w[1]] for w in todo], self.encoder.sample_rate)
            for (fold, clips, _, name, known, missing), (wave, _, complaints) in zip(todo, reader, strict=True):
                if complaints:
                    raise BadClip(f"{next(iter(complaints.values()))} What was computed is kept; mend it, call again.")
                for start in range(0, len(missing), SETS_AT_ONCE):
                    some = dict(list(missing.items())[start : start + SETS_AT_ONCE])
                    known |= self._compute(fold, clips, torch.from_numpy(wave), some)
                    self.cache.put(name, self.identity, known)
                    bar.update(len(some) * len(clips))
        judges = len(self.judges[self.folds[0].name])
        values = [np.full((judges if t.refit else 1, len(MEASURES), len(self.labels)), np.nan) for t in trials]
        for fold, clips, wanted, _, known, _ in work:
            for i in wanted:
                values[i][:, :, clips] = known[sets[fold.name][i][0]]
        return values

    def _compute(
        self, fold: Fold, clips: np.ndarray, wave: torch.Tensor, sets: Mapping[str, NeuronSet | None]
    ) -> dict[str, np.ndarray]:
        """Key -> [judges, measures, batch]."""
        embedded = next(embed_with_sets(self.encoder, [wave], [None, *sets.values()]))
        intact, *changed = embedded.cpu().numpy()  # [batch, dim] each
        off = float(np.abs(intact - self.embeddings[clips]).max())
        if off > 1e-3 * max(1.0, float(np.abs(self.embeddings[clips]).max())):
            raise ValueError(
                f"{self.artifacts.path}: {self.encoder.name} embeds {self.task.files[self.row_of_clip[clips[0]]]} "
                f"and its neighbours up to {off:.3g} away from features.pt. The artifacts are of other weights or of "
                "other audio than those in hand: collect again."
            )
        found = {}
        for key, rows in zip(sets, changed, strict=True):
            judged = []
            for judge in self.judges[fold.name][: None if key.endswith("-refit") else 1]:
                log_p = judge.log_probabilities(rows)
                right = log_p.argmax(axis=1) == self.labels[clips]
                judged.append((100.0 * right, log_p[np.arange(len(clips)), self.labels[clips]]))
            found[key] = np.array(judged)
        return found

    def means(self, neurons: np.ndarray) -> Sets:
        """Mean activation of neurons [k, 2] over the training clips of each fold: fold name -> float32 [k]."""
        splits = self.artifacts.splits
        of_split: dict[str, np.ndarray] = {}
        for split in dict.fromkeys(splits[np.concatenate([f.fit for f in self.folds])].tolist()):
            key = self.identity | {"neurons": neurons.tolist()}
            name = f"means-{split}-{hashlib.sha256(neurons.tobytes()).hexdigest()[:24]}"
            kept = self.cache.get(name, key)
            if kept is None:
                clips = self.row_of_clip[np.flatnonzero(splits == split)]
                batches = [clips[i : i + self.batch_size] for i in range(0, len(clips), self.batch_size)]
                with full_precision():
                    reader = prefetched(self.task, batches, self.encoder.sample_rate)
                    waves = (torch.from_numpy(wave) for wave, _, _ in reader)
                    kept = {"means": mean_activations(self.encoder, waves, self._theirs(neurons))}
                self.cache.put(name, key, kept)
            of_split[split] = kept["means"]
        means = {}
        for fold in self.folds:
            # All clips have the task's length, hence the same number of tokens: splits weigh as their clips.
            names, clips_in = np.unique(splits[fold.fit], return_counts=True)
            rows = np.stack([of_split[name] for name in names])
            means[fold.name] = np.average(rows, axis=0, weights=clips_in).astype(np.float32)
        return means


def require_clips(artifacts: Artifacts) -> None:
    """Raises ValueError for artifacts of other tools, which know no single clips."""
    if "clips" not in artifacts.manifest or not (artifacts.path / "features.pt").is_file():
        raise ValueError(
            f"{artifacts.path}: the deactivation experiment needs manifest.json and features.pt, which artifacts of "
            "other tools do not have. Collect them with this repository's notebooks."
        )


def check_belong_together(encoder: Encoder, task: Task, artifacts: Artifacts) -> np.ndarray:
    """Index into the task of each clip of the artifacts, once it is sure that model, task and artifacts fit.

    Raises:
        ValueError: artifacts of other tools, of another model (by the weights' SHA-256), with layers that the encoder
            does not have, or of other classes, labels or clips than the task's.
    """
    require_clips(artifacts)
    manifest, path = artifacts.manifest, artifacts.path
    theirs, ours = manifest.get("weights", {}).get("sha256"), encoder.weights.get("sha256")
    if theirs != ours:
        raise ValueError(
            f"{path} was made by {manifest.get('encoder')!r} with weights of SHA-256 {str(theirs)[:12]}..., the "
            f"encoder in hand is {encoder.name!r} with {str(ours)[:12]}... . Load the weights that made the artifacts, "
            "or collect again."
        )
    unknown = [name for name in artifacts.layers if name not in encoder.layers]
    if unknown:
        raise ValueError(f"{path} has layer {unknown[0]!r}, {encoder.name} has {', '.join(encoder.layers)}")
    if artifacts.classes != task.classes:
        raise ValueError(
            f"{path} has {len(artifacts.classes)} classes ({', '.join(artifacts.classes[:4])}, ...), task {task.name} "
            f"has {len(task.classes)} ({', '.join(task.classes[:4])}, ...); collect this task again"
        )
    place = {name: i for i, name in enumerate(task.files)}
    lost = [name for name in artifacts.files if name not in place]
    if lost:
        raise ValueError(f"{path} knows {len(lost)} clip(s) that {task.metadata} does not list, e.g. {lost[0]}")
    rows = np.array([place[name] for name in artifacts.files])
    if not np.array_equal(task.labels[rows], artifacts.labels):
        raise ValueError(f"{path} and {task.metadata} give clips other labels; collect again")
    return rows
