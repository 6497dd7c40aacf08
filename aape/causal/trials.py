"""Sets of neurons changed, clips heard again, and what a classifier that knows nothing of it then says.

A `Bench` holds an encoder, a task, its artifacts, and a linear classifier for each fold, fitted on the intact encoder's
embeddings and left alone. It runs `Trial`s over test clips and keeps every batch on disk as it is done, so that a sweep
that was cut off goes on, and one with more trials computes only what is new.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts.belonging import check_belong_together, check_embedded
from aape.artifacts.folder import Artifacts
from aape.causal.classifier import STRENGTHS, Classifier, Fold, fit, fit_nearest_mean, folds, refits
from aape.causal.silencing import NeuronSet, embed_with_sets, neuron_set
from aape.encoders.encoder import Encoder, full_precision
from aape.files import Cache
from aape.sounds.task import Task, read_all

MEASURES = ("accuracy", "log_probability")  # percentage points; nats
SETS_AT_ONCE = 64  # sets between two writes to disk

Sets = Mapping[str, np.ndarray]  # fold name -> neurons [k, 2] of (layer, neuron) in the artifacts' layers


@dataclass(frozen=True, eq=False)
class Trial:
    """One way to run the encoder over some clips.

    Attributes:
        neurons: what is changed when the clips of a fold are tested; None: nothing, the encoder as it is.
        clips: bool [clips], those to test.
        change: a gain on the activations (0 silences); "mean": their mean over the fold's training clips in their
            place; "resample": those of a training clip of another class, token by token, the same clip in every trial.
        all_judges: tested by all classifiers, not by the first alone.
        at: what tells it apart in a table.
    """

    neurons: Sets | None
    clips: np.ndarray
    change: str | float = 0.0
    all_judges: bool = False
    at: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """See the module's docstring.

    Attributes:
        folds: which clips train and test.
        judges: fold name -> the classifier, then its refits, or the nearest-mean classifier.
        tested: bool [clips], clips of some fold's test.

    Of several folds, `tested` names those that are used; None: all. `stop` ends a run after the batch at hand.

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
        nearest_mean: bool = False,
        tested: Sequence[str] | None = None,
        seed: int = 0,
        batch_size: int = 32,
        stop: threading.Event | None = None,
    ) -> None:
        self.encoder, self.task, self.artifacts, self.cache = encoder, task, artifacts, Cache(store)
        self.batch_size, self.seed, self.stop = batch_size, seed, stop or threading.Event()
        self.row_of_clip = check_belong_together(encoder, task, artifacts)
        self.layer_index = np.array([encoder.layers.index(name) for name in artifacts.layers])
        self.width = int(artifacts.over_zero.shape[1])
        self.labels, self.groups, self.classes = artifacts.labels, artifacts.groups, artifacts.classes
        self.embeddings = artifacts.embeddings()
        every = folds(artifacts.splits, self.labels, self.classes, self.groups)
        self.folds = [fold for fold in every if tested is None or fold.name in tested]
        if not self.folds:
            raise ValueError(f"tested: found {tested}, expected some of {', '.join(fold.name for fold in every)}")
        self._checked: set[str] = set()  # batches whose clips this encoder embeds as the artifacts say
        self.judges: dict[str, list[Classifier]] = {}
        for number, fold in enumerate(self.folds):
            data = self.embeddings, self.labels
            first = fit(*data, self.classes, fold)
            again = refits(first, *data, self.groups, fold, count=refit_count, seed=seed * 1000 + number)
            nearest = [fit_nearest_mean(*data, self.classes, fold)] if nearest_mean else []
            self.judges[fold.name] = [first, *again, *nearest]
        self.tested = np.isin(np.arange(len(self.labels)), np.concatenate([fold.test for fold in self.folds]))
        self.identity = {  # what the numbers of a batch depend on, but for its clips and sets
            "encoder": encoder.identity,
            "layers": list(artifacts.layers),
            "artifacts": [artifacts.manifest["checksums"][f] for f in ("features.pt", "gts.pt")],
            "splits": artifacts.splits.tolist(),
            "groups": self.groups.tolist(),
            "judges": [list(STRENGTHS), refit_count, nearest_mean],
            "seed": seed,
        }

    def panel(self, per_class: int) -> np.ndarray:
        """bool [clips]: a seeded choice of tested clips, this many a class where there are, from different groups."""
        chosen = np.zeros(len(self.labels), dtype=bool)
        for c in range(len(self.classes)):
            rng = np.random.default_rng([self.seed, c])
            clips = rng.permutation(np.flatnonzero(self.tested & (self.labels == c)))
            _, first = np.unique(self.groups[clips], return_index=True)
            of_new_groups = clips[np.sort(first)]
            chosen[np.concatenate([of_new_groups, np.setdiff1d(clips, of_new_groups)])[:per_class]] = True
        return chosen

    @functools.cached_property
    def intact(self) -> np.ndarray:
        """What all judges say of the tested clips as they are, [judges, measures, clips]."""
        return self.run([Trial(None, self.tested, all_judges=True)])[0]

    @functools.cached_property
    def means(self) -> dict[str, np.ndarray]:
        """By fold: mean activation over its training clips, float32 [layers, neurons], from clip_means.npy.

        Raises:
            ValueError: no means, or of no training clip of a fold.
        """
        found, tokens = {}, self.artifacts.tokens[self.artifacts.kept]
        for fold in self.folds:
            mine, total = (
                np.flatnonzero(np.isin(self.artifacts.kept, fold.fit)),
                np.zeros(self.artifacts.means.shape[1:]),
            )
            if not len(mine):
                raise ValueError(
                    f"{self.artifacts.path}: means of no training clip of {fold.name} were kept; collect more"
                )
            for rows in np.split(mine, range(256, len(mine), 256)):
                total += np.tensordot(tokens[rows], self.artifacts.means[rows].astype(np.float64), axes=1)
            found[fold.name] = (total / tokens[mine].sum()).astype(np.float32)
        return found

    def donors(self, fold: Fold, clips: np.ndarray) -> np.ndarray:
        """A training clip of another class for each clip, the same for every trial."""
        others = [fold.fit[self.labels[fold.fit] != self.labels[clip]] for clip in clips]
        return np.array([np.random.default_rng([self.seed, i]).choice(o) for i, o in zip(clips, others, strict=True)])

    def _set(self, trial: Trial, fold: Fold) -> tuple[str, NeuronSet | None]:
        """What a trial changes in a fold, None for nothing, and its name by content: no set runs twice over a clip."""
        suffix = "-all" if trial.all_judges else ""
        if trial.neurons is None or not len(trial.neurons[fold.name]) or trial.change == 1.0:
            return f"intact{suffix}", None
        neurons = trial.neurons[fold.name]
        neurons = neurons[np.lexsort((neurons[:, 1], neurons[:, 0]))]
        values = self.means[fold.name][neurons[:, 0], neurons[:, 1]] if trial.change == "mean" else None
        theirs = np.stack([self.layer_index[neurons[:, 0]], neurons[:, 1]], axis=1)
        gain = trial.change if isinstance(trial.change, float) else 0.0
        change = neuron_set(self.encoder, theirs, gain, values, resample=trial.change == "resample")
        content = theirs.tobytes() + str(trial.change).encode() + (b"" if values is None else values.tobytes())
        return hashlib.sha256(content).hexdigest()[:24] + suffix, change

    def run(self, trials: Sequence[Trial], bar: tqdm | None = None) -> list[np.ndarray]:
        """Every trial over its clips. What is on disk already is read, the rest is computed and kept.

        A batch holds clips of one fold, and its file every set that was run over just these clips: so what was
        computed stays of use when trials are added.

        Args:
            trials: what to run. bar: moved on by a clip's pass under a trial.

        Returns:
            For each trial float64 [judges, measures, clips]: points (0 or 100) and nats of the true class, by the first
            classifier or by all; NaN where it was not run.

        Raises:
            BadClip: a clip that can no longer be read.
            ValueError: the encoder embeds a clip otherwise than the artifacts say.
        """
        batches: dict[str, tuple[Fold, np.ndarray, dict[str, NeuronSet | None]]] = {}  # with sets by key
        places = []  # batch, key, trial
        for (i, trial), fold in itertools.product(enumerate(trials), self.folds):
            mine, (key, change) = fold.test[trial.clips[fold.test]], self._set(trial, fold)
            for clips in np.split(mine, range(self.batch_size, len(mine), self.batch_size)) if len(mine) else ():
                name = f"{fold.name}-{hashlib.sha256(clips.tobytes()).hexdigest()[:24]}"
                batches.setdefault(name, (fold, clips, {}))[2][key] = change
                places.append((name, key, i))
        kept = {name: self.cache.get(name, self.identity) or {} for name in batches}  # by key
        if bar is not None:
            bar.update(sum(len(batches[name][1]) for name, key, _ in places if key in kept[name]))
        todo, heard = [], []
        for name, (fold, clips, sets) in batches.items():
            if missing := {key: change for key, change in sets.items() if key not in kept[name]}:
                resampled = any(change is not None and change.resample for change in missing.values())
                heard.append(self.row_of_clip[[*clips, *(self.donors(fold, clips) if resampled else ())]])
                todo.append((name, fold, clips, list(missing.items())))
        waves = read_all(self.task, heard, self.encoder.sample_rate)
        with full_precision():
            for (name, fold, clips, missing_sets), wave in zip(todo, waves, strict=True):
                for start in range(0, len(missing_sets), SETS_AT_ONCE):
                    if self.stop.is_set():
                        raise KeyboardInterrupt
                    some = dict(missing_sets[start : start + SETS_AT_ONCE])
                    kept[name] |= self._compute(fold, clips, wave, some, check=name not in self._checked)
                    self._checked.add(name)
                    self.cache.put(name, self.identity, kept[name])
                    if bar is not None:
                        bar.update(len(some) * len(clips))
        judges = len(self.judges[self.folds[0].name])
        values = [np.full((judges if t.all_judges else 1, len(MEASURES), len(self.labels)), np.nan) for t in trials]
        for name, key, i in places:
            values[i][:, :, batches[name][1]] = kept[name][key]
        return values

    def _compute(
        self, fold: Fold, clips: np.ndarray, wave: torch.Tensor, sets: Mapping[str, NeuronSet | None], check: bool
    ) -> dict[str, np.ndarray]:
        """Key -> [judges, measures, batch]. wave: the clips, then their donors, if any. check: the encoder, too."""
        donors = wave[len(clips) :] if len(wave) > len(clips) else None
        changes = [*([None] if check else []), *sets.values()]
        embedded = embed_with_sets(self.encoder, wave[: len(clips)], changes, donors).cpu().numpy()
        found = {}
        if check:
            check_embedded(self.artifacts, clips, embedded[0], self.embeddings[clips])
        for key, rows in zip(sets, embedded[-len(sets) :], strict=True):
            judges = self.judges[fold.name] if key.endswith("-all") else self.judges[fold.name][:1]
            log_p = np.stack([judge.log_probabilities(rows) for judge in judges])  # [judges, batch, classes]
            right = log_p.argmax(axis=2) == self.labels[clips]
            found[key] = np.stack([100.0 * right, log_p[:, np.arange(len(clips)), self.labels[clips]]], axis=1)
        return found
