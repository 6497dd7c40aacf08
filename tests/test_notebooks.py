"""The committed notebooks: generated, without outputs, and every one of them runs on the miniature."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY

from aape.artifacts import load_artifacts
from aape.study import load_study
from notebooks_src.collecting import DATASETS, MODELS
from notebooks_src.generate import all_notebooks
from notebooks_src.run import Job, collecting_jobs, execute


def test_committed_notebooks_are_what_their_source_gives():
    built = all_notebooks()
    committed = {p.name: p.read_text() for p in REPOSITORY.glob("*.ipynb")}
    assert sorted(committed) == sorted(built)
    for name, content in built.items():
        assert committed[name] == content, f"{name} differs: run `make notebooks` and commit"
    assert len(built) == len(MODELS) * len(DATASETS) + 2


def test_notebooks_are_committed_without_outputs_and_say_their_parameters():
    for path in REPOSITORY.glob("*.ipynb"):
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert all(not c.outputs and c.execution_count is None for c in code)
        assert code[0].metadata["tags"] == ["parameters"] and 'study = "miniature"' in code[0].source


def test_tasks_that_share_audio_come_after_the_pass_they_take_over():
    order = [j.parameters["task"] for j in collecting_jobs(load_study("miniature"), "miniature")]
    assert len(order) == 30
    assert max(i for i, t in enumerate(order) if t == "cremad") < order.index("cremad_gender")
    assert max(i for i, t in enumerate(order) if t == "vc1_gender") < order.index("vc1_country")


def test_unknown_parameters_are_refused():
    job = Job("M2D_ESC50.ipynb", "x.ipynb", {"study": "miniature", "modell": "ViT"})
    with pytest.raises(
        ValueError, match="M2D_ESC50.ipynb has no parameter 'modell'; it has study, model, task"
    ):
        execute(job, load_study("miniature"))


@pytest.mark.parametrize(
    ("failures", "message", "starts", "raises"),
    [
        (2, "Kernel died before replying to kernel_info", 3, False),
        (3, "Kernel died before replying to kernel_info", 3, True),
        (1, "Kernel died", 1, True),  # in the middle: out of memory, say; another try would only do it again
    ],
)
def test_a_kernel_that_does_not_start_is_started_again(
    failures: int, message: str, starts: int, raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def starting(*_: object, **__: object) -> None:
        calls.append(None)
        if len(calls) <= failures:
            raise RuntimeError(message)

    monkeypatch.setenv("AAPE_OUTPUT", str(tmp_path))
    monkeypatch.setattr("papermill.execute_notebook", starting)
    job = Job("M2D_ESC50.ipynb", "x.ipynb", {"study": "miniature"})
    with pytest.raises(RuntimeError, match=message) if raises else contextlib.nullcontext():
        execute(job, load_study("miniature"))
    assert len(calls) == starts
    assert (tmp_path / "miniature/notebooks/.x.ipynb.json").is_file() != raises


def small_study(folder: Path) -> Path:
    """The miniature with fewer permutations and controls: the same notebooks, models and sounds, sooner."""
    content = yaml.safe_load((REPOSITORY / "studies" / "miniature.yaml").read_text())
    content["chance"] = {"permutations": 40, "resamples": 2}
    content["ablation"] |= {
        "controls": 19,
        "bootstrap": 200,
        "refits": 2,
        "targets": content["ablation"]["targets"][:2],
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_every_notebook_runs_on_the_miniature_and_a_second_call_does_nothing(tmp_path: Path):
    study = small_study(tmp_path)
    environment = os.environ | {"AAPE_OUTPUT": str(tmp_path / "outputs")}
    command = [sys.executable, "-m", "notebooks_src.run", str(study)]
    first = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-4000:]
    assert "32 notebook(s) executed" in first.stdout
    out = tmp_path / "outputs" / "miniature"
    loaded = load_study(study)
    for task in loaded.tasks:
        for model in loaded.models.values():
            artifacts = load_artifacts(out / f"{task}_{model.folder}", verify=True)
            assert artifacts.has_counts and artifacts.over_zero.shape[:2] == (6, 768)
            neurons = pd.read_csv(artifacts.path / "neurons.csv")
            assert {"layer", "neuron", "class", "p", "aape"} <= {c.lower() for c in neurons.columns}
    for name in ("analysis", "vit"):
        table = pd.read_csv(out / f"task_level_neuron_statistics_{name}.csv")
        assert len(table) == 10
    for figure in loaded.sharing:
        assert (out / f"{figure.name}.pdf").read_bytes().startswith(b"%PDF")
    for path in (out / "notebooks").glob("*.ipynb"):
        outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]
        assert outputs and not [o for o in outputs if o["output_type"] == "error"], path.name
    second = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert second.returncode == 0 and "0 notebook(s) executed" in second.stdout, second.stdout + second.stderr
