"""A neuron's page in a notebook: the atlas' own page in a frame, with its sounds inside."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aape.artifacts.folder import Artifacts
from aape.atlas import choosing
from aape.atlas.build import default_titles
from aape.atlas.model_on_task import ModelOnTask
from aape.atlas.pair import build_pair
from aape.atlas.scripts import SCHEMA, read_script, script_text
from aape.atlas.titles import Titles
from aape.encoders.encoder import Encoder
from aape.neurons.selection import Selection, select
from aape.sounds.task import Task

MEDIA = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".png": "image/png"}
HEIGHT = 900  # of the frame, pixels


@dataclass(frozen=True, repr=False)
class NeuronPage:
    """The page of one neuron. Jupyter shows it in a frame.

    Attributes:
        record: numbers of the neuron, as in the atlas.
        classes: names of its classes.
        page: the whole page as one HTML text, which needs no other file.
    """

    record: Mapping[str, Any]
    classes: tuple[str, ...]
    page: str

    def __repr__(self) -> str:
        layer, number, aape, density = (self.record[key] for key in ("l", "n", "aape", "density"))
        active = (
            "never active"
            if aape is None
            else f"AAPE {aape} nats; active at {density:.1%} of all tokens"
        )
        return (
            f"Layer {layer}, neuron {number}: most active for {', '.join(self.classes)}\n  {active}"
        )

    def _repr_html_(self) -> str:
        page = html.escape(self.page)
        title = f"Layer {self.record['l']}, neuron {self.record['n']}"
        return f'<iframe title="{title}" srcdoc="{page}" style="width:100%;height:{HEIGHT}px;border:0"></iframe>'


def show_neuron(
    artifacts: Artifacts,
    encoder: Encoder,
    task: Task,
    layer: int | None = None,
    neuron: int | None = None,
    *,
    clips: int = 20,
    selection: Selection | None = None,
) -> NeuronPage:
    """Show a neuron's page in a notebook: p by class, clips with players, and where the neuron is active in them.

    Args:
        artifacts, encoder, task, clips, selection: as in `build_atlas`.
        layer, neuron: counted from 0. The default is the neuron that detects its class best on held-out clips.

    Raises:
        ValueError, BadClip: as `build_atlas`.
    """
    selection = selection or select(artifacts)
    if layer is None or neuron is None:
        layer, neuron = best_neuron(artifacts, selection)
    titles = default_titles(artifacts, encoder, task)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        requested = [[layer, neuron]]
        entry = build_pair(artifacts, encoder, task, selection, titles, out, requested, 0, clips)
        record = read_script(out, f"{titles.folder}/L{layer:02}")["records"][str(neuron)]
        page = _one_page(out, titles, entry, record)
    classes = tuple(selection.classes[c] for c in record["own"])
    return NeuronPage(record, classes, page)


def best_neuron(artifacts: Artifacts, selection: Selection) -> tuple[int, int]:
    """The neuron that is worth looking at first, as (layer, neuron), see `aape.atlas.choosing.best_neuron`.

    Raises:
        ValueError: the selection has no class-specific neuron, or none that passes the calibration.
    """
    best = choosing.best_neuron(ModelOnTask.load(artifacts, selection))
    if best is None:
        raise ValueError(
            f"{artifacts.path}: no class-specific neuron passes the calibration; give layer and neuron"
        )
    return best[0], best[1]


def _one_page(
    out: Path, titles: Titles, entry: Mapping[str, Any], record: Mapping[str, Any]
) -> str:
    """The page with everything that it reads inside."""
    source = resources.files("aape.atlas")
    page, style, program = (
        source.joinpath(name).read_text() for name in ("index.html", "app.css", "app.js")
    )
    files = {}
    for path in (out / "clips").iterdir():
        content = base64.b64encode(path.read_bytes()).decode()
        files[path.name] = f"data:{MEDIA[path.suffix]};base64,{content}"
    address = urlencode({"m": titles.model, "t": titles.task, "l": record["l"], "n": record["n"]})
    index = {"v": SCHEMA, "study": titles.study, "note": "", "substitute": False, "pairs": [entry]}
    embedded = json.dumps({"address": address, "files": files})
    scripts = [f"window.aapeEmbedded={embedded};\n", program]
    for key in (f"{titles.folder}/pair", f"{titles.folder}/L{record['l']:02}"):
        scripts.append(script_text(key, read_script(out, key)))
    scripts.append(script_text("index", index))  # last, because it starts the page
    inline = "".join(f"<script>{_inside_html(script)}</script>" for script in scripts)
    page = page.replace('<link rel="stylesheet" href="app.css">', f"<style>{style}</style>")
    page = page.replace('<script src="app.js"></script>', inline)
    return page.replace('<script src="index.js"></script>', "")


def _inside_html(script: str) -> str:
    """A script that can stand between script tags: the data may contain their names."""
    if script.startswith("aapeAtlas("):
        return script.replace("<", "\\u003c")
    return script
