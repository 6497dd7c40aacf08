"""The classifiers of the deactivation experiment: standardised clip embeddings and one linear layer.

`fit` is logistic regression (scikit-learn). It is fitted on the train split, its regularisation is chosen on the
validation split, and it is tested on the test split. A task with folds gives one classifier per fold, so that each clip
is tested exactly once, by a classifier that was fitted without its fold; the regularisation is then chosen on one of
the other folds, and the classifier is fitted on all of them. `fit_nearest_mean` knows the mean embedding of each class
and nothing else.
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

from aape.artifacts.folder import Artifacts

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation, from strong to weak
SHARPNESS = tuple(
    10.0**e for e in range(-5, 0)
)  # of nearest-mean probabilities; sharper ones saturate
MOST_FOLDS = 5  # of `cross_folds`


class UnusableSplits(ValueError):
    """Splits with which no classifier can be trained and tested."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Which clips train, choose and test one classifier, as indices into the clips.

    `fit` holds the clips of the final fit: the train split, or all training folds.
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
        dim = self.weights.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim or not np.isfinite(embeddings).all():
            raise ValueError(
                f"the classifier was trained on embeddings of {dim} numbers, found {list(embeddings.shape)}, or values "
                "that are not finite. Does it belong to another encoder?"
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
        splits: of each clip, "train", "valid", "test" (without valid, a fifth of train takes its place), or "fold1", ...
        labels: class index of each clip.
        classes: names.
        groups: group of each clip; None: each clip is its own group.

    Raises:
        UnusableSplits: neither kind of splits, fewer than three folds, or a class without a clip to train or test on.

    Warns:
        UserWarning: a group is on both sides of a test, or all tested clips are of one group.
    """
    splits, labels = np.asarray(splits), np.asarray(labels)
    groups = np.arange(len(labels)).astype(str) if groups is None else np.asarray(groups)
    names = sorted(set(splits.tolist()), key=lambda name: (len(name), name))  # fold10 follows fold9
    if are_folds(names):
        found = _cross_validation(splits, names)
    elif {"train", "test"} <= set(names) <= {"train", "valid", "test"}:
        found = [_one_fold(splits, labels, groups)]
    else:
        raise UnusableSplits(
            "splits must be train, valid and test, or at least three folds named fold1, fold2, ...; found "
            f"{', '.join(names) or 'none'}"
        )
    for fold in found:
        _check_classes(fold, labels, classes)
        _warn_of_shared_groups(fold, groups)
    tested = np.unique(groups[np.concatenate([fold.test for fold in found])])
    if len(tested) == 1:
        warnings.warn(
            f"all tested clips are of one group ({tested[0]}): nothing is known of others",
            stacklevel=2,
        )
    return found


def are_folds(names: Sequence[str]) -> bool:
    """Whether splits are those of cross-validation: fold1, fold2, fold3, ..."""
    return len(names) >= 3 and all(re.fullmatch(r"fold\d+", name) for name in names)


def _cross_validation(splits: np.ndarray, names: Sequence[str]) -> list[Fold]:
    """One fold per name; the next fold chooses the regularisation."""
    found = []
    for i, name in enumerate(names):
        following = names[(i + 1) % len(names)]
        train = np.flatnonzero(~np.isin(splits, [name, following]))
        valid, test, fitted = (
            np.flatnonzero(clips) for clips in (splits == following, splits == name, splits != name)
        )
        found.append(Fold(name, train, valid, test, fitted))
    return found


def _one_fold(splits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Fold:
    every, valid, test = (np.flatnonzero(splits == name) for name in ("train", "valid", "test"))
    if len(valid):
        return Fold("test", every, valid, test, every)
    held = held_out(labels[every], groups[every])
    if not held.any():
        return Fold("test", every, every, test, every)
    return Fold("test", every[~held], every[held], test, every)


def _check_classes(fold: Fold, labels: np.ndarray, classes: Sequence[str]) -> None:
    for role, clips in (("train", fold.train), ("test", fold.test)):
        lost = sorted(set(range(len(classes))) - set(labels[clips].tolist()))
        if lost:
            raise UnusableSplits(
                f"{fold.name}: {len(lost)} class(es) have no clip to {role} on, e.g. {classes[lost[0]]!r}. Expected "
                "every class on both sides; take the class out of the metadata or collect the missing splits."
            )


def _warn_of_shared_groups(fold: Fold, groups: np.ndarray) -> None:
    shared = np.intersect1d(groups[np.concatenate([fold.fit, fold.valid])], groups[fold.test])
    if len(shared):
        which = f"{fold.name}: {len(shared)} group(s) have clips to train on and to test on, e.g. {str(shared[0])!r}"
        warnings.warn(f"{which}; the tested clips are not new to the classifier", stacklevel=3)


def held_out(
    labels: np.ndarray, groups: np.ndarray, share: float = 0.2, seed: int = 0
) -> np.ndarray:
    """bool [clips]: about a share of each class by whole groups, never the last group of a class; may be none.

    Groups are taken in a seeded order while one of their classes still lacks clips. (The splitters of scikit-learn do
    not promise that every class keeps a group to train on.)
    """
    held = np.zeros(len(labels), dtype=bool)
    total = np.bincount(labels)
    for group in np.random.default_rng(seed).permutation(np.unique(groups)):
        in_group = groups == group
        of_group = np.bincount(labels[in_group], minlength=len(total))
        taken = np.bincount(labels[held], minlength=len(total))
        present = of_group > 0
        wanted = (taken < share * total)[present].any()
        some_remain = (taken + of_group < total)[present].all()
        if wanted and some_remain:
            held |= in_group
    return held


def cross_folds(artifacts: Artifacts, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """Fold of each of these clips, int64 [clips]: the artifacts' own folds, else whole groups, class by class.

    Raises:
        UnusableSplits: a class with clips in one fold only, so that no classifier fitted without them knows the class.
    """
    splits, labels, groups = artifacts.splits[rows], artifacts.labels[rows], artifacts.groups[rows]
    names = sorted(set(splits))
    fold = (
        np.searchsorted(names, splits)
        if are_folds(names)
        else _folds_of_groups(labels, groups, seed)
    )
    for c, name in enumerate(artifacts.classes):
        in_folds = len(set(fold[labels == c]))
        if in_folds < 2:
            raise UnusableSplits(
                f"{artifacts.path}: all clips of {name!r} are in {in_folds} fold or group, so a classifier fitted without "
                "them does not know the class. Leave the class out, or give another seed or split."
            )
    return fold


def _folds_of_groups(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each clip: the groups, sorted by class and in random order within a class, go to the folds in turn."""
    _, group_of_clip = np.unique(groups, return_inverse=True)
    lowest_and_highest = pd.Series(labels).groupby(group_of_clip).agg(["min", "max"])
    one_class = lowest_and_highest["min"] == lowest_and_highest["max"]
    class_of_group = lowest_and_highest["min"].where(one_class, -1)  # -1: clips of several classes
    order = np.lexsort((np.random.default_rng(seed).random(len(class_of_group)), class_of_group))
    fold_of_group = np.empty(len(order), dtype=np.int64)
    fold_of_group[order] = np.arange(len(order)) % min(MOST_FOLDS, len(order))
    return fold_of_group[group_of_clip]


def _logistic_regression(
    embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str], strength: float
) -> Classifier:
    scaler, model = StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3)
    # Both contexts switch the whole process, so classifiers are fitted in the main thread while no other thread works.
    # One BLAS thread is several times faster than two at these sizes. Weakly regularised classifiers of separable
    # classes do not converge, and the validation clips then prefer a stronger regularisation.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.fit_transform(embeddings.astype(np.float64)), labels)
    coefficients, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives only the row of the second class
        coefficients, bias = (
            np.stack([0 * coefficients[0], coefficients[0]]),
            np.array([0.0, bias[0]]),
        )
    coefficients = coefficients / scaler.scale_
    return Classifier(tuple(classes), coefficients, bias - coefficients @ scaler.mean_, strength)


def _nearest_mean(
    embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str], sharpness: float
) -> Classifier:
    scaler = StandardScaler()
    z = scaler.fit_transform(embeddings.astype(np.float64))
    mean = np.stack([z[labels == c].mean(axis=0) for c in range(len(classes))])
    weights = 2 * sharpness * mean / scaler.scale_  # |z|^2 is the same for every class
    bias = -sharpness * (mean**2).sum(axis=1) - weights @ scaler.mean_
    return Classifier(tuple(classes), weights, bias, sharpness)


def _best(
    fitted: Callable[..., Classifier],
    strengths: Sequence[float],
    embeddings: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    fold: Fold,
) -> Classifier:
    """Fitted with the strength that gives validation clips the highest mean log-probability of their class."""

    def on_validation(strength: float) -> float:
        classifier = fitted(embeddings[fold.train], labels[fold.train], classes, strength)
        log_p = classifier.log_probabilities(embeddings[fold.valid])
        return float(log_p[np.arange(len(log_p)), labels[fold.valid]].mean())

    best = max(strengths, key=on_validation)  # the first of equals
    return fitted(embeddings[fold.fit], labels[fold.fit], classes, best)


def fit(
    embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str], fold: Fold
) -> Classifier:
    """Logistic regression on a fold's training clips, its regularisation chosen on the validation clips.

    Args:
        embeddings: of all clips, [clips, dim].
        labels: class indices of all clips, [clips].
        classes: names.
        fold: which clips do what.
    """
    return _best(_logistic_regression, STRENGTHS, embeddings, labels, classes, fold)


def fit_nearest_mean(
    embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str], fold: Fold
) -> Classifier:
    """log p_c = -sharpness * |z - mean_c|^2 + constant on standardised z; arguments and choice as in `fit`."""
    return _best(_nearest_mean, SHARPNESS, embeddings, labels, classes, fold)


def scores(
    log_probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """Accuracy (share) and mean log-probability of the true class (nats): one row for all classes and one per class.

    Args:
        log_probabilities: [clips, classes].
        labels: class indices [clips].
        classes: names.
    """
    columns = {
        "class": np.asarray(classes, dtype=object)[labels],
        "clips": 1,
        "accuracy": log_probabilities.argmax(axis=1) == labels,
        "log_probability": log_probabilities[np.arange(len(labels)), labels],
    }
    single = pd.DataFrame(columns)
    by_class = pd.concat([single.assign(**{"class": "all classes"}), single]).groupby("class")
    table = by_class.agg({"clips": "sum", "accuracy": "mean", "log_probability": "mean"})
    table = table.reindex(["all classes", *classes]).fillna({"clips": 0})
    return table.reset_index(names="class").astype({"clips": int})
