"""RAVDESS, speech: 1,440 clips of 24 actors saying two sentences in eight emotions

S. R. Livingstone, F. A. Russo: "The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS)", PLoS ONE
13(5), 2018, e0196391; Zenodo record 1188976, of which the audio-only speech is needed. The download itself was not
verified here; its checksum is the one of the record, as others quote it.

File names say everything: modality-channel-emotion-intensity-statement-repetition-actor, e.g.
Actor_12/03-01-06-01-02-01-12.wav; actors of odd number are male. There is no official split: ours puts whole actors into
training (14), validation (4) and test (6), as many women as men in each. Both tasks list the same clips in the same
order, so that one pass serves both. Clips of 4 s are our choice: they last 2.9 to 5.3 s, and end in silence.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from aape.cliplist import Clip
from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts, of_ours

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")  # 01 to 08
_NAME = re.compile(r"03-01-(0[1-8])-\d\d-\d\d-\d\d-(\d\d)")


def emotion(source: Source) -> Rows:
    """By emotion, from the file names; group = actor."""
    matches = ((name, _NAME.fullmatch(PurePosixPath(name).stem)) for name in source.index.files)
    clips = [Clip(name, EMOTIONS[int(m[1]) - 1], _gender(m[2]), m[2]) for name, m in matches if m]
    if not clips:
        raise FileNotFoundError(
            f"no speech of RAVDESS, such as Actor_01/03-01-01-01-01-01-01.wav, under {source.root}; unpack "
            "Audio_Speech_Actors_01-24.zip of Zenodo record 1188976 there"
        )
    drawn = of_ours(source, clips, train=7 / 12, valid=2 / 12, test=3 / 12)
    return Rows(drawn, "a seeded split of ours by actor within each gender, 14:4:6", source.seed)


def gender(source: Source) -> Rows:
    """By the actor's gender; the rows of `emotion` in the same order."""
    rows = emotion(source)
    return Rows([c._replace(label=_gender(str(c.group))) for c in rows.clips], rows.origin, rows.seed)


def _gender(actor: str) -> str:
    return "Male" if int(actor) % 2 else "Female"


_COUNTS = {"clips": 1440, "groups": 24}
_PAPER = "Livingstone and Russo 2018"

DATASET = Dataset(
    name="ravdess",
    text=__doc__,
    size="208,468,073 bytes",
    licence="CC BY-NC-SA 4.0",
    remotes=(
        Remote(
            "Audio_Speech_Actors_01-24.zip",
            "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip?download=1",
            "md5:bc696df654c87fed845eb13823edef8a",
        ),
    ),
    shortest=2.9,
    tasks={
        "ravdess": TaskFacts(emotion, 4.0, {**_COUNTS, "classes": 8}, _PAPER, "ours", "actor"),
        "ravdess_gender": TaskFacts(gender, 4.0, {**_COUNTS, "classes": 2}, _PAPER, "ours", "actor"),
    },
)
