"""EVAR-format metadata (`file_name,label,split|fold,group`) from a dataset on disk, held against what was published.

Where an EVAR clone already holds a task's metadata, those labels and splits are used as they are and only the groups
are added. Otherwise official splits are read from the dataset; where none exists, a seeded split of ours is drawn and
marked as not comparable in the report beside the CSV (`<name>.json`). The report tells missing files from invalid ones;
neither gets a row. Whole but short clips are kept and named.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from aape.audio import BadClip, opened, read_mono
from aape.cliplist import csv_text, read_clips_csv, seeded_split
from aape.datasets import TASKS
from aape.datasets.base import Rows, Source, evar_metadata
from aape.files import write_json, write_text

CHECKS = ("header", "read", "none")


def look(path: Path, check: str = "header") -> tuple[float, str]:
    """Length of a recording, s, and what is wrong with it ("" where nothing is).

    Args:
        path: the file.
        check: "header" looks at size, header and last sample; "read" decodes the whole file; "none" does nothing.
    """
    if check == "none":
        return float("inf"), ""
    try:
        with opened(path) as file:
            rate, seconds = file.samplerate, file.frames / file.samplerate
        if check == "read":
            read_mono(path, rate, seconds)
        return seconds, ""
    except BadClip as error:
        return 0.0, str(error).removeprefix(f"{path}: ")


@dataclass(frozen=True)
class Report:
    """What a metadata file was made from and what was wrong with the data; lies beside the CSV as JSON.

    Attributes:
        dataset: the task's name. csv: path. root: folder of the audio.
        origin: where labels and splits come from; `seed` where the split is ours.
        comparable: whether results on these splits may be put beside published ones.
        as_published: whether every published count was met.
        counts: found: clips, classes, groups, and clips a split.
        published: the same as published, and `published_source`.
        missing: files that a list names and that are not there.
        invalid: (file, reason) that are there and cannot be used.
        short: (file, length) of whole files shorter than the dataset's clips; kept, and padded when read.
        notes: what a reader of the results must know.
    """

    dataset: str
    csv: str
    root: str
    origin: str
    seed: int | None
    comparable: bool
    as_published: bool
    clip_seconds: float
    counts: Mapping[str, int]
    published: Mapping[str, int]
    published_source: str
    missing: Sequence[str]
    invalid: Sequence[tuple[str, str]]
    short: Sequence[tuple[str, str]]
    notes: Sequence[str]

    def __str__(self) -> str:
        lines = [
            f"{self.dataset}: {self.counts['clips']:,} clips of {self.clip_seconds:g} s -> {self.csv}",
            f"  splits   {self.origin}" + ("" if self.seed is None else f", seed {self.seed}"),
        ]
        if not self.comparable:
            lines.append("  NOT COMPARABLE with published results: the split is ours")
        lines.append(f"  {'count':<10}{'found':>10}{'published':>12}   ({self.published_source})")
        for key in dict.fromkeys([*self.published, *self.counts]):
            found, published = self.counts.get(key, 0), self.published.get(key)
            shown = "-" if published is None else f"{published:,}"
            mark = "" if published in (None, found) else "  differs"
            lines.append(f"  {key:<10}{found:>10,}{shown:>12}{mark}")
        for title, items in (
            ("missing, left out", list(self.missing)),
            ("invalid, left out", [f"{name}: {reason}" for name, reason in self.invalid]),
            ("short, kept", [f"{name}: {length}" for name, length in self.short]),
        ):
            if items:
                lines += [f"  {title}: {len(items):,}", *(f"    {item}" for item in items[:10])]
            if len(items) > 10:
                lines.append(f"    ... all of them in {Path(self.csv).with_suffix('.json').name}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _evar_rows(task: str, path: Path) -> Rows:
    """EVAR's metadata as it is, with groups; what its reader warns of are notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clips, column = read_clips_csv(path)
    if column is None:
        clips = [clip._replace(group=TASKS[task].evar_group(clip.file_name)) for clip in clips]
    return Rows(clips, f"EVAR's {path.name}, used as it is", notes=[str(found.message) for found in caught])


def build_metadata(
    task: str,
    root: str | Path,
    out_csv: str | Path,
    evar: str | Path | None = None,
    *,
    seed: int = 0,
    check: str = "header",
) -> Report:
    """Write a task's metadata and its report.

    Args:
        task: a key of `TASKS`.
        root: the folder that the dataset was unpacked to; `file_name` becomes relative to it, so it is the task's
            `audio_dir` too.
        out_csv: the CSV to write; the report goes beside it with suffix .json.
        evar: a clone of EVAR. None: the environment variable EVAR, where set.
        seed: of a split of ours.
        check: "header" (sizes, headers, last sample), "read" (decode everything), "none" (only whether files exist).

    Raises:
        ValueError: unknown task or check; a list is not what it should be.
        FileNotFoundError: the folder, a list, or every file is missing.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}, expected one of {', '.join(TASKS)}")
    if check not in CHECKS:
        raise ValueError(f"check={check!r}, expected one of {', '.join(CHECKS)}")
    dataset, facts = TASKS[task], TASKS[task].tasks[task]
    clone = Path(evar or os.environ["EVAR"]).expanduser() if evar or os.environ.get("EVAR") else None
    source, out_csv = Source(Path(root).expanduser(), dataset.name, clone), Path(out_csv).expanduser()
    theirs = evar_metadata(task, clone)
    rows = facts.rows(source) if theirs is None else _evar_rows(task, theirs)
    listed, notes = rows.clips, list(rows.notes)
    if rows.shares is not None:
        groups, strata = [str(clip.group) for clip in listed], [clip.split for clip in listed]
        drawn = seeded_split(groups, strata, shares=rows.shares, seed=seed)
        listed = [clip._replace(split=split) for clip, split in zip(listed, drawn, strict=True)]
    found = [(clip, source.find(clip.file_name)) for clip in listed]
    clips = [clip._replace(file_name=path) for clip, path in found if path is not None]
    if not clips:
        expected = listed[0].file_name if listed else f"what `aape download --help {dataset.name}` says"
        raise FileNotFoundError(
            f"no clip of {task} under {source.root}: expected {expected}, found "
            f"{', '.join(source.files[:3]) or 'no audio file'}"
        )
    others = sorted(set(source.files) - {clip.file_name for clip in clips})
    if others:
        notes.append(f"{len(others):,} other audio files lie there and are left out, e.g. {others[0]}")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looked = pool.map(partial(look, check=check), [source.root / clip.file_name for clip in clips])
        shown = tqdm(looked, total=len(clips), desc=f"checking {task}", unit="file", disable=None)
        states = [(clip, *state) for clip, state in zip(clips, shown, strict=True)]
    clips = [clip for clip, _, complaint in states if not complaint]
    counts = {"clips": len(clips), "classes": len({clip.label for clip in clips})}
    if all(clip.group is not None for clip in clips):
        counts["groups"] = len({clip.group for clip in clips})
    counts |= Counter(clip.split for clip in clips)
    report = Report(
        dataset=task,
        csv=str(out_csv),
        root=str(source.root),
        origin=rows.origin,
        seed=None if rows.shares is None else seed,
        comparable=rows.shares is None,
        as_published=all(counts.get(key, 0) == count for key, count in facts.published.items()),
        clip_seconds=facts.clip_seconds,
        counts=counts,
        published=facts.published,
        published_source=facts.source,
        missing=[clip.file_name for clip, path in found if path is None],
        invalid=[(clip.file_name, complaint) for clip, _, complaint in states if complaint],
        short=[(clip.file_name, f"{s:.2f} s") for clip, s, bad in states if not bad and s < dataset.shortest],
        notes=notes,
    )
    out_csv.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_csv, csv_text(clips))
    write_json(out_csv.with_suffix(".json"), asdict(report))
    return report
