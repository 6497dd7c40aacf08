"""VoxCeleb1: 153,516 utterances of 1,251 celebrities, by gender and by country

A. Nagrani, J. S. Chung, A. Zisserman: "VoxCeleb: a large-scale speaker identification dataset", Interspeech 2017.

The audio is given on request: fill in the form at https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html, then, in
data/voxceleb1,

    cat vox1_dev_wav_parta? > vox1_dev_wav.zip && unzip -q vox1_dev_wav.zip && unzip -q vox1_test_wav.zip

SHA-256, as torchaudio has them:

    vox1_dev_wav_partaa  21ec6ca843659ebc2fdbe04b530baa4f191ad4b0971912672d92c158f32226a0
    vox1_dev_wav_partab  311d21e0c8cbf33573a4fce6c80e5a279d80736274b381c394319fc557159a04
    vox1_dev_wav_partac  92b64465f2b2a3dc0e4196ae8dd6828cbe9ddd1f089419a11e4cbfe2e1750df0
    vox1_dev_wav_partad  00e6190c770b27f27d2a3dd26ee15596b17066b715ac111906861a7d09a211a5
    vox1_test_wav.zip    8de57f347fe22b2c24526e9f444f689ecf5096fc2a92018cf420ff6b5b15eaea

`aape download voxceleb1` gets the split and the genders and nationalities (vox1_meta.csv, linked from the VoxCeleb site;
its address was not verified here). Three things to know. The identification split divides videos, not speakers, so a
gender or country classifier tested on it has met every speaker. vox1_meta.csv lists 36 nationalities and the paper
counts 35; which one it leaves out is not known here. 13 countries have one speaker, and most French celebrities are
entered as Norway. All of it is kept as distributed.
"""

from __future__ import annotations

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts, labelled, parent_of
from aape.sounds.clips import Clip

_META = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"
REMOTES = tuple(Remote(name, f"{_META}/{name}") for name in ("iden_split.txt", "vox1_meta.csv"))
COUNTS = {"clips": 153516, "train": 138361, "valid": 6904, "test": 8251, "groups": 1251}
_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_NOTES = (
    "the identification split divides videos, not speakers: every speaker is in train, valid and test, so accuracy on "
    "it measures speakers too; statistics here work on groups (speakers)",
    "13 of the 36 countries have a single speaker (there, a country is a voice), the paper counts 35 countries, and most "
    "French speakers stand as Norway in vox1_meta.csv",
)


def _clips(source: Source, column: str) -> list[Clip]:
    """The identification split, each clip with its speaker's entry in a column of vox1_meta.csv."""
    path = source.companion("iden_split.txt")
    clips = []
    for line in path.read_text(encoding="utf-8").splitlines():
        number, _, name = line.strip().partition(" ")
        if number not in _SPLITS or name.count("/") < 2:
            raise ValueError(
                f"{path}: line {line!r}, expected '1|2|3 <speaker>/<video>/<utterance>.wav'"
            )
        # Lists may say wav/<id>/...; a download unpacks to <id>/..., wav/<id>/... or vox1_dev_wav/wav/<id>/...
        clips.append(Clip(name.removeprefix("wav/"), "", _SPLITS[number], parent_of(name, 2)))
    return labelled(clips, source.companion("vox1_meta.csv"), "VoxCeleb1 ID", column)


def gender(source: Source) -> Rows:
    """By the speaker's gender in vox1_meta.csv; group = speaker."""
    names = {"m": "Male", "f": "Female"}
    clips = []
    for clip in _clips(source, "Gender"):
        clips.append(clip._replace(label=names.get(clip.label, clip.label)))
    return Rows(clips, "iden_split.txt of VoxCeleb1 (identification)", notes=_NOTES[:1])


def country(source: Source) -> Rows:
    """By the speaker's nationality in vox1_meta.csv; group = speaker."""
    clips = _clips(source, "Nationality")
    return Rows(clips, "iden_split.txt of VoxCeleb1 (identification)", notes=_NOTES)


_FACTS = {"splits": "official (identification)", "group": "speaker"}
GENDER, COUNTRY = COUNTS | {"classes": 2}, COUNTS | {"classes": 36}
TASKS = {
    "vc1_gender": TaskFacts(
        gender, 8.2, GENDER, "Nagrani et al. 2017, and EVAR's make_metadata.py", **_FACTS
    ),
    "vc1_country": TaskFacts(country, 8.2, COUNTRY, "Nagrani et al. 2017; vox1_meta.csv", **_FACTS),
}
DATASET = Dataset(
    name="voxceleb1",
    text=__doc__,
    size="32.6 GB and 1.07 GB zipped",
    licence="see the VoxCeleb site",
    tasks=TASKS,
    remotes=REMOTES,
)
