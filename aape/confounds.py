"""What of a neuron's preference is loudness, or a frequency band? And what is the speaker?

    heard = descriptors(task, artifacts)                 # [clips, 10]
    confounded(artifacts, heard, pairs)                  # effect left, R2 and groups' share, a row a pair

A neuron that prefers "siren" may prefer what is loud. Clip descriptors (librosa) are fitted to each neuron's share of
active tokens, and the preference is taken of what is left. The fit is cross-fitted: a clip's prediction comes from the
other folds, groups whole, so that a flexible fit explains no more than it can. It can still take too much away: where a
class *is* its loudness, nothing is left to prefer. So the raw and the adjusted effect stand side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import librosa
import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from aape.artifacts import Artifacts
from aape.attribution import cross_folds
from aape.criteria import Clips
from aape.task import Task

RATE = 16_000  # Hz, of the analysis
FRAME, HOP = 1024, 512  # samples
EDGES = (0, 250, 500, 1000, 2000, 4000, 8000)  # Hz, of the bands
QUIET = 40.0  # dB below the loudest frame: silence
BANDS = tuple(f"band_{low}_{high}" for low, high in itertools.pairwise(EDGES))
NAMES = ("log_rms", "silence", "variation", "centroid", *BANDS)


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


def descriptors(task: Task, artifacts: Artifacts, *, progress: bool = True) -> np.ndarray:
    """Descriptors of every clip of the artifacts, float64 [clips, len(NAMES)].

    Raises:
        ValueError: a clip that the task does not list.
        BadClip: a clip that cannot be read.
    """
    place = {name: index for index, name in enumerate(task.files)}
    lost = [name for name in artifacts.files if name not in place]
    if lost:
        raise ValueError(f"{artifacts.path} knows clip {lost[0]}, which task {task.name} does not list")
    out = np.empty((len(artifacts.files), len(NAMES)))
    for row, name in enumerate(tqdm(artifacts.files, desc="descriptors", disable=None if progress else True)):
        wave, valid = task.read(place[name], RATE)
        out[row] = describe(wave[:valid])
    return out


def explained(heard: np.ndarray, values: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """What descriptors and their squares say of some values of clips, each clip from the other folds.

    Args:
        heard: [clips, descriptors].
        values: [clips, k].
        fold: of each clip.

    Returns:
        Predictions, float64 [clips, k].
    """
    out = np.empty(values.shape)
    for number in np.unique(fold):
        test = fold == number
        z = StandardScaler().fit(heard[~test]).transform(heard)
        inputs = np.hstack([z, z**2])
        out[test] = Ridge(1.0).fit(inputs[~test], values[~test]).predict(inputs[test]).reshape(test.sum(), -1)
    return out


def share_of_groups(values: np.ndarray, labels: np.ndarray, groups: Sequence[str] | np.ndarray) -> np.ndarray:
    """Share of the variance within classes that lies between groups (speakers, recordings) of a class, [k].

    The intraclass correlation from a one-way analysis of variance: 0 where clips of a group are no more alike than clips
    of a class, also where groups have few clips; NaN where every group has one.
    """
    labels = np.asarray(labels)
    cell = pd.factorize(pd.MultiIndex.from_arrays([labels, np.asarray(groups)]))[0]  # a group's clips of one class
    size, of_cell = np.bincount(cell), pd.Series(labels).groupby(cell).first()
    classes = pd.Series(labels).value_counts()
    if len(size) == len(classes) or len(size) == len(cell):
        return np.full(values.shape[1], np.nan)
    frame = pd.DataFrame(values)
    mean, by_class = frame.groupby(cell).transform("mean"), frame.groupby(labels).transform("mean")
    within = ((frame - mean) ** 2).sum() / (len(cell) - len(size))
    between = ((mean - by_class) ** 2).sum() / (len(size) - len(classes))
    per_group = len(cell) - (pd.Series(size**2).groupby(of_cell.to_numpy()).sum() / classes).sum()
    variance = np.maximum(between - within, 0).to_numpy() * (len(size) - len(classes)) / per_group
    total = variance + within.to_numpy()
    return np.divide(variance, total, out=np.zeros(len(total)), where=total > 0)


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
    rows = np.arange(len(artifacts.labels))
    fold, labels, clips = cross_folds(artifacts, rows), artifacts.labels, Clips(artifacts, rows)
    place = (pairs["layer"] * artifacts.over_zero.shape[1] + pairs["neuron"]).to_numpy()
    neurons, at = np.unique(place, return_inverse=True)
    rates = clips.values(neurons)
    rest = rates - explained(heard, rates, fold)
    r2 = 1 - (rest**2).sum(axis=0) / np.maximum(((rates - rates.mean(axis=0)) ** 2).sum(axis=0), 1e-12)
    which = pd.Index(artifacts.classes).get_indexer(pairs["class"])
    out = {}
    for name, values in (("effect", rates), ("adjusted", rest)):
        inside = clips.members @ values / clips.members.sum(axis=1, keepdims=True)  # [classes, neurons]
        size = clips.members.sum(axis=1, keepdims=True)
        outside = (values.sum(axis=0) - inside * size) / (len(values) - size)
        out[name] = (inside - outside)[which, at]
        spread = np.sqrt(((values - inside[labels]) ** 2).mean(axis=0))[at]
        out["d_prime" if name == "effect" else "d_prime_adjusted"] = out[name] / np.maximum(spread, 1e-9)
    groups = share_of_groups(rates, labels, artifacts.groups)
    return pd.DataFrame(out | {"r2": r2[at], "groups": groups[at]}, index=pairs.index)
