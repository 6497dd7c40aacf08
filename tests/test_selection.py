"""AAPE and selection, against a slow literal implementation of the published procedure."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from fake_artifacts import write_artifacts

from aape.artifacts.folder import load_artifacts
from aape.neurons.selection import entropy, kth_smallest, select

pytestmark = pytest.mark.filterwarnings("ignore:.*of all activation probabilities are 1")

CLOSE = 1e-11  # nats; entropies nearer than this are a tie, whatever the order of summation


# The published procedure, word by word, in Python numbers. Probabilities are exact fractions.


def literal_entropy(p: list[Fraction]) -> float:
    total = sum(p)
    if total == 0:
        return math.inf
    return -sum(float(x / total) * math.log(x / total) for x in p if x > 0)


def literal_select(p, rate, quantile, weak_filter):
    """(threshold, eligible neurons, entropy by neuron, how many to keep) of p[layer][neuron][class]."""
    neurons = [(layer, n) for layer in range(len(p)) for n in range(len(p[layer]))]
    flat = sorted(x for layer, n in neurons for x in p[layer][n])
    threshold = flat[max(round(quantile * len(flat)), 1) - 1]
    others = [x for x in flat if x < 1]
    if (
        threshold == 1 and quantile < 1 and others
    ):  # ours: nothing exceeds 1, so the other values decide
        threshold = others[max(round(quantile * len(others)), 1) - 1]
    entropy = {(layer, n): literal_entropy(p[layer][n]) for layer, n in neurons}
    if weak_filter == "lape":
        eligible = [(a, b) for a, b in neurons if any(x > threshold for x in p[a][b])]
    else:
        largest = sorted(max(p[a][b]) for a, b in neurons)
        k = round(0.05 * len(neurons))
        eligible = [(a, b) for a, b in neurons if k == 0 or max(p[a][b]) > largest[k - 1]]
    eligible = [key for key in eligible if entropy[key] < math.inf]
    return threshold, eligible, entropy, min(round(rate * len(neurons)), len(eligible))


def check_against_literal(
    counts: np.ndarray, tokens: np.ndarray, rate=0.1, quantile=0.95, weak_filter="lape"
):
    """counts [L, N, C] of tokens [C]: the same neurons per class, up to which of the tied at the cut."""
    exact = np.frompyfunc(lambda x, t: Fraction(int(x), int(t)), 2, 1)(counts, tokens).tolist()
    threshold, eligible, entropy, keep = literal_select(exact, rate, quantile, weak_filter)
    chosen = select(counts / tokens, rate=rate, quantile=quantile, weak_filter=weak_filter)
    assert chosen.threshold == float(threshold) and int(chosen.selected.sum()) == keep
    selected = set(map(tuple, np.argwhere(chosen.selected).tolist()))
    assert selected <= set(eligible)
    if keep:
        cut = sorted(entropy[key] for key in eligible)[keep - 1]
        below = {key for key in eligible if entropy[key] < cut - CLOSE}
        tied = {key for key in eligible if abs(entropy[key] - cut) <= CLOSE}
        # among the tied: first by layer, then by neuron
        assert selected == below | set(sorted(tied)[: keep - len(below)])
    for key in selected:
        assert chosen.members[key].tolist() == [x > threshold for x in exact[key[0]][key[1]]]
    assert not chosen.members[~chosen.selected].any()
    for key, value in entropy.items():
        assert (
            chosen.entropy[key] == pytest.approx(value, abs=1e-12)
            or chosen.entropy[key] == value == math.inf
        )


def random_table(rng: np.random.Generator):
    shape = (rng.integers(1, 4), rng.integers(3, 25), int(rng.choice([2, 3, 5, 10, 50])))
    tokens = rng.integers(1, 10 ** rng.integers(1, 5), shape[2])
    if rng.random() < 0.5:
        tokens[:] = tokens[0]
    counts = rng.binomial(tokens, rng.beta(0.3, 2, shape))
    kind = rng.integers(6)
    if kind == 1:  # dead neurons, and a dead layer
        counts[rng.random(shape[:2]) < 0.4] = 0
        counts[0] = 0
    elif kind == 2:  # neurons active for one class only: all tie at entropy 0
        only = rng.integers(shape[2], size=shape[:2])
        counts *= np.arange(shape[2]) == only[..., None]
    elif kind == 3:  # copies and permuted copies: ties
        counts[:, 1::2] = counts[:, : 2 * (shape[1] // 2) : 2][..., ::-1]
    elif kind == 4:  # few different values
        counts = counts % 3
    elif kind == 5:  # the same activity scaled: entropies equal on paper, rounded differently
        tokens[:] = 840
        counts = (np.arange(shape[2]) + 1) * rng.integers(0, 17, shape[:2])[..., None]
    return np.minimum(counts, tokens), tokens


@pytest.mark.parametrize("weak_filter", ["lape", "paper"])
@pytest.mark.parametrize("seed", range(13))
def test_equals_the_literal_procedure(seed, weak_filter):
    rng = np.random.default_rng([seed, len(weak_filter)])
    for _ in range(10):  # 2 x 13 x 10 tables
        rate, quantile = rng.choice([0.01, 0.1, 0.3, 1.0]), rng.choice([0.5, 0.9, 0.95, 1.0])
        check_against_literal(*random_table(rng), rate, quantile, weak_filter)


def test_equals_the_literal_procedure_with_1251_classes_and_one_token():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 300, 1251)
    check_against_literal(rng.binomial(tokens, rng.beta(0.3, 2, (2, 8, 1251))), tokens, rate=0.2)
    check_against_literal(
        rng.integers(0, 2, (2, 12, 6)), np.ones(6, dtype=int), rate=0.2
    )  # one token


def test_entropy_ties_and_the_paper_filter_by_hand():
    p = np.array(
        [[[0.5, 0.5], [0.2, 0.0], [0.0, 0.0], [0.1, 0.3]]]
    )  # one layer, four neurons, two classes
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(p)[0].tolist() == pytest.approx(
        [math.log(2), 0.0, math.inf, expected], abs=1e-15
    )
    p = np.zeros((2, 20, 4))
    p[:, 5:9] = [0.3, 0, 0, 0]  # eight neurons of entropy 0: first by layer, then by neuron
    chosen = select(p, rate=0.15, quantile=0.5)
    assert np.argwhere(chosen.selected).tolist() == [[0, 5], [0, 6], [0, 7], [0, 8], [1, 5], [1, 6]]
    p = np.zeros((1, 100, 2))
    p[0, :, 0] = np.linspace(
        0.01, 1, 100
    )  # all of entropy 0; the weakest five per cent come first in the rank
    assert np.flatnonzero(select(p, rate=0.03, weak_filter="paper").selected[0]).tolist() == [
        5,
        6,
        7,
    ]


def test_kinds_and_precision_of_the_input_do_not_matter():
    p = np.random.default_rng(1).random((3, 40, 6)).astype(np.float32)
    expected = select(p.astype(np.float64), rate=0.1)
    for given in (p, p.tolist(), torch.from_numpy(p).requires_grad_()):
        assert np.array_equal(select(given, rate=0.1).members, expected.members)
        assert np.array_equal(entropy(given), expected.entropy)


def test_selection_reports_names_classes_without_neurons_and_its_table():
    p = np.full((2, 50, 3), 0.01)
    p[1, 7] = [0.9, 0.01, 0.01]
    p[0, 3] = [0.01, 0.8, 0.01]
    p[1, 2] = [0.02, 0.7, 0.9]
    names = ("dog", "rain", "7")
    chosen = select(p, rate=0.03, quantile=0.985, classes=names)
    assert (
        chosen.neurons("rain").tolist() == chosen.neurons(1).tolist() == [[0, 3], [1, 2]]
    )  # strongest first
    assert chosen.neurons("7").tolist() == [[1, 2]]  # a name, not an index
    table = chosen.table()
    rows = table[["layer", "neuron", "class"]].to_numpy().tolist()
    assert rows == [[1, 7, "dog"], [0, 3, "rain"], [1, 2, "7"], [1, 2, "rain"]]
    assert table.rate.tolist() == [0.9, 0.8, 0.9, 0.7] and (table.remark == "").all()
    assert table.rate_outside.tolist() == pytest.approx([0.01, 0.01, 0.36, 0.46])
    less = select(p, rate=0.01, quantile=0.985, classes=names)
    assert less.neurons("7").shape == (0, 2) and less.coverage == pytest.approx(1 / 3)
    assert less.per_class.to_dict() == {"dog": 1, "rain": 0, "7": 0}
    assert "1 of 100" in repr(less) and "33% of 3 classes" in less._repr_html_()
    with pytest.raises(ValueError, match="no class 'cat'.*dog"):
        less.neurons("cat")


def test_a_neuron_less_active_in_its_class_than_outside_is_said_and_comes_last():
    p = np.zeros((1, 40, 3))
    p[0, :2] = [[0.9, 0.8, 0.1], [0.5, 0.99, 0.99]]
    table = select(
        p, rate=1, classes=("a", "b", "c")
    ).table()  # of the 120 values 114 are at most the threshold
    pairs = table.neuron.astype(str) + table["class"]
    assert pairs.tolist() == ["0a", "0b", "1b", "1c", "1a", "0c"]
    assert table.remark.tolist() == [""] * 4 + ["less active than outside the class"] * 2


def test_shared_means_of_each_class_and_exclusive_of_no_other():
    p = np.zeros((2, 50, 3))
    p[0, 5] = [0.9, 0.9, 0]
    p[1, 1] = [1, 0.99, 0]
    p[1, 4] = [0.9, 0.9, 0.9]
    p[1, 9] = [0.9, 0, 0]
    chosen = select(p, rate=1, quantile=0.9, classes=("a", "b", "c"))
    assert chosen.shared(["a", "b"]).tolist() == [[1, 1], [0, 5], [1, 4]]  # strongest first
    assert chosen.shared(["b", 0], exclusive=True).tolist() == [[1, 1], [0, 5]]
    assert chosen.shared(["c", "a"], exclusive=True).shape == (0, 2)
    with pytest.raises(ValueError, match="a list of classes"):
        chosen.shared("ab")


def test_artifacts_bring_their_names_their_clips_and_their_tokens(tmp_path):
    labels = np.array([0] * 30 + [1] * 10 + [2] * 5)
    counts = np.random.default_rng(0).integers(0, 61, (45, 2, 30))
    write_artifacts(tmp_path, counts, labels, ["a", "b", "c"], task="t")
    artifacts = load_artifacts(tmp_path)
    chosen = select(artifacts, rate=0.2)
    expected = select(artifacts.probabilities(), rate=0.2, classes=["a", "b", "c"])
    assert chosen.classes == expected.classes
    assert np.array_equal(chosen.members, expected.members)
    assert chosen.outside[1, 2, 0] == pytest.approx(
        counts[30:, 1, 2].mean() / 60
    )  # by tokens, not by classes
    assert expected.outside[1, 2, 0] == pytest.approx(artifacts.probabilities()[1, 2, 1:].mean())


def test_where_five_percent_of_p_are_one_the_others_decide():
    p = np.random.default_rng(0).random((2, 100, 3)) * 0.3
    p[:, :10] = 1  # always active: they tell no class apart
    p[0, 50] = [0.9, 0.01, 0.01]
    p[1, 60] = [1, 0.02, 0.01]
    with pytest.warns(UserWarning, match="10.2% of all activation probabilities are 1"):
        chosen = select(p, classes=("a", "b", "c"))
    assert chosen.neurons("a").tolist() == [[1, 60], [0, 50]] and chosen.selected.sum() == 2
    assert chosen.saturated == 61 / 600 and chosen.threshold == kth_smallest(p[p < 1], 0.95)
    assert "10.2% of all p are 1" in repr(chosen)
    ordinary = p.copy()
    ordinary[:, 3:10] = 0.1  # 3.2 % are 1: the percentile is below 1, and nothing changes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select(ordinary).threshold == kth_smallest(ordinary, 0.95) < 1
    scores = (
        p * 5 - 4
    )  # of another criterion; 1 is not special there, but nothing can exceed the largest score
    assert select(p, scores=np.where(p == 1, 2.0, scores)).members.sum() == 0


def test_edges_have_defined_results():
    one_class = select(np.random.default_rng(0).random((2, 20, 1)), rate=0.1, quantile=0.5)
    assert (one_class.entropy == 0).all() and one_class.selected.sum() == 4
    assert select(np.full((2, 20, 5), 0.3), rate=0.1).coverage == 0  # all p equal
    half_dead = np.random.default_rng(0).random((2, 20, 5))
    half_dead[0] = 0
    chosen = select(half_dead, rate=1.0, weak_filter="paper")
    assert not chosen.selected[0].any() and np.isinf(chosen.entropy[0]).all()


@pytest.mark.parametrize(
    "p, settings, words",
    [
        (np.zeros((2, 3, 0)), {}, "none of them 0"),
        (np.full((1, 2, 2), 7), {}, "counts\\? divide"),
        (np.array([[[0.1, np.nan, 0.2]]]), {}, "class indices \\[1\\]"),
        (np.full((1, 4, 2), 0.5), {"rate": 0}, "rate"),
        (np.full((1, 4, 2), 0.5), {"weak_filter": "none"}, "lape, paper"),
        (np.full((1, 4, 2), 0.5), {"classes": ["a", "a"]}, "expected 2 different names"),
    ],
)
def test_bad_probabilities_and_settings_are_named(p, settings, words):
    with pytest.raises(ValueError, match=words):
        select(p, **settings)
