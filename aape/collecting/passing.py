"""The collecting pass: every clip through the encoder once, counts and embeddings to disk as they come.

Each batch becomes one entry of a cache in `<out_dir>/.partial/`; what is there is not computed again, so a run that was
killed goes on where it stopped. When all batches are there they are streamed, in order, into the artifacts of
`aape.artifacts.folder`; these are moved to their place when all are whole, and the manifest comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts.belonging import other_encoder
from aape.artifacts.folder import ArrayWriter, Artifacts, load_artifacts, save_tensors
from aape.artifacts.manifest import ARRAYS, FILES, read_manifest, write_manifest
from aape.collecting.counting import BatchCounts, count_batch
from aape.collecting.plan import ENCODER, IDENTITY, RUN, Plan, naming_space, plan_pass, say_what_comes
from aape.encoders.encoder import Encoder, choose_device, full_precision
from aape.files import Cache, folder_lock, sha256_of, sync_folder, whole_file, write_text
from aape.sounds.task import BadClip, Task, prefetched
from aape.study.loading import load_encoder, load_task
from aape.study.study import Study, load_study

_PACKAGES = ("torch", "timm", "transformers", "numpy", "nnAudio", "soundfile", "soxr")


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
        batch_size: clips at once; 32. Another batch size may move a count where |activation| <= 1e-5.
        device: "cpu", "cuda", "cuda:1", "mps"; CUDA if there.
        splits: which splits or folds are heard; all.
        layers: names of the layers that are counted; all. Of some, the artifacts count from 0: what is silenced by
            them wants `encoder.with_layers(layers)`.
        keep_clips: how many clips' own counts and means are written, a random choice by `seed`; all. over_zero.pt
            counts every clip either way.
        means: write clip_means.npy, 2 bytes for each clip and neuron; never of an encoder with `preactivation`.
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
    plan = plan_pass(
        encoder, task, splits=splits, layers=layers, keep_clips=keep_clips, seed=seed, on_bad_clip=on_bad_clip,
        batch_size=32 if batch_size is None else batch_size, device=on.type,
        means=means and not encoder.preactivation,  # they would pass for those of the neurons
    )  # fmt: skip
    if _is_whole(plan, out_dir) and not (out_dir / ".partial").exists():
        return load_artifacts(out_dir)
    progress = Progress(plan, out_dir / ".partial")
    first = rank == 0  # it holds the lock for all processes of the group
    with naming_space(plan, out_dir), folder_lock(out_dir) if first else contextlib.nullcontext():
        _barrier(world)
        if not _is_whole(plan, out_dir):  # another process may have been faster
            if first:
                _open(plan, progress, out_dir)
            _barrier(world)
            source = _sibling(plan, out_dir)
            if source is None:
                _hear(encoder, plan, progress, on, rank, world)
            _barrier(world)
            if first:
                facts = _facts_of(encoder) if source is None else _take_over(plan, source, progress)
                merge(plan, progress, facts, out_dir)
        if first:
            progress.remove()
        _barrier(world)
    return load_artifacts(out_dir)


def collect_study(
    study: str | Path | Study, model: str, task: str, *, device: str | None = None, batch_size: int | None = None
) -> Artifacts:
    """Everything a collecting notebook does: load a study's model and task by name, collect with its settings."""
    loaded = load_study(study)
    settings = loaded.collect.model_dump() | ({} if batch_size is None else {"batch_size": batch_size})
    out_dir = loaded.artifacts_directory(task, model)
    encoder, clips = load_encoder(loaded, model), load_task(loaded, task)
    return collect(encoder, clips, out_dir, device=device, seed=loaded.seed, **settings)


class Progress:
    """What a pass has computed so far: an entry for each batch and, where not every clip's own counts are kept, sums.

    An entry holds, of the batch's clips, `embeddings`, `tokens`, `padding_tokens`, `unmarked` (whether there is padding
    of which nobody knows the tokens) and `complaints` ("" of those that are good), and, of those that are kept, the
    arrays of the artifacts, padding_counts only where there are any.

    A process's sums are active tokens by class [classes, layers, neurons], `of` the batches with these contents (0 where
    a batch is not in them), with so many of them `less` some clip; all are saved as one, after the batches themselves, so
    no batch is counted twice or lost.

    Batches and sums are of the bytes that the files held: what a mended file is in is computed anew, the rest stays.
    """

    def __init__(self, plan: Plan, partial: Path) -> None:
        self.folder, self._cache, self._contents = partial, Cache(partial), plan.contents
        # the probe is equal to rounding only; data are in the contents
        apart = ("probe", "data", "on_bad_clip")
        self._key = {k: v for k, v in plan.settings.items() if k not in apart} | {"entries": 4}
        self._whole = plan.settings["on_bad_clip"] == "stop"  # what was computed without a bad clip will not do
        self._sizes = {"sums": (len(plan.task.classes), *plan.shape), "of": self._contents.shape, "less": ()}

    def get(self, batch: int) -> dict[str, np.ndarray] | None:
        """The entry of a batch, or None where it is not there, damaged or not what is to be computed."""
        rows = self._cache.get(_entry(batch), self._key | {"contents": int(self._contents[batch])})
        return None if rows is None or (self._whole and rows["complaints"].any()) else rows

    def put(self, batch: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the entry of a batch."""
        self._cache.put(_entry(batch), self._key | {"contents": int(self._contents[batch])}, arrays)

    def remove(self) -> None:
        """Remove the folder if it is ours; last the settings, by which it is known as that."""
        settings = self._cache.path("settings")
        if settings.exists():
            for path in {*self.folder.iterdir()} - {settings}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            settings.unlink()
            with contextlib.suppress(OSError):  # a link to a faster disk
                self.folder.rmdir()

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """What all batches left, in order.

        Raises:
            OSError: one that was whole when the pass began is not any more; the next call computes it anew.
        """
        for number in range(len(self._contents)):
            if (rows := self.get(number)) is None:
                raise OSError(f"batch {number} in {self.folder} was damaged just now; call again to compute it anew")
            yield rows

    def sums(self, rank: int | str = "*") -> dict[str, np.ndarray]:
        """Sums of a process, or of all."""
        total = {name: np.zeros(size, np.int64) for name, size in self._sizes.items()}
        for path in self.folder.glob(f"sums-{rank}.npz"):
            for name, values in (self._saved(path) or {}).items():
                total[name] += values
        return total

    def put_sums(self, rank: int, sums: Mapping[str, np.ndarray]) -> None:
        """Keep the sums of a process."""
        self._cache.put(f"sums-{rank}", self._key, sums)

    def drop_old_sums(self) -> None:
        """Remove sums that can no longer be used: should a file come back as it was, batches would count twice."""
        for path in self.folder.glob("sums-*.npz"):
            if self._saved(path) is None:
                path.unlink()

    def _saved(self, path: Path) -> dict[str, np.ndarray] | None:
        saved = self._cache.get(path.stem, self._key)
        if saved is None or saved["of"].shape != self._contents.shape or (self._whole and saved["less"]):
            return None
        return saved if ((saved["of"] == 0) | (saved["of"] == self._contents)).all() else None


def _entry(batch: int) -> str:
    return f"batch-{batch:06d}"


def add_by_class(sums: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
    """Add counts [clips, layers, neurons] to sums [classes, layers, neurons]."""
    for label in np.unique(labels):  # np.add.at takes three times as long
        sums[label] += counts[labels == label].sum(axis=0, dtype=np.int64)


# --- whose folder it is -----------------------------------------------------------------------------------------------


def _barrier(world: int) -> None:
    if world > 1:
        torch.distributed.barrier()


def _is_whole(plan: Plan, out_dir: Path) -> bool:
    """Whether the artifacts of this plan are there. Raises ValueError where another run's are."""
    if there := (out_dir / "manifest.json").exists():
        _refuse_other(read_manifest(out_dir / "manifest.json"), plan, out_dir, IDENTITY)
    return there


def _open(plan: Plan, progress: Progress, out_dir: Path) -> None:
    """Adopt what a killed run left, or begin: afterwards `.partial` holds our settings, and nobody else's files."""
    partial, cache = progress.folder, Cache(progress.folder)
    settings = cache.get("settings", "of the pass")
    if settings is not None:
        _refuse_other(json.loads(settings["json"].tobytes()), plan, out_dir, IDENTITY + RUN)
    strangers = [name for name in FILES if os.path.lexists(out_dir / name)]
    if (partial / "final").is_dir():  # a run was killed that moved them to their place
        strangers = []
    occupied = (partial.exists() and not partial.is_dir()) or any(partial.glob("[!.]*"))
    if occupied and not cache.path("settings").exists():  # the first file that a pass writes there
        strangers.append(partial.name)
    if strangers:
        raise ValueError(
            f"{out_dir} holds {', '.join(strangers)} that no pass of this version has written there (artifacts of "
            "another tool?).\nChoose another out_dir, or move them away; nothing was changed."
        )
    clips = {name: column for name, column in plan.clips.items() if name != "sha256"}  # files may be mended
    text = json.dumps({**plan.settings, "classes": plan.task.classes, "clips": clips}).encode()
    cache.put("settings", "of the pass", {"json": np.frombuffer(text, np.uint8)})
    progress.drop_old_sums()


def _refuse_other(theirs: Mapping[str, Any], plan: Plan, out_dir: Path, keys: Sequence[str]) -> None:
    """Refuse to go on with, or to return, what was made with other settings or clips."""
    ours = plan.settings
    plain = [k for k in keys if k not in ("identity", "probe", "data") and theirs.get(k) != ours[k]]
    sides = [f"{k} is {theirs.get(k)!r} there and {ours[k]!r} here" for k in plain]
    sides += filter(None, [_other_clip(theirs, plan), other_encoder(theirs, ours["identity"], ours["probe"])])
    if sides:
        raise ValueError(
            f"{out_dir} belongs to another run: {'; '.join(sides)}.\nGive this run another out_dir, restore what differs, "
            "or delete the folder; nothing was changed."
        )


def _other_clip(theirs: Mapping[str, Any], plan: Plan) -> str | None:
    """How the clips of a manifest, or of what an unfinished pass left, differ from a plan's, or None."""
    if theirs["data"] == plan.settings["data"] or "clips" not in theirs:  # left by an earlier version, and not used
        return None
    columns = [name for name in plan.clips if name in theirs["clips"]]

    def by_file(clips: Mapping[str, list[Any]], classes: Sequence[str]) -> dict[str, list[Any]]:
        named = {**clips, "label": [classes[label] for label in clips["label"]]}
        return {file: rest for file, *rest in zip(*(named[column] for column in columns), strict=True)}

    there, here = by_file(theirs["clips"], theirs["classes"]), by_file(plan.clips, plan.task.classes)
    skipped = {clip["file"] for clip in theirs.get("skipped", ())}
    for file in {**here, **there}:
        if there.get(file) == here.get(file) or file in skipped:
            continue
        if file not in there or file not in here:
            return f"clip {file} is only {'there' if file in there else 'here'}"
        triples = zip(columns[1:], there[file], here[file], strict=True)
        return next(f"clip {file}: {column} is {a!r} there and {b!r} here" for column, a, b in triples if a != b)
    if "sha256" in columns or [*there] != [*here]:
        return f"the clips are in another order, or {min(skipped, default='one')} was left out there"
    return None


# --- what the encoder makes of the clips ------------------------------------------------------------------------------


def _hear(encoder: Encoder, plan: Plan, progress: Progress, device: torch.device, rank: int, world: int) -> None:
    """Every batch of this process that is not on disk yet through the encoder."""
    task, layers = plan.task, plan.settings["layers"]
    sums, own = progress.sums(), progress.sums(rank)
    missing = (sums["of"] == 0) & (not plan.kept.all())  # in the sums over clips whose own counts are not kept
    todo = [b for b in range(rank, len(plan.batches), world) if missing[b] or progress.get(b) is None]
    clips = [plan.batches[b] for b in todo]
    if rank == 0 and todo:
        say_what_comes(plan, encoder, progress.folder)
    parent = os.getppid()
    total, quiet = sum(map(len, clips)), None if rank == 0 and todo else True
    with full_precision(), tqdm(total=total, unit="clip", desc=f"{encoder.name} on {task.name}", disable=quiet) as bar:
        waves = prefetched(task, clips, encoder.sample_rate)
        for b, mine, (wave, valid, unreadable) in zip(todo, clips, waves, strict=True):
            if world > 1 and os.getppid() != parent:
                raise SystemExit("the process that started this one is gone")
            on_device = torch.from_numpy(wave)
            if device.type == "cuda":  # copied while it still works
                on_device = on_device.pin_memory()
            on_device = on_device.to(device, non_blocking=True)
            counted = count_batch(encoder, on_device, torch.from_numpy(valid), layers, plan.settings["neurons"])
            complaints = _complaints(plan, mine, counted, unreadable)
            good = complaints == ""
            if plan.settings["on_bad_clip"] == "stop" and not good.all():
                if missing.any():
                    progress.put_sums(rank, own)
                raise BadClip(
                    f"{complaints[~good][0]} ({(~good).sum()} such clip(s) in this batch.) What was computed is kept: "
                    "mend the file and call again, or collect with on_bad_clip='skip'."
                )
            unmarked = (valid < wave.shape[1]) & (encoder.padding_masks is None)
            about = {"complaints": complaints, "unmarked": unmarked}
            progress.put(b, about | _arrays(plan, counted, plan.kept[mine], good))
            if missing[b]:
                add_by_class(own["sums"], task.labels[mine[good]], counted.counts.numpy()[good])
                own["of"][b] = plan.contents[b]
                own["less"] += not good.all()
                if np.count_nonzero(own["of"]) % 32 == 0:
                    progress.put_sums(rank, own)
            bar.update(len(mine))
    if missing.any():
        progress.put_sums(rank, own)


def _complaints(plan: Plan, clips: np.ndarray, counted: BatchCounts, unreadable: Mapping[int, str]) -> np.ndarray:
    """What is wrong with each clip of a batch, str [batch]; "" of those that can be used."""
    # Infinities and NaN would count as inactive.
    fine = torch.cat([counted.means.isfinite().all(dim=2), counted.embeddings.isfinite().all(dim=1)[:, None]], dim=1)
    places = [*(f"layer {name}" for name in plan.settings["layers"]), "the embedding"]
    found = {}
    for row in (~fine.all(dim=1)).nonzero()[:, 0].tolist():
        where = f"values of it that are not finite, in {places[int(fine[row].int().argmin())]}."
        found[row] = f"{plan.task.files[clips[row]]}: {plan.settings['encoder']} makes {where}"
    return np.array([(found | dict(unreadable)).get(row, "") for row in range(len(clips))])


def _arrays(plan: Plan, counted: BatchCounts, kept: np.ndarray, good: np.ndarray) -> dict[str, np.ndarray]:
    """What was counted in a batch as `Progress` keeps it; `kept` and `good` are masks [batch]."""
    dtype = np.min_scalar_type(int(counted.tokens.max()))  # the smallest unsigned integer that holds any count
    arrays = {name: getattr(counted, name).numpy() for name in ("embeddings", "tokens", "padding_tokens")}
    arrays["clip_counts"] = counted.counts.numpy()[kept].astype(dtype)
    if counted.padding is not None:
        arrays["padding_counts"] = counted.padding.numpy()[kept].astype(dtype)
    if plan.settings["means"]:
        arrays["clip_means"] = counted.means.numpy()[kept].astype(np.float16)
        if np.isinf(arrays["clip_means"][good[kept]]).any():  # of a sound clip, which leaving out would move p
            raise ValueError(
                f"{plan.settings['encoder']}: a clip's mean activation of {counted.means[good].abs().max():.3g} is beyond "
                "float16, in which clip_means.npy is written (65,504). Collect with means=False."
            )
    return arrays


def _facts_of(encoder: Encoder) -> dict[str, Any]:
    """What the manifest says of a pass besides its settings: provenance, and what the arithmetic ran on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads()} | gpu
    return {"weights": dict(encoder.weights), "hardware": hardware, "versions": versions}


# --- what another task's pass has heard -------------------------------------------------------------------------------


def _sibling(plan: Plan, out_dir: Path) -> Artifacts | None:
    """Artifacts of another task beside `out_dir` for which the same encoder has heard all of our clips."""
    ours = plan.settings
    same = [k for k in (*ENCODER, "clip_seconds", "means", "device", "batch_size") if k != "probe"]
    for path in sorted(out_dir.parent.glob("*/manifest.json")) if plan.kept.all() else ():
        with contextlib.suppress(ValueError, FileNotFoundError):  # not ours, damaged, or not whole
            theirs = read_manifest(path)
            other = other_encoder(theirs, ours["identity"], ours["probe"]) or any(theirs[k] != ours[k] for k in same)
            if other or theirs["task"] == plan.task.name or "kept_clips" in theirs:
                continue
            if Counter(plan.digests) <= Counter(theirs["clips"]["sha256"]):
                return load_artifacts(path.parent, verify=True)
    return None


def _take_over(plan: Plan, source: Artifacts, progress: Progress) -> dict[str, Any]:
    """Fill the progress from a pass over the same audio for another task, one to one; returns what `_facts_of` would."""
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
        "complaints": np.full(len(source.tokens), ""),
        "clip_counts": source.counts,
    }
    columns |= {"clip_means": source.means} if plan.settings["means"] else {}
    columns |= {"padding_counts": source.padding_counts} if padding == "counted" else {}
    for number, batch in enumerate(plan.batches):
        progress.put(number, {name: values[places[batch]] for name, values in columns.items()})
    facts = {k: source.manifest[k] for k in ("weights", "hardware", "versions")}
    return facts | {"pass_of": f"{source.path.name} (task {source.manifest['task']})"}


# --- the artifacts ----------------------------------------------------------------------------------------------------


def merge(plan: Plan, progress: Progress, facts: Mapping[str, Any], out_dir: Path) -> None:
    """Stream the batches, in order, into the artifacts; move them to their place when all are whole, the manifest last.

    Raises:
        ValueError: a class of which no clip could be read; a file in `out_dir` that is not of this pass.
        OSError: as `Progress.batches`.
    """
    task = plan.task
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}  # of a clip's row in each array, and its type
    for rows in progress.batches():
        shapes |= {name: (values.shape[1:], values.dtype) for name, values in rows.items()}
        for name in ("tokens", "padding_tokens", "unmarked", "complaints"):
            columns[name].append(rows[name])
    known = {name: np.concatenate(parts) for name, parts in columns.items()}
    good = known["complaints"] == ""
    clips, labels, splits = np.flatnonzero(good), task.labels[good], np.asarray(task.splits)[good]
    if lost := set(range(len(task.classes))) - set(labels.tolist()):
        name, first = task.classes[min(lost)], known["complaints"][~good][0]
        raise ValueError(f"class {name!r} of {task.name} has no clip that can be used; the first complaint: {first}")
    order = sorted(set(splits.tolist()), key=lambda s: ("train valid test".find(s), s))
    # file -> what it holds, of which clips that is there, and of which it is written
    files = {f"{name}.npy": (name, plan.kept, good & plan.kept) for name in shapes if f"{name}.npy" in ARRAYS}
    names = (*files, "over_zero.pt", "classes.txt", "features.pt", "gts.pt")
    in_split = {s: good & (np.asarray(task.splits) == s) for s in order}
    embedded = {s: f"embeddings-{i}.npy" for i, s in enumerate(order)}
    files |= {embedded[s]: ("embeddings", np.ones_like(good), chosen) for s, chosen in in_split.items()}
    sums = np.zeros((len(task.classes), *plan.shape), dtype=np.int64)
    final = progress.folder / "final"
    final.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        writers = {}
        for file, (name, _, chosen) in files.items():
            shape, dtype = shapes[name]
            opened = stack.enter_context(whole_file(final / file))
            writers[file] = ArrayWriter(opened, (int(chosen.sum()), *shape), dtype)
        for mine, rows in zip(plan.batches, progress.batches(), strict=True):
            rows.setdefault("padding_counts", np.zeros_like(rows["clip_counts"]))
            for file, (name, there, chosen) in files.items():
                writers[file].append(rows[name][chosen[mine][there[mine]]])
            if plan.kept.all():
                add_by_class(sums, task.labels[mine[good[mine]]], rows["clip_counts"][good[mine]])
    if not plan.kept.all():
        sums = progress.sums()["sums"]
    tokens = np.bincount(labels, weights=known["tokens"][good], minlength=len(task.classes))
    probabilities = sums.transpose(1, 2, 0) / tokens  # [layers, neurons, classes]
    save_tensors(final / "over_zero.pt", torch.from_numpy(probabilities.astype(np.float32)))
    write_text(final / "classes.txt", "".join(f"{c}\n" for c in task.classes))
    # mapped as private: nothing is held, nothing is written
    features = {s: torch.from_numpy(np.load(final / file, mmap_mode="c")) for s, file in embedded.items()}
    save_tensors(final / "features.pt", features)
    save_tensors(final / "gts.pt", {s: torch.from_numpy(task.labels[chosen]) for s, chosen in in_split.items()})
    unmarked = "unknown" if known["unmarked"][good].any() else "none"
    manifest = {
        "format": 3,
        "classes": list(task.classes),
        "group_column": task.group_column,
        "clips": {
            **{name: [column[clip] for clip in clips] for name, column in plan.clips.items()},
            "tokens": known["tokens"][good].tolist(),
            "padding_tokens": known["padding_tokens"][good].tolist(),
        },
        "skipped": [{"file": task.files[i], "reason": str(known["complaints"][i])} for i in np.flatnonzero(~good)],
        "notes": list(task.notes),
        "cut": plan.cut,
        "padding": "counted" if "padding_counts" in shapes else unmarked,
        "checksums": {name: sha256_of(final / name) for name in names},
        **plan.settings,
        **facts,
    }
    if not plan.kept.all():
        manifest["kept_clips"] = np.flatnonzero(plan.kept[good]).tolist()
    for name, digest in manifest["checksums"].items():  # of a run that was killed here, the same lies there
        if (out_dir / name).exists() and sha256_of(out_dir / name) != digest:
            raise ValueError(
                f"{out_dir / name} appeared during the pass and is not of it.\nMove it away and call again."
            )
    for name in names:
        os.replace(final / name, out_dir / name)
    sync_folder(out_dir)
    write_manifest(out_dir / "manifest.json", manifest)
