"""EVAR-format metadata (`file_name,label,split|fold,group`) from the datasets as they are distributed today.

    python -m aape.datasets gtzan /data/gtzan metadata/gtzan.csv
    python -m aape.datasets cremad /data/CREMA-D metadata/cremad.csv --evar ~/evar

Where an EVAR clone already holds a task's metadata, those labels and splits are used as they are and only the groups
are added. Otherwise official splits are read from the dataset; where none exists, a seeded split of ours is drawn and
marked as not comparable in the report beside the CSV (`<name>.json`). The report compares counts with published ones
and tells missing files from invalid ones; neither gets a row. Whole but short clips are kept and named.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aape.datasets import events, music, speech
from aape.datasets.files import CHECKS, find_invalid, find_short
from aape.datasets.source import Rows, Source, evar_metadata, read_evar

__all__ = ["CLIP_SECONDS", "DATASETS", "PUBLISHED", "Report", "build_metadata", "evar_metadata", "main"]

DATASETS: Mapping[str, Callable[[Source], Rows]] = {
    "esc50": events.esc50,
    "gise51": events.gise51,
    "voxforge": speech.voxforge,
    "vc1_gender": speech.vc1_gender,
    "vc1_country": speech.vc1_country,
    "cremad": speech.cremad,
    "cremad_gender": speech.cremad_gender,
    "gtzan": music.gtzan,
    "nspitch": music.nspitch,
    "surge": music.surge,
}

# Length of every clip, s. EVAR's, but gise51, which EVAR does not know: 5.0 is the length of the soundscapes that
# GISE-51's authors mix from the same events, and that of ESC-50, its partner in the cross-task figure, so that both
# sides of the figure count the same number of tokens a clip.
CLIP_SECONDS: Mapping[str, float] = {
    "esc50": 5.0,
    "gise51": 5.0,
    "voxforge": 5.8,
    "vc1_gender": 8.2,
    "vc1_country": 8.2,
    "cremad": 2.5,
    "cremad_gender": 2.5,
    "gtzan": 30.0,
    "nspitch": 4.0,
    "surge": 4.0,
}

_VC1 = {"clips": 153516, "train": 138361, "valid": 6904, "test": 8251, "groups": 1251}
_CREMAD = {"clips": 7438, "train": 5155, "valid": 732, "test": 1551, "groups": 91}

# Counts to hold a download against, each with its source.
PUBLISHED: Mapping[str, tuple[Mapping[str, int], str]] = {
    "esc50": ({"clips": 2000, "classes": 50, **{f"fold{i}": 400 for i in range(1, 6)}}, "Piczak 2015"),
    "gise51": (
        {"clips": 16357, "classes": 51, "train": 12465, "valid": 1716, "test": 2176},
        "Zenodo record 4593514 as quoted by others; not verified here",
    ),
    "voxforge": ({"clips": 176428, "classes": 6}, "EVAR, make_metadata.py"),
    "vc1_gender": ({**_VC1, "classes": 2}, "Nagrani et al. 2017; total and speakers also EVAR, make_metadata.py"),
    "vc1_country": ({**_VC1, "classes": 36}, "Nagrani et al. 2017; nationalities counted in vox1_meta.csv"),
    "cremad": ({**_CREMAD, "classes": 6}, "EVAR, cremad.csv (7,442 clips in the original publication)"),
    "cremad_gender": ({**_CREMAD, "classes": 2}, "EVAR, cremad_gender.csv"),
    "gtzan": (
        {"clips": 930, "classes": 10, "train": 443, "valid": 197, "test": 290},
        "lists of jongpillee/music_dataset_split; EVAR's README prints the same",
    ),
    "nspitch": (
        {"clips": 305979, "train": 289205, "valid": 12678, "test": 4096},
        "Engel et al. 2017; total also EVAR, make_metadata.py",
    ),
    "surge": (
        {"clips": 183392, "classes": 88, "groups": 2084, "train": 148896, "valid": 17160, "test": 17336},
        "EVAR's list of 2,084 patches times 88 pitches",
    ),
}


@dataclass(frozen=True)
class Report:
    """What a metadata file was made from and what was wrong with the data; lies beside the CSV as JSON.

    Attributes:
        dataset, csv: name and path.
        origin: where labels and splits come from; `seed` where the split is ours.
        comparable: whether results on these splits may be put beside published ones.
        counts: found: clips, classes, groups, and clips a split.
        published: the same as published, and `published_source`.
        missing: files that a list names and that are not there.
        invalid: (file, reason) that are there and cannot be used.
        short: (file, length) of whole files shorter than the dataset's clips; kept, and padded when read.
        notes: what a reader of the results must know.
    """

    dataset: str
    csv: str
    origin: str
    comparable: bool
    seed: int | None
    clip_seconds: float
    counts: dict[str, int]
    published: dict[str, int]
    published_source: str
    missing: tuple[str, ...]
    invalid: tuple[tuple[str, str], ...]
    short: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def as_published(self) -> bool:
        """Whether every published count was met."""
        return all(self.counts.get(k, 0) == v for k, v in self.published.items())

    def __str__(self) -> str:
        lines = [
            f"{self.dataset}: {self.counts['clips']:,} clips of {self.clip_seconds:g} s -> {self.csv}",
            f"  splits   {self.origin}" + ("" if self.seed is None else f", seed {self.seed}"),
        ]
        if not self.comparable:
            lines.append("  NOT COMPARABLE with published results: the split is ours")
        lines.append(f"  {'count':<10}{'found':>10}{'published':>12}   ({self.published_source})")
        for key in dict.fromkeys([*self.published, *self.counts]):
            found, published = self.counts.get(key, 0), self.published.get(key)
            shown = "-" if published is None else f"{published:,}"
            mark = "" if published in (None, found) else "  differs"
            lines.append(f"  {key:<10}{found:>10,}{shown:>12}{mark}")
        for title, items in (
            ("missing, left out", list(self.missing)),
            ("invalid, left out", [f"{name}: {reason}" for name, reason in self.invalid]),
            ("short, kept", [f"{name}: {length}" for name, length in self.short]),
        ):
            if items:
                lines.append(f"  {title}: {len(items):,}")
                lines += [f"    {item}" for item in items[:10]]
                if len(items) > 10:
                    lines.append(f"    ... all of them in {Path(self.csv).with_suffix('.json').name}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _rows(dataset: str, source: Source) -> Rows:
    """The dataset's rows: an EVAR user's own metadata first, then the dataset itself."""
    existing = evar_metadata(dataset, source.evar)
    if existing is None:
        return DATASETS[dataset](source)
    table, notes = read_evar(existing)
    group = speech.group_of(dataset, table)
    if dataset == "nspitch":
        group = table.file_name.map(music.instrument_of)
    elif dataset == "surge":
        group = table.file_name.map(lambda n: Path(n).parent.name)
    elif dataset == "esc50":
        group = table["src_file"].astype(str) if "src_file" in table else table.file_name.map(_esc50_recording)
    column = "split" if "split" in table else "fold"
    rows = table[["file_name", "label", column]]
    return Rows(
        rows if group is None else rows.assign(group=group),
        origin=f"EVAR's {existing.name}, used as it is",
        bases=tuple(
            dict.fromkeys(("", *music.GTZAN_BASES, *speech.CREMAD_BASES, "surge", "nsynth", "voxforge", "esc50"))
        ),
        notes=notes,
    )


def _esc50_recording(name: str) -> str:
    """`audio/1-100032-A-0.wav` -> `100032` (fold, recording, take, class)."""
    return Path(name).stem.split("-")[1]


def build_metadata(
    dataset: str,
    root: str | Path,
    out_csv: str | Path,
    evar: str | Path | None = None,
    *,
    lists: str | Path | None = None,
    seed: int = 0,
    check: str = "header",
) -> Report:
    """Write a task's metadata and its report.

    Args:
        dataset: a key of `DATASETS`.
        root: the folder that the dataset was unpacked to; `file_name` becomes relative to it, so it is the task's
            `audio_dir` too.
        out_csv: the CSV to write; the report goes beside it with suffix .json.
        evar: a clone of EVAR. None: the environment variable EVAR, where set.
        lists: a folder with split lists that the dataset does not bring (GTZAN's).
        seed: of a split of ours.
        check: "header" (sizes, headers, last sample), "read" (decode everything), "none" (only whether files exist).

    Raises:
        ValueError: unknown dataset or check; a list is not what it should be.
        FileNotFoundError: the folder, a list, or every file is missing.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset {dataset!r}, expected one of {', '.join(DATASETS)}")
    if check not in CHECKS:
        raise ValueError(f"check={check!r}, expected one of {', '.join(CHECKS)}")
    evar = evar if evar is not None else os.environ.get("EVAR") or None
    source = Source(
        Path(root).expanduser(),
        None if evar is None else Path(evar).expanduser(),
        None if lists is None else Path(lists).expanduser(),
        seed,
    )
    rows = _rows(dataset, source)
    table = rows.table.copy()
    found = [source.index.find(name, rows.bases) for name in table.file_name]
    missing = [name for name, path in zip(table.file_name, found, strict=True) if path is None]
    table["file_name"] = found
    table = table[table.file_name.notna()]
    if table.empty:
        raise FileNotFoundError(
            f"none of the {len(missing):,} files of {dataset} is under {source.root}, e.g. {missing[0]}. "
            f"Found there: {', '.join(source.index.files[:3]) or 'no audio file'}"
        )
    invalid = find_invalid(source.root, table.file_name, check=check, title=dataset)
    table = table[~table.file_name.isin([name for name, _ in invalid])]
    short: list[tuple[str, str]] = []
    if rows.shortest and check != "none":
        short = find_short(source.root, table.file_name, shortest=rows.shortest)
    counts = {"clips": len(table), "classes": int(table.label.nunique())}
    if "group" in table:
        counts["groups"] = int(table.group.nunique())
    column = "split" if "split" in table else "fold"
    prefix = "" if column == "split" else "fold"
    counts |= {f"{prefix}{k}": int(v) for k, v in table[column].value_counts(sort=False).items()}
    published, published_source = PUBLISHED[dataset]
    report = Report(
        dataset=dataset,
        csv=str(out_csv),
        origin=rows.origin,
        comparable=rows.comparable,
        seed=rows.seed,
        clip_seconds=CLIP_SECONDS[dataset],
        counts=counts,
        published=dict(published),
        published_source=published_source,
        missing=(*missing, *rows.absent),
        invalid=tuple(invalid),
        short=tuple(short),
        notes=rows.notes,
    )
    out_csv = Path(out_csv).expanduser()
    out_csv.parent.mkdir(parents=True, exist_ok=True)
    _write(out_csv, table.to_csv(index=False, lineterminator="\n"))
    content: dict[str, Any] = {**asdict(report), "as_published": report.as_published, "root": str(source.root)}
    _write(out_csv.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return report


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 when whole, 1 when files are missing or invalid (the CSV is written all the same)."""
    parser = argparse.ArgumentParser(prog="metadata", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("root", help="folder that the dataset was unpacked to")
    parser.add_argument("out_csv", help="metadata to write; the report goes beside it as .json")
    parser.add_argument("--evar", help="clone of EVAR (default: the environment variable EVAR)")
    parser.add_argument("--lists", help="folder with split lists that the dataset does not bring (GTZAN)")
    parser.add_argument("--seed", type=int, default=0, help="of a split of ours, where no other exists")
    parser.add_argument("--check", choices=CHECKS, default="header", help="how closely to look at each file")
    options = parser.parse_args(argv)
    try:
        report = build_metadata(
            options.dataset,
            options.root,
            options.out_csv,
            options.evar,
            lists=options.lists,
            seed=options.seed,
            check=options.check,
        )
    except (FileNotFoundError, ValueError) as error:
        print(f"{options.dataset}: {error}")
        return 2
    print(report)
    return 1 if report.missing or report.invalid else 0
