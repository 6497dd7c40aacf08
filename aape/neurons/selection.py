"""Which neurons are specific to which classes: the AAPE rank and the three-step selection.

    selection = select(artifacts, rate=0.01)            # or an array of probabilities [layers, neurons, classes]
    selection.coverage                                  # share of the classes that have a neuron
    selection.neurons("dog")                            # [k, 2] of (layer, neuron), strongest first

AAPE (Audio Activation Probability Entropy) and the selection follow Kawamura, Niizumi and Ono, "What Do Neurons
Listen To?", 2026, arXiv 2602.15307; the `lape` filter and the k-th smallest value as the percentile follow LAPE
(Tang et al., ACL 2024, doi 10.18653/v1/2024.acl-long.309).

Everything is NumPy in float64, whatever the device and the dtype of the input, so that the same probabilities give the
same selection everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import entr

from aape.artifacts.folder import Artifacts
from aape.display import Displayed

# Sums of the same terms in another order differ by some 1e-16. The rank is taken on the entropy rounded to this many
# decimals, so that neurons which tie on paper tie here too and go by layer and index.
RANK_DECIMALS = 12

# The `paper` filter's own share of weak neurons; the `quantile` of `select` is the class threshold.
PAPER_WEAK_SHARE = 0.05

WEAK_FILTERS = ("lape", "paper")


@dataclass(frozen=True)
class Rule:
    """The thresholds of the selection; see `select`. ValueError for a share outside (0, 1] or an unknown filter."""

    rate: float = 0.01
    quantile: float = 0.95
    weak_filter: str = "lape"

    def __post_init__(self) -> None:
        for name in ("rate", "quantile"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise ValueError(f"{name}: expected a share in (0, 1], found {share}")
        if self.weak_filter not in WEAK_FILTERS:
            raise ValueError(
                f"weak_filter: expected one of {', '.join(WEAK_FILTERS)}, found {self.weak_filter!r}"
            )


def checked_probabilities(probabilities: Any) -> np.ndarray:
    """The probabilities as float64 [layers, neurons, classes]; ValueError: another shape, NaN, or values outside [0, 1]."""
    if hasattr(probabilities, "detach"):  # a tensor; importing torch for this would take seconds
        probabilities = probabilities.detach().cpu().numpy()
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 3 or 0 in p.shape:
        raise ValueError(
            f"expected probabilities [layers, neurons, classes], none of them 0; found shape {p.shape}"
        )
    empty = np.flatnonzero(np.isnan(p).any(axis=(0, 1))).tolist()
    if empty:
        raise ValueError(
            f"probabilities are NaN for the class indices {empty}, which have no tokens: leave them out"
        )
    if p.min() < 0 or p.max() > 1:
        raise ValueError(
            f"expected probabilities in [0, 1], found {p.min():.6g} to {p.max():.6g} (counts? divide by tokens)"
        )
    return p


def entropy(probabilities: Any) -> np.ndarray:
    """AAPE of every neuron, in nats: H = -sum_c q_c ln q_c with q = p / sum_c p.

    Args:
        probabilities: [layers, neurons, classes], share of the tokens of a class with activation > 0; an array or a
            tensor on any device.

    Returns:
        float64 [layers, neurons], between 0 (active for one class only) and ln(classes); +inf where a neuron is never
        active. With one class every active neuron has 0.

    Raises:
        ValueError: another shape, NaN, values outside [0, 1].
    """
    p = checked_probabilities(probabilities)
    aape = np.empty(p.shape[:2])
    for layer in range(len(p)):  # layer by layer: the temporaries stay small for 1,251 classes
        total = p[layer].sum(axis=-1, keepdims=True)  # [neurons, 1]
        q = np.divide(p[layer], total, out=np.zeros_like(p[layer]), where=total > 0)
        aape[layer] = np.where(total[:, 0] > 0, entr(q).sum(axis=-1), np.inf)
    return aape


def kth_smallest(values: np.ndarray, quantile: float) -> float:
    """LAPE's percentile: the k-th smallest of all values with k = round(quantile * size), at least 1."""
    flat = values.ravel(order="K")
    k = min(max(round(quantile * flat.size), 1), flat.size)
    return float(np.partition(flat, k - 1)[k - 1])


def class_threshold(p: np.ndarray, quantile: float) -> float:
    """The percentile of all p, or of all p below 1 where the percentile itself is 1.

    If 5 % or more of all p are 1 (short clips, random weights, neurons that are always active), nothing exceeds the 95th
    percentile, and nothing would be class-specific. The percentile of the other values then keeps the meaning of the
    threshold: a p of 1 exceeds it, and so does a p that is high among those that can tell classes apart. Neurons that are
    always active exceed it too, but have the highest AAPE and come last.
    """
    threshold = kth_smallest(p, quantile)
    saturated = threshold == 1 and quantile < 1 and p.max() == 1
    if not saturated:
        return threshold
    below_one = p[p < 1]
    return kth_smallest(below_one, quantile) if below_one.size else threshold


def choose(p: np.ndarray, rank: np.ndarray, rule: Rule) -> tuple[np.ndarray, float, float]:
    """The three steps of the selection, for the labels of the data (`select`) and for permuted ones (`aape.neurons.null`).

    Args:
        p: [classes, neurons], of any float dtype.
        rank: AAPE, or any number that rises with it, [neurons]. The lowest are kept, ties by index; +inf never is.
        rule: the thresholds.

    Returns:
        The neurons kept, int64 [k], lowest rank first; the class threshold; the weak-response threshold.
    """
    largest = p.max(axis=0)
    threshold = class_threshold(p, rule.quantile)
    weak = threshold
    if rule.weak_filter == "paper":
        weak = kth_smallest(largest, PAPER_WEAK_SHARE)
        if (
            round(PAPER_WEAK_SHARE * largest.size) == 0
        ):  # 5 % of very few neurons is none: nothing is dropped
            weak = -np.inf
    eligible = np.flatnonzero((largest > weak) & np.isfinite(rank))
    kept = eligible[np.argsort(rank[eligible], kind="stable")]
    return kept[: round(rule.rate * largest.size)], threshold, weak


def outside_class(p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Activation rate over all tokens of the other classes, shaped as p; NaN where there are none.

    Args:
        p: activation rate in each class, [..., classes].
        tokens: of each class, [classes].
    """
    rest = tokens.sum() - tokens
    total = (p * tokens).sum(axis=-1, keepdims=True)
    return np.divide(total - p * tokens, rest, out=np.full_like(p, np.nan), where=rest > 0)


def jaccard_index(shared: Any, either: Any, empty: float = 0.0) -> np.ndarray:
    """Jaccard index from the number of neurons in both sets and in either; `empty` where both sets are empty."""
    shared = np.asarray(shared, dtype=np.float64)
    either = np.asarray(either)
    return np.divide(shared, either, out=np.full(shared.shape, empty), where=either > 0)


@dataclass(frozen=True, eq=False, repr=False)
class Selection(Displayed):
    """Class-specific neurons and what they were selected by.

    Attributes:
        members: bool [layers, neurons, classes], whether the neuron is specific to the class.
        selected: bool [layers, neurons], the neurons that the AAPE rank kept. With the `paper` filter some of them may
            be specific to no class.
        entropy: float64 [layers, neurons], AAPE in nats, +inf where a neuron is never active.
        probabilities: float64 [layers, neurons, classes].
        outside: float64 [layers, neurons, classes], p over the tokens of all other classes. Where the tokens of the
            classes are not known (an array was given to `select`) every class counts the same.
        threshold: a selected neuron is specific to the classes with p > threshold.
        weak_threshold: the weak-response filter keeps neurons whose largest p is > weak_threshold.
        saturated: share of all p that are 1. Where the percentile itself is 1, `threshold` is that of the other p.
        rule: the thresholds as given to `select`.
        scores: float64 [layers, neurons, classes] that the neurons were ranked by; None: by AAPE.
        classes: names.
    """

    members: np.ndarray
    selected: np.ndarray
    entropy: np.ndarray
    probabilities: np.ndarray
    outside: np.ndarray
    threshold: float
    weak_threshold: float
    saturated: float
    rule: Rule
    scores: np.ndarray | None
    classes: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """Share of the classes with at least one class-specific neuron."""
        return float(self.members.any(axis=(0, 1)).mean())

    @property
    def per_class(self) -> pd.Series:
        """Number of class-specific neurons, int64, by class name."""
        return pd.Series(
            self.members.sum(axis=(0, 1)),
            index=pd.Index(self.classes, name="class"),
            name="neurons",
        )

    def class_index(self, name: str | int) -> int:
        """Index of a class given by name or by index. ValueError: there is none."""
        if name in self.classes:
            return self.classes.index(name)  # type: ignore[arg-type]
        if isinstance(name, str) or not 0 <= name < len(self.classes):
            raise ValueError(
                f"no class {name!r}; the classes are {', '.join(self.classes)}, counted from 0"
            )
        return int(name)

    def neurons(self, name: str | int) -> np.ndarray:
        """int64 [k, 2] of (layer, neuron) specific to a class given by name or index, strongest first; k may be 0.

        Strongest first: by p in the class minus p outside it, then by layer and neuron.
        """
        return self.shared([name])

    def shared(self, classes: Sequence[str | int], exclusive: bool = False) -> np.ndarray:
        """int64 [k, 2] of the neurons specific to each of these classes, and possibly to others.

        Args:
            classes: names or indices.
            exclusive: only neurons specific to exactly these classes.

        Returns:
            Strongest first: by p in these classes minus p outside each, on average; then by layer and neuron.

        Raises:
            ValueError: an empty list, or an unknown class.
        """
        if isinstance(classes, str) or not len(classes):
            raise ValueError(f"expected a list of classes, at least one, found {classes!r}")
        index = sorted({self.class_index(name) for name in classes})
        chosen = self.members[:, :, index].all(axis=2)
        if exclusive:
            chosen &= self.members.sum(axis=2) == len(index)
        neurons = np.argwhere(chosen).astype(np.int64).reshape(-1, 2)
        difference = (self.probabilities - self.outside)[chosen][:, index].mean(axis=1)
        return neurons[np.argsort(-np.nan_to_num(difference), kind="stable")]

    def table(self) -> pd.DataFrame:
        """A row per class-specific (neuron, class): layer, neuron, class, rate, rate_outside, aape, remark.

        rate is the activation probability p in the class, rate_outside that in all other classes. Strongest first: by
        rate - rate_outside, then by layer, neuron and class. The remark says where a neuron is less active in "its"
        class than outside, because the selection only asks for p above a threshold. Classes without a
        neuron have no row here; `per_class` has them with 0.
        """
        layer, neuron, index = np.nonzero(self.members)
        p, outside = self.probabilities[self.members], self.outside[self.members]
        table = pd.DataFrame(
            {
                "layer": layer,
                "neuron": neuron,
                "class": np.asarray(self.classes, dtype=object)[index],
            }
        )
        table = table.assign(rate=p, rate_outside=outside, aape=self.entropy[layer, neuron])
        table["remark"] = np.where(p < outside, "less active than outside the class", "")
        return table.iloc[np.argsort(-np.nan_to_num(p - outside), kind="stable")].reset_index(
            drop=True
        )

    def _facts(self) -> dict[str, str]:
        what = "p" if self.scores is None else "score"
        most = self.per_class.sort_values(ascending=False, kind="stable").head(3)
        facts = {
            "neurons": f"{self.selected.sum():,} of {self.selected.size:,} (rate {self.rule.rate:g}, {self.rule.weak_filter} filter)",
            "specific": f"where {what} > {self.threshold:.4g} (quantile {self.rule.quantile:g})",
            "coverage": f"{self.coverage:.0%} of {len(self.classes)} classes",
            "most neurons": ", ".join(f"{name} {number}" for name, number in most.items()),
        }
        if self.saturated >= 1 - self.rule.quantile:
            facts["saturated"] = (
                f"{self.saturated:.1%} of all p are 1; the threshold is the percentile of the others"
            )
        return facts


def select(
    probabilities: Any,
    *,
    rate: float = 0.01,
    quantile: float = 0.95,
    weak_filter: str = "lape",
    scores: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
) -> Selection:
    """Select class-specific neurons: weak-response filter, lowest AAPE, class threshold.

    Args:
        probabilities: [layers, neurons, classes], an array or a tensor; or `Artifacts`, for all its clips and with the
            names of its classes.
        rate: the round(rate * layers * neurons) neurons of lowest AAPE are kept, fewer if fewer pass the filter. Ties
            are broken by layer, then by neuron.
        quantile: a kept neuron is specific to each class with p above the k-th smallest of all p,
            k = round(quantile * size), strictly.
        weak_filter: "lape" keeps neurons with some p above that same value; "paper" drops the 5 % of neurons whose
            largest p is lowest (ties with the 5 % point are dropped too), as readers of the paper report it.
        scores: another criterion's scores [layers, neurons, classes], as `aape.rank` gives them; larger = more specific.
            The same three steps are then taken with the score in place of p, and the neuron's largest score in place of
            its AAPE.
        classes: names for the result. By default those of the artifacts, else indices as text.

    Results at the edges: with one class every AAPE is 0, and the rank by layer and index means nothing. Where all p are
    equal, nothing is above the percentile and nothing is specific. Neurons that are never active are never selected.
    Where the percentile is 1, the threshold is the percentile of the p below 1 (`class_threshold`).

    Raises:
        ValueError: bad probabilities, rate or quantile outside (0, 1], an unknown filter, names that do not fit.

    Warns:
        UserWarning: the percentile of the probabilities is 1.
    """
    rule = Rule(rate, quantile, weak_filter)
    tokens = None
    if isinstance(probabilities, Artifacts):
        artifacts = probabilities
        classes = artifacts.classes if classes is None else classes
        probabilities = artifacts.over_zero
        if artifacts.has_counts:
            probabilities = artifacts.probabilities()
        if artifacts.manifest:
            tokens = np.bincount(
                artifacts.labels, weights=artifacts.tokens, minlength=len(artifacts.classes)
            )
    p = checked_probabilities(probabilities)
    n_classes = p.shape[2]
    names = tuple(map(str, range(n_classes) if classes is None else classes))
    if len(names) != n_classes or len(set(names)) != n_classes:
        raise ValueError(f"classes: expected {n_classes} different names, found {', '.join(names)}")
    aape = entropy(p)
    ranked_by = p
    rank = np.round(aape, RANK_DECIMALS)
    if scores is not None:
        ranked_by = np.asarray(scores, dtype=np.float64)
        if ranked_by.shape != p.shape or np.isnan(ranked_by).any():
            raise ValueError(f"scores: expected {p.shape} without NaN, found {ranked_by.shape}")
        rank = -ranked_by.max(axis=2)
    by_class = ranked_by.reshape(-1, n_classes).T  # [classes, layers * neurons]
    kept, threshold, weak = choose(by_class, rank.ravel(), rule)
    selected = np.isin(np.arange(rank.size), kept).reshape(rank.shape)
    if threshold < 1 <= kth_smallest(p, quantile) and scores is None:
        warnings.warn(
            f"{(p == 1).mean():.1%} of all activation probabilities are 1, so that nothing exceeds their percentile. The "
            f"threshold is the percentile of the others, {threshold:.4g}; compare such a selection with others with care.",
            stacklevel=2,
        )
    return Selection(
        members=selected[:, :, None] & (ranked_by > threshold),
        selected=selected,
        entropy=aape,
        probabilities=p,
        outside=outside_class(p, np.ones(n_classes) if tokens is None else tokens),
        threshold=threshold,
        weak_threshold=weak,
        saturated=float((p == 1).mean()),
        rule=rule,
        scores=None if scores is None else ranked_by,
        classes=names,
    )
