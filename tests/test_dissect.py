"""From a model and a folder of sounds to tables and pictures: `aape dissect`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import RATE, REPOSITORY, make_toy, tiny_whisper

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
    folder = tmp_path / "out" / "tones"
    classes = pd.read_csv(folder / "classes.csv", index_col="class")
    assert set(classes.index) == {"low", "mid", "high"}
    assert (classes.clips == 40).all() and (classes.groups == 10).all()
    assert classes.neurons.to_dict() == found.calibrated.selection.per_class.to_dict()
    assert (
        classes.calibrated.is_monotonic_decreasing and (classes.calibrated <= classes.neurons).all()
    )
    for name, row in classes.dropna(
        subset="neuron"
    ).iterrows():  # the strongest neuron is what the artifacts say of it
        c = found.artifacts.classes.index(name)
        layer, neuron = int(row.layer), int(row.neuron)
        counts = found.artifacts.counts[:, layer, neuron].astype(float)
        inside = found.artifacts.labels == c
        tokens = found.artifacts.tokens
        assert row.rate == pytest.approx(counts[inside].sum() / tokens[inside].sum(), abs=1e-6)
        assert row.rate_outside == pytest.approx(
            counts[~inside].sum() / tokens[~inside].sum(), abs=1e-6
        )
    assert len(classes.dropna(subset="neuron")) >= 2
    passing = pd.read_csv(folder / "passing_neurons.csv")
    chosen = passing[passing.selected]
    assert len(passing) > len(chosen) == classes.calibrated.sum()
    assert (passing.q_value < 0.05).all() and (passing.rate - passing.rate_outside).min() >= 0.1
    assert set(found.ablation.effects["class"]) <= {"low", "mid", "high"}
    assert any(note.startswith("silenced: the neurons of ") for note in found.notes)
    names = ("classes.pdf", "classes.png", "ablation_effects.csv", "../tones_artifacts/neurons.csv")
    assert (
        all((folder / name).is_file() for name in names)
        and found.atlas == tmp_path / "out" / "atlas" / "index.html"
    )
    assert str(folder) in repr(found) and "the split is ours" in repr(found)
    assert said[0] is task and said[-1] is found


def test_a_second_labelling_of_the_same_sounds_needs_no_second_pass(tmp_path: Path, monkeypatch):
    pytest.importorskip("aape.collecting.relabelling")
    folder = tones(tmp_path / "tones", speakers=6)
    quick = {"rate": 0.5, "permutations": 20, "controls": 1, "say": lambda _: None}
    first = dissect(make_toy(), folder, tmp_path / "out", pattern="{label}_{group}_{}", **quick)
    monkeypatch.setattr("aape.dissecting.collect", None)  # it would be called
    for _ in range(2):
        second = dissect(
            make_toy(), folder, tmp_path / "out", pattern="{group}_{label}_{}", **quick
        )
    assert (
        list(second.artifacts.classes) == [f"s{i}" for i in range(6)]
        and second.directory != first.directory
    )
    by_file = dict(zip(first.artifacts.files, first.artifacts.counts, strict=True))
    for file, counts in zip(second.artifacts.files, second.artifacts.counts, strict=True):
        assert np.array_equal(counts, by_file[file])
    assert (first.directory / "classes.csv").is_file() and first.atlas == second.atlas


def test_what_cannot_be_silenced_does_not_lose_the_rest(tmp_path: Path):
    for split in ("train", "test"):
        tones(tmp_path / "halves" / split)
    for lost in (tmp_path / "halves" / "test").glob("mid_*"):
        lost.unlink()
    with pytest.warns(UserWarning, match="mid in test"):
        task = from_folder(
            tmp_path / "halves", pattern="{split}/{label}_{group}_{}", clip_seconds=1.0
        )
    found = dissect(
        make_toy(), task, tmp_path / "out", rate=0.5, permutations=20, say=lambda _: None
    )
    assert found.ablation is None and "no ablation" in found.notes[-1] and "mid" in found.notes[-1]
    assert (found.directory / "classes.csv").is_file()


def test_targets_and_settings_are_checked_before_the_pass(tmp_path: Path, monkeypatch):
    task = from_folder(tones(tmp_path / "tones", speakers=3), pattern="{label}_{group}_{}")
    monkeypatch.setattr("aape.dissecting.collect", None)  # it would be called
    for wrong, message in (
        ({"rate": 2}, "rate: expected a share"),
        ({"targets": ["loud"]}, "no class 'loud'; the classes are"),
    ):
        with pytest.raises(ValueError, match=message):
            dissect(make_toy(), task, tmp_path / "out", **wrong, say=lambda _: None)


def test_chosen_targets_and_another_criterion(tmp_path: Path):
    task = from_folder(tones(tmp_path / "tones", speakers=6), pattern="{label}_{group}_{}")
    quick = {"rate": 0.5, "permutations": 20, "controls": 1, "say": lambda _: None}
    found = dissect(make_toy(), task, tmp_path / "out", targets=["mid"], **quick)
    assert set(found.ablation.effects[found.ablation.effects.targeted]["class"]) == {"mid"}
    other = dissect(
        make_toy(), task, tmp_path / "out", criterion="attribution", name="attribution", **quick
    )
    assert other.calibrated.selection.scores is not None and other.ablation is None
    assert (
        "compare_criteria" in other.notes[-1]
        and len(pd.read_csv(other.directory / "classes.csv")) == 3
    )


def test_the_command_line_on_a_model_of_the_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    tiny_whisper(tmp_path / "model")
    folder = tones(tmp_path / "tones", speakers=5)
    monkeypatch.chdir(tmp_path)
    words = ["dissect", "model", str(folder), "--pattern", "{label}_{group}_{}", "--rate", "0.5"]
    assert cli.main([*words, "--permutations", "20", "--controls", "1"]) == 0
    shown = capsys.readouterr().out
    assert (
        "groups: 5 (pattern)" in shown
        and "results: outputs/tones_model/tones_label_group_any" in shown
    )
    made = tmp_path / "outputs" / "tones_model"
    assert (made / "tones_label_group_any" / "classes.png").stat().st_size > 5000
    assert (made / "atlas" / "index.html").is_file()

    assert (
        cli.main(["table", str(folder), "-o", "clips.csv", "--pattern", "{label}_{group}_{}"]) == 0
    )
    renamed = Path("clips.csv").read_text().replace(",low,", ",quiet,")
    Path("clips.csv").write_text(renamed)
    given: dict = {}
    with monkeypatch.context() as patch:
        patch.setattr(
            "aape.dissecting.dissect", lambda **options: given.update(options)
        )  # it ran above
        assert (
            cli.main(["dissect", "model", str(folder), "--table", "clips.csv", "--seconds", "1"])
            == 0
        )
    assert given["task"].classes == ("high", "mid", "quiet") and given["task"].clip_seconds == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "2"], "--rate: expected a share above 0 and up to 1"),
        (["--device", "gpu"], "expected cpu, cuda, cuda:1 or mps, found 'gpu'"),
        (["--seconds", "2,5"], "expected a number such as 2.5, found '2,5'; write 2.5"),
        (["--seconds", "-3"], "expected seconds above 0"),
        (["--permutations", "5"], "expected a whole number of at least 20"),
    ],
)
def test_wrong_options_are_refused_at_once(
    words: list[str], message: str, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit):
        cli.main(["dissect", "model", "sounds", *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "run the same command again to resume"),
        (ValueError("expected a, found b"), 2, "aape x: expected a, found b\nCorrect this"),
        (RuntimeError("CUDA out of memory"), 2, "smaller --batch-size"),
        (
            MemoryError(),
            2,
            "aape x: MemoryError\nRun the same command again with a smaller --batch-size",
        ),
        (ModuleNotFoundError("No module named 'x'"), 2, "`aape doctor` says what to install"),
    ],
)
def test_errors_reach_the_shell_as_two_lines(
    error, status: int, message: str, capsys: pytest.CaptureFixture
):
    def run():
        raise error

    assert cli.guarded("aape x", run) == status
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) <= 2


def test_sigterm_releases_the_lock(tmp_path: Path):
    script = (
        "import sys, time; from aape.cli import guarded; from aape.files import folder_lock\n"
        "def run():\n"
        "    with folder_lock(sys.argv[1]):\n"
        "        print('locked', flush=True); time.sleep(60)\n"
        "guarded('aape x', run)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n" and (tmp_path / ".lock.json").is_file()
    process.terminate()
    assert process.wait(30) == 143 and not (tmp_path / ".lock.json").is_file()
