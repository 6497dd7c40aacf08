"""Surge pitch dataset: 2,084 synthesiser patches of 88 notes

J. Turian et al.: "One Billion Audio Sounds from GPU-enabled Modular Synthesis", DAFx 2021; Zenodo record 4677097.

<patch>/<MIDI pitch>.ogg. Splits by patch are those of EVAR's list; without a clone the split is ours.
"""

from __future__ import annotations

from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts, parent_of
from aape.sounds.clips import Clip, read_table

_LIST = "evar/predefined/dataset_surge_tone_splits.csv"
_ARCHIVE = "surge-velocity64-2K.tar"
REMOTES = (Remote(_ARCHIVE, f"https://zenodo.org/records/4677097/files/{_ARCHIVE}?download=1"),)
COUNTS = {
    "clips": 183392,
    "classes": 88,
    "groups": 2084,
    "train": 148896,
    "valid": 17160,
    "test": 17336,
}


def rows(source: Source) -> Rows:
    """`<patch>/<MIDI pitch>.ogg`; group = patch."""
    clips = []
    for clip in source.clips(r"(?P<group>[^/]+)/(?P<label>\d+)"):
        clips.append(clip._replace(label=str(int(clip.label))))
    if source.evar is None or not (source.evar / _LIST).is_file():
        note = "set EVAR to a clone for the published split"
        shares = {"train": 0.8, "valid": 0.1, "test": 0.1}
        return Rows(clips, "a seeded split of ours by patch, 80:10:10", shares, [note])
    pitches = sorted({int(clip.label) for clip in clips})
    table = read_table(source.evar / _LIST, "tone", "split")
    listed = []
    for tone, split in zip(table["tone"], table["split"], strict=True):
        for pitch in pitches:
            listed.append(Clip(f"{tone}/{pitch}.ogg", str(pitch), split, tone))
    return Rows(listed, f"{_LIST} of EVAR")


_UNKNOWN, _SOURCE = "see the Zenodo record", "EVAR's list of 2,084 patches times 88 pitches"
TASK = TaskFacts(rows, 4.0, COUNTS, _SOURCE, splits="EVAR's, else ours", group="patch")
DATASET = Dataset(
    name="surge",
    text=__doc__,
    size=_UNKNOWN,
    licence=_UNKNOWN,
    tasks={"surge": TASK},
    remotes=REMOTES,
    evar_group=parent_of,
)
