"""Rivals of AAPE: other ways to say which neurons belong to a class.

    rank(artifacts, "d_prime")                           # [layers, neurons, classes], larger = silence first
    select(artifacts, scores=rank(artifacts, "auroc"))
    rank(artifacts, lambda clips: clips.table(my_statistic))

A criterion is a function of `Clips` that gives one number per neuron and class. The criteria of this file:

    aape              lowest entropy over classes among the class-specific neurons (Kawamura et al. 2026; LAPE)
    p                 highest activation rate in the class
    p_difference      activation rate in the class minus the rate outside it
    mean_difference   the same for the mean activation, which also knows how strong the neuron is
    mean_margin       mean activation in the class minus the largest mean of another class
    d_prime           difference of the rates, in standard deviations between clips (Green and Swets 1966)
    auroc             probability that a clip of the class has a higher rate than another clip (Mann and Whitney 1947)
    probeless         summed distances of the class's mean activation to those of other classes (Antverg, Belinkov 2022)
    probe_weights     weight in a ridge classifier on all neurons (Dalvi et al. 2019; alpha by leave-one-out)
    attribution_zero  how far ln p of the class would fall if the neuron were silenced (`aape.causal.attribution`)
    attribution_mean  the same if it were replaced by its mean
    random            a baseline

Zhao, Schuller and Sisman (2026, arXiv 2601.03115) compare LAPE with a selector by magnitude, MAD (mean activation
difference), and one by contrast, CAS (contrastive activation selection), in audio language models. Their formulas were not
at hand when this file was written, so no criterion carries these names. `mean_difference` and `mean_margin` are the
statistics that the names suggest. They differ in any case in that activations are averaged over all tokens of a clip and
then over clips, where Zhao et al. look at the gates of a decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV

from aape.artifacts.folder import Artifacts
from aape.neurons import effect_size
from aape.neurons.effect_size import in_and_out
from aape.neurons.selection import outside_class, select

NEURONS_AT_ONCE = 2048
ALPHAS = tuple(10.0**k for k in range(1, 8))  # of the ridge, for standardised columns


@dataclass(frozen=True, eq=False)
class Clips:
    """The clips that a criterion may look at.

    Attributes:
        artifacts: with counts per clip.
        rows: indices of the clips.
        encoder, task: for criteria that run the model, else None.
        options: further options of `rank`.
    """

    artifacts: Artifacts
    rows: np.ndarray
    encoder: Any = None
    task: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """Class index of each clip."""
        return self.artifacts.labels[self.rows]

    @property
    def members(self) -> np.ndarray:
        """Whether a clip is of a class, float64 [classes, clips]."""
        return (self.labels == np.arange(len(self.artifacts.classes))[:, None]).astype(np.float64)

    def p(self) -> np.ndarray:
        """Conditional activation probabilities, float64 [layers, neurons, classes]."""
        return self.artifacts.probabilities(clips=self.rows)

    def tokens(self) -> np.ndarray:
        """Tokens of each class."""
        return self.members @ self.artifacts.tokens[self.rows]

    def values(self, neurons: slice | np.ndarray, what: str = "rates") -> np.ndarray:
        """Values of some neurons (index into layers * neurons), float64 [clips, k].

        Args:
            neurons: indices.
            what: "rates", the share of tokens that are active, or "means", the mean activation.
        """
        table = self.artifacts.counts if what == "rates" else self.artifacts.means
        values = table.reshape(len(table), -1)[:, neurons][self.rows].astype(np.float64)
        if what == "means":
            return values
        return values / self.artifacts.tokens[self.rows, None]

    def table(
        self, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], what: str = "rates"
    ) -> np.ndarray:
        """A statistic of every neuron, float64 [layers, neurons, classes], in blocks of neurons.

        Args:
            statistic: (values [clips, k], members [classes, clips]) -> [classes, k].
            what: the values, see `values`.
        """
        shape = tuple(self.artifacts.over_zero.shape)
        members = self.members
        blocks = []
        for start in range(0, shape[0] * shape[1], NEURONS_AT_ONCE):
            values = self.values(slice(start, start + NEURONS_AT_ONCE), what)
            blocks.append(statistic(values, members))
        return np.concatenate(blocks, axis=1).T.reshape(shape)


def aape(clips: Clips) -> np.ndarray:
    """-AAPE where the neuron is specific to the class, else -inf. Options: those of `select`."""
    chosen = select(clips.p(), **clips.options)
    return np.where(chosen.members, -chosen.entropy[:, :, None], -np.inf)


def p(clips: Clips) -> np.ndarray:
    """p in the class."""
    return clips.p()


def p_difference(clips: Clips) -> np.ndarray:
    """p in the class minus p over the tokens of all others."""
    rates = clips.p()
    return rates - outside_class(rates, clips.tokens())


def mean_difference(clips: Clips) -> np.ndarray:
    """Mean activation in the class minus the mean outside it; every clip has the same weight."""

    def statistic(x: np.ndarray, members: np.ndarray) -> np.ndarray:
        inside, outside = in_and_out(x, members)
        return inside - outside

    return clips.table(statistic, "means")


def mean_margin(clips: Clips) -> np.ndarray:
    """Mean activation in the class minus the largest mean of another class; with one class, the mean."""

    def statistic(x: np.ndarray, members: np.ndarray) -> np.ndarray:
        means, _ = in_and_out(x, members)
        if len(means) == 1:
            return means
        two_largest = np.sort(means, axis=0)[-2:]
        rival = np.where(means == two_largest[1], two_largest[0], two_largest[1])
        return means - rival

    return clips.table(statistic, "means")


def d_prime(clips: Clips) -> np.ndarray:
    """Difference of the activation rates in standard deviations between clips (`aape.neurons.effect_size`)."""
    return clips.table(effect_size.d_prime)


def auroc(clips: Clips) -> np.ndarray:
    """Area under the ROC curve of telling the clips of the class by their rate; ties count half."""

    def statistic(x: np.ndarray, members: np.ndarray) -> np.ndarray:
        size = members.sum(axis=1, keepdims=True)
        wins = members @ rankdata(x, axis=0) - size * (size + 1) / 2
        return wins / np.maximum(size * (len(x) - size), 1)

    return clips.table(statistic)


def probeless(clips: Clips) -> np.ndarray:
    """Sum over the other classes of the distance between the classes' mean activations."""

    def statistic(x: np.ndarray, members: np.ndarray) -> np.ndarray:
        means, _ = in_and_out(x, members)
        return np.stack([np.abs(means - of_class).sum(axis=0) for of_class in means])

    return clips.table(statistic, "means")


def probe_weights(clips: Clips) -> np.ndarray:
    """Weights of a ridge classifier (one against the rest) on the standardised mean activations of all neurons."""
    x = clips.values(slice(None), "means").astype(np.float32)
    spread = x.std(axis=0)
    x = np.divide(x - x.mean(axis=0), spread, out=np.zeros_like(x), where=spread > 1e-9)
    model = RidgeCV(alphas=ALPHAS).fit(x, 2 * clips.members.T.astype(np.float32) - 1)
    return model.coef_.T.reshape(tuple(clips.artifacts.over_zero.shape)).astype(np.float64)


def attribution_zero(clips: Clips, replace_by: Any = "zero") -> np.ndarray:
    """How far ln p of the class falls when the neuron is silenced, to first order. Needs encoder and task."""
    if clips.encoder is None or clips.task is None:
        raise ValueError("attribution runs the model: give rank(..., encoder=, task=)")
    split = sorted(set(clips.artifacts.splits[clips.rows]))
    from aape.causal.attribution import attribute  # torch takes seconds to import

    effect = attribute(
        clips.encoder,
        clips.task,
        clips.artifacts,
        replace_by=replace_by,
        split=split,
        **clips.options,
    )
    return -effect


def attribution_mean(clips: Clips) -> np.ndarray:
    """As `attribution_zero`, with the neuron replaced by its mean."""
    return attribution_zero(clips, "mean")


def random(clips: Clips) -> np.ndarray:
    """Numbers without meaning. Option: seed."""
    return np.random.default_rng(clips.options.get("seed", 0)).random(
        clips.artifacts.over_zero.shape
    )


Criterion = Callable[[Clips], np.ndarray]
CRITERIA: dict[str, Criterion] = {
    "aape": aape,
    "p": p,
    "p_difference": p_difference,
    "mean_difference": mean_difference,
    "mean_margin": mean_margin,
    "d_prime": d_prime,
    "auroc": auroc,
    "probeless": probeless,
    "probe_weights": probe_weights,
    "attribution_zero": attribution_zero,
    "attribution_mean": attribution_mean,
    "random": random,
}


def rank(
    artifacts: Artifacts,
    criterion: str | Criterion,
    *,
    encoder: Any = None,
    task: Any = None,
    split: str | Sequence[str] | None = None,
    **options: Any,
) -> np.ndarray:
    """How much each neuron belongs to each class, by some criterion.

    Args:
        artifacts: with counts per clip (and means, for those that look at magnitude).
        criterion: a name of `CRITERIA`, or a function of `Clips`.
        encoder, task: needed only by attribution.
        split: which clips: one split or fold, or several. None: "train" where there is such a split, else all.
        **options: the criterion's own, such as `rate` of "aape" or `seed` of "random".

    Returns:
        float64 [layers, neurons, classes], larger = silence first; ties are broken by layer, then by neuron.

    Raises:
        ValueError: an unknown criterion, artifacts without what it needs, or a result of another shape.
    """
    if isinstance(criterion, str) and criterion not in CRITERIA:
        raise ValueError(
            f"no criterion {criterion!r}; expected one of {', '.join(CRITERIA)}, or a function of Clips"
        )
    if not artifacts.has_counts:
        raise ValueError(
            f"{artifacts.path}: criteria need clip_counts.npy, which this folder does not hold"
        )
    score = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    scores = score(Clips(artifacts, artifacts.training_rows(split), encoder, task, options))
    expected = tuple(artifacts.over_zero.shape)
    if scores.shape != expected:
        raise ValueError(f"the criterion gave {scores.shape}, expected {expected}")
    return scores
