"""EVAR-format metadata (`file_name,label,split|fold,group`) of a dataset on disk, compared with what was published.

If a clone of EVAR holds a task's metadata, its labels and splits are used as they are and only the groups are added.
Otherwise official splits are read from the dataset. If there are none, a seeded split of ours is drawn and marked as not
comparable in the report next to the CSV (`<name>.json`). The report distinguishes missing files from invalid ones;
neither gets a row.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.contrib.concurrent import thread_map

from aape.datasets import TASKS
from aape.datasets.base import Rows, Source, evar_metadata
from aape.files import write_json, write_text
from aape.sounds.audio import BadClip, opened
from aape.sounds.clips import Clip, csv_text, read_clips_csv
from aape.sounds.splitting import our_split, split_clips
from aape.suggest import nearest


def complaint_of(path: Path) -> str:
    """What is wrong with a recording, by its header and its last sample; "" if nothing is."""
    try:
        with opened(path):
            return ""
    except BadClip as error:
        return str(error).removeprefix(f"{path}: ")


def shown(report: Mapping[str, Any]) -> str:
    """A report of `build_metadata` as text."""
    seed = "" if report["seed"] is None else f", seed {report['seed']}"
    warning = "" if report["comparable"] else ": NOT COMPARABLE with published results"
    counts = pd.DataFrame({"found": report["counts"], "published": report["published"]})
    lines = [
        f"{report['dataset']}: clips of {report['clip_seconds']:g} s -> {report['csv']}, with a report as .json next to it",
        f"splits: {report['origin']}{seed}{warning}",
        f"published: {report['published_source']}",
        counts.to_string(na_rep="-", float_format="{:,.0f}".format),
    ]
    for key in ("missing", "invalid"):
        if report[key]:
            lines.append(f"{key}, left out: {len(report[key]):,}, e.g. {report[key][:5]}")
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _evar_rows(task: str, path: Path) -> Rows:
    """EVAR's metadata as it is, with groups."""
    listed = read_clips_csv(path)
    clips = listed.clips
    if listed.group_column is None:
        clips = [clip._replace(group=TASKS[task].evar_group(clip.file_name)) for clip in clips]
    return Rows(clips, f"EVAR's {path.name}, used as it is", split_note="; ".join(listed.notes))


def build_metadata(
    task: str,
    root: str | Path,
    out_csv: str | Path,
    evar: str | Path | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a task's metadata and its report, which says what the clips were made from and what was wrong with them.

    Args:
        task: a key of `TASKS`.
        root: the folder that the dataset was unpacked to; `file_name` becomes relative to it, so it is the task's
            `audio_dir` too.
        out_csv: the CSV to write; the report gets the suffix .json. An earlier CSV of ours is overwritten, never read.
        evar: a clone of EVAR. None: the environment variable EVAR, if set.
        seed: of a split of ours.

    Returns:
        The report: dataset (the task's name), csv, root; origin (of labels and splits), seed (if the split is ours),
        comparable (whether results can be compared with published ones); counts (clips, classes, groups, clips per split)
        and published, published_source, as_published (whether every count was met); missing (files that a list names and
        that are not there), invalid ((file, reason), there and unusable); notes (what a reader of results must know).

    Raises:
        ValueError: unknown task; an invalid list; `out_csv` is EVAR's own list.
        FileNotFoundError: the folder, a list, or every file is missing.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; {nearest(task, TASKS)}")
    dataset = TASKS[task]
    facts = dataset.tasks[task]
    evar = evar or os.environ.get("EVAR")
    clone = Path(evar).expanduser() if evar else None
    source = Source(Path(root).expanduser(), dataset.name, clone)
    out_csv = Path(out_csv).expanduser()
    evar_csv = evar_metadata(task, clone)
    if evar_csv is not None and evar_csv.resolve() == out_csv.resolve():
        raise ValueError(f"{out_csv} is EVAR's own list, which is read here; write to another file")
    rows = facts.rows(source) if evar_csv is None else _evar_rows(task, evar_csv)
    clips, missing = _located(rows, source)
    if not clips:
        expected = (
            rows.clips[0].file_name
            if rows.clips
            else f"what `aape download --help {dataset.name}` says"
        )
        raise FileNotFoundError(
            f"no clip of {task} under {source.root}: expected {expected}, found {source.files[:3]}"
        )
    split_note = rows.split_note
    if rows.shares is not None:
        clips = split_clips(clips, rows.shares, seed, source.root, [clip.split for clip in clips])
        split_note = our_split(seed)
    notes = list(rows.notes)
    if rows.split_note:
        notes.append(rows.split_note)
    others = sorted({*source.files} - {clip.file_name for clip in clips})
    if others:
        notes.append(
            f"{len(others):,} other audio files are in the folder and are left out, e.g. {others[0]}"
        )
    paths = [source.root / clip.file_name for clip in clips]
    complaints = thread_map(
        complaint_of, paths, max_workers=8, desc=f"checking {task}", unit="file", disable=None
    )
    checked = list(zip(clips, complaints, strict=True))
    valid = [clip for clip, complaint in checked if not complaint]
    counts = _counts(valid)
    report = {
        "dataset": task,
        "csv": str(out_csv),
        "root": str(source.root),
        "origin": rows.origin,
        "seed": None if rows.shares is None else seed,
        "comparable": not split_note,
        "as_published": all(counts.get(key, 0) == count for key, count in facts.published.items()),
        "clip_seconds": facts.clip_seconds,
        "counts": counts,
        "published": facts.published,
        "published_source": facts.source,
        "missing": missing,
        "invalid": [(clip.file_name, complaint) for clip, complaint in checked if complaint],
        "notes": notes,
    }
    out_csv.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_csv, csv_text(valid, split_note))
    write_json(out_csv.with_suffix(".json"), report)
    return report


def _located(rows: Rows, source: Source) -> tuple[list[Clip], list[str]]:
    """The clips with the paths of their files, and the names of those that are missing."""
    clips, missing = [], []
    for clip in rows.clips:
        path = source.find(clip.file_name)
        if path is None:
            missing.append(clip.file_name)
        else:
            clips.append(clip._replace(file_name=path))
    return clips, missing


def _counts(clips: Sequence[Clip]) -> dict[str, int]:
    """Numbers of clips, classes, groups (if known), and clips of each split."""
    counts = {"clips": len(clips), "classes": len({clip.label for clip in clips})}
    if all(clip.group is not None for clip in clips):
        counts["groups"] = len({clip.group for clip in clips})
    return counts | Counter(clip.split for clip in clips)
