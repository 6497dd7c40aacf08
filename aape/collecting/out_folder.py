"""What a pass finds in its folder: its own finished artifacts, its own unfinished work, or somebody else's files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aape.artifacts.belonging import embedded_alike
from aape.artifacts.folder import Artifacts, load_artifacts
from aape.artifacts.manifest import FILES, read_manifest
from aape.collecting.plan import Plan
from aape.files import write_json
from aape.resuming import forget

_SETTINGS = (
    "encoder",
    "identity",
    "dtype",
    "layers",
    "neurons",
    "sample_rate",
    "task",
    "clip_seconds",
    "means",
)
_FINISHED = (*_SETTINGS, "splits")
_UNFINISHED = (*_SETTINGS, "batch_size", "device")
_MARK = ".pass.json"  # settings of a pass that has begun


def partial_of(out_dir: Path) -> Path:
    """Where the results of an unfinished pass are kept."""
    return out_dir / ".partial"


def finished_artifacts(plan: Plan, out_dir: Path) -> Artifacts | None:
    """The artifacts of this plan if they are finished, else None.

    Raises:
        ValueError: the artifacts of another run are there.
    """
    path = out_dir / "manifest.json"
    if not path.exists():
        return None
    _refuse_other(read_manifest(path), plan, out_dir, _FINISHED)
    artifacts = load_artifacts(out_dir)
    different = _different_clips(artifacts, plan)
    if different:
        raise ValueError(_belongs_to_another(out_dir, different))
    return artifacts


def is_open(out_dir: Path) -> bool:
    """Whether a pass has begun in this folder and has not cleaned up."""
    return (out_dir / _MARK).exists()


def open_pass(plan: Plan, out_dir: Path) -> None:
    """Begin a pass, or resume one with the same settings; its clips may have been mended, removed or relabelled.

    Raises:
        ValueError: the folder holds files of another run or of another tool.
    """
    unfinished = out_dir / _MARK
    if unfinished.exists():
        _refuse_other(json.loads(unfinished.read_bytes()), plan, out_dir, _UNFINISHED)
    else:
        _refuse_strangers(out_dir)
    write_json(unfinished, plan.settings)


def close_pass(out_dir: Path) -> None:
    """Remove what was kept for resuming."""
    if is_open(out_dir):
        forget(partial_of(out_dir))
        (out_dir / _MARK).unlink()


def _refuse_strangers(out_dir: Path) -> None:
    strangers = [name for name in (*FILES, "manifest.json") if os.path.lexists(out_dir / name)]
    partial = partial_of(out_dir)
    if partial.is_file() or any(partial.glob("[!.]*")):
        strangers.append(partial.name)
    if strangers:
        raise ValueError(
            f"{out_dir} holds {', '.join(strangers)}, which no pass of this version has written there.\n"
            "Choose another out_dir, or move these files away; nothing was changed."
        )


def _refuse_other(
    found: Mapping[str, Any], plan: Plan, out_dir: Path, names: Sequence[str]
) -> None:
    """Refuse settings that differ from the plan's."""
    differences = []
    for name in names:
        there, here = found.get(name), plan.settings[name]
        if there != here:
            explained = (
                "identity (SHA-256 of weights, window and padding)" if name == "identity" else name
            )
            differences.append(f"{explained} is {there!r} there and {here!r} here")
    if differences:
        raise ValueError(_belongs_to_another(out_dir, "; ".join(differences)))


def _different_clips(artifacts: Artifacts, plan: Plan) -> str | None:
    """How the clips of artifacts differ from those of a plan, or None."""
    if artifacts.manifest["data"] == plan.settings["data"]:
        return None
    there = _clips_by_file(artifacts.manifest["clips"], artifacts.classes)
    here = _clips_by_file(plan.clips, plan.task.classes)
    files = [file for file in {**here, **there} if here.get(file) != there.get(file)]
    if not files:
        return "the clips are in another order"
    about = ", ".join(files[:3])
    count = f"{len(files):,} of {len({**here, **there}):,} clips differ ({about}{' ...' if len(files) > 3 else ''})"
    there_first, here_first = there.get(files[0]), here.get(files[0])
    if there_first is None or here_first is None:
        return f"{count}; {files[0]} is only {'here' if there_first is None else 'there'}"
    column = next(name for name in there_first if there_first[name] != here_first[name])
    return f"{count}; of {files[0]}, {column} is {there_first[column]!r} there and {here_first[column]!r} here"


def _clips_by_file(
    clips: Mapping[str, Sequence[Any]], classes: Sequence[str]
) -> dict[str, dict[str, str]]:
    """File name -> class, split, group and SHA-256."""
    found = {}
    columns = zip(
        clips["file"], clips["label"], clips["split"], clips["group"], clips["sha256"], strict=True
    )
    for file, label, split, group, digest in columns:
        found[file] = {"class": classes[label], "split": split, "group": group, "sha256": digest}
    return found


def _belongs_to_another(out_dir: Path, how: str) -> str:
    return (
        f"{out_dir} belongs to another run: {how}.\nGive this run another out_dir, restore what differs, or delete the "
        "folder; nothing was changed."
    )


def refuse_other_embedding(found: np.ndarray, known: np.ndarray, plan: Plan, out_dir: Path) -> None:
    """Refuse a folder in which the same weights embedded the same clip differently: another front end or pooling.

    Args:
        found: what the encoder makes of the first clip [dim].
        known: what is on disk [dim].
        plan: the pass.
        out_dir: the folder.

    Raises:
        ValueError: they differ.
    """
    if embedded_alike(found, known, plan.settings["dtype"]):
        return
    there, here = np.round(known[:3], 6).tolist(), np.round(found[:3], 6).tolist()
    how = f"the same weights embed {plan.task.files[0]} as {there} ... there and {here} ... here"
    raise ValueError(_belongs_to_another(out_dir, f"{how} (another front end or pooling?)"))
