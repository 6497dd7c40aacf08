"""What is read from a tuning curve: its peak and width, and from a level function threshold and dynamic range."""

from __future__ import annotations

import numpy as np

NEAR_PEAK = 0.75  # of the height: what the position of the peak is computed from
HALF = 0.5  # of the height: where the width is measured
THRESHOLD = 0.2  # of the range between silence and the strongest response
SATURATION = 0.8


def best(curves: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """The condition of the peak of each curve, in units of the conditions.

    The peak is the centre of mass of what exceeds 75 % of the curve's height around the maximum, on a logarithmic axis.

    Args:
        curves: [conditions, neurons].
        conditions: frequencies or rates in ascending order, Hz.
    """
    floor = curves.min(axis=0)
    limit = floor + NEAR_PEAK * np.ptp(curves, axis=0)
    around = _around_maximum(curves >= limit, curves.argmax(axis=0))
    weights = np.where(around, curves - limit + 1e-9, 0)
    logarithms = np.log2(conditions)[:, None]
    return 2 ** ((weights * logarithms).sum(axis=0) / weights.sum(axis=0))


def bandwidth(curves: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Width at half height around the maximum, octaves [neurons].

    The two ends are interpolated between conditions. A curve that has not fallen to half its height at an end of the axis
    is counted up to that end, so that its width is a lower bound.
    """
    half = curves.min(axis=0) + HALF * np.ptp(curves, axis=0)
    around = _around_maximum(curves >= half, curves.argmax(axis=0))
    logarithms = np.log2(conditions)
    first = around.argmax(axis=0)
    last = len(curves) - 1 - around[::-1].argmax(axis=0)
    low = _crossing(curves, logarithms, half, first, first - 1)
    high = _crossing(curves, logarithms, half, last, last + 1)
    return high - low


def _around_maximum(above: np.ndarray, maximum: np.ndarray) -> np.ndarray:
    """Of the conditions above a limit those connected with the maximum, bool [conditions, neurons]."""
    index = np.arange(len(above))[:, None]
    gap_below = np.where(~above & (index < maximum), index, -1).max(axis=0)
    gap_above = np.where(~above & (index > maximum), index, len(above)).min(axis=0)
    return (index > gap_below) & (index < gap_above)


def _crossing(
    curves: np.ndarray,
    positions: np.ndarray,
    limit: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
) -> np.ndarray:
    """Where a curve falls to a limit between a condition above it and the next one below it, in units of positions."""
    neurons = np.arange(curves.shape[1])
    beyond = np.clip(outside, 0, len(curves) - 1)
    upper, lower = curves[inside, neurons], curves[beyond, neurons]
    fall = np.maximum(upper - lower, 1e-12)
    share = np.where(beyond == outside, (upper - limit) / fall, 0)
    return positions[inside] + share * (positions[beyond] - positions[inside])


def threshold_and_range(
    by_level: np.ndarray, silence: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Threshold and dynamic range of each neuron, dB.

    The threshold is the lowest level at which the response passes 20 % of the range from silence to the strongest response;
    the dynamic range extends from there to 80 %. Both are interpolated. A response above the limit at the lowest level gets
    that level, so that its threshold is an upper bound.

    Args:
        by_level: [levels, neurons].
        silence: response to silence [neurons].
        levels: ascending, dB.
    """
    height = by_level.max(axis=0) - silence
    threshold = _first_passing(by_level, silence + THRESHOLD * height, levels)
    saturation = _first_passing(by_level, silence + SATURATION * height, levels)
    return threshold, saturation - threshold


def _first_passing(curves: np.ndarray, limit: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The lowest position at which a curve passes a limit, interpolated; NaN if it never does."""
    passes = curves >= limit
    first = passes.argmax(axis=0)
    found = _crossing(curves, positions, limit, first, first - 1)
    return np.where(passes.any(axis=0), found, np.nan)
