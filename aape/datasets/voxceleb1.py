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

from collections import defaultdict

from aape.cliplist import Clip, read_table
from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts, evar_metadata, parent_of

_META = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"
_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_NOTE = (
    "the identification split divides videos, not speakers: every speaker is in train, valid and test, so accuracy on "
    "it measures speakers too; statistics here work on groups (speakers)"
)


def _rows(source: Source, column: str, *notes: str) -> Rows:
    """The identification split, each clip with its speaker's entry in a column of vox1_meta.csv."""
    meta = source.companion("vox1_meta.csv")
    if meta is None:
        raise FileNotFoundError(
            f"no vox1_meta.csv in {source.root} or its meta/; `aape download voxceleb1` gets it (41 kB): it says who is "
            "of which gender and nationality"
        )
    speakers, values = read_table(meta).need("VoxCeleb1 ID", column)
    value_of = {speaker.strip(): value.strip() for speaker, value in zip(speakers, values, strict=True)}
    listed, origin = _identification_split(source)
    unknown = sorted({parent_of(name, 2) for name, _ in listed} - set(value_of))
    if unknown:
        raise ValueError(f"{meta} has no line for {len(unknown)} speaker(s) of the split, e.g. {unknown[0]}")
    # The lists say wav/<id>/...; a download unpacks to <id>/..., wav/<id>/... or vox1_dev_wav/wav/<id>/...
    clips = [
        Clip(name.removeprefix("wav/"), value_of[parent_of(name, 2)], split, parent_of(name, 2))
        for name, split in listed
    ]
    return Rows(clips, origin, notes=(_NOTE, *notes))


def _identification_split(source: Source) -> tuple[list[tuple[str, str]], str]:
    path = source.companion("iden_split.txt")
    if path is not None:
        pairs = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        odd = next((p for p in pairs if len(p) != 2 or p[0] not in _SPLITS or p[1].count("/") != 2), None)
        if odd is not None:
            raise ValueError(f"{path}: line {' '.join(odd)!r}, expected '1|2|3 <speaker>/<video>/<utterance>.wav'")
        listed = [(name.strip(), _SPLITS[number]) for number, name in pairs]
        return listed, "iden_split.txt of VoxCeleb1 (identification)"
    evar = evar_metadata("vc1", source.evar)
    if evar is not None:
        names, splits = read_table(evar).need("file_name", "split")
        return list(zip(names, splits, strict=True)), "EVAR's vc1.csv (VoxCeleb1 identification)"
    raise FileNotFoundError(
        f"no iden_split.txt in {source.root} or its meta/ (and no vc1.csv in an EVAR clone); `aape download voxceleb1` "
        "gets it"
    )


def gender(source: Source) -> Rows:
    """By the speaker's gender in vox1_meta.csv; group = speaker."""
    rows = _rows(source, "Gender")
    names = {"m": "Male", "f": "Female"}
    odd = sorted({clip.label for clip in rows.clips} - set(names))
    if odd:
        raise ValueError(f"vox1_meta.csv: gender {odd[0]!r}, expected m or f")
    return Rows([c._replace(label=names[c.label]) for c in rows.clips], rows.origin, notes=rows.notes)


def country(source: Source) -> Rows:
    """By the speaker's nationality in vox1_meta.csv; group = speaker."""
    rows = _rows(source, "Nationality")
    speakers = defaultdict(set)
    for clip in rows.clips:
        speakers[clip.label].add(clip.group)
    alone = sum(len(who) == 1 for who in speakers.values())
    notes = (
        f"{alone} of the {len(speakers)} countries have a single speaker: there, a country is a voice",
        "vox1_meta.csv as distributed lists 36 nationalities and the paper counts 35; which one it leaves out is not "
        "known here. Most French speakers are entered as Norway. Both are kept as they are.",
    )
    return Rows(rows.clips, rows.origin, notes=(*rows.notes, *notes))


_COUNTS = {"clips": 153516, "train": 138361, "valid": 6904, "test": 8251, "groups": 1251}
_SPLIT = "official (identification)"

DATASET = Dataset(
    name="voxceleb1",
    text=__doc__,
    size="32.6 GB and 1.07 GB zipped",
    licence="see the VoxCeleb site",
    remotes=tuple(Remote(name, f"{_META}/{name}") for name in ("iden_split.txt", "vox1_meta.csv")),
    tasks={
        "vc1_gender": TaskFacts(
            gender,
            8.2,
            {**_COUNTS, "classes": 2},
            "Nagrani et al. 2017, and EVAR's make_metadata.py",
            _SPLIT,
            "speaker",
        ),
        "vc1_country": TaskFacts(
            country, 8.2, {**_COUNTS, "classes": 36}, "Nagrani et al. 2017; vox1_meta.csv", _SPLIT, "speaker"
        ),
    },
)
