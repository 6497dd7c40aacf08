"""From what a pass has computed, or from the pass of another task on the same audio, to whole artifacts."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aape.artifacts import ArrayWriter, Artifacts, load_artifacts, other_encoder, save_tensors
from aape.encoder import Encoder
from aape.files import Cache, sha256_of, sync_folder, whole_file, write_text
from aape.manifest import ARRAYS, read_manifest, write_manifest
from aape.plan import ENCODER, Plan

_PACKAGES = ("torch", "timm", "transformers", "numpy", "nnAudio", "soundfile", "soxr")


def add_by_class(sums: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
    """Add counts [clips, layers, neurons] to sums [classes, layers, neurons]."""
    for label in np.unique(labels):  # np.add.at takes three times as long
        sums[label] += counts[labels == label].sum(axis=0, dtype=np.int64)


class Progress:
    """What a pass has computed so far: an entry for each batch and, where not every clip's own counts are kept, sums.

    An entry holds, of the batch's good clips, `clips` (positions in the plan), `embeddings`, `tokens`, `padding_tokens`
    and `unmarked` (whether there is padding of which nobody knows the tokens), of those that are kept the arrays of the
    artifacts, padding_counts only where there are any, and of the bad clips `bad` and `reasons`.

    A process's sums are active tokens by class [classes, layers, neurons] over the batches in its `done`; both are
    saved as one, after the batches themselves, so no batch is counted twice or lost.
    """

    def __init__(self, plan: Plan, partial: Path) -> None:
        self.folder, self._cache = partial, Cache(partial)
        # without the probe, which is equal to rounding only
        self._key = {k: v for k, v in plan.settings.items() if k != "probe"} | {"entries": 2}
        self._sizes = {"sums": (len(plan.task.classes), *plan.shape), "done": (len(plan.batches),)}

    def batch(self, number: int) -> dict[str, np.ndarray] | None:
        """What a batch left, or None where it is not there or damaged."""
        return self._cache.get(f"batch-{number:06d}", self._key)

    def save(self, number: int, rows: Mapping[str, np.ndarray]) -> None:
        """Keep what a batch left."""
        self._cache.put(f"batch-{number:06d}", self._key, rows)

    def sums(self, rank: int | str = "*") -> dict[str, np.ndarray]:
        """Sums of a process, or of all, and in how many of them each batch is."""
        total = {name: np.zeros(size, np.int64) for name, size in self._sizes.items()}
        for path in self.folder.glob(f"sums-{rank}.npz"):
            for name, values in (self._cache.get(path.stem, self._key) or {}).items():
                total[name] += values
        return total

    def save_sums(self, rank: int, sums: Mapping[str, np.ndarray]) -> None:
        """Keep the sums of a process."""
        self._cache.put(f"sums-{rank}", self._key, sums)


def facts_of(encoder: Encoder) -> dict[str, Any]:
    """What the manifest says of a pass besides its settings: provenance, and what the arithmetic ran on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads()} | gpu
    return {"weights": dict(encoder.weights), "hardware": hardware, "versions": versions}


def sibling(plan: Plan, out_dir: Path) -> Artifacts | None:
    """Artifacts of another task beside `out_dir` for which the same encoder has heard all of our clips."""
    ours = plan.settings
    same = [k for k in (*ENCODER, "clip_seconds", "means", "device", "batch_size") if k != "probe"]
    for path in sorted(out_dir.parent.glob("*/manifest.json")):
        with contextlib.suppress(ValueError, FileNotFoundError):  # not ours, damaged, or not whole
            theirs = read_manifest(path)
            other = other_encoder(theirs, ours["identity"], ours["probe"]) or any(theirs[k] != ours[k] for k in same)
            if other or theirs["task"] == plan.task.name or "kept_clips" in theirs:
                continue
            if Counter(plan.digests) <= Counter(theirs["clips"]["sha256"]):
                return load_artifacts(path.parent, verify=True)
    return None


def take_over(plan: Plan, source: Artifacts, progress: Progress) -> dict[str, Any]:
    """Fill the progress from a pass over the same audio for another task, one to one; returns what `facts_of` would."""
    rows_of = defaultdict(list)
    for row, digest in enumerate(source.manifest["clips"]["sha256"]):
        rows_of[digest].append(row)
    places = np.array([rows_of[digest].pop(0) for digest in plan.digests])
    padding = source.manifest["padding"]
    columns = {
        "embeddings": source.embeddings(),
        "tokens": source.tokens,
        "padding_tokens": source.padding_tokens,
        "unmarked": np.full(len(source.tokens), padding == "unknown"),
        "clip_counts": source.counts,
        "clip_means": source.means if plan.settings["means"] else None,
        "padding_counts": source.padding_counts if padding == "counted" else None,
    }
    for number, batch in enumerate(plan.batches):
        rows = {name: values[places[batch]] for name, values in columns.items() if values is not None}
        progress.save(number, rows | {"clips": batch, "bad": np.zeros(0, int), "reasons": np.zeros(0, str)})
    facts = {k: source.manifest[k] for k in ("weights", "hardware", "versions")}
    return facts | {"pass_of": f"{source.path.name} (task {source.manifest['task']})"}


def merge(plan: Plan, progress: Progress, facts: Mapping[str, Any], out_dir: Path) -> None:
    """Stream the batches, in order, into the artifacts; move them to their place when all are whole, the manifest last.

    Raises:
        ValueError: a class of which no clip could be read.
        OSError: a batch that was whole when the pass began is not any more; the next call computes it anew.
    """

    def saved(number: int) -> dict[str, np.ndarray]:
        if (rows := progress.batch(number)) is None:
            raise OSError(f"batch {number} in {progress.folder} was damaged just now; call again to compute it anew")
        return rows

    task, numbers = plan.task, range(len(plan.batches))
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    kinds: dict[str, np.dtype] = {}
    for rows in map(saved, numbers):
        for name in ("clips", "tokens", "padding_tokens", "unmarked", "bad", "reasons"):
            columns[name].append(rows[name])
        kinds |= {name: values.dtype for name, values in rows.items() if f"{name}.npy" in ARRAYS}
        dim = rows["embeddings"].shape[1]
    known = {name: np.concatenate(parts) for name, parts in columns.items()}
    clips, kept = plan.clips[known["clips"]], plan.kept[known["clips"]]
    labels, split_of = task.labels[clips], np.asarray(task.splits)
    splits = split_of[clips]
    if lost := set(range(len(task.classes))) - set(labels.tolist()):
        name, reason = task.classes[min(lost)], known["reasons"][0]
        raise ValueError(f"class {name!r} of {task.name} has no clip that can be used; the first complaint: {reason}")
    order = sorted(set(splits.tolist()), key=lambda s: ("train valid test".find(s), s))
    final = progress.folder / "final"
    final.mkdir(exist_ok=True)
    embedded = {f"embeddings-{i}": split for i, split in enumerate(order)}
    arrays: dict[str, tuple[tuple[int, ...], np.dtype]]
    arrays = {name: ((int(kept.sum()), *plan.shape), kind) for name, kind in kinds.items()}
    arrays |= {name: ((int((splits == s).sum()), dim), np.dtype(np.float32)) for name, s in embedded.items()}
    sums = np.zeros((len(task.classes), *plan.shape), dtype=np.int64)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(whole_file(final / f"{name}.npy")) for name in arrays}
        writers = {name: ArrayWriter(file, *arrays[name]) for name, file in files.items()}
        for rows in map(saved, numbers):
            mine = plan.clips[rows["clips"]]
            rows |= {name: rows["embeddings"][split_of[mine] == split] for name, split in embedded.items()}
            for name, writer in writers.items():
                writer.append(rows.get(name, np.zeros_like(rows["clip_counts"])))
            if plan.kept.all():
                add_by_class(sums, task.labels[mine], rows["clip_counts"])
    if not plan.kept.all():
        sums = progress.sums()["sums"]
    tokens = np.bincount(labels, weights=known["tokens"], minlength=len(task.classes))
    probabilities = sums.transpose(1, 2, 0) / tokens  # [layers, neurons, classes]
    save_tensors(final / "over_zero.pt", torch.from_numpy(probabilities.astype(np.float32)))
    write_text(final / "classes.txt", "".join(f"{c}\n" for c in task.classes))
    # mapped as private: nothing is held, nothing is written
    features = {split: np.load(final / f"{name}.npy", mmap_mode="c") for name, split in embedded.items()}
    save_tensors(final / "features.pt", {split: torch.from_numpy(values) for split, values in features.items()})
    save_tensors(final / "gts.pt", {s: torch.from_numpy(labels[splits == s]) for s in order})
    names = (*(f"{name}.npy" for name in kinds), "over_zero.pt", "classes.txt", "features.pt", "gts.pt")
    unmarked = "unknown" if known["unmarked"].any() else "none"
    manifest = {
        "format": 3,
        "classes": list(task.classes),
        "group_column": task.group_column,
        "clips": {
            "file": [task.files[i] for i in clips],
            "label": labels.tolist(),
            "split": splits.tolist(),
            "group": [task.groups[i] for i in clips],
            "tokens": known["tokens"].tolist(),
            "padding_tokens": known["padding_tokens"].tolist(),
            "sha256": [plan.digests[p] for p in known["clips"]],
        },
        "skipped": [
            {"file": task.files[plan.clips[p]], "reason": str(reason)}
            for p, reason in zip(known["bad"], known["reasons"], strict=True)
        ],
        "notes": list(task.notes),
        "cut": plan.cut,
        "padding": "counted" if "padding_counts" in kinds else unmarked,
        "checksums": {name: sha256_of(final / name) for name in names},
        **plan.settings,
        **facts,
    }
    if not plan.kept.all():
        manifest["kept_clips"] = np.flatnonzero(kept).tolist()
    for name, digest in manifest["checksums"].items():  # what lies there must be the same, left by a run killed here
        if (out_dir / name).exists() and sha256_of(out_dir / name) != digest:
            raise ValueError(
                f"{out_dir}/{name} appeared during the pass and is not of it.\nMove it away and call again."
            )
    for name in names:
        os.replace(final / name, out_dir / name)
    sync_folder(out_dir)
    write_manifest(out_dir / "manifest.json", manifest)


def clean_up(partial: Path) -> None:
    """Remove the progress of a pass whose artifacts are whole; its settings last, so that it stays known as ours."""
    settings = partial / "settings.json"
    if settings.is_file():
        for path in partial.iterdir():
            if path != settings:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        settings.unlink()
    with contextlib.suppress(OSError):  # gone already, or not ours
        partial.rmdir()
