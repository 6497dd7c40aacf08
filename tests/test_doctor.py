"""What the doctor finds, misses and recommends, and the command line around it."""

import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml
from conftest import REPOSITORY

from aape import cli, doctor
from aape.datasets import DATASETS, TASKS
from aape.study.study import load_study

WEIGHTS = "m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes a study of a checkpoint and a dataset that are not there yet."""
    monkeypatch.delenv("EVAR", raising=False)
    monkeypatch.setattr(sys, "argv", ["aape"])

    def write(loader="aape.encoders.m2d:load", audio_dir="data/gtzan", **options):
        task = {"metadata": "gtzan.csv", "audio_dir": audio_dir, "clip_seconds": 30.0}
        model = {"loader": loader, "options": {"weights_path": WEIGHTS} | options}
        path = tmp_path / "tiny.yaml"
        path.write_text(
            yaml.safe_dump({"models": {"ssl": model}, "tasks": {"gtzan": task}, "substitute": True})
        )
        return path

    return write


def test_from_nothing_to_ready_step_by_step(study, tmp_path, capsys):
    path, blues = study(), tmp_path / "data" / "gtzan" / "blues"

    def audio(count):
        blues.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            soundfile.write(blues / f"blues.{i:05d}.wav", np.full(10, i / 10), 8000)

    def told(status):
        assert doctor.doctor(path) == status
        shown = capsys.readouterr().out
        return shown, shown.splitlines()[-1]

    shown, last = told(1)
    assert f"missing ssl (ssl): weights_path: nothing at {tmp_path / WEIGHTS}" in shown
    assert last == f"2 missing. Next: aape download m2d --folder {tmp_path}"
    (tmp_path / WEIGHTS).parent.mkdir()
    (tmp_path / WEIGHTS).touch()
    assert told(1)[1].endswith(f"aape download gtzan --folder {tmp_path}/data")
    renamed = doctor.doctor(study(audio_dir="data/songs")), capsys.readouterr().out.splitlines()[-1]
    assert renamed[1].endswith(
        f"--folder {tmp_path}/data, and write {tmp_path}/data/gtzan into the study as audio_dir"
    )
    study()
    audio(3)
    assert told(1)[1].endswith(f"aape metadata gtzan {tmp_path}/data/gtzan {tmp_path}/gtzan.csv")
    rows = "".join(f"blues/blues.{i:05d}.wav,blues,train\n" for i in range(4))
    (tmp_path / "gtzan.csv").write_text("file_name,label,split\n" + rows)
    assert "1 of the 4 files in" in told(1)[0]
    audio(4)
    assert (
        f"Next: aape collect {path} ssl gtzan" in told(0)[1]
    )  # the path that works, not the study's name
    folder = tmp_path / "outputs" / "tiny" / "gtzan_ssl"
    folder.mkdir(parents=True)
    (folder / "over_zero.pt").touch()
    assert "everything is collected" in told(0)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": "no_such_package.models:load"}, "No module named 'no_such_package'"),
        ({"weihgts_path": "x"}, "unexpected keyword argument 'weihgts_path'"),
        ({"audio_dir": "$NOWHERE/gtzan"}, "needs an environment variable"),
    ],
)
def test_a_studys_options_are_checked_as_the_loader_would(study, capsys, options, message):
    assert doctor.doctor(study(**options)) == 1
    assert message in capsys.readouterr().out


def test_packages(monkeypatch):
    wanted = [
        "torch>=2.0",
        "numpy>=999",
        "no-such-package>=1",
        "no-such-tool>=1; extra == 'dev'",
        "x; python_version<'3'",
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: wanted)
    findings = {finding.subject: finding for finding in doctor.packages()}
    lacking = findings["requirements"]
    assert lacking.state == "missing" and lacking.detail == "without numpy>=999, no-such-package>=1"
    assert lacking.next_step == "python -m pip install 'numpy>=999' 'no-such-package>=1'"
    assert findings["installed"].detail.startswith("torch ")


def test_the_command_line_names_the_nearest_command_and_ends_quietly(capsys):
    assert cli.main(["docter"]) == 2
    assert "did you mean 'doctor'?" in capsys.readouterr().err
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"aape {name}" in shown for name in cli.COMMANDS)
    asked = f"{sys.executable} -m aape download | true"  # nobody reads, as after `| head`
    assert (
        subprocess.run(asked, shell=True, cwd=REPOSITORY, stderr=subprocess.PIPE, timeout=60).stderr
        == b""
    )
    assert cli.main(["download", "--help", "vc1_gender"]) == 0
    assert capsys.readouterr().out.startswith("VoxCeleb1")


def test_pages_and_studies_agree():
    """Every dataset's page says what is needed, and the study `paper` uses the same lengths and folders."""
    paper = load_study("paper")
    for task, dataset in TASKS.items():
        page, facts = dataset.page(), dataset.tasks[task]
        assert dataset.licence in page and f"{facts.clip_seconds:g} s" in page
        assert all(remote.url in page for remote in dataset.remotes)
        if task in paper.tasks:
            options = paper.tasks[task].options
            assert options["clip_seconds"] == facts.clip_seconds
            assert (options["audio_dir"], options["csv_path"]) == (
                f"data/{dataset.name}",
                f"data/metadata/{task}.csv",
            )
    text = (REPOSITORY / "Install.md").read_text(encoding="utf-8")
    named = re.findall(r"aape (?:download|metadata) (?:--help )?(\w+)", text)
    assert named and {*named} <= {*DATASETS, *TASKS}
