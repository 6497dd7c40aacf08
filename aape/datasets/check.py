"""EVAR-format metadata (`file_name,label,split|fold,group`) from a dataset on disk, held against what was published.

Where an EVAR clone already holds a task's metadata, those labels and splits are used as they are and only the groups
are added. Otherwise official splits are read from the dataset; where none exists, a seeded split of ours is drawn and
marked as not comparable in the report beside the CSV (`<name>.json`). The report tells missing files from invalid ones;
neither gets a row.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.contrib.concurrent import thread_map

from aape.datasets import TASKS
from aape.datasets.base import Rows, Source, evar_metadata
from aape.files import write_json, write_text
from aape.sounds.audio import BadClip, opened
from aape.sounds.clips import csv_text, our_split, read_clips_csv, split_clips
from aape.suggest import nearest


def complaint_of(path: Path) -> str:
    """What is wrong with a recording, by its header and its last sample; "" where nothing is."""
    try:
        with opened(path):
            return ""
    except BadClip as error:
        return str(error).removeprefix(f"{path}: ")


def shown(report: Mapping[str, Any]) -> str:
    """A report of `build_metadata` as text."""
    seed = "" if report["seed"] is None else f", seed {report['seed']}: NOT COMPARABLE with published results"
    counts = pd.DataFrame({"found": report["counts"], "published": report["published"]})
    lines = [
        f"{report['dataset']}: clips of {report['clip_seconds']:g} s -> {report['csv']}, with a report as .json beside it",
        f"splits: {report['origin']}{seed}",
        f"published: {report['published_source']}",
        counts.to_string(na_rep="-", float_format="{:,.0f}".format),
    ]
    for key in ("missing", "invalid"):
        lines += [f"{key}, left out: {len(report[key]):,}, e.g. {report[key][:5]}"] if report[key] else []
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])


def _evar_rows(task: str, path: Path) -> Rows:
    """EVAR's metadata as it is, with groups."""
    clips, column, _ = read_clips_csv(path)
    if column is None:
        clips = [clip._replace(group=TASKS[task].evar_group(clip.file_name)) for clip in clips]
    return Rows(clips, f"EVAR's {path.name}, used as it is")


def build_metadata(
    task: str, root: str | Path, out_csv: str | Path, evar: str | Path | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Write a task's metadata and its report, which says what the clips were made from and what was wrong with them.

    Args:
        task: a key of `TASKS`.
        root: the folder that the dataset was unpacked to; `file_name` becomes relative to it, so it is the task's
            `audio_dir` too.
        out_csv: the CSV to write; the report goes beside it with suffix .json.
        evar: a clone of EVAR. None: the environment variable EVAR, where set.
        seed: of a split of ours.

    Returns:
        The report: dataset (the task's name), csv, root; origin (where labels and splits come from), seed (where the
        split is ours), comparable (whether results may be put beside published ones); counts (clips, classes, groups,
        clips a split) and published, published_source, as_published (whether every count was met); missing (files that
        a list names and that are not there), invalid ((file, reason), there and of no use); notes (what a reader of
        results must know).

    Raises:
        ValueError: unknown task; a list is not what it should be.
        FileNotFoundError: the folder, a list, or every file is missing.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; {nearest(task, TASKS)}")
    dataset, facts = TASKS[task], TASKS[task].tasks[task]
    evar = evar or os.environ.get("EVAR")
    clone = Path(evar).expanduser() if evar else None
    source, out_csv = Source(Path(root).expanduser(), dataset.name, clone), Path(out_csv).expanduser()
    theirs = evar_metadata(task, clone)
    rows = facts.rows(source) if theirs is None else _evar_rows(task, theirs)
    notes = list(rows.notes)
    found = [(clip, source.find(clip.file_name)) for clip in rows.clips]
    clips = [clip._replace(file_name=path) for clip, path in found if path is not None]
    if not clips:
        expected = rows.clips[0].file_name if rows.clips else f"what `aape download --help {dataset.name}` says"
        raise FileNotFoundError(f"no clip of {task} under {source.root}: expected {expected}, found {source.files[:3]}")
    if rows.shares is not None:
        clips = split_clips(clips, rows.shares, seed, source.root, [clip.split for clip in clips])
    others = sorted(set(source.files) - {clip.file_name for clip in clips})
    if others:
        notes.append(f"{len(others):,} other audio files lie there and are left out, e.g. {others[0]}")
    paths = [source.root / clip.file_name for clip in clips]
    looked = thread_map(complaint_of, paths, max_workers=8, desc=f"checking {task}", unit="file", disable=None)
    states = list(zip(clips, looked, strict=True))
    clips = [clip for clip, complaint in states if not complaint]
    counts = {"clips": len(clips), "classes": len({clip.label for clip in clips})}
    if all(clip.group is not None for clip in clips):
        counts["groups"] = len({clip.group for clip in clips})
    counts |= Counter(clip.split for clip in clips)
    report = {
        "dataset": task,
        "csv": str(out_csv),
        "root": str(source.root),
        "origin": rows.origin,
        "seed": None if rows.shares is None else seed,
        "comparable": rows.shares is None,
        "as_published": all(counts.get(key, 0) == count for key, count in facts.published.items()),
        "clip_seconds": facts.clip_seconds,
        "counts": counts,
        "published": facts.published,
        "published_source": facts.source,
        "missing": [clip.file_name for clip, path in found if path is None],
        "invalid": [(clip.file_name, complaint) for clip, complaint in states if complaint],
        "notes": notes,
    }
    out_csv.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_csv, csv_text(clips, "" if rows.shares is None else our_split(seed)))
    write_json(out_csv.with_suffix(".json"), report)
    return report
