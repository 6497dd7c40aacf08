"""The collecting pass: every clip goes through the encoder once, and what each neuron did in it is written to disk.

plan = plan_pass(...)                               # what to do, checked
results = resumed(folder, plan.key, ...)            # what each batch left, computed only if it is missing
merge(plan, results, ...)                           # the artifacts, written while the batches come
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import aape
from aape import collecting
from aape.artifacts.folder import Artifacts, load_artifacts, load_tensors
from aape.collecting.counting import BatchCounts, count_batch
from aape.collecting.out_folder import (
    close_pass,
    finished_artifacts,
    is_open,
    open_pass,
    partial_of,
    refuse_other_embedding,
)
from aape.collecting.plan import Plan, announce, plan_pass
from aape.collecting.progress import progress_bar
from aape.collecting.ranks import Ranks, current_ranks
from aape.encoders.dry_run import embedded
from aape.encoders.encoder import Encoder, choose_device, full_precision
from aape.files import folder_lock
from aape.resuming import code_version, missing, resumed
from aape.sounds.task import BadClip, Task, prefetched

_PACKAGES = ("torch", "timm", "transformers", "numpy", "nnAudio", "soundfile", "soxr")
_CODE = ("collecting", "encoders", "sounds")  # results of a batch depend on it


def collect(
    encoder: Encoder,
    task: Task,
    out_dir: str | Path,
    *,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    splits: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    means: bool = True,
) -> Artifacts:
    """Count the active tokens of every neuron in every clip, embed the clips, and write the artifacts.

    Returns at once if the artifacts are finished. A pass that was interrupted resumes: a batch is computed again only if
    its clips changed. Under torchrun the processes share the batches; all of them must see the folder of `out_dir`.

    Args:
        encoder: the model. It is moved to `device` and stays there.
        task: the clips.
        out_dir: one folder per encoder and task.
        batch_size: clips per batch (default 32). Another size can change counts where |activation| <= 1e-5.
        device: "cpu", "cuda", "cuda:1" or "mps" (default: CUDA if available, else the CPU).
        splits: which splits or folds to include (default: all).
        layers: names of the layers to count (default: all). If only some are counted, the artifacts number them from 0;
            use `encoder.with_layers(layers)` to silence their neurons.
        means: also write clip_means.npy, 2 bytes per clip and neuron; never for an encoder with `preactivation`.

    Raises:
        ValueError: settings that do not fit each other or the encoder, or a folder that holds another run.
        BadClip: clips that cannot be used. The message names all of the batch; everything computed is kept.
        OSError: the disk is full. Everything computed is kept, and the same call resumes.
    """
    out_dir = Path(out_dir)
    ranks = current_ranks()
    encoder.to(choose_device(device))
    plan = plan_pass(
        encoder,
        task,
        batch_size=32 if batch_size is None else batch_size,
        device=encoder.device.type,
        splits=splits,
        layers=layers,
        means=means
        and not encoder.preactivation,  # what a linear layer gives would pass for the neurons' means
    )
    if _finished(encoder, plan, out_dir) and not is_open(out_dir):
        return load_artifacts(out_dir)
    with folder_lock(out_dir) if ranks.first else contextlib.nullcontext():
        ranks.wait()
        if not _finished(encoder, plan, out_dir):  # another process may just have finished it
            _run(encoder, plan, out_dir, ranks)
        if ranks.first:
            close_pass(out_dir)
        ranks.wait()
    return load_artifacts(out_dir)


def _run(encoder: Encoder, plan: Plan, out_dir: Path, ranks: Ranks) -> None:
    """Compute the batches of this process; the first process then writes the artifacts from all batches."""
    partial = partial_of(out_dir)
    code = code_version(*_CODE)

    def compute(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        return _encode(encoder, plan, names, show_progress=ranks.first)

    if ranks.first:
        open_pass(plan, out_dir)
        _check_kept(encoder, plan, out_dir, code)
        announce(plan, encoder)
    ranks.wait()
    if ranks.count > 1:
        share = ranks.share(plan.contents)
        for _ in resumed(partial, plan.key, share, compute, code=code):
            pass  # kept on disk, where the first process finds it
    ranks.wait()
    if ranks.first:
        results = resumed(partial, plan.key, plan.contents, compute, code=code)
        collecting.merge(plan, results, _facts(encoder, code), out_dir)


def _encode(
    encoder: Encoder, plan: Plan, names: Sequence[str], *, show_progress: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Put batches through the encoder, reading ahead, and yield what each of them leaves."""
    batches = [plan.batches[name] for name in names]
    waves = prefetched(plan.task, batches, encoder.sample_rate)
    title = f"{encoder.name} on {plan.task.name}"
    total = sum(len(clips) for clips in batches)
    with full_precision(), progress_bar(total, title, show_progress) as progress:
        for clips, (wave, valid, unreadable) in zip(batches, waves, strict=True):
            on_device = _to_device(torch.from_numpy(wave), encoder.device)
            layers, neurons = plan.settings["layers"], plan.settings["neurons"]
            counted = count_batch(encoder, on_device, torch.from_numpy(valid), layers, neurons)
            _refuse_bad_clips(plan, clips, counted, unreadable)
            result = _arrays(plan, counted)
            result["unmarked"] = (valid < wave.shape[1]) & (encoder.padding_masks is None)
            progress.update(len(clips))
            yield result


def _to_device(wave: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a batch to a device; to a GPU while it still works on the batch before."""
    if device.type == "cuda":
        wave = wave.pin_memory()
    return wave.to(device, non_blocking=True)


def _refuse_bad_clips(
    plan: Plan, clips: np.ndarray, counted: BatchCounts, unreadable: Mapping[int, str]
) -> None:
    """Raise BadClip if some clips of a batch cannot be read, or make values that are not finite."""
    complaints = dict(unreadable)
    finite_layers = counted.means.isfinite().all(
        dim=2
    )  # infinities and NaN would count as inactive
    finite_embedding = counted.embeddings.isfinite().all(dim=1)
    for row, clip in enumerate(clips):
        if row in complaints or (finite_layers[row].all() and finite_embedding[row]):
            continue
        wrong = np.flatnonzero(~finite_layers[row].numpy())
        where = f"layer {plan.settings['layers'][wrong[0]]}" if len(wrong) else "the embedding"
        complaints[row] = (
            f"{plan.task.files[clip]}: {plan.settings['encoder']} makes values that are not finite, in {where}."
        )
    if complaints:
        listed = "\n".join(f"  {complaints[row]}" for row in sorted(complaints))
        raise BadClip(
            f"{len(complaints)} of the {len(clips)} clips of a batch cannot be used:\n{listed}\n"
            "Everything computed is kept. Repair these files or remove them from the task, then call again to resume."
        )


def _arrays(plan: Plan, counted: BatchCounts) -> dict[str, np.ndarray]:
    """What was counted in a batch, in the types of the artifacts."""
    dtype = np.min_scalar_type(
        int(counted.tokens.max())
    )  # the smallest unsigned integer that holds any count
    arrays = {
        "embeddings": counted.embeddings.numpy(),
        "tokens": counted.tokens.numpy(),
        "padding_tokens": counted.padding_tokens.numpy(),
        "clip_counts": counted.counts.numpy().astype(dtype),
    }
    padding = torch.zeros_like(counted.counts) if counted.padding is None else counted.padding
    arrays["padding_counts"] = padding.numpy().astype(dtype)
    if plan.settings["means"]:
        with np.errstate(over="ignore"):
            arrays["clip_means"] = counted.means.numpy().astype(np.float16)
        if np.isinf(arrays["clip_means"]).any():
            raise ValueError(
                f"{plan.settings['encoder']}: a clip's mean activation of {counted.means.abs().max():.3g} is beyond "
                "float16, in which clip_means.npy is written (65,504). Collect with means=False."
            )
    return arrays


def _finished(encoder: Encoder, plan: Plan, out_dir: Path) -> bool:
    """Whether the artifacts of this plan are there, made by this encoder."""
    artifacts = finished_artifacts(plan, out_dir)
    if artifacts is None:
        return False
    features = load_tensors(out_dir / "features.pt", mmap=True)
    known = features[plan.task.splits[0]][0].numpy()
    refuse_other_embedding(_embedding_of_first_clip(encoder, plan), known, plan, out_dir)
    return True


def _check_kept(encoder: Encoder, plan: Plan, out_dir: Path, code: str) -> None:
    """Refuse to resume a pass that an encoder with the same weights but another front end or pooling has begun."""
    partial = partial_of(out_dir)
    name = next(iter(plan.batches))
    batch = {name: plan.contents[name]}
    if missing(partial, plan.key, batch, code=code):
        return
    kept = next(iter(resumed(partial, plan.key, batch, lambda names: (), code=code)))
    refuse_other_embedding(
        _embedding_of_first_clip(encoder, plan), kept["embeddings"][0], plan, out_dir
    )


def _embedding_of_first_clip(encoder: Encoder, plan: Plan) -> np.ndarray:
    """Embedding of the plan's first clip [dim]."""
    wave, _ = plan.task.read(0, encoder.sample_rate)
    with full_precision():
        return (
            embedded(encoder, torch.from_numpy(wave)[None].to(encoder.device))[0]
            .float()
            .cpu()
            .numpy()
        )


def _facts(encoder: Encoder, code: str) -> dict[str, Any]:
    """What the manifest says about software and hardware."""
    versions = {"aape": aape.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    hardware: dict[str, Any] = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"hardware": hardware, "versions": versions, "code_version": code}
