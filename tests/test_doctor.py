"""What the doctor finds, misses and recommends, and the command line around it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import REPOSITORY

from aape import cli
from aape.datasets import DATASETS, TASKS, doctor
from aape.study import load_study

WEIGHTS = "m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes a study of a checkpoint and a dataset that are not there yet."""
    monkeypatch.delenv("EVAR", raising=False)
    monkeypatch.setattr(sys, "argv", ["aape"])
    task = {"csv_path": "gtzan.csv", "audio_dir": "data/gtzan", "clip_seconds": 30.0, "name": "gtzan"}
    content = {
        "stand_in": True,
        "models": {
            "ssl": {"loader": "aape.encoders.m2d:load", "options": {"weights_path": WEIGHTS}},
            "untrained": {"loader": "aape.encoders.m2d:load", "options": {"weights_path": "random"}},
        },
        "tasks": {"gtzan": {"loader": "aape.task:from_metadata", "options": task}},
    }

    def write(part="", name="", **options):
        changed = yaml.safe_load(yaml.safe_dump(content))
        if part:
            entry = changed[part][name]
            entry["loader"] = options.pop("loader", entry["loader"])
            entry["options"] |= options
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(changed))
        return path

    return write


def audio(tmp_path, count=3):
    for i in range(count):
        path = tmp_path / "data" / "gtzan" / "blues" / f"blues.{i:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(10), 8000)


def test_from_nothing_to_ready_step_by_step(study, tmp_path, capsys):
    path = study()
    assert doctor.doctor(path) == 1
    shown = capsys.readouterr().out
    assert f"missing ssl (ssl): weights_path: no file {tmp_path / WEIGHTS}" in shown
    assert shown.splitlines()[-1] == f"2 missing. Next: aape download m2d --folder {tmp_path}"

    (tmp_path / WEIGHTS).parent.mkdir()
    (tmp_path / WEIGHTS).touch()
    assert doctor.doctor(path) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"aape download gtzan --folder {tmp_path}/data")

    audio(tmp_path)
    assert doctor.doctor(path) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"aape metadata gtzan {tmp_path}/data/gtzan {tmp_path}/gtzan.csv")

    rows = "".join(f"blues/blues.{i:05d}.wav,blues,train\n" for i in range(4))
    (tmp_path / "gtzan.csv").write_text("file_name,label,split\n" + rows)
    assert doctor.doctor(path) == 1
    assert "4 clips: 1 not at" in capsys.readouterr().out

    audio(tmp_path, 4)
    assert doctor.doctor(path) == 0
    shown = capsys.readouterr().out
    assert f"Next: aape collect {path} ssl gtzan" in shown  # the path that works, not the study's name
    assert "(stand-ins)" in shown

    for model in ("ssl", "untrained"):
        folder = tmp_path / "outputs" / "tiny" / f"gtzan_{model}"
        folder.mkdir(parents=True)
        (folder / "over_zero.pt").touch()
    assert doctor.doctor(path) == 0
    assert "everything is collected" in capsys.readouterr().out


def test_large_metadata_is_sampled(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(1667):
        (tmp_path / "a" / f"{i * 3}.wav").touch()
    rows = "".join(f"{i}.wav,a,train\n" for i in range(5000))
    (tmp_path / "big.csv").write_text("file_name,label,split\n" + rows)
    finding = doctor._data("big", {"csv_path": tmp_path / "big.csv", "audio_dir": tmp_path / "a"})
    assert finding.state == "ok"
    assert finding.detail.startswith("1,667 of 5,000 clips looked for")


@pytest.mark.parametrize(
    ("part", "name", "options", "message"),
    [
        ("models", "ssl", {"loader": "no_such_package.models:load"}, "No module named 'no_such_package'"),
        ("models", "ssl", {"weihgts_path": "x"}, "unexpected keyword argument 'weihgts_path'"),
        ("tasks", "gtzan", {"audio_dir": "$NOWHERE/gtzan"}, "needs an environment variable"),
        ("tasks", "gtzan", {"clip_second": 3}, "unexpected keyword argument 'clip_second'"),
    ],
)
def test_a_studys_options_are_checked_as_the_loader_would(study, capsys, part, name, options, message):
    assert doctor.doctor(study(part, name, **options)) == 1
    assert message in capsys.readouterr().out


def test_packages(monkeypatch):
    wanted = {"": ["torch>=2.0", "numpy>=999", "no-such-package>=1"], "dev": ["pytest>=8", "no-such-tool==1.*"]}
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    found = {f.subject: f for f in doctor.packages()}
    assert found["installed"].detail.startswith("torch ")
    assert found["numpy"].state == "missing" and "needs numpy>=999" in found["numpy"].detail
    assert found["no-such-package"].next_step == "python -m pip install 'no-such-package>=1'"
    assert found["extra dev"].detail == "without no-such-tool" and found["extra dev"].state == "note"
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == "evar" else None)
    assert "unrelated e-book tool" in {f.subject: f for f in doctor.packages()}["evar"].detail


@pytest.mark.parametrize(
    ("have", "wanted", "meets"),
    [
        ("2.14.0+cpu", ">=2.2", True),
        ("2.1", ">=2.2", False),
        ("0.17.3", "==0.17.*", True),
        ("0.18.0", "==0.17.*", False),
    ],
)
def test_versions(have, wanted, meets):
    assert doctor._meets(have, wanted) is meets


def test_the_requirements_are_those_of_pyproject():
    found = doctor.requirements()
    assert {"", "notebooks", "miniature", "dev"} <= set(found)
    base = {re.split(r"\W", line)[0] for line in found[""]}
    assert {"torch", "soundfile", "pydantic"} <= base
    assert not base & {"jupyterlab", "papermill", "pytest", "mido", "pretty_midi"}


def test_evar(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EVAR", str(tmp_path / "nothing"))
    doctor.doctor(study())
    assert "is no clone of EVAR" in capsys.readouterr().out
    folder = tmp_path / "clone" / "evar" / "metadata"
    folder.mkdir(parents=True)
    (folder / "gtzan.csv").write_text("file_name,label,split\n")
    monkeypatch.setenv("EVAR", str(tmp_path / "clone"))
    doctor.doctor(study())
    assert "metadata of this study's tasks: gtzan" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["paper", "miniature", "esc50"])
def test_shipped_studies_can_be_examined(name, capsys, monkeypatch):
    monkeypatch.delenv("EVAR", raising=False)
    monkeypatch.delenv("AAPE_ESC50", raising=False)
    assert cli.main(["doctor", name]) in (0, 1)
    assert f"study {name}:" in capsys.readouterr().out


@pytest.mark.parametrize("program", [["common.py"], ["-m", "aape"]])
def test_on_a_python_without_any_package(program):
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, '.'); sys.argv = sys.argv[1:]; import runpy; "
         + ("runpy.run_path(sys.argv[0], run_name='__main__')" if len(program) == 1
            else "runpy.run_module('aape', run_name='__main__', alter_sys=True)"),
         program[0], "doctor", "miniature"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert bare.returncode == 1, bare.stderr
    assert "missing numpy: not installed, needs numpy>=" in bare.stdout
    assert "device: not known before torch is installed" in bare.stdout
    missing = len(doctor.requirements()[""])
    assert bare.stdout.splitlines()[-1].startswith(f"{missing} missing. Next: python -m pip install 'torch")


def test_the_command_line_names_the_nearest_command_and_ends_quietly(capsys):
    assert cli.main(["docter"]) == 2
    assert "did you mean 'doctor'?" in capsys.readouterr().err
    assert cli.main(["doctor", "no-such-study"]) == 2
    assert "shipped:" in capsys.readouterr().err
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"aape {name}" in shown for name in cli.COMMANDS)
    ends = os.pipe()
    os.close(ends[0])  # nobody reads, as after `| head`
    asked = [sys.executable, "-m", "aape", "download"]
    told = subprocess.run(asked, cwd=REPOSITORY, stdout=ends[1], stderr=subprocess.PIPE, timeout=60)
    os.close(ends[1])
    assert (told.returncode, told.stderr) == (1, b"")
    assert cli.main(["download", "--help", "vc1_gender"]) == 0
    assert capsys.readouterr().out.startswith("VoxCeleb1")


def test_pages_and_studies_agree():
    """Every dataset's page says what is needed, and the study `paper` uses the same lengths and folders."""
    paper = load_study("paper")
    for task, dataset in TASKS.items():
        page = dataset.page()
        facts = dataset.tasks[task]
        assert dataset.licence in page and f"{facts.clip_seconds:g} s" in page
        assert all(remote.url in page for remote in dataset.remotes)
        if task in paper.tasks:
            options = paper.tasks[task].call(task)[1]
            assert options["clip_seconds"] == facts.clip_seconds
            assert (options["audio_dir"], options["csv_path"]) == (f"data/{dataset.name}", f"data/metadata/{task}.csv")
    text = (REPOSITORY / "Install.md").read_text(encoding="utf-8")
    for line in re.findall(r"aape download ([^`#\n|&]+)", text):
        assert {w for w in line.split() if not w.startswith("-")} <= {*DATASETS, *TASKS}, line
    for task in re.findall(r"aape metadata (\w+)", text):
        assert task in TASKS
    assert Path(REPOSITORY / "requirements.txt").read_text().splitlines()[-1] == "-e .[notebooks,miniature,dev]"
