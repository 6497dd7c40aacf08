"""Writing the artifacts of a pass, batch by batch, into their folder."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aape.artifacts.folder import ArrayWriter, save_tensors
from aape.artifacts.manifest import ARRAYS, FORMAT, write_manifest
from aape.collecting.plan import Plan
from aape.files import sha256_of, whole_file, write_text


def merge(plan: Plan, results: Iterable[Mapping[str, np.ndarray]], facts: Mapping[str, Any], out_dir: Path) -> None:
    """Write the results of all batches as the artifacts of a folder: the arrays as they come, the manifest last.

    Every file has a temporary name in the same folder until it is complete.

    Args:
        plan: the pass.
        results: what each batch left, in the order of `plan.batches`: `clip_counts`, `clip_means` and `padding_counts`
            [clips, layers, neurons] (the last two if there are any), `embeddings` [clips, dim], and per clip `tokens`,
            `padding_tokens` and `unmarked`, whether it has padding and nobody knows in which tokens.
        facts: what the manifest says besides: `hardware`, `versions`, `code_version`, and `pass_of`.
        out_dir: the folder.

    Raises:
        OSError: the disk is full.
    """
    task = plan.task
    sums = np.zeros((len(task.classes), *plan.shape), dtype=np.int64)
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    with _ClipArrays(out_dir, len(task)) as arrays:
        for clips, result in zip(plan.batches.values(), results, strict=True):
            arrays.append(result)
            _add_by_class(sums, task.labels[clips], result["clip_counts"])
            for name in ("embeddings", "tokens", "padding_tokens", "unmarked"):
                columns[name].append(result[name])
    per_clip = {name: np.concatenate(parts) for name, parts in columns.items()}
    tokens = np.bincount(task.labels, weights=per_clip["tokens"], minlength=len(task.classes))
    probabilities = sums.transpose(1, 2, 0) / tokens  # [layers, neurons, classes]
    save_tensors(out_dir / "over_zero.pt", torch.from_numpy(probabilities.astype(np.float32)))
    write_text(out_dir / "classes.txt", "".join(f"{name}\n" for name in task.classes))
    _write_by_split(plan, per_clip["embeddings"], out_dir)
    files = [*arrays.names, "over_zero.pt", "classes.txt", "features.pt", "gts.pt"]
    manifest = {
        "format": FORMAT,
        "classes": list(task.classes),
        "group_column": task.group_column,
        "clips": plan.clips | {name: per_clip[name].tolist() for name in ("tokens", "padding_tokens")},
        "notes": list(task.notes),
        "cut": plan.cut,
        "padding": _padding(arrays, per_clip["unmarked"]),
        "checksums": {name: sha256_of(out_dir / name) for name in files},
        **plan.settings,
        **facts,
    }
    write_manifest(out_dir / "manifest.json", manifest)


def _add_by_class(sums: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
    """Add counts [clips, layers, neurons] to sums [classes, layers, neurons]."""
    for label in np.unique(labels):  # np.add.at takes three times as long
        sums[label] += counts[labels == label].sum(axis=0, dtype=np.int64)


def _write_by_split(plan: Plan, embeddings: np.ndarray, out_dir: Path) -> None:
    """Write features.pt and gts.pt: embeddings [clips, dim] and class indices [clips] by split."""
    splits = np.asarray(plan.task.splits)
    order = sorted(set(plan.task.splits), key=lambda split: ("train valid test".find(split), split))
    features = {split: torch.from_numpy(embeddings[splits == split]) for split in order}
    labels = {split: torch.from_numpy(plan.task.labels[splits == split]) for split in order}
    save_tensors(out_dir / "features.pt", features)
    save_tensors(out_dir / "gts.pt", labels)


def _padding(arrays: _ClipArrays, unmarked: np.ndarray) -> str:
    if "padding_counts.npy" in arrays.names:
        return "counted"
    return "unknown" if unmarked.any() else "none"


class _ClipArrays:
    """The .npy files with a row per clip, written while the batches come; complete when the context ends."""

    def __init__(self, out_dir: Path, clips: int) -> None:
        self._out_dir = out_dir
        self._clips = clips
        self._batches: list[int] = []  # clips of each batch so far
        self._writers: dict[str, ArrayWriter] = {}
        self._files = contextlib.ExitStack()

    def __enter__(self) -> _ClipArrays:
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    @property
    def names(self) -> list[str]:
        """File names of the arrays."""
        return [name for name in ARRAYS if name in self._writers]

    def append(self, result: Mapping[str, np.ndarray]) -> None:
        """Write the rows of a batch; zeros for padding if no clip of it is padded."""
        counts = result["clip_counts"]
        for name in ARRAYS:
            rows = result.get(name.removesuffix(".npy"))
            if rows is None and name not in self._writers:
                continue
            self._writer(name, counts if rows is None else rows).append(np.zeros_like(counts) if rows is None else rows)
        self._batches.append(len(counts))

    def _writer(self, name: str, rows: np.ndarray) -> ArrayWriter:
        """The writer of an array. One that begins late, as the first clip with padding comes, begins with zeros."""
        if name not in self._writers:
            file = self._files.enter_context(whole_file(self._out_dir / name))
            writer = ArrayWriter(file, (self._clips, *rows.shape[1:]), rows.dtype)
            for clips in self._batches:
                writer.append(np.zeros((clips, *rows.shape[1:]), rows.dtype))
            self._writers[name] = writer
        return self._writers[name]
