"""What the doctor finds, misses and recommends."""

import re

import numpy as np
import pytest
import soundfile
import torch
import yaml

from aape import datasets as builders
from aape.datasets import doctor
from aape.datasets.download import ITEMS
from aape.study import load_study


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.delenv("EVAR", raising=False)
    monkeypatch.setenv("AAPE_OUTPUT", str(tmp_path / "outputs"))
    content = {
        "name": "tiny",
        "description": "a test",
        "stand_in": True,
        "output": "tiny",
        "models": {
            "ssl": {
                "loader": "aape.encoders.m2d:load",
                "options": {
                    "weights_path": str(tmp_path / "m2d_vit_base-80x608p16x16-221006-mr7" / "checkpoint-300.pth")
                },
                "label": "ssl",
                "folder": "analysis",
            },
            "untrained": {
                "loader": "aape.encoders.m2d:load",
                "options": {"weights_path": "random"},
                "label": "untrained",
                "folder": "untrained",
            },
        },
        "tasks": {
            "gtzan": {
                "loader": "aape.task:from_metadata",
                "options": {
                    "csv_path": str(tmp_path / "gtzan.csv"),
                    "audio_dir": str(tmp_path / "gtzan"),
                    "clip_seconds": 30.0,
                    "name": "gtzan",
                },
                "title": "GTZAN",
            }
        },
    }

    def write(**changes):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        return path

    write.content = content
    return write


def weights(tmp_path):
    path = tmp_path / "m2d_vit_base-80x608p16x16-221006-mr7" / "checkpoint-300.pth"
    path.parent.mkdir()
    torch.save({"a": torch.zeros(1)}, path)


def audio(tmp_path, count=3):
    for i in range(count):
        path = tmp_path / "gtzan" / "blues" / f"blues.{i:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(10), 8000)


def test_from_nothing_to_ready_step_by_step(study, tmp_path, capsys):
    path = study()
    assert doctor.main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert "missing ssl (ssl): weights_path: no file" in shown
    assert shown.splitlines()[-1] == "2 missing. Next: python common.py download m2d"

    weights(tmp_path)
    assert doctor.doctor(path) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("python common.py download gtzan gtzan_split")

    audio(tmp_path)
    assert doctor.doctor(path) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"python common.py metadata gtzan {tmp_path}/gtzan {tmp_path}/gtzan.csv")

    rows = "".join(f"blues/blues.{i:05d}.wav,blues,train\n" for i in range(4))
    (tmp_path / "gtzan.csv").write_text("file_name,label,split\n" + rows)
    assert doctor.doctor(path) == 1
    assert "4 clips: 1 not at" in capsys.readouterr().out

    audio(tmp_path, 4)
    assert doctor.doctor(path) == 0
    shown = capsys.readouterr().out
    assert "Next: python common.py collect tiny ssl gtzan" in shown
    assert "(stand-ins)" in shown

    for model in ("analysis", "untrained"):
        folder = tmp_path / "outputs" / "tiny" / f"gtzan_{model}"
        folder.mkdir(parents=True)
        (folder / "over_zero.pt").touch()
    assert doctor.doctor(path) == 0
    assert "everything is collected" in capsys.readouterr().out


def test_large_metadata_is_sampled(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.wav").touch()
    (tmp_path / "big.csv").write_text("file_name,label,split\n" + "x.wav,a,train\n" * 5000)
    finding = doctor._data("big", tmp_path / "big.csv", tmp_path / "a")
    assert finding.state == "ok"
    assert finding.detail.startswith("1,667 of 5,000 clips looked for")


def test_a_loader_and_a_variable_that_are_not_there(study, capsys, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    models = {**study.content["models"]}
    models["ssl"] = {**models["ssl"], "loader": "no_such_package.models:load"}
    tasks = {"gtzan": {**study.content["tasks"]["gtzan"]}}
    tasks["gtzan"]["options"] = {**tasks["gtzan"]["options"], "audio_dir": "$NOWHERE/gtzan"}
    assert doctor.doctor(study(models=models, tasks=tasks)) == 1
    shown = capsys.readouterr().out
    assert "No module named 'no_such_package'" in shown
    assert "'$NOWHERE/gtzan' needs an environment variable" in shown


def test_packages(tmp_path, monkeypatch):
    path = tmp_path / "requirements.txt"
    path.write_text(
        "torch>=2.0  # a comment\nnumpy>=999\nno-such-package>=1\nother; python_version < '3'\n-r more.txt\n"
    )
    found = {f.subject: f for f in doctor.packages(path).findings}
    assert found["installed"].detail.startswith("torch ")
    assert found["numpy"].state == "missing"
    assert "needs numpy>=999" in found["numpy"].detail
    assert found["no-such-package"].next_step == "python -m pip install 'no-such-package>=1'"
    assert "other" not in found

    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == "evar" else None)
    found = {f.subject: f for f in doctor.packages(tmp_path / "none.txt").findings}
    assert "unrelated e-book tool" in found["evar"].detail
    assert found["torchaudio"].state == "note"


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


def test_unknown_study(capsys):
    assert doctor.main(["no-such-study"]) == 2
    assert "shipped:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["paper", "miniature", "esc50"])
def test_shipped_studies_can_be_examined(name, capsys, monkeypatch):
    monkeypatch.delenv("EVAR", raising=False)
    monkeypatch.delenv("AAPE_ESC50", raising=False)
    assert doctor.main([name]) in (0, 1)
    assert f"study {name}:" in capsys.readouterr().out


def test_install_md_names_what_exists():
    """Every download, metadata and doctor command of Install.md, and the lengths of clips in the study `paper`."""
    text = (doctor.ROOT / "Install.md").read_text(encoding="utf-8")
    studies = load_study("paper")
    for line in re.findall(r"python common\.py download ([^`#\n|]+)", text):
        assert {w for w in line.split() if not w.startswith("-")} <= set(ITEMS), line
    for task, root, csv in re.findall(r"python common\.py metadata (\w+) (\S+) ([\w./]+)", text):
        assert (studies.tasks[task].audio_dir, studies.tasks[task].metadata) == (root, csv)
    for task, seconds in builders.CLIP_SECONDS.items():
        assert studies.tasks[task].clip_seconds == seconds
        assert f"python common.py metadata {task} " in text
    for item in ITEMS:
        assert item in text, f"Install.md does not mention download {item}"
    for file in ITEMS["gtzan"].files:
        assert file.checksum.removeprefix("md5:") in text
