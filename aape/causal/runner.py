"""Test clips embedded again while neurons are changed, and the scores that unchanged classifiers then give.

    runner = Runner(encoder, task, artifacts, folder)
    silenced = Intervention({fold.name: neurons for fold in runner.folds})
    scores = runner.run([silenced], runner.tested)        # [interventions, classifiers, measures, clips]

The classifiers are fitted once, on the intact embeddings of the training clips. Results are kept on disk batch by batch
(`aape.resuming`), so that an interrupted run resumes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts.belonging import check_belong_together, check_embedded
from aape.artifacts.folder import Artifacts
from aape.causal.classifier import STRENGTHS, Fold, fit, fit_nearest_mean, folds
from aape.causal.silencing import NeuronSet, embed_with_sets, neuron_set
from aape.encoders.encoder import Encoder, full_precision
from aape.resuming import code_version, resumed
from aape.sounds.task import Task, in_batches, read_all

MEASURES = ("accuracy", "log_probability")  # percentage points; nats
CLASSIFIERS = {"linear": fit, "nearest mean": fit_nearest_mean}
MODES: dict[str, float | Literal["mean"]] = {
    "mean": "mean",
    "zero": 0.0,
}  # name -> `Intervention.change`
SETS_AT_ONCE = 64  # sets of neurons in one kept result

NeuronsByFold = Mapping[
    str, np.ndarray
]  # fold name -> neurons [k, 2] of (layer, neuron), layers as in the artifacts


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change of neurons during the embedding.

    Attributes:
        neurons: which neurons, by fold; None: nothing is changed.
        change: a gain on their activations (0 silences), or "mean": their mean over the fold's training clips.
    """

    neurons: NeuronsByFold | None
    change: float | Literal["mean"] = 0.0


@dataclass(frozen=True, eq=False)
class _Batch:
    """Clips of one fold that are embedded under some interventions (`numbers`), and what each of these changes."""

    fold: Fold
    clips: np.ndarray
    numbers: range
    sets: list[NeuronSet | None]


class Runner:
    """See the module's docstring.

    Attributes:
        folds: which clips train and test.
        classifiers: fold name -> the fitted classifiers, in the order asked for.
        tested: bool [clips], clips that some fold tests.

    Args:
        encoder, task, artifacts: what belongs together.
        folder: where results are kept.
        classifiers: names of `CLASSIFIERS`.
        parts: folds; None: those of the artifacts' splits.
        seed: of `panel`.
        batch_size: clips at once.

    Raises:
        ValueError: artifacts of another model, of other classes, or without embeddings of single clips.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: Task,
        artifacts: Artifacts,
        folder: Path,
        *,
        classifiers: Sequence[str] = ("linear",),
        parts: Sequence[Fold] | None = None,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        self.encoder, self.task, self.artifacts, self.folder = encoder, task, artifacts, folder
        self.seed, self.batch_size = seed, batch_size
        self.task_row = check_belong_together(encoder, task, artifacts)
        self.encoder_layer = np.array([encoder.layers.index(name) for name in artifacts.layers])
        self.labels, self.groups, self.classes = (
            artifacts.labels,
            artifacts.groups,
            artifacts.classes,
        )
        self.embeddings = artifacts.embeddings()
        self.folds = parts or folds(artifacts.splits, self.labels, self.classes, self.groups)
        self.classifiers = {}
        for fold in self.folds:
            fitted = [
                CLASSIFIERS[name](self.embeddings, self.labels, self.classes, fold)
                for name in classifiers
            ]
            self.classifiers[fold.name] = fitted
        self.tested = np.zeros(len(self.labels), dtype=bool)
        self.tested[np.concatenate([fold.test for fold in self.folds])] = True
        self._checked = np.zeros(
            len(self.labels), dtype=bool
        )  # clips that this encoder embeds as the artifacts say
        self._key = {
            "encoder": encoder.identity,
            "layers": list(artifacts.layers),
            "artifacts": [
                artifacts.manifest["checksums"][file] for file in ("features.pt", "gts.pt")
            ],
            "folds": [
                [fold.name, fold.train.tolist(), fold.valid.tolist(), fold.fit.tolist()]
                for fold in self.folds
            ],
            "classifiers": [list(classifiers), list(STRENGTHS)],
        }

    def panel(self, per_class: int | None = None) -> np.ndarray:
        """bool [clips]: a seeded choice of tested clips, this many per class, from different groups where possible.

        None: all tested clips.
        """
        if per_class is None:
            return self.tested
        chosen = np.zeros(len(self.labels), dtype=bool)
        for c in range(len(self.classes)):
            rng = np.random.default_rng([self.seed, c])
            clips = rng.permutation(np.flatnonzero(self.tested & (self.labels == c)))
            _, first = np.unique(self.groups[clips], return_index=True)
            of_new_groups = clips[np.sort(first)]
            rest = np.setdiff1d(clips, of_new_groups)
            chosen[np.concatenate([of_new_groups, rest])[:per_class]] = True
        return chosen

    @functools.cached_property
    def intact(self) -> np.ndarray:
        """Scores of the tested clips with the encoder as it is, [classifiers, measures, clips]."""
        return self.run([Intervention(None)], self.tested)[0]

    @functools.cached_property
    def means(self) -> dict[str, np.ndarray]:
        """By fold: mean activation over its training clips, float32 [layers, neurons], from clip_means.npy."""
        found = {}
        for fold in self.folds:
            total = np.zeros(self.artifacts.means.shape[1:])
            for rows in in_batches(np.sort(fold.fit), 256):
                total += np.tensordot(
                    self.artifacts.tokens[rows],
                    self.artifacts.means[rows].astype(np.float64),
                    axes=1,
                )
            found[fold.name] = (total / self.artifacts.tokens[fold.fit].sum()).astype(np.float32)
        return found

    def run(
        self, interventions: Sequence[Intervention], clips: np.ndarray, bar: tqdm | None = None
    ) -> np.ndarray:
        """Scores of clips under every intervention.

        Args:
            interventions: what is changed.
            clips: bool [clips], which of the tested clips are embedded.
            bar: advances by one for each clip under each intervention.

        Returns:
            float64 [interventions, classifiers, measures, clips]: points (0 or 100) and nats of the true class; NaN for
            clips that were not embedded.

        Raises:
            BadClip: a clip that can no longer be read.
            ValueError: the encoder does not embed a clip as the artifacts say.
        """
        batches, depends_on = self._batches(interventions, clips)

        def compute(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
            waves = read_all(
                self.task,
                [self.task_row[batches[name].clips] for name in names],
                self.encoder.sample_rate,
            )
            with full_precision():
                for name, wave in zip(names, waves, strict=True):
                    yield {"scores": self._scores(batches[name], wave)}

        number_of_classifiers = len(self.classifiers[self.folds[0].name])
        scores = np.full(
            (len(interventions), number_of_classifiers, len(MEASURES), len(self.labels)), np.nan
        )
        code = code_version("causal", "encoders", "sounds")
        results = resumed(self.folder, self._key, depends_on, compute, code=code)
        for batch, result in zip(batches.values(), results, strict=True):
            scores[batch.numbers.start : batch.numbers.stop, :, :, batch.clips] = result["scores"]
            if bar is not None:
                bar.update(len(batch.numbers) * len(batch.clips))
        return scores

    def _batches(
        self, interventions: Sequence[Intervention], clips: np.ndarray
    ) -> tuple[dict[str, _Batch], dict[str, list[str]]]:
        """Name -> batch, and name -> the content that its result depends on."""
        batches, depends_on = {}, {}
        for fold in self.folds:
            sets = [self._set(intervention, fold) for intervention in interventions]
            for rows in in_batches(fold.test[clips[fold.test]], self.batch_size):
                for start in range(0, len(sets), SETS_AT_ONCE):
                    numbers = range(start, min(start + SETS_AT_ONCE, len(sets)))
                    some = [sets[number] for number in numbers]
                    content = [_content_of(rows), *(_content_of_set(change) for change in some)]
                    name = f"{fold.name}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}"
                    batches[name] = _Batch(fold, rows, numbers, some)
                    depends_on[name] = content
        return batches, depends_on

    def _set(self, intervention: Intervention, fold: Fold) -> NeuronSet | None:
        """The encoder's neurons that an intervention changes in a fold; None: nothing."""
        if (
            intervention.neurons is None
            or not len(intervention.neurons[fold.name])
            or intervention.change == 1.0
        ):
            return None
        neurons = intervention.neurons[fold.name]
        neurons = neurons[np.lexsort((neurons[:, 1], neurons[:, 0]))]
        in_encoder = np.stack([self.encoder_layer[neurons[:, 0]], neurons[:, 1]], axis=1)
        if intervention.change == "mean":
            return neuron_set(
                self.encoder, in_encoder, replace_by=self.means[fold.name][tuple(neurons.T)]
            )
        return neuron_set(self.encoder, in_encoder, float(intervention.change))

    def _scores(self, batch: _Batch, wave: torch.Tensor) -> np.ndarray:
        """[sets, classifiers, measures, clips of the batch]; wave [clips, samples]."""
        check = [] if self._checked[batch.clips].all() else [None]
        embedded = embed_with_sets(self.encoder, wave, [*check, *batch.sets]).cpu().numpy()
        if check:
            check_embedded(self.artifacts, batch.clips, embedded[0], self.embeddings[batch.clips])
            self._checked[batch.clips] = True
        clips, labels = np.arange(len(batch.clips)), self.labels[batch.clips]
        scores = np.empty(
            (len(batch.sets), len(self.classifiers[batch.fold.name]), len(MEASURES), len(clips))
        )
        for s, embeddings in enumerate(embedded[len(check) :]):
            for c, classifier in enumerate(self.classifiers[batch.fold.name]):
                log_p = classifier.log_probabilities(embeddings)  # [clips, classes]
                scores[s, c, 0] = 100.0 * (log_p.argmax(axis=1) == labels)
                scores[s, c, 1] = log_p[clips, labels]
        return scores


def _content_of(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:24]


def _content_of_set(change: NeuronSet | None) -> str:
    if change is None:
        return "intact"
    values = "" if change.replace_by is None else _content_of(change.replace_by)
    return f"{_content_of(change.neurons)} {change.gain} {values}"
