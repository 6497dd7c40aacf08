"""GISE-51: 16,357 isolated sound events of FSD50K, 51 classes

S. Yadav, M. E. Foster: "GISE-51: A scalable isolated sound events dataset", 2021, arXiv 2103.12306.

The isolated events and the class map of Zenodo record 4593514; the mixtures are not needed. The layout is the one that
its authors' generate_mixtures.py and Scaper read: isolated_events/<train|val|eval>/<label>/<clip>. The archive itself
was not seen here: counts are as others quote the record, and the group, the number a clip's name begins with, is taken
for its Freesound id.

EVAR does not know this dataset. Clips of 5 s are our choice: the length of the soundscapes that its authors mix from
these events, and that of ESC-50, its partner in the cross-task figure, so that both count as many tokens a clip.
"""

from __future__ import annotations

import re
from pathlib import Path

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts

_SPLITS = {"train": "train", "val": "valid", "eval": "test"}
_RECORD = "https://zenodo.org/records/4593514/files"
REMOTES = tuple(
    Remote(name, f"{_RECORD}/{name}?download=1")
    for name in ("isolated_events.tar.gz", "meta.tar.gz")
)
COUNTS = {"clips": 16357, "classes": 51, "train": 12465, "valid": 1716, "test": 2176}
NOTES = (
    "clips of 5.0 s: our choice, the published study's is not stated where we could read it",
    "group is the leading number of the file name, taken for the Freesound id that FSD50K names its clips by",
)


def rows(source: Source) -> Rows:
    """`<train|val|eval>/<label>/<clip>`."""
    clips = []
    for clip in source.clips("(?P<split>train|val|eval)/(?P<label>[^/]+)/[^/]+"):
        clips.append(clip._replace(split=_SPLITS[clip.split], group=freesound_id(clip.file_name)))
    return Rows(clips, "folders train, val, eval of the dataset", notes=NOTES)


def freesound_id(name: str) -> str:
    """The number that a clip's name begins with; a name without one is its own group."""
    match = re.match(r"\d+", Path(name).stem)
    return match.group() if match else Path(name).stem


TASK = TaskFacts(
    rows,
    5.0,
    COUNTS,
    "Zenodo record 4593514 as quoted by others",
    splits="official",
    group="Freesound id",
)
DATASET = Dataset(
    name="gise51",
    text=__doc__,
    size="about 2.4 GB",
    licence="CC BY 4.0",
    tasks={"gise51": TASK},
    remotes=REMOTES,
)
