"""Checks that an encoder, a task and artifacts belong together, before anything is computed from all three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aape.artifacts.folder import Artifacts
from aape.encoders.encoder import Encoder, rounding
from aape.sounds.task import Task


def other_encoder(manifest: Mapping[str, Any], identity: str) -> str | None:
    """How the encoder of a manifest differs from one with this identity (`aape.encoders.encoder.Encoder`), or None."""
    there = manifest.get("identity")
    if there == identity:
        return None
    return f"identity (SHA-256 of weights, window and padding) is {there!r} there and {identity!r} here"


def embedded_alike(embedded: np.ndarray, known: np.ndarray, dtype: str) -> bool:
    """Whether embeddings are equal up to rounding, which differs between devices and libraries.

    Args:
        embedded: what an encoder makes of some clips.
        known: what is on disk, of the same shape if it was the same encoder.
        dtype: the floating-point type of the weights.
    """
    if embedded.shape != known.shape:
        return False
    return bool(np.abs(embedded - known).max() <= rounding(dtype) * np.abs(known).max())


def check_embedded(
    artifacts: Artifacts, clips: np.ndarray, embedded: np.ndarray, known: np.ndarray
) -> None:
    """Check that clips embed as features.pt says; otherwise the audio or the model is another.

    Args:
        artifacts: of the clips.
        clips: indices of the clips.
        embedded: what the encoder makes of these clips [clips, dim].
        known: what features.pt holds of them [clips, dim].

    Raises:
        ValueError: they differ by more than 1e-3 of the largest value, or 5e-2 for a model in half precision.
    """
    if embedded_alike(embedded, known, artifacts.manifest["dtype"]):
        return
    difference = (
        float(np.abs(embedded - known).max()) if embedded.shape == known.shape else float("nan")
    )
    raise ValueError(
        f"{artifacts.path}: embeddings of {artifacts.files[clips[0]]} and the clips after it differ from features.pt by up "
        f"to {difference:.3g}. The artifacts were made with other weights, another front end or other audio: collect again."
    )


def check_belong_together(encoder: Encoder, task: Task, artifacts: Artifacts) -> np.ndarray:
    """Check that a model, a task and artifacts belong together; return the index in the task of each clip.

    Raises:
        ValueError: the artifacts are of another tool, of another model (by its weights), with layers that the encoder does
            not have, or of other classes, labels, clips or clip lengths than the task's.
    """
    row_of = {name: row for row, name in enumerate(task.files)}
    rows = np.array([row_of.get(name, -1) for name in artifacts.files])
    wrong = _mismatch(encoder, task, artifacts, rows)
    if wrong:
        raise ValueError(
            f"{artifacts.path}: {wrong}. Give the model and task that the artifacts were made from, or collect again."
        )
    return rows


def _mismatch(encoder: Encoder, task: Task, artifacts: Artifacts, rows: np.ndarray) -> str | None:
    manifest = artifacts.manifest
    different = other_encoder(manifest, encoder.identity)
    if different:
        return (
            f"made by {manifest.get('encoder')!r}, not by the given {encoder.name!r}: {different}"
        )
    unknown = sorted(set(artifacts.layers) - set(encoder.layers))
    if unknown:
        return f"layer {unknown[0]!r} is not a layer of {encoder.name}, which has {', '.join(encoder.layers)}"
    if manifest["clip_seconds"] != task.clip_seconds:
        return (
            f"clips of {manifest['clip_seconds']:g} s, task {task.name} has {task.clip_seconds:g} s"
        )
    if artifacts.classes != task.classes:
        there, here = artifacts.classes, task.classes
        return f"{len(there)} classes {there[:4]} ..., task {task.name} has {len(here)}, {here[:4]} ..."
    if (rows < 0).any():
        absent = artifacts.files[rows < 0]
        return f"{len(absent)} clip(s) that {task.metadata} does not list, e.g. {absent[0]}"
    if (task.labels[rows] != artifacts.labels).any():
        return f"other labels than {task.metadata}"
    return None
