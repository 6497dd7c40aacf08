"""What chance gives: label permutations for class-specific neurons, from the counts per clip.

    calibrated = calibrate(artifacts, select(artifacts))
    calibrated.members                                   # the pairs (neuron, class) that survive
    calibrated.null.coverage                             # what permuted labels give, [permutations]

A percentile selects something from any table, so the number of selected neurons, the coverage and the number of neurons
per class say little by themselves. Here labels are permuted, the whole selection is done again, and every number is set
beside its own null.

What is permuted: labels of whole groups of clips, or within groups, see `aape.neurons.permuting`. The labels of the data are one of
the permutations + 1 equally likely ones if labels mean nothing, so p-values are never 0.

How p-values of pairs are made. For a neuron n and a class c the statistic is the class's excess of active tokens over
what the neuron's overall rate predicts, divided by its exact standard deviation under the permutations (sampling
without replacement, stratum by stratum). A normal tail would be wrong: a neuron active in one clip of 2,000 has one
huge value and is not remarkable. So the statistic is compared with the same statistic under permutation, pooled over
neurons of like sparsity (bins of the skewness of the neuron's units, which labels do not touch) and classes of like
size.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts
from aape.display import Displayed
from aape.neurons.permuting import SIZE_RATIO, THREADS, Counted, Units, UnitSums, exchangeable_units, permuted_labels
from aape.neurons.pvalues import share_of_groups
from aape.neurons.selection import Rule, Selection, choose, outside_class

SPARSITY_BINS = 20
CLASS_SIZE_BINS = 4
BLOCK = 4096  # neurons
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

    Each test is standardised by the mean and standard deviation of its own draws with the observed value among them, so
    that observed and drawn values are exchangeable. A test whose draws are all equal has p = 1.

    Args:
        observed: [tests].
        null: [draws, tests].
        bins: int [tests]; a test of a bin below 0 has p NaN.
    """
    p = np.full(len(observed), np.nan)
    for index in np.unique(bins[bins >= 0]):
        chosen = np.flatnonzero(bins == index)
        values = np.vstack([observed[chosen], null[:, chosen]]).astype(np.float64)  # [1 + draws, tests of the bin]
        spread = values.std(axis=0)
        varies = spread > 1e-12
        z = (values[:, varies] - values[:, varies].mean(axis=0)) / spread[varies]
        pool = np.sort(z[1:], axis=None)
        # the draws may be rounded differently from the observed value: ties count as ties
        above = pool.size - np.searchsorted(pool, z[0] - 1e-6, side="left")
        p[chosen] = 1.0
        p[chosen[varies]] = (1 + above) / (1 + pool.size)
    return p


# -- the null ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drawn:
    """What each permutation selected, packed; iterated, the neurons it kept, int32 [k], and their classes, bool [classes, k].

    Attributes:
        neurons: int32 [permutations, k], index (layer * width + neuron) of each neuron kept, -1 beyond the last.
        bits: uint8 [permutations, classes, ceil(k / 8)], whether it is specific to the class, 8 neurons a byte.
        tested: bool [classes], whether labels of the class can move at all (`aape.neurons.permuting.Units.tested`).
        clips: uint64 [clips], equal for the same audio alone; empty where that is not known.
        moved: uint64, equal for two tasks in whose permutations the same clips swap labels.
    """

    neurons: np.ndarray
    bits: np.ndarray
    tested: np.ndarray
    clips: np.ndarray
    moved: np.ndarray

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for neurons, bits in zip(self.neurons, self.bits, strict=True):
            kept = neurons[neurons >= 0]
            yield kept, np.unpackbits(bits, axis=1, count=len(kept)).astype(bool)


@dataclass(frozen=True, eq=False)
class Null:
    """What permuted labels give. P permutations, L layers, N neurons, C classes.

    Attributes:
        per_class: int64 [P, C], class-specific neurons of each class.
        coverage, classes_per_neuron, mean_aape: float64 [P]; the last in nats, of the selected neurons.
        pair_p, pair_q: float32 [L, N, C], the neuron is active in the class more than chance gives; NaN where the
            neuron never varies over the clips that can move, and for a class none of whose clips can.
        neuron_p, neuron_q: float64 [L, N], its AAPE is lower than chance gives; NaN where it never varies over those.
        discoveries: pairs with q below `q`.
        null_discoveries: int64 [P], the same count for each permutation tested against all others.
        task_p: the share of labellings with as many discoveries (1 if none).
        drawn: what each permutation selected.

    What is selected under permuted labels is known for AAPE and all clips alone: where another criterion chose the neurons,
    or from more clips than have counts, `drawn` is None and per_class, coverage, classes_per_neuron and mean_aape are NaN.
    """

    per_class: np.ndarray
    coverage: np.ndarray
    classes_per_neuron: np.ndarray
    mean_aape: np.ndarray
    pair_p: np.ndarray
    pair_q: np.ndarray
    neuron_p: np.ndarray
    neuron_q: np.ndarray
    discoveries: int
    null_discoveries: np.ndarray
    task_p: float
    drawn: Drawn | None
    units: Units

    @property
    def permutations(self) -> int:
        """How many."""
        return len(self.null_discoveries)


def permutation_null(
    sums: UnitSums, rule: Rule, *, permutations: int = 1000, seed: int = 0, q: float = 0.05, progress: bool = True
) -> Null:
    """Permute the labels, select again, and compare; see the module's text for what and why.

    Args:
        sums: of the clips.
        rule: thresholds of the selection.
        permutations: at least 20.
        seed: of the permutations.
        q: level of the false-discovery rate.
        progress: whether to show a bar.

    Raises:
        ValueError: fewer than 20 permutations, a class without clips or tokens.
    """
    units = sums.units
    if permutations < 20:
        raise ValueError(f"permutations: expected at least 20, found {permutations}")
    if empty := np.flatnonzero(sums.class_tokens(units.label) == 0).tolist():
        raise ValueError(f"classes without a clip or token: indices {empty}; leave them out")
    scale = _Scale(sums)
    total, most = 1 + permutations, round(rule.rate * sums.width)  # the labels of the data come first
    below = np.empty((total, sums.width), dtype=np.float32)
    cells = np.empty((total, scale.cells), dtype=np.uint32)
    bits = np.zeros((total, units.n_classes, -(-most // 8)), np.uint8)
    moved = hashlib.sha256(b"".join(a.tobytes() for a in (np.array(seed), units.clips, units.of_clip, units.stratum)))
    moved_id = np.frombuffer(moved.digest()[:8], np.uint64)[0]
    drawn = Drawn(np.full((total, most), -1, np.int32), bits, units.tested, units.clips, moved_id)

    def one(index: int, labels: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Neurons of each class, classes of a neuron, and mean AAPE of a labelling; the rest goes into the arrays."""
        tokens = sums.class_tokens(labels)[:, None]
        cells[index] = scale.histogram(active, tokens)
        p = np.divide(active, tokens.astype(np.float32), out=active)
        below[index] = _below_uniform(p)
        kept, threshold, _ = choose(p, -below[index], rule)
        members = p[:, kept] > threshold  # [classes, k]
        drawn.neurons[index, : len(kept)] = kept
        drawn.bits[index, :, : -(-len(kept) // 8)] = np.packbits(members, axis=1)
        if not len(kept):
            return members.sum(axis=1), np.nan, np.nan
        mean_aape = np.log(units.n_classes) - below[index, kept].mean(dtype=np.float64)
        return members.sum(axis=1), members.sum() / len(kept), mean_aape

    labellings = itertools.chain([units.label], permuted_labels(units, permutations, seed))
    selected: list[tuple[np.ndarray, float, float]] = []
    bar = tqdm(total=total, desc="permutations", disable=None if progress else True, leave=False)
    with threadpool_limits(1), ThreadPoolExecutor(THREADS) as pool, bar:
        for batch, active in sums.by_class(labellings):
            if not selected:
                observed = scale.cell_of_pair(active[0], sums.class_tokens(units.label)[:, None])
            selected += pool.map(one, itertools.count(len(selected)), batch, active)
            bar.update(len(batch))

    pair_p, discoveries = _pair_values(cells, q)
    p = np.moveaxis(np.where(observed >= 0, pair_p[observed], np.nan).reshape(-1, *sums.shape), 0, -1)
    neuron_p = pooled_p(below[0], below[1:], scale.bin).reshape(sums.shape)
    found = int(discoveries[0])
    per_class, classes_per_neuron, mean_aape = (np.array(values) for values in zip(*selected[1:], strict=True))
    return Null(
        per_class=per_class,
        coverage=(per_class > 0).mean(axis=1),
        classes_per_neuron=classes_per_neuron,
        mean_aape=mean_aape,
        pair_p=p.astype(np.float32),
        pair_q=benjamini_hochberg(p).astype(np.float32),
        neuron_p=neuron_p,
        neuron_q=benjamini_hochberg(neuron_p),
        discoveries=found,
        null_discoveries=discoveries[1:],
        task_p=one_sided_p(-found, -discoveries[1:]) if found else 1.0,
        drawn=replace(drawn, neurons=drawn.neurons[1:], bits=drawn.bits[1:]),
        units=units,
    )


class _Scale:
    """How the statistic of a (class, neuron) pair is standardised, and with which it is pooled.

    Mean and variance under permutation of the sum over the class's units of r = counts - rate * tokens. Sampling m of n
    units of a stratum without replacement: mean m * mean(r), variance m * (n - m) / n * s**2 with
    s**2 = sum (r - mean)**2 / (n - 1); strata are independent and add up. Units that do not move add no variance, and
    neither sparsity nor the size of a class counts them.

    Attributes:
        rate: float32 [width], overall activation rate.
        mean: float32 [classes, width].
        inverse: float32 [classes, width], cells per token: 1 / (standard deviation * Z_STEP), 0 where that is 0.
        bin: int64 [width], bin of sparsity, -1 where the neuron never varies.
        first: int32 [classes, width], first cell of the pair's bins; where nothing is tested, what makes its cell -1.
        cells: how many cells the pooled statistic has: class bins x sparsity bins x Z_CELLS.
    """

    def __init__(self, sums: UnitSums):
        units, width, tokens = sums.units, sums.width, sums.tokens
        strata = int(units.stratum.max()) + 1
        n = np.bincount(units.stratum, minlength=strata).astype(np.float64)
        m = np.zeros((units.n_classes, strata))
        np.add.at(m, (units.label, units.stratum), 1)
        weight = m * (n - m) / n / np.maximum(n - 1, 1)  # [classes, strata]
        stays = ~units.moves
        by_stratum = csr_array((np.ones(len(units)), (units.stratum, np.arange(len(units)))), (strata, len(units)))
        self.rate = np.empty(width, dtype=np.float32)
        self.mean, self.inverse = np.zeros((2, units.n_classes, width), dtype=np.float32)
        skewness = np.full(width, np.nan)

        def one(block: slice, found: np.ndarray) -> None:
            x = found.astype(np.float64)
            self.rate[block] = rate = x.sum(axis=0) / tokens.sum()
            r = np.subtract(x, tokens[:, None] * rate, out=x)
            centre = (by_stratum @ r) / n[:, None]  # [strata, block]
            self.mean[:, block] = m @ centre
            r -= centre[units.stratum]
            r[stays] = 0
            power = r * r
            square = by_stratum @ power
            variance = weight @ square  # [classes, block]
            # counts are whole numbers: a spread below this is rounding of a neuron that never varies
            varies = square.sum(axis=0) > 1e-6
            known = varies & (variance > 1e-9)
            self.inverse[:, block] = np.where(known, 1 / np.sqrt(np.maximum(variance, 1e-30)), 0) / Z_STEP
            spread = np.sqrt(power.mean(axis=0))
            power *= r
            skewness[block] = np.where(varies, power.mean(axis=0) / np.maximum(spread, 1e-30) ** 3, np.nan)

        sums.each_block(one)
        size = np.bincount(units.label[~stays], minlength=units.n_classes)
        self.bin, size_bin = _sparsity_bins(skewness), _size_bins(np.where(size, size, max(size.max(), 1)))
        first = (size_bin[:, None] * SPARSITY_BINS + self.bin) * Z_CELLS
        # nothing varies where nothing is tested: its statistic is 0
        self.first = np.where(units.tested[:, None] & (self.bin >= 0), first, -1 + Z_LOW / Z_STEP).astype(np.int32)
        self.cells = (int(size_bin.max()) + 1) * SPARSITY_BINS * Z_CELLS

    def cell_of_pair(self, active: np.ndarray, tokens: np.ndarray, block: slice = slice(None)) -> np.ndarray:
        """int32 [classes, neurons of the block], -1 where nothing is tested. active, tokens: see `histogram`."""
        z = active[:, block] - tokens.astype(np.float32) * self.rate[block]
        z -= self.mean[:, block]
        z *= self.inverse[:, block]
        z -= Z_LOW / Z_STEP
        np.clip(z, 0, Z_CELLS - 1, out=z)
        cell = z.astype(np.int32)
        cell += self.first[:, block]
        return cell

    def histogram(self, active: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """int64 [cells]: how many pairs fall into each. active: [classes, width]; tokens: [classes, 1]."""
        out = np.zeros(1 + self.cells, dtype=np.int64)
        for start in range(0, active.shape[1], BLOCK):
            cell = self.cell_of_pair(active, tokens, slice(start, start + BLOCK))
            out += np.bincount(cell.reshape(-1) + 1, minlength=len(out))
        return out[1:]


def _sparsity_bins(skewness: np.ndarray) -> np.ndarray:
    """Bins of like sparsity, finer towards the sparse end (large skewness); -1 where NaN."""
    bins = np.full(skewness.shape, -1, dtype=np.int64)
    known = ~np.isnan(skewness)
    if known.any():
        # SPARSITY_BINS - 2 edges: one bin to spare for values equal to an edge
        share = np.concatenate([np.linspace(0, 0.9, SPARSITY_BINS - 6)[1:], [0.94, 0.965, 0.98, 0.99, 0.995]])
        edges = np.unique(np.quantile(skewness[known], share))
        bins[known] = np.searchsorted(edges, skewness[known], side="left")
    return bins


def _size_bins(size: np.ndarray) -> np.ndarray:
    """Classes of like numbers of units: at most CLASS_SIZE_BINS bins, one if sizes differ little."""
    logs = np.log(size)
    width = max((logs.max() - logs.min()) / CLASS_SIZE_BINS, np.log(1.5))
    return np.minimum(((logs - logs.min()) / width).astype(np.int64), CLASS_SIZE_BINS - 1)


def _below_uniform(p: np.ndarray) -> np.ndarray:
    """ln(classes) - AAPE, from p [classes, width] in float32: mean over classes of r ln r - (r - 1), r = p / mean(p).

    The same number as from the entropies, but a sum of small terms: float32 tells neurons apart that are active for
    nearly all classes alike, where the entropies themselves round to ln(classes). -inf where never active.
    """
    out = np.empty(p.shape[1], dtype=np.float32)
    for start in range(0, len(out), BLOCK):  # temporaries stay near the processor
        r = p[:, start : start + BLOCK]
        mean = r.mean(axis=0)
        r = r / np.where(mean > 0, mean, 1)
        terms = np.log(np.maximum(r, np.finfo(np.float32).tiny))
        terms *= r
        terms -= r - 1
        out[start : start + BLOCK] = np.where(mean > 0, terms.mean(axis=0), -np.inf)
    return out


def _pair_values(cells: np.ndarray, q: float) -> tuple[np.ndarray, np.ndarray]:
    """p of every cell for the data's labels, and the Benjamini-Hochberg discoveries of every labelling.

    cells: uint32 [labellings, cells]: how many pairs fell into each; row 0 has the data's labels. Each labelling is
    tested against all others, so that all are treated alike. Returns float64 [cells], int64 [labellings].
    """
    total, tests = _at_least(cells.sum(axis=0, dtype=np.int64)), int(cells[0].sum(dtype=np.int64))
    found, p = [], np.ones(cells.shape[1])
    for own in cells[::-1]:  # the data's labels come last, and their p stays
        others = total - _at_least(own)  # [bins, cells of z]
        p = ((1 + others) / (1 + others[:, :1])).reshape(-1)
        small = np.flatnonzero((p <= q) & (own > 0))  # only these can be discoveries
        order = small[np.argsort(p[small], kind="stable")]
        count = np.cumsum(own[order], dtype=np.int64)
        # the last cell of equal p has the full count; the largest count that passes is the same
        found.append(count[p[order] * tests <= q * count].max(initial=0))
    return p, np.array(found[::-1])


def _at_least(cells: np.ndarray) -> np.ndarray:
    """int64 [bins, cells of z]: pairs in this cell of the bin or in a higher one."""
    return np.cumsum(cells.reshape(-1, Z_CELLS)[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]


# -- the verdict ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Calibrated(Displayed):
    """A selection and what of it survives chance.

    Attributes:
        selection: with `outside` from the clips of the null.
        members: bool [layers, neurons, classes], the pairs that pass all gates.
        null: the permutations.
        effect, q: least p in the class minus p outside it, and the level of the false-discovery rate.
        clips: number of clips the null was computed from.
        group_share: float64 [layers, neurons], share of the variance within classes that lies between groups (speakers,
            recordings) of a class, of the class-specific neurons; else NaN (`aape.neurons.permuting.share_of_groups`).
    """

    selection: Selection
    members: np.ndarray
    null: Null
    effect: float
    q: float
    clips: int
    group_share: np.ndarray

    @property
    def survivors(self) -> Selection:
        """The selection of the pairs that survive alone."""
        return replace(self.selection, members=self.members, selected=np.any(self.members, axis=2))

    @property
    def coverage(self) -> float:
        """Share of the classes with at least one neuron that survives."""
        return self.survivors.coverage

    @property
    def per_class(self) -> pd.Series:
        """Number of neurons that survive, int64, by class name."""
        return self.survivors.per_class.rename("calibrated")

    def with_effect(self, effect: float) -> Calibrated:
        """The same null and level with another least effect."""
        gain = self.selection.probabilities - self.selection.outside
        passed = (self.null.pair_q < self.q) & (gain >= effect) & (self.null.task_p <= self.q)  # NaN does not pass
        return replace(self, members=self.selection.members & passed, effect=effect)

    def table(self) -> pd.DataFrame:
        """The selection's table with q of the pair and of the neuron's AAPE, whether the pair survives, and group_share."""
        table = self.selection.table()
        index = table.layer, table.neuron, pd.Index(self.selection.classes).get_indexer(table["class"])
        remark = table.pop("remark")
        columns = {"q": self.null.pair_q[index].astype(np.float64), "q_neuron": self.null.neuron_q[index[:2]]}
        columns |= {"calibrated": self.members[index], "group_share": self.group_share[index[:2]]}
        return table.assign(**columns, remark=remark)

    def _facts(self) -> dict[str, str]:
        null, chosen = self.null, self.selection
        return {
            "class-specific pairs": f"{chosen.members.sum()}, of which {self.members.sum()} survive chance",
            "coverage": f"{self.coverage:.0%} of {len(chosen.classes)} classes ({chosen.coverage:.0%} before)",
            "asked for": f"q < {self.q:g} and p in the class at least {self.effect:g} above p outside",
            "null": f"{null.permutations} permutations; {null.units.description}",
            "discoveries": f"{null.discoveries} pairs of all; p of the task {null.task_p:.3g}",
        }


def counted_clips(artifacts: Artifacts, split: str | list[str] | None = None, padding: bool = True) -> Counted:
    """Clips with counts, of a split if one is given, with tokens of zero padding or without.

    Raises:
        ValueError: the artifacts have no counts per clip, or no such split.
    """
    rows = np.flatnonzero(np.isin(artifacts.kept, artifacts.rows(split)))
    clips = artifacts.kept[rows]
    tokens, without = artifacts.tokens[clips], None
    if not padding:
        tokens, without = tokens - artifacts.padding_tokens[clips], artifacts.padding_counts
    digests = [int(artifacts.manifest["clips"]["sha256"][clip][:16], 16) for clip in clips]
    return Counted(
        artifacts.counts, artifacts.labels[clips], tokens, artifacts.groups[clips], without, rows,
        np.array(digests, np.uint64), len(clips) == len(artifacts.rows(split)),
    )  # fmt: skip


def calibrate(
    artifacts: Artifacts, selection: Selection, *, split: str | list[str] | None = None, **how: Any
) -> Calibrated:
    """Set a selection against label permutations.

    A selection by another criterion than AAPE is calibrated pair by pair; what permuted labels select is then not known.

    Args:
        artifacts: with counts per clip.
        selection: made from these artifacts, of the same `split`; its rate, quantile and filter are repeated on every
            permutation, and where its probabilities leave out zero padding the null does too.
        split: the selection's.
        **how: permutations, seed, q, effect, progress: see `calibrate_counts`.

    Raises:
        ValueError: the selection is not of these artifacts, or they have no counts per clip.
    """
    padding = True
    if "kept_clips" not in artifacts.manifest:  # else probabilities of all clips cannot be had
        p, counted = selection.probabilities, artifacts.manifest["padding"] == "counted"
        for padding in (True, False) if counted else (True,):
            found = artifacts.probabilities(split=split, padding=padding)
            if found.shape == p.shape and np.allclose(found, p, rtol=0, atol=1e-6):
                break
        else:
            raise ValueError(
                f"the selection's probabilities are not those of {artifacts.path} (split={split}), with or without "
                "padding: make it from these artifacts, of the same split"
            )
    return calibrate_counts(counted_clips(artifacts, split, padding), selection, **how)


def calibrate_counts(
    data: Counted,
    selection: Selection,
    *,
    permutations: int = 1000,
    seed: int = 0,
    q: float = 0.05,
    effect: float = 0.1,
    progress: bool = True,
) -> Calibrated:
    """As `calibrate`, from arrays.

    Args:
        data: the clips of the selection.
        selection: its rule is repeated on every permutation.
        permutations, seed: how many, at least 20, and their seed; of other clips another one, where `data.clips` is None.
        q: level of the false-discovery rate over all (neuron, class) pairs of the task.
        effect: least p in the class minus p outside it, in shares of tokens.
        progress: whether to show a bar.

    Warns:
        UserWarning: classes none of whose clips can swap labels; nothing of them is calibrated.
    """
    p = selection.probabilities
    sums = UnitSums(data, exchangeable_units(data.labels, data.groups, p.shape[2], data.clips))
    if still := [name for name, tested in zip(selection.classes, sums.units.tested, strict=True) if not tested]:
        named = ", ".join(still[:10]) + f" and {len(still) - 10} more" * (len(still) > 10)
        warnings.warn(
            f"{len(still)} of {len(selection.classes)} classes cannot be tested: {named}. Expected groups of about as many "
            f"clips as groups of another class have (at most {SIZE_RATIO:g} times as many), which can swap labels; found "
            "none, so none of their neurons is calibrated and their sharing has no p.\n"
            "To test them, take groups of like size: cut long groups into parts that are independent, or leave clips out.",
            stacklevel=2,
        )
    null = permutation_null(sums, selection.rule, permutations=permutations, seed=seed, q=q, progress=progress)
    if selection.scores is not None or not data.whole:
        no, of_classes = np.full(permutations, np.nan), np.full((permutations, p.shape[2]), np.nan)
        null = replace(null, drawn=None, per_class=of_classes, coverage=no, classes_per_neuron=no, mean_aape=no)
    chosen, share = selection.members.any(axis=2), np.full(p.shape[:2], np.nan)
    rates = data.active(np.flatnonzero(chosen)) / np.maximum(data.tokens, 1)[:, None]
    share[chosen] = share_of_groups(rates, data.labels, data.groups)
    outside = outside_class(p, sums.class_tokens(sums.units.label))
    found = Calibrated(replace(selection, outside=outside), selection.members, null, effect, q, len(data.labels), share)
    return found.with_effect(effect)
