"""A selection compared with permuted labels: which class-specific neurons are more than chance.

    calibrated = calibrate(artifacts, select(artifacts))
    calibrated.members                                   # the selected pairs (neuron, class) that pass both gates
    calibrated.all_pairs()                               # every pair that passes them, selected by AAPE or not
    calibrated.null.coverage                             # what permuted labels give, [permutations]

A percentile selects something from any table, so the number of selected neurons, the coverage and the number of neurons
per class say little by themselves. Here labels are permuted, the whole selection is made again, and every number is
reported next to its own null. Two gates are kept apart:

- *significant*: q < 0.05, in a class and a task that pass their own tests (`aape.neurons.null`). Labels explain the
  neuron better than chance does. The difference can be tiny: with enough clips an untrained encoder has as many
  significant pairs as a trained one.
- *large*: a difference of at least 0.1 between the activation rate in the class and outside it. The tables also give it in
  standard deviations between clips (d').

A *calibrated* pair is selected, significant and large. AAPE and its percentile select few neurons; so few calibrated
neurons do not mean few significant and large ones, which `all_pairs` lists.
What is permuted is explained in `aape.neurons.permuting`, how p-values are made in `aape.neurons.statistic`.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.display import Displayed
from aape.neurons.effect_size import d_prime
from aape.neurons.null import Null, permutation_null
from aape.neurons.permuting import (
    CELL_RATIO,
    GROUP_RATIO,
    Counted,
    Units,
    UnitSums,
    exchangeable_units,
)
from aape.neurons.pvalues import share_of_groups
from aape.neurons.selection import Selection, outside_class

__all__ = ["Calibrated", "Counted", "Null", "calibrate", "calibrate_counts", "counted_clips"]

COMPARED = 8  # neurons whose rates show whether a selection was made from these clips


@dataclass(frozen=True, eq=False, repr=False)
class Calibrated(Displayed):
    """A selection and the part of it that passes both gates.

    Attributes:
        selection: with `outside` from the clips of the null.
        null: the permutations.
        effect: smallest difference of activation rates that counts as large.
        q: level of the false-discovery rate, and of the tests of classes and of the task.
        data: the clips of the null.
        group_share: float64 [layers, neurons], share of the variance within classes that lies between groups (speakers,
            recordings) of a class (`aape.neurons.pvalues.share_of_groups`); NaN for neurons specific to no class.
    """

    selection: Selection
    null: Null
    effect: float
    q: float
    data: Counted
    group_share: np.ndarray

    @property
    def significant(self) -> np.ndarray:
        """bool [layers, neurons, classes]: q of the pair, p of its class and p of the task pass the level."""
        null = self.null
        return (
            (null.pair_q < self.q) & (null.class_p <= self.q) & (null.task_p <= self.q)
        )  # NaN does not pass

    @property
    def large(self) -> np.ndarray:
        """bool [layers, neurons, classes]: the rate in the class is at least `effect` above the rate outside it."""
        return self.selection.probabilities - self.selection.outside >= self.effect

    @functools.cached_property
    def members(self) -> np.ndarray:
        """bool [layers, neurons, classes]: the calibrated pairs, which are selected, significant and large."""
        return self.selection.members & self.significant & self.large

    @property
    def clips(self) -> int:
        """Number of clips that the null was computed from."""
        return len(self.data.labels)

    @property
    def survivors(self) -> Selection:
        """The selection of the calibrated pairs only."""
        return replace(self.selection, members=self.members, selected=np.any(self.members, axis=2))

    @property
    def coverage(self) -> float:
        """Share of the classes with at least one calibrated neuron."""
        return self.survivors.coverage

    @property
    def per_class(self) -> pd.Series:
        """Number of calibrated neurons, int64, by class name."""
        return self.survivors.per_class.rename("calibrated")

    def with_effect(self, effect: float) -> Calibrated:
        """The same null and level with another smallest difference."""
        return replace(self, effect=effect)

    def table(self) -> pd.DataFrame:
        """The selection's table with both gates.

        Further columns: d_prime, the difference in standard deviations between clips; p_value and q_value of the pair;
        aape_q_value of the neuron's AAPE; significant; large; calibrated (both); group_share.
        """
        table = self.selection.table()
        pairs = self._index_of(table)
        neurons = pairs[:2]
        remark = table.pop("remark")
        return table.assign(
            **self._tests_of(pairs),
            aape_q_value=self.null.neuron_q[neurons],
            significant=self.significant[pairs],
            large=self.large[pairs],
            calibrated=self.members[pairs],
            group_share=self.group_share[neurons],
            remark=remark,
        )

    def all_pairs(self) -> pd.DataFrame:
        """Every pair that is significant and large, whether or not AAPE selected it; the largest difference first.

        Columns: layer, neuron, class, rate, rate_outside, difference, d_prime, p_value, q_value, selected.
        """
        pairs = np.nonzero(self.significant & self.large)
        layer, neuron, class_index = pairs
        rate = self.selection.probabilities[pairs]
        outside = self.selection.outside[pairs]
        table = pd.DataFrame(
            {
                "layer": layer,
                "neuron": neuron,
                "class": np.asarray(self.selection.classes, dtype=object)[class_index],
                "rate": rate,
                "rate_outside": outside,
                "difference": rate - outside,
                **self._tests_of(pairs),
                "selected": self.selection.members[pairs],
            }
        )
        return table.sort_values("difference", ascending=False, kind="stable", ignore_index=True)

    def _index_of(self, table: pd.DataFrame) -> tuple[np.ndarray, ...]:
        """Layer, neuron and class index of every row."""
        classes = pd.Index(self.selection.classes).get_indexer(table["class"])
        return table["layer"].to_numpy(), table["neuron"].to_numpy(), classes

    def _tests_of(self, pairs: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        """d', p and q of some pairs (layers, neurons, classes)."""
        layer, neuron, class_index = pairs
        flat = layer * self.selection.members.shape[1] + neuron
        neurons, place = np.unique(flat, return_inverse=True)
        rates = self.data.rates(neurons)
        members = self.data.labels == np.arange(len(self.selection.classes))[:, None]
        return {
            "d_prime": d_prime(rates, members.astype(np.float64))[class_index, place],
            "p_value": self.null.pair_p[pairs].astype(np.float64),
            "q_value": self.null.pair_q[pairs].astype(np.float64),
        }

    def _facts(self) -> dict[str, str]:
        null, chosen = self.null, self.selection
        both = self.significant & self.large
        return {
            "class-specific pairs": f"{chosen.members.sum()}; {self.members.sum()} of them are calibrated",
            "calibrated": f"q < {self.q:g} with class-level and task-level test, and a difference of at least "
            f"{self.effect:g} in activation rate",
            "coverage": f"{self.coverage:.0%} of {len(chosen.classes)} classes ({chosen.coverage:.0%} before)",
            "of all pairs": f"{self.significant.sum()} significant, {both.sum()} of them large",
            "classes": f"{(null.class_p <= self.q).sum()} pass the class-level test, {np.isnan(null.class_p).sum()} are "
            "not tested",
            "null": f"{null.permutations} permutations; {null.units.description}; p of the task {null.task_p:.3g}",
        }


def counted_clips(
    artifacts: Artifacts, split: str | list[str] | None = None, padding: bool = True
) -> Counted:
    """The clips of a split (None: all clips) with their counts, including tokens of zero padding or without them.

    The counts of a split are copied into memory; those of all clips stay on disk.

    Raises:
        ValueError: the artifacts have no counts per clip, or no such split.
    """
    clips = slice(None) if split is None else artifacts.rows(split)
    tokens = artifacts.tokens[clips]
    without = None
    if not padding:
        tokens = tokens - artifacts.padding_tokens[clips]
        if artifacts.padding_counts is not None:
            without = artifacts.padding_counts[clips]
    hashes = np.asarray(artifacts.manifest["clips"]["sha256"])[clips]
    return Counted(
        counts=artifacts.counts[clips],
        labels=artifacts.labels[clips],
        tokens=tokens,
        groups=artifacts.groups[clips],
        without=without,
        clips=np.array([int(digest[:16], 16) for digest in hashes], np.uint64),
    )


def calibrate(
    artifacts: Artifacts, selection: Selection, *, split: str | list[str] | None = None, **how: Any
) -> Calibrated:
    """Compare a selection with the selections that permuted labels give.

    A selection by another criterion than AAPE is calibrated pair by pair; what permuted labels select is then not known.

    Args:
        artifacts: with counts per clip.
        selection: made from these artifacts, of the same `split`. Its rate, quantile and filter are repeated on every
            permutation, and where its probabilities leave out zero padding the null does too.
        split: the selection's.
        **how: permutations, seed, q, effect, progress: see `calibrate_counts`.

    Raises:
        ValueError: the selection is not of these artifacts, or they have no counts per clip.
    """
    counted = artifacts.manifest["padding"] == "counted"
    for padding in (True, False) if counted else (True,):
        data = counted_clips(artifacts, split, padding)
        if _made_from(selection, data):
            return calibrate_counts(data, selection, **how)
    raise ValueError(
        f"the selection's probabilities are not those of {artifacts.path} (split={split}), with or without padding: "
        "make it from these artifacts, of the same split"
    )


def _made_from(selection: Selection, data: Counted) -> bool:
    """Whether the activation rates of a few neurons, selected ones first, are those of these clips."""
    shape = selection.probabilities.shape
    if shape[:2] != data.counts.shape[1:] or data.labels.max() >= shape[2]:
        return False
    rates = selection.probabilities.reshape(-1, shape[2])
    strength = rates.max(axis=1) + selection.selected.reshape(-1)
    neurons = np.argsort(-strength, kind="stable")[:COMPARED]
    membership = data.labels == np.arange(shape[2])[:, None]  # [classes, clips]
    active = membership @ data.active(neurons).astype(np.float64)
    tokens = membership @ data.tokens
    if not tokens.all():
        return False
    return np.allclose((active / tokens[:, None]).T, rates[neurons], rtol=0, atol=1e-6)


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
        permutations: how many, at least 20.
        seed: of the permutations. Use different seeds for different clips where `data.clips` is None.
        q: level of the false-discovery rate, over all pairs (neuron, class) of the task and over those of each class, and
            of the tests of classes and of the task.
        effect: smallest difference between the activation rate in the class and outside it, in shares of tokens.
        progress: whether to show a bar.

    Warns:
        UserWarning: classes that are too small to be tested, or whose clips cannot exchange labels. None of their neurons
            is significant.
    """
    rates = selection.probabilities
    units = exchangeable_units(data.labels, data.groups, rates.shape[2], data.clips, data.tokens)
    sums = UnitSums(data, units)
    _warn_of_untested_classes(units, selection.classes)
    null = permutation_null(
        sums, selection.rule, permutations=permutations, seed=seed, q=q, progress=progress
    )
    if selection.scores is not None:
        unknown = np.full(permutations, np.nan)
        per_class = np.full((permutations, rates.shape[2]), np.nan)
        null = replace(
            null,
            drawn=None,
            per_class=per_class,
            coverage=unknown,
            classes_per_neuron=unknown,
            mean_aape=unknown,
        )
    outside = outside_class(rates, sums.class_tokens(units.label))
    return Calibrated(
        selection=replace(selection, outside=outside),
        null=null,
        effect=effect,
        q=q,
        data=data,
        group_share=_group_share(data, np.any(selection.members, axis=2)),
    )


def _group_share(data: Counted, chosen: np.ndarray) -> np.ndarray:
    """`share_of_groups` of the chosen neurons, bool [layers, neurons]; NaN for the others."""
    share = np.full(chosen.shape, np.nan)
    rates = data.rates(np.flatnonzero(chosen))
    share[chosen] = share_of_groups(rates, data.labels, data.groups)
    return share


def _warn_of_untested_classes(units: Units, classes: tuple[str, ...]) -> None:
    untested = [name for name, tested in zip(classes, units.tested, strict=True) if not tested]
    if not untested:
        return
    named = ", ".join(untested[:10])
    if len(untested) > 10:
        named += f" and {len(untested) - 10} more"
    warnings.warn(
        f"{len(untested)} of {len(classes)} classes cannot be tested: {named}. None of their neurons is calibrated. "
        "Expected at least 20 different ways to give the labels of the class to groups of like size (tokens within a factor "
        f"of {GROUP_RATIO:g}; {CELL_RATIO:g} for cells of one group), found fewer.\n"
        "To test them, collect more groups, or take groups of like size: cut long groups into parts that are independent, or "
        "leave clips out.",
        stacklevel=3,
    )
