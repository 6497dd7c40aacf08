"""A collecting pass, decided and checked before anything is computed: which clips, which layers, what it will take."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
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
from aape.sounds.task import Task

ENCODER = ("encoder", "identity", "probe", "dtype", "layers", "neurons", "sample_rate")
IDENTITY = (*ENCODER, "task", "clip_seconds", "splits", "data", "kept", "means")
RUN = ("batch_size", "device")  # may differ between finished runs, not within one


@dataclasses.dataclass(frozen=True)
class Plan:
    """One pass, decided: its clips, in which batches, and the settings that identify it."""

    task: Task  # only the clips that are heard
    kept: np.ndarray  # bool [clips]: their own counts go to disk
    settings: dict[str, Any]  # see aape.artifacts.manifest.Settings
    digests: list[str]  # SHA-256 of each clip's file; "" where it cannot be read
    seconds: np.ndarray  # duration of each clip's file; NaN where it cannot be read

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, neurons."""
        return len(self.settings["layers"]), self.settings["neurons"]

    @functools.cached_property
    def batches(self) -> list[np.ndarray]:
        """Indices of the clips of each batch."""
        clips, size = np.arange(len(self.task)), self.settings["batch_size"]
        return np.split(clips, range(size, len(clips), size))

    @property
    def clips(self) -> dict[str, list[Any]]:
        """What is known of the clips before the pass, by columns of `aape.artifacts.manifest.Clips`."""
        task = self.task
        known = {"file": task.files, "label": task.labels.tolist(), "split": task.splits, "group": task.groups}
        return {name: list(column) for name, column in (known | {"sha256": self.digests}).items()}

    @functools.cached_property
    def contents(self) -> np.ndarray:
        """What each batch depends on besides the settings (its clips, their bytes, which are kept), a hash int64 [batches]."""
        rows = list(zip(*self.clips.values(), self.kept.tolist(), strict=True))
        told = [json.dumps([rows[clip] for clip in batch]).encode() for batch in self.batches]
        return np.array([int.from_bytes(hashlib.sha256(text).digest()[:7], "big") for text in told])

    @property
    def cut(self) -> int:
        """How many clips go on behind `clip_seconds`, by more than the few samples that resampling and codecs add."""
        return int((self.seconds > self.task.clip_seconds + 0.05).sum())

    def space(self, folder: Path) -> tuple[str, int, int]:
        """What counts and means take on the disk: in words, at least at the end, and what is free, bytes."""
        neurons, means = int(self.kept.sum()) * math.prod(self.shape), 2 * self.settings["means"]
        # 1 or 2 bytes a count; for a moment both as batches and merged, with padding counted apart in both
        least, most, free = neurons * (1 + means), 2 * neurons * (4 + means), shutil.disk_usage(folder).free
        text = f"{least / 2**30:.3f} to {most / 2**30:.3f} GiB of disk, {free / 2**30:.3f} GiB are free"
        return text, least, free


def plan_pass(
    encoder: Encoder,
    task: Task,
    *,
    splits: Sequence[str] | None,
    layers: Sequence[str] | None,
    keep_clips: int | None,
    seed: int,
    **run: Any,
) -> Plan:
    """Check what was asked for, also all that could keep the finished artifacts from loading, and decide the pass.

    Args: those of `aape.collecting.passing.collect`; `run` goes into the settings as it is.
    """
    wanted = _chosen("splits", splits, task.splits)
    names = _chosen("layers", layers, encoder.layers)
    if keep_clips is not None and keep_clips < 0:
        raise ValueError(f"keep_clips must be a number of clips, found {keep_clips}")
    if task.clip_seconds > encoder.clip_seconds * (1 + 1e-9) and not encoder.chunks:
        raise ValueError(
            f"clips of {task.name} last {task.clip_seconds} s, {encoder.name} takes at most {encoder.clip_seconds} s "
            "at once. Shorten the task's clip_seconds, or let embed cut longer waves and say chunks=True."
        )
    clips = np.flatnonzero(np.isin(task.splits, wanted))
    files, groups, of_split = (tuple(c[i] for i in clips) for c in (task.files, task.groups, task.splits))
    task = dataclasses.replace(task, files=files, labels=task.labels[clips], groups=groups, splits=of_split)
    if absent := set(range(len(task.classes))) - set(task.labels.tolist()):
        raise ValueError(
            f"class {task.classes[min(absent)]!r} of {task.name} has no clip in {', '.join(wanted)}: its activation "
            "probability is not defined. Take in another split, or leave the class out of the metadata."
        )
    check_classes(task.classes)
    try:
        written = [task.name, encoder.name, task.files, task.groups, dict(encoder.weights)]
        json.dumps(written, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"a name in {task.name}, or in the weights of {encoder.name}: {error}") from error
    keep = len(task) if keep_clips is None else min(keep_clips, len(task))
    if 0 < keep < len(task.classes):
        raise ValueError(
            f"keep_clips: expected a clip of each of {len(task.classes)} classes or more, or 0, found {keep}"
        )
    order = np.random.default_rng(seed).permutation(len(task))
    of_new_class = np.sort(np.unique(task.labels[order], return_index=True)[1])  # one of each class is kept first
    kept = np.isin(np.arange(len(task)), np.append(order[of_new_class], np.delete(order, of_new_class))[:keep])
    seen, probe = dry_run(encoder)
    digests, seconds = _survey(task)
    classes = [task.classes[label] for label in task.labels]
    rows = zip(task.files, classes, task.splits, task.groups, digests, strict=True)
    settings = {
        "encoder": encoder.name,
        "identity": encoder.identity,
        "probe": probe,
        "dtype": encoder.dtype,
        "layers": names,
        "neurons": common_width(encoder, names, seen),
        "task": task.name,
        "clip_seconds": task.clip_seconds,
        "sample_rate": encoder.sample_rate,
        "splits": wanted,
        "data": hashlib.sha256("".join(map(json.dumps, rows)).encode()).hexdigest(),
        "kept": None if kept.all() else f"{keep} by seed {seed}",
        **run,
    }
    checked(Settings, settings)
    return Plan(task, kept, settings, digests, seconds)


def _chosen(what: str, asked: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """What was asked for, or all there is. Raises ValueError where it is not there, or nothing."""
    there = list(dict.fromkeys(there))
    chosen = there if asked is None else list(asked)
    if isinstance(asked, str) or not chosen or not {*chosen} <= {*there}:
        raise ValueError(f"{what} must be a list of some of {', '.join(there)}, found {asked!r}")
    return chosen


def _survey(task: Task) -> tuple[list[str], np.ndarray]:
    """SHA-256 and duration [clips], s, of the clips' files; "" and NaN for a file that cannot be read."""

    def look(path: Path) -> tuple[str, float]:
        digest = ""
        with contextlib.suppress(OSError, BadClip):  # the pass meets it again, and says so
            digest = sha256_of(path)
            return digest, seconds_of(path)
        return digest, math.nan

    with ThreadPoolExecutor(max_workers=8) as pool:
        found = list(pool.map(look, map(task.audio_dir.joinpath, task.files)))
    digests, seconds = zip(*found, strict=True)
    return list(digests), np.array(seconds)


def say_what_comes(plan: Plan, encoder: Encoder, folder: Path) -> None:
    """Before a pass: what it takes for granted, what it will write, and whether that fits.

    Raises:
        OSError: not even the least that will be written fits on the disk.
    """
    name, seconds, length = plan.task.name, plan.seconds, plan.task.clip_seconds
    if plan.cut:
        longest = f"longer than clip_seconds={length:g} (the longest {np.nanmax(seconds):.1f} s)"
        warnings.warn(f"{name}: {plan.cut:,} of {len(seconds):,} clips last {longest} and are cut there", stacklevel=3)
    if tuple(plan.settings["layers"]) != encoder.layers:
        warnings.warn(
            f"{name}: of {len(encoder.layers)} layers {plan.shape[0]} are counted, numbered from 0; silence their neurons, "
            f"and map them, in encoder.with_layers({plan.settings['layers']})",
            stacklevel=3,
        )
    _warn_of_copies(plan)
    padded = np.nansum(np.clip(length - seconds, 0, None)) / (len(seconds) * length)
    if encoder.padding_masks is None and padded > 1e-4:
        warnings.warn(
            f"{name}: {padded:.1%} of all samples are zero padding, and {encoder.name} does not say which tokens that "
            "makes, so they count as sound. Give samples_per_token= or padding_masks=, or shorten clip_seconds.",
            stacklevel=3,
        )
    needs, least, free = plan.space(folder)
    if least > free:
        raise OSError(errno.ENOSPC, "not begun")  # `naming_space` says the rest
    if least > 1 << 26:
        tqdm.write(f"{name}: {len(seconds):,} clips to hear, {needs}")


def _warn_of_copies(plan: Plan) -> None:
    """Warn of files that hold the same bytes in two classes, splits or groups, where they count as independent."""
    task, first, copies = plan.task, dict[str, int](), []
    about = list(zip(task.labels, task.splits, task.groups, strict=True))
    for clip, digest in enumerate(plan.digests):
        one = first.setdefault(digest, clip)
        if digest and about[one] != about[clip]:
            copies.append((one, clip))
    if copies:
        crossed = [zip(("class", "split", "group"), about[a], about[b], strict=True) for a, b in copies]
        counts = Counter(what for each in crossed for what, x, y in each if x != y)
        found = ", ".join(f"{count:,} in another {what}" for what, count in counts.items())
        example = " and ".join(task.files[clip] for clip in copies[0])
        warnings.warn(
            f"{task.name}: {len(copies):,} of {len(about):,} clips are copies of others, byte for byte: {found}, e.g. "
            f"{example}. Keep one of each in the task; of copies within a class and split, one group will do.",
            stacklevel=4,
        )


@contextlib.contextmanager
def naming_space(plan: Plan, out_dir: Path) -> Iterator[None]:
    """Where the disk is full, say how much the pass needs."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"no space in {out_dir}: the pass takes {plan.space(out_dir)[0]}.\nWhat was computed is kept: make space and "
            "call again, or start anew with less (layers=, keep_clips= or means=False).",
        ) from error
