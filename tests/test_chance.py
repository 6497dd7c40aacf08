"""Permutations, p-values that hold on shuffled labels, stability."""

from __future__ import annotations

import numpy as np
import pytest

from aape.chance import (
    _fast_aape,
    _halves,
    _standardisation,
    benjamini_hochberg,
    exchangeable_units,
    permutation_null,
    permuted_labels,
    pooled_p,
    shuffled_clip_labels,
    stability,
    unit_sums,
)
from aape.selection import select

TOKENS = 60


def noise(seed, clips=240, layers=2, neurons=150, groups=None):
    """Counts of neurons of very different rate and sparsity, some active in one clip only, some never."""
    rng = np.random.default_rng(seed)
    width = layers * neurons
    rate = np.repeat(rng.beta(0.4, 1.5, width)[None], clips, axis=0)
    rate *= rng.random((clips, width)) < np.where(np.arange(width) % 3 == 0, 0.05, 1)  # bursts
    if groups is not None:  # clips of one group are alike
        rate *= rng.gamma(2, 0.5, (groups.max() + 1, width))[groups]
    counts = rng.binomial(TOKENS, np.clip(rate, 0, 1))
    counts[:, :5] = 0
    counts[:, 5:15] = 0
    counts[rng.integers(clips, size=10), np.arange(5, 15)] = TOKENS
    counts[:, 15] = TOKENS  # always active: never varies
    return counts.reshape(clips, layers, neurons).astype(np.uint8)


def null_of(counts, labels, groups, **settings):
    settings = {"permutations": 99, "rate": 0.05, "seed": 3, "progress": False} | settings
    return permutation_null(counts, np.full(len(counts), TOKENS), exchangeable_units(labels, groups), **settings)


def test_groups_of_one_class_move_whole_and_others_are_shuffled_inside():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 0, 1, 2])
    groups = np.array(["a", "a", "b", "c", "c", "d", "e", "s", "s", "s"])
    units = exchangeable_units(labels, groups)
    assert (units.whole, units.split, len(units)) == (5, 1, 8)
    assert "within 1 groups of several classes and among 5" in units.description
    seen = set()
    for shuffled in permuted_labels(units, 300, seed=0):
        clips = shuffled[units.of_clip]
        assert clips[0] == clips[1] and clips[3] == clips[4]
        assert sorted(clips[7:]) == [0, 1, 2]  # the speaker of all classes keeps one of each
        whole = [clips[0], clips[2], clips[3], clips[5], clips[6]]
        assert sorted(whole) == [0, 0, 1, 2, 2]
        seen.add((tuple(whole), tuple(clips[7:])))
    assert len(seen) > 100  # of 30 x 6


def test_permutations_are_seeded():
    units = exchangeable_units(np.arange(50) % 5, np.arange(50))
    first, again = (list(permuted_labels(units, 5, seed=7)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], next(permuted_labels(units, 1, seed=8)))


def test_units_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="3 labels, 2 groups"):
        exchangeable_units([0, 1, 1], ["a", "b"])
    with pytest.raises(ValueError, match="at least one clip"):
        exchangeable_units([], [])
    with pytest.raises(ValueError, match="from 0 to 1"):
        exchangeable_units([0, 2], ["a", "b"], 2)


def test_unit_sums_equal_a_loop():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 600), rng.integers(0, 200, 600)
    counts = rng.integers(0, 255, (600, 2, 7)).astype(np.uint8)
    units = exchangeable_units(labels, groups)
    tokens = rng.integers(1, 300, 600)
    sums, unit_tokens = unit_sums(counts, tokens, units)
    for unit in range(len(units)):
        mine = units.of_clip == unit
        assert np.array_equal(sums[unit], counts[mine].sum(axis=0).reshape(-1))
        assert unit_tokens[unit] == tokens[mine].sum()
    with pytest.raises(ValueError, match="599 tokens"):
        unit_sums(counts, tokens[1:], units)


@pytest.mark.parametrize("crossed", [False, True])
def test_mean_and_variance_under_permutation_are_exact(crossed):
    rng = np.random.default_rng(1)
    labels = np.arange(36) % 3 if crossed else np.repeat(np.arange(3), 12)
    groups = np.repeat(np.arange(6), 6) if crossed else np.repeat(np.arange(18), 2)
    units = exchangeable_units(labels, groups)
    counts = (rng.integers(0, 40, (36, 1, 4)) + 20 * (np.arange(36) // 6 % 2)[:, None, None]).astype(np.uint8)
    sums, tokens = unit_sums(counts, np.full(36, TOKENS), units)
    scale = _standardisation(sums, tokens, units)
    drawn = []
    for shuffled in permuted_labels(units, 20000, seed=0):
        mine = shuffled == 1
        drawn.append(sums[mine].sum(axis=0) - tokens[mine].sum() * scale.rate)
    drawn = np.array(drawn)
    mean = np.zeros(4) if scale.mean is None else scale.mean[1]
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=5 * drawn.std(axis=0).max() / 141)
    assert drawn.std(axis=0) == pytest.approx(1 / scale.inverse[1], rel=0.03)


def test_the_fast_entropy_and_selection_equal_the_exact_ones():
    """The first of the labellings is the data's own: a permutation must be analysed as `select` does it."""
    counts = noise(0)
    labels = np.arange(240) % 4
    from aape.chance import _Permutation

    for weak_filter in ("lape", "paper"):
        units = exchangeable_units(labels, np.arange(240))
        sums, tokens = unit_sums(counts, np.full(240, TOKENS), units)
        run = _Permutation(sums, tokens, units, _standardisation(sums, tokens, units), 0.05, 0.95, weak_filter)
        entropy, _, per_class, (coverage, per_neuron, mean_aape, selected) = run(labels)
        p = np.stack([counts[labels == c].sum(axis=0) / (60 * TOKENS) for c in range(4)], axis=-1)
        exact = select(p, rate=0.05, weak_filter=weak_filter)
        finite = np.isfinite(exact.entropy.reshape(-1))
        assert np.array_equal(np.isfinite(entropy), finite) and (~finite).sum() >= 5
        assert entropy[finite] == pytest.approx(exact.entropy.reshape(-1)[finite], abs=2e-6)
        assert per_class.tolist() == exact.per_class.tolist()
        assert (coverage, selected) == (exact.coverage, exact.selected.sum())
        assert mean_aape == pytest.approx(exact.entropy[exact.selected].mean(), abs=1e-5)
        assert per_neuron == pytest.approx(exact.per_class.sum() / selected)


def test_fast_entropy_of_a_dead_neuron_is_infinite():
    assert _fast_aape(np.array([[0, 0.5], [0, 0.5]], dtype=np.float32)).tolist() == [
        np.inf,
        pytest.approx(np.log(2), abs=1e-6),
    ]


def designs():
    """Clips alone; recordings inside classes, of unequal size; speakers across classes."""
    alone = np.arange(240)
    nested = np.concatenate([np.full(size, i) for i, size in enumerate([1, 2, 3, 4, 5, 3, 2] * 12)])
    label_of = np.random.default_rng(0).permutation(np.arange(84) % 6)
    crossed = np.repeat(np.arange(10), 24)
    return {
        "clips": (np.arange(240) % 6, alone),
        "nested": (label_of[nested], nested),
        "crossed": (np.arange(240) % 6, crossed),
    }


@pytest.mark.parametrize("design", ["clips", "nested", "crossed"])
def test_p_values_are_uniform_on_shuffled_labels(design):
    """Also for the sparse neurons by themselves, where a normal tail would be far off."""
    labels, groups = designs()[design]
    pairs, neurons, sparse, discoveries = [], [], [], 0
    for seed in range(12):
        counts = noise(seed, clips=len(labels), groups=groups)
        shuffled = shuffled_clip_labels(exchangeable_units(labels, groups), seed=100 + seed)
        null = null_of(counts, shuffled, groups)
        varies = ~np.isnan(null.pair_p)
        pairs.append(null.pair_p[varies])
        active = (counts > 0).mean(axis=0) < 0.06  # [layers, neurons]
        sparse.append(null.pair_p[active & varies.any(axis=-1)].reshape(-1))
        neurons.append(null.neuron_p[~np.isnan(null.neuron_p)])
        discoveries += null.discoveries > 0 and null.task_p <= 0.05
    for name, p in (("pairs", pairs), ("neurons", neurons)):
        p = np.concatenate(p)
        for level in (0.5, 0.2, 0.1, 0.05, 0.01):
            assert (p <= level).mean() == pytest.approx(level, rel=0.35), (name, level)
    p = np.concatenate(sparse)
    assert p.size > 1000
    for level in (0.1, 0.05, 0.01, 0.002):  # counts of few clips are coarse: at most the level
        assert (p <= level).mean() < 1.5 * level, ("sparse", level)
    assert discoveries <= 3  # of 12, at 5 %: more has probability 0.2 %


def test_one_active_clip_is_not_significant_and_planted_neurons_are():
    labels = np.arange(240) % 6
    counts = noise(4)
    rng = np.random.default_rng(9)
    for neuron in range(30, 50):
        counts[labels == 2, 1, neuron] = rng.binomial(TOKENS, 0.5, (labels == 2).sum())
        counts[labels != 2, 1, neuron] = rng.binomial(TOKENS, 0.05, (labels != 2).sum())
    null = null_of(counts, labels, np.arange(240))
    assert (null.pair_q[1, 30:50, 2] < 0.05).all()
    assert (null.neuron_q[1, 30:50] < 0.05).all()
    assert null.task_p == 0.01  # 1 / (99 + 1)
    others = null.pair_q.copy()
    others[1, 30:50, 2] = 1
    assert (others[~np.isnan(others)] < 0.05).sum() <= 6
    assert (null.pair_q[0, 5:15] > 0.2).all()  # all activity in one clip
    never = null.pair_q[0, [0, 1, 2, 3, 4, 15]]
    assert np.isnan(never).all()  # silent, or always active: not tested
    assert np.isnan(null.neuron_q[0, [0, 15]]).all()


def test_shuffled_labels_select_as_many_neurons_but_at_higher_entropy():
    """What the issue is about: coverage does not tell structure from noise, AAPE does."""
    labels = np.arange(240) % 6
    counts = noise(4)
    for c in range(6):
        counts[labels == c, 1, 30 + 5 * c : 35 + 5 * c] = TOKENS // 2
    p = np.stack([counts[labels == c].sum(axis=0) / (40 * TOKENS) for c in range(6)], axis=-1)
    real = select(p, rate=0.05)
    null = null_of(counts, labels, np.arange(240))
    assert null.per_class.shape == (99, 6) and null.coverage.shape == (99,)
    assert real.entropy[real.selected].mean() < null.mean_aape.min()
    assert (null.selected == real.selected.sum()).all()
    assert null.coverage.mean() > 0.9


def test_results_do_not_depend_on_threads():
    counts, labels = noise(1), np.arange(240) % 5
    one, three = (null_of(counts, labels, np.arange(240), threads=n) for n in (1, 3))
    assert np.array_equal(one.pair_q, three.pair_q, equal_nan=True)
    assert np.array_equal(one.per_class, three.per_class)
    assert np.array_equal(one.mean_aape, three.mean_aape)


def test_edges_have_defined_results():
    counts = noise(2)
    one_class = null_of(counts, np.zeros(240, dtype=int), np.arange(240))
    assert one_class.discoveries == 0 and one_class.task_p == 1
    assert (one_class.pair_p[~np.isnan(one_class.pair_p)] == 1).all()
    labels = np.arange(240) % 4
    labels[0] = 4  # a class with one clip
    lone = null_of(counts, labels, np.arange(240))
    assert lone.per_class.shape == (99, 5) and not (lone.pair_q < 0.05).any()
    dead = null_of(np.zeros_like(counts), labels, np.arange(240))
    assert np.isnan(dead.pair_p).all() and dead.per_class.sum() == 0 and (dead.coverage == 0).all()
    one_group_each = null_of(counts, np.arange(240) // 80, np.arange(240) // 80)
    assert one_group_each.discoveries == 0  # there are but 6 labellings


def test_bad_settings_are_named():
    counts, labels = noise(2), np.arange(240) % 4
    with pytest.raises(ValueError, match="at least 20"):
        null_of(counts, labels, np.arange(240), permutations=5)
    with pytest.raises(ValueError, match="pass fewer clips"):
        null_of(counts, labels, np.arange(240), max_bytes=1000)
    with pytest.raises(ValueError, match="classes without a clip.*\\[1, 3, 5\\]"):
        null_of(counts, labels * 2, np.arange(240))
    with pytest.raises(ValueError, match="lape, paper"):
        null_of(counts, labels, np.arange(240), weak_filter="none")


def test_benjamini_hochberg_by_hand_and_with_missing_values():
    q = benjamini_hochberg(np.array([0.01, np.nan, 0.04, 0.03]))
    assert q[[0, 2, 3]] == pytest.approx([0.03, 0.04, 0.04]) and np.isnan(q[1])


def test_pooled_p_counts_ties_and_ignores_constants():
    null = np.tile([[0.0, 5.0], [1.0, 5.0]], (50, 1))
    p = pooled_p(np.array([1.0, 5.0]), null, np.zeros(2, dtype=int))
    assert p.tolist() == [pytest.approx(51 / 101), 1.0]


def test_halves_keep_groups_whole_and_every_class_in_both():
    labels = np.repeat(np.arange(4), 12)
    groups = np.repeat(np.arange(16), 3)
    units = exchangeable_units(labels, groups)
    half = _halves(units, np.random.default_rng(0))
    for c in range(4):
        assert sorted(half[units.label == c]) == [0, 0, 1, 1]
    crossed = exchangeable_units(np.arange(48) % 4, np.repeat(np.arange(8), 6))
    half = _halves(crossed, np.random.default_rng(0))
    assert all(len(set(half[crossed.group == g])) == 1 for g in range(8)) and half.mean() == 0.5


def test_stability_is_high_for_planted_neurons_and_low_for_noise():
    labels = np.arange(240) % 6
    # neurons of equal rate: then it is chance which are selected, and for which class
    counts = np.random.default_rng(0).binomial(TOKENS, 0.2, (240, 2, 150))
    units = exchangeable_units(labels, np.arange(240))
    tokens = np.full(240, TOKENS)
    low = stability(counts, tokens, units, rate=0.05, splits=4)
    for c in range(6):
        counts[:, 1, 30 + 5 * c : 35 + 5 * c] = 0
        counts[labels == c, 1, 30 + 5 * c : 35 + 5 * c] = TOKENS // 2
    high = stability(counts, tokens, units, rate=0.05, splits=4)
    assert high.mean > low.mean + 0.2 and high.by_class.shape == (6,)
    lone = labels.copy()
    lone[0] = 6  # a single clip cannot be in both halves
    assert np.isnan(stability(counts, tokens, exchangeable_units(lone, np.arange(240)), splits=2).by_class[6])
