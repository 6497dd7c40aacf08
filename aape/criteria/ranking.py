"""Rivals of AAPE: other ways to say which neurons belong to a class, and scores of neurons on clips held out.

    rank(artifacts, "d_prime")                           # [layers, neurons, classes], larger = silence first
    select(artifacts, criterion="auroc")
    rank(artifacts, lambda clips: clips.table(my_statistic))

A criterion is a function of `Clips` that gives one number a neuron and class. Those of this file, with their sources:

    aape              lowest entropy over classes among the class-specific neurons (Kawamura et al. 2026; LAPE)
    p                 most active in the class
    p_difference      p in the class minus p outside it
    mean_difference   the same of the mean activation, which also knows how strong
    d_prime           p in the class minus p outside, in standard deviations of clips (signal detection; Green, Swets 1966)
    auroc             chance that a clip of the class has a higher share of active tokens than another (Mann, Whitney 1947)
    probeless         summed distances of the class's mean activation to the other classes' (Antverg, Belinkov 2022)
    probe_weights     weight in a ridge classifier on all neurons (Dalvi et al. 2019; alpha by leave-one-out)
    attribution_zero  how far ln p of the class would fall if the neuron were silenced (`aape.causal.attribution`)
    attribution_mean  the same if it were put to its mean
    random            a floor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV

from aape.artifacts.folder import Artifacts
from aape.neurons.selection import outside_class, select

NEURONS_AT_ONCE = 2048
ALPHAS = tuple(10.0**k for k in range(1, 8))  # of the ridge, for standardised columns


@dataclass(frozen=True, eq=False)
class Clips:
    """The clips that a criterion may look at.

    Attributes:
        artifacts: with counts per clip.
        rows: which clips.
        labels: class index of each of them. n_classes: of the task.
        encoder, task: for criteria that run the model, else None.
        options: what else was given to `rank`.
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
        """Of some neurons (index in [layers * neurons]), float64 [clips, k]: "rates", the share of tokens that are
        active, or "means", the mean activation."""
        table = self.artifacts.counts if what == "rates" else self.artifacts.means
        found = table.reshape(len(table), -1)[:, neurons][self.rows].astype(np.float64)
        return found / self.artifacts.tokens[self.rows, None] if what == "rates" else found

    def table(self, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], what: str = "rates") -> np.ndarray:
        """A statistic of every neuron, float64 [layers, neurons, classes], in blocks of neurons.

        Args:
            statistic: (values [clips, k], members [classes, clips]) -> [classes, k].
            what: the values, see `values`.
        """
        shape, members = tuple(self.artifacts.over_zero.shape), self.members
        starts = range(0, shape[0] * shape[1], NEURONS_AT_ONCE)
        blocks = [statistic(self.values(slice(s, s + NEURONS_AT_ONCE), what), members) for s in starts]
        return np.concatenate(blocks, axis=1).T.reshape(shape)


def in_and_out(x: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the clips of each class and over all others, [classes, k] each."""
    size = members.sum(axis=1, keepdims=True)
    inside = members @ x
    return inside / size, (x.sum(axis=0) - inside) / np.maximum(len(x) - size, 1)


def aape(clips: Clips) -> np.ndarray:
    """-AAPE where the neuron is specific to the class, else -inf. Options: those of `select`."""
    chosen = select(clips.p(), **clips.options)
    return np.where(chosen.members, -chosen.entropy[:, :, None], -np.inf)


def p(clips: Clips) -> np.ndarray:
    """p in the class."""
    return clips.p()


def p_difference(clips: Clips) -> np.ndarray:
    """p in the class minus p over the tokens of all others."""
    found = clips.p()
    return found - outside_class(found, clips.tokens())


def mean_difference(clips: Clips) -> np.ndarray:
    """Mean activation in the class minus outside, clips weighing the same."""
    return clips.table(lambda x, members: np.subtract(*in_and_out(x, members)), "means")


def d_prime(clips: Clips) -> np.ndarray:
    """Difference of the means of clips, by the root of the mean of both variances; 0 where nothing varies."""

    def statistic(x: np.ndarray, members: np.ndarray) -> np.ndarray:
        inside, outside = in_and_out(x, members)
        squares = in_and_out(x * x, members)
        spread = np.sqrt((np.maximum(squares[0] - inside**2, 0) + np.maximum(squares[1] - outside**2, 0)) / 2)
        return np.divide(inside - outside, spread, out=np.zeros_like(spread), where=spread > 1e-9)

    return clips.table(statistic)


def auroc(clips: Clips) -> np.ndarray:
    """Area under the curve of telling the class's clips by the share of active tokens; ties count half."""

    def statistic(x: np.ndarray, members: np.ndarray) -> np.ndarray:
        size = members.sum(axis=1, keepdims=True)
        wins = members @ rankdata(x, axis=0) - size * (size + 1) / 2
        return wins / np.maximum(size * (len(x) - size), 1)

    return clips.table(statistic)


def probeless(clips: Clips) -> np.ndarray:
    """Sum over the other classes of the distance between the classes' mean activations."""

    def statistic(x: np.ndarray, members: np.ndarray) -> np.ndarray:
        mean = in_and_out(x, members)[0]
        return np.stack([np.abs(mean - mine).sum(axis=0) for mine in mean])

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
    from aape.causal.attribution import attribute  # torch takes seconds to import

    if clips.encoder is None or clips.task is None:
        raise ValueError("attribution runs the model: give rank(..., encoder=, task=)")
    split = sorted(set(clips.artifacts.splits[clips.rows]))
    return -attribute(clips.encoder, clips.task, clips.artifacts, replace_by=replace_by, split=split, **clips.options)


def attribution_mean(clips: Clips) -> np.ndarray:
    """As `attribution_zero`, with the neuron put to its mean."""
    return attribution_zero(clips, "mean")


def random(clips: Clips) -> np.ndarray:
    """Numbers without meaning. Option: seed."""
    return np.random.default_rng(clips.options.get("seed", 0)).random(clips.artifacts.over_zero.shape)


Criterion = Callable[[Clips], np.ndarray]
_ALL = (
    aape, p, p_difference, mean_difference, d_prime, auroc, probeless, probe_weights, attribution_zero,
    attribution_mean, random,
)  # fmt: skip
CRITERIA: dict[str, Criterion] = {criterion.__name__: criterion for criterion in _ALL}


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
        encoder, task: needed by attribution alone.
        split: the clips to look at: one split or fold, or several. None: "train" where there is such a split, else all.
        **options: the criterion's own, such as `rate` of "aape" or `seed` of "random".

    Returns:
        float64 [layers, neurons, classes], larger = silence first; ties go by layer, then by neuron.

    Raises:
        ValueError: an unknown criterion, artifacts without what it needs, or a result of another shape.
    """
    if isinstance(criterion, str) and criterion not in (*CRITERIA, "lape"):
        raise ValueError(f"no criterion {criterion!r}; expected one of {', '.join(CRITERIA)}, or a function of Clips")
    if not artifacts.has_all_counts:
        raise ValueError(f"{artifacts.path}: criteria need clip_counts.npy with every clip; collect with all counts")
    if split is None and "train" in artifacts.splits:
        split = "train"
    score = criterion if callable(criterion) else (CRITERIA | {"lape": aape})[criterion]
    found, expected = score(Clips(artifacts, artifacts.rows(split), encoder, task, options)), artifacts.over_zero.shape
    if found.shape != tuple(expected):
        raise ValueError(f"the criterion gave {found.shape}, expected {tuple(expected)}")
    return found


# -- scores on clips held out -----------------------------------------------------------------------------------


def curve(x: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision of telling positive clips by large values, and the threshold of the best F1, [k] each.

    Args:
        x: [clips, k].
        positive: bool [clips].

    Average precision is the area under the precision-recall curve as a sum of steps (no interpolation). F1 is best
    where IoU (Jaccard) is: one is a function of the other.
    """
    order = np.argsort(-x, axis=0, kind="stable")
    ordered = np.take_along_axis(x, order, axis=0)
    hits = np.cumsum(positive[order], axis=0)  # [clips, k]
    last = np.vstack([ordered[:-1] != ordered[1:], np.ones((1, x.shape[1]), dtype=bool)])  # of equal values
    count = np.arange(1, len(x) + 1)[:, None]
    total = max(int(positive.sum()), 1)
    before = np.maximum.accumulate(np.vstack([np.zeros_like(hits[:1]), np.where(last, hits, 0)[:-1]]), axis=0)
    precision = np.where(last, hits / count, 0) * (hits - before)
    f1 = np.where(last, 2 * hits / (count + total), -1)
    return precision.sum(axis=0) / total, np.take_along_axis(ordered, f1.argmax(axis=0)[None], axis=0)[0]


def held_out_scores(artifacts: Artifacts, pairs: pd.DataFrame, labels: np.ndarray | None = None) -> pd.DataFrame:
    """How well each (neuron, class) tells the class's clips: AUPRC, F1 and IoU on clips held out.

    Only these (and Pearson, cosine) pass the sanity checks of NeuronEval (ICML 2025); AUROC and recall do not. The
    threshold is chosen on all folds but one and tried on that one, groups whole (`aape.causal.classifier.cross_folds`);
    AUPRC has none and is of all clips. Neurons that were chosen on the same clips look better than they are: compare with
    neurons chosen under permuted labels.

    Args:
        artifacts: with counts per clip.
        pairs: columns layer, neuron, class.
        labels: other class indices of the clips, [clips] (permuted ones); by default the artifacts' own.

    Returns:
        float64 columns auprc, f1, iou, base (the share of clips that are of the class; a neuron that knows nothing has
        an AUPRC of about that, of few clips a little more), rows as in `pairs`.
    """
    from aape.causal.classifier import cross_folds

    own, rows = artifacts.labels if labels is None else labels, np.arange(len(artifacts.labels))
    clips, fold = Clips(artifacts, rows), cross_folds(artifacts, rows)
    out = pd.DataFrame(0.0, index=pairs.index, columns=["auprc", "f1", "iou", "base"])
    for name, mine in pairs.groupby("class", sort=False):
        x = clips.values((mine["layer"] * artifacts.over_zero.shape[1] + mine["neuron"]).to_numpy())
        positive, said = own == artifacts.classes.index(str(name)), np.zeros(x.shape, dtype=bool)
        for number in np.unique(fold):
            test = fold == number
            said[test] = x[test] >= curve(x[~test], positive[~test])[1]
        hit, either = said[positive].sum(axis=0), (said | positive[:, None]).sum(axis=0)
        f1, iou = 2 * hit / np.maximum(said.sum(axis=0) + positive.sum(), 1), hit / np.maximum(either, 1)
        scores = [curve(x, positive)[0], f1, iou, np.full(len(mine), positive.mean())]
        out.loc[mine.index] = np.stack(scores, axis=1)
    return out
