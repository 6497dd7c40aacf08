"""NSynth: 305,979 notes of 1,006 instruments, by pitch or by instrument family

J. Engel et al.: "Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders", ICML 2017.

Three archives; the audio alone is 39 GB, computed. They are large. If the connection breaks, fetch them with a program
that resumes (`curl -C - -O <address>` in data/archives) and run the download again. It uses the archives in that
folder. All pitches are kept, as with EVAR; HEAR's task of the same name keeps five octaves.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts
from aape.sounds.clips import Clip

_URL = "http://download.magenta.tensorflow.org/datasets/nsynth"
_SPLITS = ("train", "valid", "test")
REMOTES = tuple(
    Remote(f"nsynth-{s}.jsonwav.tar.gz", f"{_URL}/nsynth-{s}.jsonwav.tar.gz") for s in _SPLITS
)
COUNTS = {"clips": 305979, "train": 289205, "valid": 12678, "test": 4096}


def rows(source: Source) -> Rows:
    """`nsynth-<split>/examples.json` and `audio/`; group = instrument."""
    clips = []
    for split in _SPLITS:
        notes = json.loads(
            source.companion(f"nsynth-{split}/examples.json").read_text(encoding="utf-8")
        )
        for note, facts in notes.items():
            pitch = str(int(facts["pitch"]))
            clips.append(
                Clip(f"nsynth-{split}/audio/{note}.wav", pitch, split, instrument_of(note))
            )
    return Rows(clips, "examples.json of the dataset, official splits")


def family_rows(source: Source) -> Rows:
    """The same notes by the family of their instrument (bass, brass, flute, ...), the first word of a note's name."""
    notes = rows(source)
    clips = [
        clip._replace(label=instrument_of(clip.file_name).split("_")[0]) for clip in notes.clips
    ]
    return notes._replace(clips=clips)


def instrument_of(note: str) -> str:
    """`bass_synthetic_033-022-050` -> `bass_synthetic_033` (instrument, pitch, velocity)."""
    return PurePosixPath(note).stem.rsplit("-", 2)[0]


_SOURCE = "Engel et al. 2017; total also EVAR, make_metadata.py"
TASK = TaskFacts(rows, 4.0, COUNTS, _SOURCE, splits="official", group="instrument")
FAMILY = TaskFacts(family_rows, 4.0, COUNTS, _SOURCE, splits="official", group="instrument")
DATASET = Dataset(
    name="nsynth",
    text=__doc__,
    size="not verified here",
    licence="CC BY 4.0",
    tasks={"nspitch": TASK, "nsfamily": FAMILY},
    remotes=REMOTES,
    evar_group=instrument_of,
)
