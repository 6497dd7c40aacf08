"""EVAR-format metadata (`file_name,label,split|fold,group`) from a dataset on disk, held against what was published.

Where an EVAR clone already holds a task's metadata, those labels and splits are used as they are and only the groups
are added. Otherwise official splits are read from the dataset; where none exists, a seeded split of ours is drawn and
marked as not comparable in the report beside the CSV (`<name>.json`). The report tells missing files from invalid ones;
neither gets a row. Whole but short clips are kept and named.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile
from tqdm.auto import tqdm

from aape.audio import SUFFIXES, audio_files, damage, size_of
from aape.cliplist import GROUP_COLUMNS, Clip, csv_text, read_table
from aape.datasets import TASKS
from aape.datasets.base import Rows, Source, evar_metadata
from aape.files import write_json, write_text

CHECKS = ("header", "read", "none")


class AudioIndex:
    """Every audio file under a folder, found again whatever the case of its name, its container and the folders above."""

    def __init__(self, root: Path) -> None:
        self.files = tuple(audio_files(root))
        self._by_ending = cache(self._endings)

    def _endings(self, depth: int) -> dict[tuple[str, ...], list[str]]:
        """Files by the last `depth` parts of their path."""
        found = defaultdict(list)
        for name in self.files:
            found[_ending(name, depth)].append(name)
        return found

    def find(self, name: str) -> str | None:
        """The file whose path ends in what a list calls `name`, relative to the root.

        Another case (`.WAV`), another container (`.flac`, `.ogg`) and folders above count as the same clip; the file
        that is most like the name is taken.
        """
        depth = len(PurePosixPath(name).parts)
        suffix = PurePosixPath(name).suffix.lower()

        def unlikeness(found: str) -> tuple[bool, bool, int, int, str]:
            theirs = PurePosixPath(found).suffix.lower()
            return not found.endswith(name), theirs != suffix, SUFFIXES.index(theirs), found.count("/"), found

        return min(self._by_ending(depth).get(_ending(name, depth), ()), key=unlikeness, default=None)


def _ending(name: str, depth: int) -> tuple[str, ...]:
    """Last parts of a path, without case and audio suffix (`jazz.00054` keeps its number)."""
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return tuple(part.casefold() for part in (*path.parts[:-1], stem)[-depth:])


def why_invalid(path: Path, *, check: str = "header") -> str | None:
    """What is wrong with an audio file, or None.

    Args:
        path: the file; it must exist.
        check: "header" looks at sizes, the header and the last sample; "read" decodes the whole file.
    """
    if path.stat().st_size == 0:
        return "empty file (0 bytes)"
    try:
        with soundfile.SoundFile(path) as file:
            frames = file.frames
            complaint = damage(file)
            if complaint:
                return complaint
            if check == "read":
                wave = file.read(dtype="float32", always_2d=True)
                if len(wave) < frames:
                    return f"truncated: {len(wave):,} of {frames:,} samples can be decoded"
                if not np.isfinite(wave).all():
                    return "samples that are no numbers (NaN or infinite)"
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        return f"not readable as audio ({size_of(path)}): {error}"
    return None


def find_invalid(root: Path, names: Iterable[str], *, check: str, title: str) -> list[tuple[str, str]]:
    """(file, what is wrong) of the files that cannot be used, in the given order."""
    names = list(names)
    if check == "none":
        return []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(lambda n: why_invalid(root / n, check=check), names)
        shown = tqdm(reasons, total=len(names), desc=f"checking {title}", unit="file", disable=None)
        return [(name, reason) for name, reason in zip(names, shown, strict=True) if reason]


def find_short(root: Path, names: Iterable[str], *, shortest: float) -> list[tuple[str, str]]:
    """(file, its length) of whole files that are shorter than this dataset's clips are said to be."""
    lengths = ((name, soundfile.info(root / name).duration) for name in names)
    return [(name, f"{seconds:.2f} s") for name, seconds in lengths if seconds < shortest]


@dataclass(frozen=True)
class Report:
    """What a metadata file was made from and what was wrong with the data; lies beside the CSV as JSON.

    Attributes:
        dataset: the task's name. csv: path. root: folder of the audio.
        origin: where labels and splits come from; `seed` where the split is ours.
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
    clip_seconds: float
    counts: dict[str, int]
    published: dict[str, int]
    published_source: str
    missing: tuple[str, ...]
    invalid: tuple[tuple[str, str], ...]
    short: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether results on these splits may be put beside published ones."""
        return self.seed is None

    @property
    def as_published(self) -> bool:
        """Whether every published count was met."""
        return all(self.counts.get(k, 0) == v for k, v in self.published.items())

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
    """EVAR's metadata as it is, with groups. Rows without a split are left out, as EVAR's loader leaves them out."""
    table = read_table(path)
    notes = []
    if path.name.endswith(".csv.csv"):
        notes.append(f"{path.name}: EVAR's make_metadata.py adds .csv twice; read as it is")
    column = "split" if "split" in table.columns else "fold"
    splits = table.need("file_name", "label", column)[2]
    without = sum(not s.strip() for s in splits)
    if without:
        notes.append(f"{without} rows of {path.name} have no split and are left out, as EVAR does")
        table = table.where([bool(s.strip()) for s in splits])
    names, labels, splits = table.need("file_name", "label", column)
    if column == "fold":
        splits = [f"fold{fold}" for fold in splits]
    known = next((c for c in GROUP_COLUMNS if c in table.columns), None)
    groups = table.columns[known] if known else map(TASKS[task].evar_group, names)
    clips = [Clip(*row) for row in zip(names, labels, splits, groups, strict=True)]
    return Rows(clips, f"EVAR's {path.name}, used as it is", notes=tuple(notes))


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
    source = Source(Path(root).expanduser(), clone, seed)
    theirs = evar_metadata(task, source.evar)
    rows = facts.rows(source) if theirs is None else _evar_rows(task, theirs)
    found = [(clip, source.index.find(clip.file_name)) for clip in rows.clips]
    missing = [clip.file_name for clip, path in found if path is None]
    clips = [clip._replace(file_name=path) for clip, path in found if path is not None]
    if not clips:
        raise FileNotFoundError(
            f"none of the {len(missing):,} files of {task} is under {source.root}, e.g. {missing[0]}. "
            f"Found there: {', '.join(source.index.files[:3]) or 'no audio file'}"
        )
    invalid = find_invalid(source.root, [clip.file_name for clip in clips], check=check, title=task)
    lost = {name for name, _ in invalid}
    clips = [clip for clip in clips if clip.file_name not in lost]
    names = [clip.file_name for clip in clips]
    counts = {"clips": len(clips), "classes": len({clip.label for clip in clips})}
    if all(clip.group is not None for clip in clips):
        counts["groups"] = len({clip.group for clip in clips})
    report = Report(
        dataset=task,
        csv=str(out_csv),
        root=str(source.root),
        origin=rows.origin,
        seed=rows.seed,
        clip_seconds=facts.clip_seconds,
        counts=counts | Counter(clip.split for clip in clips),
        published=dict(facts.published),
        published_source=facts.source,
        missing=(*missing, *rows.absent),
        invalid=tuple(invalid),
        short=tuple(find_short(source.root, names, shortest=dataset.shortest) if check != "none" else ()),
        notes=rows.notes,
    )
    out_csv = Path(out_csv).expanduser()
    out_csv.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_csv, csv_text(clips))
    facts_beside = {"comparable": report.comparable, "as_published": report.as_published}
    write_json(out_csv.with_suffix(".json"), asdict(report) | facts_beside)
    return report
