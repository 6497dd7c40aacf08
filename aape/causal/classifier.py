"""The classifiers of the deactivation experiment: standardised clip embeddings, one linear layer.

`fit` is logistic regression (scikit-learn), fitted on the train split, its regularisation chosen on the validation
split, and it is tested on the test split. Five-fold tasks give one classifier a fold, so that each clip is tested
exactly once, by a classifier that has not seen its fold; there the regularisation is chosen on one of the four training
folds, and the classifier then fitted on all four. `refits` repeats the fit on bootstrapped training groups, which says
how much of a difference is the classifier's own. `fit_nearest_mean` is another judge: it knows the classes' mean
embeddings and nothing else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation, from strong to weak
SHARPNESS = tuple(10.0**e for e in range(-5, 0))  # of nearest-mean probabilities; sharper ones saturate and see nothing
_ATTEMPTS = 100  # a refit, at most on average, to draw groups in which no class is missing


@dataclass(frozen=True, eq=False)
class Fold:
    """Which clips train, choose and test one classifier, as indices into the clips.

    `fit` is what the final classifier sees: the train split, or all training folds.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    fit: np.ndarray


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fitted linear classifier; the standardisation of the embeddings is part of its weights.

    Attributes:
        classes: names, in the order of the columns of its output.
        weights: float64 [classes, dim].
        bias: float64 [classes].
        strength: the inverse regularisation (or sharpness) that did best on the validation clips.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray
    strength: float

    def log_probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [clips, dim] -> natural log of the class probabilities, float64 [clips, classes].

        Raises:
            ValueError: embeddings of another size, or not finite.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weights.shape[1] or not np.isfinite(embeddings).all():
            raise ValueError(
                f"the classifier was trained on embeddings of {self.weights.shape[1]} numbers, found "
                f"{list(embeddings.shape)}, or values that are not finite. It belongs to another encoder?"
            )
        return log_softmax(embeddings.astype(np.float64) @ self.weights.T + self.bias, axis=1)


def folds(
    splits: Sequence[str] | np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
) -> list[Fold]:
    """Train / valid / test as one fold; fold1, fold2, ... as one fold each, every clip tested exactly once.

    Args:
        splits: of each clip, "train", "valid", "test" (valid may be missing: a fifth of train stands in), or "fold1"...
        labels: class index of each clip.
        classes: names.
        groups: of each clip; None: each is its own.

    Raises:
        ValueError: neither kind of splits, fewer than three folds, or a class without a clip to train or test on.

    Warns:
        UserWarning: a group is on both sides of a test, or all tested clips are of one group.
    """
    splits, labels = np.asarray(splits), np.asarray(labels)
    groups = np.arange(len(labels)).astype(str) if groups is None else np.asarray(groups)
    names = sorted(set(splits.tolist()), key=lambda name: (len(name), name))  # fold10 behind fold9
    of = {name: np.flatnonzero(splits == name) for name in names}
    if are_folds(names):
        found = []
        for name, choosing in zip(names, names[1:] + names[:1], strict=True):
            train, fit = (np.flatnonzero(~np.isin(splits, without)) for without in ([name, choosing], [name]))
            found.append(Fold(name, train, of[choosing], of[name], fit))
    elif {"train", "test"} <= set(names) <= {"train", "valid", "test"}:
        train, valid = of["train"], of.get("valid")
        if valid is None:
            held = held_out(labels[train], groups[train])
            train, valid = train[~held], train[held] if held.any() else train
        found = [Fold("test", train, valid, of["test"], of["train"])]
    else:
        takes = "splits must be train, valid and test, or fold1, fold2, ... of which it takes 3"
        raise ValueError(f"{takes}; found {', '.join(names) or 'none'}")
    for fold in found:
        for role, clips in (("train", fold.train), ("test", fold.test)):
            if lost := sorted(set(range(len(classes))) - set(labels[clips].tolist())):
                raise ValueError(
                    f"{fold.name}: {len(lost)} class(es) have no clip to {role} on, e.g. {classes[lost[0]]!r}. Expected "
                    "every class on both sides; take the class out of the metadata or collect the missing splits."
                )
        both = np.intersect1d(groups[np.concatenate([fold.fit, fold.valid])], groups[fold.test])
        if len(both):
            which = f"{fold.name}: {len(both)} group(s) have clips to train on and to test on, e.g. {str(both[0])!r}"
            warnings.warn(f"{which}; the tested clips are not new to the classifier", stacklevel=2)
    tested = np.unique(groups[np.concatenate([fold.test for fold in found])])
    if len(tested) == 1:
        warnings.warn(f"all tested clips are of one group ({tested[0]}): nothing is known of others", stacklevel=2)
    return found


def are_folds(names: Sequence[str]) -> bool:
    """Whether splits are those of cross-validation: fold1, fold2, fold3, ..."""
    return len(names) >= 3 and all(re.fullmatch(r"fold\d+", name) for name in names)


def held_out(labels: np.ndarray, groups: np.ndarray, share: float = 0.2, seed: int = 0) -> np.ndarray:
    """bool [clips]: about a share of each class by whole groups, never the last group of a class; may be none.

    Groups are taken in a seeded order while one of their classes still lacks clips.
    """
    held = np.zeros(len(labels), dtype=bool)
    total = np.bincount(labels)
    for group in np.random.default_rng(seed).permutation(np.unique(groups)):
        mine = groups == group
        of_class = np.bincount(labels[mine], minlength=len(total))
        taken = np.bincount(labels[held], minlength=len(total))
        here = of_class > 0
        if (taken < share * total)[here].any() and (taken + of_class < total)[here].all():
            held |= mine
    return held


def _fitted(
    strength: float,
    embeddings: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    weights: np.ndarray | None = None,
) -> Classifier:
    scaler, model = StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3)
    # One BLAS thread: at these sizes two are several times slower, more so beside other work.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        # Weak regularisation of separable classes has no optimum to converge to; validation decides between strengths.
        warnings.simplefilter("ignore", ConvergenceWarning)
        z = scaler.fit_transform(embeddings.astype(np.float64), sample_weight=weights)
        model.fit(z, labels, sample_weight=weights)
    coefficients, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives the second class's row alone
        coefficients, bias = np.stack([0 * coefficients[0], coefficients[0]]), np.array([0.0, bias[0]])
    coefficients = coefficients / scaler.scale_
    return Classifier(tuple(classes), coefficients, bias - coefficients @ scaler.mean_, strength)


def _best(
    fitted: Callable[[float, np.ndarray], Classifier],
    strengths: Sequence[float],
    data: Sequence[np.ndarray],
    fold: Fold,
) -> Classifier:
    """Of the strength that gives validation clips the highest mean log-probability of their class, the first of equals."""

    embeddings, labels = data

    def truth(strength: float) -> float:
        log_p = fitted(strength, fold.train).log_probabilities(embeddings[fold.valid])
        return float(log_p[np.arange(len(log_p)), labels[fold.valid]].mean())

    return fitted(max(strengths, key=truth), fold.fit)


def fit(embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str], fold: Fold) -> Classifier:
    """Fit on a fold's training clips, with the regularisation of highest mean log-probability on its validation clips.

    Args:
        embeddings: of all clips, [clips, dim].
        labels: class indices of all clips, [clips].
        classes: names.
        fold: which clips do what.
    """

    def fitted(strength: float, clips: np.ndarray) -> Classifier:
        return _fitted(strength, embeddings[clips], labels[clips], classes)

    return _best(fitted, STRENGTHS, (embeddings, labels), fold)


def fit_nearest_mean(embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str], fold: Fold) -> Classifier:
    """log p_c = -sharpness * |z - mean_c|^2 + constant on standardised z; the sharpness chosen on validation clips."""

    def fitted(sharpness: float, clips: np.ndarray) -> Classifier:
        scaler = StandardScaler()
        z = scaler.fit_transform(embeddings[clips].astype(np.float64))
        mean = np.stack([z[labels[clips] == c].mean(axis=0) for c in range(len(classes))])
        weights = 2 * sharpness * mean / scaler.scale_  # |z|^2 is the same for every class
        bias = -sharpness * (mean**2).sum(axis=1) - weights @ scaler.mean_
        return Classifier(tuple(classes), weights, bias, sharpness)

    return _best(fitted, SHARPNESS, (embeddings, labels), fold)


def refits(
    classifier: Classifier,
    embeddings: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    fold: Fold,
    *,
    count: int,
    seed: int,
) -> list[Classifier]:
    """The classifier fitted again, `count` times, on training groups drawn with replacement.

    Clips of one group are drawn together. A draw in which a class is missing is drawn again.

    Raises:
        ValueError: hardly a draw holds every class (a class from a single group, say).
    """
    rng, known = np.random.default_rng(seed), len(np.unique(labels[fold.fit]))
    names, of_clip = np.unique(np.asarray(groups)[fold.fit], return_inverse=True)
    again: list[Classifier] = []
    for _ in range(count * _ATTEMPTS):
        if len(again) == count:
            break
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[of_clip].astype(float)
        rows, drawn = fold.fit[weights > 0], weights[weights > 0]
        if len(np.unique(labels[rows])) == known:
            again.append(_fitted(classifier.strength, embeddings[rows], labels[rows], classifier.classes, drawn))
    if len(again) < count:
        raise ValueError(
            f"{fold.name}: of {count * _ATTEMPTS} bootstraps of {len(names)} training groups {len(again)} held every "
            f"class, expected {count}: classes must come from more than one group. Set refits to 0."
        )
    return again


def scores(
    log_probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], in_sample: np.ndarray | None = None
) -> pd.DataFrame:
    """Accuracy (share) and mean log-probability of the true class (nats), a row per class and one for all.

    Args:
        log_probabilities: [clips, classes].
        labels: class indices [clips].
        classes: names.
        in_sample: bool [clips], clips that the encoder itself was trained on. With any, a second set of rows holds
            the other clips alone, and the column `part` tells "all" from "unseen by the encoder".
    """
    seen = np.zeros(len(labels), dtype=bool) if in_sample is None else in_sample
    columns = {
        "class": np.asarray(classes, dtype=object)[labels],
        "clips": 1,
        "in_sample": seen.astype(int),
        "accuracy": log_probabilities.argmax(axis=1) == labels,
        "log_probability": log_probabilities[np.arange(len(labels)), labels],
    }
    single, tables = pd.DataFrame(columns), []
    for part, clips in {"all": single, "unseen by the encoder": single[~seen]}.items():
        by_class = pd.concat([clips.assign(**{"class": "all classes"}), clips]).groupby("class")
        table = by_class.agg({"clips": "sum", "in_sample": "sum", "accuracy": "mean", "log_probability": "mean"})
        tables.append(table.reindex(["all classes", *classes]).fillna({"clips": 0, "in_sample": 0}).assign(part=part))
    table = pd.concat(tables if seen.any() else tables[:1]).reset_index(names="class")
    return table.astype({"clips": int, "in_sample": int})
