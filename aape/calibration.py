"""Calibrated selection: the class-specific neurons that chance does not give.

    selection = select(artifacts.probabilities(), rate=0.01, classes=artifacts.classes)
    calibrated = calibrate(artifacts, selection)
    calibrated.coverage, selection.coverage

With thousands of clips almost every neuron differs between classes, so being different is no criterion; and
the percentiles always select something, from shuffled labels too. A class-specific pair (neuron, class) of
the selection is kept here if all of these hold:
- the neuron's activation in the class exceeds what permuted labels give, q < 0.05 (`aape.statistics`);
- p in the class is larger than p outside it by at least a stated effect;
- the task as a whole has more such pairs than its own permuted labellings do: at most 5 % of them find as
  many. Neurons go up and down together, so that one odd permutation can bring thousands of pairs; this last
  gate bounds the chance of any discovery where labels mean nothing, whatever the dependence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from aape.artifacts import Artifacts
from aape.entropy import Selection, as_numpy
from aape.statistics import Null, Units, exchangeable_units, permutation_null

MAX_BYTES = 2 << 30  # of a null's tables; tasks beyond it are tested on a seeded subset of their clips


@dataclass(frozen=True)
class Calibrated:
    """A selection and what of it survives chance. L layers, N neurons, C classes.

    members: bool [L, N, C], the pairs that pass all gates. outside: float64 [L, N, C], p outside the class.
    null: the permutations. clips: number of clips the null was computed from.
    """

    selection: Selection
    members: np.ndarray
    outside: np.ndarray
    null: Null
    effect: float
    q: float
    clips: int

    @property
    def coverage(self) -> float:
        """Share of the classes with at least one neuron that survives."""
        return float(self.members.any(axis=(0, 1)).mean())

    @property
    def per_class(self) -> np.ndarray:
        """int64 [classes], number of neurons that survive."""
        return self.members.sum(axis=(0, 1))

    def table(self) -> pd.DataFrame:
        """The selection's table with p outside the class, q of the pair and of the neuron, and the verdict."""
        table = self.selection.table()
        index = np.nonzero(as_numpy(self.selection.members))
        table.insert(4, "p_outside", self.outside[index])
        table["q"] = self.null.pair_q[index].astype(np.float64)
        table["q_neuron"] = self.null.neuron_q[index[:2]]
        table["calibrated"] = self.members[index]
        return table


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
    if as_numpy(selection.members).shape != tuple(artifacts.over_zero.shape):
        raise ValueError(
            f"the selection is of {as_numpy(selection.members).shape} layers, neurons and classes, {artifacts.path} "
            f"of {tuple(artifacts.over_zero.shape)}: make it from these artifacts"
        )
    if selection.classes not in (artifacts.classes, tuple(map(str, range(len(artifacts.classes))))):
        raise ValueError(f"the selection's classes are not those of {artifacts.path}, or in another order")
    data = counted_clips(artifacts, split)
    return calibrate_counts(
        data,
        selection,
        permutations=permutations,
        seed=seed,
        q=q,
        effect=effect,
        threads=threads,
        progress=progress,
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
    p = as_numpy(selection.probabilities, np.float64)
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
    rest = tokens.sum() - tokens
    total = (p * tokens).sum(axis=2, keepdims=True)
    outside = np.divide(total - p * tokens, rest, out=np.full_like(p, np.nan), where=rest > 0)
    passed = np.nan_to_num(null.pair_q, nan=1.0) < q
    passed &= np.nan_to_num(p - outside, nan=-1.0) >= effect
    passed &= null.task_p <= q
    return Calibrated(
        selection, as_numpy(selection.members) & passed, outside, null, effect, q, len(data.labels)
    )


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
