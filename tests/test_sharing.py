"""Jaccard, and sharing against memberships re-dealt among the selected neurons."""

from __future__ import annotations

import numpy as np
import pytest

from aape.sharing import by_distance, jaccard, redeal, shared_neurons, sharing_against_chance


def random_members(seed, layers=3, neurons=60, classes=6, density=0.15):
    rng = np.random.default_rng(seed)
    keep = rng.random((layers, neurons, 1)) < 0.5
    return keep & (rng.random((layers, neurons, classes)) < density)


def test_jaccard_equals_python_sets():
    a, b = random_members(0), random_members(1, classes=4)
    a[:, :, 2] = False  # a class without neurons
    b[:, :, 0] = False
    result = jaccard(a, b)
    for i in range(6):
        for j in range(4):
            one, two = (set(map(tuple, np.argwhere(m))) for m in (a[:, :, i], b[:, :, j]))
            expected = len(one & two) / len(one | two) if one | two else 0.0
            assert result[i, j] == pytest.approx(expected)
            assert shared_neurons(a, b)[i, j] == len(one & two)
    assert result[2, 0] == 0
    assert (np.diag(jaccard(b, b))[1:] == 1).all()


def test_redealing_keeps_both_margins_and_moves_memberships():
    members = random_members(2)
    dealt = redeal(members, 50, np.random.default_rng(0))
    where = np.flatnonzero(members.any(axis=2))
    rows = members.reshape(-1, 6)[where]
    layer = where // 60
    assert dealt.shape == (50, len(where), 6)
    assert (dealt.sum(axis=2) == rows.sum(axis=1)).all()  # classes per neuron
    for index in range(3):
        mine = layer == index
        assert (dealt[:, mine].sum(axis=1) == rows[mine].sum(axis=0)).all()  # neurons per class and layer
    assert (dealt != rows).any(axis=(1, 2)).all()


def test_redealing_visits_every_table_equally_often():
    """Three neurons, three classes, margins of one: the six permutation matrices are equally likely."""
    members = np.eye(3, dtype=bool)[None]
    dealt = redeal(members, 6000, np.random.default_rng(0))
    counts = np.unique(dealt.reshape(6000, 9) @ (2 ** np.arange(9)), return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_independent_tasks_share_no_more_than_chance():
    rejected = []
    for seed in range(15):
        a, b = random_members(seed), random_members(100 + seed, classes=5)
        rejected.append(sharing_against_chance(a, b, draws=100, seed=seed).p)
    p = np.stack(rejected)
    for level in (0.5, 0.2, 0.05):
        assert (p <= level).mean() == pytest.approx(level, abs=0.05)


def test_planted_sharing_survives_and_the_rest_does_not():
    a, b = random_members(0, neurons=200), random_members(1, neurons=200, classes=4)
    a[:, :30, 3] = True
    b[:, :30, 1] = True
    result = sharing_against_chance(a, b, draws=200)
    assert not result.within
    assert result.q[3, 1] < 0.05 and (result.q < 0.05).sum() <= 2
    assert result.observed[3, 1] > result.high[3, 1] > result.mean[3, 1] > result.low[3, 1]
    assert np.array_equal(result.observed, jaccard(a, b))


def test_within_a_task_the_result_is_symmetric_and_leaves_out_the_diagonal():
    members = random_members(0, neurons=200)
    members[:, :, 1] = members[:, :, 0]
    members[0, 0, 5] = True
    result = sharing_against_chance(members, draws=200)
    assert result.within and np.isnan(np.diag(result.p)).all()
    off = ~np.eye(6, dtype=bool)
    assert np.array_equal(result.p[off], result.p.T[off])
    assert result.q[0, 1] < 0.05
    again = sharing_against_chance(members, draws=200)
    assert np.array_equal(result.null, again.null)


def test_being_selected_by_both_tasks_is_not_sharing_between_classes():
    """The same neurons selected by both tasks, memberships unrelated: high Jaccard, no significance."""
    rng = np.random.default_rng(0)
    chosen = np.zeros((2, 300, 1), dtype=bool)
    chosen[:, :40] = True
    a, b = (chosen & (rng.random((2, 300, 5)) < 0.5) for _ in range(2))
    result = sharing_against_chance(a, b, draws=200)
    assert result.observed.mean() > 0.2  # against all 600 neurons this would look like a lot
    assert not (result.q < 0.05).any()


def test_empty_and_full_memberships_have_defined_results():
    a = random_members(0)
    empty = np.zeros_like(a)
    nothing = sharing_against_chance(a, empty, draws=30)
    assert (nothing.observed == 0).all() and np.isnan(nothing.p).all() and np.isnan(nothing.q).all()
    full = np.zeros_like(a)
    full[:, :10] = True  # every neuron has every class: nothing can be re-dealt
    fixed = sharing_against_chance(full, draws=30)
    assert (fixed.p[~np.eye(6, dtype=bool)] == 1).all()
    single = sharing_against_chance(a[:, :, :1], draws=30)
    assert single.p.shape == (1, 1) and np.isnan(single.p).all()


def test_octaves_show_in_the_curve_by_distance():
    pitches = np.arange(48, 85)
    members = np.zeros((2, 400, len(pitches)), dtype=bool)
    for index, pitch in enumerate(pitches):
        members[0, pitch % 12 * 10 : pitch % 12 * 10 + 10, index] = True  # a set for each pitch class
        members[1, 5 * index : 5 * index + 5, index] = True  # and one of its own
    curve = by_distance(sharing_against_chance(members, draws=60), pitches, pitches)
    peaks = curve.distance[curve.observed > curve.high]
    assert peaks.tolist() == [12, 24, 36]
    assert curve.pairs[12] == len(pitches) - 12 and curve.pairs[0] == 0 and np.isnan(curve.observed[0])
    with pytest.raises(ValueError, match="pitches for \\(37, 37\\)"):
        by_distance(sharing_against_chance(members, draws=20), pitches[1:], pitches)


def test_bad_members_are_named():
    a = random_members(0)
    with pytest.raises(ValueError, match="different shape: \\(3, 60\\) and \\(3, 59\\)"):
        jaccard(a, a[:, 1:])
    with pytest.raises(ValueError, match="as bool"):
        jaccard(a, a.astype(int))
    with pytest.raises(ValueError, match="first: expected members"):
        jaccard(a[0], a)
    with pytest.raises(ValueError, match="at least 20"):
        sharing_against_chance(a, draws=3)
