"""CREMA-D: 7,442 clips of 91 actors saying twelve sentences in six emotions

H. Cao et al.: "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Trans. Affective Computing 5, 2014.

Needs Git LFS; leaving the videos out saves most of the repository:

    GIT_LFS_SKIP_SMUDGE=1 git clone --depth 1 https://github.com/CheyneyComputerScience/CREMA-D.git data/cremad
    (cd data/cremad && git lfs install --local && git lfs pull --include "AudioWAV/*")
    EVAR=<clone> aape metadata cremad data/cremad data/metadata/cremad.csv

A file of 131 bytes that is "not readable as audio" is a Git LFS pointer. EVAR's download_cremad.py gets the same
recordings one by one. The published split is EVAR's; without its clone the split is ours, by actor, and the actors' sex
comes from VideoDemographics.csv. Both tasks list the same clips in the same order, so that one pass serves both.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from aape.datasets.base import Dataset, Rows, Source, TaskFacts, labelled

COUNTS = {"clips": 7438, "train": 5155, "valid": 732, "test": 1551, "groups": 91}


def emotion(source: Source) -> Rows:
    """By emotion, from the file names; only reached without EVAR's cremad.csv. Group = actor."""
    clips = source.clips(r"(?P<group>\d{4})_[A-Z]{3}_(?P<label>ANG|DIS|FEA|HAP|NEU|SAD)_[A-Z]{1,2}")
    labelled_clips = [clip._replace(label=clip.label.upper()) for clip in clips]
    return Rows(
        labelled_clips,
        "a seeded split of ours by actor, 70:10:20",
        {"train": 0.7, "valid": 0.1, "test": 0.2},
        ["set EVAR to a clone for the published split (its evar/metadata/cremad.csv)"],
    )


def gender(source: Source) -> Rows:
    """By the actor's sex; the rows of `emotion` in the same order."""
    rows = emotion(source)
    return rows._replace(
        clips=labelled(rows.clips, source.companion("VideoDemographics.csv"), "ActorID", "Sex")
    )


_FACTS = {"splits": "EVAR's, else ours", "group": "actor"}
TASKS = {
    "cremad": TaskFacts(emotion, 2.5, COUNTS | {"classes": 6}, "EVAR, cremad.csv", **_FACTS),
    "cremad_gender": TaskFacts(
        gender, 2.5, COUNTS | {"classes": 2}, "EVAR, cremad_gender.csv", **_FACTS
    ),
}
_LICENCE = "ODbL 1.0, see the repository"
DATASET = Dataset(
    name="cremad",
    text=__doc__,
    size="not verified here",
    licence=_LICENCE,
    tasks=TASKS,
    evar_group=lambda name: PurePosixPath(name).name[:4],
)
