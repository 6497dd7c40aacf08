"""How well neurons tell their class on clips that were held out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.causal.classifier import cross_folds
from aape.criteria.ranking import Clips

SCORES = ("auprc", "f1", "iou")  # of `held_out_scores`


def curve(x: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision of telling positive clips by large values, and the threshold of the best F1, [k] each.

    Average precision is the area under the precision-recall curve as a sum of steps, without interpolation. F1 is best
    where the intersection over union (Jaccard index) is, because each is a function of the other.

    Args:
        x: [clips, k].
        positive: bool [clips].
    """
    order = np.argsort(-x, axis=0, kind="stable")
    ordered = np.take_along_axis(x, order, axis=0)
    hits = np.cumsum(positive[order], axis=0)  # [clips, k]
    is_last = np.ones(x.shape, dtype=bool)  # of equal values
    is_last[:-1] = ordered[:-1] != ordered[1:]
    called = np.arange(1, len(x) + 1)[:, None]  # clips called positive down to here
    hits_before = np.zeros_like(hits)
    hits_before[1:] = np.where(is_last, hits, 0)[:-1]
    hits_before = np.maximum.accumulate(hits_before, axis=0)
    total = max(int(positive.sum()), 1)
    precision = np.where(is_last, hits / called, 0)
    average_precision = (precision * (hits - hits_before)).sum(axis=0) / total
    f1 = np.where(is_last, 2 * hits / (called + total), -1)
    best = f1.argmax(axis=0)[None]
    return average_precision, np.take_along_axis(ordered, best, axis=0)[0]


def held_out_scores(
    artifacts: Artifacts, pairs: pd.DataFrame, labels: np.ndarray | None = None
) -> pd.DataFrame:
    """How well each (neuron, class) tells the clips of the class: AUPRC, F1 and IoU on clips held out.

    Only these scores (and Pearson, cosine) pass the sanity checks of NeuronEval (ICML 2025); AUROC and recall do not. The
    threshold is chosen on all folds except one and applied to that one, with whole groups
    (`aape.causal.classifier.cross_folds`). AUPRC has no threshold and is computed over all clips. Neurons that were
    chosen on the same clips look better than they are: compare with neurons chosen under permuted labels.

    Args:
        artifacts: with counts per clip.
        pairs: columns layer, neuron, class.
        labels: other class indices of the clips, [clips], such as permuted ones; by default the artifacts' own.

    Returns:
        float64 columns auprc, f1, iou, base, rows as in `pairs`. base is the share of clips that are of the class; a
        neuron that knows nothing has an AUPRC of about that, or a little more if there are few clips.
    """
    if labels is None:
        labels = artifacts.labels
    rows = np.arange(len(labels))
    clips = Clips(artifacts, rows)
    fold = cross_folds(artifacts, rows)
    neurons_per_layer = artifacts.over_zero.shape[1]
    out = pd.DataFrame(0.0, index=pairs.index, columns=[*SCORES, "base"])
    for name, of_class in pairs.groupby("class", sort=False):
        neurons = (of_class["layer"] * neurons_per_layer + of_class["neuron"]).to_numpy()
        x = clips.values(neurons)
        positive = labels == artifacts.classes.index(str(name))
        called = np.zeros(x.shape, dtype=bool)
        for number in np.unique(fold):
            test = fold == number
            _, threshold = curve(x[~test], positive[~test])
            called[test] = x[test] >= threshold
        hits = called[positive].sum(axis=0)
        either = (called | positive[:, None]).sum(axis=0)
        auprc, _ = curve(x, positive)
        out.loc[of_class.index, "auprc"] = auprc
        out.loc[of_class.index, "f1"] = (
            2 * hits / np.maximum(called.sum(axis=0) + positive.sum(), 1)
        )
        out.loc[of_class.index, "iou"] = hits / np.maximum(either, 1)
        out.loc[of_class.index, "base"] = positive.mean()
    return out
