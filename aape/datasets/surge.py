"""Surge pitch dataset: 2,084 synthesiser patches of 88 notes

J. Turian et al.: "One Billion Audio Sounds from GPU-enabled Modular Synthesis", DAFx 2021; Zenodo record 4677097.

<patch>/<MIDI pitch>.ogg. Splits by patch are those of EVAR's list; without a clone the split is ours.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from aape.cliplist import Clip, read_table
from aape.datasets.base import Dataset, Remote, Rows, Source, TaskFacts, of_ours, parent_of

SPLITS = "evar/predefined/dataset_surge_tone_splits.csv"


def rows(source: Source) -> Rows:
    """`<patch>/<MIDI pitch>.ogg`; group = patch."""
    by_patch: dict[str, dict[str, str]] = {}
    for name in source.index.files:
        if "/" in name:
            by_patch.setdefault(parent_of(name), {})[PurePosixPath(name).stem] = name
    pitches = sorted({p for files in by_patch.values() for p in files if p.isdigit()}, key=int)
    if not pitches:
        raise FileNotFoundError(
            f"no <patch>/<pitch>.ogg under {source.root}; unpack surge-velocity64-2K.tar of Zenodo record 4677097"
        )
    listed = source.evar / SPLITS if source.evar is not None else None
    if listed is not None and listed.is_file():
        split_of = dict(zip(*read_table(listed).need("tone", "split"), strict=True))
        origin, seed = f"{SPLITS} of EVAR", None
        strangers = sorted(set(by_patch) - set(split_of))
        notes = [f"{len(strangers)} patches have no split in EVAR's list, e.g. {strangers[0]}"] if strangers else []
    else:
        drawn = of_ours(source, (Clip("", "", "", p) for p in sorted(by_patch)), train=0.8, valid=0.1, test=0.1)
        split_of = {str(clip.group): clip.split for clip in drawn}
        origin, seed = "a seeded split of ours by patch, 80:10:10", source.seed
        notes = ["set EVAR to a clone for the published split"]
    clips = [
        Clip(by_patch[patch].get(pitch, f"{patch}/{pitch}.ogg"), str(int(pitch)), split, patch)
        for patch, split in split_of.items()
        if patch in by_patch
        for pitch in pitches
    ]
    absent = tuple(f"{patch}/ ({len(pitches)} clips)" for patch in sorted(set(split_of) - set(by_patch)))
    return Rows(clips, origin, seed, tuple(notes), absent)


DATASET = Dataset(
    name="surge",
    text=__doc__,
    size="see the Zenodo record",
    licence="see the Zenodo record",
    remotes=(
        Remote(
            "surge-velocity64-2K.tar", "https://zenodo.org/records/4677097/files/surge-velocity64-2K.tar?download=1"
        ),
    ),
    evar_group=parent_of,
    tasks={
        "surge": TaskFacts(
            rows=rows,
            clip_seconds=4.0,
            published={"clips": 183392, "classes": 88, "groups": 2084, "train": 148896, "valid": 17160, "test": 17336},
            source="EVAR's list of 2,084 patches times 88 pitches",
            splits="EVAR's, else ours",
            group="patch",
        )
    },
)
