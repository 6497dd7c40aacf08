"""A collecting pass, decided and checked before anything is computed: which clips, which layers."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from aape.audio import BadClip, cache_dir, seconds_of
from aape.encoder import Encoder
from aape.files import Cache, sha256_of
from aape.manifest import Settings, check_classes, checked
from aape.shapes import common_width, dry_run
from aape.task import Task

ENCODER = ("encoder", "identity", "probe", "dtype", "layers", "neurons", "sample_rate")
IDENTITY = (*ENCODER, "task", "clip_seconds", "splits", "data", "kept", "means")
RUN = ("batch_size", "device", "on_bad_clip")  # may differ between finished runs, not within one


@dataclass(frozen=True)
class Plan:
    """One pass, decided: which clips in which batches, and the settings that identify it."""

    task: Task
    clips: np.ndarray  # indices into the task, in its order
    kept: np.ndarray  # bool, of `clips`: counts per clip go to disk
    settings: dict[str, Any]  # see aape.manifest.Settings
    digests: list[str]  # SHA-256 of each clip's file; "" where it cannot be read
    seconds: np.ndarray  # duration of each clip's file; NaN where it cannot be read

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, neurons."""
        return len(self.settings["layers"]), self.settings["neurons"]

    @functools.cached_property
    def batches(self) -> list[np.ndarray]:
        """Positions in `clips` of each batch."""
        size, clips = self.settings["batch_size"], len(self.clips)
        return np.split(np.arange(clips), range(size, clips, size))

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

    Args: those of `aape.collecting.collect`; `run` goes into the settings as it is.
    """
    have = list(dict.fromkeys(task.splits))
    for what, asked, there in (("split", splits, have), ("layer", layers, encoder.layers)):
        if isinstance(asked, str) or (asked is not None and not asked):
            raise ValueError(f"{what}s is a list of names, at least one, found {asked!r}")
        if unknown := [name for name in asked or () if name not in there]:
            raise ValueError(f"no {what} {unknown[0]!r}; there are {', '.join(there)}")
    if keep_clips is not None and keep_clips < 0:
        raise ValueError(f"keep_clips must be a number of clips, found {keep_clips}")
    if task.clip_seconds > encoder.clip_seconds * (1 + 1e-9) and not encoder.chunks:
        raise ValueError(
            f"clips of {task.name} last {task.clip_seconds} s, {encoder.name} takes at most {encoder.clip_seconds} s "
            "at once. Shorten the task's clip_seconds, or let embed cut longer waves and say chunks=True."
        )
    wanted = have if splits is None else list(splits)
    clips = np.flatnonzero(np.isin(np.asarray(task.splits), wanted))
    if empty := sorted(set(range(len(task.classes))) - set(task.labels[clips].tolist())):
        raise ValueError(
            f"class {task.classes[empty[0]]!r} of {task.name} has no clip in {', '.join(wanted)}: its activation "
            "probability is not defined. Take in another split, or leave the class out of the metadata."
        )
    check_classes(task.classes)
    try:
        written = [task.name, encoder.name, task.files, task.groups, dict(encoder.weights)]
        json.dumps(written, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"a name in {task.name}, or in the weights of {encoder.name}: {error}") from error
    keep = len(clips) if keep_clips is None else min(keep_clips, len(clips))
    kept = np.isin(np.arange(len(clips)), np.random.default_rng(seed).choice(len(clips), keep, replace=False))
    names = list(encoder.layers if layers is None else layers)
    with ThreadPoolExecutor(max_workers=1) as beside:  # hashing leaves the interpreter free for the dry run
        identity = beside.submit(lambda: encoder.identity)
        seen, probe = dry_run(encoder)
    digests, seconds = _survey(task, clips)
    columns = (task.files, [task.classes[label] for label in task.labels], task.splits, task.groups)
    rows = ((*(column[i] for column in columns), digest) for i, digest in zip(clips.tolist(), digests, strict=True))
    settings = {
        "encoder": encoder.name,
        "identity": identity.result(),
        "probe": probe,
        "dtype": encoder.dtype,
        "layers": names,
        "neurons": common_width(encoder, names, seen),
        "task": task.name,
        "clip_seconds": task.clip_seconds,
        "sample_rate": encoder.sample_rate,
        "splits": wanted,
        "data": hashlib.sha256("".join(map(json.dumps, rows)).encode()).hexdigest(),
        "kept": None if kept.all() else f"{int(kept.sum())} by seed {seed}",
        **run,
    }
    checked(Settings, settings)
    return Plan(task, clips, kept, settings, digests, seconds)


def _survey(task: Task, clips: np.ndarray) -> tuple[list[str], np.ndarray]:
    """SHA-256 and duration [clips], s, of the clips' files, kept for files whose path, size and times do not change."""

    def mark(path: Path) -> str:
        stat = path.stat() if path.exists() else None
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {path}" if stat else ""

    def look(path: Path) -> tuple[str, float]:
        digest = ""
        with contextlib.suppress(OSError, BadClip):  # the pass meets it again, and says so
            digest = sha256_of(path)
            return digest, seconds_of(path)
        return digest, math.nan

    folder = task.audio_dir.resolve()
    cache, name = Cache(cache_dir() / "content"), hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    saved = cache.get(name, "sha256, seconds")
    known = {} if saved is None else json.loads(saved["json"].tobytes())
    paths = [folder / task.files[i] for i in clips]
    marks = [mark(path) for path in paths]
    if new := {m: path for m, path in zip(marks, paths, strict=True) if m not in known}:
        with ThreadPoolExecutor(max_workers=8) as pool:
            known |= dict(zip(new, pool.map(look, new.values()), strict=True))
        kept = json.dumps({m: found for m, found in known.items() if found[0]})
        with contextlib.suppress(OSError):  # they are computed again
            cache.put(name, "sha256, seconds", {"json": np.frombuffer(kept.encode(), np.uint8)})
    digests, seconds = zip(*(known[m] for m in marks), strict=True)
    return list(digests), np.array(seconds)


def say_what_comes(plan: Plan, encoder: Encoder, folder: Path) -> None:
    """Before a pass: what it takes for granted, what it will write, and whether that fits.

    Raises:
        OSError: not even the least that will be written fits on the disk.
    """
    task, seconds = plan.task, plan.seconds
    if plan.cut:
        warnings.warn(
            f"{task.name}: {plan.cut:,} of {len(seconds):,} clips last longer than clip_seconds={task.clip_seconds:g} "
            f"(the longest {np.nanmax(seconds):.1f} s) and are cut there",
            stacklevel=3,
        )
    padded = np.nansum(np.clip(task.clip_seconds - seconds, 0, None)) / (len(seconds) * task.clip_seconds)
    if encoder.padding_masks is None and padded > 1e-4:
        warnings.warn(
            f"{task.name}: {padded:.1%} of all samples are zero padding, and {encoder.name} does not say which tokens "
            "that makes, so they count as sound. Give samples_per_token= or padding_masks=, or shorten clip_seconds.",
            stacklevel=3,
        )
    needs, least, free = plan.space(folder)
    if least > free:
        raise OSError(errno.ENOSPC, "not begun")  # `naming_space` says the rest
    if least > 1 << 26:
        tqdm.write(f"{task.name}: {len(seconds):,} clips to hear, {needs}")


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
