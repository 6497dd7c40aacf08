"""Intervals of changes: bootstrap-t over groups of clips, cut to what is possible."""

from __future__ import annotations

import numpy as np

STEP = {"accuracy": 100.0, "log_probability": 0.0}  # the change of one clip
RANGE = {
    "accuracy": np.array([0, 100]),
    "log_probability": np.array([-np.inf, 0]),
}  # of a mean over clips


def paired_interval(
    difference: np.ndarray,
    groups: np.ndarray,
    others: np.ndarray | None = None,
    other_groups: np.ndarray | None = None,
    *,
    count: int,
    rng: np.random.Generator,
    step: float = 0.0,
) -> tuple[float, float]:
    """95 % interval of a mean of paired differences [clips], by bootstrap-t over groups of clips.

    Groups are drawn with replacement, and the quantiles are those of (mean* - mean) / its standard error*, which covers
    the truth also with few groups, where percentiles of mean* are too narrow (Efron and Tibshirani 1993, chapter 12).

    Accuracy moves in steps. Where few clips change, many draws hold none of them: their standard error* is 0, and without
    them the interval would end at the mean. So half a clip's share of the mean is part of every standard error. With that,
    89 to 99 % of simulated intervals held the truth (8 to 265 groups, 0.4 to 10 % of the clips changed), without 42 to 84 %.

    Args:
        difference, groups: of each clip.
        others, other_groups: of other clips, whose mean is subtracted; None or empty: nothing is.
        count: bootstraps.
        rng: of the draws.
        step: the change of one clip, 100 for points of accuracy.

    Returns:
        Both ends; NaN with fewer than three groups, where no clip changed, or without bootstraps.
    """
    if len(np.unique(groups)) < 3 or count == 0 or not np.any(difference):
        return np.nan, np.nan
    samples = [(1.0, difference, groups)]
    if others is not None and other_groups is not None and len(others):
        samples.append((-1.0, others, other_groups))
    names = np.unique(np.concatenate([sample[2] for sample in samples]))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    weights = np.concatenate(
        [np.ones((1, len(names))), drawn]
    )  # the clips as they are, then the bootstraps
    mean = np.zeros(len(weights))
    residuals = np.zeros(weights.shape)
    half_clips = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        for sign, values, groups_of_values in samples:
            group = np.searchsorted(names, groups_of_values)
            sums = np.bincount(group, values, minlength=len(names))
            sizes = np.bincount(group, minlength=len(names))
            clips = weights @ sizes
            ratio = (weights @ sums) / clips
            mean += sign * ratio
            residuals += sign * (sums - ratio[:, None] * sizes) / clips[:, None]
            half_clips += (step / 2 / len(values)) ** 2
        variance = (
            (weights * residuals**2).sum(axis=1) * len(names) / (len(names) - 1)
        )  # of a ratio of sums
        error = np.sqrt(variance + half_clips)
        t = (mean[1:] - mean[0]) / error[1:]
    if error[0] == 0:
        return float(mean[0]), float(mean[0])
    low, high = np.percentile(t[np.isfinite(t)], [2.5, 97.5])
    return float(mean[0] - high * error[0]), float(mean[0] - low * error[0])


def possible(
    ends: tuple[float, float], measure: str, before: float, others_before: float | None = None
) -> tuple[float, float]:
    """An interval cut to the changes that are possible, given the mean of a class before.

    Args:
        ends: of the interval.
        measure: "accuracy" or "log_probability".
        before: mean of the class.
        others_before: mean of the clips whose change is subtracted; None: nothing is.
    """
    lowest, highest = RANGE[measure] - before
    if others_before is not None:
        others_lowest, others_highest = RANGE[measure] - others_before
        lowest, highest = lowest - others_highest, highest - others_lowest
    low, high = np.clip(ends, lowest, highest)
    return float(low), float(high)
