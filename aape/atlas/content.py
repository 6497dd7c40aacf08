"""What the page reads of one model on one task besides the records: classes, clips, and all neurons for the search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aape.atlas.choosing import best_neuron
from aape.atlas.clip_pass import ClipPass
from aape.atlas.model_on_task import ModelOnTask
from aape.atlas.scripts import SCHEMA, base64_of, bytes_of, rounded
from aape.atlas.study_tables import SCORES, class_chance, effects, task_chance
from aape.atlas.titles import Titles

# probabilities by neuron and class that the page reads; of more, the TOP largest of each neuron and those of its classes
WHOLE_TABLE = 6_000_000
TOP = 16


def pair_content(
    data: ModelOnTask,
    titles: Titles,
    neurons: np.ndarray,
    classes: list[dict[str, Any]],
    clip_pass: ClipPass | None,
    files: Sequence[list[Any]],
) -> dict[str, Any]:
    """Everything but the records.

    Args:
        data: the model on the task.
        titles: what pages call them.
        neurons: int [k, 2] that have a page.
        classes: from `class_rows`.
        clip_pass: the pass over the shown clips, if counts per clip are known.
        files: [sound, picture, seconds] of each shown clip.
    """
    layers = np.unique(neurons[:, 0]).tolist()
    content: dict[str, Any] = {
        "v": SCHEMA,
        "layers": list(data.artifacts.layers),
        "width": data.width,
        "pages": {str(layer): neurons[neurons[:, 0] == layer, 1].tolist() for layer in layers},
        "classes": classes,
        "effects": effects(data.artifacts, titles.task, titles.model),
        "aape": base64_of(data.aape.astype(np.float32)),
        "members": _members(data),
        "clips": [],
    }
    content |= _probabilities(data, content["members"])
    if clip_pass is not None:
        content |= _clips(data, clip_pass, files)
    return content


def _members(data: ModelOnTask) -> dict[str, str]:
    """Class-specific neurons, as columns."""
    table = data.table
    columns = {
        "at": base64_of((table.layer * data.width + table.neuron).to_numpy(np.uint32)),
        "c": base64_of(table.c.to_numpy(np.uint16)),
        "calibrated": base64_of(table.calibrated.fillna(2).to_numpy(np.uint8)),  # 2: not known
        "out": bytes_of(table.rate_outside.fillna(0).to_numpy()),
    }
    for column in ("q", *SCORES):
        columns[column] = base64_of(table[column].to_numpy(np.float32))
    return columns


def _probabilities(data: ModelOnTask, members: dict[str, str]) -> dict[str, Any]:
    """All p, or the largest ones of each neuron; then `members` gets those of the class-specific pairs."""
    if data.p.size <= WHOLE_TABLE:
        return {"p": bytes_of(data.p)}
    members["p"] = bytes_of(
        data.table.rate.to_numpy()
    )  # a neuron's classes need not be among its largest
    top = np.argpartition(-data.p, TOP - 1, axis=1)[:, :TOP]
    largest = np.take_along_axis(data.p, top, axis=1)
    return {"p_top": {"k": TOP, "c": base64_of(top.astype(np.uint16)), "p": bytes_of(largest)}}


def _clips(data: ModelOnTask, clip_pass: ClipPass, files: Sequence[list[Any]]) -> dict[str, Any]:
    """The shown clips, and how their maps and pictures are laid out."""
    shown = clip_pass.clips
    artifacts = data.artifacts
    groups = artifacts.groups[shown]
    if (
        artifacts.manifest["group_column"] is None
    ):  # every clip is its own group, and its file says more
        groups = np.full(len(shown), "")
    columns = [data.labels[shown], groups, artifacts.splits[shown], artifacts.files[shown]]
    rows = zip(*[column.tolist() for column in columns], strict=True)
    content: dict[str, Any] = {
        "seconds": clip_pass.task.clip_seconds,
        "own_picture": clip_pass.encoder.log_mel is not None,
        "ticks": clip_pass.axis.ticks(),
        "clips": [[*file, *row] for file, row in zip(files, rows, strict=True)],
    }
    if clip_pass.grid is not None and shown:
        grid = clip_pass.grid
        content |= {"grid": grid.shape, "map_seconds": grid.cell_seconds * grid.columns}
    return content


def class_rows(data: ModelOnTask, titles: Titles) -> list[dict[str, Any]]:
    """Each class's name, clips, neurons, how many are calibrated, and what permuted labels give."""
    artifacts, table = data.artifacts, data.table
    many = len(artifacts.classes)
    chance = class_chance(artifacts, titles.task, titles.model)
    is_tested = not table.calibrated.isna().all()
    clips = (
        np.bincount(data.labels, minlength=many).tolist() if artifacts.manifest else [None] * many
    )
    neurons = np.bincount(table.c, minlength=many).tolist()
    calibrated = np.bincount(
        table.c, table.calibrated, many
    )  # NaN where it is not known of one neuron
    rows = []
    for c, name in enumerate(artifacts.classes):
        row = {"name": name, "clips": clips[c], "neurons": neurons[c], "chance": chance.get(name)}
        row["calibrated"] = rounded(calibrated[c]) if is_tested else None
        rows.append(row)
    return rows


def index_entry(
    data: ModelOnTask,
    titles: Titles,
    classes: list[dict[str, Any]],
    records: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """What the first page says of this model on this task."""
    artifacts, table = data.artifacts, data.table
    chance = task_chance(artifacts, titles.task, titles.model)
    if (
        len(table) and table.calibrated.notna().all()
    ):  # after `dissect` neurons.csv is the only table
        calibrated = table[table.calibrated == 1]
        chance["calibrated_neurons"] = len(calibrated.drop_duplicates(["layer", "neuron"]))
    unflagged = {(record["l"], record["n"]) for record in records if not record["flags"]}
    best = best_neuron(data, unflagged)
    return {
        "folder": titles.folder,
        "m": titles.model,
        "t": titles.task,
        "label": titles.label,
        "title": titles.title,
        "role": titles.role,
        "layers": len(artifacts.layers),
        "width": data.width,
        "layer_names": list(artifacts.layers),
        "classes": [[row["name"], row["neurons"], row["calibrated"]] for row in classes],
        "selected": int(data.selection.selected.sum()),
        "coverage": rounded(data.selection.coverage),
        "chance": chance,
        "best": best,
    }
