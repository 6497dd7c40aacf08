"""Audio files: telling damaged ones, and reading mono samples at a rate."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from aape.files import Cache, sha256_of

# What libsndfile's log says of a file that ends before its header says it should. Writers to a pipe promise almost 2 or
# 4 GiB, which is no damage.
_SHORTER = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.M)
_OGG_CUT = re.compile(r"lacks an end-of-stream bit|Junk after the last page|without an End-Of-Stream flag")
_PLACEHOLDER = 0x7FFF_0000
_SLACK = {"FLAC": 1, "MP3": 2304}  # samples before the end that must be there; an MP3 may lack two frames


class BadClip(ValueError):
    """A clip that cannot be used: unreadable, empty, or with samples that are no numbers. The message names it."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """An audio file that is whole, as far as its header and its last sample tell.

    Raises:
        BadClip: unreadable (also within the block), empty or cut off; names the file and what to do.
    """
    try:
        with soundfile.SoundFile(path) as file:
            if not (complaint := _damage(file)):
                yield file
    except (soundfile.SoundFileError, OSError) as error:
        complaint = f"cannot be read as audio ({error})"
    if complaint:
        found = f"{path.stat().st_size:,} bytes" if path.exists() else "missing"
        with contextlib.suppress(OSError), path.open("rb") as content:
            if content.read(40).startswith(b"version https://git-lfs"):
                found += ', a Git LFS pointer: run `git lfs pull --include "*"` in its clone'
        raise BadClip(f"{path}: {complaint}; {found}. Replace it, or remove it from the task")


def _damage(file: soundfile.SoundFile) -> str:
    """What is wrong with a file that is empty or cut off; libsndfile reads the latter, and only its log tells."""
    for promised, there in _SHORTER.findall(file.extra_info):
        if int(there) < int(promised) < _PLACEHOLDER:
            return f"truncated: the header promises {int(promised):,} bytes of samples, {int(there):,} are there"
    if _OGG_CUT.search(file.extra_info):
        return "truncated: the Ogg stream breaks off before its last page"
    if file.frames == 0:
        return "no samples"
    if file.format in _SLACK:  # libsndfile believes these headers
        with contextlib.suppress(soundfile.SoundFileError), soundfile.SoundFile(file.name) as tail:
            tail.seek(max(0, file.frames - _SLACK[file.format]))
            if len(tail.read(1)):
                return ""
        return f"truncated: the last of {file.frames:,} samples cannot be decoded"
    return ""


def cache_dir() -> Path:
    """Where resampled audio is kept: $AAPE_CACHE, else ~/.cache/aape."""
    return Path(os.environ.get("AAPE_CACHE") or "~/.cache/aape").expanduser()


@contextlib.contextmanager
def forgiving(cache: Cache) -> Iterator[None]:
    """Go on, with a warning, where the disk of a cache does not do what the block asks: nothing depends on it."""
    try:
        yield
    except OSError as error:
        _warn_of(cache.folder.parent, str(error.strerror or error))


@functools.cache  # once for each, not for each clip
def _warn_of(folder: Path, error: str) -> None:
    warnings.warn(
        f"{folder} cannot be used ({error}); what would be kept there is computed anew each time.\n"
        "Make space there, or set AAPE_CACHE to a folder that can be written.",
        stacklevel=2,
    )


def seconds_of(path: Path) -> float:
    """Duration of a file, s. Raises BadClip where it is empty, unreadable or cut off."""
    with opened(path) as file:
        return file.frames / file.samplerate


def read_mono(path: Path, sample_rate: int, seconds: float) -> np.ndarray:
    """Mono samples at a rate, at most about `seconds` of them; what had to be resampled is kept in a cache.

    Mono by averaging channels, resampled with soxr HQ.

    Args:
        path: of the file. sample_rate: Hz. seconds: what is needed, s.

    Returns:
        float32 [samples]

    Raises:
        BadClip: unreadable, cut off, zero-length, or not finite.
    """
    with opened(path) as file:
        rate = file.samplerate
        if rate != sample_rate:  # kept by what the file holds: names and times can be those of another
            key = f"{sha256_of(path)}|{sample_rate}|{seconds}"
            digest = hashlib.sha256(key.encode()).hexdigest()[:32]
            cache, name = Cache(cache_dir() / "resampled"), f"{digest[:2]}/{digest}"
            with forgiving(cache):  # within: `opened` would blame the clip
                if found := cache.get(name, key):
                    return found["wave"]
        # A little more than is needed, so that a resampler's edge lies behind the cut.
        wanted = min(math.ceil((seconds + 0.1) * rate), file.frames)
        wave = file.read(wanted, dtype="float32")
        if len(wave) < wanted - _SLACK["MP3"]:
            raise BadClip(
                f"{path}: truncated, {len(wave):,} of {wanted:,} samples can be decoded; replace or remove it"
            )
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    if not np.isfinite(wave).all():
        bad = int((~np.isfinite(wave)).argmax())
        raise BadClip(f"{path}: sample {bad} (at {bad / rate:.3f} s) is {wave[bad]}, expected numbers")
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate, quality="HQ").astype(np.float32)
        with forgiving(cache):
            cache.put(name, key, {"wave": wave})
    return wave
