"""Building one model on one task of the atlas, from choosing its neurons to writing its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aape.artifacts.folder import Artifacts
from aape.atlas.choosing import choose_all, neurons_with_pages
from aape.atlas.clip_pass import ClipPass, MapGrid
from aape.atlas.content import class_rows, index_entry, pair_content
from aape.atlas.model_on_task import ModelOnTask
from aape.atlas.records import Records
from aape.atlas.scripts import SCHEMA, write_script
from aape.atlas.titles import Titles
from aape.causal.attribution import attributed
from aape.encoders.encoder import Encoder
from aape.neurons.selection import Selection
from aape.resuming import forget
from aape.sounds.task import Task


def build_pair(
    artifacts: Artifacts,
    encoder: Encoder,
    task: Task,
    selection: Selection,
    titles: Titles,
    out: Path,
    requested: Any = None,
    strongest: int = 20,
    clips: int = 20,
) -> dict[str, Any]:
    """Write the files of one model on one task, and return its entry of the index.

    Choose neurons, choose clips, pass the clips through the model once, and write what was found.

    Args:
        artifacts, encoder, task, selection, titles, clips, strongest: as in `build_atlas`.
        out: folder of the atlas.
        requested: int [k, 2] of (layer, neuron) that also get a page.
    """
    if not 10 <= clips <= 60:
        raise ValueError(f"clips: expected 10 to 60 per neuron, found {clips}")
    data = ModelOnTask.load(artifacts, selection)
    pages = neurons_with_pages(data, requested, strongest)
    neurons = pages[:, 0] * data.width + pages[:, 1]
    folder = out / titles.folder
    kept = folder / ".partial"

    counts = np.zeros((0, len(neurons)), np.uint8)
    choices: list[list[tuple[int, int]]] = [[] for _ in neurons]
    clip_pass = None
    files: list[list[Any]] = []
    maps = None
    filtered: dict[int, str] = {}
    clip_numbers: dict[int, int] = {}
    attribution: dict[str, np.ndarray] = {}
    if data.has_counts:
        counts = data.counts(neurons)
        choices = choose_all(data, neurons, counts, clips)
        grid = MapGrid.of(encoder, task, clips)
        clip_pass = ClipPass(encoder, task, artifacts, pages, choices, grid, out / "clips")
        clip_numbers = {clip: i for i, clip in enumerate(clip_pass.clips)}
        attribution = attributed(encoder, artifacts) or {}
        files, maps, filtered = clip_pass.run(kept, titles.folder)

    folder.mkdir(exist_ok=True)
    records = Records(data, neurons, counts, attribution).make(
        choices, clip_numbers, maps, filtered
    )
    for layer in np.unique(pages[:, 0]).tolist():
        of_layer = {str(record["n"]): record for record in records if record["l"] == layer}
        write_script(out, f"{titles.folder}/L{layer:02}", {"v": SCHEMA, "records": of_layer})
    classes = class_rows(data, titles)
    write_script(
        out, f"{titles.folder}/pair", pair_content(data, titles, pages, classes, clip_pass, files)
    )
    forget(kept)
    return index_entry(data, titles, classes, records)
