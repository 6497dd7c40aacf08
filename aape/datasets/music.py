"""Music and notes: GTZAN, NSynth pitch, Surge."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath

import pandas as pd

from aape.datasets.source import Rows, Source, seeded_split

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")

# The fault-filtered lists at https://github.com/jongpillee/music_dataset_split, folder GTZAN_split, commit 07e8557.
GTZAN_LISTS = {
    "train": ("train_filtered.txt", "2b04966cef1486f1a7767b74271533fa23e220388db804a1937835e1fc4fa3fa"),
    "valid": ("valid_filtered.txt", "f8fbee7c52397a0e0f3a91dc54fedecb2e27f5bdc9a9daeab8cb10d077e26956"),
    "test": ("test_filtered.txt", "09cafa6a89ce0a27f30ed250d56ecb4d03c22fffb5a693f96c7ae655ee02ac72"),
}
GTZAN_BASES = ("", "genres", "genres_original", "Data/genres_original", "gtzan", "gtzan/genres")


def gtzan(source: Source) -> Rows:
    """GTZAN with the fault-filtered split (Kereliuk et al. 2015, after Sturm): 443, 197, 290 of the 1,000 clips.

    `genres/<genre>/<genre>.000NN.wav`, or `genres_original` in a copy from Kaggle. No group: the files do not name
    the artist; keeping artists apart is what the filtered split is for.
    """
    frames, notes = [], []
    for split, (name, sha256) in GTZAN_LISTS.items():
        path = source.companion(name, f"GTZAN_split/{name}")
        if path is None:
            raise FileNotFoundError(
                f"no {name} in {source.root}, its GTZAN_split/ or the folder of lists. The lists of the fault-filtered "
                "split do not come with GTZAN: `python common.py download gtzan_split` gets them (20 kB), or use "
                "EVAR's gtzan.csv by setting EVAR."
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            notes.append(f"{path} is not the list of commit 07e8557 (SHA-256 differs); it is used as it is")
        names = content.decode("utf-8").split()
        labels = [PurePosixPath(n).parent.name for n in names]
        frames.append(pd.DataFrame({"file_name": names, "label": labels, "split": split}))
    rows = pd.concat(frames, ignore_index=True)
    unknown = sorted(set(rows.label) - set(GENRES))
    if unknown:
        raise ValueError(f"the lists name genre {unknown[0]!r}, expected one of {', '.join(GENRES)}")
    return Rows(
        rows,
        origin="fault-filtered lists of jongpillee/music_dataset_split",
        bases=GTZAN_BASES,
        shortest=29.0,
        notes=(*notes, "jazz.00054.wav (a training clip) is damaged in the copies that circulate on Kaggle"),
    )


def nspitch(source: Source) -> Rows:
    """NSynth by pitch (Engel et al. 2017): `nsynth-<split>/examples.json` and `audio/`; group = instrument.

    All pitches are kept, as EVAR does; HEAR's task of the same name keeps five octaves.
    """
    frames = []
    for split in ("train", "valid", "test"):
        path = next(
            (p for b in ("", "nsynth") if (p := source.root / b / f"nsynth-{split}" / "examples.json").is_file()), None
        )
        if path is None:
            raise FileNotFoundError(
                f"no nsynth-{split}/examples.json under {source.root}; unpack nsynth-{split}.jsonwav.tar.gz there"
            )
        examples = json.loads(path.read_text(encoding="utf-8"))
        frames.append(
            pd.DataFrame(
                {
                    "file_name": [f"nsynth-{split}/audio/{note}.wav" for note in examples],
                    "label": [int(e["pitch"]) for e in examples.values()],
                    "split": split,
                    "group": [e.get("instrument_str") or instrument_of(n) for n, e in examples.items()],
                }
            )
        )
    rows = pd.concat(frames, ignore_index=True)
    return Rows(rows, origin="examples.json of the dataset, official splits", bases=("", "nsynth"), shortest=3.99)


def instrument_of(note: str) -> str:
    """`bass_synthetic_033-022-050` -> `bass_synthetic_033` (NSynth: instrument, pitch, velocity)."""
    return PurePosixPath(note).stem.rsplit("-", 2)[0]


SURGE_SPLITS = "evar/predefined/dataset_surge_tone_splits.csv"


def surge(source: Source) -> Rows:
    """Surge pitch dataset (Turian et al. 2021, Zenodo 4677097): `<patch>/<MIDI pitch>.ogg`; group = patch.

    Splits by patch are EVAR's, from its clone; without one, a seeded split of ours.
    """
    by_patch: dict[str, dict[str, str]] = {}
    for name in source.index.files:
        path = PurePosixPath(name)
        if path.parent != PurePosixPath("."):
            by_patch.setdefault(path.parent.name, {})[path.stem] = name
    pitches = sorted({p for files in by_patch.values() for p in files if p.isdigit()}, key=int)
    if not pitches:
        raise FileNotFoundError(
            f"no <patch>/<pitch>.ogg under {source.root}; unpack surge-velocity64-2K.tar of Zenodo record 4677097"
        )
    listed = source.evar / SURGE_SPLITS if source.evar is not None else None
    if listed is not None and listed.is_file():
        table = pd.read_csv(listed, dtype=str)
        split_of = dict(zip(table.tone, table.split, strict=True))
        origin, comparable, seed = f"{SURGE_SPLITS} of EVAR", True, None
        strangers = sorted(set(by_patch) - set(split_of))
        notes = [f"{len(strangers)} patches have no split in EVAR's list, e.g. {strangers[0]}"] if strangers else []
    else:
        names = sorted(by_patch)
        drawn = seeded_split(
            names, [""] * len(names), shares={"train": 0.8, "valid": 0.1, "test": 0.1}, seed=source.seed
        )
        split_of = dict(zip(names, drawn, strict=True))
        origin, comparable, seed = "a seeded split of ours by patch, 80:10:10", False, source.seed
        notes = ["set EVAR to a clone for the published split"]
    absent = sorted(patch for patch in split_of if patch not in by_patch)
    rows = [
        (by_patch[patch].get(pitch, f"{patch}/{pitch}.ogg"), int(pitch), split, patch)
        for patch, split in split_of.items()
        if patch in by_patch
        for pitch in pitches
    ]
    return Rows(
        pd.DataFrame(rows, columns=["file_name", "label", "split", "group"]),
        origin=origin,
        comparable=comparable,
        seed=seed,
        notes=tuple(notes),
        absent=tuple(f"{patch}/ ({len(pitches)} clips)" for patch in absent),
    )
