"""Criteria against literal references, selection by any of them, scores of neurons on clips held out."""

import itertools

import numpy as np
import pandas as pd
import pytest
from fake_artifacts import TOKENS, planted_counts, write_artifacts
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from aape.artifacts.folder import load_artifacts
from aape.artifacts.manifest import write_manifest
from aape.causal.attribution import attribute
from aape.causal.classifier import cross_folds
from aape.collecting.passing import collect
from aape.criteria.held_out import curve, held_out_scores
from aape.criteria.ranking import ALPHAS, CRITERIA, Clips, rank
from aape.files import sha256_of
from aape.neurons.selection import kth_smallest, select

LABELS = np.repeat(np.arange(4), 18)
SPLITS = np.where(np.arange(72) % 4 == 0, "test", "train")
TRAIN = SPLITS == "train"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Three planted neurons a class; the mean activation goes with the counts, but not in proportion."""
    path = tmp_path_factory.mktemp("criteria") / "events"
    counts = planted_counts(LABELS, 4, seed=0)
    groups = np.arange(72) // 2
    write_artifacts(path, counts, LABELS, list("abcd"), task="t", groups=groups, splits=SPLITS)
    means = np.random.default_rng(0).normal(0, 0.1, counts.shape) + np.sqrt(counts)
    np.save(path / "clip_means.npy", means.astype(np.float16))
    found = load_artifacts(path)
    manifest = dict(found.manifest) | {"means": True}
    manifest["checksums"] |= {"clip_means.npy": sha256_of(path / "clip_means.npy")}
    write_manifest(path / "manifest.json", manifest)
    return load_artifacts(path)


LITERAL = {  # of one neuron: share of active tokens and mean activation of the class's clips, and of the others
    "p": lambda x, m, mine: x[mine].mean(),
    "p_difference": lambda x, m, mine: x[mine].mean() - x[~mine].mean(),
    "mean_difference": lambda x, m, mine: m[mine].mean() - m[~mine].mean(),
    "mean_margin": lambda x, m, mine: (
        m[mine].mean()
        - max(m[LABELS[TRAIN] == c].mean() for c in range(4) if not mine[LABELS[TRAIN] == c].any())
    ),
    "d_prime": lambda x, m, mine: (
        (x[mine].mean() - x[~mine].mean()) / np.sqrt((x[mine].var() + x[~mine].var()) / 2)
    ),
    "auroc": lambda x, m, mine: np.mean(
        [(a > b) + (a == b) / 2 for a in x[mine] for b in x[~mine]]
    ),
    "probeless": lambda x, m, mine: sum(
        abs(m[mine].mean() - m[LABELS[TRAIN] == c].mean()) for c in range(4)
    ),
}


@pytest.mark.parametrize("name", LITERAL)
def test_criteria_equal_literal_references(artifacts, name, monkeypatch):
    monkeypatch.setattr("aape.criteria.ranking.NEURONS_AT_ONCE", 70)
    found = rank(artifacts, name)  # of the training clips
    rates, means = (
        artifacts.counts[TRAIN] / TOKENS,
        np.asarray(artifacts.means)[TRAIN].astype(float),
    )
    for layer, neuron, c in itertools.product(range(3), range(0, 100, 3), range(4)):
        x, m = rates[:, layer, neuron], means[:, layer, neuron]
        expected = LITERAL[name](x, m, LABELS[TRAIN] == c) if x.std() or name != "d_prime" else 0.0
        assert found[layer, neuron, c] == pytest.approx(expected, abs=1e-9)


def test_probe_weights_are_those_of_the_ridge_that_leaving_one_out_chooses(artifacts):
    found = rank(artifacts, "probe_weights", split="train").reshape(300, 4)
    x = np.asarray(artifacts.means)[TRAIN].reshape(54, 300).astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = 2.0 * (LABELS[TRAIN][:, None] == np.arange(4)) - 1
    left_out = [cross_val_predict(Ridge(alpha), x, y, cv=LeaveOneOut()) for alpha in ALPHAS]
    best = ALPHAS[int(np.argmin([((predicted - y) ** 2).mean() for predicted in left_out]))]
    expected = Ridge(best).fit(x, y).coef_.T
    assert found == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())


def test_aape_ranks_members_by_entropy_and_nothing_else(artifacts):
    found = rank(artifacts, "aape", rate=0.05)
    chosen = select(artifacts.probabilities(split="train"), rate=0.05)
    assert (found[chosen.members] == -chosen.entropy[np.nonzero(chosen.members)[:2]]).all()
    assert (found[~chosen.members] == -np.inf).all()


def test_every_statistic_finds_the_planted_neurons_and_random_does_not(artifacts):
    planted = select(artifacts, rate=12 / 300).members
    assert planted.sum() == 12
    for name in CRITERIA:
        if name.startswith("attribution"):
            continue
        score = rank(artifacts, name, **({"rate": 12 / 300} if name == "aape" else {}))
        best = [set(np.argsort(-score[..., c].ravel(), kind="stable")[:3]) for c in range(4)]
        hits = sum(len(best[c] & set(np.flatnonzero(planted[..., c]))) for c in range(4))
        assert hits <= 2 if name == "random" else hits >= (6 if name == "p" else 10), name


def test_selection_by_any_criterion_takes_the_same_steps(artifacts):
    score = rank(artifacts, "auroc", split=["train", "test"])
    chosen = select(artifacts, scores=score, rate=0.05)
    assert chosen.selected.sum() == 15 and "score >" in repr(chosen)
    best = score.max(axis=2)
    assert set(best[chosen.selected]) == set(np.sort(best.ravel())[-15:])
    assert np.array_equal(
        chosen.members, chosen.selected[..., None] & (score > kth_smallest(score, 0.95))
    )
    with pytest.raises(ValueError, match="expected \\(3, 100, 4\\) without NaN"):
        select(artifacts, scores=score[:1])


def test_attribution_runs_the_model_at_hand(toy, task, tmp_path):
    artifacts = collect(toy, task, tmp_path / "run")
    splits = sorted(set(artifacts.splits))
    expected = -attribute(toy, task, artifacts, split=splits, progress=False)
    assert np.array_equal(
        rank(artifacts, "attribution_zero", encoder=toy, task=task, split=splits), expected
    )
    with pytest.raises(ValueError, match="encoder=, task="):
        rank(artifacts, "attribution_zero")


def test_a_criterion_of_ones_own_is_a_function(artifacts):
    def largest_clip(clips: Clips) -> np.ndarray:
        return clips.table(lambda x, members: np.stack([x[m > 0].max(axis=0) for m in members]))

    found = rank(artifacts, largest_clip, split="test")
    test = SPLITS == "test"
    assert found[1, 7, 2] == artifacts.counts[test & (LABELS == 2), 1, 7].max() / TOKENS
    with pytest.raises(ValueError, match="gave \\(3, 100\\), expected \\(3, 100, 4\\)"):
        rank(artifacts, lambda clips: clips.p().max(axis=2))
    with pytest.raises(ValueError, match="no criterion 'auc'.*auroc"):
        rank(artifacts, "auc")


def test_average_precision_and_best_threshold_equal_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(8):
        positive = rng.random(40) < rng.choice([0.1, 0.5])
        positive[0] = True
        x = np.stack(
            [
                rng.random(40),
                rng.integers(0, 3, 40),
                positive + rng.normal(0, 0.5, 40),
                np.ones(40),
            ],
            axis=1,
        )
        area, threshold = curve(x, positive)
        for k in range(4):
            assert area[k] == pytest.approx(average_precision_score(positive, x[:, k]))
            best = max(f1_score(positive, x[:, k] >= t) for t in set(x[:, k]))
            assert f1_score(positive, x[:, k] >= threshold[k]) == pytest.approx(best)


def test_scores_of_planted_neurons_are_high_and_under_permuted_labels_at_the_base(artifacts):
    pairs = select(artifacts, rate=12 / 300).table()
    found = held_out_scores(artifacts, pairs)
    assert (found[["auprc", "f1", "iou"]] > 0.8).all().all() and (found.base == 0.25).all()
    shuffled = held_out_scores(artifacts, pairs, np.random.default_rng(0).permutation(LABELS))
    assert abs(shuffled.auprc.mean() - 0.25) < 0.08 and shuffled.iou.mean() < 0.35
    # in one fold by hand: one neuron, thresholds from the other folds
    one = held_out_scores(
        artifacts, pd.DataFrame({"layer": [1], "neuron": [7], "class": ["b"]})
    ).iloc[0]
    fold, x = cross_folds(artifacts, np.arange(72)), artifacts.counts[:, 1, 7] / TOKENS
    said, mine = np.zeros(72, dtype=bool), LABELS == 1
    for f in range(5):
        others = fold != f
        reached = {
            t: f1_score(mine[others], x[others] >= t) for t in sorted(set(x[others]), reverse=True)
        }
        threshold = max(reached, key=reached.__getitem__)
        said[fold == f] = x[fold == f] >= threshold
    assert one.f1 == pytest.approx(f1_score(mine, said)) and one.iou == pytest.approx(
        jaccard_score(mine, said)
    )
    assert one.auprc == pytest.approx(average_precision_score(mine, x))
