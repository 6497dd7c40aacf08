"""Checks that an encoder, a task and artifacts belong together, before anything is computed from all three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aape.artifacts.folder import Artifacts
from aape.encoders.encoder import Encoder
from aape.sounds.task import Task


def other_encoder(theirs: Mapping[str, Any], identity: str, probe: Sequence[float]) -> str | None:
    """How the encoder of a manifest differs from one of this identity and probe (`aape.encoders.encoder.Encoder`), or None.

    Probes are equal to 1e-3 of their largest value: devices and libraries round differently.
    """
    if theirs.get("identity") != identity:
        return f"identity (SHA-256 of weights, window and padding) is {theirs.get('identity')!r} there and {identity!r} here"
    a, b = np.asarray(theirs["probe"]), np.asarray(probe)
    if len(a) == len(b) and np.abs(a - b).max() <= 1e-3 * np.abs([a, b]).max():
        return None
    a, b = np.round(a, 6).tolist(), np.round(b, 6).tolist()
    return f"of one noise wave, the same weights embed {a[:3]} ... there and {b[:3]} ... here (other front end or pooling?)"


def check_embedded(artifacts: Artifacts, clips: np.ndarray, embedded: np.ndarray, known: np.ndarray) -> None:
    """Refuse what does not embed these clips of the artifacts as features.pt says: other audio, or another model.

    Args:
        artifacts: of the clips. clips: indices.
        embedded, known: what was found of these clips, and what features.pt holds [clips, dim].

    Raises:
        ValueError: further away than 1e-3 of the largest value, or 5e-2 of a model in half precision.
    """
    off, largest = float(np.abs(embedded - known).max()), float(np.abs(known).max())
    if not off <= largest * (1e-3 if artifacts.manifest["dtype"] in ("float32", "float64") else 5e-2):
        raise ValueError(
            f"{artifacts.path}: {artifacts.files[clips[0]]} and its neighbours are embedded up to {off:.3g} away from "
            "features.pt. The artifacts are of other weights or of other audio than those in hand: collect again."
        )


def check_belong_together(encoder: Encoder, task: Task, artifacts: Artifacts) -> np.ndarray:
    """Index into the task of each clip of the artifacts, once it is sure that model, task and artifacts fit.

    Raises:
        ValueError: artifacts of other tools, of another model (by its weights and what it embeds), with layers that the
            encoder does not have, or of other classes, labels, clips or clip lengths than the task's.
    """
    place = {name: i for i, name in enumerate(task.files)}
    rows = np.array([place.get(name, -1) for name in artifacts.files])
    if other := other_encoder(artifacts.manifest, encoder.identity, encoder.probe):
        wrong = f"made by {artifacts.manifest.get('encoder')!r}, not by the {encoder.name!r} in hand: {other}"
    elif strange := sorted(set(artifacts.layers) - set(encoder.layers)):
        wrong = f"layer {strange[0]!r}, {encoder.name} has {', '.join(encoder.layers)}"
    elif artifacts.manifest["clip_seconds"] != task.clip_seconds:
        wrong = f"clips of {artifacts.manifest['clip_seconds']:g} s, task {task.name} has {task.clip_seconds:g} s"
    elif artifacts.classes != task.classes:
        theirs, ours = artifacts.classes, task.classes
        wrong = f"{len(theirs)} classes {theirs[:4]} ..., task {task.name} has {len(ours)}, {ours[:4]} ..."
    elif (rows < 0).any():
        wrong = f"{(rows < 0).sum()} clip(s) that {task.metadata} does not list, e.g. {artifacts.files[rows < 0][0]}"
    elif (task.labels[rows] != artifacts.labels).any():
        wrong = f"other labels than {task.metadata}"
    else:
        return rows
    raise ValueError(f"{artifacts.path}: {wrong}. Give what the artifacts were made of, or collect again.")
