"""Units that exchange labels, and sums of counts by class."""

import numpy as np
import pytest

from aape.neurons.permuting import Counted, UnitSums, exchangeable_units, permuted_labels


def test_groups_of_one_class_move_whole_and_cells_inside_the_others():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 0, 0, 1, 2, 2])
    groups = np.array(["a", "a", "b", "c", "c", "d", "e", "s", "s", "s", "s", "s"])
    units = exchangeable_units(labels, groups)
    assert len(units) == 8
    assert units.description == (
        "labels permuted within 1 groups of several classes, 3 cells of a group and class (3 can move) and among 5 groups "
        "of one class in 2 strata of like size (5 can move)"
    )
    seen = set()
    for shuffled in permuted_labels(units, 300, seed=0):
        clips = shuffled[units.of_clip]
        assert clips[0] == clips[1] and clips[3] == clips[4]
        assert (
            clips[7] == clips[8] and clips[10] == clips[11]
        )  # the cells of the speaker of all classes
        assert sorted(clips[[7, 9, 10]]) == [0, 1, 2]
        # a of two clips swaps with c, and b, d, e of one clip among themselves
        assert sorted([clips[0], clips[3]]) == [0, 1] and sorted(
            [clips[2], clips[5], clips[6]]
        ) == [0, 2, 2]
        seen.add(tuple(clips))
    assert len(seen) == 2 * 3 * 6


def test_sizes_within_a_factor_are_one_stratum_and_they_are_tokens():
    size = np.array([1, 1, 2, 2, 10, 10, 11, 40, 41])
    label = np.array([0, 1, 0, 0, 1, 1, 1, 2, 1])
    units = exchangeable_units(np.repeat(label, size), np.repeat(np.arange(9), size))
    assert units.stratum.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert units.moves.tolist() == [True] * 2 + [False] * 5 + [True] * 2
    assert "among 9 groups of one class in 4 strata of like size (4 can move)" in units.description
    by_tokens = exchangeable_units(
        label, np.arange(9), tokens=10 * size
    )  # a clip per group, of as many tokens
    assert by_tokens.stratum.tolist() == units.stratum.tolist()
    # cells of a group may differ by a factor of two: 4 with 8, but not 8 with 20
    cells = exchangeable_units(np.repeat([0, 1, 2, 3], [4, 8, 20, 21]), np.zeros(53, int))
    assert cells.stratum.tolist() == [0, 0, 1, 1] and cells.moves.all()
    alone = exchangeable_units(np.zeros(3, int), [0, 1, 1])
    assert "(0 can move)" in alone.description and not alone.tested.any()
    assert (
        exchangeable_units([0, 1, 1], [0, 1, 2]).description
        == "labels permuted among 3 clips (3 can move)"
    )
    with pytest.raises(ValueError, match="a group for each"):
        exchangeable_units([0, 2], ["a", "b"], 2)


def test_a_class_with_fewer_than_twenty_placements_is_not_tested():
    for clips, enough in ((19, False), (20, True)):
        labels = np.append(np.arange(clips - 1) % 2, 2)  # one clip of class 2
        assert exchangeable_units(labels, np.arange(clips)).tested.tolist() == [True, True, enough]
    crossed = exchangeable_units(np.tile([0, 1], 5), np.repeat(np.arange(5), 2))
    assert crossed.tested.all()  # 2 ** 5
    assert not exchangeable_units(np.tile([0, 1], 4), np.repeat(np.arange(4), 2)).tested.any()


def test_sums_by_class_equal_a_loop(monkeypatch, tmp_path):
    """Read from disk in blocks, in several batches of labellings, with counts to take off."""
    monkeypatch.setattr("aape.neurons.permuting.READ", 5)
    monkeypatch.setattr("aape.neurons.permuting.BATCH_BYTES", (1, 4 * 3 * 14 * 2))
    rng = np.random.default_rng(0)
    labels, groups, tokens = (
        rng.integers(low, high, 600) for low, high in ((0, 3), (0, 200), (1, 300))
    )
    np.save(tmp_path / "counts.npy", rng.integers(100, 255, (600, 2, 7)).astype(np.uint8))
    counts = np.load(tmp_path / "counts.npy", mmap_mode="r")
    without = rng.integers(0, 100, counts.shape).astype(np.uint8)
    units = exchangeable_units(labels, groups)
    sums = UnitSums(Counted(counts, labels, tokens, groups, without), units)
    given = [units.label, *permuted_labels(units, 4, seed=0)]
    batches = [active.copy() for _, active in sums.by_class(given)]
    assert [len(active) for active in batches] == [2, 2, 1]
    for labelling, active in zip(given, np.concatenate(batches), strict=True):
        for label in range(3):
            mine = labelling[units.of_clip] == label
            expected = counts[mine].sum(axis=0) - without[mine].sum(axis=0, dtype=np.int64)
            assert np.array_equal(active[label], expected.reshape(-1))
            assert sums.class_tokens(labelling)[label] == tokens[mine].sum()
    with pytest.raises(ValueError, match="599 tokens"):
        UnitSums(Counted(counts, labels, tokens[1:], groups), units)
