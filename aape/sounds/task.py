"""A task: labelled clips with splits and groups, from a list of clips or a folder of audio."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aape.display import Displayed
from aape.files import whole_file, write_text
from aape.sounds import clips as cliplist
from aape.sounds.audio import BadClip, cache_dir, read_mono, seconds_of
from aape.sounds.clips import Clip, csv_text, our_split, refuse_one_column, split_clips, warn_of_groups

__all__ = ["BadClip", "Task", "from_datasets", "from_folder", "from_metadata"]

_LONGEST = 600.0  # s of a clip; a batch of longer ones does not fit into memory
_SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}


@dataclass(frozen=True, eq=False, repr=False)
class Task(Displayed):
    """What an encoder listens to.

    Attributes:
        name: short name, e.g. "esc50".
        clip_seconds: every clip is cut or zero-padded to this, s.
        audio_dir: folder that `files` are relative to.
        metadata: the CSV file or folder this came from.
        files: file name of each clip, in the metadata's order.
        labels: class index of each clip, int64 [clips].
        classes: class names; sorted labels, numbers as numbers (EVAR).
        splits: of each clip: train, valid, test, or fold1, fold2, ...
        groups: what each clip came from (recording, speaker, ...): clips of one group are not independent.
        group_column: where the groups come from; None: unknown, every clip is its own group.
        notes: what a reader of results must know, e.g. that the split is ours.
    """

    name: str
    clip_seconds: float
    audio_dir: Path
    metadata: Path
    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    group_column: str | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def samples(self, sample_rate: int) -> int:
        """Length of a clip at a sample rate (EVAR truncates the product)."""
        return int(sample_rate * self.clip_seconds)

    def read(self, index: int, sample_rate: int) -> tuple[np.ndarray, int]:
        """One clip as (wave float32 [samples], number of samples before the zero padding).

        Mono by averaging channels; resampled with soxr HQ where the file's rate differs (kept in a cache); cut at the
        end or padded with zeros, as EVAR's deterministic pass does.

        Raises:
            BadClip: unreadable, cut off, zero-length, or not finite.
        """
        length = self.samples(sample_rate)
        path = self.audio_dir / self.files[index]
        wave = read_mono(path, sample_rate, self.clip_seconds)
        valid = min(len(wave), length)
        if not valid:
            raise BadClip(f"{path}: no sample of it is left at {sample_rate} Hz. Replace it, or remove it")
        out = np.zeros(length, dtype=np.float32)
        out[:valid] = wave[:valid]
        return out, valid

    def csv(self) -> str:
        """The clips as CSV text, as `from_metadata` reads it."""
        groups = [None] * len(self) if self.group_column is None else self.groups
        names = [self.classes[c] for c in self.labels]
        ours = next((note for note in self.notes if note.startswith("the split is ours")), "")
        return csv_text(map(Clip, self.files, names, self.splits, groups), ours)

    def _facts(self) -> dict[str, str]:
        more = f", ... ({len(self.classes)})" if len(self.classes) > 10 else ""
        grouped = f"{len(set(self.groups)):,} ({self.group_column})"
        facts = {
            "clips": f"{len(self):,} of {self.clip_seconds:g} s in {self.audio_dir}",
            "classes": ", ".join(self.classes[:10]) + more,
            "splits": ", ".join(f"{split} {count:,}" for split, count in Counter(self.splits).items()),
            "groups": "unknown" if self.group_column is None else grouped,
        }
        return facts | {f"note {i}": note for i, note in enumerate(self.notes, 1)}

    def _title(self) -> str:
        return f"Task {self.name!r}"


def read_clips(task: Task, indices: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Waves [batch, samples], valid samples [batch], and the complaint about each clip that is bad (valid = 0)."""
    waves = np.zeros((len(indices), task.samples(sample_rate)), dtype=np.float32)
    valid = np.zeros(len(indices), dtype=np.int64)
    complaints: dict[int, str] = {}
    for row, index in enumerate(indices):
        try:
            waves[row], valid[row] = task.read(int(index), sample_rate)
        except BadClip as error:
            complaints[row] = str(error)
    return waves, valid, complaints


def prefetched(
    task: Task, batches: Sequence[np.ndarray], sample_rate: int
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """`read_clips` of each batch of indices, decoded in background threads while the model works."""
    pool = ThreadPoolExecutor(max_workers=2)
    waiting: deque[Future] = deque()
    try:
        for indices in batches:
            waiting.append(pool.submit(read_clips, task, indices, sample_rate))
            if len(waiting) > 3:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_all(task: Task, batches: Sequence[np.ndarray], sample_rate: int) -> Iterator[torch.Tensor]:
    """Waves [batch, samples] of each batch of clips, read ahead. Raises BadClip for one that can no longer be read."""
    for wave, _, complaints in prefetched(task, batches, sample_rate):
        if complaints:
            raise BadClip(f"{next(iter(complaints.values()))} What was computed is kept: mend the file, call again.")
        yield torch.from_numpy(wave)


def from_metadata(
    csv_path: str | Path,
    audio_dir: str | Path,
    *,
    clip_seconds: float,
    name: str,
    label: str = "label",
    group: str | None = None,
) -> Task:
    """A task from EVAR's metadata format, or from ESC-50's own `meta/esc50.csv`, and a folder of audio.

    Args:
        csv_path: columns `file_name`, `label`, and `split` (train, valid, test) or `fold` (numbers); optional `group`
            (also recognised: `src_file`, `speaker_id`) and `split_note` (a note on the split, see `Task`). ESC-50's
            `filename`, `category`, `fold`, `src_file` are recognised as such.
        audio_dir: folder that `file_name` is relative to. WAV, FLAC, Ogg, MP3, AU ..., any rate and channel count.
        clip_seconds: length of every clip, s.
        name: short name.
        label, group: columns of the classes and the groups, where they are called otherwise.

    Raises:
        FileNotFoundError: CSV, folder or listed files missing.
        ValueError: columns missing, one column for both, duplicate rows, empty labels, several labels in a row, unknown splits.
    """
    csv_path, audio_dir = Path(csv_path).expanduser(), Path(audio_dir).expanduser()
    if not csv_path.is_file():
        raise FileNotFoundError(f"task {name}: no metadata at {csv_path}; Install.md says how to make it")
    clips, column, notes = cliplist.read_clips_csv(csv_path, label, group)
    if absent := [clip.file_name for clip in clips if not (audio_dir / clip.file_name).is_file()]:
        found = f"{len(absent)} of the {len(clips)} files in {csv_path} are missing from {audio_dir}"
        raise FileNotFoundError(f"{found}, e.g. {', '.join(absent[:5])}. Complete the data, or take out the lines.")
    return _task(clips, name, clip_seconds, audio_dir, csv_path, column, notes)


def _task(
    clips: Sequence[Clip],
    name: str,
    clip_seconds: float,
    audio_dir: Path,
    source: Path,
    grouped_by: str | None,
    notes: Sequence[str] = (),
) -> Task:
    """The clips as a Task. Raises ValueError; warns where a class has no clip in a split."""
    if not 0 < clip_seconds <= _LONGEST:
        raise ValueError(f"task {name}: clip_seconds must be between 0 and {_LONGEST:g}, found {clip_seconds:g}")
    classes = cliplist.class_order((clip.label for clip in clips), source)
    files, labels, splits, groups = zip(*clips, strict=True)
    pairs = set(zip(labels, splits, strict=True))
    gaps = [f"{c} in {s}" for c in classes for s in dict.fromkeys(splits) if (c, s) not in pairs]
    if gaps:
        found = f"{len(gaps)} class(es) have no clip in a split: {', '.join(gaps[:5])}"
        warnings.warn(f"{source}: {found}. They are counted; no classifier can learn or test them there.", stacklevel=3)
    index = {label: i for i, label in enumerate(classes)}
    indices = np.array([index[label] for label in labels], dtype=np.int64)
    groups = tuple(str(i) if group is None else group for i, group in enumerate(groups))
    clips_of = files, indices, tuple(classes), splits, groups
    return Task(name, float(clip_seconds), audio_dir, source, *clips_of, grouped_by, tuple(notes))


def from_folder(
    folder: str | Path,
    *,
    clip_seconds: float | None = None,
    pattern: str | None = None,
    name: str | None = None,
    split: Mapping[str, float] | None = None,
    group: Callable[[str], Any] | None = None,
    seed: int = 0,
) -> Task:
    """A task from a folder of sounds whose folders or names say what they are.

    Links are followed. What lies there once more, by a link or in another container, is left out with a warning.

    Args:
        folder: class folders (`dog/a.wav`), split and class folders (`train/dog/a.wav`), or anything that `pattern`
            describes.
        clip_seconds: length of every clip, s. None: the median, which leaves least to cut and to pad.
        pattern: of the paths below `folder`, e.g. "{label}_{group}_{take}.wav" or "{split}/**/{group}/{label}-*.flac":
            `{label}`, `{group}`, `{split}`, free fields (`{take}`, `{}`), `*` within a name, `**/` for any folders.
            A field holds as little as it can. Without "/" it is held against names alone, in whatever folder;
            without a suffix any kind of audio fits.
        name: short name; None: the folder's.
        split: shares of a split of ours, by whole groups, where the folder has none.
        group: path below `folder` -> group, where no `{group}` says it; None: the clip is one by itself.
        seed: of a split of ours.

    Raises:
        FileNotFoundError: no folder, or no audio in it.
        ValueError: files that are no class folders or do not fit the pattern, or none that can be read; a single class, a
            single group or fewer groups than splits.
    """
    folder = Path(folder).expanduser()
    files = cliplist.audio_files(folder)
    cliplist.refuse_or_name_others(folder, files)
    clips = cliplist.clips_of_names(files, pattern)
    if group is not None:
        clips = [clip._replace(group=_group(group(clip.file_name), clip.file_name)) for clip in clips]
    clips = cliplist.each_once(folder, clips)
    for field, (first, *others) in (("class", {c.label for c in clips}), ("group", {c.group for c in clips})):
        if not others and first is not None:
            alone = f"all {len(clips):,} clips are of one {field}, {first!r}, expected two or more"
            raise ValueError(f"{folder}: {alone}. Give the folder above, or another pattern")
    clip_seconds, note = _length(_seconds(folder, clips), clip_seconds, folder)
    notes, grouped = [note], clips[0].group is not None
    if not grouped:
        notes.append("groups unknown: clips of one speaker or recording may stand in training and test")
    if not all(clip.split for clip in clips):
        clips = split_clips(clips, _SHARES if split is None else split, seed, folder)
        notes.append(our_split(seed, whole_groups=grouped))
    by = None if not grouped else "pattern" if group is None else "group"
    return _task(clips, name or folder.resolve().name, clip_seconds, folder, folder, by, notes)


def _seconds(folder: Path, clips: Sequence[Clip]) -> np.ndarray:
    """Durations of the clips that can be read, s; warns of the others, which the pass meets. Raises BadClip without any."""
    seconds, complaints = [], []
    for clip in clips:
        try:
            seconds.append(seconds_of(folder / clip.file_name))
        except BadClip as error:
            complaints.append(error)
    if not seconds:
        raise complaints[0]
    if complaints:
        found = f"{len(complaints):,} of {len(clips):,} files cannot be read; `collect` stops there, or leaves them out"
        warnings.warn(f"{folder}: {found} with on_bad_clip='skip'. The first, {complaints[0]}", stacklevel=3)
    return np.array(seconds)


def _length(seconds: np.ndarray, wanted: float | None, source: Path) -> tuple[float, str]:
    """The clips' length and a sentence on it; warns where much is cut or padded.

    The median leaves least: it minimises the sum of |seconds - length|, what is cut plus what is padded.
    """
    median = max(0.1, round(float(np.median(seconds)), 1))
    if wanted is None and median > 60:
        raise ValueError(f"{source}: the median clip lasts {median:,.0f} s; say clip_seconds, of which each is cut to")
    length = median if wanted is None else wanted
    cut, padded = (seconds > length + 0.05).mean(), np.maximum(length - seconds, 0).sum() / (length * len(seconds))
    heard = np.minimum(seconds, length).sum() / seconds.sum()
    note = (
        f"clips last {seconds.min():.2f} to {seconds.max():,.2f} s (median {np.median(seconds):.2f}): {length:g} s cuts "
        f"{cut:.0%} of them and hears {heard:.0%} of the sound, {padded:.0%} is padding"
    )
    if padded > 0.3 or heard < 0.5:
        warnings.warn(f"{source}: {note}; clip_seconds={median:g} leaves least to cut and to pad", stacklevel=3)
    return length, note


def _group(found: Any, file: str) -> str:
    """A group in words; a clip of none is one by itself."""
    return file if found in (None, "") else str(found)


def from_datasets(
    repository: str,
    *,
    clip_seconds: float,
    label: str = "label",
    group: str | None = None,
    revision: str | None = None,
    name: str | None = None,
) -> Task:
    """A task from a dataset of the Hugging Face Hub, or a folder that `datasets` reads, with an Audio column.

    Needs `pip install 'aape[datasets]'`. Files are put into the cache as they are and decoded by soundfile. Rows without
    a label, or with the Hub's -1, are left out; a row without a group is one by itself. Where only one split
    is left, ours is drawn.

    Args:
        repository: name on the Hub, or a folder. clip_seconds: length of every clip, s.
        label, group: columns of the classes and the groups. revision: commit to hold to.
        name: short name; None: the repository's.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: no Audio column, or no such column of labels or groups.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("from_datasets needs the package datasets: pip install 'aape[datasets]'") from error
    loaded: Any = datasets.load_dataset(repository, revision=revision)
    columns = next(iter(loaded.values())).features
    audio = [column for column, feature in columns.items() if isinstance(feature, datasets.Audio)]
    if not audio or not {label, group or label} <= {*columns}:
        wanted = f"columns {label!r} and {group!r}" if group else f"a column {label!r}"
        raise ValueError(f"{repository}: expected {wanted} and one of audio, found {', '.join(columns)}")
    refuse_one_column(repository, label, group)
    if group is None:
        warn_of_groups(repository, [column for column in columns if column != label])
    names = getattr(columns[label], "names", None)
    marks = [repository, revision, *(rows._fingerprint for rows in loaded.values())]
    folder = cache_dir() / "datasets" / hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]
    clips, unlabelled = [], 0
    for split, rows in loaded.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(rows.cast_column(audio[0], datasets.Audio(decode=False))):
            sound, found = row[audio[0]], row[label]
            if found in (None, "") or (names is not None and found < 0):  # the Hub writes -1 where labels are withheld
                unlabelled += 1
                continue
            path = folder / split / f"{i:06d}{Path(sound['path'] or '.wav').suffix}"
            if not path.is_file():
                with whole_file(path, sync=False) as file:
                    file.write(sound["bytes"] or Path(sound["path"]).read_bytes())
            named, below = str(found if names is None else names[found]), f"{split}/{path.name}"
            clips.append(Clip(below, named, split, None if group is None else _group(row[group], below)))
    if unlabelled:
        warnings.warn(f"{repository}: {unlabelled:,} row(s) without a value of {label!r} are left out", stacklevel=2)
    note = ""
    if len({clip.split for clip in clips}) == 1:
        clips, note = split_clips(clips, _SHARES, 0, repository), our_split(0, whole_groups=group is not None)
    write_text(folder / "clips.csv", csv_text(clips, note))
    return from_metadata(folder / "clips.csv", folder, clip_seconds=clip_seconds, name=name or Path(repository).name)
