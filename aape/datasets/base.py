"""What every dataset file states about its dataset, and what the readers of datasets get and return."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from aape.sounds.clips import Clip, read_table
from aape.sounds.folders import SUFFIXES, audio_files, preference
from aape.suggest import nearest


class Remote(NamedTuple):
    """A file to download: name here, address, checksum ("sha256:..." or "md5:...") where its publisher states one."""

    name: str
    url: str
    checksum: str | None = None


class Rows(NamedTuple):
    """What a task should hold, before anything is looked for on disk.

    Attributes:
        clips: file names as the official list has them, or as they lie below the root.
        origin: where labels and splits come from.
        shares: of a seeded split of ours by groups, within each stratum that `clip.split` names; results on such a split
            are not comparable with published ones. None: the clips have their splits.
        notes: what a reader of the results must know.
        split_note: that the splits of a list are not the published ones; "" if they are.
    """

    clips: list[Clip]
    origin: str
    shares: Mapping[str, float] | None = None
    notes: Sequence[str] = ()
    split_note: str = ""


@dataclass(frozen=True)
class Source:
    """The files that a reader reads.

    Attributes:
        root: the folder that the dataset was unpacked to.
        dataset: its name. evar: a clone of EVAR, or None.
    """

    root: Path
    dataset: str
    evar: Path | None = None

    @cached_property
    def files(self) -> list[str]:
        """Every audio file under the root, relative to it, the better containers first."""
        return sorted(audio_files(self.root), key=preference)

    @cached_property
    def _endings(self) -> dict[tuple[str, ...], str]:
        """Files by the last parts of their path, at every depth."""
        endings: dict[tuple[str, ...], str] = {}
        for file in self.files:
            for parts in (PurePosixPath(file).parts, _parts(file)):
                for start in range(len(parts)):
                    endings.setdefault(parts[start:], file)
        return endings

    def find(self, name: str) -> str | None:
        """The file whose path ends in `name`: exactly, else in any case and container. None: there is no such file."""
        return self._endings.get(PurePosixPath(name).parts) or self._endings.get(_parts(name))

    def clips(self, pattern: str) -> list[Clip]:
        """The files whose path without suffix ends as a regular expression says, each clip in one container only.

        Args:
            pattern: has a group named `label`, and can have `group` and `split`.
        """
        regex = re.compile(f"(?:.*/)?({pattern})", re.IGNORECASE)
        clips: dict[str, Clip] = {}
        for file in self.files:
            match = regex.fullmatch(os.path.splitext(file)[0])
            if match is not None:
                fields = match.groupdict()
                clips.setdefault(
                    match[1],
                    Clip(file, fields["label"], fields.get("split", ""), fields.get("group")),
                )
        return sorted(clips.values())

    def companion(self, name: str) -> Path:
        """A file in the root, in `meta/`, or one folder further down. Raises FileNotFoundError if there is none."""
        for folder in ("", "meta/", "*/", "*/meta/"):
            paths = sorted(self.root.glob(folder + name))
            if paths:
                return paths[0]
        raise FileNotFoundError(
            f"no {name} in {self.root} or its meta/; `aape download --help {self.dataset}` says where it comes from"
        )


def _parts(name: str) -> tuple[str, ...]:
    """Parts of a path, without case and audio suffix (`jazz.00054` keeps its number)."""
    path = PurePosixPath(name.casefold())
    return path.with_suffix("").parts if path.suffix in SUFFIXES else path.parts


@dataclass(frozen=True)
class TaskFacts:
    """One task of a dataset.

    Attributes:
        rows: reads labels, splits and groups.
        clip_seconds: length of every clip, s; EVAR's, if EVAR has the task.
        published: counts to compare a download with, and `source`, which states them.
        splits, group: where the splits come from and what a group is, in a few words.
    """

    rows: Callable[[Source], Rows]
    clip_seconds: float
    published: Mapping[str, int]
    source: str
    splits: str
    group: str


@dataclass(frozen=True)
class Dataset:
    """A dataset, or weights that are fetched the same way.

    Attributes:
        name: what `aape download` calls it, and its folder below `data/` unless `folder` names another.
        text: its file's docstring: what it is, citation, how to get it, what to know.
        size, licence: as its source states them.
        tasks: by name; none if these are weights.
        remotes: files that may be fetched freely. Archives are unpacked.
        evar_group: file name -> group, for rows of EVAR's own metadata.
    """

    name: str
    text: str
    size: str
    licence: str
    tasks: Mapping[str, TaskFacts]
    remotes: Sequence[Remote] = ()
    evar_group: Callable[[str], str | None] = lambda name: None
    folder: str | None = None

    def page(self) -> str:
        """Everything about it, as text."""
        lines = [self.text.strip(), "", f"Licence: {self.licence}. Size: {self.size}."]
        for remote in self.remotes:
            lines.append(f"{remote.url}\n    {remote.checksum or 'no checksum published'}")
        for name, task in self.tasks.items():
            counts = ", ".join(f"{key} {value:,}" for key, value in task.published.items())
            lines += [
                "",
                f"Task {name}: clips of {task.clip_seconds:g} s; splits: {task.splits}; group: {task.group}.",
                f"Published ({task.source}): {counts}.",
                f"    aape metadata {name} data/{self.name} data/metadata/{name}.csv",
            ]
        return "\n".join(lines)


def find(name: str, datasets: Mapping[str, Dataset]) -> Dataset:
    """A dataset by its own name or a task's. Raises ValueError with the nearest name."""
    known = dict(datasets)
    for dataset in datasets.values():
        known |= dict.fromkeys(dataset.tasks, dataset)
    if name not in known:
        raise ValueError(f"nothing called {name!r} to download; {nearest(name, known)}")
    return known[name]


def labelled(clips: Sequence[Clip], path: Path, group: str, label: str) -> list[Clip]:
    """The clips with the labels that a table (columns `group` and `label`) has for their groups.

    Raises:
        ValueError: a group without a line.
    """
    table = read_table(path, group, label)
    label_of = dict(zip(table[group].str.strip(), table[label].str.strip(), strict=True))
    unknown = sorted({str(clip.group) for clip in clips} - {*label_of})
    if unknown:
        raise ValueError(
            f"{path} has no line for {len(unknown)} of the {group}s of the clips, e.g. {unknown[0]}"
        )
    return [clip._replace(label=label_of[str(clip.group)]) for clip in clips]


def parent_of(name: str, levels: int = 1) -> str:
    """Name of the folder `levels` above a file."""
    return ("", "", *PurePosixPath(name).parts)[-1 - levels]


def evar_metadata(task: str, evar: Path | None) -> Path | None:
    """EVAR's own metadata of a task, or None; a file that `aape metadata` wrote there, with its report, is not EVAR's."""
    if evar is None:
        return None
    path = evar / "evar" / "metadata" / f"{task}.csv"
    written_by_us = path.with_suffix(".json").is_file()
    return path if path.is_file() and not written_by_us else None


def listing(datasets: Mapping[str, Dataset]) -> str:
    """What can be had, as text."""
    lines = []
    for name, item in datasets.items():
        how = "" if item.remotes else "; not fetched from here"
        lines.append(
            f"{name:<12} {item.text.splitlines()[0]}\n{'':<12} {item.size}; licence: {item.licence}{how}"
        )
    return "\n".join(lines)
