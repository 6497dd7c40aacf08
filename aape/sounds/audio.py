"""Audio files: reading mono samples at a rate, and naming files that cannot be used."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from aape.sounds.mp3 import length_is_a_guess

_UNKNOWN = (
    2**62
)  # libsndfile reports more samples than this if the header does not state the length
_BLOCK = 1 << 16  # samples that are read at a time where the length is unknown
_MP3_SLACK = 2304  # samples; an MP3 may lack two frames


class BadClip(ValueError):
    """A clip that cannot be used: unreadable, empty, cut off, or with samples that are not finite. The message names it."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file whose last sample can be decoded.

    Raises:
        BadClip: the file is unreadable (also within the block), empty or cut off. The message says what to do.
    """
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames == 0:
                raise _bad(path, "no samples")
            if file.format == "MP3" and length_is_a_guess(path.read_bytes()):
                raise _bad(
                    path,
                    "an MP3 of variable bit rate that does not state its length; convert it to FLAC or WAV",
                )
            yield file
            _check_last_sample(path, file)
    except (soundfile.SoundFileError, OSError) as error:
        raise _bad(path, f"cannot be read as audio ({error})") from error


def _check_last_sample(path: Path, file: soundfile.SoundFile) -> None:
    """Raise BadClip if the last sample of a file cannot be decoded, that is, if the file was cut off."""
    if file.frames > _UNKNOWN:
        return
    slack = _MP3_SLACK if file.format == "MP3" else 1
    with soundfile.SoundFile(
        path
    ) as fresh:  # libsndfile cannot always seek in an Ogg file that was read from in part
        fresh.seek(max(0, fresh.frames - slack))
        decoded = len(fresh.read(1))
    if decoded == 0:
        raise _bad(path, f"truncated: the last of {file.frames:,} samples cannot be decoded")


def _bad(path: Path, complaint: str) -> BadClip:
    """The error for a file, with its size and what to do."""
    size = f"{path.stat().st_size:,} bytes" if path.exists() else "missing"
    return BadClip(
        f"{path}: {complaint}; {size}{_git_lfs_hint(path)}. Replace it, or remove it from the task"
    )


def _git_lfs_hint(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as content:
        if content.read(40).startswith(b"version https://git-lfs"):
            return ', a Git LFS pointer: run `git lfs pull --include "*"` in its clone'
    return ""


def seconds_of(path: Path) -> float:
    """Duration of a file, s. Raises BadClip if it is empty, unreadable or cut off."""
    with opened(path) as file:
        return _frames(file) / file.samplerate


def _frames(file: soundfile.SoundFile) -> int:
    """Number of samples per channel; counted by decoding where the header does not state it."""
    if file.frames < _UNKNOWN:
        return file.frames
    return sum(len(block) for block in _blocks(file, math.inf))


def _blocks(file: soundfile.SoundFile, frames: float) -> Iterator[np.ndarray]:
    """Samples [block, channels] from the beginning of a file of unknown length, at least `frames` of them if there are."""
    file.seekable = lambda: (
        False
    )  # else soundfile seeks after every read, for which it needs the length
    read = 0
    while read < frames:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        if len(block) == 0:
            return
        read += len(block)
        yield block


def read_channels(path: Path, seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """Samples of a file as stored.

    Args:
        path: the file.
        seconds: how much is needed, s.

    Returns:
        float32 [samples, channels] and the sample rate in Hz.

    Raises:
        BadClip: unreadable, empty or cut off.
    """
    with opened(path) as file:
        wanted = min(seconds * file.samplerate, file.frames)
        if file.frames > _UNKNOWN:
            wave = np.concatenate(list(_blocks(file, wanted)))
            return wave[: math.ceil(min(wanted, len(wave)))], file.samplerate
        wanted = math.ceil(wanted)
        wave = file.read(wanted, dtype="float32", always_2d=True)
        if len(wave) < wanted - _MP3_SLACK:
            raise _bad(path, f"truncated: {len(wave):,} of {wanted:,} samples can be decoded")
        return wave, file.samplerate


def mix(wave: np.ndarray) -> np.ndarray:
    """The mean over the channels of [samples, channels]."""
    return wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)


def read_mono(path: Path, sample_rate: int, seconds: float) -> np.ndarray:
    """Mono samples at a rate, for a model to listen to.

    Mono is the mean of the channels. Resampling is soxr's HQ.

    Args:
        path: the file.
        sample_rate: Hz.
        seconds: how much is needed, s. A little more than that is returned if the file is longer.

    Returns:
        float32 [samples]

    Raises:
        BadClip: unreadable, cut off, empty, or not finite.
    """
    margin = 0.1  # s, so that the resampler's edge lies behind the cut
    channels, rate = read_channels(path, seconds + margin)
    wave = mix(channels)
    finite = np.isfinite(wave)
    if not finite.all():
        first = int(finite.argmin())
        raise _bad(
            path,
            f"sample {first} (at {first / rate:.3f} s) is {wave[first]}, expected a finite number",
        )
    if rate == sample_rate:
        return wave
    return soxr.resample(wave, rate, sample_rate, quality="HQ").astype(np.float32)


def fingerprint(path: Path, seconds: float = math.inf) -> str:
    """A hash of the decoded samples: equal for copies under other names, with other tags, or in another lossless container.

    Args:
        path: the file.
        seconds: only the beginning, s.

    Raises:
        BadClip: unreadable, empty or cut off.
    """
    wave, rate = read_channels(path, seconds)
    header = f"{rate} {wave.shape}".encode()
    return hashlib.sha256(header + wave.tobytes()).hexdigest()


class Header(NamedTuple):
    """What the header of an audio file says; samples are per channel."""

    samples: int
    rate: int
    channels: int
    container: str

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def header_of(path: Path) -> Header | None:
    """The header of a file, without decoding it; None if it cannot be read or holds no samples."""
    try:
        with soundfile.SoundFile(path) as file:
            samples = _frames(file)
            return Header(samples, file.samplerate, file.channels, file.format) if samples else None
    except (soundfile.SoundFileError, OSError):
        return None


def copies(headers: Mapping[Path, Header]) -> list[list[Path]]:
    """Sets of files with the same decoded samples, each of two files or more.

    Files are decoded only if their headers agree. Of files in one container those with equal sizes are compared.

    Args:
        headers: file -> header.
    """
    containers: dict[tuple, set[str]] = defaultdict(set)
    for header in headers.values():
        containers[header[:3]].add(header.container)

    def header_and_size(path: Path) -> object:
        shape = headers[path][:3]
        return shape, path.stat().st_size if len(containers[shape]) == 1 else None

    sets = [list(headers)]
    for key in (header_and_size, _beginning, _everything):
        sets = _refined(sets, key)
    return sets


def _beginning(path: Path) -> object:
    return _fingerprint_or_none(path, 0.1)


def _everything(path: Path) -> object:
    return _fingerprint_or_none(path, math.inf)


def _fingerprint_or_none(path: Path, seconds: float) -> str | None:
    try:
        return fingerprint(path, seconds)
    except BadClip:
        return None


def _refined(sets: Sequence[Sequence[Path]], key: Callable[[Path], object]) -> list[list[Path]]:
    """The parts of each set with equal keys, if they have two or more members."""
    parts = []
    for members in sets:
        with ThreadPoolExecutor(max_workers=8) as pool:
            keys = list(pool.map(key, members))
        by_key: dict[object, list[Path]] = defaultdict(list)
        for member, value in zip(members, keys, strict=True):
            if value is not None:
                by_key[value].append(member)
        parts += [part for part in by_key.values() if len(part) > 1]
    return parts
