"""What of a neuron's preference is loudness, or a frequency band? And what is the speaker?

    heard = descriptors(task, artifacts)                 # [clips, 10]
    confounded(artifacts, heard, pairs)                  # effect left, R2 and groups' share, a row a pair
    within_loudness(artifacts, heard, pairs)             # p and q with labels permuted among clips as loud
    causal_checks(encoder, task, artifacts, selection)   # the same clips louder, quieter, without silence, shifted

A neuron that prefers "siren" may prefer what is loud. Clip descriptors (librosa) are fitted to each neuron's share of
active tokens, and the preference is taken of what is left. The fit is cross-fitted: a clip's prediction comes from the
other folds, groups whole, so that a flexible fit explains no more than it can. It can still take too much away: where a
class *is* its loudness, nothing is left to prefer. So the raw and the adjusted effect stand side by side, labels are
permuted among clips that are as loud, and what is suspected is changed in the sounds themselves.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import librosa
import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from tqdm.auto import tqdm

from aape.artifacts.belonging import check_belong_together
from aape.artifacts.folder import Artifacts
from aape.causal.classifier import cross_folds
from aape.collecting.passing import collect
from aape.criteria.ranking import Clips, in_and_out
from aape.encoders.encoder import Encoder
from aape.neurons.chance import benjamini_hochberg, counted_clips
from aape.neurons.permuting import UnitSums, exchangeable_units, permuted_labels, share_of_groups
from aape.neurons.selection import Selection, kth_smallest, outside_class
from aape.sounds.task import Task

RATE = 16_000  # Hz, of the analysis
FRAME, HOP = 1024, 512  # samples
EDGES = (0, 250, 500, 1000, 2000, 4000, 8000)  # Hz, of the bands
QUIET = 40.0  # dB below the loudest frame: silence
BANDS = tuple(f"band_{low}_{high}" for low, high in itertools.pairwise(EDGES))
NAMES = ("log_rms", "silence", "variation", "centroid", *BANDS)
LOUDNESS_BINS, LEAST_IN_BIN = 5, 6  # bins of loudness at most, and units of one stratum in each
PERMUTATIONS = 999  # of labels within the bins
CHANGES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {  # (wave, Hz) -> wave
    "as it is": lambda wave, rate: wave,
    "12 dB louder": lambda wave, rate: wave * np.float32(10 ** (12 / 20)),
    "12 dB quieter": lambda wave, rate: wave / np.float32(10 ** (12 / 20)),
    "silence trimmed": lambda wave, rate: librosa.effects.trim(wave, top_db=QUIET)[0],
    "bands 4 semitones up": lambda wave, rate: librosa.effects.pitch_shift(wave, sr=rate, n_steps=4),
}


def describe(wave: np.ndarray) -> np.ndarray:
    """Descriptors of one clip, float64 [len(NAMES)].

    Level (log10 RMS), share of silent frames, spread of the level over frames (dB), spectral centroid (log10 Hz), and
    the share of energy in each band (log10).

    Args:
        wave: float [samples] at `RATE`, without padding.
    """
    wave = np.asarray(wave, dtype=np.float32)
    wave = np.pad(wave, (0, max(0, FRAME - len(wave))))
    magnitude = np.abs(librosa.stft(wave, n_fft=FRAME, hop_length=HOP))  # [frequencies, frames]
    level = librosa.amplitude_to_db(librosa.feature.rms(y=wave, frame_length=FRAME, hop_length=HOP)[0], amin=1e-7)
    energy = (magnitude**2).sum(axis=1)
    band = np.digitize(librosa.fft_frequencies(sr=RATE, n_fft=FRAME), EDGES[1:-1])
    shares = np.bincount(band, weights=energy, minlength=len(EDGES) - 1) / max(energy.sum(), 1e-12)
    overall = magnitude.mean(axis=1, keepdims=True) + 1e-10
    values = [
        np.log10(np.sqrt(np.mean(wave**2)) + 1e-7),
        np.mean(level < level.max() - QUIET),
        level.std(),
        np.log10(librosa.feature.spectral_centroid(S=overall, sr=RATE).item() + 1),
        *np.log10(shares + 1e-6),
    ]
    return np.asarray(values, dtype=np.float64)


def descriptors(task: Task, artifacts: Artifacts) -> np.ndarray:
    """Descriptors of every clip of the artifacts, float64 [clips, len(NAMES)].

    Raises:
        ValueError: a clip that the task does not list.
        BadClip: a clip that cannot be read.
    """
    place = pd.Index(task.files).get_indexer(pd.Index(artifacts.files))
    if (place < 0).any():
        clip = artifacts.files[place < 0][0]
        raise ValueError(f"{artifacts.path} knows clip {clip}, which task {task.name} does not list")
    heard = (task.read(index, RATE) for index in tqdm(place, desc="descriptors", disable=None))
    return np.stack([describe(wave[:valid]) for wave, valid in heard])


def explained(heard: np.ndarray, values: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """What descriptors and their squares say of some values of clips, each clip from the other folds.

    Args:
        heard: [clips, descriptors].
        values: [clips, k].
        fold: of each clip.

    Returns:
        Predictions, float64 [clips, k].
    """
    squares = FunctionTransformer(lambda z: np.hstack([z, z**2]))
    model = make_pipeline(StandardScaler(), squares, Ridge(1.0))
    return cross_val_predict(model, heard, values, cv=PredefinedSplit(fold))


def _places(artifacts: Artifacts, pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neurons (index in [layers * neurons]), and of each pair its place among them and its class."""
    place = (pairs["layer"] * artifacts.over_zero.shape[1] + pairs["neuron"]).to_numpy()
    found = pd.Index(artifacts.classes).get_indexer(names := pairs["class"].astype(str))
    if (found < 0).any():
        raise ValueError(
            f"{artifacts.path} has no class {names[found < 0].iloc[0]!r}; it has {', '.join(artifacts.classes)}"
        )
    return *np.unique(place, return_inverse=True), found


def confounded(artifacts: Artifacts, heard: np.ndarray, pairs: pd.DataFrame) -> pd.DataFrame:
    """What is left of class-specific pairs once loudness and bands are taken out, and what is the group's.

    Args:
        artifacts: with counts per clip.
        heard: from `descriptors`.
        pairs: columns layer, neuron, class.

    Returns:
        float64 columns, rows as in `pairs`. effect: mean share of active tokens of the class's clips minus that of the
        others. adjusted: the same of what the descriptors leave. r2: of the neuron's share, cross-fitted, below 0 where
        they say nothing. d_prime, d_prime_adjusted: both effects in standard deviations within classes of the raw and
        of the remaining share. groups: `share_of_groups`.
    """
    rows, labels = np.arange(len(artifacts.labels)), artifacts.labels
    neurons, at, which = _places(artifacts, pairs)
    clips, out = Clips(artifacts, rows), pd.DataFrame(index=pairs.index)
    rates = clips.values(neurons)
    rest = rates - explained(heard, rates, cross_folds(artifacts, rows))
    for end, values in (("", rates), ("_adjusted", rest)):
        inside, outside = in_and_out(values, clips.members)  # [classes, neurons]
        gain, spread = (inside - outside)[which, at], np.sqrt(((values - inside[labels]) ** 2).mean(axis=0))[at]
        out[end.removeprefix("_") or "effect"] = gain
        out[f"d_prime{end}"] = gain / np.maximum(spread, 1e-9)
    r2 = 1 - (rest**2).sum(axis=0) / np.maximum(((rates - rates.mean(axis=0)) ** 2).sum(axis=0), 1e-12)
    groups = share_of_groups(rates, labels, artifacts.groups)
    return out.assign(r2=r2[at], groups=groups[at])


def within_loudness(artifacts: Artifacts, heard: np.ndarray, pairs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Do class-specific pairs survive when labels are permuted only among clips that are about as loud?

    Clips are about as loud in one of at most LOUDNESS_BINS bins within each stratum of `exchangeable_units`. What loudness
    differs within a bin is left: where it alone drives neurons and classes, p <= 0.05 comes in 7 to 14 % of the pairs.

    Args:
        artifacts: with counts per clip.
        heard: from `descriptors`.
        pairs: columns layer, neuron, class.
        seed: of the permutations.

    Returns:
        float64 columns p (one-sided, of p in the class minus p outside it; NaN for a class none of whose clips can move) and
        q (over the pairs), rows as in `pairs`.
    """
    neurons, at, which = _places(artifacts, pairs)
    data = counted_clips(artifacts)
    units = exchangeable_units(data.labels, data.groups, len(artifacts.classes))
    loudness = pd.Series(heard[:, NAMES.index("log_rms")]).groupby(units.of_clip).mean()
    ranked = loudness.groupby(units.stratum).rank(method="first", pct=True).to_numpy()
    most = np.clip(np.bincount(units.stratum) // LEAST_IN_BIN, 1, LOUDNESS_BINS)[units.stratum]
    cell = np.stack([units.stratum, np.ceil(ranked * most)], axis=1)
    units = replace(units, stratum=np.unique(cell, axis=0, return_inverse=True)[1].reshape(-1))
    sums, gains = UnitSums(replace(data, counts=data.active(neurons)[:, None], rows=None), units), []
    for batch, active in sums.by_class(itertools.chain([units.label], permuted_labels(units, PERMUTATIONS, seed))):
        for labels, found in zip(batch, active, strict=True):
            tokens = sums.class_tokens(labels)
            p = (found / tokens[:, None]).T  # [neurons, classes]
            gains.append((p - outside_class(p, tokens))[at, which])
    higher = (np.stack(gains[1:]) >= gains[0] - 1e-6).sum(axis=0)
    p = np.where(units.tested[which], (1 + higher) / len(gains), np.nan)
    return pd.DataFrame({"p": p, "q": benjamini_hochberg(p)}, index=pairs.index)


@dataclass(frozen=True, eq=False)
class Changed(Task):
    """A task whose clips are changed before they are cut or padded to its length; see `CHANGES`."""

    change: Callable[[np.ndarray, int], np.ndarray] = CHANGES["as it is"]

    def read(self, index: int, sample_rate: int) -> tuple[np.ndarray, int]:
        """See `Task.read`."""
        wave, valid = super().read(index, sample_rate)
        sound = self.change(wave[:valid], sample_rate)[: len(wave)]
        return np.pad(sound, (0, len(wave) - len(sound))), len(sound)


def causal_checks(
    encoder: Encoder, task: Task, artifacts: Artifacts, selection: Selection, *, clips: int = 20, seed: int = 0
) -> pd.DataFrame:
    """Do class-specific pairs stand when the same clips are louder, quieter, without silence at the ends, or shifted?

    A neuron that prefers a class for its loudness loses it, or takes others in, when loudness changes for all clips.
    Where the classes are pitches, the shift moves the classes themselves.

    Args:
        encoder, task, artifacts: what belongs together.
        selection: made from the artifacts.
        clips: of each class at most, drawn by `seed`.

    Returns:
        A row for each of `CHANGES`: pairs; in_order, those with p in the class above p outside it; above, those with p in
        the class above the selection's percentile of p; kept, the share of the pairs that are both as the clips are and
        stay so. All p are over these clips, padding left out where it is known.
    """
    labels, order = artifacts.labels, np.random.default_rng(seed).permutation(len(artifacts.labels))
    rows = np.sort(order[pd.Series(labels[order]).groupby(labels[order]).cumcount() < clips])
    some = check_belong_together(encoder, task, artifacts)[rows]
    columns = {name: tuple(np.array(getattr(task, name))[some]) for name in ("files", "splits", "groups")}
    part = vars(task) | columns | {"labels": task.labels[some]}
    neurons, at, c = _places(artifacts, selection.table())
    threshold = kth_smallest(selection.probabilities, selection.rule.quantile)
    found: list[dict[str, object]] = []
    intact = np.zeros(0)
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            sounds, out_dir = Changed(**part, change=change), f"{folder}/{task.name}"
            heard = collect(encoder, sounds, out_dir, layers=artifacts.layers, means=False)
            data = counted_clips(heard, padding=heard.manifest["padding"] == "unknown")
            rates = data.active(neurons) / np.maximum(data.tokens, 1)[:, None]
        mean = pd.DataFrame(rates).groupby(data.labels).mean().reindex(range(len(task.classes)))
        p, size = mean.to_numpy().T, np.bincount(data.labels, minlength=len(task.classes)).astype(float)
        in_order, above = (p > outside_class(p, size))[at, c], p[at, c] > threshold
        intact = intact if found else in_order & above
        kept = (in_order & above)[intact].mean() if intact.any() else np.nan
        found.append({"change": name, "pairs": len(c), "in_order": in_order.sum(), "above": above.sum(), "kept": kept})
    return pd.DataFrame(found)
