"""Folders of sounds: which audio files they hold, and what the names of the files say."""

from __future__ import annotations

import os
import posixpath
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import parse

from aape.sounds.clips import Clip, clean, is_split, split_name

# In order of preference if one clip is there in several containers.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".au", ".aif", ".aiff", ".opus")
_UNREADABLE = (
    ".m4a",
    ".mp4",
    ".aac",
    ".wma",
    ".caf",
    ".sph",
    ".w64",
    ".webm",
    ".mka",
    ".amr",
    ".3gp",
    ".wv",
    ".ape",
)


def audio_files(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Audio files below a folder, relative to it, with /, sorted.

    Links are followed. Hidden files are left out, such as the ._ companions of macOS.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a name that is not UTF-8.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the folder that holds the audio")
    files = []
    for parent, folders, names in os.walk(root, followlinks=True):
        folder = Path(parent)
        folders[:] = [name for name in folders if name[0] != "." and not _is_loop(folder / name)]
        for name in names:
            if name[0] != "." and name.lower().endswith(suffixes):
                files.append((folder / name).relative_to(root).as_posix())
    for file in files:
        if re.search("[\udc80-\udcff]", file):
            readable = os.fsencode(file).decode(errors="backslashreplace")
            raise ValueError(
                f"{root}: the name {readable} is not UTF-8; rename the file or folder, e.g. with convmv"
            )
    return sorted(files)


def _is_loop(folder: Path) -> bool:
    """Whether a folder is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.resolve() in [
        parent.resolve() for parent in folder.parents
    ]


def preference(file: str) -> tuple[int, int, str]:
    """Sort key of files: the better container first, then the one that lies less deep."""
    return SUFFIXES.index(posixpath.splitext(file)[1].lower()), file.count("/"), file


def readable_files(root: Path) -> list[str]:
    """Audio files below a folder that can be read, each clip in one container only; names what is left out.

    Raises:
        FileNotFoundError: no folder, or no audio in it.
    """
    found = audio_files(root)
    files: dict[str, str] = {}
    for file in sorted(found, key=preference):
        files.setdefault(posixpath.splitext(file)[0], file)
    other_formats = [
        file for file in audio_files(root, _UNREADABLE) if posixpath.splitext(file)[0] not in files
    ]
    convert = f"Convert them to one of {', '.join(SUFFIXES)}"
    if not files:
        also = (
            f", found {len(other_formats):,} others, e.g. {other_formats[0]}. {convert}"
            if other_formats
            else ""
        )
        raise FileNotFoundError(
            f"{root} holds no audio; expected files that end in {', '.join(SUFFIXES)}{also}"
        )
    if other_formats:
        message = f"{len(other_formats):,} audio files cannot be read and are left out, e.g. {other_formats[0]}"
        warnings.warn(f"{root}: {message}. {convert}", stacklevel=3)
    kept = sorted(files.values())
    again = sorted({*found} - {*kept})
    if again:
        message = f"{len(again):,} of {len(found):,} files are in the folder in another container, e.g. {again[0]}"
        warnings.warn(f"{root}: {message}; they are left out", stacklevel=3)
    return kept


def clips_of_names(files: Sequence[str], pattern: str | None) -> list[Clip]:
    """Label, group and split of each file, from its path.

    Args:
        files: paths with /.
        pattern: see `aape.sounds.loading.from_folder`.

    Raises:
        ValueError: no class folders, an invalid pattern or one that no file matches, or an unknown {split}.
    """
    if pattern is None:
        pattern = _pattern_of_folders(files)
    fields = re.findall(r"\{(\w*)\}", pattern)
    if fields.count("label") != 1 or max(fields.count("group"), fields.count("split")) > 1:
        raise ValueError(
            f"the pattern {pattern!r} needs {{label}} once, and {{group}} and {{split}} at most once"
        )
    parser = _parser(pattern)
    clips, unmatched = [], []
    for file in files:
        path = _matched_part(file, pattern)
        match = parser.parse(path)
        if match is None:
            unmatched.append(file)
        else:
            clips.append(_clip(file, match.named))
    if unmatched:
        message = f"{len(unmatched):,} of {len(files):,} files do not fit the pattern {pattern!r}: "
        message += (
            f"{unmatched[0]} (fits {_fitting_part(_matched_part(unmatched[0], pattern), pattern)})"
        )
        if not clips:
            raise ValueError(message)
        warnings.warn(f"{message}; they are left out", stacklevel=3)
    return clips


def _pattern_of_folders(files: Sequence[str]) -> str:
    """The pattern of class folders, or of split folders with class folders in them."""
    without_folder = [file for file in files if "/" not in file]
    if without_folder:
        raise ValueError(
            f"expected folders named after classes, found {len(without_folder)} file(s) without one, e.g. "
            f"{without_folder[0]}; move them, or say how names are made: pattern='{{label}}_{{group}}_{{take}}.wav'"
        )
    folders = sorted({file.split("/")[0] for file in files})
    splits = [folder for folder in folders if is_split(folder)]
    have_class_folders = all(file.count("/") > 1 for file in files)
    if len(splits) == len(folders) and have_class_folders:
        return "{split}/{label}/**/*"
    if len(splits) == len(folders):
        raise ValueError(
            f"the folders {', '.join(folders)} are splits, expected class folders in each, found {files[0]}; say where the "
            "class is, e.g. pattern='{split}/{label}_*', or that they are classes: pattern='{label}/*'"
        )
    if len(splits) > 1 and have_class_folders:
        others = sorted({*folders} - {*splits})
        raise ValueError(
            f"of the folders {', '.join(folders)} some are splits, {others[0]!r} is not; rename it or move it away, or "
            "say that all are classes: pattern='{label}/**/*'"
        )
    return "{label}/**/*"


@parse.with_pattern(r"[^/]+?")
def _field(text: str) -> str:
    return text


@parse.with_pattern(r"[^/]*?")
def _anything(text: str) -> str:
    return text


@parse.with_pattern(r"(?:[^/]+/)*?")
def _folders(text: str) -> str:
    return text


def _parser(pattern: str) -> parse.Parser:
    """Our patterns in the language of the library parse: a field holds as little as it can, and no slash."""
    pattern = re.sub(r"\{(\w*)\}", r"{\1:field}", pattern)
    pattern = pattern.replace("**/", "{:folders}").replace("*", "{:anything}")
    types = {"field": _field, "folders": _folders, "anything": _anything}
    return parse.compile(pattern, types, case_sensitive=True)


def _matched_part(file: str, pattern: str) -> str:
    """The part of a path that a pattern describes: the name only, if the pattern has no slash; any suffix, if it has none."""
    path = file if "/" in pattern else posixpath.basename(file)
    return path if pattern.lower().endswith(SUFFIXES) else posixpath.splitext(path)[0]


def _fitting_part(path: str, pattern: str) -> str:
    """The longest beginning of a pattern that a path fits, in words."""
    ends = [match.start() for match in re.finditer(r"(?<=\})|\{", pattern)]
    for end in sorted({*ends}, reverse=True):
        if 0 < end < len(pattern) and _parser(pattern[:end] + "{rest}").parse(path):
            return f"as far as {pattern[:end]!r}"
    return "nowhere"


def _clip(file: str, fields: dict[str, str]) -> Clip:
    split = split_name(fields.get("split", ""))
    if split and not is_split(split):
        raise ValueError(
            f"{file}: {{split}} is {split!r}, expected train, valid, test or fold1, ...\n"
            "Rename it, or write {} in the pattern for a split of ours"
        )
    group = fields.get("group")
    return Clip(file, clean(fields["label"]), split, None if group is None else clean(group))
