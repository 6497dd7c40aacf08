"""Lists of clips: read strictly from CSV files or from the names of files, and splits that keep groups whole.

Imports only the standard library at the top, so that `doctor` reads lists on a Python without packages.
"""

from __future__ import annotations

import csv
import io
import itertools
import posixpath
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

GROUP_COLUMNS = ("group", "src_file", "speaker_id")  # ours, ESC-50's recording, EVAR's CREMA-D speaker
SPLITS = ("train", "valid", "test")
_ALIASES = {"val": "valid", "validation": "valid"}
# What columns are called that say which clips belong together.
_GROUP_LIKE = re.compile(
    r"(speaker|spk|actor|singer|artist|performer|person|subject|participant|patient|client|user|author|recording|"
    r"recordist|session|source|video|track|song|album|instrument|individual|freesound|site)(s|_?id|_?name|_?no|_?number)?",
    re.IGNORECASE,
)
_FIELD = re.compile(r"\{(\w*)\}|\*\*/|\*")


class Clip(NamedTuple):
    """One clip; `split` is train, valid, test, or fold1, fold2, ...; `group` None where unknown."""

    file_name: str
    label: str
    split: str
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """A CSV file as text: nothing is guessed, so that `01`, `NA` and `1.0` stay what they are.

    Attributes:
        path: the file. columns: name -> values, in the file's order. lines: line of the file that each row ends on.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def need(self, *names: str) -> list[list[str]]:
        """The columns of these names. Raises ValueError where one is missing."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise ValueError(
                f"{self.path}: expected columns {', '.join(names)}, found {', '.join(self.columns)}; "
                f"add {', '.join(missing)}"
            )
        return [self.columns[name] for name in names]

    def where(self, keep: Sequence[bool]) -> Table:
        """The rows for which `keep` is true."""
        chosen = [i for i, k in enumerate(keep) if k]
        columns = {name: [values[i] for i in chosen] for name, values in self.columns.items()}
        return Table(self.path, columns, [self.lines[i] for i in chosen])


def read_table(path: Path) -> Table:
    """Read a table whose header names its columns, separated by commas, or by tabs where the header has tabs.

    Raises:
        ValueError: not UTF-8, two columns of one name, a row with more or fewer fields than the header, an open quote.
    """
    lines, rows = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header_line = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter="\t" if "\t" in header_line else ",", strict=True)
            header = [name.strip() for name in next(reader, [])]
            begins = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(header)}; remove "
                        "what is too much, or put quotes around a field that holds a comma"
                    )
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
                begins = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); save it as UTF-8 (a "
            "spreadsheet calls it CSV UTF-8)"
        ) from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {begins}: {error}; is a quote left open there?") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: the column {twice[0]!r} stands there twice; rename or remove one of them")
    columns = zip(*rows, strict=True) if rows else [[] for _ in header]
    return Table(path, {name: list(values) for name, values in zip(header, columns, strict=True)}, lines)


def seeded_split(groups: Sequence[str], strata: Sequence[str], *, shares: Mapping[str, float], seed: int) -> list[str]:
    """A split of our own: whole groups, drawn at random within each stratum.

    Args:
        groups: of each clip; a group never straddles two splits.
        strata: of each clip; each stratum (a language, say) is divided by itself. A group belongs to its first clip's.
        shares: split -> share of the groups; the first one takes what rounding leaves.
        seed: of numpy's default generator.

    Returns:
        The split of each clip.
    """
    import numpy as np

    stratum_of: dict[str, str] = {}
    for group, stratum in zip(groups, strata, strict=True):
        stratum_of.setdefault(group, stratum)
    generator = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    first, *rest = shares
    for stratum in sorted(set(stratum_of.values())):
        members = sorted(g for g, s in stratum_of.items() if s == stratum)
        order = [members[i] for i in generator.permutation(len(members))]
        start = 0
        for name in rest:
            count = round(shares[name] * len(members))
            if count == 0 and len(members) >= len(shares):
                count = 1  # every split should know every stratum
            split_of.update(dict.fromkeys(order[start : start + count], name))
            start += count
        split_of.update(dict.fromkeys(order[start:], first))
    return [split_of[g] for g in groups]


def split_clips(clips: Sequence[Clip], shares: Mapping[str, float], seed: int, source: str | Path) -> list[Clip]:
    """A seeded split by whole groups, within each class where groups do not straddle classes.

    Raises:
        ValueError: fewer groups than splits.
    """
    groups = [str(i) if clip.group is None else clip.group for i, clip in enumerate(clips)]
    if len(set(groups)) < len(shares):
        raise ValueError(
            f"{source}: {len(set(groups))} group(s) ({', '.join(sorted(set(groups))[:3])}) cannot fill the splits "
            f"{', '.join(shares)} without standing in two of them; give another {{group}}, or split={{...}} with fewer"
        )
    straddle = len(set(zip(groups, (clip.label for clip in clips), strict=True))) > len(set(groups))
    strata = ["" if straddle else clip.label for clip in clips]
    drawn = seeded_split(groups, strata, shares=shares, seed=seed)
    return [clip._replace(split=split) for clip, split in zip(clips, drawn, strict=True)]


def csv_text(clips: Iterable[Clip]) -> str:
    """EVAR's format: a column `fold` where splits are folds, else `split`; `group` where groups are known."""
    clips = list(clips)
    folds = all(clip.split.startswith("fold") for clip in clips)
    grouped = all(clip.group is not None for clip in clips)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "label", "fold" if folds else "split", *(["group"] if grouped else [])])
    for clip in clips:
        split = clip.split.removeprefix("fold") if folds else clip.split
        writer.writerow([clip.file_name, clip.label, split, *([clip.group] if grouped else [])])
    return text.getvalue()


def read_clips_csv(path: Path, label: str = "label", group: str | None = None) -> tuple[list[Clip], str | None]:
    """The clips of a CSV file in EVAR's format, or of ESC-50's own `meta/esc50.csv`, and the column of their groups.

    Args:
        path: see `aape.task.from_metadata`. label: column of the classes. group: column of the groups.

    Raises:
        ValueError: names the file, the line and what was expected.
    """
    table = read_table(path)
    names = "file_name"
    if names not in table.columns and {"filename", "category", "fold"} <= set(table.columns):
        names, label = "filename", "category" if label == "label" else label
    if names not in table.columns or label not in table.columns or not {"split", "fold"} & set(table.columns):
        raise ValueError(
            f"{path}: expected columns file_name, {label} and split (or fold), found {', '.join(table.columns)}"
        )
    if len(table) == 0:
        raise ValueError(f"{path}: no rows, expected one a clip")
    if "split" in table.columns:
        empty = [not s.strip() for s in table.columns["split"]]
        if any(empty) and not all(empty):  # EVAR's gtzan.csv lists 70 clips outside the fault-filtered ones
            warnings.warn(f"{path}: {sum(empty)} row(s) without a split are left out", stacklevel=3)
            table = table.where([not e for e in empty])
    column = _group_column(table, group, (names, label, "split", "fold"))
    groups = [None] * len(table) if column is None else table.columns[column]
    files = [posixpath.normpath(name) if name else "" for name in table.columns[names]]
    clips = [Clip(*row) for row in zip(files, table.columns[label], _splits(table), groups, strict=True)]
    _check_clips(clips, table, column)
    return clips, column


def _group_column(table: Table, wanted: str | None, taken: Sequence[str]) -> str | None:
    if wanted is not None:
        table.need(wanted)
        return wanted
    known = next((c for c in GROUP_COLUMNS if c in table.columns), None)
    if known is None:
        warn_of_groups(table.path, [c for c in table.columns if c not in taken])
    return known


def warn_of_groups(source: str | Path, columns: Iterable[str]) -> None:
    """Warn of a column that nobody uses and that seems to say which clips belong together."""
    found = next((c for c in columns if _GROUP_LIKE.fullmatch(c)), None)
    if found is not None:
        warnings.warn(
            f"{source}: the column {found!r} seems to say which clips belong together, and is not used. Give "
            f"group={found!r} if it does: statistics and splits then go by group.",
            stacklevel=5,
        )


def _splits(table: Table) -> list[str]:
    if "split" in table.columns:
        return [_ALIASES.get(s, s) for s in table.columns["split"]]
    folds = []
    for line, fold in zip(table.lines, table.columns["fold"], strict=True):
        try:
            number = float(fold)
        except ValueError:
            number = 0.5
        if not number.is_integer():
            raise ValueError(f"{table.path}, line {line}: fold must be numbers without a fraction, found {fold!r}")
        folds.append(f"fold{int(number)}")
    return folds


def _check_clips(clips: Sequence[Clip], table: Table, group_column: str | None) -> None:
    """Complaints about rows, each with its line in the file."""
    first: dict[str, int] = {}
    folds = "fold" in table.columns and "split" not in table.columns
    for line, clip in zip(table.lines, clips, strict=True):
        where = f"{table.path}, line {line}: "
        name, label = clip.file_name, clip.label
        if not name:
            raise ValueError(f"{where}no file_name; name the file, or remove the line")
        if name.startswith(("/", "\\", "../")) or name == ".." or re.match(r"[A-Za-z]:", name):
            raise ValueError(f"{where}file_name {name!r} leaves the audio folder; write it relative to that folder")
        if name in first:
            raise ValueError(f"{where}{name!r} is a file that an earlier line has ({first[name]}); list each clip once")
        first[name] = line
        if not label.strip():
            raise ValueError(f"{where}no label; give one, or remove the line")
        if "," in label:
            raise ValueError(
                f"{where}label {label!r} names several classes. Conditional activation probabilities are defined here "
                "for one class a clip; keep the clips with a single label."
            )
        if not folds and clip.split not in SPLITS:
            raise ValueError(f"{where}split {clip.split!r}, expected {', '.join(SPLITS)}")
        if clip.group is not None and not clip.group.strip():
            raise ValueError(f"{where}empty {group_column}; name the group or drop the column")


def class_order(labels: Iterable[str]) -> list[str]:
    """Class names sorted, numbers as numbers (EVAR).

    Raises:
        ValueError: one number written in two ways, such as 1 and 01.
    """
    names = sorted(set(labels))
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return names
    names.sort(key=values.__getitem__)
    for one, other in itertools.pairwise(names):
        if values[one] == values[other]:
            raise ValueError(f"the labels {one!r} and {other!r} are one number written in two ways; write it one way")
    return names


def clips_of_names(files: Sequence[str], pattern: str | None, suffixes: Sequence[str]) -> list[Clip]:
    """Label, group and split (where there are any, else "") of each file, from its path.

    Args:
        files: paths with /. pattern: see `aape.task.from_folder`. suffixes: of audio files.

    Raises:
        ValueError: no class folders, or a pattern that is none or that no file matches.
    """
    if pattern is None:
        flat = [f for f in files if "/" not in f]
        if flat:
            raise ValueError(
                f"expected folders named after classes, found {len(flat)} file(s) without one, e.g. {flat[0]}; move "
                "them, or say how names are made: pattern='{label}_{group}_{take}.wav'"
            )
        splits = all(f.count("/") > 1 and _split_name(f.split("/")[0]) for f in files)
        pattern = "{split}/{label}/**/*" if splits else "{label}/**/*"
    tokens = _tokens(pattern)
    whole = pattern.lower().endswith(tuple(suffixes))
    clips, strangers = [], []
    for file in files:
        path = file if whole else posixpath.splitext(file)[0]
        match = re.fullmatch(
            "".join(regex for _, regex in tokens), path if "/" in pattern else posixpath.basename(path)
        )
        if match is None:
            strangers.append(file)
            continue
        found = match.groupdict()
        clips.append(Clip(file, found["label"], _split_name(found.get("split", "")), found.get("group")))
    if strangers:
        shown = "; ".join(f"{name} (fits {_fitting(name, pattern, tokens)})" for name in strangers[:3])
        if not clips:
            raise ValueError(f"none of the {len(files):,} files fits the pattern {pattern!r}: {shown}")
        warnings.warn(f"{len(strangers):,} file(s) do not fit {pattern!r} and are left out: {shown}", stacklevel=3)
    return clips


def _split_name(name: str) -> str:
    """A split as we call it; "" for what is none."""
    name = _ALIASES.get(name.lower(), name.lower())
    return name if name in SPLITS or re.fullmatch(r"fold\d+", name) else ""


def _tokens(pattern: str) -> list[tuple[str, str]]:
    """(text, regular expression) of each piece of a pattern."""
    tokens, end, seen = [], 0, set()
    for field in _FIELD.finditer(pattern):
        tokens.append((pattern[end : field.start()], re.escape(pattern[end : field.start()])))
        name, end = field[1], field.end()
        if name in ("label", "group", "split"):
            if name in seen:
                raise ValueError(
                    f"the pattern {pattern!r} has {{{name}}} twice; once is enough, {{}} stands for the other"
                )
            regex = rf"(?P<{name}>[^/]+?)"
        else:
            regex = r"(?:[^/]+/)*?" if field[0] == "**/" else "[^/]*?" if field[0] == "*" else "[^/]+?"
        seen.add(name)
        tokens.append((field[0], regex))
    if "label" not in seen:
        raise ValueError(f"the pattern {pattern!r} has no {{label}}, which names the class")
    return [*tokens, (pattern[end:], re.escape(pattern[end:]))]


def _fitting(file: str, pattern: str, tokens: Sequence[tuple[str, str]]) -> str:
    """The longest beginning of a pattern that a file's name fits, in words."""
    path = file if "/" in pattern else posixpath.basename(file)
    for count in range(len(tokens) - 1, 0, -1):
        text = "".join(t for t, _ in tokens[:count])
        if text and re.match("".join(regex for _, regex in tokens[:count]), path):
            return f"as far as {text!r}"
    return "nowhere"
