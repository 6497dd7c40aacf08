"""Jaccard index, sharing under permuted labels, and whether classes that are alike share more."""

import numpy as np
import pytest

from aape.neurons.chance import calibrate_counts
from aape.neurons.null import PermutedSelections
from aape.neurons.permuting import Counted
from aape.neurons.selection import select
from aape.neurons.sharing import (
    against_permuted,
    by_distance,
    jaccard,
    matched,
    shared_neurons,
    sharing_against_chance,
)


def random_members(seed, layers=3, neurons=60, classes=6, density=0.15):
    rng = np.random.default_rng(seed)
    keep = rng.random((layers, neurons, 1)) < 0.5
    return keep & (rng.random((layers, neurons, classes)) < density)


def test_jaccard_equals_python_sets():
    a, b = random_members(0), random_members(1, classes=4)
    a[:, :, 2] = b[:, :, 0] = False  # classes without neurons
    found, both = jaccard(a, b), shared_neurons(a, b)
    for i, j in np.ndindex(6, 4):
        one, two = (set(map(tuple, np.argwhere(m))) for m in (a[:, :, i], b[:, :, j]))
        assert found[i, j] == pytest.approx(len(one & two) / max(len(one | two), 1)) and both[
            i, j
        ] == len(one & two)
    for wrong in (a[:, 1:], a.astype(int), a[0]):
        with pytest.raises(ValueError, match="two selections of one encoder, bool"):
            jaccard(a, wrong)


def drawn_of(selections):
    """What permutations selected, as `permutation_null` keeps it; selections: bool [layers, neurons, classes] each."""
    rows = np.stack([m.reshape(-1, m.shape[2]) for m in selections])  # [draws, neurons, classes]
    kept = rows.any(axis=2)
    most = kept.sum(axis=1).max()
    order = np.argsort(~kept, axis=1, kind="stable")[:, :most]
    members = np.take_along_axis(rows, order[:, :, None], axis=1).swapaxes(1, 2)
    neurons = np.where(np.take_along_axis(kept, order, axis=1), order, -1)
    return PermutedSelections(neurons, members, np.zeros(0, np.uint64), np.uint64(0))


def noise(seed, layers=2, width=150, classes=8, each=10):
    """Labels mean nothing, but neurons go up and down together from recording to recording, in 8 ways."""
    rng = np.random.default_rng([seed, 5])
    labels, groups = np.repeat(np.arange(classes), 3 * each), np.arange(classes * 3 * each) // 3
    rate = np.repeat(rng.beta(0.5, 3, layers * width)[None], len(labels), axis=0)
    rate *= np.exp(
        (rng.normal(0, 1, (groups.max() + 1, 8)) @ rng.normal(0, 0.5, (8, layers * width)))[groups]
    )
    counts = rng.binomial(60, np.clip(rate, 0, 1)).astype(np.uint8).reshape(-1, layers, width)
    return counts, labels, groups


def calibrated(counts, labels, groups, permutations=60, clips=None, **how):
    """clips: a number of the set of clips, None: not known."""
    p = np.stack([counts[labels == c].mean(axis=0) / 60 for c in range(labels.max() + 1)], axis=-1)
    known = None if clips is None else np.arange(len(labels), dtype=np.uint64) + 10_000 * clips
    data = Counted(counts, labels, np.full(len(labels), 60), groups, clips=known)
    return calibrate_counts(
        data, select(p, rate=0.15), permutations=permutations, progress=False, **how
    )


def test_the_null_is_the_index_of_what_each_permutation_selected():
    members = [
        [random_members(10 * draw + task, classes=4 + task) for draw in range(25)]
        for task in (0, 1)
    ]
    a, b = random_members(0, classes=4), random_members(1, classes=5)
    across = against_permuted(a, drawn_of(members[0]), b, drawn_of(members[1]))
    within = against_permuted(a, drawn_of(members[0]))
    for draw in range(25):
        assert across.null[draw] == pytest.approx(jaccard(members[0][draw], members[1][draw]))
        assert within.null[draw] == pytest.approx(jaccard(members[0][draw], members[0][draw]))
    assert np.array_equal(across.observed, jaccard(a, b)) and within.within and not across.within
    assert np.array_equal(across.shared, shared_neurons(a, b))
    assert (
        within.mean == pytest.approx(within.null.mean(axis=0)) and (within.low <= within.high).all()
    )
    unknown = against_permuted(a, None)
    assert np.array_equal(unknown.observed, jaccard(a, a)) and np.isnan(unknown.mean).all()


def test_a_class_of_few_long_recordings_alone_is_not_tested():
    """No other class has recordings of about as many clips."""
    label, size = np.repeat(np.arange(3), [5, 80, 80]), np.repeat([40, 2], [5, 160])
    groups = np.repeat(np.arange(165), size)
    counts = np.random.default_rng(0).binomial(60, 0.3, (len(groups), 1, 60)).astype(np.uint8)
    with pytest.warns(
        UserWarning, match="1 of 3 classes cannot be tested: 0. None of their neurons is calibrated"
    ):
        null = calibrated(counts, label[groups], groups, permutations=20).null
    assert np.isnan(null.pair_p[..., 0]).all() and not np.isnan(null.pair_p[..., 1]).all()
    assert np.isnan(null.class_p).tolist() == [True, False, False]


def test_permutations_of_two_tasks_are_independent_and_those_of_the_same_clips_are_one():
    """Laid out alike, with one seed: were they one, class c's permuted clips would be of the same classes in both tasks."""
    labels, groups, tasks = np.repeat(np.arange(6), 12), np.arange(72) // 3, []
    for seed in (0, 1):
        rate = np.full((72, 2, 150), 0.3)
        rate[:, 0, :60] = np.where(np.repeat(np.arange(6), 10) == labels[:, None], 0.6, 0.05)
        tasks.append(np.random.default_rng(seed).binomial(60, rate).astype(np.uint8))
    a, b = (
        calibrated(counts, labels, groups, clips=i, effect=0.0) for i, counts in enumerate(tasks)
    )
    null = sharing_against_chance(a, b).null.mean(axis=0)
    same = np.eye(6, dtype=bool)
    assert null[same].mean() < 2 * null[~same].mean()  # by one permutation: ten times
    halves = calibrated(
        tasks[0], labels // 2, groups, clips=0
    )  # the same groups swap labels: one permutation
    assert (
        a.null.drawn.moved == halves.null.drawn.moved
        and not np.isnan(sharing_against_chance(a, halves).mean).any()
    )
    within = calibrated(
        tasks[0], np.arange(72) % 2, groups, clips=0
    )  # clips swap labels within groups
    with pytest.warns(UserWarning, match="72 clips in common has no null"):
        assert np.isnan(sharing_against_chance(a, within).mean).all()


def test_planted_sharing_exceeds_what_permuted_labels_give():
    counts, labels, groups = noise(0)
    counts[:, 1, :24] = np.where(np.isin(labels, (2, 5)), 55, 0)[:, None]
    result = sharing_against_chance(calibrated(counts, labels, groups))
    assert result.observed[2, 5] > result.high[2, 5] and result.shared[2, 5] >= 20


def test_matched_is_the_share_of_matchings_by_hand():
    observed = np.array([[0.5, 0.1, 0.1], [0.1, 0.4, 0.2], [0.2, 0.1, 0.3]])
    same = np.eye(3, dtype=bool)
    result = matched(observed, same)
    assert (result.p, result.least_p) == (1 / 6, 1 / 6)  # best of the 3! matchings
    assert (result.alike, result.other) == pytest.approx((0.4, 0.8 / 6))
    worst = matched(observed[:, [1, 2, 0]], same)
    assert worst.p > 0.5
    # a class with many neurons shares with all: no sign of likeness
    assert matched(np.outer([1, 1, 1], [0.1, 0.9, 0.2]), same).p == 1
    assert (
        matched(np.array([[0.9, 0.1], [0.1, 0.9]]), np.eye(2, dtype=bool)).p == 0.5
    )  # two matchings only
    with pytest.raises(ValueError, match="found none"):
        matched(observed, np.ones((3, 3), dtype=bool))


def test_classes_that_are_large_in_both_tasks_are_not_alike_by_that():
    rng, size = np.random.default_rng(0), np.linspace(0.02, 0.5, 10)
    draw = lambda: jaccard(*(rng.random((2, 1, 300, 10)) < size))  # noqa: E731
    chance = np.mean([draw() for _ in range(300)], axis=0)
    p = [
        [matched(draw(), np.eye(10, dtype=bool), chance=c, permutations=500).p for _ in range(60)]
        for c in (None, chance)
    ]
    naive, honest = (np.array(p) <= 0.05).mean(axis=1)
    assert honest <= 0.13 < naive  # of 60, at 5 %: more than 0.13 has probability 0.5 %


def test_matched_p_is_uniform_where_likeness_means_nothing():
    rng = np.random.default_rng(0)
    alike = np.zeros((12, 15), dtype=bool)
    alike[np.arange(12), np.arange(12)] = True
    octaves = np.abs(np.subtract.outer(np.arange(14), np.arange(14))) == 12
    beside = np.isin(np.abs(np.subtract.outer(np.arange(14), np.arange(14))), (11, 13))
    p = []
    for seed in range(300):
        across = rng.random((12, 15)) + rng.random(15)  # some classes have more neurons
        own = rng.random((14, 14)) + np.add.outer(*[rng.random(14)] * 2)
        settings = {"permutations": 199, "seed": seed}
        both = (
            matched(across, alike, **settings),
            matched(own + own.T, octaves, beside, within=True, **settings),
        )
        p.append([found.p for found in both])
    for values in np.transpose(p):
        for level in (0.5, 0.2, 0.05):
            assert (values <= level).mean() == pytest.approx(
                level, abs=3 * np.sqrt(level * (1 - level) / 300)
            )


def test_octaves_show_in_the_curve_by_distance():
    pitches = np.arange(48, 85)
    members = np.zeros((2, 400, len(pitches)), dtype=bool)
    for index, pitch in enumerate(pitches):
        members[0, pitch % 12 * 10 : pitch % 12 * 10 + 10, index] = (
            True  # a set for each pitch class
        )
        members[1, 5 * index : 5 * index + 5, index] = True  # and one of its own
    observed = jaccard(members, members)
    curve = by_distance(observed, pitches, pitches, within=True)
    peaks = curve.semitones[curve.mean_jaccard > curve.chance_high]
    assert peaks.tolist() == [12, 24]  # only one pair is three octaves apart
    assert (
        curve.pairs[12] == len(pitches) - 12
        and curve.pairs[0] == 0
        and np.isnan(curve.mean_jaccard[0])
    )
    apart = np.abs(np.subtract.outer(pitches, pitches))
    octaves, beside = (apart > 0) & (apart % 12 == 0), (apart > 1) & np.isin(apart % 12, (1, 11))
    assert matched(observed, octaves, beside, within=True, permutations=199).p == 1 / 200
