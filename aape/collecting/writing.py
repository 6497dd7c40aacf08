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
from aape.artifacts.manifest import ARRAYS, FORMAT, REQUIRED, write_manifest
from aape.collecting.plan import Plan
from aape.files import sha256_of, whole_file, write_text


def merge(
    plan: Plan, results: Iterable[Mapping[str, np.ndarray]], facts: Mapping[str, Any], out_dir: Path
) -> None:
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
    writers: dict[str, ArrayWriter] = {}
    with contextlib.ExitStack() as files:
        for clips, result in zip(plan.batches.values(), results, strict=True):
            for name, values in result.items():
                file_name = f"{name}.npy"
                if file_name not in ARRAYS:
                    columns[name].append(values)
                    continue
                if file_name not in writers:
                    file = files.enter_context(whole_file(out_dir / file_name))
                    shape = (len(task), *plan.shape)
                    writers[file_name] = ArrayWriter(file, shape, values.dtype)
                writers[file_name].append(values)
            _add_by_class(sums, task.labels[clips], result["clip_counts"])
    per_clip = {name: np.concatenate(parts) for name, parts in columns.items()}
    arrays = set(writers)
    padding = _padding(per_clip)
    if padding != "counted" and "padding_counts.npy" in arrays:  # all zeros
        arrays.remove("padding_counts.npy")
        (out_dir / "padding_counts.npy").unlink()
    tokens = np.bincount(task.labels, weights=per_clip["tokens"])
    probabilities = sums.transpose(1, 2, 0) / tokens  # [layers, neurons, classes]
    over_zero = torch.from_numpy(probabilities.astype(np.float32))
    save_tensors(out_dir / "over_zero.pt", over_zero)
    write_text(out_dir / "classes.txt", "".join(f"{name}\n" for name in task.classes))
    _write_by_split(plan, per_clip["embeddings"], out_dir)
    files_of_pass = sorted(arrays.union(REQUIRED))
    manifest = {
        "format": FORMAT,
        "classes": list(task.classes),
        "group_column": task.group_column,
        "clips": {
            **plan.clips,
            "tokens": per_clip["tokens"].tolist(),
            "padding_tokens": per_clip["padding_tokens"].tolist(),
        },
        "notes": list(task.notes),
        "cut": plan.cut,
        "padding": padding,
        "checksums": {name: sha256_of(out_dir / name) for name in files_of_pass},
        **plan.settings,
        **facts,
    }
    write_manifest(out_dir / "manifest.json", manifest)


def _add_by_class(sums: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
    """Add counts [clips, layers, neurons] to sums [classes, layers, neurons]."""
    for label in np.unique(labels):  # np.add.at takes three times as long
        sums[label] += counts[labels == label].sum(axis=0, dtype=np.int64)


def _padding(per_clip: Mapping[str, np.ndarray]) -> str:
    """Whether tokens of padding were counted, as the manifest says it."""
    if per_clip["padding_tokens"].any():
        return "counted"
    return "unknown" if per_clip["unmarked"].any() else "none"


def _write_by_split(plan: Plan, embeddings: np.ndarray, out_dir: Path) -> None:
    """Write features.pt and gts.pt: embeddings [clips, dim] and class indices [clips] by split."""
    splits = np.asarray(plan.task.splits)
    order = sorted(set(plan.task.splits), key=lambda split: ("train valid test".find(split), split))
    features = {}
    labels = {}
    for split in order:
        of_split = splits == split
        features[split] = torch.from_numpy(embeddings[of_split])
        labels[split] = torch.from_numpy(plan.task.labels[of_split])
    save_tensors(out_dir / "features.pt", features)
    save_tensors(out_dir / "gts.pt", labels)
