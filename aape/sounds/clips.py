"""Lists of clips: read strictly from CSV files or from the names of files, and splits that keep groups whole.

Imports only the standard library at the top, so that `doctor` runs on a Python without packages.
"""

from __future__ import annotations

import csv
import itertools
import os
import posixpath
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

# In order of preference where one clip lies there in several containers.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".au", ".aif", ".aiff", ".opus")
# Sounds that libsndfile or our checks of damage do not know.
OTHERS = (".m4a", ".mp4", ".aac", ".wma", ".caf", ".sph", ".w64", ".webm", ".mka", ".amr", ".3gp", ".wv", ".ape")
SPLITS = ("train", "valid", "test")
_GROUPS = ("group", "src_file", "speaker_id")  # ours, ESC-50's recording, EVAR's CREMA-D speaker
_ALIASES = {"val": "valid", "validation": "valid", "dev": "valid", "development": "valid"}
_ALIASES |= {"training": "train", "testing": "test", "eval": "test", "evaluation": "test"}
_SEVERAL = r",(?! )"  # in a label: EVAR writes several classes of a clip so
# What columns are called that say which clips belong together.
_GROUP_LIKE = re.compile(
    r"(speaker|spk|actor|singer|artist|performer|person|subject|participant|patient|client|user|author|recording|"
    r"recordist|session|source|video|track|song|album|instrument|individual|freesound|site)(s|_?id|_?name|_?no|_?number)?",
    re.IGNORECASE,
)


class Clip(NamedTuple):
    """One clip; `split` is train, valid, test, or fold1, fold2, ...; `group` None where unknown."""

    file_name: str
    label: str
    split: str
    group: str | None = None


def audio_files(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Audio files under a folder, relative to it, with /, sorted; without hidden ones, as macOS's ._ companions are."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the folder that holds the audio")
    found = []
    for place, folders, names in os.walk(root, followlinks=True):
        here = Path(place)
        folders[:] = [name for name in folders if name[0] != "." and not _leads_back(here / name)]
        sounds = (name for name in names if name[0] != "." and name.lower().endswith(suffixes))
        found += [(here / name).relative_to(root).as_posix() for name in sounds]  # a link to nowhere too: it is missing
    return sorted(found)


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in, which leads round in circles."""
    return folder.is_symlink() and folder.resolve() in [parent.resolve() for parent in folder.parents]


def refuse_or_name_others(root: Path, files: Sequence[str]) -> None:
    """Warn of audio that we cannot read, and of folders that hold no other. Raises FileNotFoundError where all do."""
    read = {posixpath.splitext(name)[0] for name in files}
    others = [name for name in audio_files(root, OTHERS) if posixpath.splitext(name)[0] not in read]
    if not files:
        found = f", found {len(others):,} others, e.g. {others[0]}; convert them" if others else ""
        raise FileNotFoundError(f"{root} holds no audio; expected files that end in {', '.join(SUFFIXES)}{found}")
    if others:
        heard = {folder for name in files for folder in PurePosixPath(name).parents}
        empty = sorted({str(PurePosixPath(name).parent) for name in others} - {*map(str, heard)})
        none = f"; no sound is left of {', '.join(empty[:5])}" if empty else ""
        found = f"{len(others):,} audio files that cannot be read are left out, e.g. {others[0]}{none}"
        warnings.warn(f"{root}: {found}. Convert them to one of {', '.join(SUFFIXES)}", stacklevel=3)


def each_once(root: Path, clips: Sequence[Clip]) -> list[Clip]:
    """The clips without those that a link shows again and, of one name in one folder, the one of the first of `SUFFIXES`."""
    order = lambda c: (SUFFIXES.index(posixpath.splitext(c.file_name)[1].lower()), c.file_name.count("/"), c.file_name)  # noqa: E731
    seen, again = set[object](), set[str]()
    for clip in sorted(clips, key=order):
        # what lies in two classes, splits or groups is two clips, of which the plan warns
        marks = {posixpath.splitext(clip.file_name)[0], (os.path.realpath(root / clip.file_name), *clip[1:])}
        again |= {clip.file_name} if marks & seen else set()
        seen |= marks
    if again:
        found = f"{len(again):,} of {len(clips):,} files are of a clip that is there, as another container or by a link"
        warnings.warn(f"{root}: {found}, e.g. {min(again)}; they are left out", stacklevel=3)
    return [clip for clip in clips if clip.file_name not in again]


def read_table(path: Path, *columns: str) -> pd.DataFrame:
    """A table with a header, separated by commas, or by tabs where the header has tabs.

    Text stays text, so that `01`, `NA` and `1.0` are what they are; the index is the line that a row ends on.

    Args:
        path: of the file. columns: that must be there.

    Raises:
        ValueError: not UTF-8, a column missing or twice, a row with more or fewer fields than the header, an open quote.
    """
    import pandas as pd

    rows: dict[int, list[str]] = {}  # by the line that they end on
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            tabs = "\t" in file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter="\t" if tabs else ",", strict=True)
            for row in filter(None, reader):
                rows[reader.line_num] = row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8 (a spreadsheet's CSV UTF-8)") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {max(rows, default=0) + 1}: {error}; is a quote left open there?") from None
    header = [name.strip() for name in rows.pop(min(rows, default=0), [])]
    if len({*header}) < len(header) or not {*columns} <= {*header}:
        wanted = f"{', '.join(columns) or 'columns'}, each column once"
        raise ValueError(f"{path}: expected {wanted}, found {', '.join(header)}; rename, add or remove columns")
    for line, row in rows.items():
        if len(row) != len(header):
            found = f"{len(row)} fields, but the header has {len(header)}"
            raise ValueError(f"{path}, line {line}: {found}; complete the line, or quote a field that holds a comma")
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object)


def read_clips_csv(
    path: Path, label: str = "label", group: str | None = None
) -> tuple[list[Clip], str | None, list[str]]:
    """The clips of a CSV file in EVAR's format, or of ESC-50's own `meta/esc50.csv`, the column of their groups, and notes.

    Args:
        path: see `aape.sounds.task.from_metadata`. label: column of the classes. group: column of the groups.

    Raises:
        ValueError: names the file, the line and what was expected.
    """
    table = read_table(path)
    if "file_name" not in table and {"filename", "category", "fold"} <= {*table}:
        table = table.rename(columns={"filename": "file_name"})
        label = "category" if label == "label" else label
    split = "split" if "split" in table else "fold"
    group = group or next((column for column in _GROUPS if column in table and column != label), None)
    refuse_one_column(path, label, group)
    wanted = ["file_name", label, split, *([group] if group else [])]
    if not {*wanted} <= {*table} or table.empty:
        found = f"{', '.join(map(str, table))} with {len(table)} rows"
        raise ValueError(f"{path}: expected columns {', '.join(wanted)} (split or fold), a row a clip, found {found}")
    if group is None:
        warn_of_groups(path, table.columns.difference(wanted))
    clips = table[wanted].set_axis(Clip._fields[: len(wanted)], axis=1)
    clips["file_name"] = [posixpath.normpath(name) if name else "" for name in clips["file_name"]]
    for column in clips.columns.drop("file_name"):  # spaces around a name make no other class, and no other speaker
        clips[column] = clips[column].str.strip()
    clips["split"] = clips["split"].replace(_ALIASES)
    without = clips["split"] == ""
    if without.any() and not without.all():  # EVAR's gtzan.csv lists 70 clips outside the fault-filtered ones
        warnings.warn(f"{path}: {without.sum()} row(s) without a {split} are left out", stacklevel=3)
        clips = clips[~without].copy()
    expected, regex = ("a whole number", r"\d+(\.0+)?") if split == "fold" else (", ".join(SPLITS), "|".join(SPLITS))
    outside = r"/|\\|\.\.(/|$)|[A-Za-z]:"
    complaints = {
        "a field is empty; complete the line, or remove it": (clips.apply(lambda c: c.str.strip()) == "").any(axis=1),
        "{file_name!r} leaves the audio folder; write it relative to that": clips["file_name"].str.match(outside),
        "{file_name!r} is a file that an earlier line has; list each clip once": clips["file_name"].duplicated(),
        "label {label!r} names several classes, expected one a clip": clips["label"].str.contains(_SEVERAL),
        f"{split} {{split!r}}, expected {expected}": ~clips["split"].str.fullmatch(regex),
    }
    for complaint, bad in complaints.items():
        if bad.any():
            row = clips[bad].iloc[0]
            raise ValueError(f"{path}, line {row.name}: {complaint.format(**row)}")
    if split == "fold":
        clips["split"] = "fold" + clips["split"].str.partition(".")[0]
    notes = [note for note in dict.fromkeys(table.get("split_note", ())) if note.strip()]
    return [Clip(*row) for row in clips.itertuples(index=False)], group, notes


def refuse_one_column(source: str | Path, label: str, group: str | None) -> None:
    """Raise ValueError where classes would be groups, of which no label can be permuted to another."""
    if label == group:
        raise ValueError(
            f"{source}: expected two columns, found label and group both {label!r}, which makes each class one group.\n"
            "Give the column of what recordings share within a class as group, or none."
        )


def warn_of_groups(source: str | Path, columns: Iterable[str]) -> None:
    """Warn of a column that nobody uses and that seems to say which clips belong together."""
    found = next((c for c in columns if _GROUP_LIKE.fullmatch(c)), None)
    if found is not None:
        what = f"the column {found!r} seems to say which clips belong together, and is not used"
        how = f"Give group={found!r} if it does: statistics and splits then go by group."
        warnings.warn(f"{source}: {what}. {how}", stacklevel=4)


def our_split(seed: int, whole_groups: bool = True) -> str:
    """What a reader of results must know of a split of ours; it goes into the column `split_note` of a table."""
    return f"the split is ours{' by whole groups' * whole_groups}, seed {seed}: not one to be compared with"


def csv_text(clips: Iterable[Clip], split_note: str = "") -> str:
    """EVAR's format: a column `fold` where splits are folds, else `split`; `group` and `split_note` where there are any.

    Raises:
        ValueError: a class that could not be read back.
    """
    import pandas as pd

    table = pd.DataFrame(list(clips), columns=list(Clip._fields))
    if several := table["label"][table["label"].str.contains(_SEVERAL)].tolist():
        raise ValueError(
            f"{several[0]!r} would be read back as several classes: rename it, or put a space behind the comma"
        )
    if table["split"].str.startswith("fold").all():
        table = table.rename(columns={"split": "fold"}).replace({"fold": {"^fold": ""}}, regex=True)
    if table["group"].isna().any():
        del table["group"]
    if split_note:
        table["split_note"] = split_note
    return table.to_csv(index=False, lineterminator="\n")


def class_order(labels: Iterable[str], source: str | Path) -> list[str]:
    """Class names sorted, numbers as numbers (EVAR).

    Raises:
        ValueError: one number written in two ways, such as 1 and 01; names the source.
    """
    names = sorted(set(labels))
    try:
        names.sort(key=float)
    except ValueError:
        return sorted(names)
    for one, other in itertools.pairwise(names):
        if float(one) == float(other):
            raise ValueError(f"{source}: the labels {one!r} and {other!r} are one number; write it one way")
    return names


def split_clips(
    clips: Sequence[Clip],
    shares: Mapping[str, float],
    seed: int,
    source: str | Path,
    strata: Sequence[str] | None = None,
) -> list[Clip]:
    """The clips with a split of our own: whole groups, drawn at random within each stratum.

    Args:
        clips: a group never straddles two splits; a clip without one is its own.
        shares: split -> share of the groups; the first one takes what rounding leaves.
        seed: of numpy's default generator.
        source: what errors name.
        strata: of each clip; each stratum (a language, say) is divided by itself, and a group belongs to its first
            clip's. None: the classes, where no group has clips of two of them.

    Raises:
        ValueError: shares that are none, or fewer groups than splits.
    """
    import numpy as np

    if not all(_split_name(name) == name for name in shares) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(
            f"split={dict(shares)}: expected shares of {', '.join(SPLITS)} (or fold1, ...) that add up to 1"
        )
    groups = [str(i) if clip.group is None else clip.group for i, clip in enumerate(clips)]
    known = sorted(set(groups))
    if len(known) < len(shares):
        found = f"{len(known)} group(s) ({', '.join(known[:3])}) cannot fill the splits {', '.join(shares)}"
        raise ValueError(f"{source}: {found}, each in one only; give another {{group}}, or split={{...}} with fewer")
    if strata is None:
        straddle = len({(group, clip.label) for group, clip in zip(groups, clips, strict=True)}) > len(known)
        strata = ["" if straddle else clip.label for clip in clips]
    stratum_of = dict(reversed(list(zip(groups, strata, strict=True))))
    generator = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    first, *rest = shares
    for stratum in sorted(set(stratum_of.values())):
        members = [group for group in known if stratum_of[group] == stratum]
        order = [members[i] for i in generator.permutation(len(members))]
        for name in rest:  # every split should know every stratum
            count = round(shares[name] * len(members)) or int(len(members) >= len(shares))
            split_of |= dict.fromkeys(order[:count], name)
            order = order[count:]
        split_of |= dict.fromkeys(order, first)
    return [clip._replace(split=split_of[group]) for group, clip in zip(groups, clips, strict=True)]


def clips_of_names(files: Sequence[str], pattern: str | None) -> list[Clip]:
    """Label, group and split (where there are any, else "") of each file, from its path.

    Args:
        files: paths with /. pattern: see `aape.sounds.task.from_folder`.

    Raises:
        ValueError: no class folders, a pattern that is none or that no file matches, or a `{split}` that is none.
    """
    if pattern is None:
        if flat := [f for f in files if "/" not in f]:
            raise ValueError(
                f"expected folders named after classes, found {len(flat)} file(s) without one, e.g. {flat[0]}; move "
                "them, or say how names are made: pattern='{label}_{group}_{take}.wav'"
            )
        tops, deep = sorted({f.split("/")[0] for f in files}), all(f.count("/") > 1 for f in files)
        none = [top for top in tops if not deep or not _split_name(top)]
        if none and len(none) < len(tops) - 1:
            these = f"of the folders {', '.join(tops)} some are splits, {none[0]!r} is none"
            raise ValueError(
                f"{these}; rename it or move it away, or say that all are classes: pattern='{{label}}/**/*'"
            )
        pattern = "{label}/**/*" if none else "{split}/{label}/**/*"
    pieces = [piece for piece in re.split(r"(\{\w*\}|\*\*/|\*)", pattern) if piece]
    if pieces.count("{label}") != 1 or max(pieces.count("{group}"), pieces.count("{split}")) > 1:
        raise ValueError(f"the pattern {pattern!r} needs {{label}} once, and {{group}} and {{split}} at most once")
    whole = pattern.lower().endswith(SUFFIXES)
    regex = re.compile(_regex(pieces))
    clips, strangers = [], []
    for file in files:
        path = file if "/" in pattern else posixpath.basename(file)
        match = regex.fullmatch(path if whole else posixpath.splitext(path)[0])
        if match is None:
            strangers.append(f"{file} (fits {_as_far_as(path, pieces)})")
        else:
            found = match.groupdict()
            split = found.get("split", "")
            if split and not _split_name(split):
                raise ValueError(
                    f"{file}: {{split}} is {split!r}, expected {', '.join([*SPLITS, *_ALIASES])} or fold1, ...\nRename it, "
                    "or write {} in the pattern for a split of ours"
                )
            clips.append(Clip(file, found["label"], _split_name(split), found.get("group")))
    shown = f"{len(strangers):,} of {len(files):,} files do not fit the pattern {pattern!r}: {'; '.join(strangers[:3])}"
    if not clips:
        raise ValueError(shown)
    if strangers:
        warnings.warn(f"{shown}; they are left out", stacklevel=3)
    return clips


def _split_name(name: str) -> str:
    """A split as we call it; "" for what is none."""
    name = _ALIASES.get(name.lower(), name.lower())
    return name if name in SPLITS or re.fullmatch(r"fold\d+", name) else ""


def _regex(pieces: Sequence[str]) -> str:
    """The regular expression of a pattern's pieces."""
    known = {"**/": r"(?:[^/]+/)*?", "*": "[^/]*?"}
    known |= {piece: "[^/]+?" for piece in pieces if re.fullmatch(r"\{\w*\}", piece)}
    known |= {f"{{{name}}}": f"(?P<{name}>[^/]+?)" for name in ("label", "group", "split")}
    return "".join(known.get(piece) or re.escape(piece) for piece in pieces)


def _as_far_as(path: str, pieces: Sequence[str]) -> str:
    """The longest beginning of a pattern that a file's name fits, in words."""
    fitting = (n for n in range(len(pieces) - 1, 0, -1) if re.match(_regex(pieces[:n]), path))
    count = next(fitting, 0)
    return f"as far as {''.join(pieces[:count])!r}" if count else "nowhere"
