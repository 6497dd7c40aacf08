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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts import ArrayWriter, Artifacts, load_artifacts, save_tensors
from aape.counting import BatchCounts, count_batch
from aape.encoder import Encoder, choose_device, full_precision
from aape.files import Cache, sha256_of, whole_file, write_json, write_text
from aape.plan import IDENTITY, RUN, Plan, plan_pass, refuse_other, say_cost
from aape.study import load_encoder, load_study, load_task
from aape.task import BadClip, Task, prefetched

_PACKAGES = ("torch", "timm", "numpy", "nnAudio", "soundfile", "soxr")


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
    means: bool = True,
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
        keep_clips: how many clips' own counts and means are written, a random choice by `seed`; all. over_zero.pt
            counts every clip either way.
        means: write clip_means.npy, 2 bytes for each clip and neuron.
        on_bad_clip: "stop", or "skip" to leave unreadable clips out (the manifest lists them).
        seed: of `keep_clips`.

    Under torchrun the batches are divided among the processes, which must share the folder of `out_dir`.

    Raises:
        ValueError: settings that do not fit each other or the encoder; out_dir belongs to another run; a bad clip.
        OSError: disk full; what was computed stays, and the same call goes on.
    """
    out_dir = Path(out_dir)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on = choose_device(device)
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if on.type == "cuda" else "gloo")
    encoder.to(on)
    plan = plan_pass(encoder, task, out_dir, on, batch_size, splits, layers, keep_clips, means, on_bad_clip, seed)
    if (out_dir / "manifest.json").is_file():
        refuse_other(json.loads((out_dir / "manifest.json").read_text()), plan.settings, out_dir, IDENTITY)
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
            refuse_other(json.loads((partial / "settings.json").read_text()), plan.settings, out_dir, IDENTITY + RUN)
        else:
            write_json(partial / "settings.json", plan.settings)
    _barrier(world)
    source = None if plan.settings.get("kept") else _sibling(plan, out_dir)
    progress = _Progress(plan, partial, rank)
    if source is None:
        _hear(encoder, plan, progress, on, rank, world)
    _barrier(world)
    if rank == 0:
        if source is None:
            _merge(encoder, plan, progress, out_dir)
        else:
            _take_over(plan, source, out_dir)
        shutil.rmtree(partial)
    _barrier(world)
    return load_artifacts(out_dir)


def _barrier(world: int) -> None:
    if world > 1:
        torch.distributed.barrier()


class _Progress:
    """What a pass has computed so far: an entry for each batch and, where not every clip's own counts are kept, sums.

    A process's sums are active tokens by class [classes, layers, neurons] over the batches in its `done`; both are
    saved as one, after the batches themselves, so no batch is counted twice or lost.
    """

    def __init__(self, plan: Plan, partial: Path, rank: int) -> None:
        self._cache, self._own, self._unsaved = Cache(partial), f"sums-{rank}", 0
        self._key = hashlib.sha256(json.dumps(plan.settings, sort_keys=True).encode()).hexdigest()
        self._sizes = {"sums": (len(plan.task.classes), *plan.shape), "done": (len(plan.batches),)}
        self._mine = self._cache.get(self._own, self._key) or self._zeros()

    def _zeros(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(size, np.int64) for name, size in self._sizes.items()}

    def batch(self, number: int) -> dict[str, np.ndarray] | None:
        """What a batch left, or None where it is not there or damaged."""
        return self._cache.get(f"batch-{number:06d}", self._key)

    def save(self, number: int, rows: Mapping[str, np.ndarray]) -> None:
        """Keep what a batch left."""
        self._cache.put(f"batch-{number:06d}", self._key, rows)

    def add(self, number: int, labels: np.ndarray, counts: np.ndarray, last: bool) -> None:
        """Add counts [clips, layers, neurons] to the sums, which are saved every 32 batches and after the last."""
        np.add.at(self._mine["sums"], labels, counts)
        self._mine["done"][number] += 1
        self._unsaved += 1
        if self._unsaved >= 32 or last:
            self._cache.put(self._own, self._key, self._mine)
            self._unsaved = 0

    def summed(self) -> dict[str, np.ndarray]:
        """Sums of all processes, and in how many of them each batch is."""
        total = self._zeros()
        for path in self._cache.folder.glob("sums-*.npz"):
            for name, values in (self._cache.get(path.stem, self._key) or {}).items():
                total[name] += values
        return total


def _hear(encoder: Encoder, plan: Plan, progress: _Progress, device: torch.device, rank: int, world: int) -> None:
    """Every batch of this process that is not on disk yet through the encoder."""
    subset = not plan.kept.all()
    summed = progress.summed()["done"] if subset else np.ones(len(plan.batches))
    todo = [b for b in range(rank, len(plan.batches), world) if not summed[b] or progress.batch(b) is None]
    indices = [plan.clips[plan.batches[b]] for b in todo]
    clips = sum(len(i) for i in indices)
    if rank == 0 and todo:
        say_cost(plan, clips)
    quiet = None if rank == 0 and todo else True
    with (
        full_precision(),
        tqdm(total=clips, unit="clip", desc=f"{encoder.name} on {plan.task.name}", disable=quiet) as bar,
    ):
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
                plan.settings["layers"],
                plan.settings["neurons"],
            )
            good = valid > 0
            if not bool(torch.isfinite(counted.embeddings[torch.from_numpy(good)]).all()):
                raise ValueError(
                    f"{encoder.name} gave an embedding that is not finite in batch {b} of {plan.task.name}"
                )
            rows = _rows_of(counted, good, plan.kept[plan.batches[b]], complaints)
            if plan.settings["means"]:
                rows["means"] = _half(counted.means.numpy()[plan.kept[plan.batches[b]] & good], encoder.name)
            progress.save(b, rows)
            if subset and not summed[b]:
                labels = plan.task.labels[plan.clips[plan.batches[b]]]
                progress.add(b, labels[good], counted.counts.numpy()[good], last=b == todo[-1])
            bar.update(len(valid))


def _rows_of(
    counted: BatchCounts, good: np.ndarray, kept: np.ndarray, complaints: Mapping[int, str]
) -> dict[str, np.ndarray]:
    """A batch as it is stored: embeddings and tokens of every clip, counts of the good clips that are kept."""
    dtype = np.min_scalar_type(int(counted.tokens.max()))  # the smallest unsigned integer that holds any count
    rows = {
        "embeddings": counted.embeddings.numpy(),
        "tokens": counted.tokens.numpy() * good,
        "padding_tokens": counted.padding_tokens.numpy() * good,
        "counts": counted.counts.numpy()[kept & good].astype(dtype),
        "complaints": np.array([complaints.get(i, "") for i in range(len(good))]),
    }
    if counted.padding is not None:
        rows["padding"] = counted.padding.numpy()[kept & good].astype(dtype)
    return rows


def _half(means: np.ndarray, name: str) -> np.ndarray:
    half = means.astype(np.float16)
    if np.isinf(half).any() and np.isfinite(means).all():
        raise ValueError(
            f"{name}: a clip's mean activation of {np.abs(means).max():.3g} is beyond float16, in which clip_means.npy "
            "is written (65,504). Collect with means=False."
        )
    return half


@dataclass
class _Rows:
    """The good clips of a pass, in order: all that is known of them but for the arrays that are streamed."""

    positions: np.ndarray  # in plan.clips
    tokens: np.ndarray
    padding_tokens: np.ndarray
    has_padding: bool
    skipped: list[dict[str, str]]


def _merge(encoder: Encoder, plan: Plan, progress: _Progress, out_dir: Path) -> None:
    """Stream the batches, in order, into the artifacts."""

    def saved(number: int) -> dict[str, np.ndarray]:
        rows = progress.batch(number)
        if rows is None:
            raise ValueError(f"batch {number} in {out_dir}/.partial is not whole; call again to compute it anew")
        return rows

    positions, tokens, padded, skipped, has_padding = [], [], [], [], False
    for number, batch in enumerate(plan.batches):
        rows = saved(number)
        good = rows["complaints"] == ""
        positions.append(batch[good])
        tokens.append(rows["tokens"][good])
        padded.append(rows["padding_tokens"][good])
        has_padding |= "padding" in rows
        for i in np.flatnonzero(~good):
            skipped.append({"file": plan.task.files[plan.clips[batch[i]]], "reason": str(rows["complaints"][i])})
    known = _Rows(np.concatenate(positions), np.concatenate(tokens), np.concatenate(padded), has_padding, skipped)
    lost = sorted(set(plan.task.labels[plan.clips]) - set(plan.task.labels[plan.clips[known.positions]]))
    if lost:
        raise ValueError(f"no clip of class {plan.task.classes[lost[0]]!r} could be read: {skipped[0]['reason']}")

    def blocks() -> Iterator[Mapping[str, np.ndarray]]:
        for number in range(len(plan.batches)):
            rows = saved(number)
            yield rows | {"embeddings": rows["embeddings"][rows["complaints"] == ""]}

    facts = {
        "padding": "unknown" if encoder.padding_masks is None else "counted" if has_padding else "none",
        "weights": dict(encoder.weights),
        "hardware": _hardware(plan.settings["device"]),
        "versions": _versions(),
    }
    sums = None if plan.kept.all() else progress.summed()["sums"]
    _write_artifacts(plan, known, blocks(), sums, facts, out_dir)


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


def _write_artifacts(
    plan: Plan,
    rows: _Rows,
    blocks: Iterator[Mapping[str, np.ndarray]],
    sums: np.ndarray | None,
    facts: Mapping[str, Any],
    out_dir: Path,
) -> None:
    """All files, the manifest last.

    Args:
        plan: what was decided. rows: the good clips.
        blocks: of the next clips, embeddings [clips, dim], and counts, means and, where there is any in the block,
            padding [kept clips, layers, neurons].
        sums: active tokens by class [classes, layers, neurons]; None: to be summed from the blocks, which hold all.
        facts: what else the manifest says. out_dir: where the files go.
    """
    task, clips = plan.task, plan.clips[rows.positions]
    labels, splits = task.labels[clips], np.asarray(task.splits)[clips]
    kept = plan.kept[rows.positions]
    shape, dtype = (int(kept.sum()), *plan.shape), np.min_scalar_type(int(rows.tokens.max()))
    by_class = np.zeros((len(task.classes), *shape[1:]), dtype=np.int64)
    arrays = {"clip_counts.npy": ("counts", dtype)}
    if rows.has_padding:
        arrays["padding_counts.npy"] = ("padding", dtype)
    if plan.settings["means"]:
        arrays["clip_means.npy"] = ("means", np.dtype(np.float16))
    embeddings: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        writers = {
            what: ArrayWriter(stack.enter_context(whole_file(out_dir / file)), shape, kind)
            for file, (what, kind) in arrays.items()
        }
        start = 0
        for block in blocks:
            embeddings.append(block["embeddings"])
            for what, writer in writers.items():
                writer.append(block.get(what, np.zeros_like(block["counts"])))
            if sums is None:
                clips_here = labels[start : start + len(block["embeddings"])]
                np.add.at(by_class, clips_here, block["counts"].astype(np.int64))
                start += len(clips_here)
    tokens = np.bincount(labels, weights=rows.tokens, minlength=len(task.classes))
    probabilities = (by_class if sums is None else sums).transpose(1, 2, 0) / tokens  # [layers, neurons, classes]
    save_tensors(out_dir / "over_zero.pt", torch.from_numpy(probabilities.astype(np.float32)))
    write_text(out_dir / "classes.txt", "".join(f"{c}\n" for c in task.classes))
    order = sorted(set(splits.tolist()), key=lambda s: ("train valid test".find(s), s))
    embedding = np.concatenate(embeddings)
    save_tensors(out_dir / "features.pt", {s: torch.from_numpy(embedding[splits == s]) for s in order})
    save_tensors(out_dir / "gts.pt", {s: torch.from_numpy(labels[splits == s]) for s in order})
    manifest = {
        "format": 2,
        "classes": list(task.classes),
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
        "checksums": {
            f: sha256_of(out_dir / f) for f in (*arrays, "over_zero.pt", "classes.txt", "features.pt", "gts.pt")
        },
        **plan.settings,
        **facts,
    }
    if not plan.kept.all():
        manifest["kept_clips"] = np.flatnonzero(kept).tolist()
    write_json(out_dir / "manifest.json", manifest)


def _sibling(plan: Plan, out_dir: Path) -> Artifacts | None:
    """Artifacts of another task beside `out_dir` for which the same encoder has heard all of our clips."""
    same = (
        "encoder",
        "identity",
        "layers",
        "neurons",
        "clip_seconds",
        "sample_rate",
        "precision",
        "device",
        "batch_size",
        "means",
    )
    for path in sorted(out_dir.parent.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest.get("task") == plan.task.name or "kept_clips" in manifest:
            continue
        if any(manifest.get(k) != plan.settings[k] for k in same):
            continue
        if set(plan.fingerprints) <= set(manifest["clips"]["fingerprint"]):
            return load_artifacts(path.parent)
    return None


def _take_over(plan: Plan, source: Artifacts, out_dir: Path) -> None:
    """Artifacts for this task's classes from a pass over the same audio for another task."""
    row_of = {mark: row for row, mark in enumerate(source.manifest["clips"]["fingerprint"])}
    rows = np.array([row_of[mark] for mark in plan.fingerprints])
    padding = None if source.manifest["padding"] == "unknown" else source.padding_counts

    def blocks() -> Iterator[Mapping[str, np.ndarray]]:
        arrays = {"embeddings": source.embeddings(), "counts": source.counts}
        arrays |= {} if padding is None else {"padding": padding}
        arrays |= {"means": source.means} if plan.settings["means"] else {}
        for start in range(0, len(rows), 256):
            yield {name: values[rows[start : start + 256]] for name, values in arrays.items()}

    facts = {k: source.manifest[k] for k in ("padding", "weights", "hardware", "versions")}
    facts["pass_of"] = f"{source.path.name} (task {source.manifest['task']})"
    everyone = np.arange(len(plan.clips))
    known = _Rows(everyone, source.tokens[rows], source.padding_tokens[rows], padding is not None, [])
    _write_artifacts(plan, known, blocks(), None, facts, out_dir)


def collect_study(
    study: str | Path, model: str, task: str, *, device: str | None = None, batch_size: int | None = None
) -> Artifacts:
    """Everything a collecting notebook does: load a study's model and task by name, collect with its settings."""
    loaded = load_study(study)
    settings = loaded.collect
    return collect(
        load_encoder(loaded, model),
        load_task(loaded, task),
        loaded.artifacts_directory(task, model),
        batch_size=settings.batch_size if batch_size is None else batch_size,
        device=device,
        splits=settings.splits,
        keep_clips=settings.keep_clips,
        on_bad_clip=settings.on_bad_clip,
        seed=loaded.seed,
    )
