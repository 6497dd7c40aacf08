"""Artifacts with other labels for clips that a pass has already counted, without a second pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aape import collecting
from aape.artifacts.folder import Artifacts, load_artifacts
from aape.collecting.out_folder import close_pass, finished_artifacts, open_pass
from aape.collecting.plan import Plan, plan_of
from aape.files import folder_lock
from aape.sounds.task import Task

_FROM_SOURCE = (
    "encoder", "identity", "dtype", "layers", "neurons", "sample_rate", "weights", "means", "batch_size", "device",
)  # fmt: skip


def relabel(artifacts: Artifacts, task: Task, out_dir: str | Path) -> Artifacts:
    """Write the artifacts that a pass over a task would leave, from artifacts of the same clips with other labels.

    For example octaves from pitches, or the gender of the speakers from a pass over their emotions. The task may have
    other classes, groups and splits, another order, and fewer clips; its clips are found by file name and content.

    Args:
        artifacts: of a pass over all clips of the task.
        task: the same clips with other labels.
        out_dir: one folder per encoder and task.

    Raises:
        ValueError: artifacts without counts per clip, clips that they do not have, another clip length, or a folder that
            holds another run.
    """
    out_dir = Path(out_dir)
    if not artifacts.has_counts:
        raise ValueError(
            f"{artifacts.path} has no counts per clip, which relabelling needs; collect the task instead"
        )
    source = artifacts.manifest
    if source["clip_seconds"] != task.clip_seconds:
        raise ValueError(
            f"clips of {task.name} last {task.clip_seconds:g} s, those of {artifacts.path} {source['clip_seconds']:g} s; "
            "give the task the same clip_seconds, or collect it"
        )
    plan = plan_of(task, {name: source[name] for name in _FROM_SOURCE})
    rows = _rows_of(plan, artifacts)
    facts = {name: source[name] for name in ("hardware", "versions", "code_version")}
    facts["pass_of"] = f"{artifacts.path.name} (task {source['task']})"
    with folder_lock(out_dir):
        if finished_artifacts(plan, out_dir) is None:
            open_pass(plan, out_dir)
            collecting.merge(plan, _results(plan, artifacts, rows), facts, out_dir)
        close_pass(out_dir)
    return load_artifacts(out_dir)


def _rows_of(plan: Plan, artifacts: Artifacts) -> np.ndarray:
    """Row in the artifacts of each clip of a plan, found by file name and content."""
    clips = artifacts.manifest["clips"]
    known = {key: row for row, key in enumerate(zip(clips["file"], clips["sha256"], strict=True))}
    wanted = list(zip(plan.task.files, plan.digests, strict=True))
    absent = [file for file, digest in wanted if (file, digest) not in known]
    if absent:
        raise ValueError(
            f"{artifacts.path} does not have {len(absent):,} of the {len(wanted):,} clips of {plan.task.name}, by file name "
            f"and content, e.g. {absent[0]}. Collect this task, or remove these clips from it."
        )
    return np.array([known[clip] for clip in wanted])


def _results(plan: Plan, artifacts: Artifacts, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What each batch of the plan would leave, taken from the artifacts."""
    embeddings = artifacts.embeddings()
    unmarked = artifacts.manifest["padding"] == "unknown"
    padding_counts = None if unmarked else artifacts.padding_counts
    for clips in plan.batches.values():
        source = rows[clips]
        result = {
            "embeddings": embeddings[source],
            "tokens": artifacts.tokens[source],
            "padding_tokens": artifacts.padding_tokens[source],
            "unmarked": np.full(len(clips), unmarked),
            "clip_counts": artifacts.counts[source],
        }
        if plan.settings["means"]:
            result["clip_means"] = artifacts.means[source]
        if padding_counts is not None:
            result["padding_counts"] = padding_counts[source]
        yield result
