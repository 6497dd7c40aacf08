"""ESC-50: 2,000 environmental recordings of 5 s, 50 classes

K. J. Piczak: "ESC: Dataset for Environmental Sound Classification", ACM Multimedia 2015.

Pinned to one commit instead of master.zip. GitHub packs such archives on demand, and two MD5s of this commit's archive
are in circulation: `aape metadata` checks the contents instead. Any folder with audio/ and meta/esc50.csv serves, also
without metadata of ours: AAPE_ESC50=<folder> and the studies esc50 and esc50_base.
"""

from __future__ import annotations

from pathlib import Path

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts
from aape.sounds.clips import Clip, read_table

COMMIT = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"
REMOTES = (
    Remote(
        f"ESC-50-{COMMIT[:7]}.zip", f"https://github.com/karolpiczak/ESC-50/archive/{COMMIT}.zip"
    ),
)
COUNTS = {"clips": 2000, "classes": 50}
COUNTS |= dict.fromkeys(("fold1", "fold2", "fold3", "fold4", "fold5"), 400)


def rows(source: Source) -> Rows:
    """`meta/esc50.csv` and `audio/`, five official folds; group = Freesound recording."""
    table = read_table(source.companion("esc50.csv"), "filename", "category", "fold", "src_file")
    clips = []
    for name, label, fold, recording in table[
        ["filename", "category", "fold", "src_file"]
    ].to_numpy():
        clips.append(Clip(f"audio/{name}", label, f"fold{fold}", recording))
    return Rows(clips, "meta/esc50.csv of the dataset, official folds")


def recording_of(name: str) -> str:
    """`audio/1-100032-A-0.wav` -> `100032` (fold, recording, take, class)."""
    return Path(name).stem.split("-")[1]


TASK = TaskFacts(
    rows,
    5.0,
    COUNTS,
    "Piczak 2015",
    splits="official, 5 folds",
    group="Freesound recording (1,524)",
)
DATASET = Dataset(
    name="esc50",
    text=__doc__,
    size="about 600 MB",
    licence="CC BY-NC 3.0",
    tasks={"esc50": TASK},
    remotes=REMOTES,
    evar_group=recording_of,
)
