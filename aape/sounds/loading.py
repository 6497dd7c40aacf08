"""Tasks from a CSV file, from a folder of sounds, or from a dataset of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pooch

from aape.files import whole_file
from aape.sounds.audio import Header, copies, header_of, seconds_of
from aape.sounds.clips import (
    Clip,
    ClipList,
    alike,
    class_order,
    clips_of_table,
    read_clips_csv,
    warn_of_alike,
)
from aape.sounds.folders import audio_files, clips_of_names, readable_files
from aape.sounds.splitting import SHARES, our_split, split_clips
from aape.sounds.task import Task

_LONGEST = 600.0  # s of a clip; a batch of longer ones does not fit into memory
_USUAL_RATE = 16000  # Hz; what most models of speech and sound expect


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
        csv_path: columns `file_name` and `label`; `split` (train, valid, test) or `fold` (numbers), without which a split
            of ours is drawn; optional `group` (also recognised: `src_file`, `speaker_id`) and `split_note` (a note on the
            split, see `Task`). ESC-50's `filename` and `category` are recognised as such.
        audio_dir: folder that `file_name` is relative to. WAV, FLAC, Ogg, MP3, AU ..., any rate and channel count.
        clip_seconds: length of every clip, s.
        name: short name.
        label: column of the classes, if it has another name.
        group: column of the groups, if it has another name.

    Raises:
        FileNotFoundError: CSV, folder or listed files missing.
        ValueError: columns missing, the same column for both, duplicate rows, empty labels, several labels in a row,
            unknown splits.
    """
    csv_path, audio_dir = Path(csv_path).expanduser(), Path(audio_dir).expanduser()
    if not csv_path.is_file():
        raise FileNotFoundError(
            f"task {name}: no metadata at {csv_path}; Install.md says how to make it"
        )
    listed = read_clips_csv(csv_path, label, group)
    listed = listed._replace(clips=_located(listed.clips, audio_dir, csv_path))
    return _task(listed, name, clip_seconds, audio_dir, csv_path)


def _located(clips: Sequence[Clip], audio_dir: Path, csv_path: Path) -> list[Clip]:
    """The clips with the names of their files as on the disk, which can differ in Unicode form or case."""
    absent = {clip.file_name for clip in clips if not (audio_dir / clip.file_name).is_file()}
    if not absent:
        return list(clips)
    on_disk = {alike(file): file for file in audio_files(audio_dir)}
    unknown = sorted(name for name in absent if alike(name) not in on_disk)
    if unknown:
        raise FileNotFoundError(
            f"{len(unknown)} of the {len(clips)} files in {csv_path} are missing from {audio_dir}, e.g. "
            f"{', '.join(unknown[:5])}. Complete the data, or remove the lines."
        )
    located = []
    for clip in clips:
        name = clip.file_name
        located.append(clip._replace(file_name=on_disk[alike(name)] if name in absent else name))
    return located


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

    Links are followed. A clip that is there again, as a copy or in another container, is left out with a warning.

    Args:
        folder: class folders (`dog/a.wav`), split and class folders (`train/dog/a.wav`), or anything that `pattern`
            describes.
        clip_seconds: length of every clip, s. None: a length that at most a tenth of the clips exceed.
        pattern: of the paths below `folder`, e.g. "{label}_{group}_{take}.wav" or "{split}/**/{group}/{label}-*.flac":
            `{label}`, `{group}`, `{split}`, free fields (`{take}`, `{}`), `*` within a name, `**/` for any folders.
            A field holds as little as it can. A pattern without "/" describes names only, in any folder; one without a
            suffix describes any kind of audio.
        name: short name; None: the folder's.
        split: shares of a split of ours, by whole groups, if the folder has none.
        group: path below `folder` -> group, if no `{group}` says it; None: the clip is its own group.
        seed: of a split of ours.

    Raises:
        FileNotFoundError: no folder, or no audio in it.
        ValueError: files that are not in class folders or do not fit the pattern, or none that can be read; a single class,
            a single group or fewer groups than splits.
    """
    folder = Path(folder).expanduser()
    clips = clips_of_names(readable_files(folder), pattern)
    grouped_by = "pattern" if clips[0].group is not None else None
    if group is not None:
        clips = [
            clip._replace(group=str(group(clip.file_name) or clip.file_name)) for clip in clips
        ]
        grouped_by = "group"
    for field, values in (
        ("class", {clip.label for clip in clips}),
        ("group", {clip.group for clip in clips}),
    ):
        if len(values) == 1 and values != {None}:
            only = f"all {len(clips):,} clips are of one {field}, {values.pop()!r}, expected two or more"
            raise ValueError(f"{folder}: {only}. Give the folder above, or another pattern")
    notes = []
    if grouped_by is None:
        notes.append(
            "groups unknown: clips of one speaker or recording may be in training and test"
        )
    listed = ClipList(clips, grouped_by, notes)
    return _task(
        listed, name or folder.resolve().name, clip_seconds, folder, folder, split or SHARES, seed
    )


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

    Needs `pip install 'aape[datasets]'`. Files are copied as they are into the user's cache folder ($XDG_CACHE_HOME). Columns
    are recognised as in `from_metadata`. Rows without a label, or with the Hub's -1, are left out; a row without a group is
    its own group. If there is only one split and no column `fold`, a split of ours is drawn.

    Args:
        repository: name on the Hub, or a folder.
        clip_seconds: length of every clip, s.
        label: column of the classes.
        group: column of the groups, if it has another name.
        revision: commit to use.
        name: short name; None: the repository's.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: no Audio column, or no such column of labels or groups.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "from_datasets needs the package datasets: pip install 'aape[datasets]'"
        ) from error
    splits: Any = datasets.load_dataset(repository, revision=revision)
    features = next(iter(splits.values())).features
    audio = [column for column, feature in features.items() if isinstance(feature, datasets.Audio)]
    if not audio or not {label, group or label} <= {*features}:
        expected = f"columns {label!r} and {group!r}" if group else f"a column {label!r}"
        raise ValueError(
            f"{repository}: expected {expected} and one of audio, found {', '.join(features)}"
        )
    marks = [repository, revision, *(rows._fingerprint for rows in splits.values())]
    key = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]
    folder = Path(pooch.os_cache("aape")) / "datasets" / key
    table = []
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(rows.cast_column(audio[0], datasets.Audio(decode=False))):
            sound = row[audio[0]]
            path = folder / split / f"{i:06d}{Path(sound['path'] or '.wav').suffix}"
            if not path.is_file():
                with whole_file(path, sync=False) as file:
                    file.write(sound["bytes"] or Path(sound["path"]).read_bytes())
            texts = {column: _text(row[column], feature) for column, feature in features.items()}
            table.append(texts | {"file_name": f"{split}/{path.name}", "split": split})
    clips = pd.DataFrame(table).drop(columns=[audio[0], "filename"], errors="ignore")
    if len(splits) == 1:
        del clips["split"]
    if group is not None:
        clips[group] = clips[group].where(clips[group] != "", clips["file_name"])
    labelled = clips[label] != ""
    if not labelled.all():
        unlabelled = f"{(~labelled).sum():,} row(s) without a value of {label!r} are left out"
        warnings.warn(f"{repository}: {unlabelled}", stacklevel=2)
    listed = clips_of_table(clips[labelled], repository, label, group)
    return _task(listed, name or Path(repository).name, clip_seconds, folder, folder)


def _text(value: Any, feature: Any) -> str:
    """A value of a dataset's column as text; "" if it is missing, which the Hub writes as -1 for classes."""
    names = getattr(feature, "names", None)
    if names is not None and isinstance(value, int):
        return names[value] if value >= 0 else ""
    return str(value) if isinstance(value, (str, int, float)) else ""


def _task(
    listed: ClipList,
    name: str,
    clip_seconds: float | None,
    audio_dir: Path,
    source: Path,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
) -> Task:
    """The clips as a Task: each once, with a split of ours if they have none, and notes on what their headers say."""
    if clip_seconds is not None:
        _check_seconds(name, clip_seconds)
    headers = _headers(audio_dir, listed.clips)
    clips = _each_once(listed.clips, headers, audio_dir)
    notes = [*_header_notes(clips, headers, source), *listed.notes]
    if clip_seconds is None:
        seconds = [header.seconds for header in headers.values()]
        clip_seconds, note = _length(np.array(seconds), source)
        notes.insert(0, note)
    if not all(clip.split for clip in clips):
        clips = split_clips(clips, shares, seed, source)
        notes.append(our_split(seed, whole_groups=listed.group_column is not None))
    files, labels, splits, groups = zip(*clips, strict=True)
    warn_of_alike("classes", labels, source)
    warn_of_alike("groups", filter(None, groups), source)
    classes = class_order(labels, source)
    pairs = set(zip(labels, splits, strict=True))
    gaps = [
        f"{c} in {split}"
        for c in classes
        for split in dict.fromkeys(splits)
        if (c, split) not in pairs
    ]
    if gaps:
        found = f"{len(gaps)} class(es) have no clip in a split: {', '.join(gaps[:5])}"
        warnings.warn(
            f"{source}: {found}. They are counted; no classifier can learn or test them there.",
            stacklevel=3,
        )
    return Task(
        name,
        float(clip_seconds),
        audio_dir,
        source,
        files,
        np.array([classes.index(label) for label in labels], dtype=np.int64),
        tuple(classes),
        splits,
        tuple(str(i) if group is None else group for i, group in enumerate(groups)),
        listed.group_column,
        tuple(notes),
    )


def _check_seconds(name: str, clip_seconds: Any) -> None:
    if not isinstance(clip_seconds, (int, float)) or not 0 < clip_seconds <= _LONGEST:
        expected = f"a number of seconds above 0 and at most {_LONGEST:g}, such as 2.5"
        raise ValueError(f"task {name}: clip_seconds: expected {expected}, found {clip_seconds!r}")


def _headers(audio_dir: Path, clips: Sequence[Clip]) -> dict[str, Header]:
    """Headers of the files that can be read; warns of the others, and raises BadClip if there is no other."""
    files = [clip.file_name for clip in clips]
    with ThreadPoolExecutor(max_workers=8) as pool:
        headers = dict(zip(files, pool.map(header_of, map(audio_dir.joinpath, files)), strict=True))
    readable = {file: header for file, header in headers.items() if header is not None}
    unreadable = [file for file in files if file not in readable]
    if not readable:
        seconds_of(audio_dir / unreadable[0])
    if unreadable:
        found = f"{len(unreadable):,} of {len(files):,} files cannot be read, e.g. {unreadable[0]}; a pass stops there"
        warnings.warn(
            f"{audio_dir}: {found}. Task.check() lists them, Task.without(files) removes them",
            stacklevel=4,
        )
    return readable


def _each_once(clips: Sequence[Clip], headers: Mapping[str, Header], audio_dir: Path) -> list[Clip]:
    """The clips without copies within a class, split and group; warns of these and of other copies."""
    paths = {audio_dir / file: header for file, header in headers.items()}
    clip_of = {audio_dir / clip.file_name: clip for clip in clips}
    dropped: list[str] = []
    crossing: list[list[str]] = []
    for same in copies(paths):
        members = sorted(
            (clip_of[path] for path in same), key=lambda clip: (clip.file_name.count("/"), clip)
        )
        kept: dict[tuple, str] = {}
        for clip in members:
            if kept.setdefault(clip[1:], clip.file_name) != clip.file_name:
                dropped.append(clip.file_name)
        if len(kept) > 1:
            crossing.append(list(kept.values()))
    if dropped:
        found = f"{len(dropped):,} of {len(clips):,} files are copies, with the same samples as another of their class"
        warnings.warn(
            f"{audio_dir}: {found}, split and group, e.g. {min(dropped)}; they are left out",
            stacklevel=4,
        )
    if crossing:
        found = f"{len(crossing):,} clips have copies, with the same samples, in another class, split or group"
        warnings.warn(
            f"{audio_dir}: {found}, e.g. {' and '.join(crossing[0][:2])}. Keep one of each",
            stacklevel=4,
        )
    left_out = {*dropped}
    return [clip for clip in clips if clip.file_name not in left_out]


def _header_notes(clips: Sequence[Clip], headers: Mapping[str, Header], source: Path) -> list[str]:
    """A note on low sample rates; warns if classes can be told by the sample rate of most of their files."""
    rates: dict[str, Counter[int]] = defaultdict(Counter)
    for clip in clips:
        if clip.file_name in headers:
            rates[clip.label][headers[clip.file_name].rate] += 1
    usual = {label: counts.most_common(1)[0][0] for label, counts in rates.items()}
    by_rate = {rate: label for label, rate in usual.items()}
    if len(by_rate) > 1:
        found = ", ".join(f"{rate:,} Hz in {label!r}" for rate, label in sorted(by_rate.items()))
        warnings.warn(
            f"{source}: sample rates differ by class: {found}. Bandwidth can tell such classes apart",
            stacklevel=4,
        )
    lowest = min(header.rate for header in headers.values())
    if lowest >= _USUAL_RATE:
        return []
    return [
        f"files of {lowest:,} Hz hold nothing above {lowest / 2:,.0f} Hz; a model of a higher sample rate expects more"
    ]


def _length(seconds: np.ndarray, source: Path) -> tuple[float, str]:
    """The 90th percentile of the clips' durations, s, and a sentence on it."""
    length = max(0.1, round(float(np.percentile(seconds, 90)), 1))
    if length > 60:
        raise ValueError(
            f"{source}: a tenth of the clips last {length:,.0f} s or more; give clip_seconds"
        )
    cut = (seconds > length + 0.05).mean()
    padding = np.maximum(length - seconds, 0).sum() / (length * len(seconds))
    lasting = f"clips last {seconds.min():.2f} to {seconds.max():,.2f} s (median {np.median(seconds):.2f})"
    return (
        length,
        f"{lasting}: clip_seconds={length:g} cuts {cut:.0%} of them, and {padding:.0%} of the result is padding",
    )
