"""RAVDESS, speech: 1,440 clips of 24 actors saying two sentences in eight emotions

S. R. Livingstone, F. A. Russo: "The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS)", PLoS ONE
13(5), 2018, e0196391; Zenodo record 1188976. Only its audio-only speech is needed. The download itself was not
verified here; its checksum is the one of the record, as others quote it.

File names say everything: modality-channel-emotion-intensity-statement-repetition-actor, e.g.
Actor_12/03-01-06-01-02-01-12.wav; actors of odd number are male. There is no official split: ours puts whole actors into
training (14), validation (4) and test (6), as many women as men in each. Both tasks list the same clips in the same
order, so that one pass serves both. Clips of 4 s are our choice: they last 2.9 to 5.3 s, and end in silence.
"""

from __future__ import annotations

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts

EMOTIONS = (
    "neutral",
    "calm",
    "happy",
    "sad",
    "angry",
    "fearful",
    "disgust",
    "surprised",
)  # 01 to 08
_ARCHIVE = "Audio_Speech_Actors_01-24.zip"
_URL = f"https://zenodo.org/records/1188976/files/{_ARCHIVE}?download=1"
REMOTES = (Remote(_ARCHIVE, _URL, "md5:bc696df654c87fed845eb13823edef8a"),)
COUNTS = {"clips": 1440, "groups": 24}


def emotion(source: Source) -> Rows:
    """By emotion, from the file names; group = actor."""
    clips = []
    for clip in source.clips(r"03-01-(?P<label>0[1-8])-\d\d-\d\d-\d\d-(?P<group>\d\d)"):
        name = EMOTIONS[int(clip.label) - 1]
        sex = _gender(str(clip.group))
        clips.append(clip._replace(label=name, split=sex))
    return Rows(
        clips,
        "a seeded split of ours by actor within each gender, 14:4:6",
        {"train": 7 / 12, "valid": 2 / 12, "test": 3 / 12},
    )


def gender(source: Source) -> Rows:
    """By the actor's gender; the rows of `emotion` in the same order."""
    rows = emotion(source)
    return rows._replace(clips=[clip._replace(label=clip.split) for clip in rows.clips])


def _gender(actor: str) -> str:
    return "Male" if int(actor) % 2 else "Female"


_FACTS = {"source": "Livingstone and Russo 2018", "splits": "ours", "group": "actor"}
TASKS = {
    "ravdess": TaskFacts(emotion, 4.0, COUNTS | {"classes": 8}, **_FACTS),
    "ravdess_gender": TaskFacts(gender, 4.0, COUNTS | {"classes": 2}, **_FACTS),
}
DATASET = Dataset(
    name="ravdess",
    text=__doc__,
    size="208,468,073 bytes",
    licence="CC BY-NC-SA 4.0",
    tasks=TASKS,
    remotes=REMOTES,
)
