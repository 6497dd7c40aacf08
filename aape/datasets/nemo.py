"""nEMO, Polish speech: 4,481 clips of nine actors saying 90 sentences in six emotions

I. Christop: "nEMO: Dataset of Emotional Speech in Polish", LREC-COLING 2024, pages 12111-12116.

github.com/amu-cai/nEMO, also amu-cai/nEMO on the Hugging Face Hub. The download of the archive was not verified here. Any
folder with samples/ and data.tsv works, also with the samples in another container.

data.tsv lists emotion, speaker and gender of every clip. There is no official split: ours puts whole actors into training
(5), validation (2) and test (2), a woman and a man each in the latter two. Both tasks list the same clips in the same order,
so that one pass serves both. Emotions are called as in RAVDESS, so that classes of the two datasets with one name are the
same emotion. Clips of 4 s are our choice, as for RAVDESS.
"""

from __future__ import annotations

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts
from aape.sounds.clips import Clip, read_table

# The names of data.tsv -> those of RAVDESS, which has calm and disgust as well.
RAVDESS_NAMES = {
    "anger": "angry",
    "fear": "fearful",
    "happiness": "happy",
    "neutral": "neutral",
    "sadness": "sad",
    "surprised": "surprised",
}
_GENDERS = {"female": "Female", "male": "Male"}
_COMMIT = "06f1f83dde8f1a780443a57d53b2af3971af34ab"
REMOTES = (
    Remote(f"nEMO-{_COMMIT[:7]}.zip", f"https://github.com/amu-cai/nEMO/archive/{_COMMIT}.zip"),
)
COUNTS = {"clips": 4481, "groups": 9}


def emotion(source: Source) -> Rows:
    """By emotion, from data.tsv; group = actor."""
    path = source.companion("data.tsv")
    columns = ["file_id", "emotion", "speaker_id", "gender"]
    table = read_table(path, *columns)
    clips = []
    for name, label, actor, sex in table[columns].to_numpy():
        if label not in RAVDESS_NAMES or sex not in _GENDERS:
            raise ValueError(
                f"{path}: {name} has emotion {label!r} and gender {sex!r}; expected {', '.join(RAVDESS_NAMES)}"
            )
        clips.append(Clip(f"samples/{name}", RAVDESS_NAMES[label], _GENDERS[sex], actor))
    return Rows(
        clips,
        "a seeded split of ours by actor within each gender, 5:2:2",
        {"train": 5 / 9, "valid": 2 / 9, "test": 2 / 9},
    )


def gender(source: Source) -> Rows:
    """By the actor's gender; the rows of `emotion` in the same order."""
    rows = emotion(source)
    return rows._replace(clips=[clip._replace(label=clip.split) for clip in rows.clips])


_FACTS = {"source": "Christop 2024", "splits": "ours", "group": "actor"}
TASKS = {
    "nemo": TaskFacts(emotion, 4.0, COUNTS | {"classes": 6}, **_FACTS),
    "nemo_gender": TaskFacts(gender, 4.0, COUNTS | {"classes": 2}, **_FACTS),
}
DATASET = Dataset(
    name="nemo",
    text=__doc__,
    size="about 530 MB",
    licence="CC BY-NC-SA 4.0",
    tasks=TASKS,
    remotes=REMOTES,
)
