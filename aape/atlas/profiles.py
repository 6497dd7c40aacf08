"""Numbers of single neurons over clips: the range that permuted labels give, similar neurons, histograms."""

from __future__ import annotations

import numpy as np

from aape.atlas.model_on_task import ModelOnTask
from aape.neurons.permuting import Counted, UnitSums, exchangeable_units, permuted_labels

BAND = (0.025, 0.975)  # quantiles of p under permuted labels
BAND_VALUES = 1 << 26  # values of p under permuted labels that are held at once
BINS = 16  # of the histogram of active tokens
NEIGHBOURS = 6
NEIGHBOUR_CLIPS = 4_096  # clips over which neurons are compared
NEURONS_READ = 4_096
CROWD = 20  # most active clips whose groups are counted


def chance_bands(data: ModelOnTask, counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """The range of p by class under permuted labels: its 2.5 % and 97.5 % quantiles [2, C, k].

    Labels are permuted by group, as in `aape.neurons.permuting`.

    Args:
        data: the model on the task.
        counts: active tokens of the neurons [clips, k].
        seed: of the permutations.
    """
    classes = data.p.shape[1]
    neurons = counts.shape[1]
    units = exchangeable_units(data.labels, data.groups, classes, tokens=data.tokens)
    sums = UnitSums(Counted(counts[:, None], data.labels, data.tokens, data.groups), units)
    permutations = int(np.clip(BAND_VALUES // (classes * max(neurons, 1)), 40, 200))
    p = np.empty((permutations, classes, neurons), dtype=np.float32)
    done = 0
    for labellings, active in sums.by_class(permuted_labels(units, permutations, seed)):
        tokens = np.stack([sums.class_tokens(labels) for labels in labellings])
        p[done : done + len(labellings)] = active / np.maximum(tokens, 1)[:, :, None]
        done += len(labellings)
    return np.quantile(p, BAND, axis=0)


def nearest(data: ModelOnTask, neurons: np.ndarray, seed: int = 0) -> list[list[tuple[int, float]]]:
    """For each neuron those whose share of active tokens varies most alike over clips, as (neuron, Pearson's r)."""
    clips = np.arange(len(data.labels))
    if len(clips) > NEIGHBOUR_CLIPS:
        clips = np.sort(np.random.default_rng(seed).permutation(clips)[:NEIGHBOUR_CLIPS])
    targets = _standardised(data, neurons, clips)
    r = np.empty((len(neurons), len(data.aape)), np.float32)
    for start in range(0, r.shape[1], NEURONS_READ):
        others = np.arange(start, min(start + NEURONS_READ, r.shape[1]))
        r[:, others] = targets.T @ _standardised(data, others, clips)
    r[np.arange(len(neurons)), neurons] = -2  # not itself
    found = []
    for row in r:
        top = np.argsort(-row, kind="stable")[:NEIGHBOURS]
        found.append([(int(other), float(row[other])) for other in top if row[other] > 0])
    return found


def _standardised(data: ModelOnTask, neurons: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Shares of active tokens [clips, k], with mean 0 and length 1; 0 where a neuron does not vary."""
    tokens = data.tokens[clips][:, None].astype(np.float32)
    rates = data.counts(neurons, clips) / tokens
    rates -= rates.mean(axis=0)
    length = np.sqrt((rates**2).sum(axis=0))
    return np.divide(rates, length, out=np.zeros_like(rates), where=length > 1e-6)


def histogram(rates: np.ndarray, inside: np.ndarray) -> list[list[int]]:
    """Clips by share of active tokens in BINS equal bins: those of the neuron's classes, and all others."""
    bins = np.minimum((rates * BINS).astype(int), BINS - 1)
    return [np.bincount(bins[side], minlength=BINS).tolist() for side in (inside, ~inside)]


def crowd(rates: np.ndarray, groups: np.ndarray) -> list[tuple[int, int]]:
    """Groups with several of the CROWD most active clips: at most three (group, clips), the largest first."""
    most = np.argsort(-rates, kind="stable")[:CROWD]
    active = most[rates[most] > 0]
    group, clips = np.unique(groups[active], return_counts=True)
    order = np.argsort(-clips, kind="stable")[:3]
    return [(int(group[i]), int(clips[i])) for i in order if clips[i] > 1]


def time_profile(maps: np.ndarray) -> tuple[np.ndarray, float]:
    """When a neuron is active, averaged over clips, and how far its time course is the same in every clip.

    Args:
        maps: activations above 0 of one neuron [clips, frequency, time].

    Returns:
        Mean activation [time] relative to its largest value; and the share of the variance within clips that all clips
        have in common, which is about 1 / clips for a neuron that ignores the position in the clip.
    """
    courses = maps.mean(axis=1)  # [clips, time]
    profile = courses.mean(axis=0)
    within = courses - courses.mean(axis=1, keepdims=True)
    share = within.mean(axis=0).var() / max(float(within.var()), 1e-12)
    return profile / max(float(profile.max()), 1e-12), float(share)
