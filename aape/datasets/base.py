"""What every dataset file says of its dataset, and what its readers get and give. Only the standard library."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from aape.cliplist import Clip, seeded_split

if TYPE_CHECKING:
    from aape.datasets.check import AudioIndex


class Remote(NamedTuple):
    """A file to download: name here, address, checksum ("sha256:..." or "md5:...") where its publisher states one."""

    name: str
    url: str
    checksum: str | None = None
    into: str = ""  # folder below the dataset's


@dataclass(frozen=True)
class Rows:
    """What a task should hold, before anything is looked for on disk.

    Attributes:
        clips: file names as the official list has them, or as they lie below the root.
        origin: where labels and splits come from.
        seed: of the split where it is ours; results on such a split are not comparable with published ones.
        notes: what a reader of the results must know.
        absent: things missing that no file name stands for, e.g. a whole folder.
    """

    clips: list[Clip]
    origin: str
    seed: int | None = None
    notes: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a reader looks.

    Attributes:
        root: the folder that the dataset was unpacked to.
        evar: a clone of EVAR, or None.
        seed: of a split of our own, where no other exists.
    """

    root: Path
    evar: Path | None = None
    seed: int = 0

    @cached_property
    def index(self) -> AudioIndex:
        """Every audio file under the root."""
        from aape.datasets.check import AudioIndex

        return AudioIndex(self.root)

    def companion(self, *names: str) -> Path | None:
        """The first of these files that lies in the root or its `meta` folder."""
        folders = (self.root, self.root / "meta")
        return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


@dataclass(frozen=True)
class TaskFacts:
    """One task of a dataset.

    Attributes:
        rows: reads labels, splits and groups.
        clip_seconds: length of every clip, s; EVAR's, where EVAR has the task.
        published: counts to hold a download against, and `source`, where they stand.
        splits, group: whose splits they are and what a group is, in a few words.
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
        name: what `aape download` calls it, and its folder below `data/`.
        text: its file's docstring: what it is, citation, how to get it, what to know.
        size, licence: as its source states them.
        tasks: by name; none where these are weights.
        remotes: files that may be fetched freely. Archives are unpacked.
        shortest: no clip is shorter, s.
        evar_group: file name -> group, for rows of EVAR's own metadata.
    """

    name: str
    text: str
    size: str
    licence: str
    tasks: Mapping[str, TaskFacts]
    remotes: tuple[Remote, ...] = ()
    shortest: float = 0.0
    evar_group: Callable[[str], str | None] = lambda name: None
    folder: str | None = None

    @property
    def about(self) -> str:
        """The first line of its text."""
        return self.text.strip().splitlines()[0]

    @property
    def steps(self) -> str:
        """How to get the audio, on one line."""
        return f"aape download {self.name}" if self.remotes else f"aape download --help {self.name} says how to get it"

    def page(self) -> str:
        """Everything about it, as text."""
        lines = [self.text.strip(), "", f"Licence: {self.licence}. Size: {self.size}."]
        for remote in self.remotes:
            lines.append(f"{remote.url}\n    {remote.checksum or 'no checksum published: held to the first download'}")
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
    known = dict(datasets) | {task: dataset for dataset in datasets.values() for task in dataset.tasks}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(datasets)}"
        raise ValueError(f"nothing called {name!r} to download; {hint}")
    return known[name]


def of_ours(source: Source, clips: Iterable[Clip], **shares: float) -> list[Clip]:
    """The clips with a seeded split by groups, divided within each label's own stratum where `clip.split` names one."""
    clips = list(clips)
    drawn = seeded_split([str(c.group) for c in clips], [c.split for c in clips], shares=shares, seed=source.seed)
    return [clip._replace(split=split) for clip, split in zip(clips, drawn, strict=True)]


def parent_of(name: str, levels: int = 1) -> str:
    """Name of the folder `levels` above a file."""
    return ("", "", *PurePosixPath(name).parts)[-1 - levels]


def evar_metadata(task: str, evar: str | Path | None) -> Path | None:
    """An EVAR user's own metadata file of a task, or None.

    EVAR's make_metadata.py writes `nspitch.csv.csv`, because it adds the suffix to a name that has one; both names
    are accepted, the right one first.
    """
    folders = [] if evar is None else [Path(evar).expanduser() / f for f in ("evar/metadata", "metadata")]
    names = (f"{task}.csv", f"{task}.csv.csv")
    return next((f / n for f in folders for n in names if (f / n).is_file()), None)


def listing(datasets: Mapping[str, Dataset]) -> str:
    """What can be had, as text."""
    lines = []
    for name, item in datasets.items():
        how = "" if item.remotes else "; not fetched from here"
        lines.append(f"{name:<12} {item.about}\n{'':<12} {item.size}; licence: {item.licence}{how}")
    return "\n".join(lines)


def data_folder() -> Path:
    """Where downloads go: `data/` of the clone, where the study `paper` looks, else of the current folder."""
    root = Path(__file__).resolve().parents[2]
    return (root if (root / "studies").is_dir() else Path.cwd()) / "data"
