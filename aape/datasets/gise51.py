"""GISE-51: 16,357 isolated sound events of FSD50K, 51 classes

S. Yadav, M. E. Foster: "GISE-51: A scalable isolated sound events dataset", 2021, arXiv 2103.12306.

The isolated events and the class map of Zenodo record 4593514; the mixtures are not needed. The layout is the one that
its authors' generate_mixtures.py and Scaper read: isolated_events/<train|val|eval>/<label>/<clip>. A split folder
without folders of labels needs a <split>.csv beside it or in meta/: file name first, and a column `label`. The archive
itself was not seen here: counts are as others quote the record, and the group, the number a clip's name begins with, is
taken for its Freesound id.

EVAR does not know this dataset. Clips of 5 s are our choice: the length of the soundscapes that its authors mix from
these events, and that of ESC-50, its partner in the cross-task figure, so that both count as many tokens a clip.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from aape.cliplist import Clip, read_table
from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts

_SPLITS = {"train": "train", "val": "valid", "eval": "test"}
_RECORD = "https://zenodo.org/records/4593514/files"


def rows(source: Source) -> Rows:
    """`isolated_events/<train|val|eval>/<label>/<clip>`, or lists in place of the folders of labels."""
    base = next((b for b in ("isolated_events", "") if (source.root / b / "train").is_dir()), None)
    if base is None:
        raise FileNotFoundError(
            f"no isolated_events/train under {source.root}; unpack isolated_events.tar.gz of Zenodo record 4593514"
        )
    clips = []
    for theirs, ours in _SPLITS.items():
        folder = f"{base}/{theirs}/".lstrip("/")
        inside = [f for f in source.index.files if f.startswith(folder)]
        if not inside:
            raise FileNotFoundError(f"no audio under {source.root / folder}; expected GISE-51's {theirs} events")
        if all("/" not in f.removeprefix(folder) for f in inside):
            labelled = _listed(source, folder, theirs)
        else:
            labelled = [(f, f.removeprefix(folder).split("/")[0]) for f in inside]
        clips += [Clip(name, label, ours, freesound_id(name)) for name, label in labelled]
    notes = [
        "clips of 5.0 s: our choice, the published study's is not stated where we could read it",
        "group is the leading number of the file name, taken for the Freesound id that FSD50K names its clips by",
    ]
    class_map = source.companion("lbl_map.json")
    if class_map is not None:
        odd = sorted(set(json.loads(class_map.read_text(encoding="utf-8"))) ^ {clip.label for clip in clips})
        if odd:
            notes.append(f"classes differ from {class_map.name} in: {', '.join(odd)}")
    return Rows(clips, "folders train, val, eval of the dataset", notes=tuple(notes))


def _listed(source: Source, folder: str, split: str) -> list[tuple[str, str]]:
    """(file, label) of a split whose folder has no folders of labels."""
    path = source.companion(f"{split}.csv", f"isolated_events/{split}.csv")
    if path is None:
        raise FileNotFoundError(
            f"{source.root / folder} has no folders named after classes, and there is no {split}.csv in "
            f"{source.root} or its meta/ to say which clip belongs to which class"
        )
    table = read_table(path)
    column = next((c for c in ("label", "labels", "category", "class") if c in table.columns), "label")
    names = [n if Path(n).suffix else f"{n}.wav" for n in next(iter(table.columns.values()))]
    return [(folder + Path(name).name, label) for name, label in zip(names, *table.need(column), strict=True)]


def freesound_id(name: str) -> str:
    """The number that a clip's name begins with; a name without one is its own group."""
    match = re.match(r"\d+", Path(name).stem)
    return match.group() if match else Path(name).stem


DATASET = Dataset(
    name="gise51",
    text=__doc__,
    size="about 2.4 GB",
    licence="CC BY 4.0",
    remotes=tuple(Remote(name, f"{_RECORD}/{name}?download=1") for name in ("isolated_events.tar.gz", "meta.tar.gz")),
    tasks={
        "gise51": TaskFacts(
            rows=rows,
            clip_seconds=5.0,
            published={"clips": 16357, "classes": 51, "train": 12465, "valid": 1716, "test": 2176},
            source="Zenodo record 4593514 as quoted by others",
            splits="official",
            group="Freesound id",
        )
    },
)
