"""Which neurons are specific to which classes: the AAPE rank and the three-step selection.

    selection = select(probabilities, rate=0.01)        # probabilities [layers, neurons, classes]
    selection.coverage                                  # share of the classes that have a neuron
    selection.neurons(0)                                # [k, 2] of (layer, neuron)

AAPE (Audio Activation Probability Entropy) and the selection follow Kawamura, Niizumi and Ono, "What Do
Neurons Listen To?", 2026, arXiv 2602.15307; the `lape` filter and the k-th smallest value as the percentile
follow LAPE (Tang et al., ACL 2024, doi 10.18653/v1/2024.acl-long.309).

Everything is computed in float64 on the CPU, whatever the device and the dtype of the input, so that the
same probabilities give the same selection everywhere; results go back to the kind and the device of the
input (a torch tensor in, torch tensors out; otherwise NumPy arrays).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import entr

# Sums of the same terms in another order differ by some 1e-16. The rank is taken on the entropy rounded to
# this many decimals, so that neurons which tie on paper tie here too and go by layer and index.
RANK_DECIMALS = 12

# The `paper` filter's own share of weak neurons; the `quantile` of `select` is the class threshold.
PAPER_WEAK_SHARE = 0.05

WEAK_FILTERS = ("lape", "paper")


def as_numpy(values: Any, dtype: Any = None) -> np.ndarray:
    """A NumPy array from an array, a tensor on any device, or nested lists."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=dtype)


def like(result: np.ndarray, example: Any) -> Any:
    """`result` as a tensor on the example's device if the example is a tensor, else unchanged."""
    if isinstance(example, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray(result)).to(example.device)
    return result


def checked_probabilities(probabilities: Any) -> np.ndarray:
    """float64 [layers, neurons, classes], or a ValueError that says what is wrong with it."""
    p = as_numpy(probabilities, np.float64)
    if p.ndim != 3 or 0 in p.shape:
        raise ValueError(f"expected probabilities [layers, neurons, classes], none of them 0; found shape {p.shape}")
    if np.isnan(p).any():
        empty = np.flatnonzero(np.isnan(p).any(axis=(0, 1))).tolist()
        raise ValueError(
            f"probabilities are NaN for the class indices {empty}: a class without tokens has no probability. "
            "Leave such classes out, or add clips of them."
        )
    low, high = p.min(), p.max()
    if low < 0 or high > 1:
        raise ValueError(f"expected probabilities in [0, 1], found {low:.6g} to {high:.6g} (counts? divide by tokens)")
    return p


def entropy(probabilities: Any) -> Any:
    """AAPE of every neuron, in nats: H = -sum_c q_c ln q_c with q = p / sum_c p.

    probabilities: [layers, neurons, classes], share of the tokens of a class with activation > 0.
    Returns float64 [layers, neurons], between 0 (active for one class only) and ln(classes); +inf where a
    neuron is never active. With one class every active neuron has 0.
    Raises ValueError for other shapes, NaN, and values outside [0, 1].
    """
    p = checked_probabilities(probabilities)
    return like(_aape(p), probabilities)


def _aape(p: np.ndarray) -> np.ndarray:
    entropy = np.empty(p.shape[:2])
    for layer in range(p.shape[0]):  # layer by layer: the temporaries stay small for 1,251 classes
        total = p[layer].sum(axis=-1, keepdims=True)  # [neurons, 1]
        active = total[:, 0] > 0
        q = np.divide(p[layer], total, out=np.zeros_like(p[layer]), where=total > 0)
        entropy[layer] = np.where(active, entr(q).sum(axis=-1), np.inf)
    return entropy


def kth_smallest(values: np.ndarray, quantile: float) -> float:
    """LAPE's percentile: the k-th smallest of all values with k = round(quantile * size), at least 1."""
    flat = values.reshape(-1)
    k = min(max(round(quantile * flat.size), 1), flat.size)
    return float(np.partition(flat, k - 1)[k - 1])


@dataclass(frozen=True)
class Selection:
    """Class-specific neurons and how they came about. Arrays are torch tensors if `select` was given one.

    members: bool [layers, neurons, classes], neuron is specific to class.
    selected: bool [layers, neurons], the neurons that the AAPE rank kept; with the `paper` filter some of
        them may be specific to no class.
    entropy: float64 [layers, neurons], AAPE in nats, +inf where never active.
    probabilities: as given to `select`.
    threshold: a selected neuron is specific to the classes with p > threshold.
    weak_threshold: the weak-response filter keeps neurons whose largest p is > weak_threshold.
    """

    members: Any
    selected: Any
    entropy: Any
    probabilities: Any
    threshold: float
    weak_threshold: float
    rate: float
    quantile: float
    weak_filter: str
    classes: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """Share of the classes with at least one class-specific neuron."""
        return float(as_numpy(self.members).any(axis=(0, 1)).mean())

    @property
    def per_class(self) -> np.ndarray:
        """int64 [classes], number of class-specific neurons."""
        return as_numpy(self.members).sum(axis=(0, 1))

    def class_index(self, name: str | int) -> int:
        """Index of a class given by name or by index. ValueError if there is none."""
        if isinstance(name, str):
            if name not in self.classes:
                raise ValueError(f"no class {name!r}; the classes are {', '.join(self.classes)}")
            return self.classes.index(name)
        index = int(name)
        if not 0 <= index < len(self.classes):
            raise ValueError(f"no class with index {index}; there are {len(self.classes)} classes, counted from 0")
        return index

    def neurons(self, name: str | int) -> Any:
        """int64 [k, 2] of (layer, neuron) specific to a class given by name or index; k may be 0."""
        index = self.class_index(name)
        found = np.argwhere(as_numpy(self.members)[:, :, index]).astype(np.int64).reshape(-1, 2)
        return like(found, self.members)

    def table(self) -> pd.DataFrame:
        """A row per class-specific (neuron, class): layer, neuron, class, p, aape; by layer, neuron, class.

        Classes without a neuron have no row here; `per_class` has them with 0.
        """
        members, p, entropy = as_numpy(self.members), as_numpy(self.probabilities), as_numpy(self.entropy)
        layer, neuron, index = np.nonzero(members)
        return pd.DataFrame(
            {
                "layer": layer,
                "neuron": neuron,
                "class": np.asarray(self.classes, dtype=object)[index],
                "p": p[layer, neuron, index].astype(np.float64),
                "aape": entropy[layer, neuron],
            }
        )


def select(
    probabilities: Any,
    *,
    rate: float = 0.01,
    quantile: float = 0.95,
    weak_filter: str = "lape",
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
) -> Selection:
    """Class-specific neurons by weak-response filter, lowest AAPE and class threshold.

    probabilities: [layers, neurons, classes].
    rate: the round(rate * layers * neurons) neurons of lowest AAPE are kept, fewer if fewer pass the filter.
        Ties go by layer, then by neuron.
    quantile: a kept neuron is specific to each class with p above the k-th smallest of all p,
        k = round(quantile * size), strictly.
    weak_filter: "lape" keeps neurons with some p above that same value; "paper" drops those whose largest p
        is not above the 5 % point of the neurons' largest p (ties with that point are dropped too).
    classes, layers: names for the result; indices as text if not given.

    Defined results at the edges: with one class every AAPE is 0 and the rank is by layer and index, so it
    means nothing; where all p are equal nothing is above the percentile and nothing is specific; neurons
    and layers that are never active are never selected.
    Raises ValueError for bad probabilities, rate or quantile outside (0, 1], an unknown filter, or names
    that do not fit.
    """
    p = checked_probabilities(probabilities)
    n_layers, n_neurons, n_classes = p.shape
    for name, value in (("rate", rate), ("quantile", quantile)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}: expected a share in (0, 1], found {value}")
    if weak_filter not in WEAK_FILTERS:
        raise ValueError(f"weak_filter: expected one of {', '.join(WEAK_FILTERS)}, found {weak_filter!r}")
    class_names = _names(classes, n_classes, "classes")
    layer_names = _names(layers, n_layers, "layers")

    entropy = _aape(p)
    threshold = kth_smallest(p, quantile)
    largest = p.max(axis=-1)  # [layers, neurons]
    weak_threshold = threshold if weak_filter == "lape" else _paper_weak_threshold(largest)
    eligible = (largest > weak_threshold) & np.isfinite(entropy)

    keep = round(rate * (n_layers * n_neurons))
    selected = _lowest(entropy, eligible, keep)
    members = selected[:, :, None] & (p > threshold)
    return Selection(
        members=like(members, probabilities),
        selected=like(selected, probabilities),
        entropy=like(entropy, probabilities),
        probabilities=probabilities if isinstance(probabilities, torch.Tensor) else p,
        threshold=threshold,
        weak_threshold=weak_threshold,
        rate=rate,
        quantile=quantile,
        weak_filter=weak_filter,
        classes=class_names,
        layers=layer_names,
    )


def _paper_weak_threshold(largest: np.ndarray) -> float:
    if round(PAPER_WEAK_SHARE * largest.size) == 0:
        return -1.0  # 5 % of so few neurons is none: nothing is dropped
    return kth_smallest(largest, PAPER_WEAK_SHARE)


def _lowest(entropy: np.ndarray, eligible: np.ndarray, keep: int) -> np.ndarray:
    """bool [layers, neurons]: the `keep` eligible neurons of lowest entropy, ties by layer and neuron."""
    rank = np.where(eligible, np.round(entropy, RANK_DECIMALS), np.inf).reshape(-1)
    keep = min(keep, int(eligible.sum()))
    chosen = np.zeros(rank.size, dtype=bool)
    chosen[np.argsort(rank, kind="stable")[:keep]] = True
    return chosen.reshape(entropy.shape)


def _names(names: Sequence[str] | None, size: int, what: str) -> tuple[str, ...]:
    if names is None:
        return tuple(str(i) for i in range(size))
    if len(names) != size:
        raise ValueError(f"{what}: expected {size} names, found {len(names)}")
    if len(set(names)) != size:
        raise ValueError(f"{what}: names are not unique: {', '.join(map(str, names))}")
    return tuple(str(name) for name in names)
