"""A selection compared with permuted labels: which class-specific neurons are more than chance.

    calibrated = calibrate(artifacts, select(artifacts))
    calibrated.members                                   # the pairs (neuron, class) that pass every test
    calibrated.null.coverage                             # what permuted labels give, [permutations]

A percentile selects something from any table, so the number of selected neurons, the coverage and the number of neurons
per class say little by themselves. Here labels are permuted, the whole selection is made again, and every number is
reported next to its own null. What is permuted (whole groups of clips, or clips within groups) is explained in
`aape.neurons.permuting`, how p-values are made in `aape.neurons.statistic`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.display import Displayed
from aape.neurons.null import Null, permutation_null
from aape.neurons.permuting import SIZE_RATIO, Counted, Units, UnitSums, exchangeable_units
from aape.neurons.pvalues import share_of_groups
from aape.neurons.selection import Selection, outside_class

__all__ = ["Calibrated", "Counted", "Null", "calibrate", "calibrate_counts", "counted_clips"]

COMPARED = 8  # neurons whose rates show whether a selection was made from these clips


@dataclass(frozen=True, eq=False, repr=False)
class Calibrated(Displayed):
    """A selection and the part of it that permuted labels do not explain.

    Attributes:
        selection: with `outside` from the clips of the null.
        members: bool [layers, neurons, classes], the selected pairs with q below the level, a difference of activation
            rates of at least `effect`, in a task whose number of discoveries is significant (task_p).
        null: the permutations.
        effect: smallest difference between the activation rate in the class and outside it.
        q: level of the false-discovery rate and of the task-level test.
        clips: number of clips the null was computed from.
        group_share: float64 [layers, neurons], share of the variance within classes that lies between groups (speakers,
            recordings) of a class (`aape.neurons.pvalues.share_of_groups`); NaN for neurons specific to no class.
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
        difference = self.selection.probabilities - self.selection.outside
        significant = (self.null.pair_q < self.q) & (self.null.task_p <= self.q)  # NaN does not pass
        members = self.selection.members & significant & (difference >= effect)
        return replace(self, members=members, effect=effect)

    def table(self) -> pd.DataFrame:
        """The selection's table with q of the pair and of the neuron's AAPE, whether it is calibrated, and group_share."""
        table = self.selection.table()
        index = table.layer, table.neuron, pd.Index(self.selection.classes).get_indexer(table["class"])
        neurons = index[:2]
        remark = table.pop("remark")
        return table.assign(
            q=self.null.pair_q[index].astype(np.float64),
            q_neuron=self.null.neuron_q[neurons],
            calibrated=self.members[index],
            group_share=self.group_share[neurons],
            remark=remark,
        )

    def _facts(self) -> dict[str, str]:
        null, chosen = self.null, self.selection
        return {
            "class-specific pairs": f"{chosen.members.sum()}, of which {self.members.sum()} are calibrated",
            "coverage": f"{self.coverage:.0%} of {len(chosen.classes)} classes ({chosen.coverage:.0%} before)",
            "calibrated": f"q < {self.q:g}, difference of at least {self.effect:g}, task-level test",
            "null": f"{null.permutations} permutations; {null.units.description}",
            "discoveries": f"{null.discoveries} pairs of all; p of the task {null.task_p:.3g}",
        }


def counted_clips(artifacts: Artifacts, split: str | list[str] | None = None, padding: bool = True) -> Counted:
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
        q: level of the false-discovery rate over all (neuron, class) pairs of the task.
        effect: smallest difference between the activation rate in the class and outside it, in shares of tokens.
        progress: whether to show a bar.

    Warns:
        UserWarning: classes none of whose clips can exchange labels; none of their neurons is calibrated.
    """
    rates = selection.probabilities
    units = exchangeable_units(data.labels, data.groups, rates.shape[2], data.clips)
    sums = UnitSums(data, units)
    _warn_of_fixed_classes(units, selection.classes)
    null = permutation_null(sums, selection.rule, permutations=permutations, seed=seed, q=q, progress=progress)
    if selection.scores is not None:
        unknown = np.full(permutations, np.nan)
        per_class = np.full((permutations, rates.shape[2]), np.nan)
        null = replace(
            null, drawn=None, per_class=per_class, coverage=unknown, classes_per_neuron=unknown, mean_aape=unknown
        )
    outside = outside_class(rates, sums.class_tokens(units.label))
    calibrated = Calibrated(
        selection=replace(selection, outside=outside),
        members=selection.members,
        null=null,
        effect=effect,
        q=q,
        clips=len(data.labels),
        group_share=_group_share(data, np.any(selection.members, axis=2)),
    )
    return calibrated.with_effect(effect)


def _group_share(data: Counted, chosen: np.ndarray) -> np.ndarray:
    """`share_of_groups` of the chosen neurons, bool [layers, neurons]; NaN for the others."""
    share = np.full(chosen.shape, np.nan)
    rates = data.active(np.flatnonzero(chosen)) / np.maximum(data.tokens, 1)[:, None]
    share[chosen] = share_of_groups(rates, data.labels, data.groups)
    return share


def _warn_of_fixed_classes(units: Units, classes: tuple[str, ...]) -> None:
    fixed = [name for name, tested in zip(classes, units.tested, strict=True) if not tested]
    if not fixed:
        return
    named = ", ".join(fixed[:10])
    if len(fixed) > 10:
        named += f" and {len(fixed) - 10} more"
    warnings.warn(
        f"{len(fixed)} of {len(classes)} classes cannot be tested: {named}. Expected groups of about as many clips as "
        f"groups of another class have (at most {SIZE_RATIO:g} times as many), which can exchange labels; found none, so "
        "none of their neurons is calibrated and their sharing has no p.\n"
        "To test them, take groups of like size: cut long groups into parts that are independent, or leave clips out.",
        stacklevel=3,
    )
