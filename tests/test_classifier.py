"""The linear classifier: splits, choice of regularisation, each clip tested once."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aape.causal import classifier
from aape.causal.classifier import Classifier, fit, fit_nearest_mean, folds, held_out, scores

CLASSES = ("a", "b", "c")


def blobs(clips: int = 150, dim: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussian classes that overlap a little, in float32."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % 3
    return (rng.normal(size=(clips, dim)) + 2 * np.eye(3, dim)[labels]).astype(np.float32), labels


TRAIN = np.array(["train"] * 90 + ["valid"] * 30 + ["test"] * 30)


def test_folds_test_each_clip_once_and_never_train_on_it() -> None:
    _, labels = blobs()
    splits = np.array([f"fold{1 + i // 12}" for i in range(150)])
    found = folds(splits, labels, CLASSES)
    assert [fold.name for fold in found] == [f"fold{i}" for i in range(1, 14)]
    assert sorted(np.concatenate([fold.test for fold in found]).tolist()) == list(range(150))
    for fold in found:
        assert not set(fold.test) & set(fold.fit) and not set(fold.train) & set(fold.valid)
        assert (
            set(fold.fit) == set(fold.train) | set(fold.valid)
            and len(fold.fit) + len(fold.test) == 150
        )
        assert len(set(splits[fold.valid])) == 1
    (fold,) = folds(TRAIN, labels, CLASSES)
    assert fold.fit.tolist() == fold.train.tolist() == list(range(90))
    assert fold.valid.tolist() == list(range(90, 120)) and fold.test.tolist() == list(
        range(120, 150)
    )


def test_without_a_valid_split_whole_groups_of_train_choose() -> None:
    _, labels = blobs()
    groups = np.array([f"g{i // 6}" for i in range(150)])
    (fold,) = folds(np.array(["train"] * 90 + ["test"] * 60), labels, CLASSES, groups)
    assert len(fold.fit) == 90 and set(fold.fit) == set(fold.train) | set(fold.valid)
    assert np.bincount(labels[fold.valid]).tolist() == [6, 6, 6]
    assert not set(groups[fold.train]) & set(groups[fold.valid])
    # Two speakers say "c", and one of them nothing else: both classes keep a speaker to train on.
    groups, labels = np.repeat(["p", "q", "r", "s"], 10), np.repeat([0, 1, 0, 1], 10)
    labels[25:30] = labels[35:40] = 2
    for seed in range(20):
        held = held_out(labels, groups, seed=seed)
        assert set(labels[~held]) == {0, 1, 2} and not set(groups[held]) & set(groups[~held])


def test_a_group_on_both_sides_and_one_tested_group_are_said() -> None:
    _, labels = blobs()
    splits, groups = np.array(["train"] * 90 + ["test"] * 60), np.arange(150).astype(str)
    groups[[5, 95]] = "x"
    with pytest.warns(
        UserWarning, match="1 group\\(s\\) have clips to train on and to test on, e.g. 'x'"
    ):
        folds(splits, labels, CLASSES, groups)
    with pytest.warns(UserWarning, match="all tested clips are of one group"):
        folds(splits, labels, CLASSES, np.where(splits == "test", "y", groups))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["fold1"] * 75 + ["fold2"] * 75, "at least three folds"),
        (["train"] * 149 + ["test"], r"2 class\(es\) have no clip to test on, e.g. 'a'"),
        (["test"] * 148 + ["train"] * 2, "no clip to train on"),
    ],
)
def test_splits_that_cannot_work(splits: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folds(splits, blobs()[1], CLASSES)


@pytest.mark.parametrize("count", [2, 3])
def test_weights_are_those_of_scikit_learns_pipeline(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, labels = blobs()
    embeddings, labels = embeddings[labels < count], labels[labels < count]
    (fold,) = folds(
        np.array(["train"] * 60 + ["test"] * (len(labels) - 60)), labels, CLASSES[:count]
    )
    monkeypatch.setattr(classifier, "STRENGTHS", [0.1])
    ours = fit(embeddings, labels, CLASSES[:count], fold).log_probabilities(embeddings)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500, tol=1e-3))
    theirs = pipeline.fit(embeddings[:60].astype(float), labels[:60]).predict_log_proba(
        embeddings.astype(float)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_regularisation_is_chosen_on_valid() -> None:
    """Labels of noise: only strong regularisation keeps the log-probability near chance. Of clear classes it does not."""
    (fold,) = folds(TRAIN, np.arange(150) % 3, CLASSES)
    noise = np.random.default_rng(0).normal(size=(150, 40)).astype(np.float32)
    assert fit(noise, np.arange(150) % 3, CLASSES, fold).strength == 1e-4
    assert fit(*blobs(), CLASSES, fold).strength > 1e-3


def test_scores_by_class() -> None:
    log_p, labels = (
        np.log(np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])),
        np.array([0, 0, 1, 1]),
    )
    table = scores(log_p, labels, ("a", "b"))
    assert table["class"].tolist() == ["all classes", "a", "b"] and table.clips.tolist() == [
        4,
        2,
        2,
    ]
    assert table.accuracy.tolist() == [0.5, 0.5, 0.5]
    assert table.log_probability[1] == pytest.approx(np.log([0.8, 0.3]).mean())


def test_other_embeddings_are_refused() -> None:
    fitted, broken = Classifier(CLASSES, np.zeros((3, 6)), np.zeros(3), 1.0), blobs()[0]
    broken[0, 0] = np.nan
    for embeddings in (broken[1:, :5], broken):
        with pytest.raises(ValueError, match="embeddings of 6 numbers"):
            fitted.log_probabilities(embeddings)


def test_nearest_mean_by_hand() -> None:
    embeddings, labels = blobs()
    (fold,) = folds(TRAIN, labels, CLASSES)
    fitted = fit_nearest_mean(embeddings, labels, CLASSES, fold)
    z = (embeddings - embeddings[:90].mean(axis=0)) / embeddings[:90].std(axis=0)
    distance = np.stack(
        [((z - z[:90][labels[:90] == c].mean(axis=0)) ** 2).sum(axis=1) for c in range(3)], axis=1
    )
    log_p = -fitted.strength * distance
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(fitted.log_probabilities(embeddings), log_p, rtol=1e-5, atol=1e-5)
    assert 0.001 < fitted.strength < 10 and (log_p.argmax(axis=1) == labels)[120:].mean() > 0.75
