"""A task: labelled clips with splits and groups."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.contrib.concurrent import thread_map

from aape.display import Displayed
from aape.sounds.audio import BadClip, mix, read_channels, read_mono
from aape.sounds.clips import Clip, csv_text

if TYPE_CHECKING:  # torch takes seconds to import, and a list of clips does not need it
    import torch

__all__ = ["BadClip", "Task", "in_batches", "prefetched", "read_all", "read_clips"]

_SILENT = 1e-4  # peak of a clip that counts as silent: -80 dB re full scale
_LOUDEST = (
    2.0  # lossy codecs go a little above 1; samples of integers stored as floats go far above
)


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

        Mono is the mean of the channels, resampled with soxr HQ if the file's rate differs; cut at the end or padded with
        zeros, as in EVAR's deterministic pass.

        Raises:
            BadClip: unreadable, cut off, empty, or not finite.
        """
        length = self.samples(sample_rate)
        path = self.audio_dir / self.files[index]
        wave = read_mono(path, sample_rate, self.clip_seconds)
        valid = min(len(wave), length)
        if not valid:
            raise BadClip(
                f"{path}: no sample of it is left at {sample_rate} Hz. Replace it, or remove it"
            )
        padded = np.zeros(length, dtype=np.float32)
        padded[:valid] = wave[:valid]
        return padded, valid

    def check(self) -> pd.DataFrame:
        """Decode every clip and list all that are bad, so that a pass does not stop at them one by one.

        A clip is bad if it is unreadable, has samples that are not finite or out of range, or is silent or constant after
        its channels are mixed and it is cut to `clip_seconds`.

        Returns:
            One row per bad clip: file, class, split, complaint. `task.without(table["file"])` is the task without them.
        """
        complaints = thread_map(
            self._complaint, range(len(self)), desc=f"checking {self.name}", disable=None
        )
        rows = []
        for index, complaint in enumerate(complaints):
            if complaint:
                about = self.files[index], self.classes[self.labels[index]], self.splits[index]
                rows.append((*about, complaint))
        return pd.DataFrame(rows, columns=["file", "class", "split", "complaint"])

    def _complaint(self, index: int) -> str:
        """What is wrong with a clip, or ""."""
        path = self.audio_dir / self.files[index]
        try:
            whole, rate = read_channels(path)
        except BadClip as error:
            return str(error).removeprefix(f"{path}: ")
        if not np.isfinite(whole).all():
            return f"{(~np.isfinite(whole)).sum():,} samples are not finite"
        peak = float(np.abs(whole).max())
        if peak > _LOUDEST:
            return f"samples up to {peak:,.1f}, expected -1 to 1"
        if peak < _SILENT:
            return "silent"
        wave = mix(whole)
        if np.abs(wave).max() < _SILENT:
            return "silent after mixing: the channels cancel each other"
        cut = wave[: max(1, int(rate * self.clip_seconds))]
        if np.abs(cut).max() < _SILENT:
            return f"silent in its first {self.clip_seconds:g} s"
        if np.ptp(cut) < _SILENT:
            return "constant"
        return ""

    def without(self, files: Sequence[str]) -> Task:
        """The task without some files; splits and groups of the other clips stay as they are.

        Raises:
            ValueError: a file that is not in the task.
        """
        unknown = {*files} - {*self.files}
        if unknown:
            raise ValueError(f"task {self.name} has no file {min(unknown)!r}")
        return self._clips(~np.isin(self.files, list(files)))

    def subset(
        self,
        *,
        classes: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        clips: Sequence[int] | np.ndarray | None = None,
    ) -> Task:
        """A smaller task, for example for a pass that has to fit on the disk.

        Args:
            classes: names of the classes to keep; None: all.
            splits: splits to keep; None: all.
            clips: indices of clips to keep; None: all.

        Raises:
            ValueError: an unknown class or split, or no clip is left.
        """
        kept = np.ones(len(self), dtype=bool)
        names = np.array(self.classes, dtype=object)[self.labels]
        for what, chosen, known in (
            ("class", classes, names),
            ("split", splits, np.array(self.splits, dtype=object)),
        ):
            if chosen is None:
                continue
            unknown = {*chosen} - {*known}
            if unknown:
                raise ValueError(
                    f"task {self.name} has no {what} {min(unknown)!r}, expected some of {sorted({*known})}"
                )
            kept &= np.isin(known, list(chosen))
        if clips is not None:
            kept &= np.isin(np.arange(len(self)), clips)
        return self._clips(kept)

    def _clips(self, kept: np.ndarray) -> Task:
        """The task of the clips that a boolean array [clips] marks; classes without a clip go."""
        if not kept.any():
            raise ValueError(f"task {self.name}: no clip is left")
        indices = np.flatnonzero(kept)
        old_labels = np.unique(self.labels[indices])
        return dataclasses.replace(
            self,
            files=tuple(self.files[i] for i in indices),
            labels=np.searchsorted(old_labels, self.labels[indices]),
            classes=tuple(self.classes[i] for i in old_labels),
            splits=tuple(self.splits[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices),
        )

    def csv(self) -> str:
        """The clips as CSV text, as `from_metadata` reads it."""
        groups = [None] * len(self) if self.group_column is None else self.groups
        names = [self.classes[label] for label in self.labels]
        split_notes = [note for note in self.notes if note.startswith("the split is ours")]
        clips = map(Clip, self.files, names, self.splits, groups)
        return csv_text(clips, split_notes[0] if split_notes else "")

    def _facts(self) -> dict[str, str]:
        more = f", ... ({len(self.classes)})" if len(self.classes) > 10 else ""
        facts = {
            "clips": f"{len(self):,} of {self.clip_seconds:g} s in {self.audio_dir}",
            "classes": ", ".join(self.classes[:10]) + more,
            "splits": ", ".join(
                f"{split} {count:,}" for split, count in Counter(self.splits).items()
            ),
            "groups": f"{len(set(self.groups)):,} ({self.group_column})"
            if self.group_column
            else "unknown",
        }
        return facts | {f"note {i}": note for i, note in enumerate(self.notes, 1)}

    def _title(self) -> str:
        return f"Task {self.name!r}"


Batch = tuple[np.ndarray, np.ndarray, dict[int, str]]


def in_batches(clips: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut indices of clips [clips] into batches of this size; the last one may be smaller."""
    return [clips[start : start + size] for start in range(0, len(clips), size)]


def read_clips(task: Task, indices: np.ndarray, sample_rate: int) -> Batch:
    """Waves [batch, samples], valid samples [batch], and the complaint about each bad clip (valid = 0)."""
    waves = np.zeros((len(indices), task.samples(sample_rate)), dtype=np.float32)
    valid = np.zeros(len(indices), dtype=np.int64)
    complaints: dict[int, str] = {}
    for row, index in enumerate(indices):
        try:
            waves[row], valid[row] = task.read(int(index), sample_rate)
        except BadClip as error:
            complaints[row] = str(error)
    return waves, valid, complaints


def prefetched(task: Task, batches: Sequence[np.ndarray], sample_rate: int) -> Iterator[Batch]:
    """`read_clips` of each batch of indices, decoded in background threads while the model works.

    Warns at the end if clips are silent after their channels are mixed and they are cut.
    """
    pool = ThreadPoolExecutor(max_workers=2)
    waiting: deque[tuple[np.ndarray, Future[Batch]]] = deque()
    silent: list[int] = []
    following = iter(batches)
    try:
        while True:
            for indices in itertools.islice(following, 4 - len(waiting)):
                waiting.append((indices, pool.submit(read_clips, task, indices, sample_rate)))
            if not waiting:
                break
            indices, future = waiting.popleft()
            waves, valid, complaints = future.result()
            silent += indices[(np.abs(waves).max(axis=1) < _SILENT) & (valid > 0)].tolist()
            yield waves, valid, complaints
    finally:
        pool.shutdown(cancel_futures=True)
    if silent:
        _warn_of_silence(task, silent)


def _warn_of_silence(task: Task, silent: Sequence[int]) -> None:
    sizes, counts = Counter(task.labels.tolist()), Counter(task.labels[silent].tolist())
    by_class = [
        f"{count:,} of {sizes[label]:,} of {task.classes[label]!r}"
        for label, count in counts.most_common(5)
    ]
    warnings.warn(
        f"{task.name}: {len(silent):,} clips are silent after mixing their channels and cutting: {', '.join(by_class)}. "
        "Task.check() says why",
        stacklevel=2,
    )


def read_all(task: Task, batches: Sequence[np.ndarray], sample_rate: int) -> Iterator[torch.Tensor]:
    """Waves [batch, samples] of each batch of clips, read ahead. Raises BadClip for a clip that can no longer be read."""
    import torch

    for waves, _, complaints in prefetched(task, batches, sample_rate):
        if complaints:
            first = next(iter(complaints.values()))
            raise BadClip(f"{first} What was computed is kept: replace the file and call again.")
        yield torch.from_numpy(waves)
