"""A collecting pass, decided and checked before anything is computed: its clips, batches and settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from aape.artifacts.manifest import Settings, check_classes, checked
from aape.encoders.dry_run import common_width, dry_run
from aape.encoders.encoder import Encoder
from aape.files import sha256_of
from aape.sounds.audio import BadClip, seconds_of
from aape.sounds.task import Task, in_batches

_RESULT = (
    "identity",
    "dtype",
    "layers",
    "neurons",
    "sample_rate",
    "clip_seconds",
    "means",
    "device",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One pass, decided.

    Attributes:
        task: the clips of the chosen splits.
        settings: what identifies the pass; see `aape.artifacts.manifest.Settings`.
        digests: SHA-256 of each clip's file; "" if it cannot be read.
        seconds: duration of each clip's file; NaN if it cannot be read.
    """

    task: Task
    settings: dict[str, Any]
    digests: list[str]
    seconds: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, neurons."""
        return len(self.settings["layers"]), self.settings["neurons"]

    @functools.cached_property
    def batches(self) -> dict[str, np.ndarray]:
        """Name of each batch -> indices of its clips."""
        parts = in_batches(np.arange(len(self.task)), self.settings["batch_size"])
        return {f"batch-{number:06d}": part for number, part in enumerate(parts)}

    @property
    def contents(self) -> dict[str, list[str]]:
        """Name of each batch -> what its result depends on: the bytes of its clips, but not their labels or splits."""
        return {
            name: [self.digests[clip] for clip in clips] for name, clips in self.batches.items()
        }

    @property
    def key(self) -> dict[str, Any]:
        """What the results of all batches depend on."""
        return {name: self.settings[name] for name in _RESULT}

    @property
    def clips(self) -> dict[str, list[Any]]:
        """What is known of the clips before the pass, as columns of `aape.artifacts.manifest.Clips`."""
        return {
            "file": list(self.task.files),
            "label": self.task.labels.tolist(),
            "split": list(self.task.splits),
            "group": list(self.task.groups),
            "sha256": self.digests,
        }

    @property
    def cut(self) -> int:
        """How many clips last longer than `clip_seconds`, by more than the few samples that resampling and codecs add."""
        return int((self.seconds > self.task.clip_seconds + 0.05).sum())


def plan_pass(
    encoder: Encoder,
    task: Task,
    *,
    batch_size: int,
    device: str,
    splits: Sequence[str] | None,
    layers: Sequence[str] | None,
    means: bool,
) -> Plan:
    """Check the arguments of `aape.collecting.passing.collect` and decide the pass.

    Raises:
        ValueError: settings that do not fit the task or the encoder, or that the manifest could not hold.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")
    chosen_layers = _chosen("layers", layers, encoder.layers)
    chosen_task = _clips_of_splits(task, splits)
    if task.clip_seconds > encoder.clip_seconds * (1 + 1e-9) and not encoder.chunks:
        raise ValueError(
            f"clips of {task.name} last {task.clip_seconds} s, {encoder.name} takes at most {encoder.clip_seconds} s "
            "at once. Shorten the task's clip_seconds, or let embed cut longer waves and say chunks=True."
        )
    calls = dry_run(encoder)
    about_encoder = {
        "encoder": encoder.name,
        "identity": encoder.identity,
        "dtype": encoder.dtype,
        "layers": chosen_layers,
        "neurons": common_width(encoder, chosen_layers, calls),
        "sample_rate": encoder.sample_rate,
        "weights": dict(encoder.weights),
    }
    return plan_of(
        chosen_task, about_encoder | {"means": means, "batch_size": batch_size, "device": device}
    )


def plan_of(task: Task, about_pass: dict[str, Any]) -> Plan:
    """The plan of a pass over all clips of a task.

    Args:
        task: the clips.
        about_pass: the settings that do not follow from the task.

    Raises:
        ValueError: names or numbers that the manifest could not hold.
    """
    check_classes(task.classes)
    absent = set(range(len(task.classes))) - set(task.labels.tolist())
    if absent:
        raise ValueError(
            f"class {task.classes[min(absent)]!r} of {task.name} has no clip in {', '.join(dict.fromkeys(task.splits))}: "
            "its activation probability is not defined. Add another split, or leave the class out of the metadata."
        )
    try:
        json.dumps(
            [task.name, task.files, task.groups, about_pass], ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError) as error:
        encoder = about_pass["encoder"]
        raise ValueError(
            f"a name in {task.name}, or in the weights of {encoder}, cannot be written: {error}"
        ) from error
    digests, seconds = _survey(task)
    classes = [task.classes[label] for label in task.labels]
    rows = zip(task.files, classes, task.splits, task.groups, digests, strict=True)
    settings = about_pass | {
        "task": task.name,
        "clip_seconds": task.clip_seconds,
        "splits": list(dict.fromkeys(task.splits)),
        "data": hashlib.sha256("".join(map(json.dumps, rows)).encode()).hexdigest(),
    }
    checked(Settings, settings)
    return Plan(task, settings, digests, seconds)


def _clips_of_splits(task: Task, splits: Sequence[str] | None) -> Task:
    """The clips of some splits as a task."""
    wanted = _chosen("splits", splits, task.splits)
    clips = np.flatnonzero(np.isin(task.splits, wanted))
    return dataclasses.replace(
        task,
        files=tuple(task.files[clip] for clip in clips),
        labels=task.labels[clips],
        groups=tuple(task.groups[clip] for clip in clips),
        splits=tuple(task.splits[clip] for clip in clips),
    )


def _chosen(what: str, asked: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """What was asked for, or everything. Raises ValueError for an unknown or repeated name, and for none."""
    known = list(dict.fromkeys(there))
    if asked is None:
        return known
    chosen = [] if isinstance(asked, str) else list(asked)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(known):
        raise ValueError(
            f"{what} must be a list of some of {', '.join(known)}, each once, found {asked!r}"
        )
    return chosen


def _survey(task: Task) -> tuple[list[str], np.ndarray]:
    """SHA-256 and duration, s, of each clip's file. What cannot be read is left to the pass, which names it."""

    def look(path: Path) -> tuple[str, float]:
        digest, seconds = "", math.nan
        try:
            digest = sha256_of(path)
            seconds = seconds_of(path)
        except (OSError, BadClip):
            pass
        return digest, seconds

    with ThreadPoolExecutor(max_workers=8) as pool:
        found = list(pool.map(look, (task.audio_dir / file for file in task.files)))
    return [digest for digest, _ in found], np.array([seconds for _, seconds in found])


def announce(plan: Plan, encoder: Encoder) -> None:
    """Before a pass: say what it will write, and warn of what a reader of the results must know."""
    name, length = plan.task.name, plan.task.clip_seconds
    clips = len(plan.task)
    layers, neurons = plan.shape
    gigabytes = clips * layers * neurons * (3 if plan.settings["means"] else 1) / 1e9
    tqdm.write(
        f"{name}: {clips:,} clips x {layers} layers x {neurons:,} neurons, at least {gigabytes:.2f} GB of artifacts and, "
        "until they are finished, as much in .partial"
    )
    if plan.cut:
        longest = (
            f"longer than clip_seconds={length:g} (the longest {np.nanmax(plan.seconds):.1f} s)"
        )
        warnings.warn(
            f"{name}: {plan.cut:,} of {clips:,} clips last {longest} and are cut there",
            stacklevel=3,
        )
    if tuple(plan.settings["layers"]) != encoder.layers:
        warnings.warn(
            f"{name}: {layers} of {len(encoder.layers)} layers are counted, numbered from 0. To silence their neurons or "
            f"to map them, use encoder.with_layers({plan.settings['layers']})",
            stacklevel=3,
        )
    padded = np.nansum(np.clip(length - plan.seconds, 0, None)) / (clips * length)
    if encoder.padding_masks is None and padded > 1e-4:
        warnings.warn(
            f"{name}: {padded:.1%} of all samples are zero padding, and {encoder.name} does not say which tokens that "
            "makes, so they count as sound. Give samples_per_token= or padding_masks=, or shorten clip_seconds.",
            stacklevel=3,
        )
    _warn_of_copies(plan)


def _warn_of_copies(plan: Plan) -> None:
    """Warn of equal files in different classes, splits or groups, where they count as independent."""
    task = plan.task
    about = list(zip(task.labels.tolist(), task.splits, task.groups, strict=True))
    first: dict[str, int] = {}
    copies = []
    differences: Counter[str] = Counter()
    for clip, digest in enumerate(plan.digests):
        original = first.setdefault(digest, clip)
        if not digest or about[original] == about[clip]:
            continue
        copies.append(f"{task.files[original]} and {task.files[clip]}")
        for what, one, other in zip(
            ("class", "split", "group"), about[original], about[clip], strict=True
        ):
            differences[what] += one != other
    if copies:
        counts = ", ".join(
            f"{count:,} in another {what}" for what, count in differences.items() if count
        )
        warnings.warn(
            f"{task.name}: {len(copies):,} of {len(about):,} clips are copies of others, byte for byte: {counts}, e.g. "
            f"{copies[0]}. Keep one of each in the task, or give copies within a class and split the same group.",
            stacklevel=4,
        )
