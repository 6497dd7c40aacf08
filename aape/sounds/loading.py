"""Tasks from a CSV file, from a folder of sounds, or from a dataset of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pooch

from aape.files import whole_file
from aape.sounds.audio import Header, header_of, seconds_of
from aape.sounds.clips import Clip, ClipList, class_order, clips_of_table, read_clips_csv
from aape.sounds.folders import clips_of_names, readable_files
from aape.sounds.splitting import SHARES, our_split, split_clips
from aape.sounds.task import Task

_LONGEST = 600.0  # s of a clip; a batch of longer ones does not fit into memory


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
        raise FileNotFoundError(f"task {name}: no metadata at {csv_path}; Install.md says how to make it")
    listed = read_clips_csv(csv_path, label, group)
    absent = [clip.file_name for clip in listed.clips if not (audio_dir / clip.file_name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of the {len(listed.clips)} files in {csv_path} are missing from {audio_dir}, e.g. "
            f"{', '.join(absent[:5])}. Complete the data, or remove the lines."
        )
    return _task(listed, name, clip_seconds, audio_dir, csv_path)


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

    Links are followed. A clip that is there again in another container is left out with a warning.

    Args:
        folder: class folders (`dog/a.wav`), split and class folders (`train/dog/a.wav`), or anything that `pattern`
            describes.
        clip_seconds: length of every clip, s. None: the median.
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
        clips = [clip._replace(group=str(group(clip.file_name) or clip.file_name)) for clip in clips]
        grouped_by = "group"
    for field, values in (("class", {clip.label for clip in clips}), ("group", {clip.group for clip in clips})):
        if len(values) == 1 and values != {None}:
            only = f"all {len(clips):,} clips are of one {field}, {values.pop()!r}, expected two or more"
            raise ValueError(f"{folder}: {only}. Give the folder above, or another pattern")
    clip_seconds, note = _length(folder, clips, clip_seconds)
    notes = [note]
    if grouped_by is None:
        notes.append("groups unknown: clips of one speaker or recording may be in training and test")
    listed = ClipList(clips, grouped_by, notes)
    return _task(listed, name or folder.resolve().name, clip_seconds, folder, folder, split or SHARES, seed)


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
        raise ImportError("from_datasets needs the package datasets: pip install 'aape[datasets]'") from error
    splits: Any = datasets.load_dataset(repository, revision=revision)
    features = next(iter(splits.values())).features
    audio = [column for column, feature in features.items() if isinstance(feature, datasets.Audio)]
    if not audio or not {label, group or label} <= {*features}:
        expected = f"columns {label!r} and {group!r}" if group else f"a column {label!r}"
        raise ValueError(f"{repository}: expected {expected} and one of audio, found {', '.join(features)}")
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
    clip_seconds: float,
    audio_dir: Path,
    source: Path,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
) -> Task:
    """The clips as a Task, with a split of ours if they have none; warns if a class has no clip in a split."""
    if not 0 < clip_seconds <= _LONGEST:
        raise ValueError(f"task {name}: clip_seconds must be between 0 and {_LONGEST:g}, found {clip_seconds:g}")
    clips, grouped_by, notes = listed
    if not all(clip.split for clip in clips):
        clips = split_clips(clips, shares, seed, source)
        notes = [*notes, our_split(seed, whole_groups=grouped_by is not None)]
    files, labels, splits, groups = zip(*clips, strict=True)
    classes = class_order(labels, source)
    pairs = set(zip(labels, splits, strict=True))
    gaps = [f"{c} in {split}" for c in classes for split in dict.fromkeys(splits) if (c, split) not in pairs]
    if gaps:
        found = f"{len(gaps)} class(es) have no clip in a split: {', '.join(gaps[:5])}"
        warnings.warn(f"{source}: {found}. They are counted; no classifier can learn or test them there.", stacklevel=3)
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
        grouped_by,
        tuple(notes),
    )


def _length(folder: Path, clips: Sequence[Clip], wanted: float | None) -> tuple[float, str]:
    """The length of the clips and a sentence on it."""
    headers = _headers(folder, clips)
    seconds = np.array([header.samples / header.rate for header in headers])
    median = max(0.1, round(float(np.median(seconds)), 1))
    if wanted is None and median > 60:
        raise ValueError(
            f"{folder}: the median clip lasts {median:,.0f} s; give clip_seconds, to which each clip is cut"
        )
    length = median if wanted is None else wanted
    cut = (seconds > length + 0.05).mean()
    padded = np.maximum(length - seconds, 0).sum() / (length * len(seconds))
    kept = np.minimum(seconds, length).sum() / seconds.sum()
    note = (
        f"clips last {seconds.min():.2f} to {seconds.max():,.2f} s (median {np.median(seconds):.2f}): {length:g} s cuts "
        f"{cut:.0%} of them and keeps {kept:.0%} of the sound, {padded:.0%} is padding"
    )
    if padded > 0.3 or kept < 0.5:
        warnings.warn(f"{folder}: {note}; clip_seconds={median:g} leaves least to cut and to pad", stacklevel=3)
    return length, note


def _headers(folder: Path, clips: Sequence[Clip]) -> list[Header]:
    """Headers of the clips that can be read; warns of the others, and raises BadClip if there is no other."""
    paths = [folder / clip.file_name for clip in clips]
    with ThreadPoolExecutor(max_workers=8) as pool:
        headers = list(pool.map(header_of, paths))
    bad = [path for path, header in zip(paths, headers, strict=True) if header is None]
    if len(bad) == len(paths):
        seconds_of(bad[0])
    if bad:
        found = f"{len(bad):,} of {len(clips):,} files cannot be read, e.g. {bad[0]}; a pass stops there"
        warnings.warn(f"{folder}: {found}. Task.check() lists them, Task.without(files) leaves them out", stacklevel=4)
    return [header for header in headers if header is not None]
