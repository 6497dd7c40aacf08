"""The notebooks: generated without outputs, cells in any order, and executed copies that hold their pictures."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from conftest import REPOSITORY, tiny_whisper, write_clips
from nbclient import NotebookClient

from aape.artifacts.folder import load_artifacts
from aape.figures.tables import table, three_digits
from aape.study.study import load_study
from miniature.tasks import render
from notebooks_src import gallery
from notebooks_src.generate import MODELS, TASKS, all_notebooks
from notebooks_src.run import collecting_notebooks, kernel


def test_committed_notebooks_are_what_their_source_gives():
    built = all_notebooks()
    committed = {p.name: p.read_text() for p in REPOSITORY.glob("*.ipynb")}
    assert sorted(committed) == sorted(built)
    differ = [name for name, content in built.items() if committed[name] != content]
    assert not differ, "run `make notebooks` and commit"
    assert len(MODELS) * len(TASKS) == 20


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_committed_notebook_has_no_outputs_and_no_name_that_two_cells_give_a_value(path: Path):
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    assert code[0].metadata["tags"] == ["parameters"]
    assert 'study = "miniature"' in code[0].source or path.stem in ("Dissect_Your_Own", "Tuning")
    # Cells can be run again in any order where each name has its value from one cell alone.
    owner: dict[str, int] = {}
    throwaway = {"picture", "axes", "legend"}  # of a figure that the same cell draws to its end
    for number, cell in enumerate(code):
        for node in ast.walk(ast.parse(cell.source)):
            if (
                isinstance(node, ast.Name)
                and isinstance(node.ctx, ast.Store)
                and node.id not in throwaway
            ):
                assert owner.setdefault(node.id, number) == number, (
                    f"{node.id} in cells {owner[node.id]} and {number}"
                )


def test_numbers_have_three_digits_and_a_table_says_what_it_leaves_out():
    shown = [
        three_digits(v)
        for v in (0.1208, 12345.6, 0.000123456, 99.96, 1.0, -0.5, float("nan"), 7, True, "x")
    ]
    assert shown == ["0.121", "12,346", "0.000123", "100", "1.00", "-0.500", "", "7", "yes", "x"]
    wide = pd.DataFrame({f"c{i}": range(20) for i in range(10)})
    html = table(wide, rows=5, csv="all.csv").to_html()
    assert len(re.findall(r"<th [^>]*col_heading", html)) == 8 and html.count("<tr>") == 6
    assert "15 more rows; 2 more columns; everything: all.csv" in html


def test_tasks_of_the_paper_have_their_notebooks_and_others_the_general_one():
    study = load_study("miniature")
    notebooks = [n for task in study.tasks for n in collecting_notebooks(study, "miniature", task)]
    assert len({notebook.executed for notebook in notebooks}) == 36
    sources = {(n.parameters["task"], n.parameters["model"]): n.source for n in notebooks}
    assert sources["vc1_country", "sl"] == "ViT_VC1_country.ipynb"
    assert sources["esc50", "untrained"] == "Collect.ipynb"


def test_a_kernel_is_of_this_environment_and_ends_with_a_runner_that_is_killed(tmp_path: Path):
    """Modules of a cluster can set JUPYTER_PATH, where a kernel named python3 belongs to another environment."""
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/no/such/python"], "language": "python", "display_name": "Python of a module"}
    (other / "kernel.json").write_text(json.dumps(spec))
    script = (
        "import sys, time; from notebooks_src.run import kernel\n"
        "with kernel() as k:\n"
        "    client = k.blocking_client(); client.start_channels(); client.wait_for_ready(60)\n"
        "    print(k.provisioner.pid, k.kernel_spec.argv[0] == sys.executable, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"JUPYTER_PATH": str(tmp_path)}
    command = [sys.executable, "-c", script]
    runner = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )
    pid, is_this_python = runner.stdout.readline().split()
    assert is_this_python == "True"
    state, tries = Path(f"/proc/{pid}/stat"), 0
    os.kill(int(pid), 0)  # it lives
    runner.kill()
    runner.communicate()
    while state.is_file() and ") Z " not in state.read_text():
        time.sleep(0.1)
        assert (tries := tries + 1) < 100, "the kernel lives on"


def outputs_of(path: Path) -> list[nbformat.NotebookNode]:
    """All outputs of an executed copy; none of them is an error."""
    cells = nbformat.read(path, as_version=4).cells
    found = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [o for o in found if o.output_type == "error"], path.name
    return found


def shown(path: Path, kind: str) -> list[str]:
    return [o.data[kind] for o in outputs_of(path) if kind in o.get("data", {})]


pictures, headings = (partial(shown, kind=kind) for kind in ("image/png", "text/markdown"))


def check_tables(path: Path) -> None:
    """At most eight columns, no exponents, no number with more than three significant digits behind a point."""
    tables = [html for html in shown(path, kind="text/html") if "<table" in html]
    assert tables, path.name
    for html in tables:
        assert (
            max(
                len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr>.*?</tr>", html, re.S)
            )
            <= 8
        ), html
        for number in re.findall(r"<td[^>]*>\s*(-?[\d.,]+(?:e[+-]?\d+)?)\s*</td>", html):
            assert "e" not in number, number
            digits = number.lstrip("-").replace(",", "")
            assert "." not in digits or len(digits.replace(".", "").lstrip("0")) <= 3, number


def run(study: Path, outputs: Path, *options: str) -> str:
    """The runner as a user starts it; what it prints."""
    environment = os.environ | {"AAPE_OUTPUT": str(outputs)}
    environment["MPLBACKEND"] = (
        "agg"  # as on a server: executed copies have their pictures all the same
    )
    command = [sys.executable, "-m", "notebooks_src.run", str(study), *options]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


OWN_MODEL = """
import torch
from aape import from_module

def load():
    torch.manual_seed(0)
    parts = [part for width in (100, 8, 8) for part in (torch.nn.Linear(width, 8), torch.nn.ReLU())]
    net = torch.nn.Sequential(*parts)
    embed = lambda wave: net(wave.unflatten(1, (-1, 100))).mean(dim=1)
    return from_module(net, activations="[135]", embed=embed, sample_rate=1000, clip_seconds=1.0, name="toy")
"""
OWN = """
models:
  mine: {loader: own_model:load, label: my toy}
tasks:
  noise: {metadata: noise/clips.csv, audio_dir: noise/audio, clip_seconds: 1.0, title: my noise}
  more: {metadata: more/clips.csv, audio_dir: more/audio, clip_seconds: 1.0}
selection: {rate: 0.3, quantile: 0.6}
chance: {permutations: 20}
sharing: [{name: noise-more, rows: noise, columns: more, title: class}]
ablation:
  targets: [{task: noise, classes: [class1], mode: specific}]
  controls: 5
  other_modes: 3
  bootstrap: 50
"""


@pytest.fixture(scope="module")
def own_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A study of two own tasks and one own model after one run: file, results, what the runner printed."""
    folder = tmp_path_factory.mktemp("own")
    write_clips(folder / "noise", 30)
    write_clips(folder / "more", 30, seed=1)
    (folder / "own_model.py").write_text(OWN_MODEL)
    (folder / "own.yaml").write_text(OWN)
    return (
        folder / "own.yaml",
        folder / "results" / "own",
        run(folder / "own.yaml", folder / "results", "--workers=1"),
    )


def test_own_tasks_and_an_own_model_run_from_collecting_to_ablation(
    own_study: tuple[Path, Path, str],
):
    study, out, printed = own_study
    assert "4 notebook(s) executed" in printed
    for task in ("noise", "more"):
        assert load_artifacts(out / f"{task}_mine").over_zero.shape == (3, 8, 3)
    names = ("Collect.noise.mine", "Collect.more.mine", "Analyze_ClassSpecificNeurons", "Ablations")
    copies = [out / "notebooks" / f"{name}.ipynb" for name in names]
    # analysis: AAPE, chance, sharing of one task; chance, layers, sharing of all. Ablations: by hand, criteria; the rest
    assert [len(pictures(path)) for path in copies] == [
        1,
        1,
        7,
        2 + len(list(out.glob("ablation_*.png"))),
    ]
    for path in copies:
        check_tables(path)
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert [c.execution_count for c in code] == [
            *range(1, len(code) + 1)
        ]  # as a fresh kernel numbers them
    assert headings(copies[0])[0] == "## my toy on my noise"
    assert "0 notebook(s) executed" in run(study, out.parent)
    sounds, model = study.parent / "noise" / "audio", study.parent / "own_model.py"
    os.utime(sounds / "003.wav")
    assert "1 notebook(s) executed" in run(
        study, out.parent
    )  # which finds that the sounds are the same
    model.write_text(f"{OWN_MODEL}# changed\n")
    assert "4 notebook(s) executed" in run(
        study, out.parent
    )  # all stand on the code next to the study


def test_cells_of_analysis_and_ablations_run_again_in_any_order(
    own_study: tuple[Path, Path, str], monkeypatch
):
    study, out, _ = own_study
    monkeypatch.setenv("AAPE_OUTPUT", str(out.parent))
    for name in ("Analyze_ClassSpecificNeurons", "Ablations"):
        book = nbformat.read(REPOSITORY / f"{name}.ipynb", as_version=4)
        code = [c for c in book.cells if c.cell_type == "code"]
        code[0].source = code[0].source.replace('"miniature"', repr(str(study)))
        again = [nbformat.v4.new_code_cell(c.source) for c in reversed(code)]
        book.cells = code + again
        with kernel() as manager:
            NotebookClient(book, km=manager, timeout=120).execute()

        def seen(cell: nbformat.NotebookNode) -> list[object]:
            keys = ("text/markdown", "image/png")
            data = [
                o.data for o in cell.outputs if o.output_type in ("display_data", "execute_result")
            ]
            texts = [
                re.sub(r'(id|class|#)="?[^">]*"?|#?T_\w+', "", d.get("text/html", "")) for d in data
            ]
            return [{k: d[k] for k in keys if k in d} for d in data] + texts

        for first, second in zip(code, reversed(again), strict=True):
            assert seen(first) == seen(second), first.source


def test_the_gallery_takes_the_copies_of_the_runner(
    own_study: tuple[Path, Path, str], tmp_path: Path, monkeypatch
):
    study, out, _ = own_study
    monkeypatch.setenv("AAPE_OUTPUT", str(out.parent))
    loaded = load_study(str(study))
    notebooks = gallery.study_notebooks(loaded, str(study), "noise", "mine")
    executed = [out / "notebooks" / notebook.executed for notebook in notebooks.values()]
    before = [path.stat().st_mtime_ns for path in executed]
    gallery.write_notebooks(loaded, notebooks, tmp_path)
    assert [path.stat().st_mtime_ns for path in executed] == before
    copies = [
        tmp_path / f"{name}.ipynb"
        for name in ("Collect", "Analyze_ClassSpecificNeurons", "Ablations")
    ]
    for copy, original in zip(copies, executed, strict=True):
        assert copy.stat().st_size < original.stat().st_size
        assert len(pictures(copy)) == len(pictures(original)) > 0
        assert str(study.parent) not in copy.read_text() and str(REPOSITORY) not in copy.read_text()
    assert sorted(json.loads((tmp_path / "sources.json").read_text())) == sorted(notebooks)


def test_collecting_notebooks_run_on_the_miniature_and_hold_their_picture(tmp_path: Path):
    """Real models and sounds, also of a task with another task's clips; the heading says that they are substitutes."""
    content = yaml.safe_load((REPOSITORY / "studies" / "miniature.yaml").read_text())
    content["tasks"] = {task: content["tasks"][task] for task in ("cremad_gender", "cremad")}
    content["models"] = {model: content["models"][model] for model in ("ssl", "untrained")}
    content["sharing"] = [figure for figure in content["sharing"] if figure["rows"] == "cremad"]
    content["chance"] = {"permutations": 20}
    del content["ablation"]
    study = tmp_path / "small.yaml"
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    printed = run(study, tmp_path / "outputs")
    assert "5 notebook(s) executed" in printed
    assert printed.index("M2D_CREMAD.ipynb") < printed.index(
        "M2D_CREMAD_gender.ipynb"
    )  # which has the same clips
    copies = sorted((tmp_path / "outputs" / "miniature" / "notebooks").glob("*.ipynb"))
    assert [len(pictures(path)) for path in copies if "Analyze" not in path.name] == [2] * 4
    for path in copies:
        check_tables(path)
        assert "**Substitute models or sounds.**" in headings(path)[0]
    neurons = pd.read_csv(tmp_path / "outputs" / "miniature" / "cremad_analysis" / "neurons.csv")
    assert {"layer", "neuron", "class", "rate", "aape"} <= set(neurons.columns)


def test_dissect_your_own_runs_on_a_folder_of_sounds_and_a_model_in_a_folder(tmp_path: Path):
    tiny_whisper(tmp_path / "whisper")
    chosen = {"blues", "metal", "pop"}  # of the miniature's rendered sounds
    for clip in sorted((render("gtzan") / "audio").glob("*.flac"))[::3]:
        genre, split, _ = clip.stem.split("-")
        if genre in chosen and split != "valid":
            place = tmp_path / "sounds" / split / genre
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, place)
    own = {
        key: str(tmp_path / name)
        for key, name in (("model", "whisper"), ("sounds", "sounds"), ("out", "out"))
    }
    own |= {"rate": 0.3, "permutations": 20, "controls": 19}
    copy = tmp_path / "executed.ipynb"
    quiet = {"progress_bar": False, "kernel_name": "python3"}
    with kernel() as manager:
        papermill.execute_notebook(
            REPOSITORY / "Dissect_Your_Own.ipynb", copy, own, km=manager, **quiet
        )
    check_tables(copy)
    assert len(pictures(copy)) == 2 + len(list((tmp_path / "out").rglob("ablation_*.png")))
    assert (tmp_path / "out" / "atlas" / "index.html").is_file()
    assert {"layer", "neuron", "class", "rate"} <= set(
        pd.read_csv(tmp_path / "out" / "sounds" / "neurons.csv").columns
    )
