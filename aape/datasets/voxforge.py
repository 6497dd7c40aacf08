"""VoxForge: 176,428 recordings of read speech, six languages

http://www.voxforge.org; the list of 13,837 archives is the one of TensorFlow Datasets, recordings before 2020.

In a clone of EVAR (thousands of small downloads; 100 GB while unpacking, 60 GB afterwards, says TFDS):

    python evar/utils/download_voxforge.py <this repository>/data/voxforge
    EVAR=<clone> aape metadata voxforge data/voxforge data/metadata/voxforge.csv

EVAR splits by archive (session), so a speaker can be in several splits; groups here are speakers, the session's name up
to its first hyphen, and each `anonymous` session is its own. Without EVAR's voxforge.csv the language of a session comes
from a folder above it (de/<session>/wav/..., or what `wget -x` leaves, .../downloads/de/Trunk/...) or from
voxforge_urls.txt beside the sessions, and the split is ours.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from aape.cliplist import Clip
from aape.datasets.base import Dataset, Rows, Source, TaskFacts, of_ours

# Folders of the repository, and the two that are not named after their language.
_LANGUAGES = {code: code for code in ("de", "en", "es", "fr", "it", "ru")} | {"SpeechCorpus": "en", "Russian": "ru"}


def rows(source: Source) -> Rows:
    """`<session>/wav/*.wav` (some sessions: `flac/`); only reached without EVAR's voxforge.csv."""
    listed = _listed_languages(source)
    clips, strangers = [], set()
    for name in source.index.files:
        session = _session(name)
        if session is None:
            continue
        above = PurePosixPath(name).parts[:-3]
        language = listed.get(session) or next((_LANGUAGES[p] for p in above if p in _LANGUAGES), None)
        if language is None:
            strangers.add(session)
        else:
            clips.append(Clip(name, language, language, speaker_of(session)))
    if not clips:
        raise FileNotFoundError(
            f"no VoxForge session with a known language under {source.root}. Expected <language>/<session>/wav/*.wav, "
            "or voxforge_urls.txt beside the sessions, or EVAR set to a clone (its evar/metadata/voxforge.csv has "
            f"labels and splits). {len(strangers)} session(s) of unknown language were found."
        )
    notes = ["set EVAR to a clone for the published split"]
    if strangers:
        notes.append(f"{len(strangers)} sessions of unknown language left out, e.g. {min(strangers)}")
    return Rows(
        of_ours(source, clips, train=0.7, valid=0.15, test=0.15),
        "a seeded split of ours by speaker within each language, 70:15:15",
        source.seed,
        tuple(notes),
    )


def _listed_languages(source: Source) -> dict[str, str]:
    """Session -> language, from the addresses in voxforge_urls.txt."""
    path = source.companion("voxforge_urls.txt")
    languages = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path is not None else []:
        url = PurePosixPath(line.strip().strip("\"'"))
        language = next((_LANGUAGES[p] for p in url.parts if p in _LANGUAGES), None)
        if language is not None:
            languages[url.name.removesuffix(".tgz").removesuffix(".tar.gz")] = language
    return languages


def _session(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    return parts[-3] if len(parts) >= 3 and parts[-2].lower() in ("wav", "flac") else None


def speaker_of(session: str) -> str:
    """`ralfherzog-20080322-de1` -> `ralfherzog`; `anonymous-20080425-bqj`, many people, stays as it is."""
    speaker = session.split("-")[0]
    return session if speaker.lower().startswith("anonymous") else speaker


DATASET = Dataset(
    name="voxforge",
    text=__doc__,
    size="about 60 GB",
    licence="GPL, says VoxForge",
    evar_group=lambda name: speaker_of(_session(name) or PurePosixPath(name).parts[0]),
    tasks={
        "voxforge": TaskFacts(
            rows=rows,
            clip_seconds=5.8,
            published={"clips": 176428, "classes": 6},
            source="EVAR, make_metadata.py",
            splits="EVAR's, else ours",
            group="speaker",
        )
    },
)
