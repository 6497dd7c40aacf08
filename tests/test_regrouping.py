"""Views of a task: united classes and seeded draws."""

from pathlib import Path

import numpy as np
import pytest
from conftest import make_task, make_toy

from aape.collecting.passing import collect
from aape.collecting.relabelling import relabel
from aape.sounds.regrouping import drawn, octaves, regrouped


def test_octaves_are_of_twelve_semitones_in_order():
    found = octaves(["60", "59", "pitch_071", "72"])
    assert found == {"octave 4": ["59"], "octave 5": ["60", "pitch_071"], "octave 6": ["72"]}
    assert (
        len(octaves([str(pitch) for pitch in range(21, 109)])) == 9
    )  # Surge's 88 pitches, as in the paper
    with pytest.raises(ValueError, match="'piano'"):
        octaves(["piano"])


def test_united_classes_count_the_same_clips(tmp_path: Path):
    task, toy = make_task(tmp_path / "data"), make_toy()
    united = regrouped(task, {"quiet": ["class0", "class1"], "loud": ["class2"]}, "loudness")
    assert united.classes == ("quiet", "loud") and united.files == task.files
    artifacts = relabel(collect(toy, task, tmp_path / "noise"), united, tmp_path / "loudness")
    whole = collect(toy, united, tmp_path / "passed")
    assert np.array_equal(artifacts.over_zero.numpy(), whole.over_zero.numpy())
    assert np.array_equal(artifacts.labels, (task.labels == 2).astype(int))
    some = regrouped(task, {"loud": ["class2"], "quiet": ["class0"]}, "two")
    assert set(some.files) == {
        file for file, label in zip(task.files, task.labels, strict=True) if label != 1
    }
    assert [some.classes[label] for label in some.labels[:2]] == ["quiet", "loud"]
    for classes, complaint in (
        ({"a": ["nothing"]}, "'nothing'"),
        ({"a": ["class0"], "b": ["class0"]}, "'a' and 'b'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            regrouped(task, classes, "wrong")


def test_a_draw_is_seeded_and_said(tmp_path: Path):
    task = make_task(tmp_path)
    some = drawn(task, per_class=3, seed=1)
    assert (
        np.bincount(some.labels).tolist() == [3, 3, 3]
        and some.files == drawn(task, per_class=3, seed=1).files
    )
    assert (
        "seeded draw of ours" in some.notes[-1]
        and some.files != drawn(task, per_class=3, seed=2).files
    )
    assert len(drawn(task, clips=5)) == 5 and len(drawn(task, clips=1000)) == len(task)
    with pytest.raises(ValueError, match="either"):
        drawn(task)
