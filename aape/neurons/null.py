"""What permuted labels give: selections, p-values of pairs and of neurons, and a test of the whole task.

The labels of the data are one of the permutations + 1 equally likely ones if labels mean nothing. So every labelling is
treated alike, the selection is made again for each of them, and p-values are never 0. The statistic of a pair and the
histograms that hold it are explained in `aape.neurons.statistic`.

Three tests stand between a pair and significance:
- The pair: its q, the larger of two false-discovery rates (Benjamini and Hochberg), over all pairs of the task and over the
  pairs of its class. Over all pairs alone, strong classes would pay for the false discoveries of the others.
- The class: neurons go up and down together, so that a class of few clips can have many extreme pairs by chance. The most
  remarkable excess of extreme pairs of the class (`ClassEvidence`) is compared with the same number under permuted labels.
  A class without an effect passes in at most 5 % of the runs, whatever its size and whatever other classes do, because its
  own clips are then a random choice in every labelling.
- The task: the number of discoveries, compared with the same number under permuted labels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from aape.neurons.permuting import THREADS, Units, UnitSums, permuted_labels
from aape.neurons.pvalues import benjamini_hochberg, one_sided_p, pooled_p
from aape.neurons.selection import Rule, choose
from aape.neurons.statistic import BLOCK, PairStatistic, at_least

LEAST_PERMUTATIONS = 20
SCALE_PERMUTATIONS = 50  # at most, for the scale of the class-level test
LEAST_RARITY = 8  # in halves, a share of 1/16; more frequent pairs are not counted
SCALE_SEED = 1 << 32  # added to the seed, so that these permutations are others


@dataclass(frozen=True, eq=False)
class PermutedSelections:
    """What each permutation selected. Iterating yields the neurons it kept, int32 [k], and their classes, bool [classes, k].

    Attributes:
        neurons: int32 [permutations, k], index (layer * width + neuron) of each neuron kept, -1 beyond the last.
        members: bool [permutations, classes, k], whether the neuron is specific to the class.
        clips: uint64 [clips], equal only for the same audio; empty where that is not known.
        moved: uint64, equal for two tasks in whose permutations the same clips exchange labels.
    """

    neurons: np.ndarray
    members: np.ndarray
    clips: np.ndarray
    moved: np.ndarray

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for neurons, members in zip(self.neurons, self.members, strict=True):
            kept = neurons[neurons >= 0]
            yield kept, members[:, : len(kept)]


@dataclass(frozen=True, eq=False)
class Null:
    """What permuted labels give. P permutations, L layers, N neurons, C classes.

    Attributes:
        per_class: int64 [P, C], class-specific neurons of each class.
        coverage, classes_per_neuron, mean_aape: float64 [P]; the last in nats, over the selected neurons.
        pair_p: float32 [L, N, C], p-value of "the neuron is more active in the class than permuted labels give"; NaN where
            the neuron never varies over the clips that can move, and for a class that cannot be tested.
        pair_q: float32 [L, N, C], its q-value: the larger of the one over all pairs and the one over pairs of the class.
        class_p: float64 [C], p-value of the class-level test; NaN for a class that cannot be tested.
        neuron_p, neuron_q: float64 [L, N], the same of "its AAPE is lower"; NaN where it never varies over those clips.
        discoveries: pairs whose q over all pairs is below the level.
        null_discoveries: int64 [P], the same count for each permutation, tested against all other labellings.
        task_p: the share of labellings with as many discoveries (1 if there are none).
        drawn: what each permutation selected.
        units: what was permuted.

    What permuted labels select is known only for AAPE. Where another criterion chose the neurons, `drawn` is None and
    per_class, coverage, classes_per_neuron and mean_aape are NaN.
    """

    per_class: np.ndarray
    coverage: np.ndarray
    classes_per_neuron: np.ndarray
    mean_aape: np.ndarray
    pair_p: np.ndarray
    pair_q: np.ndarray
    class_p: np.ndarray
    neuron_p: np.ndarray
    neuron_q: np.ndarray
    discoveries: int
    null_discoveries: np.ndarray
    task_p: float
    drawn: PermutedSelections | None
    units: Units

    @property
    def permutations(self) -> int:
        """Number of permutations."""
        return len(self.null_discoveries)


def permutation_null(
    sums: UnitSums,
    rule: Rule,
    *,
    permutations: int = 1000,
    seed: int = 0,
    q: float = 0.05,
    progress: bool = True,
) -> Null:
    """Permute the labels, select again, and compare.

    Args:
        sums: of the clips.
        rule: thresholds of the selection.
        permutations: at least 20.
        seed: of the permutations.
        q: level of the false-discovery rate.
        progress: whether to show a bar.

    Raises:
        ValueError: fewer than 20 permutations, or a class without clips or tokens.
    """
    units = sums.units
    if permutations < LEAST_PERMUTATIONS:
        raise ValueError(
            f"permutations: expected at least {LEAST_PERMUTATIONS}, found {permutations}"
        )
    empty = np.flatnonzero(sums.class_tokens(units.label) == 0).tolist()
    if empty:
        raise ValueError(f"classes without a clip or token: indices {empty}; leave them out")
    statistic = PairStatistic(sums)
    evidence = ClassEvidence(
        sums, statistic, min(permutations, SCALE_PERMUTATIONS), seed + SCALE_SEED
    )
    labellings = _Labellings(
        sums, rule, statistic, evidence, 1 + permutations
    )  # the labels of the data come first
    every = itertools.chain([units.label], permuted_labels(units, permutations, seed))
    bar = tqdm(
        total=1 + permutations, desc="permutations", disable=None if progress else True, leave=False
    )
    done = 0
    with threadpool_limits(1), ThreadPoolExecutor(THREADS) as pool, bar:
        for batch, active in sums.by_class(every):
            if done == 0:
                cells = statistic.cell_of(active[0], sums.class_tokens(units.label))
            list(pool.map(labellings.analyse, itertools.count(done), batch, active))
            done += len(batch)
            bar.update(len(batch))

    p_of_cell, discoveries = pair_values(labellings.histograms, q)
    by_class = np.where(cells >= 0, p_of_cell[cells], np.nan)  # [classes, width]
    pair_p = np.moveaxis(by_class.reshape(-1, *sums.shape), 0, -1)
    below = labellings.below_uniform
    neuron_p = pooled_p(below[0], below[1:], statistic.sparsity).reshape(sums.shape)
    found = int(discoveries[0])
    per_class = labellings.per_class[1:]
    return Null(
        per_class=per_class,
        coverage=(per_class > 0).mean(axis=1),
        classes_per_neuron=labellings.classes_per_neuron[1:],
        mean_aape=labellings.mean_aape[1:],
        pair_p=pair_p.astype(np.float32),
        pair_q=_pair_q(pair_p).astype(np.float32),
        class_p=_class_p(labellings.evidence, units.tested),
        neuron_p=neuron_p,
        neuron_q=benjamini_hochberg(neuron_p),
        discoveries=found,
        null_discoveries=discoveries[1:],
        task_p=one_sided_p(-found, -discoveries[1:]) if found else 1.0,
        drawn=labellings.permuted_selections(seed),
        units=units,
    )


class ClassEvidence:
    """How remarkable the most extreme pairs of a class are: the statistic of the class-level test.

    Some permutations of their own say how often chance gives a z at least as large in each bin of alike pairs. The rarity of
    a pair is -log2 of that share, rounded down to halves and counted in halves. A class with n pairs of share s or less has
    n / s times what one pair in one trial would give; its evidence is the largest n / s over all s. (The number of pairs
    divided by it is the class's smallest Benjamini-Hochberg q.) The scale does not depend on the labels of the data, so that
    the evidence of every labelling is the same function of the clips that have the class's label.
    """

    def __init__(self, sums: UnitSums, statistic: PairStatistic, permutations: int, seed: int):
        pairs = np.zeros(statistic.cells, dtype=np.int64)
        for batch, active in sums.by_class(permuted_labels(sums.units, permutations, seed)):
            for labels, of_labelling in zip(batch, active, strict=True):
                for cells in statistic.blocks(of_labelling, sums.class_tokens(labels)):
                    pairs += statistic.count(cells)
        as_large = at_least(pairs)
        share = (1 + as_large) / (1 + as_large[:, :1])
        halves = np.floor(-2 * np.log2(share)).astype(np.uint8).reshape(-1)
        self.rarity = np.append(
            halves, np.uint8(0)
        )  # by cell; the last one is for NOT_TESTED, which is -1
        self.levels = int(self.rarity.max()) + 1

    def count(self, cells: np.ndarray) -> np.ndarray:
        """Rare pairs of each class and rarity, int64 [classes, levels], from cells [classes, neurons]."""
        rarity = self.rarity[cells]
        class_index, neuron = np.nonzero(rarity >= LEAST_RARITY)
        index = class_index * self.levels + rarity[class_index, neuron]
        pairs = np.bincount(index, minlength=len(cells) * self.levels)
        return pairs.reshape(len(cells), self.levels)

    def largest(self, pairs: np.ndarray) -> np.ndarray:
        """The evidence, float64 [classes], from the pairs of each class and rarity."""
        as_rare = np.cumsum(pairs[:, ::-1], axis=1)[:, ::-1]
        one_over_share = 2.0 ** (np.arange(self.levels) / 2)
        return (as_rare * one_over_share).max(axis=1)


def _pair_q(p: np.ndarray) -> np.ndarray:
    """The larger of q over all pairs and q over the pairs of the class, from p [layers, neurons, classes]."""
    by_class = [benjamini_hochberg(p[:, :, c]) for c in range(p.shape[2])]
    return np.maximum(benjamini_hochberg(p), np.stack(by_class, axis=2))


def _class_p(evidence: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """p-value of every tested class, from the evidence [labellings, classes], that of the data first."""
    p = np.full(len(tested), np.nan)
    for c in np.flatnonzero(tested):
        p[c] = one_sided_p(-evidence[0, c], -evidence[1:, c])
    return p


class _Labellings:
    """What is kept of every labelling, one row each; see `Null` for what the arrays mean."""

    def __init__(
        self,
        sums: UnitSums,
        rule: Rule,
        statistic: PairStatistic,
        class_evidence: ClassEvidence,
        total: int,
    ):
        classes = sums.units.n_classes
        most = round(rule.rate * sums.width)
        self.sums = sums
        self.rule = rule
        self.statistic = statistic
        self.class_evidence = class_evidence
        self.below_uniform = np.empty((total, sums.width), dtype=np.float32)  # ln(classes) - AAPE
        self.histograms = np.zeros((total, statistic.cells), dtype=np.uint32)
        self.evidence = np.zeros((total, classes))
        self.per_class = np.zeros((total, classes), dtype=np.int64)
        self.classes_per_neuron = np.full(total, np.nan)
        self.mean_aape = np.full(total, np.nan)
        self.neurons = np.full((total, most), -1, dtype=np.int32)
        self.members = np.zeros((total, classes, most), dtype=bool)

    def analyse(self, row: int, labels: np.ndarray, active: np.ndarray) -> None:
        """One labelling: its pairs, its classes, and its selection. `active` [classes, width] is overwritten."""
        tokens = self.sums.class_tokens(labels)
        rarities = np.zeros((len(active), self.class_evidence.levels), dtype=np.int64)
        for cells in self.statistic.blocks(active, tokens):
            self.histograms[row] += self.statistic.count(cells).astype(np.uint32)
            rarities += self.class_evidence.count(cells)
        self.evidence[row] = self.class_evidence.largest(rarities)
        rates = np.divide(active, tokens.astype(np.float32)[:, None], out=active)
        below = below_uniform(rates)
        self.below_uniform[row] = below
        kept, threshold, _ = choose(rates, -below, self.rule)
        members = rates[:, kept] > threshold  # [classes, k]
        self.neurons[row, : len(kept)] = kept
        self.members[row, :, : len(kept)] = members
        self.per_class[row] = members.sum(axis=1)
        if len(kept):
            self.classes_per_neuron[row] = members.sum() / len(kept)
            self.mean_aape[row] = np.log(len(rates)) - below[kept].mean(dtype=np.float64)

    def permuted_selections(self, seed: int) -> PermutedSelections:
        """The selections of all labellings except the first."""
        units = self.sums.units
        moved = hashlib.sha256()
        for array in (np.array(seed), units.clips, units.of_clip, units.stratum):
            moved.update(array.tobytes())
        moved_id = np.frombuffer(moved.digest()[:8], np.uint64)[0]
        return PermutedSelections(self.neurons[1:], self.members[1:], units.clips, moved_id)


def below_uniform(rates: np.ndarray) -> np.ndarray:
    """ln(classes) - AAPE, float32 [width], from activation rates [classes, width] in float32.

    It is the mean over classes of r ln r - (r - 1), where r = rate / mean rate: the same number as from the entropies, but
    a sum of small terms. float32 then tells neurons apart that are active for nearly all classes alike, where the
    entropies themselves round to ln(classes). -inf where a neuron is never active.
    """
    out = np.empty(rates.shape[1], dtype=np.float32)
    for start in range(0, len(out), BLOCK):  # temporaries stay near the processor
        block = rates[:, start : start + BLOCK]
        mean = block.mean(axis=0)
        r = block / np.where(mean > 0, mean, 1)
        terms = np.log(np.maximum(r, np.finfo(np.float32).tiny))
        terms *= r
        terms -= r - 1
        out[start : start + BLOCK] = np.where(mean > 0, terms.mean(axis=0), -np.inf)
    return out


def pair_values(histograms: np.ndarray, q: float) -> tuple[np.ndarray, np.ndarray]:
    """p of every cell for the labels of the data, and the Benjamini-Hochberg discoveries of every labelling.

    Each labelling is tested against all others, so that all are treated alike: its own pairs are subtracted from the pool.

    Args:
        histograms: uint32 [labellings, cells], pairs in each cell; row 0 has the labels of the data.
        q: level of the false-discovery rate.

    Returns:
        float64 [cells], int64 [labellings].
    """
    all_pairs = at_least(histograms.sum(axis=0, dtype=np.int64))
    tests = int(histograms[0].sum(dtype=np.int64))
    discoveries = np.zeros(len(histograms), dtype=np.int64)
    for row in reversed(
        range(len(histograms))
    ):  # the labels of the data come last, and their p stays
        pairs = histograms[row]
        others = all_pairs - at_least(pairs)  # [bins, Z_CELLS]
        p = ((1 + others) / (1 + others[:, :1])).reshape(-1)
        small = np.flatnonzero((p <= q) & (pairs > 0))  # only these can be discoveries
        order = small[np.argsort(p[small], kind="stable")]
        count = np.cumsum(pairs[order], dtype=np.int64)
        # the last cell of equal p has the full count; the largest count that passes is the same
        passes = p[order] * tests <= q * count
        discoveries[row] = count[passes].max(initial=0)
    return p, discoveries
