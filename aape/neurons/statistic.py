"""The statistic of a (class, neuron) pair, and the cells of a histogram that pools it over alike pairs.

For a neuron n and a class c the statistic z is the class's excess of active tokens over what the neuron's overall rate
predicts, divided by its exact standard deviation under the permutations (sampling without replacement, stratum by
stratum). A normal tail would be wrong: a neuron that is active in one clip of 2,000 has one huge z and is not remarkable.
So z is compared with the z of permuted labels, pooled over neurons of like sparsity (bins of the skewness of the neuron's
units, which labels do not touch) and classes of like size.

A thousand permutations of 50 classes x 36,864 neurons are two billion values of z, too many to keep. How many values are
at least as large as a given z can be read from a histogram, and a histogram is small. So z is cut into cells of 1/16
between -4 and 44, and only the number of pairs in each cell is kept, for each labelling and each bin of like pairs:

    z                    -4 ...  1.9  2.0  2.1  2.2 ...  44
    pairs, this bin     [ 3 ...   40   31   22   17 ...   0 ]
    at least this large [ .......................39 ...   0 ]      summed from the right

The p-value of a pair is the last row at the pair's cell, summed over all permutations, divided by the number of pairs in
the bin. See `aape.neurons.null`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

from aape.neurons.permuting import UnitSums

SPARSITY_BINS = 20
CLASS_SIZE_BINS = 4
BLOCK = 4096  # neurons at a time
Z_LOW, Z_HIGH, Z_STEP = (
    -4.0,
    44.0,
    1 / 16,
)  # the first and the last cell also hold what lies beyond them
Z_CELLS = int((Z_HIGH - Z_LOW) / Z_STEP)
NOT_TESTED = -1  # as a cell


class PairStatistic:
    """Mean and standard deviation of every pair's excess under permutation, and the cell of its z.

    The excess is the sum over the class's units of r = counts - rate * tokens. If m of the n units of a stratum are drawn
    without replacement, its mean is m * mean(r) and its variance is m * (n - m) / n * s**2, where
    s**2 = sum (r - mean)**2 / (n - 1). Strata are independent, so means and variances add up. Units that do not move add
    no variance, and neither sparsity nor the size of a class counts them.

    Attributes:
        rate: float32 [width], overall activation rate.
        mean: float32 [classes, width].
        cells_per_token: float32 [classes, width], 1 / (standard deviation * Z_STEP), 0 where that is 0.
        sparsity: int64 [width], bin of sparsity, -1 where the neuron never varies.
        first_cell: int32 [classes, width], first cell of the pair's bin.
        cells: number of cells: class bins x sparsity bins x Z_CELLS.
    """

    def __init__(self, sums: UnitSums):
        units, width = sums.units, sums.width
        moving = np.bincount(units.label[units.moves], minlength=units.n_classes)
        self.rate = np.empty(width, dtype=np.float32)
        self.mean = np.zeros((units.n_classes, width), dtype=np.float32)
        self.cells_per_token = np.zeros((units.n_classes, width), dtype=np.float32)
        self.sparsity = _sparsity_bins(self._fill(sums))
        size = _size_bins(np.where(moving, moving, max(moving.max(), 1)))
        first = (size[:, None] * SPARSITY_BINS + self.sparsity) * Z_CELLS
        # where nothing is tested, z is set to 0, so that its cell comes out as NOT_TESTED
        tested = units.tested[:, None] & (self.sparsity >= 0)
        self.cells_per_token[~tested] = 0
        self.first_cell = np.where(tested, first, NOT_TESTED + Z_LOW / Z_STEP).astype(np.int32)
        self.cells = (int(size.max()) + 1) * SPARSITY_BINS * Z_CELLS

    def _fill(self, sums: UnitSums) -> np.ndarray:
        """Fills rate, mean and cells_per_token; returns the skewness of each neuron's units, NaN where they never vary."""
        units, tokens = sums.units, sums.tokens
        in_both = units.by_class_and_stratum()
        in_stratum = in_both.sum(axis=0)
        weight = in_both * (in_stratum - in_both) / in_stratum / np.maximum(in_stratum - 1, 1)
        membership = np.ones(len(units)), (units.stratum, np.arange(len(units)))
        by_stratum = csr_array(membership, (len(in_stratum), len(units)))
        fixed = ~units.moves
        skewness = np.full(sums.width, np.nan)

        def fill(block: slice, active: np.ndarray) -> None:
            x = active.astype(np.float64)  # [units, block]
            rate = x.sum(axis=0) / tokens.sum()
            r = np.subtract(x, tokens[:, None] * rate, out=x)
            centre = (by_stratum @ r) / in_stratum[:, None]  # [strata, block]
            self.rate[block] = rate
            self.mean[:, block] = in_both @ centre
            r -= centre[units.stratum]
            r[fixed] = 0
            power = r * r
            square = by_stratum @ power
            variance = weight @ square  # [classes, block]
            # counts are whole numbers: a spread below this is rounding of a neuron that never varies
            varies = square.sum(axis=0) > 1e-6
            known = varies & (variance > 1e-9)
            deviation = np.sqrt(np.maximum(variance, 1e-30))
            self.cells_per_token[:, block] = np.where(known, 1 / deviation, 0) / Z_STEP
            spread = np.sqrt(power.mean(axis=0))
            power *= r
            skewness[block] = np.where(
                varies, power.mean(axis=0) / np.maximum(spread, 1e-30) ** 3, np.nan
            )

        sums.each_block(fill)
        return skewness

    def cell_of(
        self, active: np.ndarray, tokens: np.ndarray, block: slice = slice(None)
    ) -> np.ndarray:
        """The cell of every pair, int32 [classes, neurons of the block], NOT_TESTED where nothing can be tested.

        Args:
            active: active tokens by class, [classes, width].
            tokens: of each class, [classes].
            block: of neurons.
        """
        z = active[:, block] - tokens.astype(np.float32)[:, None] * self.rate[block]
        z -= self.mean[:, block]
        z *= self.cells_per_token[:, block]
        z -= Z_LOW / Z_STEP
        np.clip(z, 0, Z_CELLS - 1, out=z)
        cell = z.astype(np.int32)
        cell += self.first_cell[:, block]
        return cell

    def blocks(self, active: np.ndarray, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """The cells of all pairs in blocks of neurons, int32 [classes, neurons of the block]; arguments as `cell_of`."""
        for start in range(0, active.shape[1], BLOCK):
            yield self.cell_of(active, tokens, slice(start, start + BLOCK))

    def count(self, cell: np.ndarray) -> np.ndarray:
        """Pairs in each cell, int64 [cells]."""
        counts = np.bincount(cell.reshape(-1) - NOT_TESTED, minlength=1 + self.cells)
        return counts[1:]


def at_least(pairs: np.ndarray) -> np.ndarray:
    """int64 [bins, Z_CELLS]: pairs in this cell of the bin or in a higher one, from [cells]."""
    from_the_right = np.cumsum(pairs.reshape(-1, Z_CELLS)[:, ::-1], axis=1, dtype=np.int64)
    return from_the_right[:, ::-1]


def _sparsity_bins(skewness: np.ndarray) -> np.ndarray:
    """Bins of like sparsity, finer towards the sparse end (large skewness); -1 where NaN."""
    bins = np.full(skewness.shape, -1, dtype=np.int64)
    known = ~np.isnan(skewness)
    if known.any():
        # SPARSITY_BINS - 2 edges: one bin is left for values equal to an edge
        share = np.concatenate(
            [np.linspace(0, 0.9, SPARSITY_BINS - 6)[1:], [0.94, 0.965, 0.98, 0.99, 0.995]]
        )
        edges = np.unique(np.quantile(skewness[known], share))
        bins[known] = np.searchsorted(edges, skewness[known], side="left")
    return bins


def _size_bins(size: np.ndarray) -> np.ndarray:
    """Classes with like numbers of units: at most CLASS_SIZE_BINS bins, one if sizes differ little."""
    logs = np.log(size)
    width = max((logs.max() - logs.min()) / CLASS_SIZE_BINS, np.log(1.5))
    bins = ((logs - logs.min()) / width).astype(np.int64)
    return np.minimum(bins, CLASS_SIZE_BINS - 1)
