"""From a model and a folder of sounds to tables and pictures: `aape dissect`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import RATE, make_toy, tiny_whisper

from aape import cli
from aape.dissecting import dissect
from aape.sounds.loading import from_folder


def tones(folder: Path, speakers: int = 10) -> Path:
    """Three classes, each a pattern of 100 samples (a token of the toy) in noise; four takes of each speaker."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for word in ("low", "mid", "high"):
        pattern = rng.normal(0, 0.3, 100)
        for who in range(speakers):
            for take in range(4):
                wave = np.tile(pattern, RATE // 100) + rng.normal(0, 0.5, RATE)
                soundfile.write(folder / f"{word}_s{who}_{take}.wav", wave, RATE, subtype="FLOAT")
    return folder


def test_an_encoder_and_a_folder(tmp_path: Path):
    said = []
    task = from_folder(tones(tmp_path / "tones"), pattern="{label}_{group}_{}")
    quick = {"rate": 0.5, "permutations": 50, "controls": 3, "batch_size": 16}
    found = dissect(make_toy(), task, tmp_path / "out", **quick, say=said.append)
    classes = pd.read_csv(tmp_path / "out" / "classes.csv", index_col="class")
    assert set(classes.index) == {"low", "mid", "high"}
    assert (classes.clips == 40).all() and (classes.groups == 10).all()
    assert classes.neurons.to_dict() == found.calibrated.selection.per_class.to_dict()
    assert classes.survive.is_monotonic_decreasing and (classes.survive <= classes.neurons).all()
    for name, row in classes.dropna(subset="neuron").iterrows():  # the strongest neuron is what the artifacts say of it
        c = found.artifacts.classes.index(name)
        layer, neuron = int(row.layer), int(row.neuron)
        counts = found.artifacts.counts[:, layer, neuron].astype(float)
        mine = found.artifacts.labels == c
        assert row.p == pytest.approx(counts[mine].sum() / found.artifacts.tokens[mine].sum(), abs=1e-6)
        assert row.p_outside == pytest.approx(counts[~mine].sum() / found.artifacts.tokens[~mine].sum(), abs=1e-6)
    assert len(classes.dropna(subset="neuron")) >= 2
    assert set(found.ablation.effects["class"]) <= {"low", "mid", "high"}
    names = ("classes.pdf", "classes.png", "tones_toy/neurons.csv", "tones_toy/manifest.json", "ablation_effects.csv")
    assert all((tmp_path / "out" / name).is_file() for name in (*names, "atlas/index.html"))
    assert str(tmp_path / "out") in repr(found) and "the split is ours" in repr(found)
    assert said[0] is task and said[-1] is found


def test_what_cannot_be_silenced_does_not_lose_the_rest(tmp_path: Path):
    for split in ("train", "test"):
        tones(tmp_path / "halves" / split)
    for lost in (tmp_path / "halves" / "test").glob("mid_*"):
        lost.unlink()
    with pytest.warns(UserWarning, match="mid in test"):
        task = from_folder(tmp_path / "halves", pattern="{split}/{label}_{group}_{}", clip_seconds=1.0)
    found = dissect(make_toy(), task, tmp_path / "out", rate=0.5, permutations=20, say=lambda _: None)
    assert found.ablation is None and "no ablation" in found.notes[-1] and "mid" in found.notes[-1]
    assert (tmp_path / "out" / "classes.csv").is_file()


def test_the_command_line_on_a_model_of_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    tiny_whisper(tmp_path / "model")
    folder = tones(tmp_path / "tones", speakers=5)
    monkeypatch.chdir(tmp_path)
    words = ["dissect", "model", str(folder), "--pattern", "{label}_{group}_{}", "--rate", "0.5"]
    assert cli.main([*words, "--permutations", "20", "--controls", "1"]) == 0
    shown = capsys.readouterr().out
    assert "groups: 5 (pattern)" in shown and "everything lies in: outputs/tones_model" in shown
    assert (tmp_path / "outputs" / "tones_model" / "classes.png").stat().st_size > 5000

    assert cli.main(["table", str(folder), "-o", "clips.csv", "--pattern", "{label}_{group}_{}"]) == 0
    renamed = Path("clips.csv").read_text().replace(",low,", ",quiet,")
    Path("clips.csv").write_text(renamed)
    given: dict = {}
    with monkeypatch.context() as patch:
        patch.setattr("aape.dissecting.dissect", lambda **options: given.update(options))  # it ran above
        assert cli.main(["dissect", "model", str(folder), "--table", "clips.csv", "--seconds", "1"]) == 0
    assert given["task"].classes == ("high", "mid", "quiet") and given["task"].clip_seconds == 1
