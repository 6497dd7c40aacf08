"""General statistics: p-values from draws, false-discovery rates, and the share of a variance that groups explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values of p-values (Benjamini and Hochberg 1995), in any shape. NaN stays NaN and is not counted as a test."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known], method="bh")
    return q


def one_sided_p(observed: float, null: np.ndarray, slack: float = 1e-9) -> float:
    """The share of draws that are at least as low as the observed value, which counts as one of them; never 0.

    Args:
        observed: a statistic that is remarkable where it is low.
        null: its draws. NaN are left out.
        slack: draws this little above the observed value count as equally low, because sums of the same numbers in
            another order differ.

    Returns:
        (1 + number of draws <= observed) / (1 + number of draws); NaN without draws or for an observed NaN.
    """
    draws = np.asarray(null, dtype=np.float64)
    draws = draws[~np.isnan(draws)]
    if not np.isfinite(observed) or not len(draws):
        return np.nan
    as_low = (draws <= observed + slack).sum()
    return float((1 + as_low) / (1 + len(draws)))


def pooled_p(observed: np.ndarray, null: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """One-sided p-values (large is extreme) from standardised values that are pooled over tests of the same bin.

    Each test is standardised by the mean and standard deviation of its own draws together with its observed value, so
    that observed and drawn values are exchangeable. A test whose draws are all equal has p = 1.

    Args:
        observed: [tests].
        null: [draws, tests].
        bins: int [tests]; a test of a negative bin has p NaN.
    """
    p = np.full(len(observed), np.nan)
    for index in np.unique(bins[bins >= 0]):
        tests = np.flatnonzero(bins == index)
        values = np.vstack([observed[tests], null[:, tests]]).astype(
            np.float64
        )  # [1 + draws, tests of the bin]
        spread = values.std(axis=0)
        varies = spread > 1e-12
        centred = values[:, varies] - values[:, varies].mean(axis=0)
        z = centred / spread[varies]
        pool = np.sort(z[1:], axis=None)
        # draws can be rounded differently from the observed value: ties count as ties
        below = np.searchsorted(pool, z[0] - 1e-6, side="left")
        p[tests] = 1.0
        p[tests[varies]] = (1 + pool.size - below) / (1 + pool.size)
    return p


def share_of_groups(
    values: np.ndarray, labels: np.ndarray, groups: Sequence[str] | np.ndarray
) -> np.ndarray:
    """Share of the variance within classes that lies between groups (speakers, recordings) of a class, [k].

    This is the intraclass correlation of a one-way analysis of variance. It is 0 where clips of a group are no more alike
    than clips of a class, also where groups have few clips, and NaN where every group has one clip.

    Args:
        values: [clips, k].
        labels: class of each clip.
        groups: group of each clip.
    """
    frame = pd.DataFrame(values)
    labels = np.asarray(labels)
    by_class = frame.groupby(labels)
    by_cell = frame.groupby(
        [labels, np.asarray(groups)]
    )  # a cell: the clips of one group and class
    clips, cells, classes = len(frame), by_cell.ngroups, by_class.ngroups
    if cells in (classes, clips):
        return np.full(frame.shape[1], np.nan)
    cell_mean = by_cell.transform("mean")
    within = ((frame - cell_mean) ** 2).sum() / (clips - cells)
    between = ((cell_mean - by_class.transform("mean")) ** 2).sum() / (cells - classes)
    size = by_cell.size()
    largest = (size**2).groupby(level=0).sum() / size.groupby(level=0).sum()
    clips_per_cell = clips - largest.sum()
    variance = (between - within).clip(lower=0) * (cells - classes) / clips_per_cell
    return (variance / (variance + within)).fillna(0).to_numpy()
