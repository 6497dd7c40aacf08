"""From what a pass has computed, or from the pass of another task on the same audio, to whole artifacts."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aape.artifacts import ArrayWriter, Artifacts, load_artifacts, other_encoder, save_tensors
from aape.encoder import Encoder
from aape.files import Cache, sha256_of, sync_folder, whole_file, write_text
from aape.manifest import read_manifest, write_manifest
from aape.plan import ENCODER, Plan

_PACKAGES = ("torch", "timm", "transformers", "numpy", "nnAudio", "soundfile", "soxr")


class Progress:
    """What a pass has computed so far: an entry for each batch and, where not every clip's own counts are kept, sums.

    A process's sums are active tokens by class [classes, layers, neurons] over the batches in its `done`; both are
    saved as one, after the batches themselves, so no batch is counted twice or lost.
    """

    def __init__(self, plan: Plan, partial: Path, rank: int) -> None:
        self.folder = partial
        self._cache, self._own, self._unsaved = Cache(partial), f"sums-{rank}", 0
        self._key = {k: v for k, v in plan.settings.items() if k != "probe"}  # equal to rounding only
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


@dataclass
class _Rows:
    """The good clips of a pass, in order: all that is known of them but for the arrays that are streamed."""

    positions: np.ndarray  # in plan.clips
    tokens: np.ndarray
    padding_tokens: np.ndarray
    padding: str  # counted, none, unknown
    skipped: list[dict[str, str]]


def merge(encoder: Encoder, plan: Plan, progress: Progress, out_dir: Path) -> None:
    """Stream the batches, in order, into the artifacts.

    Raises:
        ValueError: a class of which no clip could be read.
        OSError: a batch that was whole when the pass began is not any more; the next call computes it anew.
    """

    def saved(number: int) -> dict[str, np.ndarray]:
        rows = progress.batch(number)
        if rows is None:
            raise OSError(f"batch {number} in {out_dir}/.partial was damaged just now; call again to compute it anew")
        return rows

    columns, skipped, has_padding = defaultdict(list), [], False
    for number, batch in enumerate(plan.batches):
        rows = saved(number)
        good = rows["complaints"] == ""
        columns["positions"].append(batch[good])
        for name in ("tokens", "padding_tokens", "valid"):
            columns[name].append(rows[name][good])
        has_padding |= "padding" in rows
        for i in np.flatnonzero(~good):
            skipped.append({"file": plan.task.files[plan.clips[batch[i]]], "reason": str(rows["complaints"][i])})
    known = {name: np.concatenate(parts) for name, parts in columns.items()}
    labels = plan.task.labels[plan.clips]
    if lost := sorted(set(labels) - set(labels[known["positions"]])):
        raise ValueError(f"no clip of class {plan.task.classes[lost[0]]!r} could be read: {skipped[0]['reason']}")
    padded = known.pop("valid").min() < plan.task.samples(encoder.sample_rate)
    padding = "counted" if has_padding else "unknown" if padded and encoder.padding_masks is None else "none"

    def blocks() -> Iterator[Mapping[str, np.ndarray]]:
        for number in range(len(plan.batches)):
            rows = saved(number)
            yield rows | {"embeddings": rows["embeddings"][rows["complaints"] == ""]}

    facts = {"weights": dict(encoder.weights), "hardware": _hardware(), "versions": _versions()}
    sums = None if plan.kept.all() else progress.summed()["sums"]
    _write_artifacts(plan, _Rows(**known, padding=padding, skipped=skipped), blocks(), sums, facts, out_dir)


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[package] = metadata.version(package)
    return out


def _hardware() -> dict[str, Any]:
    """What the arithmetic ran on, as far as it may move a rounding."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"machine": platform.machine(), "threads": torch.get_num_threads()} | gpu


def _write_artifacts(
    plan: Plan,
    rows: _Rows,
    blocks: Iterator[Mapping[str, np.ndarray]],
    sums: np.ndarray | None,
    facts: Mapping[str, Any],
    out_dir: Path,
) -> None:
    """Write all files beside the progress, move them to their place when they are whole, the manifest last.

    Args:
        plan: what was decided. rows: the good clips.
        blocks: of the next clips, embeddings [clips, dim], and counts, means and, where there is any in the block,
            padding [kept clips, layers, neurons].
        sums: active tokens by class [classes, layers, neurons]; None: to be summed from the blocks, which hold all.
        facts: what else the manifest says. out_dir: where the files go.
    """
    task, clips = plan.task, plan.clips[rows.positions]
    labels, splits = task.labels[clips], np.asarray(task.splits)[clips]
    order = sorted(set(splits.tolist()), key=lambda s: ("train valid test".find(s), s))
    kept = plan.kept[rows.positions]
    shape, dtype = (int(kept.sum()), *plan.shape), np.min_scalar_type(int(rows.tokens.max()))
    by_class = np.zeros((len(task.classes), *shape[1:]), dtype=np.int64)
    arrays = {"clip_counts.npy": ("counts", dtype)}
    if rows.padding == "counted":
        arrays["padding_counts.npy"] = ("padding", dtype)
    if plan.settings["means"]:
        arrays["clip_means.npy"] = ("means", np.dtype(np.float16))
    final = out_dir / ".partial" / "final"
    final.mkdir(exist_ok=True)
    embedded = {split: final.parent / f"embeddings-{i}.npy" for i, split in enumerate(order)}
    with contextlib.ExitStack() as stack:

        def writer(path: Path, size: tuple[int, ...], kind: np.dtype) -> ArrayWriter:
            return ArrayWriter(stack.enter_context(whole_file(path)), size, kind)

        writers = {what: writer(final / file, shape, kind) for file, (what, kind) in arrays.items()}
        by_split: dict[str, ArrayWriter] = {}
        start = 0
        for block in blocks:
            here = slice(start, start + len(block["embeddings"]))
            start = here.stop
            for split in order:
                if split not in by_split:
                    size = int((splits == split).sum()), block["embeddings"].shape[1]
                    by_split[split] = writer(embedded[split], size, np.dtype(np.float32))
                by_split[split].append(block["embeddings"][splits[here] == split])
            for what, array in writers.items():
                array.append(block.get(what, np.zeros_like(block["counts"])))
            if sums is None:
                np.add.at(by_class, labels[here], block["counts"].astype(np.int64))
    tokens = np.bincount(labels, weights=rows.tokens, minlength=len(task.classes))
    probabilities = (by_class if sums is None else sums).transpose(1, 2, 0) / tokens  # [layers, neurons, classes]
    save_tensors(final / "over_zero.pt", torch.from_numpy(probabilities.astype(np.float32)))
    write_text(final / "classes.txt", "".join(f"{c}\n" for c in task.classes))
    maps = {split: np.load(path, mmap_mode="c") for split, path in embedded.items()}  # private: nothing is written
    save_tensors(final / "features.pt", {split: torch.from_numpy(values) for split, values in maps.items()})
    save_tensors(final / "gts.pt", {s: torch.from_numpy(labels[splits == s]) for s in order})
    files = (*arrays, "over_zero.pt", "classes.txt", "features.pt", "gts.pt")
    manifest = {
        "format": 3,
        "classes": list(task.classes),
        "group_column": task.group_column,
        "clips": {
            "file": [task.files[i] for i in clips],
            "label": labels.tolist(),
            "split": splits.tolist(),
            "group": [task.groups[i] for i in clips],
            "tokens": rows.tokens.tolist(),
            "padding_tokens": rows.padding_tokens.tolist(),
            "sha256": [plan.digests[p] for p in rows.positions],
        },
        "skipped": rows.skipped,
        "notes": list(task.notes),
        "cut": plan.cut,
        "padding": rows.padding,
        "checksums": {name: sha256_of(final / name) for name in files},
        **plan.settings,
        **facts,
    }
    if not plan.kept.all():
        manifest["kept_clips"] = np.flatnonzero(kept).tolist()
    _publish(final, out_dir, manifest)


def _publish(final: Path, out_dir: Path, manifest: Mapping[str, Any]) -> None:
    """Move whole files to their place; what lies there already must be the same, left by a run killed right here."""
    for name, digest in manifest["checksums"].items():
        if (out_dir / name).exists() and sha256_of(out_dir / name) != digest:
            raise ValueError(
                f"{out_dir}/{name} appeared during the pass and is not of it; it was not touched.\n"
                "Move it away and call again: nothing is computed twice."
            )
    for name in manifest["checksums"]:
        os.replace(final / name, out_dir / name)
    sync_folder(out_dir)
    write_manifest(out_dir / "manifest.json", manifest)


def clean_up(partial: Path) -> None:
    """Remove the progress of a pass whose artifacts are whole; its settings last, so that it stays known as ours."""
    settings = partial / "settings.json"
    if not partial.is_dir() or (not settings.is_file() and any(partial.iterdir())):
        return
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != settings:
            path.unlink()
    settings.unlink(missing_ok=True)
    partial.rmdir()


def sibling(plan: Plan, out_dir: Path) -> Artifacts | None:
    """Artifacts of another task beside `out_dir` for which the same encoder has heard all of our clips."""
    same = [k for k in (*ENCODER, "clip_seconds", "means", "device", "batch_size") if k != "probe"]
    for path in sorted(out_dir.parent.glob("*/manifest.json")):
        try:
            manifest = read_manifest(path)
        except ValueError:
            continue  # not ours
        other = other_encoder(manifest, plan.settings["identity"], plan.settings["probe"])
        if other or manifest["task"] == plan.task.name or "kept_clips" in manifest:
            continue
        if any(manifest[k] != plan.settings[k] for k in same):
            continue
        if Counter(plan.digests) <= Counter(manifest["clips"]["sha256"]):
            return load_artifacts(path.parent, verify=True)
    return None


def take_over(plan: Plan, source: Artifacts, out_dir: Path) -> None:
    """Artifacts for this task's classes from a pass over the same audio for another task, one to one."""
    rows_of = defaultdict(list)
    for row, digest in enumerate(source.manifest["clips"]["sha256"]):
        rows_of[digest].append(row)
    rows = np.array([rows_of[digest].pop(0) for digest in plan.digests])
    arrays = {"embeddings": source.embeddings(), "counts": source.counts}
    if source.manifest["padding"] == "counted":
        arrays["padding"] = np.asarray(source.padding_counts)
    if plan.settings["means"]:
        arrays["means"] = source.means

    def blocks() -> Iterator[Mapping[str, np.ndarray]]:
        for start in range(0, len(rows), 256):
            yield {name: values[rows[start : start + 256]] for name, values in arrays.items()}

    facts = {k: source.manifest[k] for k in ("weights", "hardware", "versions")}
    facts["pass_of"] = f"{source.path.name} (task {source.manifest['task']})"
    everyone, padding = np.arange(len(plan.clips)), source.manifest["padding"]
    known = _Rows(everyone, source.tokens[rows], source.padding_tokens[rows], padding, [])
    _write_artifacts(plan, known, blocks(), None, facts, out_dir)
