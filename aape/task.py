"""A task: labelled clips with splits and groups, read from EVAR-format metadata and a folder of audio."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr

GROUP_COLUMNS = ("group", "src_file", "speaker_id")  # ours, ESC-50's recording, EVAR's CREMA-D speaker
SPLITS = ("train", "valid", "test")


class BadClip(ValueError):
    """A clip that cannot be used: unreadable, empty, or with samples that are no numbers. The message names it."""


@dataclass(frozen=True, eq=False)
class Task:
    """What an encoder listens to.

    Attributes:
        name: short name, e.g. "esc50".
        clip_seconds: every clip is cut or zero-padded to this, s.
        audio_dir: folder that `files` are relative to.
        metadata: the CSV file this came from.
        files: file name of each clip, in the metadata's order.
        labels: class index of each clip, int64 [clips].
        classes: class names; sorted labels, numbers as numbers (EVAR).
        splits: of each clip: train, valid, test, or fold1, fold2, ...
        groups: what each clip came from (recording, speaker, ...): clips of one group are not independent.
        group_column: metadata column of the groups; None: every clip is its own group.
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

    @property
    def grouped(self) -> bool:
        """Whether the metadata says which clips belong together."""
        return self.group_column is not None

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
            BadClip: unreadable, zero-length, or not finite.
        """
        length = self.samples(sample_rate)
        wave = _read_mono(self.audio_dir / self.files[index], sample_rate, self.clip_seconds)
        valid = min(len(wave), length)
        out = np.zeros(length, dtype=np.float32)
        out[:valid] = wave[:valid]
        return out, valid

    def fingerprint(self, index: int) -> str:
        """Size and SHA-256 of the first 64 KiB of a clip's file: enough to notice that data are not the same."""
        path = self.audio_dir / self.files[index]
        with path.open("rb") as file:
            head = file.read(1 << 16)
        return f"{path.stat().st_size}-{hashlib.sha256(head).hexdigest()[:16]}"


def cache_dir() -> Path:
    """Where resampled audio is kept: $AAPE_CACHE, else ~/.cache/aape."""
    return Path(os.environ.get("AAPE_CACHE", Path.home() / ".cache" / "aape"))


def _read_mono(path: Path, sample_rate: int, seconds: float) -> np.ndarray:
    """Mono samples at `sample_rate`, at most about `seconds` of them, from the cache where they were resampled."""
    try:
        info = soundfile.info(path)
        if info.frames == 0:
            raise BadClip(f"{path} holds no samples; remove it from the metadata or replace it")
        cached = None
        if info.samplerate != sample_rate:
            stat = path.stat()
            key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{sample_rate}|{seconds}"
            name = hashlib.sha256(key.encode()).hexdigest()[:32]
            cached = cache_dir() / "resampled" / name[:2] / f"{name}.npy"
            if cached.is_file():
                return np.load(cached, allow_pickle=False)
        # A little more than is needed, so that the resampler's edge lies behind the cut.
        frames = math.ceil((seconds + 0.1) * info.samplerate)
        wave = soundfile.read(path, frames=frames, dtype="float32", always_2d=True)[0].mean(axis=1)
    except (soundfile.SoundFileError, OSError) as error:
        raise BadClip(f"{path} ({_size(path)}) cannot be read as audio: {error}; replace or remove it") from error
    if len(wave) == 0:
        raise BadClip(f"{path} ({_size(path)}) holds no samples; replace it or remove it from the metadata")
    if not np.isfinite(wave).all():
        bad = int((~np.isfinite(wave)).argmax())
        raise BadClip(f"{path}: sample {bad} (at {bad / info.samplerate:.3f} s) is {wave[bad]}, expected numbers")
    if cached is not None:
        wave = soxr.resample(wave, info.samplerate, sample_rate, quality="HQ").astype(np.float32)
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}.part")
        with partial.open("wb") as file:
            np.save(file, wave)
        os.replace(partial, cached)
    return wave


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes" if path.exists() else "missing"


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
    task: Task, batches: Sequence[np.ndarray], sample_rate: int, ahead: int = 3
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """`read_clips` of each batch of indices, decoded in background threads while the model works."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting: list[Future] = []
        todo = iter(batches)
        for indices in todo:
            waiting.append(pool.submit(read_clips, task, indices, sample_rate))
            if len(waiting) >= ahead:
                break
        try:
            while waiting:
                ready = waiting.pop(0).result()
                for indices in todo:
                    waiting.append(pool.submit(read_clips, task, indices, sample_rate))
                    break
                yield ready
        finally:
            for future in waiting:
                future.cancel()


def from_metadata(csv_path: str | Path, audio_dir: str | Path, *, clip_seconds: float, name: str) -> Task:
    """A task from EVAR's metadata format, or from ESC-50's own `meta/esc50.csv`, and a folder of audio.

    Args:
        csv_path: columns `file_name`, `label`, and `split` (train, valid, test) or `fold` (numbers); optional `group`
            (also recognised: `src_file`, `speaker_id`). ESC-50's `filename`, `category`, `fold`, `src_file` are
            recognised as such.
        audio_dir: folder that `file_name` is relative to. WAV, FLAC, Ogg, MP3, AU ..., any rate and channel count.
        clip_seconds: length of every clip, s.
        name: short name.

    Raises:
        FileNotFoundError: CSV, folder or listed files missing.
        ValueError: columns missing, duplicate rows, empty labels, several labels in a row, unknown splits.
    """
    csv_path, audio_dir = Path(csv_path).expanduser(), Path(audio_dir).expanduser()
    if not csv_path.is_file():
        raise FileNotFoundError(f"task {name}: no metadata at {csv_path}; Install.md says how to make it")
    if clip_seconds <= 0:
        raise ValueError(f"task {name}: clip_seconds must be positive, found {clip_seconds}")
    table = pd.read_csv(csv_path, keep_default_na=False, dtype={"file_name": str, "filename": str})
    if "file_name" not in table and {"filename", "category", "fold"} <= set(table):
        table = table.drop(columns="label", errors="ignore").rename(
            columns={"filename": "file_name", "category": "label"}
        )
    missing = [c for c in ("file_name", "label") if c not in table]
    if missing or not {"split", "fold"} & set(table):
        raise ValueError(
            f"{csv_path}: expected columns file_name, label and split (or fold), found {', '.join(table.columns)}"
        )
    if table.empty:
        raise ValueError(f"{csv_path}: no rows, expected one a clip")
    _check_rows(table, csv_path)
    table = _with_split(table, csv_path)
    splits = _splits(table, csv_path)
    files = tuple(table.file_name)
    _check_files(files, audio_dir, csv_path)
    values = sorted(table.label.unique().tolist())
    index = {value: i for i, value in enumerate(values)}
    _check_coverage(table.label, splits, csv_path)
    group_column = next((c for c in GROUP_COLUMNS if c in table), None)
    groups = table[group_column].astype(str) if group_column else pd.Series([str(i) for i in range(len(table))])
    if (groups == "").any():
        row = int((groups == "").to_numpy().argmax())
        raise ValueError(f"{csv_path}, line {row + 2}: empty {group_column}; name the group or drop the column")
    return Task(
        name=name,
        clip_seconds=float(clip_seconds),
        audio_dir=audio_dir,
        metadata=csv_path,
        files=files,
        labels=table.label.map(index).to_numpy(dtype=np.int64),
        classes=tuple(str(v) for v in values),
        splits=splits,
        groups=tuple(groups),
        group_column=group_column,
    )


def _check_rows(table: pd.DataFrame, csv_path: Path) -> None:
    """Row-wise complaints, each with its line in the file."""
    labels = table.label.astype(str)
    for bad, what in (
        (table.file_name == "", "no file_name"),
        (labels.str.strip() == "", "no label"),
        (table.file_name.duplicated(), "a file that an earlier line has already"),
    ):
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise ValueError(
                f"{csv_path}, line {row + 2}: {what} ({table.file_name[row]!r}); {int(bad.sum())} such line(s). "
                "Expected each clip once, with its label."
            )
    several = labels.str.contains(",")
    if several.any():
        row = int(several.to_numpy().argmax())
        raise ValueError(
            f"{csv_path}, line {row + 2}: label {labels[row]!r} names several classes. Conditional activation "
            "probabilities are defined here for one class a clip; keep the clips with a single label."
        )


def _with_split(table: pd.DataFrame, csv_path: Path) -> pd.DataFrame:
    """Rows that are in a split. EVAR's gtzan.csv lists 70 clips outside the fault-filtered ones, and EVAR skips them."""
    if "split" not in table:
        return table
    without = table.split.astype(str).str.strip() == ""
    if without.any() and not without.all():
        warnings.warn(f"{csv_path}: {int(without.sum())} row(s) without a split are left out", stacklevel=3)
        return table[~without].reset_index(drop=True)
    return table


def _splits(table: pd.DataFrame, csv_path: Path) -> tuple[str, ...]:
    if "split" in table:
        splits = table.split.astype(str).replace({"val": "valid", "validation": "valid"})
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown:
            raise ValueError(f"{csv_path}: split {unknown[0]!r}, expected {', '.join(SPLITS)}")
        return tuple(splits)
    try:
        return tuple(f"fold{int(f)}" for f in table.fold)
    except ValueError as error:
        raise ValueError(f"{csv_path}: fold must be numbers, found {sorted(set(table.fold))[:5]}") from error


def _check_files(files: tuple[str, ...], audio_dir: Path, csv_path: Path) -> None:
    if not audio_dir.is_dir():
        raise FileNotFoundError(f"no audio folder {audio_dir}, which {csv_path} speaks of {len(files)} files in")
    absent = [f for f in files if not (audio_dir / f).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of the {len(files)} files in {csv_path} are missing from {audio_dir}, "
            f"e.g. {', '.join(absent[:5])}. Complete the data, or take the lines out of the metadata."
        )


def _check_coverage(labels: pd.Series, splits: tuple[str, ...], csv_path: Path) -> None:
    present = pd.crosstab(labels.to_numpy(), np.asarray(splits))
    gaps = [(str(c), str(s)) for c in present.index for s in present.columns if present.loc[c, s] == 0]
    if gaps:
        shown = ", ".join(f"{c} in {s}" for c, s in gaps[:5])
        warnings.warn(
            f"{csv_path}: {len(gaps)} class(es) have no clip in a split: {shown}. Counting goes on; a classifier "
            "cannot be trained or tested on what is not there.",
            stacklevel=3,
        )
