"""A collecting pass, decided and checked before anything is computed: which clips, which layers, whose folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.encoder import Encoder
from aape.shapes import common_width
from aape.task import Task

BATCH_SIZE = 32
IDENTITY = (
    "encoder",
    "identity",
    "layers",
    "neurons",
    "task",
    "clip_seconds",
    "sample_rate",
    "splits",
    "data",
    "kept",
    "means",
)
RUN = ("batch_size", "device", "precision", "on_bad_clip")  # may differ between finished runs, not within one


@dataclass(frozen=True)
class Plan:
    """One pass, decided: which clips in which batches, and the settings that identify it."""

    task: Task
    clips: np.ndarray  # indices into the task, in its order
    kept: np.ndarray  # bool, of `clips`: counts per clip go to disk
    settings: dict[str, Any]
    fingerprints: list[str]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, neurons."""
        return len(self.settings["layers"]), self.settings["neurons"]

    @property
    def batches(self) -> list[np.ndarray]:
        """Positions in `clips` of each batch."""
        size, clips = self.settings["batch_size"], np.arange(len(self.clips))
        return [clips[start : start + size] for start in range(0, len(clips), size)]


def plan_pass(
    encoder: Encoder,
    task: Task,
    out_dir: Path,
    device: torch.device,
    batch_size: int | None,
    splits: Sequence[str] | None,
    layers: Sequence[str] | None,
    keep_clips: int | None,
    means: bool,
    on_bad_clip: str,
    seed: int,
) -> Plan:
    """Check what was asked for and decide the pass."""
    if on_bad_clip not in ("stop", "skip"):
        raise ValueError(f"on_bad_clip must be 'stop' or 'skip', found {on_bad_clip!r}")
    if isinstance(splits, str) or isinstance(layers, str):
        raise ValueError("splits and layers are lists of names, found a single string; write [name]")
    if keep_clips is not None and keep_clips < 0:
        raise ValueError(f"keep_clips must be a number of clips, found {keep_clips}")
    if task.clip_seconds > encoder.clip_seconds * (1 + 1e-9) and not encoder.chunks:
        raise ValueError(
            f"clips of {task.name} last {task.clip_seconds} s, {encoder.name} takes at most {encoder.clip_seconds} s "
            "at once. Shorten the task's clip_seconds, or let embed cut longer waves and say chunks=True."
        )
    have = list(dict.fromkeys(task.splits))
    wanted = have if splits is None else list(splits)
    if unknown := [s for s in wanted if s not in have]:
        raise ValueError(f"task {task.name} has no split {unknown[0]!r}; it has {', '.join(have)}")
    clips = np.flatnonzero(np.isin(np.asarray(task.splits), wanted))
    if empty := sorted(set(range(len(task.classes))) - set(task.labels[clips].tolist())):
        raise ValueError(
            f"class {task.classes[empty[0]]!r} of {task.name} has no clip in {', '.join(wanted)}: its activation "
            "probability is not defined. Take in another split, or leave the class out of the metadata."
        )
    if batch_size is None and (unfinished := out_dir / ".partial" / "settings.json").is_file():
        batch_size = json.loads(unfinished.read_text()).get("batch_size")
    batch_size = BATCH_SIZE if batch_size is None else int(batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    names = encoder.layers if layers is None else tuple(layers)
    kept = np.ones(len(clips), dtype=bool)
    if keep_clips is not None and keep_clips < len(clips):
        kept[:] = False
        kept[np.random.default_rng(seed).choice(len(clips), keep_clips, replace=False)] = True
    with ThreadPoolExecutor(max_workers=8) as pool:
        fingerprints = list(pool.map(task.fingerprint, clips.tolist(), chunksize=64))
    data = hashlib.sha256()
    for i, mark in zip(clips.tolist(), fingerprints, strict=True):
        row = (task.files[i], task.classes[task.labels[i]], task.splits[i], task.groups[i], mark)
        data.update(("\t".join(row) + "\n").encode())
    settings = {
        "encoder": encoder.name,
        "identity": str(encoder.weights.get("sha256") or dict(encoder.weights)),
        "layers": list(names),
        "neurons": common_width(encoder, names),
        "task": task.name,
        "clip_seconds": task.clip_seconds,
        "sample_rate": encoder.sample_rate,
        "splits": wanted,
        "data": data.hexdigest(),
        "kept": None if kept.all() else f"{int(kept.sum())} by seed {seed}",
        "means": means,
        "batch_size": batch_size,
        "device": device.type,
        "precision": "float32",
        "on_bad_clip": on_bad_clip,
    }
    return Plan(task, clips, kept, settings, fingerprints)


def refuse_other(theirs: Mapping[str, Any], ours: Mapping[str, Any], out_dir: Path, keys: Sequence[str]) -> None:
    if different := [k for k in keys if theirs.get(k) != ours[k]]:
        sides = "; ".join(f"{k} is {theirs.get(k)!r} there and {ours[k]!r} here" for k in different)
        raise ValueError(
            f"{out_dir} belongs to another run: {sides}. Give this run another out_dir, restore the setting, or delete "
            "the folder; nothing was changed."
        )


def say_cost(plan: Plan, clips: int) -> None:
    """Before a long run: what it will write, and whether that fits."""
    per_clip = math.prod(plan.shape) * (2 + 2 * plan.settings["means"])  # bytes, at most: counts in 1 or 2
    size = int(plan.kept.sum()) * per_clip * 2  # for a moment both as batches and merged
    if size > 1 << 28:
        tqdm.write(f"{plan.task.name}: {clips:,} clips to hear, up to {size / 2**30:.1f} GiB of disk while it runs")
