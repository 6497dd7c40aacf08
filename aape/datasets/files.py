"""Audio files of a dataset on disk: finding them under today's names, and telling *missing* from *invalid*."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile
from tqdm.auto import tqdm

# In order of preference where one clip lies there in several containers.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".au", ".aif", ".aiff", ".opus")
CHECKS = ("none", "header", "read")


def without_suffix(name: str) -> str:
    """`a/b.WAV` -> `a/b`; only audio suffixes count, so `jazz.00054` keeps its number."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else str(path)


class AudioIndex:
    """Every audio file under a folder, found again whatever the case of its name and whatever its container."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}; give the folder that the dataset was unpacked to")
        self.root = root

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Paths relative to the root, with /, sorted. Hidden files and macOS's ._ companions are left out."""
        found = []
        for folder, subfolders, names in os.walk(self.root, followlinks=True):
            subfolders[:] = sorted(s for s in subfolders if not s.startswith((".", "__MACOSX")))
            relative = Path(folder).relative_to(self.root)
            for name in names:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                    found.append((relative / name).as_posix())
        return tuple(sorted(found))

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        stems = defaultdict(list)
        for name in self.files:
            stems[without_suffix(name).casefold()].append(name)
        return stems

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(self.files)

    def find(self, name: str, bases: Sequence[str] = ("",)) -> str | None:
        """The file that a list calls `name`, relative to the root; `bases` are the folders it may lie in.

        A different case (`.WAV`) and another container (`.flac`, `.ogg`) count as the same clip.
        """
        for base in bases:
            wanted = f"{base}/{name}" if base else name
            if wanted in self._exact:
                return wanted
            candidates = self._by_stem.get(without_suffix(wanted).casefold())
            if candidates:
                suffix = PurePosixPath(wanted).suffix.lower()
                return min(candidates, key=lambda c: _preference(c, suffix))
        return None


def _preference(name: str, wanted_suffix: str) -> tuple[bool, int, str]:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix != wanted_suffix, SUFFIXES.index(suffix), name


def why_invalid(path: Path, *, check: str = "header") -> str | None:
    """What is wrong with an audio file, or None.

    Args:
        path: the file; it must exist.
        check: "header" looks at sizes, the header and the last sample; "read" decodes the whole file.
    """
    size = path.stat().st_size
    if size == 0:
        return "empty file (0 bytes)"
    cut = _riff_shortfall(path, size) or _ogg_shortfall(path, size)
    if cut:
        return cut
    try:
        with soundfile.SoundFile(path) as file:
            frames = file.frames
            if frames == 0:
                return "no samples"
            if check == "read":
                wave = file.read(dtype="float32", always_2d=True)
                if len(wave) < frames:
                    return f"truncated: {len(wave):,} of {frames:,} samples can be decoded"
                if not np.isfinite(wave).all():
                    return "samples that are no numbers (NaN or infinite)"
            elif path.suffix.lower() == ".flac":
                try:
                    file.seek(frames - 1)
                    last = len(file.read(1))
                except soundfile.SoundFileError:
                    last = 0
                if last == 0:
                    return f"truncated: the last of {frames:,} samples cannot be decoded"
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        return f"not readable as audio ({size:,} bytes): {error}"
    return None


def _riff_shortfall(path: Path, size: int) -> str | None:
    """libsndfile quietly shortens a WAV whose data were cut off; the RIFF header still says how long it was."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != b"RIFF":
        return None
    said = int.from_bytes(head[4:8], "little") + 8
    # Writers to a pipe put a placeholder of almost 2 or 4 GiB; a missing pad byte is harmless.
    if said <= size + 1 or said >= 0x7FFF_0000:
        return None
    return f"truncated: the header promises {said:,} bytes, the file has {size:,}"


def _ogg_shortfall(path: Path, size: int) -> str | None:
    """An Ogg stream ends with a page that says so (RFC 3533, header type flag 4); a cut one does not."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return None
        file.seek(max(0, size - (1 << 17)))  # a page is at most 65,307 bytes
        tail = file.read()
    page = tail.rfind(b"OggS")
    if page >= 0 and len(tail) > page + 26 and tail[page + 5] & 4:
        segments = tail[page + 26]
        table = tail[page + 27 : page + 27 + segments]
        if len(table) == segments and page + 27 + segments + sum(table) <= len(tail):
            return None
    return f"truncated: the Ogg stream of {size:,} bytes breaks off before its last page"


def find_invalid(root: Path, names: Iterable[str], *, check: str, title: str) -> list[tuple[str, str]]:
    """(file, what is wrong) of the files that cannot be used, in the given order."""
    names = list(names)
    if check == "none":
        return []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(lambda n: why_invalid(root / n, check=check), names)
        shown = tqdm(reasons, total=len(names), desc=f"checking {title}", unit="file", disable=None)
        return [(name, reason) for name, reason in zip(names, shown, strict=True) if reason]


def find_short(root: Path, names: Iterable[str], *, shortest: float) -> list[tuple[str, str]]:
    """(file, its length) of whole files that are shorter than this dataset's clips are said to be."""
    short = []
    for name in names:
        info = soundfile.info(root / name)
        if info.frames < shortest * info.samplerate:
            short.append((name, f"{info.frames / info.samplerate:.2f} s"))
    return short
