"""A collecting pass, decided and checked before anything is computed: which clips, which layers, whose folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts import other_encoder
from aape.audio import BadClip, cache_dir, seconds_of
from aape.encoder import Encoder
from aape.files import Cache, sha256_of
from aape.manifest import FILES, check_classes
from aape.shapes import common_width
from aape.task import Task

_NO_SPACE = (
    "no space for {} in {}: it needs {:.3f} to {:.3f} GiB there, {:.3f} GiB are free.\nWhat was computed is kept: make "
    "space and call again, or start anew with less (layers=, keep_clips= or means=False)."
)
BATCH_SIZE = 32
ENCODER = ("encoder", "identity", "probe", "dtype", "layers", "neurons", "sample_rate")
IDENTITY = (*ENCODER, "task", "clip_seconds", "splits", "data", "kept", "means")
RUN = ("batch_size", "device", "on_bad_clip")  # may differ between finished runs, not within one


@dataclass(frozen=True)
class Plan:
    """One pass, decided: which clips in which batches, and the settings that identify it."""

    task: Task
    clips: np.ndarray  # indices into the task, in its order
    kept: np.ndarray  # bool, of `clips`: counts per clip go to disk
    settings: dict[str, Any]
    digests: list[str]  # SHA-256 of each clip's file; "" where it cannot be read
    seconds: np.ndarray  # duration of each clip's file; NaN where it cannot be read

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, neurons."""
        return len(self.settings["layers"]), self.settings["neurons"]

    @property
    def batches(self) -> list[np.ndarray]:
        """Positions in `clips` of each batch."""
        size, clips = self.settings["batch_size"], np.arange(len(self.clips))
        return [clips[start : start + size] for start in range(0, len(clips), size)]

    @property
    def bytes(self) -> tuple[int, int]:
        """Disk for counts and means: at the end, at least; and while the pass runs, at most."""
        neurons = int(self.kept.sum()) * math.prod(self.shape)
        means = 2 * self.settings["means"]
        # 1 or 2 bytes a count; for a moment both as batches and merged, with padding counted apart in both
        return neurons * (1 + means), 2 * neurons * (4 + means)

    @property
    def cut(self) -> int:
        """How many clips go on behind `clip_seconds`, by more than the few samples that resampling and codecs add."""
        return int((self.seconds > self.task.clip_seconds + 0.05).sum())


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
    """Check what was asked for, also all that could keep the finished artifacts from loading, and decide the pass."""
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
    names = encoder.layers if layers is None else tuple(layers)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"layers names none, or one twice: {', '.join(names) or '[]'}")
    neurons = common_width(encoder, names)
    check_classes(task.classes)
    probe = encoder.probe
    if not np.isfinite(probe).all():
        raise ValueError(
            f"{encoder.name} embeds a wave of noise as {probe[:3]} ..., expected numbers: damaged weights?"
        )
    try:
        written = [task.name, encoder.name, names, task.classes, task.files, task.groups, dict(encoder.weights)]
        json.dumps(written, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a name in {task.name} or the weights of {encoder.name} cannot be written: {error}"
        ) from error
    if batch_size is None:
        batch_size = (unfinished(out_dir) or {}).get("batch_size", BATCH_SIZE)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    kept = np.ones(len(clips), dtype=bool)
    if keep_clips is not None and keep_clips < len(clips):
        kept[:] = False
        kept[np.random.default_rng(seed).choice(len(clips), keep_clips, replace=False)] = True
    digests, seconds = _survey(task, clips)
    data = hashlib.sha256()
    for i, digest in zip(clips.tolist(), digests, strict=True):
        row = (task.files[i], task.classes[task.labels[i]], task.splits[i], task.groups[i], digest)
        data.update(json.dumps(row).encode())
    settings = {
        "encoder": encoder.name,
        "identity": encoder.identity,
        "probe": probe,
        "dtype": encoder.dtype,
        "layers": list(names),
        "neurons": neurons,
        "task": task.name,
        "clip_seconds": task.clip_seconds,
        "sample_rate": encoder.sample_rate,
        "splits": wanted,
        "data": data.hexdigest(),
        "kept": None if kept.all() else f"{int(kept.sum())} by seed {seed}",
        "means": means,
        "batch_size": int(batch_size),
        "device": device.type,
        "on_bad_clip": on_bad_clip,
    }
    return Plan(task, clips, kept, settings, digests, seconds)


def _survey(task: Task, clips: np.ndarray) -> tuple[list[str], np.ndarray]:
    """SHA-256 and duration [clips], s, of the clips' files, kept for files whose path, size and times do not change."""

    def mark(path: Path) -> str:
        try:
            stat = path.stat()
        except OSError:
            return ""
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {path}"

    def look(path: Path) -> tuple[str, float]:
        digest = ""
        try:
            digest = sha256_of(path)
            return digest, seconds_of(path)
        except (OSError, BadClip):  # the pass meets it again, and says so
            return digest, math.nan

    folder = task.audio_dir.resolve()
    cache, name = Cache(cache_dir() / "content"), hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    saved = cache.get(name, "sha256, seconds")
    known = {} if saved is None else json.loads(saved["json"].tobytes())
    paths = [folder / task.files[i] for i in clips]
    marks = [mark(path) for path in paths]
    new = {m: path for m, path in zip(marks, paths, strict=True) if m not in known}
    if new:
        with ThreadPoolExecutor(max_workers=8) as pool:
            known |= dict(zip(new, pool.map(look, new.values()), strict=True))
        kept = json.dumps({m: found for m, found in known.items() if found[0]})
        try:
            cache.put(name, "sha256, seconds", {"json": np.frombuffer(kept.encode(), np.uint8)})
        except OSError as error:
            warnings.warn(f"checksums of {folder} could not be kept ({error}); they are computed again", stacklevel=2)
    return [known[m][0] for m in marks], np.array([known[m][1] for m in marks])


def unfinished(out_dir: Path) -> dict[str, Any] | None:
    """Settings of the pass that was cut off in this folder; None where there is none.

    Raises:
        ValueError: `.partial` is not ours.
    """
    partial = out_dir / ".partial"
    path, settings = partial / "settings.json", None
    if not partial.is_symlink() and (not partial.exists() or (partial.is_dir() and not any(partial.iterdir()))):
        return None
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        warnings.warn(f"{path} cannot be read ({error}) and is written anew", stacklevel=2)
        return None
    except OSError:
        pass  # not there
    if not isinstance(settings, dict) or not set(IDENTITY + RUN) <= set(settings):
        if path.is_file() and any(partial.glob("batch-*.npz")):
            warnings.warn(f"{path} was damaged and is written anew", stacklevel=2)
            return None
        raise ValueError(f"{partial} is not of a pass of this version. Move it away, or choose another out_dir.")
    return settings


def refuse_strangers(out_dir: Path) -> None:
    """Refuse a folder that holds files under the names of ours, before a pass has come to write its own."""
    strangers = [f for f in (*FILES, "manifest.json") if (out_dir / f).exists() or (out_dir / f).is_symlink()]
    if strangers:
        raise ValueError(
            f"{out_dir} holds {', '.join(strangers)} that no pass of this version has written there (artifacts of "
            "another tool?).\nChoose another out_dir, or move them away; nothing was changed."
        )


def refuse_other(theirs: Mapping[str, Any], ours: Mapping[str, Any], out_dir: Path, keys: Sequence[str]) -> None:
    """Refuse to go on with, or to return, what was made with other settings."""
    sides = [
        f"{k} is {theirs.get(k)!r} there and {ours[k]!r} here"
        for k in keys
        if k not in ("identity", "probe") and theirs.get(k) != ours[k]
    ]
    sides += filter(None, [other_encoder(theirs, ours["identity"], ours["probe"])])
    if sides:
        raise ValueError(
            f"{out_dir} belongs to another run: {'; '.join(sides)}. Give this run another out_dir, restore the setting, "
            "or delete the folder; nothing was changed."
        )


def say_what_comes(plan: Plan, encoder: Encoder, out_dir: Path) -> None:
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
    least, most = plan.bytes
    free = shutil.disk_usage(out_dir).free
    if least > free:
        raise OSError(_NO_SPACE.format(task.name, out_dir, least / 2**30, most / 2**30, free / 2**30))
    if most > 1 << 28:
        tqdm.write(
            f"{task.name}: {len(seconds):,} clips to hear, at least {least / 2**30:.1f} GiB of artifacts, up to "
            f"{most / 2**30:.1f} GiB of disk while it runs, {free / 2**30:.1f} GiB are free "
            "(layers=, keep_clips= or means=False make it less)"
        )


@contextlib.contextmanager
def naming_space(plan: Plan, out_dir: Path) -> Iterator[None]:
    """Where the disk is full, say how much the pass needs."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sizes = (*plan.bytes, shutil.disk_usage(out_dir).free)
        text = _NO_SPACE.format(plan.task.name, out_dir, *(size / 2**30 for size in sizes))
        raise OSError(error.errno, text) from error
