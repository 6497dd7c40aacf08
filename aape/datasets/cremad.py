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

import re
from pathlib import PurePosixPath

from aape.cliplist import Clip, read_table
from aape.datasets.base import Dataset, Rows, Source, TaskFacts, of_ours

_NAME = re.compile(r"(\d{4})_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_[A-Z]{1,2}", re.IGNORECASE)


def emotion(source: Source) -> Rows:
    """By emotion, from the file names; only reached without EVAR's cremad.csv. Group = actor."""
    matches = ((name, _NAME.fullmatch(PurePosixPath(name).stem)) for name in source.index.files)
    clips = [Clip(name, match[2].upper(), "", match[1]) for name, match in matches if match]
    if not clips:
        raise FileNotFoundError(
            f"no <actor>_<sentence>_<emotion>_<level>.wav under {source.root}; give the folder that holds AudioWAV"
        )
    return Rows(
        of_ours(source, clips, train=0.7, valid=0.1, test=0.2),
        "a seeded split of ours by actor, 70:10:20",
        source.seed,
        ("set EVAR to a clone for the published split (its evar/metadata/cremad.csv)",),
    )


def gender(source: Source) -> Rows:
    """By the actor's sex; the rows of `emotion` in the same order."""
    demographics = source.companion("VideoDemographics.csv", "CREMA-D/VideoDemographics.csv")
    if demographics is None:
        raise FileNotFoundError(
            f"no VideoDemographics.csv in {source.root} (it lies at the top of the CREMA-D repository, 4 kB), and no "
            "cremad_gender.csv in an EVAR clone"
        )
    sex = dict(zip(*read_table(demographics).need("ActorID", "Sex"), strict=True))
    rows = emotion(source)
    unknown = sorted({str(clip.group) for clip in rows.clips} - set(sex))
    if unknown:
        raise ValueError(f"{demographics} has no line for actor {unknown[0]} ({len(unknown)} in all)")
    clips = [clip._replace(label=sex[str(clip.group)]) for clip in rows.clips]
    return Rows(clips, rows.origin, rows.seed, rows.notes)


_COUNTS = {"clips": 7438, "train": 5155, "valid": 732, "test": 1551, "groups": 91}

DATASET = Dataset(
    name="cremad",
    text=__doc__,
    size="not verified here",
    licence="ODbL 1.0, see the repository",
    evar_group=lambda name: PurePosixPath(name).name[:4],
    tasks={
        "cremad": TaskFacts(emotion, 2.5, {**_COUNTS, "classes": 6}, "EVAR, cremad.csv", "EVAR's, else ours", "actor"),
        "cremad_gender": TaskFacts(
            gender, 2.5, {**_COUNTS, "classes": 2}, "EVAR, cremad_gender.csv", "EVAR's, else ours", "actor"
        ),
    },
)
