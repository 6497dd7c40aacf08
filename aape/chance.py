"""What chance gives: label permutations for class-specific neurons, from the counts per clip.

    units = exchangeable_units(labels, groups)
    null = permutation_null(counts, tokens, units, rate=0.01, permutations=1000, seed=0)
    null.pair_q                                          # [layers, neurons, classes]

A percentile selects something from any table, so the number of selected neurons, the coverage and the
number of neurons per class say little by themselves. Here labels are permuted, the whole selection is done
again, and every number is set beside its own null.

What is permuted. Clips of one group (recording, speaker, instrument) are not independent:
- a group whose clips are all of one class (an ESC-50 recording, a speaker of one language) is one unit: the
  labels are permuted *among such groups*, and its clips move together;
- a group whose clips are of several classes (a speaker who plays every emotion, an instrument that plays
  every pitch) is a stratum: the labels are permuted *within the group*, clip by clip.
Both kinds can be in one task; then both are done at once. Without groups every clip is a unit. The labels of
the data are one of the permutations + 1 equally likely ones if labels mean nothing, so p-values are never 0.

How p-values of pairs are made. For a neuron n and a class c the statistic is the class's excess of active
tokens over what the neuron's overall rate predicts, divided by its exact standard deviation under the
permutations (sampling without replacement, stratum by stratum). A normal tail would be wrong: a neuron
active in one clip of 2,000 has one huge value and is not remarkable. So the statistic is compared with the
same statistic under permutation, pooled over neurons of like sparsity (bins of the skewness of the neuron's
units, which labels do not touch) and classes of like size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from aape.artifacts import Artifacts
from aape.files import facts_html
from aape.selection import WEAK_FILTERS, Selection, choose, jaccard_index, outside_class, select

SPARSITY_BINS = 20
CLASS_SIZE_BINS = 4
Z_LOW, Z_HIGH, Z_STEP = -4.0, 44.0, 1 / 16  # cells of the pooled statistic; beyond the ends: the end cells
Z_CELLS = int((Z_HIGH - Z_LOW) / Z_STEP)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values of p-values (Benjamini and Hochberg 1995), in any shape; NaN stay NaN and are not counted."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known], method="bh")
    return q


def one_sided_p(observed: float, null: np.ndarray, slack: float = 1e-9) -> float:
    """The share of draws at least as low as what was observed, itself among them; never 0.

    Args:
        observed: a statistic that is remarkable where it is low.
        null: its draws; those that are NaN are left out.
        slack: draws this little above count as equally low: sums of the same numbers in another order differ.

    Returns:
        (1 + draws <= observed) / (1 + draws); NaN without draws or for an observed NaN.
    """
    known = np.asarray(null, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not np.isfinite(observed) or not len(known):
        return np.nan
    return float((1 + (known <= observed + slack).sum()) / (1 + len(known)))


def pooled_p(observed: np.ndarray, null: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """One-sided p-values (large is extreme) from standardised values pooled over tests of the same bin.

    observed: [tests]; null: [draws, tests]; bins: int [tests]. Each test is standardised by the mean and
    standard deviation of its own draws with the observed value among them, so that observed and drawn values
    are exchangeable. A test whose draws are all equal has p = 1.
    """
    values = np.concatenate([np.asarray(observed, dtype=np.float64)[None], null])  # [1 + draws, tests]
    spread = values.std(axis=0)
    varies = spread > 1e-12
    z = np.divide(values - values.mean(axis=0), spread, out=np.zeros_like(values), where=varies)
    p = np.ones(values.shape[1])
    for index in np.unique(bins[varies]):
        chosen = np.flatnonzero((bins == index) & varies)
        pool = np.sort(z[1:, chosen], axis=None)
        # the draws may be rounded differently from the observed value: ties count as ties
        above = pool.size - np.searchsorted(pool, z[0, chosen] - 1e-6, side="left")
        p[chosen] = (1 + above) / (1 + pool.size)
    return p


@dataclass(frozen=True)
class Units:
    """What may swap labels with what.

    of_clip: int64 [clips], the unit of each clip. label: int64 [units]. stratum: int64 [units]; labels are
    permuted within a stratum. group: int64 [units]. n_classes: number of classes, some may have no unit.
    whole, split: number of groups of one class, and of several. description: one sentence for tables.
    """

    of_clip: np.ndarray
    label: np.ndarray
    stratum: np.ndarray
    group: np.ndarray
    n_classes: int
    whole: int
    split: int
    description: str

    def __len__(self) -> int:
        return len(self.label)


def exchangeable_units(labels: Any, groups: Sequence[str] | np.ndarray, n_classes: int | None = None) -> Units:
    """The units whose labels are permuted, from the labels and the groups of the clips.

    labels: int [clips], index of the class; groups: [clips], any hashable text or number.
    Raises ValueError for no clips, lengths that differ, and negative or too large labels.
    """
    label = np.asarray(labels, dtype=np.int64)
    if label.ndim != 1 or not len(label):
        raise ValueError(f"expected labels [clips] of at least one clip, found shape {label.shape}")
    if len(groups) != len(label):
        raise ValueError(f"expected one group per clip: {len(label)} labels, {len(groups)} groups")
    if n_classes is None:
        n_classes = int(label.max()) + 1
    if label.min() < 0 or label.max() >= n_classes:
        raise ValueError(f"expected labels from 0 to {n_classes - 1}, found {label.min()} to {label.max()}")
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    low = np.full(group.max() + 1, n_classes)
    high = np.full(group.max() + 1, -1)
    np.minimum.at(low, group, label)
    np.maximum.at(high, group, label)
    is_split = low < high  # [groups]
    # a whole group is one unit; in a split group every clip is
    key = np.where(is_split[group], len(is_split) + np.arange(len(label)), group)
    _, first, of_clip = np.unique(key, return_index=True, return_inverse=True)
    unit_group = group[first]
    stratum = np.where(is_split[unit_group], 1 + unit_group, 0)
    _, stratum = np.unique(stratum, return_inverse=True)
    whole, split = int((~is_split).sum()), int(is_split.sum())
    if not split:
        what = "clips" if whole == len(label) else "groups"
        description = f"labels permuted among {whole} {what}"
    elif not whole:
        description = f"labels permuted within {split} groups"
    else:
        description = f"labels permuted within {split} groups of several classes and among {whole} of one class"
    return Units(of_clip, label[first], stratum, unit_group, n_classes, whole, split, description)


def permuted_labels(units: Units, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """`permutations` times int64 [units], labels permuted within the strata; seeded."""
    rng = np.random.default_rng(seed)
    home = np.argsort(units.stratum, kind="stable")
    for _ in range(permutations):
        # stratum + random in [0, 1): sorting shuffles inside each stratum
        order = np.argsort(units.stratum + rng.random(len(units)), kind="stable")
        shuffled = np.empty_like(units.label)
        shuffled[home] = units.label[order]
        yield shuffled


def shuffled_clip_labels(units: Units, seed: int) -> np.ndarray:
    """int64 [clips]: one permutation of the labels, as labels of clips."""
    return next(permuted_labels(units, 1, seed))[units.of_clip]


def unit_sums(counts: np.ndarray, tokens: np.ndarray, units: Units) -> tuple[np.ndarray, np.ndarray]:
    """Active tokens and tokens of each unit: float32 [units, layers * neurons], float64 [units].

    counts: unsigned [clips, layers, neurons], may be memory-mapped: it is read in blocks of clips. float32
    holds the sums exactly below 2**24 tokens. Raises ValueError if the shapes do not fit.
    """
    if counts.ndim != 3 or len(counts) != len(units.of_clip) or len(tokens) != len(counts):
        raise ValueError(
            f"expected counts [{len(units.of_clip)} clips, layers, neurons] and as many tokens, "
            f"found counts {counts.shape} and {len(tokens)} tokens"
        )
    width = int(np.prod(counts.shape[1:]))
    sums = np.zeros((len(units), width), dtype=np.float32)
    # clips in the order of their units: each block touches few rows
    for start in range(0, len(counts), 256):
        block = np.asarray(counts[start : start + 256]).reshape(-1, width).astype(np.float32)
        unit = units.of_clip[start : start + 256]
        rows, local = np.unique(unit, return_inverse=True)
        gather = csr_array((np.ones(len(unit), np.float32), (local, np.arange(len(unit)))), (len(rows), len(unit)))
        sums[rows] += gather @ block
    return sums, np.bincount(units.of_clip, weights=np.asarray(tokens, dtype=np.float64), minlength=len(units))


def class_sums(sums: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """float32 [classes, layers * neurons]: the units' sums added up by label (-1: left out)."""
    used = np.flatnonzero(labels >= 0)
    member = csr_array((np.ones(len(used), np.float32), (labels[used], used)), (n_classes, len(labels)))
    return member @ sums


@dataclass(frozen=True)
class Null:
    """What permuted labels give. P permutations, L layers, N neurons, C classes.

    per_class: int64 [P, C], class-specific neurons of each class. coverage, classes_per_neuron, mean_aape
    (nats, of the selected): float64 [P]. selected: int64 [P].
    pair_p, pair_q: float32 [L, N, C], the neuron is active in the class more than chance gives; NaN where
    the neuron never varies. neuron_p, neuron_q: float64 [L, N], its AAPE is lower than chance gives.
    discoveries: pairs with q below `q`; null_discoveries: int64 [P], the same count for each permutation
    tested against all others. task_p: the share of permutations with as many discoveries (1 if none).
    """

    per_class: np.ndarray
    coverage: np.ndarray
    classes_per_neuron: np.ndarray
    mean_aape: np.ndarray
    selected: np.ndarray
    pair_p: np.ndarray
    pair_q: np.ndarray
    neuron_p: np.ndarray
    neuron_q: np.ndarray
    discoveries: int
    null_discoveries: np.ndarray
    task_p: float
    q: float
    permutations: int
    seed: int
    units: Units


def permutation_null(
    counts: np.ndarray,
    tokens: np.ndarray,
    units: Units,
    *,
    rate: float = 0.01,
    quantile: float = 0.95,
    weak_filter: str = "lape",
    permutations: int = 1000,
    seed: int = 0,
    q: float = 0.05,
    threads: int | None = None,
    progress: bool = True,
    max_bytes: int = 3 * 2**30,
) -> Null:
    """Permute the labels, select again, and compare; see the module's text for what and why.

    counts: unsigned [clips, layers, neurons]; tokens: int [clips]; units: from `exchangeable_units`.
    rate, quantile, weak_filter: as `aape.selection.select`. q: level of the false-discovery rate.
    threads: default the number of cores, at most 4; it does not change results.
    max_bytes: of the table [units, layers * neurons] in float32 and the permuted entropies, together.
    Raises ValueError for fewer than 20 permutations, a class without clips, settings that `select` refuses,
    and data beyond max_bytes (test a seeded subset of the clips instead).
    """
    if permutations < 20:
        raise ValueError(f"permutations: expected at least 20, found {permutations}")
    if weak_filter not in WEAK_FILTERS:
        raise ValueError(f"weak_filter: expected one of {', '.join(WEAK_FILTERS)}, found {weak_filter!r}")
    n_classes = units.n_classes
    size = np.bincount(units.label, minlength=n_classes)  # units per class, the same in every permutation
    if (size == 0).any():
        raise ValueError(f"classes without a clip: indices {np.flatnonzero(size == 0).tolist()}; leave them out")
    layers, neurons = counts.shape[1:]
    need = 4 * layers * neurons * (len(units) + permutations + 1)
    if need > max_bytes:
        raise ValueError(
            f"{len(units)} units x {layers * neurons} neurons and {permutations} permutations need "
            f"{need / 2**30:.1f} GiB, more than max_bytes = {max_bytes / 2**30:.1f} GiB: pass fewer clips "
            "(a seeded subset) or raise max_bytes"
        )
    sums, unit_tokens = unit_sums(counts, tokens, units)
    if (class_tokens(unit_tokens, units.label, n_classes) == 0).any():
        raise ValueError("a class has no tokens at all")
    scale = _standardisation(sums, unit_tokens, units)
    run = _Permutation(sums, unit_tokens, units, scale, rate, quantile, weak_filter)

    total = 1 + permutations  # the labels of the data come first
    entropy = np.empty((total, layers * neurons), dtype=np.float32)
    cells = np.empty((total, run.cells), dtype=np.uint32)
    per_class = np.empty((total, n_classes), dtype=np.int64)
    summary = np.empty((total, 4))

    def labelled() -> Iterator[tuple[int, np.ndarray]]:
        yield 0, units.label
        yield from enumerate(permuted_labels(units, permutations, seed), start=1)

    def one(job: tuple[int, np.ndarray]) -> None:
        index, labels = job
        entropy[index], cells[index], per_class[index], summary[index] = run(labels)

    _in_threads(one, labelled(), total, threads, progress, "permutations")

    pair_p, discoveries = _pair_values(cells, q)
    observed = run.cell_of_pair(units.label)  # int32 [classes, layers * neurons], -1 where untestable
    p = np.where(observed >= 0, pair_p[np.maximum(observed, 0)], np.nan)
    p = np.moveaxis(p.reshape(n_classes, layers, neurons), 0, -1).astype(np.float64)
    neuron_p = _neuron_p(entropy, scale.bin).reshape(layers, neurons)
    found = int(discoveries[0])
    task_p = (1 + int((discoveries[1:] >= found).sum())) / total if found else 1.0
    return Null(
        per_class=per_class[1:],
        coverage=summary[1:, 0],
        classes_per_neuron=summary[1:, 1],
        mean_aape=summary[1:, 2],
        selected=summary[1:, 3].astype(np.int64),
        pair_p=p.astype(np.float32),
        pair_q=benjamini_hochberg(p).astype(np.float32),
        neuron_p=neuron_p,
        neuron_q=benjamini_hochberg(neuron_p),
        discoveries=found,
        null_discoveries=discoveries[1:],
        task_p=task_p,
        q=q,
        permutations=permutations,
        seed=seed,
        units=units,
    )


def class_tokens(unit_tokens: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """float64 [classes]: tokens by label (-1: left out)."""
    used = labels >= 0
    return np.bincount(labels[used], weights=unit_tokens[used], minlength=n_classes)


@dataclass(frozen=True)
class _Scale:
    """How the statistic of a (class, neuron) pair is standardised, and with which it is pooled."""

    rate: np.ndarray  # float32 [layers * neurons], overall activation rate
    mean: np.ndarray | None  # float32 [classes, layers * neurons]; None: 0 everywhere
    inverse: np.ndarray  # float32 [classes, layers * neurons], 1 / standard deviation, 0 where it is 0
    bin: np.ndarray  # int64 [layers * neurons], bin of sparsity, -1 where the neuron never varies
    class_bin: np.ndarray  # int64 [classes]


def _standardisation(sums: np.ndarray, unit_tokens: np.ndarray, units: Units) -> _Scale:
    """Mean and variance under permutation of sum over the class's units of r = counts - rate * tokens.

    Sampling m of n units of a stratum without replacement: mean m * mean(r), variance
    m * (n - m) / n * s**2 with s**2 = sum (r - mean)**2 / (n - 1); strata are independent and add up.
    """
    n_units, width = sums.shape
    strata = int(units.stratum.max()) + 1
    n = np.bincount(units.stratum, minlength=strata).astype(np.float64)
    m = np.zeros((units.n_classes, strata))
    np.add.at(m, (units.label, units.stratum), 1)
    weight = m * (n - m) / n / np.maximum(n - 1, 1)  # [classes, strata]
    by_stratum = csr_array((np.ones(n_units), (units.stratum, np.arange(n_units))), (strata, n_units))
    rate = np.empty(width, dtype=np.float32)
    mean = np.zeros((units.n_classes, width), dtype=np.float32) if strata > 1 else None
    inverse = np.zeros((units.n_classes, width), dtype=np.float32)
    skewness = np.full(width, np.nan)
    for start in range(0, width, 2048):  # float64 temporaries stay small
        block = slice(start, start + 2048)
        x = sums[:, block].astype(np.float64)
        rate_block = x.sum(axis=0) / unit_tokens.sum()
        rate[block] = rate_block
        r = x - unit_tokens[:, None] * rate_block
        centre = (by_stratum @ r) / n[:, None]  # [strata, block]
        if mean is not None:
            mean[:, block] = m @ centre
        r -= centre[units.stratum]
        square = by_stratum @ (r * r)
        variance = weight @ square  # [classes, block]
        # counts are whole numbers: a spread below this is rounding of a neuron that never varies
        varies = square.sum(axis=0) > 1e-6
        inverse[:, block] = np.where(varies & (variance > 1e-9), 1 / np.sqrt(np.maximum(variance, 1e-30)), 0)
        spread = np.sqrt((r * r).mean(axis=0))
        skewness[block] = np.where(varies, (r**3).mean(axis=0) / np.maximum(spread, 1e-30) ** 3, np.nan)
    return _Scale(rate, mean, inverse, _sparsity_bins(skewness), _size_bins(m.sum(axis=1)))


def _sparsity_bins(skewness: np.ndarray) -> np.ndarray:
    """Bins of like sparsity, finer towards the sparse end (large skewness); -1 where NaN."""
    bins = np.full(skewness.shape, -1, dtype=np.int64)
    known = ~np.isnan(skewness)
    if known.any():
        share = np.concatenate(
            [np.linspace(0, 0.9, SPARSITY_BINS - 6)[1:], [0.94, 0.965, 0.98, 0.99, 0.995]]
        )  # SPARSITY_BINS - 2 edges: one bin to spare for values equal to an edge
        edges = np.unique(np.quantile(skewness[known], share))
        bins[known] = np.searchsorted(edges, skewness[known], side="left")
    return bins


def _size_bins(size: np.ndarray) -> np.ndarray:
    """Classes of like numbers of units: at most CLASS_SIZE_BINS bins, one if sizes differ little."""
    logs = np.log(size)
    width = max((logs.max() - logs.min()) / CLASS_SIZE_BINS, np.log(1.5))
    return np.minimum(((logs - logs.min()) / width).astype(np.int64), CLASS_SIZE_BINS - 1)


class _Permutation:
    """One permutation: labels of the units in; entropies, pooled cells, and the selection's numbers out."""

    def __init__(
        self,
        sums: np.ndarray,
        unit_tokens: np.ndarray,
        units: Units,
        scale: _Scale,
        rate: float,
        quantile: float,
        weak_filter: str,
    ):
        self.sums, self.unit_tokens, self.units, self.scale = sums, unit_tokens, units, scale
        self.quantile, self.weak_filter = quantile, weak_filter
        self.keep = round(rate * sums.shape[1])
        self.bins = SPARSITY_BINS
        self.cells = (int(scale.class_bin.max()) + 1) * self.bins * Z_CELLS
        self.testable = scale.bin >= 0
        self.offset = np.where(self.testable, scale.bin * Z_CELLS, 0)

    def __call__(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple]:
        n_classes = self.units.n_classes
        active = class_sums(self.sums, labels, n_classes)  # [classes, width]
        tokens = class_tokens(self.unit_tokens, labels, n_classes).astype(np.float32)[:, None]
        cell = self._cells(active, tokens)
        if not self.testable.all():
            cell = cell[:, self.testable]
        histogram = np.bincount(cell.reshape(-1), minlength=self.cells).astype(np.uint32)
        p = np.divide(active, tokens, out=active)
        entropy = _fast_aape(p)
        selected, threshold, _ = choose(
            p, entropy, keep=self.keep, quantile=self.quantile, weak_filter=self.weak_filter
        )
        members = p[:, selected] > threshold
        per_class = members.sum(axis=1)
        mean_aape = float(entropy[selected].mean(dtype=np.float64)) if len(selected) else np.nan
        per_neuron = per_class.sum() / len(selected) if len(selected) else np.nan
        return entropy, histogram, per_class, ((per_class > 0).mean(), per_neuron, mean_aape, len(selected))

    def _cells(self, active: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        z = active - tokens * self.scale.rate
        if self.scale.mean is not None:
            z -= self.scale.mean
        z *= self.scale.inverse
        z -= Z_LOW
        z *= 1 / Z_STEP
        np.clip(z, 0, Z_CELLS - 1, out=z)
        cell = z.astype(np.int64)
        cell += self.offset
        if self.scale.class_bin.any():
            cell += (self.scale.class_bin * (self.bins * Z_CELLS))[:, None]
        return cell

    def cell_of_pair(self, labels: np.ndarray) -> np.ndarray:
        active = class_sums(self.sums, labels, self.units.n_classes)
        tokens = class_tokens(self.unit_tokens, labels, self.units.n_classes).astype(np.float32)[:, None]
        return np.where(self.testable, self._cells(active, tokens), -1)


def _fast_aape(p: np.ndarray) -> np.ndarray:
    """AAPE in float32 from [classes, width]: ln(total) - sum(p ln p) / total; +inf where never active."""
    total = p.sum(axis=0)
    logs = np.maximum(p, np.float32(1e-30))
    np.log(logs, out=logs)
    logs *= p
    active = total > 0
    safe = np.where(active, total, np.float32(1))
    return np.where(active, np.log(safe) - logs.sum(axis=0) / safe, np.float32(np.inf))


def _pair_values(cells: np.ndarray, q: float) -> tuple[np.ndarray, np.ndarray]:
    """p of every cell for the data's labels, and the Benjamini-Hochberg discoveries of every labelling.

    cells: uint32 [labellings, cells]: how many pairs fell into each; row 0 has the data's labels. Each
    labelling is tested against all others, so that all are treated alike. Returns float64 [cells], int64
    [labellings].
    """
    total = _at_least(cells.sum(axis=0, dtype=np.int64))
    tests = int(cells[0].sum(dtype=np.int64))
    found = np.zeros(len(cells), dtype=np.int64)
    first = np.ones(cells.shape[1])
    for index in range(len(cells)):
        others = total - _at_least(cells[index])  # [bins, cells of z]
        p = ((1 + others) / (1 + others[:, :1])).reshape(-1)
        if index == 0:
            first = p
        small = np.flatnonzero((p <= q) & (cells[index] > 0))  # only these can be discoveries
        order = small[np.argsort(p[small], kind="stable")]
        count = np.cumsum(cells[index, order], dtype=np.int64)
        # the last cell of equal p has the full count; the largest count that passes is the same
        passed = p[order] * tests <= q * count
        found[index] = count[passed].max(initial=0)
    return first, found


def _at_least(cells: np.ndarray) -> np.ndarray:
    """int64 [bins, cells of z]: pairs in this cell of the bin or in a higher one."""
    return np.cumsum(cells.reshape(-1, Z_CELLS)[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]


def _neuron_p(entropy: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """p of each neuron's AAPE being low: float64 [width], NaN where the neuron never varies.

    entropy: float32 [1 + permutations, width], the first row observed.
    """
    p = np.full(entropy.shape[1], np.nan)
    for index in np.unique(bins[bins >= 0]):
        chosen = np.flatnonzero(bins == index)
        values = -entropy[:, chosen]
        p[chosen] = pooled_p(values[0], values[1:], np.zeros(len(chosen), dtype=np.int64))
    return p


def _in_threads(
    work: Callable[[Any], None], jobs: Iterator, total: int, threads: int | None, progress: bool, what: str
) -> None:
    """Run the jobs in a few threads (NumPy lets go of the interpreter lock), never many jobs ahead."""
    workers = threads or min(os.cpu_count() or 1, 4)
    bar = tqdm(total=total, desc=what, disable=None if progress else True, leave=False)
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool, bar:
        pending: list = []
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) >= 2 * workers:
                pending.pop(0).result()
                bar.update()
        for future in pending:
            future.result()
            bar.update()


@dataclass(frozen=True)
class Stability:
    """Do two halves of the groups give the same neurons? Means over the splits.

    by_class: float64 [classes], Jaccard of the class's two sets; NaN where a half lacks the class, 0 where
    neither half has a neuron for it (so a low coverage lowers the mean).
    mean: over classes. overlap: Jaccard of the selected neurons, whatever their class.
    """

    by_class: np.ndarray
    mean: float
    overlap: float
    splits: int


def stability(
    counts: np.ndarray,
    tokens: np.ndarray,
    units: Units,
    *,
    rate: float = 0.01,
    quantile: float = 0.95,
    weak_filter: str = "lape",
    splits: int = 10,
    seed: int = 0,
    sums: tuple[np.ndarray, np.ndarray] | None = None,
) -> Stability:
    """Select in two random halves of the groups and compare; groups of one class are halved class by class.

    Arguments as `permutation_null`; `sums`: what `unit_sums` gave, if it is at hand. A class with clips of a
    single group cannot be in both halves: it is left out of both selections, its Jaccard is NaN.
    """
    data, unit_tokens = unit_sums(counts, tokens, units) if sums is None else sums
    shape = counts.shape[1:]
    rng = np.random.default_rng(seed)
    by_class = np.full((splits, units.n_classes), np.nan)
    overlap = np.full(splits, np.nan)
    for index in range(splits):
        half = _halves(units, rng)
        present = [
            class_tokens(unit_tokens, np.where(half == side, units.label, -1), units.n_classes) for side in (0, 1)
        ]
        usable = np.flatnonzero((present[0] > 0) & (present[1] > 0))
        if not len(usable):
            continue
        chosen = []
        for side in (0, 1):
            active = class_sums(data, np.where(half == side, units.label, -1), units.n_classes)[usable]
            p = (active.astype(np.float64) / present[side][usable, None]).T.reshape(*shape, len(usable))
            chosen.append(select(np.clip(p, 0, 1), rate=rate, quantile=quantile, weak_filter=weak_filter))
        one, two = chosen
        shared, either = one.members & two.members, one.members | two.members
        by_class[index, usable] = jaccard_index(shared.sum(axis=(0, 1)), either.sum(axis=(0, 1)))
        overlap[index] = jaccard_index((one.selected & two.selected).sum(), (one.selected | two.selected).sum())
    known = ~np.isnan(by_class)
    per_class = np.where(known.any(axis=0), np.nansum(by_class, axis=0) / np.maximum(known.sum(axis=0), 1), np.nan)
    finite = per_class[~np.isnan(per_class)]
    drawn = overlap[~np.isnan(overlap)]
    return Stability(
        per_class,
        float(finite.mean()) if len(finite) else np.nan,
        float(drawn.mean()) if len(drawn) else np.nan,
        splits,
    )


def _halves(units: Units, rng: np.random.Generator) -> np.ndarray:
    """int64 [units], 0 or 1: groups dealt alternately in random order, class by class where they have one."""
    first = np.unique(units.group, return_index=True)[1]
    split_group = np.bincount(units.group, minlength=units.group.max() + 1) > 1
    key = np.where(split_group[units.group[first]], -1, units.label[first])  # [groups]
    side = np.empty(units.group.max() + 1, dtype=np.int64)
    for value in np.unique(key):
        chosen = rng.permutation(units.group[first][key == value])
        side[chosen] = (np.arange(len(chosen)) + rng.integers(2)) % 2
    return side[units.group]


MAX_BYTES = 2 << 30  # of a null's tables; tasks beyond it are tested on a seeded subset of their clips


@dataclass(frozen=True, eq=False, repr=False)
class Calibrated:
    """A selection and what of it survives chance.

    Attributes:
        selection: with `outside` from the clips of the null.
        members: bool [layers, neurons, classes], the pairs that pass all gates.
        null: the permutations.
        effect, q: least p in the class minus p outside it, and the level of the false-discovery rate.
        clips: number of clips the null was computed from.
    """

    selection: Selection
    members: np.ndarray
    null: Null
    effect: float
    q: float
    clips: int

    @property
    def coverage(self) -> float:
        """Share of the classes with at least one neuron that survives."""
        return float(self.members.any(axis=(0, 1)).mean())

    @property
    def per_class(self) -> pd.Series:
        """Number of neurons that survive, int64, by class name."""
        return pd.Series(self.members.sum(axis=(0, 1)), index=self.selection.per_class.index, name="calibrated")

    def table(self) -> pd.DataFrame:
        """The selection's table with q of the pair and of the neuron's AAPE, and whether the pair survives."""
        table = self.selection.table()
        index = table.layer, table.neuron, pd.Index(self.selection.classes).get_indexer(table["class"])
        remark = table.pop("remark")
        return table.assign(
            q=self.null.pair_q[index].astype(np.float64),
            q_neuron=self.null.neuron_q[index[:2]],
            calibrated=self.members[index],
            remark=remark,
        )

    def _facts(self) -> dict[str, str]:
        null, chosen = self.null, self.selection
        return {
            "class-specific pairs": f"{chosen.members.sum()}, of which {self.members.sum()} survive chance",
            "coverage": f"{self.coverage:.0%} of {len(chosen.classes)} classes ({chosen.coverage:.0%} before)",
            "asked for": f"q < {self.q:g} and p in the class at least {self.effect:g} above p outside",
            "null": f"{null.permutations} permutations; {null.units.description}",
            "discoveries": f"{null.discoveries} pairs of all; p of the task {null.task_p:.3g}",
        }

    def __repr__(self) -> str:
        return "\n".join(["Calibrated", *(f"  {name}: {value}" for name, value in self._facts().items())])

    def _repr_html_(self) -> str:
        return facts_html("Calibrated", self._facts())


@dataclass(frozen=True)
class Counted:
    """The clips of which counts are there: counts [clips, L, N], and labels, tokens, groups [clips]."""

    counts: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    groups: np.ndarray


def counted_clips(artifacts: Artifacts, split: str | list[str] | None = None) -> Counted:
    """Clips with counts, of a split if one is given.

    Raises ValueError where the artifacts have no counts per clip, or no such split.
    """
    counts = artifacts.counts
    rows = np.asarray(artifacts.manifest.get("kept_clips", np.arange(len(artifacts.labels))), dtype=np.int64)
    chosen = np.flatnonzero(np.isin(rows, artifacts.rows(split)))
    if len(chosen) < len(rows):
        counts = counts[chosen]
    rows = rows[chosen]
    return Counted(counts, artifacts.labels[rows], artifacts.tokens[rows], artifacts.groups[rows])


def calibrate(
    artifacts: Artifacts,
    selection: Selection,
    *,
    permutations: int = 1000,
    seed: int = 0,
    q: float = 0.05,
    effect: float = 0.1,
    split: str | list[str] | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Calibrated:
    """Set a selection against label permutations.

    selection: made from these artifacts (of the same `split`); its rate, quantile and filter are repeated
    on every permutation. q: level of the false-discovery rate over all (neuron, class) pairs of the task.
    effect: least p in the class minus p outside it, in shares of tokens.
    Raises ValueError if the shapes or classes differ, or the artifacts have no counts per clip.
    """
    if selection.members.shape != tuple(artifacts.over_zero.shape):
        raise ValueError(
            f"the selection is of {selection.members.shape} layers, neurons and classes, {artifacts.path} "
            f"of {tuple(artifacts.over_zero.shape)}: make it from these artifacts"
        )
    if selection.classes not in (artifacts.classes, tuple(map(str, range(len(artifacts.classes))))):
        raise ValueError(f"the selection's classes are not those of {artifacts.path}, or in another order")
    data = counted_clips(artifacts, split)
    return calibrate_counts(
        data, selection, permutations=permutations, seed=seed, q=q, effect=effect, threads=threads, progress=progress
    )


def calibrate_counts(
    data: Counted,
    selection: Selection,
    *,
    permutations: int = 1000,
    seed: int = 0,
    q: float = 0.05,
    effect: float = 0.1,
    threads: int | None = None,
    progress: bool = True,
) -> Calibrated:
    """As `calibrate`, from arrays."""
    p = selection.probabilities
    n_classes = p.shape[2]
    units = exchangeable_units(data.labels, data.groups, n_classes)
    width = p.shape[0] * p.shape[1]
    most = MAX_BYTES // (4 * width) - permutations - 1
    if len(units) > most > 0:
        data, units = _subset(data, units, most, seed)
    null = permutation_null(
        data.counts,
        data.tokens,
        units,
        rate=selection.rate,
        quantile=selection.quantile,
        weak_filter=selection.weak_filter,
        permutations=permutations,
        seed=seed,
        q=q,
        threads=threads,
        progress=progress,
        max_bytes=max(MAX_BYTES, 3 << 30),
    )
    tokens = np.bincount(data.labels, weights=data.tokens, minlength=n_classes)
    outside = outside_class(p, tokens)
    passed = np.nan_to_num(null.pair_q, nan=1.0) < q
    passed &= np.nan_to_num(p - outside, nan=-1.0) >= effect
    passed &= null.task_p <= q
    members = selection.members & passed
    return Calibrated(replace(selection, outside=outside), members, null, effect, q, len(data.labels))


def _subset(data: Counted, units: Units, most: int, seed: int) -> tuple[Counted, Units]:
    """A seeded subset of the units, the same share of every class and at least two units of each."""
    rng = np.random.default_rng(seed)
    keep = np.zeros(len(units), dtype=bool)
    for label in range(units.n_classes):
        mine = rng.permutation(np.flatnonzero(units.label == label))
        keep[mine[: max(2, int(len(mine) * most / len(units)))]] = True
    clips = np.flatnonzero(keep[units.of_clip])
    data = Counted(data.counts[clips], data.labels[clips], data.tokens[clips], data.groups[clips])
    return data, exchangeable_units(data.labels, data.groups, units.n_classes)
