"""Criteria compared: equal sets, their controls, and a planted answer."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_ablation as toy

from aape.artifacts.folder import load_artifacts
from aape.collecting.passing import collect
from aape.criteria.comparing import (
    CONTROLS,
    NothingToCompare,
    compare_criteria,
    draw_classes,
    strongest,
)
from aape.criteria.ranking import Clips
from benchmarks import criteria as benchmark


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


def test_planted_neurons_beat_their_controls_and_random_ones_do_not(tmp_path: Path) -> None:
    task, encoder = toy.tones(str(tmp_path / "audio")), toy.tuned()
    artifacts = collect(encoder, task, tmp_path / "artifacts", device="cpu")

    def planted(
        clips: Clips,
    ) -> np.ndarray:  # the toy's first four neurons prefer "low", the next "middle", then "high"
        scores = np.zeros((1, toy.NEURONS, 3))
        for place, name in enumerate(toy.TONES):
            scores[0, 4 * place : 4 * place + 4, artifacts.classes.index(name)] = 1
        return scores

    named = {"planted": planted, "p_difference": "p_difference", "random": "random"}
    result = compare_criteria(
        encoder, task, artifacts, named, k=4, modes=["mean"], draws=2, device="cpu"
    )
    rows = result.rows
    assert (
        set(rows.neurons) == {4.0}
        and set(rows.control) == {"", *CONTROLS}
        and rows.effect.notna().all()
    )
    found = result.summary().set_index(["criterion", "classifier"])
    for classifier in ("linear", "nearest mean"):
        assert found.effect["planted", classifier] < found.effect["random", classifier]
        assert (
            found.below_active["planted", classifier] == found.classes["planted", classifier] == 3
        )
    own = rows.query(
        "criterion == 'planted' and control == '' and classifier == 'linear' and measure == 'log_probability'"
    )
    assert found.effect["planted", "linear"] == pytest.approx(own.effect.mean())
    assert result.table().criterion[0] != "random"
    artifacts = load_artifacts(tmp_path / "artifacts")
    with pytest.raises(ValueError, match="no class 'deep'"):
        compare_criteria(encoder, task, artifacts, ["random"], classes=["deep"], device="cpu")


@pytest.mark.filterwarnings("ignore:.*left out")
def test_fewer_than_two_classes_with_neurons_cannot_be_compared(tmp_path: Path) -> None:
    task, encoder = toy.tones(str(tmp_path / "audio")), toy.tuned()
    artifacts = collect(encoder, task, tmp_path / "artifacts", device="cpu")

    def first_class(clips: Clips) -> np.ndarray:
        return np.where(np.arange(3) == 0, 1.0, -np.inf) * np.ones((1, toy.NEURONS, 1))

    named: dict[str, Any] = {"first": first_class, "random": "random"}
    for classes, message in (
        (None, "found 3; {1}, {2} left out for lack of neurons by first.\n"),
        (artifacts.classes[1:], "found 2; {1}, {2} left out for lack of neurons by first.\n"),
        (artifacts.classes[:1], "found 1.\n"),
    ):
        with pytest.raises(NothingToCompare) as error:
            compare_criteria(encoder, task, artifacts, named, classes=classes, device="cpu")
        assert (
            message.format(*artifacts.classes) in str(error.value)
            and str(error.value).count("\n") == 1
        )


def test_the_benchmark_continues_with_the_next_model_where_nothing_can_be_compared(
    tmp_path, monkeypatch
):
    def compare(model: str, *_: Any, **__: Any) -> Any:
        if model == "untrained":
            raise NothingToCompare("no neuron.\nChoose others.")
        return SimpleNamespace(summary=lambda measure="": benchmark.pd.DataFrame({"effect": [1.0]}))

    study = SimpleNamespace(
        name="mine", directory=tmp_path, encoders=["untrained", "trained"], rate=lambda task: 0.1,
        encoder=lambda model: SimpleNamespace(label=f"the {model}", folder=model), task=lambda task: SimpleNamespace(title=""),
        artifacts_directory=lambda *at: at, selection=SimpleNamespace(model_dump=lambda **_: {}),
    )  # fmt: skip
    changed = {
        "load_study": lambda name: study, "load_task": lambda study, task: SimpleNamespace(classes=["a", "b"]),
        "load_encoder": lambda study, model: model, "load_artifacts": lambda path: path, "compare_criteria": compare,
        "criteria": lambda *_: None, "save": lambda *_: None, "section": lambda *_: "compared",
    }  # fmt: skip
    for name, value in changed.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(
        sys, "argv", ["criteria", "mine", "sounds", "--page", str(tmp_path / "page.md")]
    )
    benchmark.main()
    page = (tmp_path / "page.md").read_text()
    assert "## mine, sounds: the untrained\n\n`python -m benchmarks.criteria mine sounds" in page
    assert "`: no neuron. Choose others.\n\n## mine, sounds: the trained\n\ncompared\n" in page
