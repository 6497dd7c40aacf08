"""The collecting pass: every clip through the encoder once, counts and embeddings to disk as they come.

Each batch becomes one small file in `<out_dir>/.partial/`, written whole or not at all; what is there is not computed
again, so a run that was killed goes on where it stopped. When all batches are there they are streamed, in order,
into the artifacts of `aape.artifacts`, and the manifest is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts import ArrayWriter, Artifacts, load_artifacts, save_tensors
from aape.counting import BatchCounts, common_width, count_batch
from aape.encoder import Encoder, choose_device, full_precision
from aape.files import sha256_of, whole_file, write_json, write_text
from aape.task import BadClip, Task, prefetched

BATCH_SIZE = 32
_PACKAGES = ("torch", "timm", "numpy", "nnAudio", "soundfile", "soxr")
_IDENTITY = ("encoder", "weights", "layers", "neurons", "task", "clip_seconds", "sample_rate", "splits", "data", "kept")
_RUN = ("batch_size", "device", "precision", "on_bad_clip")  # may differ between finished runs, not within one


@dataclass(frozen=True)
class _Plan:
    """One pass, decided: which clips in which batches, and what identifies it."""

    task: Task
    clips: np.ndarray  # indices into the task, in its order
    kept: np.ndarray  # bool, of `clips`: counts per clip go to disk
    layers: tuple[str, ...]
    neurons: int
    batch_size: int
    settings: dict[str, Any]
    fingerprints: list[str]

    @property
    def batches(self) -> list[np.ndarray]:
        """Positions in `clips` of each batch."""
        return [
            np.arange(s, min(s + self.batch_size, len(self.clips))) for s in range(0, len(self.clips), self.batch_size)
        ]


def collect(
    encoder: Encoder,
    task: Task,
    out_dir: str | Path,
    *,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    splits: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    keep_clips: int | None = None,
    on_bad_clip: str = "stop",
    seed: int = 0,
) -> Artifacts:
    """Count active tokens of every neuron in every clip, embed the clips, and write the artifacts.

    Resumes a pass that was cut off, returns at once when the artifacts are whole, and takes over the pass of another
    task in the same parent folder if the same encoder has already heard all of these clips.

    Args:
        encoder: the model. task: the clips.
        out_dir: one folder for each encoder and task.
        batch_size: clips at once; 32, or that of the unfinished pass. Another batch size may move a count where
            |activation| <= 1e-5.
        device: "cpu", "cuda", "cuda:1", "mps"; CUDA if there.
        splits: which splits or folds are heard; all.
        layers: names of the layers that are counted; all.
        keep_clips: how many clips' own counts are written, a random choice by `seed`; all. over_zero.pt counts every
            clip either way.
        on_bad_clip: "stop", or "skip" to leave unreadable clips out (the manifest lists them).
        seed: of `keep_clips`.

    Under torchrun the batches are divided among the processes, which must share the folder of `out_dir`.

    Raises:
        ValueError: settings that do not fit each other or the encoder; out_dir belongs to another run; a bad clip.
        OSError: disk full; what was computed stays, and the same call goes on.
    """
    out_dir = Path(out_dir)
    if on_bad_clip not in ("stop", "skip"):
        raise ValueError(f"on_bad_clip must be 'stop' or 'skip', found {on_bad_clip!r}")
    if task.clip_seconds > encoder.clip_seconds * (1 + 1e-9) and not encoder.chunks:
        raise ValueError(
            f"clips of {task.name} last {task.clip_seconds} s, {encoder.name} takes at most {encoder.clip_seconds} s "
            "at once. Shorten the task's clip_seconds, or let embed cut longer waves and say chunks=True."
        )
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on = choose_device(device)
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if on.type == "cuda" else "gloo")
    encoder.to(on)
    plan = _plan(encoder, task, batch_size, on, splits, layers, keep_clips, on_bad_clip, seed, out_dir)
    if (out_dir / "manifest.json").is_file():
        _refuse_other(
            json.loads((out_dir / "manifest.json").read_text())["settings"], plan.settings, out_dir, _IDENTITY
        )
        return load_artifacts(out_dir)
    strangers = [f for f in ("over_zero.pt", "clip_counts.npy") if (out_dir / f).exists()]
    partial = out_dir / ".partial"
    if strangers and not (partial / "settings.json").is_file():
        raise ValueError(
            f"{out_dir} holds {strangers[0]} without a manifest.json: artifacts of another tool. "
            "Choose another out_dir; nothing was changed."
        )
    if rank == 0:
        partial.mkdir(parents=True, exist_ok=True)
        if (partial / "settings.json").is_file():
            _refuse_other(json.loads((partial / "settings.json").read_text()), plan.settings, out_dir, _IDENTITY + _RUN)
        else:
            write_json(partial / "settings.json", plan.settings)
    _barrier(world)
    source = None if plan.settings.get("kept") else _sibling(plan, out_dir)
    if source is None:
        _hear(encoder, plan, partial, on, rank, world)
    _barrier(world)
    if rank == 0:
        if source is None:
            _merge(encoder, plan, out_dir)
        else:
            _take_over(plan, source, out_dir)
        shutil.rmtree(partial)
    _barrier(world)
    return load_artifacts(out_dir)


def _barrier(world: int) -> None:
    if world > 1:
        torch.distributed.barrier()


def _plan(
    encoder: Encoder,
    task: Task,
    batch_size: int | None,
    device: torch.device,
    splits: Sequence[str] | None,
    layers: Sequence[str] | None,
    keep_clips: int | None,
    on_bad_clip: str,
    seed: int,
    out_dir: Path,
) -> _Plan:
    if isinstance(splits, str) or isinstance(layers, str):
        raise ValueError("splits and layers are lists of names, found a single string; write [name]")
    have = list(dict.fromkeys(task.splits))
    wanted = have if splits is None else list(splits)
    unknown = [s for s in wanted if s not in have]
    if unknown:
        raise ValueError(f"task {task.name} has no split {unknown[0]!r}; it has {', '.join(have)}")
    clips = np.flatnonzero(np.isin(np.asarray(task.splits), wanted))
    empty = sorted(set(range(len(task.classes))) - set(task.labels[clips].tolist()))
    if empty:
        raise ValueError(
            f"class {task.classes[empty[0]]!r} of {task.name} has no clip in {', '.join(wanted)}: its activation "
            "probability is not defined. Take in another split, or leave the class out of the metadata."
        )
    names = encoder.layers if layers is None else tuple(layers)
    neurons = common_width(encoder, names)
    kept = np.ones(len(clips), dtype=bool)
    if keep_clips is not None and keep_clips < len(clips):
        if keep_clips < 0:
            raise ValueError(f"keep_clips must be a number of clips, found {keep_clips}")
        kept[:] = False
        kept[np.random.default_rng(seed).choice(len(clips), keep_clips, replace=False)] = True
    unfinished = out_dir / ".partial" / "settings.json"
    if batch_size is None and unfinished.is_file():
        batch_size = json.loads(unfinished.read_text()).get("batch_size")
    batch_size = BATCH_SIZE if batch_size is None else int(batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    with ThreadPoolExecutor(max_workers=8) as pool:
        fingerprints = list(pool.map(task.fingerprint, clips.tolist(), chunksize=64))
    data = hashlib.sha256()
    for i, mark in zip(clips.tolist(), fingerprints, strict=True):
        row = (task.files[i], task.classes[task.labels[i]], task.splits[i], task.groups[i], mark)
        data.update(("\t".join(row) + "\n").encode())
    settings = {
        "encoder": encoder.name,
        "weights": str(encoder.weights.get("sha256") or dict(encoder.weights)),
        "layers": list(names),
        "neurons": neurons,
        "task": task.name,
        "clip_seconds": task.clip_seconds,
        "sample_rate": encoder.sample_rate,
        "splits": wanted,
        "data": data.hexdigest(),
        "kept": None if kept.all() else f"{int(kept.sum())} by seed {seed}",
        "batch_size": batch_size,
        "device": device.type,
        "precision": "float32",
        "on_bad_clip": on_bad_clip,
    }
    return _Plan(task, clips, kept, names, neurons, batch_size, settings, fingerprints)


def _refuse_other(theirs: Mapping[str, Any], ours: Mapping[str, Any], out_dir: Path, keys: Sequence[str]) -> None:
    different = [k for k in keys if theirs.get(k) != ours[k]]
    if different:
        sides = "; ".join(f"{k} is {theirs.get(k)!r} there and {ours[k]!r} here" for k in different)
        raise ValueError(
            f"{out_dir} belongs to another run: {sides}. Give this run another out_dir, restore the setting, or delete "
            "the folder; nothing was changed."
        )


def _batch_file(partial: Path, number: int) -> Path:
    return partial / f"batch-{number:06d}.npz"


def _count_type(tokens: int) -> np.dtype:
    """The smallest unsigned integer that holds a clip's number of tokens."""
    return np.min_scalar_type(tokens)


def _hear(encoder: Encoder, plan: _Plan, partial: Path, device: torch.device, rank: int, world: int) -> None:
    """Every batch of this process that is not on disk yet through the encoder."""
    subset = not plan.kept.all()
    sums = _Sums(partial, rank, plan) if subset else None
    done = _Sums.done_by_all(partial, len(plan.batches)) if subset else None
    todo = [
        b
        for b in range(rank, len(plan.batches), world)
        if not _batch_file(partial, b).is_file() or (done is not None and not done[b])
    ]
    if not todo:
        return
    indices = [plan.clips[plan.batches[b]] for b in todo]
    clips = sum(len(i) for i in indices)
    if rank == 0:
        _say_cost(plan, clips)
    bar = tqdm(
        total=clips, unit="clip", desc=f"{encoder.name} on {plan.task.name}", disable=None if rank == 0 else True
    )
    with full_precision(), bar:
        waves = prefetched(plan.task, indices, encoder.sample_rate)
        for b, (wave, valid, complaints) in zip(todo, waves, strict=True):
            if complaints and plan.settings["on_bad_clip"] == "stop":
                raise BadClip(
                    f"{next(iter(complaints.values()))} ({len(complaints)} such clip(s) in this batch.) What was "
                    "computed is kept: mend the file and call again, or collect with on_bad_clip='skip'."
                )
            counted = count_batch(
                encoder,
                torch.from_numpy(wave).to(device),
                torch.from_numpy(valid).to(device),
                plan.layers,
                plan.neurons,
            )
            good = valid > 0
            if not bool(torch.isfinite(counted.embeddings[torch.from_numpy(good)]).all()):
                raise ValueError(
                    f"{encoder.name} gave an embedding that is not finite in batch {b} of {plan.task.name}"
                )
            if sums is not None:
                sums.add(b, plan.task.labels[plan.clips[plan.batches[b]]][good], counted, good)
            _write_batch(_batch_file(partial, b), counted, good, plan.kept[plan.batches[b]], complaints)
            if sums is not None and (sums.unsaved >= 32 or b == todo[-1]):
                sums.save()
            bar.update(len(valid))


def _say_cost(plan: _Plan, clips: int) -> None:
    """Before a long run: what it will write, and whether that fits."""
    per_clip = len(plan.layers) * plan.neurons * 2
    size = int(plan.kept.sum()) * per_clip * 2  # at most 2 bytes a count; for a moment both as batches and merged
    if size > 1 << 28:
        tqdm.write(f"{plan.task.name}: {clips:,} clips to hear, up to {size / 2**30:.1f} GiB of disk while it runs")


def _write_batch(
    path: Path, counted: BatchCounts, good: np.ndarray, kept: np.ndarray, complaints: Mapping[int, str]
) -> None:
    dtype = _count_type(int(counted.tokens.max()))
    rows = {
        "embeddings": counted.embeddings.numpy(),
        "tokens": counted.tokens.numpy() * good,
        "padding_tokens": counted.padding_tokens.numpy() * good,
        "counts": counted.counts.numpy()[kept & good].astype(dtype),
        "complaints": np.array([complaints.get(i, "") for i in range(len(good))]),
    }
    if counted.padding is not None:
        rows["padding"] = counted.padding.numpy()[kept & good].astype(dtype)
    with whole_file(path) as file:
        np.savez(file, **rows)


class _Sums:
    """Active tokens summed by class, where not every clip's own counts are kept.

    Saved together with the list of batches in it, so that no batch is ever counted twice or lost.
    """

    def __init__(self, partial: Path, rank: int, plan: _Plan) -> None:
        self.path = partial / f"sums-{rank}.npz"
        shape = (len(plan.task.classes), len(plan.layers), plan.neurons)
        self.sums, self.done, self.unsaved = np.zeros(shape, np.int64), np.zeros(len(plan.batches), bool), 0
        if self.path.is_file():
            with np.load(self.path, allow_pickle=False) as saved:
                self.sums, self.done = saved["sums"], saved["done"]

    @staticmethod
    def done_by_all(partial: Path, batches: int) -> np.ndarray:
        done = np.zeros(batches, dtype=bool)
        for path in partial.glob("sums-*.npz"):
            with np.load(path, allow_pickle=False) as saved:
                done |= saved["done"]
        return done

    def add(self, batch: int, labels: np.ndarray, counted: BatchCounts, good: np.ndarray) -> None:
        np.add.at(self.sums, labels, counted.counts.numpy()[good])
        self.done[batch] = True
        self.unsaved += 1

    def save(self) -> None:
        with whole_file(self.path) as file:
            np.savez(file, sums=self.sums, done=self.done)
        self.unsaved = 0


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[package] = metadata.version(package)
    return out


def _hardware(device: str) -> dict[str, Any]:
    """What the arithmetic ran on, as far as it may move a rounding."""
    facts: dict[str, Any] = {"device": device, "machine": platform.machine(), "threads": torch.get_num_threads()}
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


@dataclass
class _Rows:
    """Everything known of the good clips, in order, but for the counts."""

    positions: np.ndarray  # of good clips, in plan.clips
    tokens: np.ndarray
    padding_tokens: np.ndarray
    skipped: list[dict[str, str]]


def _load_batch(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {k: saved[k] for k in saved.files}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        path.unlink(missing_ok=True)
        raise ValueError(f"{path} was damaged ({error}) and is deleted now; call again to compute it anew") from error


def _merge(encoder: Encoder, plan: _Plan, out_dir: Path) -> None:
    """Stream the batches, in order, into the artifacts."""
    partial = out_dir / ".partial"
    files = [_batch_file(partial, b) for b in range(len(plan.batches))]
    positions, tokens, padded, skipped = [], [], [], []
    has_padding, dim = False, 0
    for path, batch in zip(files, plan.batches, strict=True):
        saved = _load_batch(path)
        good = saved["complaints"] == ""
        positions.append(batch[good])
        tokens.append(saved["tokens"][good])
        padded.append(saved["padding_tokens"][good])
        has_padding |= "padding" in saved
        dim = saved["embeddings"].shape[1]
        for i in np.flatnonzero(~good):
            skipped.append({"file": plan.task.files[plan.clips[batch[i]]], "reason": str(saved["complaints"][i])})
    rows = _Rows(np.concatenate(positions), np.concatenate(tokens), np.concatenate(padded), skipped)
    labels = plan.task.labels[plan.clips]
    lost = sorted(set(labels.tolist()) - set(labels[rows.positions].tolist()))
    if lost:
        raise ValueError(f"no clip of class {plan.task.classes[lost[0]]!r} could be read: {skipped[0]['reason']}")
    kept_positions = rows.positions[plan.kept[rows.positions]]
    dtype = _count_type(int(rows.tokens.max()))
    shape = (len(kept_positions), len(plan.layers), plan.neurons)
    sums = np.zeros((len(plan.task.classes), *shape[1:]), dtype=np.int64)
    with contextlib.ExitStack() as stack:
        counts = ArrayWriter(stack.enter_context(whole_file(out_dir / "clip_counts.npy")), shape, dtype)
        padding = None
        if has_padding:
            padding = ArrayWriter(stack.enter_context(whole_file(out_dir / "padding_counts.npy")), shape, dtype)
        embeddings = np.lib.format.open_memmap(
            partial / "embeddings.npy", mode="w+", dtype=np.float32, shape=(len(plan.clips), dim)
        )
        for path, batch in zip(files, plan.batches, strict=True):
            saved = _load_batch(path)
            embeddings[batch] = saved["embeddings"]
            mine = saved["counts"]
            counts.append(mine)
            if plan.kept.all():
                np.add.at(sums, labels[batch[saved["complaints"] == ""]], mine.astype(np.int64))
            if padding is not None:
                padding.append(saved.get("padding", np.zeros_like(mine)))
    for path in partial.glob("sums-*.npz"):
        with np.load(path, allow_pickle=False) as saved_sums:
            sums += saved_sums["sums"]
    facts = {
        "padding": "unknown" if encoder.padding_masks is None else "counted" if has_padding else "none",
        "weights": dict(encoder.weights),
        "hardware": _hardware(plan.settings["device"]),
        "versions": _versions(),
    }
    _write_artifacts(plan, rows, sums, embeddings, facts, out_dir)


def _write_artifacts(
    plan: _Plan, rows: _Rows, sums: np.ndarray, embeddings: np.ndarray, facts: Mapping[str, Any], out_dir: Path
) -> None:
    """Everything but the counts per clip, the manifest last."""
    task = plan.task
    clips = plan.clips[rows.positions]
    labels = task.labels[clips]
    tokens_by_class = np.bincount(labels, weights=rows.tokens, minlength=len(task.classes))
    probabilities = sums.transpose(1, 2, 0) / tokens_by_class  # [layers, neurons, classes], float64
    save_tensors(out_dir / "over_zero.pt", torch.from_numpy(probabilities.astype(np.float32)))
    write_text(out_dir / "classes.txt", "".join(f"{c}\n" for c in task.classes))
    splits = np.asarray(task.splits)[clips]
    names = [s for s in dict.fromkeys(task.splits) if s in set(splits)]
    order = sorted(names, key=lambda s: ("train valid test".find(s), s))
    features, gts = {}, {}
    for split in order:
        chosen = splits == split
        features[split] = torch.from_numpy(np.ascontiguousarray(embeddings[rows.positions[chosen]]))
        gts[split] = torch.from_numpy(labels[chosen])
    save_tensors(out_dir / "features.pt", features)
    save_tensors(out_dir / "gts.pt", gts)
    checked = ["over_zero.pt", "classes.txt", "features.pt", "gts.pt", "clip_counts.npy"]
    if (out_dir / "padding_counts.npy").is_file():
        checked.append("padding_counts.npy")
    manifest = {
        "format": 1,
        "encoder": plan.settings["encoder"],
        "task": task.name,
        "classes": list(task.classes),
        "layers": list(plan.layers),
        "neurons": plan.neurons,
        "clip_seconds": task.clip_seconds,
        "sample_rate": plan.settings["sample_rate"],
        "precision": plan.settings["precision"],
        "batch_size": plan.settings["batch_size"],
        "group_column": task.group_column,
        "clips": {
            "file": [task.files[i] for i in clips],
            "label": labels.tolist(),
            "split": splits.tolist(),
            "group": [task.groups[i] for i in clips],
            "tokens": rows.tokens.tolist(),
            "padding_tokens": rows.padding_tokens.tolist(),
            "fingerprint": [plan.fingerprints[p] for p in rows.positions],
        },
        "skipped": rows.skipped,
        "settings": plan.settings,
        "checksums": {name: sha256_of(out_dir / name) for name in checked},
        **facts,
    }
    if not plan.kept.all():
        manifest["kept_clips"] = np.flatnonzero(plan.kept[rows.positions]).tolist()
    write_json(out_dir / "manifest.json", manifest)


def _sibling(plan: _Plan, out_dir: Path) -> Artifacts | None:
    """Artifacts of another task beside `out_dir` for which the same encoder has heard all of our clips."""
    same = (
        "encoder",
        "weights",
        "layers",
        "neurons",
        "clip_seconds",
        "sample_rate",
        "precision",
        "device",
        "batch_size",
    )
    for path in sorted(out_dir.parent.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["task"] == plan.task.name or "kept_clips" in manifest:
            continue
        if any(manifest["settings"].get(k) != plan.settings[k] for k in same):
            continue
        if set(plan.fingerprints) <= set(manifest["clips"]["fingerprint"]):
            return load_artifacts(path.parent)
    return None


def _take_over(plan: _Plan, source: Artifacts, out_dir: Path) -> None:
    """Artifacts for this task's classes from a pass over the same audio for another task."""
    row_of = {mark: row for row, mark in enumerate(source.manifest["clips"]["fingerprint"])}
    rows = np.array([row_of[mark] for mark in plan.fingerprints])
    labels = plan.task.labels[plan.clips]
    sums = np.zeros((len(plan.task.classes), *source.counts.shape[1:]), dtype=np.int64)
    padding = None if source.manifest["padding"] == "unknown" else source.padding_counts
    for name, values in (("clip_counts.npy", source.counts), ("padding_counts.npy", padding)):
        if values is None:
            continue
        with whole_file(out_dir / name) as file:
            writer = ArrayWriter(file, (len(rows), *values.shape[1:]), values.dtype)
            for start in range(0, len(rows), 256):
                part = values[rows[start : start + 256]]
                writer.append(part)
                if name == "clip_counts.npy":
                    np.add.at(sums, labels[start : start + 256], part.astype(np.int64))
    facts = {k: source.manifest[k] for k in ("padding", "weights", "hardware", "versions")}
    facts["pass_of"] = f"{source.path.name} (task {source.manifest['task']})"
    known = _Rows(np.arange(len(plan.clips)), source.tokens[rows], source.padding_tokens[rows], [])
    _write_artifacts(plan, known, sums, source.embeddings()[rows], facts, out_dir)
