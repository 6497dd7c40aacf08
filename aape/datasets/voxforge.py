"""VoxForge: 176,428 recordings of read speech, six languages

http://www.voxforge.org; the list of 13,837 archives is the one of TensorFlow Datasets, recordings before 2020.

In a clone of EVAR (thousands of small downloads; 100 GB while unpacking, 60 GB afterwards, says TFDS):

    python evar/utils/download_voxforge.py <this repository>/data/voxforge
    EVAR=<clone> aape metadata voxforge data/voxforge data/metadata/voxforge.csv

EVAR splits by archive (session), so a speaker can be in several splits; groups here are speakers, the session's name up
to its first hyphen, and each `anonymous` session is its own. Without EVAR's voxforge.csv the language of a session comes
from a folder above it (de/<session>/wav/..., or what `wget -x` leaves, .../downloads/de/Trunk/...), and the split is ours.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from aape.datasets.base import Dataset, Rows, Source, TaskFacts, parent_of
from aape.sounds.clips import Clip

# Folders of the repository; two are not named after their language.
_LANGUAGES = {code: code for code in ("de", "en", "es", "fr", "it", "ru")}
_LANGUAGES |= {"speechcorpus": "en", "russian": "ru"}


def rows(source: Source) -> Rows:
    """`<language>/.../<session>/wav/*.wav` (some sessions: `flac/`); only reached without EVAR's voxforge.csv."""
    clips = source.clips(
        f"(?P<label>{'|'.join(_LANGUAGES)})/(?:.*/)?(?P<group>[^/]+)/(?:wav|flac)/[^/]+"
    )
    by_speaker = []
    for clip in clips:
        language = _LANGUAGES[clip.label.lower()]
        by_speaker.append(Clip(clip.file_name, language, language, speaker_of(str(clip.group))))
    return Rows(
        by_speaker,
        "a seeded split of ours by speaker within each language, 70:15:15",
        {"train": 0.7, "valid": 0.15, "test": 0.15},
        ["set EVAR to a clone for the published split"],
    )


def speaker_of(session: str) -> str:
    """`ralfherzog-20080322-de1` -> `ralfherzog`; `anonymous-20080425-bqj`, many people, stays as it is."""
    speaker = session.split("-")[0]
    return session if speaker.lower().startswith("anonymous") else speaker


def _evar_group(name: str) -> str:
    return speaker_of(parent_of(name, 2) or PurePosixPath(name).parts[0])


COUNTS = {"clips": 176428, "classes": 6}
TASK = TaskFacts(
    rows, 5.8, COUNTS, "EVAR, make_metadata.py", splits="EVAR's, else ours", group="speaker"
)
DATASET = Dataset(
    name="voxforge",
    text=__doc__,
    size="about 60 GB",
    licence="GPL, according to VoxForge",
    tasks={"voxforge": TASK},
    evar_group=_evar_group,
)
