"""Levels of the tests of neurons: counted discoveries in simulations where there is nothing to discover."""

import itertools

import numpy as np
import pytest

from aape.neurons.chance import calibrate_counts
from aape.neurons.permuting import Counted
from aape.neurons.selection import select

TOKENS = 60


def calibrated(counts, labels, groups, tokens=None, rate=0.1, **how):
    """`calibrate_counts` of counts [clips, neurons], by default with every difference large enough."""
    tokens = np.full(len(labels), TOKENS) if tokens is None else tokens
    totals = [
        (counts[labels == c].sum(axis=0), tokens[labels == c].sum())
        for c in range(labels.max() + 1)
    ]
    p = np.stack([active / number for active, number in totals], axis=-1)[None]
    data = Counted(counts[:, None], labels, tokens, groups)
    settings = {"permutations": 99, "effect": 0.0, "progress": False} | how
    return calibrate_counts(data, select(p, rate=rate), **settings)


def random_classes_among_real_ones(seed, size, number=5):
    """Ten classes of 30 clips with 30 neurons each, and clips drawn at random from them as classes of their own."""
    rng = np.random.default_rng([seed, 1])
    labels = np.repeat(np.arange(10), 30)
    unusual = rng.standard_t(3, (300, 6)) @ rng.normal(
        0, 0.5, (6, 400)
    )  # some clips are unusual in many neurons
    logit = rng.normal(-2, 1, 400) + unusual + rng.normal(0, 0.4, (300, 400))
    logit[:, :300] += 2 * (labels[:, None] == np.arange(300) // 30)
    chosen = rng.permutation(300)[: number * size]
    labels[chosen] = 10 + np.arange(number * size) // size
    return rng.binomial(TOKENS, 1 / (1 + np.exp(-logit))).astype(np.uint8), labels


def test_a_random_class_has_a_calibrated_neuron_in_five_percent_of_runs():
    """Whatever its size and whatever other classes hold. With q over all pairs alone, 12 to 25 % of these classes had one."""
    random, real = [], []
    for seed, size in itertools.product(range(10), (1, 2, 6)):
        counts, labels = random_classes_among_real_ones(seed, size)
        found = calibrated(counts, labels, np.arange(300))
        random += found.members[0, :, 10:].any(axis=0).tolist()
        real += (found.null.class_p[:10] <= 0.05).tolist()
        preferred = np.arange(300)[:, None] // 30 == np.arange(10)
        assert found.significant[0, :300, :10][preferred].mean() > 0.65
    assert len(random) == 150 and sum(random) <= 15  # at 5 %: more has probability 0.3 %
    assert all(real)  # the real classes keep their power


def test_class_p_is_uniform_whatever_the_size():
    """Classes of 2 and 8 clips without meaning, next to large classes and to real ones."""
    p = []
    for seed in range(30):
        rng = np.random.default_rng([seed, 4])
        labels = rng.permutation(np.repeat(np.arange(4), [2, 8, 90, 100]))
        strong = np.repeat([4, 5], 40)
        logit = rng.normal(-2, 1, 120) + rng.standard_t(3, (280, 4)) @ rng.normal(0, 0.4, (4, 120))
        logit[200:, :60] += 3 * (strong[:, None] == 4)  # real classes
        labels = np.concatenate([labels, strong])
        counts = rng.binomial(TOKENS, 1 / (1 + np.exp(-logit))).astype(np.uint8)
        null = calibrated(counts, labels, np.arange(280), permutations=59).null
        p.append(null.class_p)
    small, strong = np.stack(p)[:, :2], np.stack(p)[:, 4]
    assert (strong == 1 / 60).all()
    for level in (0.5, 0.2):
        assert (small <= level).mean() < level + 3 * np.sqrt(level * (1 - level) / 60)


def speakers_with_ways_of_their_own(seed, sd, effect=0.0):
    """16 speakers x 6 classes x 2 clips; each speaker shows each class in an own way (sd in logits) that others do not share."""
    rng = np.random.default_rng([seed, 2])
    labels, groups = np.tile(np.repeat(np.arange(6), 2), 16), np.repeat(np.arange(16), 12)
    own_way = rng.normal(0, sd, (96, 240))[groups * 6 + labels]
    logit = (
        rng.normal(-1, 1, 240)
        + rng.normal(0, 0.7, (16, 240))[groups]
        + own_way
        + rng.normal(0, 0.3, (192, 240))
    )
    logit[:, :60] += effect * (labels[:, None] == np.arange(60) // 10)
    return rng.binomial(TOKENS, 1 / (1 + np.exp(-logit))).astype(np.uint8), labels, groups


def test_what_single_speakers_do_is_no_preference_for_a_class():
    """With labels permuted clip by clip, four of five such runs had a calibrated neuron, and all one of low AAPE."""
    found = np.zeros(3, dtype=int)
    p = []
    for seed in range(16):
        result = calibrated(*speakers_with_ways_of_their_own(seed, 0.7))
        null = result.null
        found += result.members.any(), null.task_p <= 0.05, (null.neuron_q < 0.05).any()
        p.append(null.pair_p)
    assert max(found) <= 3  # of 16, at 5 %: more has probability 0.7 %
    assert (np.stack(p) <= 0.05).mean() == pytest.approx(0.05, rel=0.35)
    planted = calibrated(*speakers_with_ways_of_their_own(0, 0.3, effect=1.0)).significant[0]
    truth = np.arange(240)[:, None] // 10 == np.arange(6)
    assert planted[truth].mean() > 0.8 and planted[~truth].sum() <= 0.1 * planted.sum()


def test_sizes_are_tokens_and_not_clips():
    """Clips of class 0 last longer and so vary more; their p <= 0.01 came 2 to 3 times too often among as many clips."""
    p = []
    for seed in range(20):
        rng = np.random.default_rng([seed, 3])
        labels = np.arange(120) % 4
        tokens = np.where(labels == 0, rng.integers(40, 120, 120), rng.integers(20, 60, 120))
        rate = rng.beta(1, 3, 200) * np.exp(
            rng.normal(0, 1, (120, 4)) @ rng.normal(0, 0.5, (4, 200))
        )
        counts = rng.binomial(tokens[:, None], np.clip(rate, 0, 1)).astype(np.uint8)
        p.append(
            calibrated(counts, labels, np.arange(120), tokens, permutations=49).null.pair_p[0, :, 0]
        )
    assert (np.stack(p) <= 0.01).mean() < 0.015
