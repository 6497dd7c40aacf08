"""The committed notebooks: generated, without outputs, and every one of them runs on the miniature."""

from __future__ import annotations

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
from jupyter_client.manager import KernelManager

from aape.artifacts import load_artifacts
from aape.study import load_study
from notebooks_src.collecting import DATASETS, MODELS
from notebooks_src.generate import all_notebooks
from notebooks_src.run import Job, _kernel_config, collecting_jobs, execute


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
    with pytest.raises(ValueError, match="M2D_ESC50.ipynb has no parameter 'modell'; it has study, model, task"):
        execute(job, load_study("miniature"))


@pytest.mark.skipif(os.name != "posix", reason="kernels talk over TCP there")
def test_a_kernel_takes_no_port_that_another_may_be_given(tmp_path: Path):
    manager = KernelManager(config=_kernel_config(tmp_path), kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        assert client.execute_interactive("1 + 1", timeout=60)["content"]["status"] == "ok"
        assert manager.transport == "ipc"
        assert len(list(tmp_path.glob("socket-*"))) == 5  # shell, iopub, stdin, control, heartbeat
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


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
