"""The galleries: notebooks of today's scripts with outputs and no traces of a machine; pages whose links lead somewhere."""

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY
from PIL import Image

from aape.files import sha256_of
from aape.study.study import ROOT
from notebooks_src.gallery import AT_MOST, FOLDER, shown
from notebooks_src.generate import SOURCES, all_notebooks
from notebooks_src.shrinking import LEVELS, absolute_paths, relative, shrink, small_sound

PAGES = sorted((REPOSITORY / "gallery").rglob("README.md"))


def code_of(book: nbformat.NotebookNode) -> list[str]:
    cells = [
        cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    return [cell.source for cell in cells]


def texts_of(book: nbformat.NotebookNode) -> list[str]:
    """Everything that a reader of a notebook sees, besides pictures."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    streams = [output.text for output in outputs if output.output_type == "stream"]
    data = [item for output in outputs for item in output.get("data", {}).items()]
    return (
        [cell.source for cell in book.cells]
        + streams
        + [text for kind, text in data if kind.startswith("text/")]
    )


def test_the_gallery_holds_todays_notebooks_and_little_else():
    assert FOLDER.is_dir(), "run `python -m notebooks_src.gallery` and commit gallery/notebooks"
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(shown())
    today = {name: sha256_of(SOURCES / f"{name}.py") for name in shown()}
    assert json.loads((FOLDER / "sources.json").read_text()) == today
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= AT_MOST


@pytest.mark.parametrize("name", shown())
def test_a_notebook_of_the_gallery_shows_its_outputs(name: str):
    text = (FOLDER / f"{name}.ipynb").read_text()
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [path for written in texts_of(book) for path in absolute_paths(written)]
    assert code_of(book) == code_of(nbformat.reads(all_notebooks()[f"{name}.ipynb"], as_version=4))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_figures_and_links_of_a_page_exist(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"", page.read_text())
    targets = [markdown or html for markdown, html in links]
    lost = [
        target for target in targets if "://" not in target and not (page.parent / target).exists()
    ]
    assert not lost


def test_every_gallery_is_in_the_index():
    text = (REPOSITORY / "gallery" / "README.md").read_text()
    folders = [path.name for path in (REPOSITORY / "gallery").iterdir() if path.is_dir()]
    assert not [name for name in folders if f"]({name}/" not in text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"open file://{ROOT}/outputs/x/index.html", "open ./outputs/x/index.html"),
        (f"PosixPath('{ROOT}')", "PosixPath('.')"),
        (f"{ROOT}2/weights.pt, /tmp/a/b.csv: 3 rows", "weights.pt, b.csv: 3 rows"),
        ('<a href="/home/me/my.csv">/home/me/my.csv</a>', '<a href="my.csv">my.csv</a>'),
        ("https://arxiv.org/abs/1 and/or 3/4/5, outputs/a/b, ~/x/y </td></tr>", None),
        ("data:audio/wav;base64,/9j/4AA/abc+/d/e=", None),
    ],
)
def test_paths_of_a_machine_become_relative(text: str, expected: str | None):
    assert relative(text) == (expected or text)
    assert bool(absolute_paths(text)) == (expected is not None)


def player(seconds: float) -> str:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * 44100), 2))
    soundfile.write(file, noise, 44100, format="WAV")
    encoded = base64.b64encode(file.getvalue()).decode()
    return (
        f'<audio controls><source src="data:audio/wav;base64,{encoded}" type="audio/wav" /></audio>'
    )


def picture(size: int) -> str:
    file = io.BytesIO()
    colours = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(colours).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def executed() -> nbformat.NotebookNode:
    v4 = nbformat.v4
    outputs = [
        v4.new_output(
            "stream",
            name="stderr",
            text="clips:  50%|#####     | 1/2\rclips: 100%|##########| 2/2\n",
        ),
        v4.new_output("stream", name="stdout", text="12 clips\n"),
        v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}
        ),
        v4.new_output("display_data", {"text/html": player(6.0), "text/plain": "<Audio>"}),
        v4.new_output("display_data", {"image/png": picture(300), "text/plain": "<Figure>"}),
    ]
    cell = v4.new_code_cell(
        "a = '/home/me/kept.csv'", outputs=outputs, metadata={"papermill": {"duration": 1.0}}
    )
    injected = v4.new_code_cell(
        "sounds = '/home/me/sounds'", metadata={"tags": ["injected-parameters"]}
    )
    return v4.new_notebook(cells=[injected, cell], metadata={"papermill": {}, "widgets": {}})


def test_a_notebook_is_shrunk_as_far_as_it_must():
    whole = executed()
    budget = 10**7
    texts = []
    with pytest.raises(ValueError, match="bytes at the smallest pictures"):
        while True:
            texts.append(shrink(whole, budget))
            budget = len(texts[-1]) - 1
    assert len(texts) == len(LEVELS)
    for text in texts:
        book = nbformat.reads(text, as_version=4)
        injected, cell = book.cells
        assert injected.source == "sounds = 'sounds'" and cell.source == "a = '/home/me/kept.csv'"
        assert "papermill" not in text and "widget" not in text and "100%" not in text
        assert [output.output_type for output in cell.outputs] == [
            "stream",
            "display_data",
            "display_data",
        ]
        assert Image.open(io.BytesIO(base64.b64decode(cell.outputs[2].data["image/png"]))).size == (
            300,
            300,
        )
    assert "audio/mpeg" in texts[0] and "audio/wav" not in texts[0]
    assert "<audio" not in texts[-1] and "run the notebook to hear it" in texts[-1]
    assert "papermill" in whole.metadata  # the argument stays as it is


def test_a_short_sound_is_mono_and_of_a_low_rate():
    encoded = re.search(r"base64,([^\"]+)", player(6.0))[1]
    level = LEVELS[2]
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(small_sound(encoded, level))))
    assert rate == level.rate and wave.ndim == 1
    assert abs(len(wave) / rate - level.seconds) < 0.3  # an MP3 begins and ends with some silence
