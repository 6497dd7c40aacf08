"""Audio files: reading mono samples at a rate, and naming files that cannot be used."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

_UNKNOWN = 2**62  # libsndfile reports more samples than this if the header does not state the length
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
            yield file
            _check_last_sample(path, file)
    except (soundfile.SoundFileError, OSError) as error:
        raise _bad(path, f"cannot be read as audio ({error})") from error


def _check_last_sample(path: Path, file: soundfile.SoundFile) -> None:
    if file.frames > _UNKNOWN:
        return
    slack = _MP3_SLACK if file.format == "MP3" else 1
    file.seek(max(0, file.frames - slack))
    if len(file.read(1)) == 0:
        raise _bad(path, f"truncated: the last of {file.frames:,} samples cannot be decoded")


def _bad(path: Path, complaint: str) -> BadClip:
    """The error for a file, with its size and what to do."""
    size = f"{path.stat().st_size:,} bytes" if path.exists() else "missing"
    return BadClip(f"{path}: {complaint}; {size}{_git_lfs_hint(path)}. Replace it, or remove it from the task")


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
    file.seekable = lambda: False  # else soundfile seeks after every read, for which it needs the length
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
        raise _bad(path, f"sample {first} (at {first / rate:.3f} s) is {wave[first]}, expected a finite number")
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


def header_of(path: Path) -> Header | None:
    """The header of a file, without decoding it; None if it cannot be read or holds no samples."""
    try:
        with soundfile.SoundFile(path) as file:
            samples = _frames(file)
            return Header(samples, file.samplerate, file.channels) if samples else None
    except (soundfile.SoundFileError, OSError):
        return None
