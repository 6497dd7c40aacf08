"""The collecting pass: every clip through the encoder once, counts and embeddings to disk as they come.

Each batch becomes one entry of a cache in `<out_dir>/.partial/`; what is there is not computed again, so a run that was
killed goes on where it stopped. When all batches are there they are streamed, in order, into the artifacts of
`aape.artifacts`; these are moved to their place when all are whole, and the manifest comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts import Artifacts, load_artifacts, other_encoder
from aape.counting import BatchCounts, count_batch
from aape.encoder import Encoder, choose_device, full_precision
from aape.files import folder_lock, write_json
from aape.manifest import FILES, read_manifest
from aape.merging import Progress, add_by_class, clean_up, facts_of, merge, sibling, take_over
from aape.plan import IDENTITY, RUN, Plan, naming_space, plan_pass, say_what_comes
from aape.study import load_encoder, load_study, load_task
from aape.task import BadClip, Task, prefetched


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
    if batch_size is None:
        batch_size = (unfinished(out_dir) or {}).get("batch_size", 32)
    plan = plan_pass(
        encoder, task, splits=splits, layers=layers, keep_clips=keep_clips, seed=seed, batch_size=batch_size,
        device=on.type, means=means, on_bad_clip=on_bad_clip,
    )  # fmt: skip
    partial = out_dir / ".partial"
    if _is_whole(plan, out_dir) and not partial.exists():
        return load_artifacts(out_dir)
    with naming_space(plan, out_dir), _one_writer(out_dir, rank, world):
        if not _is_whole(plan, out_dir):  # another process may have been faster
            if rank == 0:
                _open(plan, out_dir)
            _barrier(world)
            source = None if plan.settings["kept"] else sibling(plan, out_dir)
            progress = Progress(plan, partial)
            if source is None:
                _hear(encoder, plan, progress, on, rank, world)
            _barrier(world)
            if rank == 0:
                facts = facts_of(encoder) if source is None else take_over(plan, source, progress)
                merge(plan, progress, facts, out_dir)
        if rank == 0:
            clean_up(partial)
    return load_artifacts(out_dir)


@contextlib.contextmanager
def _one_writer(out_dir: Path, rank: int, world: int) -> Iterator[None]:
    """The folder's lock, for all processes of the group: the first one holds it."""
    with folder_lock(out_dir) if rank == 0 else contextlib.nullcontext():
        _barrier(world)
        yield
        _barrier(world)


def _barrier(world: int) -> None:
    if world > 1:
        torch.distributed.barrier()


def _is_whole(plan: Plan, out_dir: Path) -> bool:
    """Whether the artifacts of this plan are there. Raises ValueError where another run's are."""
    if there := (out_dir / "manifest.json").exists():
        _refuse_other(read_manifest(out_dir / "manifest.json"), plan.settings, out_dir, IDENTITY)
    return there


def _open(plan: Plan, out_dir: Path) -> None:
    """Adopt what a killed run left, or begin: afterwards `.partial/settings.json` is there, and nobody else's files."""
    partial, settings = out_dir / ".partial", unfinished(out_dir)
    if settings is not None:
        _refuse_other(settings, plan.settings, out_dir, IDENTITY + RUN)
    strangers = [name for name in (*FILES, "manifest.json") if os.path.lexists(out_dir / name)]
    if strangers and not (partial / "final").is_dir():  # else a run was killed that moved its files to their place
        raise ValueError(
            f"{out_dir} holds {', '.join(strangers)} that no pass of this version has written there (artifacts of "
            "another tool?).\nChoose another out_dir, or move them away; nothing was changed."
        )
    partial.mkdir(exist_ok=True)
    if settings is None:
        write_json(partial / "settings.json", plan.settings, sync=False)


def unfinished(out_dir: Path) -> dict[str, Any] | None:
    """Settings of the pass that was cut off in this folder; None where there is none, or they were damaged.

    Raises:
        ValueError: `.partial` is not ours.
    """
    partial, damaged = out_dir / ".partial", False
    if not os.path.lexists(partial):
        return None
    with contextlib.suppress(OSError):  # without settings, nothing there is ours
        text = (partial / "settings.json").read_bytes()
        try:
            settings = json.loads(text)
            if isinstance(settings, dict) and set(IDENTITY + RUN) <= set(settings):
                return settings
            damaged = any(partial.glob("batch-*.npz"))
        except ValueError:  # cut off, in the first moments too
            damaged = True
    if damaged:
        warnings.warn(f"{partial}/settings.json was damaged and is written anew", stacklevel=2)
    elif not partial.is_dir() or any(path.name[0] != "." for path in partial.iterdir()):  # else cut off right here
        raise ValueError(f"{partial} is not of a pass of this version. Move it away, or choose another out_dir.")
    return None


def _refuse_other(theirs: Mapping[str, Any], ours: Mapping[str, Any], out_dir: Path, keys: Sequence[str]) -> None:
    """Refuse to go on with, or to return, what was made with other settings."""
    plain = [k for k in keys if k not in ("identity", "probe") and theirs.get(k) != ours[k]]
    sides = [f"{k} is {theirs.get(k)!r} there and {ours[k]!r} here" for k in plain]
    sides += filter(None, [other_encoder(theirs, ours["identity"], ours["probe"])])
    if sides:
        raise ValueError(
            f"{out_dir} belongs to another run: {'; '.join(sides)}. Give this run another out_dir, restore the setting, "
            "or delete the folder; nothing was changed."
        )


def _hear(encoder: Encoder, plan: Plan, progress: Progress, device: torch.device, rank: int, world: int) -> None:
    """Every batch of this process that is not on disk yet through the encoder."""
    task, settings = plan.task, plan.settings
    sums, own = progress.sums(), progress.sums(rank)
    missing = (sums["done"] == 0) & (not plan.kept.all())  # in the sums over clips whose own counts are not kept
    todo = [b for b in range(rank, len(plan.batches), world) if missing[b] or progress.batch(b) is None]
    clips = [plan.clips[plan.batches[b]] for b in todo]
    if rank == 0 and todo:
        say_what_comes(plan, encoder, progress.folder)
    parent = os.getppid()
    named: dict[str, Any] = {"desc": f"{encoder.name} on {task.name}", "disable": None if rank == 0 and todo else True}
    with full_precision(), tqdm(total=sum(map(len, clips)), unit="clip", **named) as bar:
        waves = prefetched(task, clips, encoder.sample_rate)
        for b, mine, (wave, valid, complaints) in zip(todo, clips, waves, strict=True):
            if world > 1 and os.getppid() != parent:
                raise SystemExit("the process that started this one is gone")
            on_device = torch.from_numpy(wave)
            if device.type == "cuda":  # copied while it still works
                on_device = on_device.pin_memory()
            on_device = on_device.to(device, non_blocking=True)
            counted = count_batch(encoder, on_device, torch.from_numpy(valid), settings["layers"], settings["neurons"])
            for i, where in _not_finite(counted, settings["layers"]).items():
                what = f"{task.files[mine[i]]}: {encoder.name} makes values of it that are not finite, in {where}."
                complaints.setdefault(i, what)  # of a clip that cannot be read, that is the complaint
            if complaints and settings["on_bad_clip"] == "stop":
                raise BadClip(
                    f"{next(iter(complaints.values()))} ({len(complaints)} such clip(s) in this batch.) What was "
                    "computed is kept: mend the file and call again, or collect with on_bad_clip='skip'."
                )
            unmarked = (valid < wave.shape[1]) & (encoder.padding_masks is None)
            progress.save(b, _entry(plan, plan.batches[b], counted, unmarked, complaints))
            if missing[b]:
                good = [i for i in range(len(mine)) if i not in complaints]
                add_by_class(own["sums"], task.labels[mine[good]], counted.counts.numpy()[good])
                own["done"][b] = 1
                if own["done"].sum() % 32 == 0:
                    progress.save_sums(rank, own)
            bar.update(len(mine))
    if missing.any():
        progress.save_sums(rank, own)


def _not_finite(counted: BatchCounts, layers: Sequence[str]) -> dict[int, str]:
    """The clips of which infinities or NaN are made, which would count as inactive: where the first of them are."""
    fine = torch.cat([counted.means.isfinite().all(dim=2), counted.embeddings.isfinite().all(dim=1)[:, None]], dim=1)
    places = [*(f"layer {name}" for name in layers), "the embedding"]
    return {int(i): places[int(fine[i].int().argmin())] for i in (~fine.all(dim=1)).nonzero()[:, 0]}


def _entry(
    plan: Plan, batch: np.ndarray, counted: BatchCounts, unmarked: np.ndarray, complaints: Mapping[int, str]
) -> dict[str, np.ndarray]:
    """A batch as `Progress` keeps it."""
    bad = np.array(sorted(complaints), dtype=int)
    good = np.setdiff1d(np.arange(len(batch)), bad)
    kept = good[plan.kept[batch[good]]]
    dtype = np.min_scalar_type(int(counted.tokens.max()))  # the smallest unsigned integer that holds any count
    entry = {name: getattr(counted, name).numpy()[good] for name in ("embeddings", "tokens", "padding_tokens")}
    entry |= {
        "clips": batch[good],
        "unmarked": unmarked[good],
        "clip_counts": counted.counts.numpy()[kept].astype(dtype),
    }
    entry |= {"bad": batch[bad], "reasons": np.array([complaints[i] for i in bad], dtype=str)}
    if counted.padding is not None:
        entry["padding_counts"] = counted.padding.numpy()[kept].astype(dtype)
    if plan.settings["means"]:
        means = counted.means.numpy()[kept]
        entry["clip_means"] = means.astype(np.float16)
        if np.isinf(entry["clip_means"]).any():  # of a sound clip, which leaving out would move p
            raise ValueError(
                f"{plan.settings['encoder']}: a clip's mean activation of {np.abs(means).max():.3g} is beyond float16, in "
                "which clip_means.npy is written (65,504). Collect with means=False."
            )
    return entry


def collect_study(
    study: str | Path, model: str, task: str, *, device: str | None = None, batch_size: int | None = None
) -> Artifacts:
    """Everything a collecting notebook does: load a study's model and task by name, collect with its settings."""
    loaded = load_study(study)
    settings = loaded.collect.model_dump() | ({} if batch_size is None else {"batch_size": batch_size})
    out_dir = loaded.artifacts_directory(task, model)
    encoder, clips = load_encoder(loaded, model), load_task(loaded, task)
    return collect(encoder, clips, out_dir, device=device, seed=loaded.seed, **settings)
