"""The criteria put to the test: equal sets, their floors, and a planted answer."""

from pathlib import Path

import numpy as np
import pytest

import tests.test_ablation as toy
from aape.artifacts import load_artifacts
from aape.collecting import collect
from aape.contest import FLOORS, compare_criteria, draw_classes, strongest
from aape.criteria import Clips


def test_strongest_by_hand() -> None:
    scores = np.array([[1.0, 3.0, -np.inf], [3.0, 2.0, -np.inf]])
    assert strongest(scores, 3).tolist() == [[0, 1], [1, 0], [1, 1]]  # the tie goes by layer
    assert len(strongest(scores, 6)) == 4  # -inf is never chosen


def test_classes_are_drawn_by_seed_and_not_among_those_seen() -> None:
    names = [f"c{i}" for i in range(20)]
    drawn = draw_classes(names, 5, seed=1, without=names[:10])
    again, other = (draw_classes(names, 5, seed=seed, without=names[:10]) for seed in (1, 2))
    assert drawn == sorted(drawn) and len(drawn) == 5 and not set(drawn) & set(names[:10])
    assert drawn == again != other


def test_planted_neurons_beat_their_floors_and_random_ones_do_not(tmp_path: Path) -> None:
    task, encoder = toy.tones(str(tmp_path / "audio")), toy.tuned()
    artifacts = collect(encoder, task, tmp_path / "artifacts", device="cpu")

    def planted(clips: Clips) -> np.ndarray:  # the toy's first four neurons hear "low", the next "middle", then "high"
        scores = np.zeros((1, toy.NEURONS, 3))
        for place, name in enumerate(toy.TONES):
            scores[0, 4 * place : 4 * place + 4, artifacts.classes.index(name)] = 1
        return scores

    named = {"planted": planted, "p_difference": "p_difference", "random": "random"}
    result = compare_criteria(encoder, task, artifacts, named, k=4, modes=["mean"], draws=2, device="cpu")
    rows = result.rows
    assert set(rows.neurons) == {4.0} and set(rows.floor) == {"", *FLOORS} and rows.effect.notna().all()
    found = result.summary().set_index(["criterion", "judge"])
    for judge in ("linear", "nearest mean"):
        assert found.effect["planted", judge] < found.effect["random", judge]
        assert found.below_active["planted", judge] == found.classes["planted", judge] == 3
    own = rows.query("criterion == 'planted' and floor == '' and judge == 'linear' and measure == 'log_probability'")
    assert found.effect["planted", "linear"] == pytest.approx(own.effect.mean())
    assert result.table().criterion[0] != "random"
    artifacts = load_artifacts(tmp_path / "artifacts")
    with pytest.raises(ValueError, match="no class 'deep'"):
        compare_criteria(encoder, task, artifacts, ["random"], classes=["deep"], device="cpu")
