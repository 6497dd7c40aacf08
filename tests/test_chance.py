"""Permutations, and p-values that hold on shuffled labels."""

import itertools

import numpy as np
import pytest
from fake_artifacts import planted_counts, write_artifacts

from aape.artifacts.folder import load_artifacts
from aape.neurons.chance import calibrate, calibrate_counts, counted_clips
from aape.neurons.null import below_uniform, permutation_null
from aape.neurons.permuting import Counted, UnitSums, exchangeable_units, permuted_labels
from aape.neurons.selection import Rule, entropy, select
from aape.neurons.statistic import Z_STEP, PairStatistic

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


def null_of(counts, labels, groups=None, **settings):
    groups = np.arange(len(labels)) if groups is None else groups
    rule = Rule(settings.pop("rate", 0.05), weak_filter=settings.pop("weak_filter", "lape"))
    settings = {"permutations": 99, "seed": 3, "progress": False} | settings
    return permutation_null(sums_of(counts, labels, groups), rule, **settings)


def sums_of(counts, labels, groups):
    return UnitSums(
        Counted(counts, labels, np.full(len(labels), TOKENS), groups),
        exchangeable_units(labels, groups),
    )


@pytest.mark.parametrize("crossed", [False, True])
def test_mean_and_variance_under_permutation_are_exact(crossed):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(18) % 3, 2) if crossed else np.repeat(np.arange(3), 12)
    groups = np.repeat(np.arange(6), 6) if crossed else np.repeat(np.arange(18), 2)
    counts = (
        rng.integers(0, 40, (36, 1, 4)) + 20 * (np.arange(36) // 6 % 2)[:, None, None]
    ).astype(np.uint8)
    sums = sums_of(counts, labels, groups)
    scale = PairStatistic(sums)
    labellings = permuted_labels(sums.units, 20000, seed=0)
    drawn = np.concatenate([active[:, 1].copy() for _, active in sums.by_class(labellings)])
    drawn -= 12 * TOKENS * scale.rate
    assert drawn.mean(axis=0) == pytest.approx(
        scale.mean[1], abs=5 * float(drawn.std(axis=0).max()) / 141
    )
    assert drawn.std(axis=0) == pytest.approx(1 / (Z_STEP * scale.cells_per_token[1]), rel=0.03)


@pytest.mark.parametrize("weak_filter", ["lape", "paper"])
def test_a_permutation_is_analysed_as_select_does_it(weak_filter):
    counts, labels = noise(0), np.arange(240) % 4
    null = null_of(counts, labels, weak_filter=weak_filter, permutations=20)
    for index, permuted in enumerate(permuted_labels(null.units, 20, seed=3)):
        p = np.stack([counts[permuted == c].sum(axis=0) / (60 * TOKENS) for c in range(4)], axis=-1)
        exact = select(p, rate=0.05, weak_filter=weak_filter)
        assert (
            null.per_class[index].tolist() == exact.per_class.tolist()
            and null.coverage[index] == exact.coverage
        )
        assert null.mean_aape[index] == pytest.approx(
            exact.entropy[exact.selected].mean(), abs=1e-5
        )
        assert null.classes_per_neuron[index] == pytest.approx(
            exact.per_class.sum() / exact.selected.sum()
        )


def test_results_do_not_depend_on_threads(monkeypatch):
    counts, labels, found = noise(1), np.arange(240) % 5, []
    for threads in (1, 3):
        monkeypatch.setattr("aape.neurons.permuting.THREADS", threads)
        monkeypatch.setattr("aape.neurons.null.THREADS", threads)
        found.append(null_of(counts, labels))
    one, three = found
    assert np.array_equal(one.pair_q, three.pair_q, equal_nan=True)
    assert np.array_equal(one.per_class, three.per_class) and np.array_equal(
        one.mean_aape, three.mean_aape
    )


def test_how_far_an_aape_lies_below_ln_c_is_exact_where_classes_hardly_differ():
    p = 0.9 + 1e-4 * np.random.default_rng(0).random((24, 300))
    p[:, :5] = p[1:, 5:10] = 0  # never active; active for one class only
    below, expected = below_uniform(p.astype(np.float32)), np.log(24) - entropy(p.T[None])[0]
    assert (below[:5] == -np.inf).all() and below[5:10] == pytest.approx(np.log(24), rel=1e-6)
    assert below[10:] == pytest.approx(expected[10:], rel=0.02) and expected[10:].max() < 1e-8


def designs():
    """Clips without groups; recordings inside classes, of unequal size; speakers across classes."""
    nested = np.repeat(np.arange(84), [1, 2, 3, 4, 5, 3, 2] * 12)
    yield np.arange(240) % 6, np.arange(240)
    yield np.random.default_rng(0).permutation(np.arange(84) % 6)[nested], nested
    yield np.arange(240) % 6, np.repeat(np.arange(10), 24)


@pytest.mark.parametrize("labels, groups", designs(), ids=["clips", "nested", "crossed"])
def test_p_values_are_uniform_on_shuffled_labels(labels, groups):
    """Also for the sparse neurons by themselves, where a normal tail would be far off."""
    found, discoveries = {"pairs": [], "neurons": [], "sparse": []}, 0
    for seed in range(12):
        counts = noise(seed, clips=len(labels), groups=groups)
        units = exchangeable_units(labels, groups)
        null = null_of(counts, next(permuted_labels(units, 1, 100 + seed))[units.of_clip], groups)
        varies, sparse = (
            ~np.isnan(null.pair_p),
            (counts > 0).mean(axis=0) < 0.06,
        )  # [layers, neurons]
        found["pairs"].append(null.pair_p[varies])
        found["neurons"].append(null.neuron_p[~np.isnan(null.neuron_p)])
        found["sparse"].append(null.pair_p[sparse & varies.any(axis=-1)].reshape(-1))
        discoveries += null.discoveries > 0 and null.task_p <= 0.05
    pairs, neurons, sparse = (np.concatenate(p) for p in found.values())
    for p, level in itertools.product((pairs, neurons), (0.5, 0.2, 0.1, 0.05, 0.01)):
        assert (p <= level).mean() == pytest.approx(level, rel=0.35)
    for level in (0.1, 0.05, 0.01, 0.002):  # counts of few clips are coarse: at most the level
        assert sparse.size > 1000 and (sparse <= level).mean() < 1.5 * level
    assert discoveries <= 3  # of 12, at 5 %: more has probability 0.2 %


def recordings_of_unequal_size(seed):
    """Half of the classes have few long recordings, half many short ones; the labels mean nothing.

    Neurons go up and down together from recording to recording. Labels are shuffled among recordings of equal size.
    """
    rng = np.random.default_rng([seed, 11])
    sizes = [[12] * 8 + [1] * 8 if c < 3 else [12] + [1] * 64 for c in range(6)]
    size, label = np.concatenate(sizes), np.repeat(np.arange(6), [len(s) for s in sizes])
    for s in (1, 12):
        label[size == s] = rng.permutation(label[size == s])
    groups = np.repeat(np.arange(len(size)), size)
    together = rng.normal(0, 1, (len(size), 5)) @ rng.normal(0, 0.8, (5, 300))
    rate = rng.beta(0.5, 3, 300) * np.exp(together[groups])
    return (
        rng.binomial(TOKENS, np.clip(rate, 0, 1)).astype(np.uint8).reshape(-1, 2, 150),
        label[groups],
        groups,
    )


def test_classes_of_few_long_recordings_give_no_discovery():
    found, p = 0, []
    for seed in range(24):
        null = null_of(*recordings_of_unequal_size(seed), rate=0.1)
        found += null.discoveries > 0 and null.task_p <= 0.05
        p.append(null.pair_p[:, :, :3])
    assert found <= 4  # of 24, at 5 %: more has probability 0.5 %
    assert (np.stack(p) <= 0.01).mean() == pytest.approx(0.01, rel=0.35)


def test_one_active_clip_is_not_significant_and_planted_neurons_are():
    labels, counts, rng = np.arange(240) % 6, noise(4), np.random.default_rng(9)
    counts[:, 1, 30:50] = rng.binomial(TOKENS, np.where(labels == 2, 0.5, 0.05)[:, None], (240, 20))
    null = null_of(counts, labels)
    planted = np.zeros(null.pair_q.shape, dtype=bool)
    planted[1, 30:50, 2] = True
    assert (
        (null.pair_q[planted] < 0.05).all()
        and (null.neuron_q[1, 30:50] < 0.05).all()
        and null.task_p == 0.01
    )
    assert (null.pair_q[~planted] < 0.05).sum() <= 6
    assert (null.pair_q[0, 5:15] > 0.2).all()  # all activity in one clip
    assert np.isnan(
        null.pair_q[0, [0, 1, 2, 3, 4, 15]]
    ).all()  # silent, or always active: not tested
    assert np.isnan(null.neuron_q[0, [0, 15]]).all()


def test_edges_have_defined_results():
    counts, labels = noise(2), np.arange(240) % 4
    one_class = null_of(counts, labels * 0)
    assert one_class.discoveries == 0 and one_class.task_p == 1 and np.isnan(one_class.pair_p).all()
    dead = null_of(np.zeros_like(counts), labels)
    assert np.isnan(dead.pair_p).all() and dead.per_class.sum() == 0 and (dead.coverage == 0).all()
    assert np.isnan(
        null_of(counts, np.arange(240) // 80, np.arange(240) // 80).pair_p
    ).all()  # only 6 labellings
    with pytest.raises(ValueError, match="at least 20"):
        null_of(counts, labels, permutations=5)
    with pytest.raises(ValueError, match="classes without a clip or token: indices \\[1, 3, 5\\]"):
        null_of(counts, labels * 2)


def planted_artifacts(path, padded=0):
    labels = np.arange(144) % 6
    write_artifacts(
        path, planted_counts(labels, 6, seed=0), labels, list("abcdef"), task="t", padded=padded
    )
    return load_artifacts(path)


def test_calibrated_selection_is_a_part_of_the_selection(tmp_path):
    artifacts = planted_artifacts(tmp_path)
    chosen = select(artifacts, rate=0.1)
    result = calibrate(artifacts, chosen, permutations=40, effect=0.3, progress=False)
    assert result.members.any() and not (result.members & ~chosen.members).any()
    assert (chosen.probabilities - result.selection.outside)[result.members].min() >= 0.3
    table = result.table()
    assert (
        result.coverage == 1
        and table.calibrated.sum() == result.per_class.sum() == result.members.sum()
    )
    row = table.iloc[3]
    assert row.q_value == pytest.approx(
        result.null.pair_q[row.layer, row.neuron, "abcdef".index(row["class"])]
    )
    assert f"; {result.members.sum()} of them are calibrated" in repr(result)
    assert (
        "q < 0.05 with class-level and task-level test, and a difference of at least 0.3"
        in repr(result)
    )
    train = select(artifacts.probabilities(split="train"), rate=0.1)
    assert calibrate(artifacts, train, split="train", permutations=20, progress=False).clips == 108
    with pytest.raises(ValueError, match="of the same split"):
        calibrate(artifacts, train, permutations=20)


def test_a_selection_without_padding_has_a_null_without_padding(tmp_path):
    artifacts = planted_artifacts(tmp_path, padded=20)
    bare, padded = (
        select(artifacts.probabilities(padding=padding), rate=0.1) for padding in (False, True)
    )
    without, found = (
        calibrate(artifacts, chosen, permutations=20, progress=False) for chosen in (bare, padded)
    )
    counts, tokens = (
        artifacts.counts - artifacts.padding_counts,
        artifacts.tokens - artifacts.padding_tokens,
    )
    data = Counted(
        counts, artifacts.labels, tokens, artifacts.groups, clips=counted_clips(artifacts).clips
    )
    expected = calibrate_counts(data, bare, permutations=20, progress=False)
    assert np.array_equal(without.null.pair_p, expected.null.pair_p, equal_nan=True)
    assert np.array_equal(without.null.mean_aape, expected.null.mean_aape)
    assert not np.array_equal(without.null.mean_aape, found.null.mean_aape)


def test_a_selection_by_scores_is_calibrated_pair_by_pair(tmp_path):
    artifacts = planted_artifacts(tmp_path)
    by_aape, by_scores = (
        select(artifacts, rate=0.1),
        select(artifacts, rate=0.1, scores=artifacts.probabilities()),
    )
    one, two = (
        calibrate(artifacts, chosen, permutations=20, progress=False)
        for chosen in (by_aape, by_scores)
    )
    assert np.array_equal(one.null.pair_p, two.null.pair_p, equal_nan=True)
    assert two.null.drawn is None and np.isnan(two.null.mean_aape).all()


def test_the_two_gates_are_reported_apart_and_all_pairs_are_listed(tmp_path):
    """Small differences that are significant are not large; large ones that AAPE does not select are listed."""
    labels, rng = np.arange(240) % 4, np.random.default_rng(0)
    rate = np.repeat(rng.beta(0.6, 5, 200)[None], 240, axis=0) * rng.gamma(20, 1 / 20, (240, 200))
    for c in range(4):
        rate[:, 5 * c : 5 * c + 5] = np.where(labels == c, 0.34, 0.30)[
            :, None
        ]  # significant, not large
        rate[:, 20 + 5 * c : 25 + 5 * c] = np.where(labels == c, 0.65, 0.40)[
            :, None
        ]  # large, and of high AAPE
        rate[:, 40 + 5 * c : 45 + 5 * c] = np.where(labels == c, 0.70, 0.02)[:, None]
    counts = rng.binomial(TOKENS, np.clip(rate, 0, 1)).reshape(240, 2, 100)
    write_artifacts(tmp_path, counts, labels, list("abcd"), task="t")
    artifacts = load_artifacts(tmp_path)
    found = calibrate(artifacts, select(artifacts, rate=0.1), permutations=99, progress=False)
    significant, large = (mask[0, :60].sum(axis=1) > 0 for mask in (found.significant, found.large))
    assert significant[:20].mean() > 0.8 and not large[:20].any()
    assert significant[20:].all() and large[20:].all()
    every = found.all_pairs()
    assert set(zip(every.neuron, every["class"], strict=True)) >= {
        (n, "abcd"[n // 5 % 4]) for n in range(20, 60)
    }
    assert every.groupby(every.neuron < 40).selected.mean().round().tolist() == [1, 0]
    assert (
        (every.q_value < 0.05).all()
        and every.difference.min() >= 0.1
        and every.difference.is_monotonic_decreasing
    )
    assert every.selected.sum() == found.members.sum() == found.table().calibrated.sum()
    row = every.iloc[0]
    x, inside = counts[:, row.layer, row.neuron] / TOKENS, labels == "abcd".index(row["class"])
    spread = np.sqrt((x[inside].var() + x[~inside].var()) / 2)
    assert row.d_prime == pytest.approx((x[inside].mean() - x[~inside].mean()) / spread)
    assert row.rate == pytest.approx(x[inside].mean()) and row.rate_outside == pytest.approx(
        x[~inside].mean()
    )
