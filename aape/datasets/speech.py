"""Speech: VoxForge (language), VoxCeleb1 (gender, country), CREMA-D (emotion, gender)."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pandas as pd

from aape.datasets.source import Rows, Source, evar_metadata, seeded_split

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
# Folders of the repository that are not named after their language.
_LANGUAGE_FOLDERS = {**{code: code for code in LANGUAGES}, "SpeechCorpus": "en", "Russian": "ru"}


def voxforge(source: Source) -> Rows:
    """VoxForge, six languages: `<session>/wav/*.wav` (some sessions: `flac/`), each session an archive of one speaker.

    Only reached without EVAR's voxforge.csv. The language of a session is a folder above it (as `wget -x` leaves
    them, `.../downloads/de/Trunk/...`, or folders de, en, ...), else what voxforge_urls.txt (the TFDS list) says.
    Group = speaker, the session's name up to its first hyphen; `anonymous` is many people, so there it is the session.
    """
    language_of_session = _voxforge_urls(source)
    rows, strangers = [], set()
    for name in source.index.files:
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or parts[-2].lower() not in ("wav", "flac"):
            continue
        session = parts[-3]
        language = language_of_session.get(session) or next(
            (_LANGUAGE_FOLDERS[p] for p in parts[:-3] if p in _LANGUAGE_FOLDERS), None
        )
        if language is None:
            strangers.add(session)
        else:
            rows.append((name, language, speaker_of(session)))
    if not rows:
        raise FileNotFoundError(
            f"no VoxForge session with a known language under {source.root}. Expected <language>/<session>/wav/*.wav, "
            "or voxforge_urls.txt beside the sessions, or EVAR set to a clone (its evar/metadata/voxforge.csv has "
            f"labels and splits). {len(strangers)} session(s) of unknown language were found."
        )
    table = pd.DataFrame(rows, columns=["file_name", "label", "group"])
    table["split"] = seeded_split(
        table.group.tolist(), table.label.tolist(), shares={"train": 0.7, "valid": 0.15, "test": 0.15}, seed=source.seed
    )
    notes = ["set EVAR to a clone for the published split"]
    if strangers:
        notes.append(f"{len(strangers)} sessions of unknown language left out, e.g. {min(strangers)}")
    return Rows(
        table[["file_name", "label", "split", "group"]],
        origin="a seeded split of ours by speaker within each language, 70:15:15",
        comparable=False,
        seed=source.seed,
        notes=tuple(notes),
    )


def _voxforge_urls(source: Source) -> dict[str, str]:
    path = source.companion("voxforge_urls.txt")
    if path is None:
        return {}
    languages = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        url = PurePosixPath(line.strip().strip("\"'"))
        language = next((_LANGUAGE_FOLDERS[p] for p in url.parts if p in _LANGUAGE_FOLDERS), None)
        if language is not None:
            languages[url.name.removesuffix(".tgz").removesuffix(".tar.gz")] = language
    return languages


def speaker_of(session: str) -> str:
    """`ralfherzog-20080322-de1` -> `ralfherzog`; `anonymous-20080425-bqj` stays as it is."""
    speaker = session.split("-")[0]
    return session if speaker.lower().startswith("anonymous") else speaker


VC1_BASES = ("", "wav", "vox1_dev_wav", "vox1_test_wav", "dev", "test", "vox1_dev_wav/wav", "vox1_test_wav/wav")


def _vc1(source: Source, label: str) -> tuple[pd.DataFrame, str]:
    meta = source.companion("vox1_meta.csv")
    if meta is None:
        raise FileNotFoundError(
            f"no vox1_meta.csv in {source.root} or its meta/; it comes from the VoxCeleb site (41 kB, tab-separated) "
            "and says who is of which gender and nationality"
        )
    table = pd.read_csv(meta, sep="\t", dtype=str, keep_default_na=False)
    table.columns = [c.strip() for c in table.columns]
    if not {"VoxCeleb1 ID", label} <= set(table):
        raise ValueError(
            f"{meta}: expected tab-separated columns VoxCeleb1 ID, Gender, Nationality, found {list(table)}"
        )
    value_of = dict(zip(table["VoxCeleb1 ID"].str.strip(), table[label].str.strip(), strict=True))
    rows, origin = _identification_split(source)
    speakers = [re.split(r"/", name)[-3] for name in rows.file_name]
    unknown = sorted(set(speakers) - set(value_of))
    if unknown:
        raise ValueError(f"{meta} has no line for {len(unknown)} speaker(s) of the split, e.g. {unknown[0]}")
    return rows.assign(label=[value_of[s] for s in speakers], group=speakers), origin


def _identification_split(source: Source) -> tuple[pd.DataFrame, str]:
    path = source.companion("iden_split.txt")
    if path is not None:
        pairs = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        splits = {"1": "train", "2": "valid", "3": "test"}
        odd = next((p for p in pairs if len(p) != 2 or p[0] not in splits or p[1].count("/") != 2), None)
        if odd is not None:
            raise ValueError(f"{path}: line {' '.join(odd)!r}, expected '1|2|3 <speaker>/<video>/<utterance>.wav'")
        names = [f"wav/{name.strip()}" for _, name in pairs]
        table = pd.DataFrame({"file_name": names, "split": [splits[number] for number, _ in pairs]})
        return table, "iden_split.txt of VoxCeleb1 (identification)"
    evar = evar_metadata("vc1", source.evar)
    if evar is not None:
        return pd.read_csv(evar, dtype=str)[["file_name", "split"]], "EVAR's vc1.csv (VoxCeleb1 identification)"
    raise FileNotFoundError(
        f"no iden_split.txt in {source.root} or its meta/ (and no vc1.csv in an EVAR clone); it comes from the VoxCeleb "
        "site: https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt"
    )


_VC1_NOTE = (
    "the identification split divides videos, not speakers: every speaker is in train, valid and test, so accuracy on "
    "it measures speakers too; statistics here work on groups (speakers)"
)


def vc1_gender(source: Source) -> Rows:
    """VoxCeleb1 (Nagrani et al. 2017) by the speaker's gender in vox1_meta.csv; group = speaker."""
    rows, origin = _vc1(source, "Gender")
    names = {"m": "Male", "f": "Female"}
    odd = sorted(set(rows.label) - set(names))
    if odd:
        raise ValueError(f"vox1_meta.csv: gender {odd[0]!r}, expected m or f")
    return _vc1_rows(rows.assign(label=rows.label.map(names)), origin)


def vc1_country(source: Source) -> Rows:
    """VoxCeleb1 by the speaker's nationality in vox1_meta.csv; group = speaker."""
    rows, origin = _vc1(source, "Nationality")
    speakers = rows.groupby("label")["group"].nunique()
    alone = int((speakers == 1).sum())
    return _vc1_rows(
        rows,
        origin,
        f"{alone} of the {len(speakers)} countries have a single speaker: there, a country is a voice",
        "vox1_meta.csv as distributed lists 36 nationalities and the paper counts 35; which one it leaves out is not "
        "known here. Most French speakers are entered as Norway. Both are kept as they are.",
    )


def _vc1_rows(table: pd.DataFrame, origin: str, *notes: str) -> Rows:
    # The lists say wav/<id>/...; a download unpacks to <id>/..., wav/<id>/... or vox1_dev_wav/wav/<id>/...
    table = table.assign(file_name=table.file_name.str.removeprefix("wav/"))
    return Rows(
        table[["file_name", "label", "split", "group"]],
        origin=origin,
        bases=("wav", *(b for b in VC1_BASES if b != "wav")),
        notes=(_VC1_NOTE, *notes),
    )


EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
CREMAD_BASES = ("", "AudioWAV", "CREMA-D/AudioWAV", "CREMA-D")
_CREMAD_NAME = re.compile(r"(?P<actor>\d{4})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_[A-Z]{1,2}", re.IGNORECASE)


def cremad(source: Source) -> Rows:
    """CREMA-D (Cao et al. 2014) by emotion; only reached without EVAR's cremad.csv. Group = actor."""
    rows = []
    for name in source.index.files:
        match = _CREMAD_NAME.fullmatch(PurePosixPath(name).stem)
        if match and match["emotion"].upper() in EMOTIONS:
            rows.append((name, match["emotion"].upper(), match["actor"]))
    if not rows:
        raise FileNotFoundError(
            f"no <actor>_<sentence>_<emotion>_<level>.wav under {source.root}; give the folder that holds AudioWAV"
        )
    table = pd.DataFrame(rows, columns=["file_name", "label", "group"])
    table["split"] = seeded_split(
        table.group.tolist(), [""] * len(table), shares={"train": 0.7, "valid": 0.1, "test": 0.2}, seed=source.seed
    )
    return Rows(
        table[["file_name", "label", "split", "group"]],
        origin="a seeded split of ours by actor, 70:10:20",
        comparable=False,
        seed=source.seed,
        notes=("set EVAR to a clone for the published split (its evar/metadata/cremad.csv)",),
    )


def cremad_gender(source: Source) -> Rows:
    """CREMA-D by the actor's sex; the rows of `cremad` in the same order, so that both share one pass."""
    demographics = source.companion("VideoDemographics.csv", "CREMA-D/VideoDemographics.csv")
    if demographics is None:
        raise FileNotFoundError(
            f"no VideoDemographics.csv in {source.root} (it lies at the top of the CREMA-D repository, 4 kB), and no "
            "cremad_gender.csv in an EVAR clone"
        )
    people = pd.read_csv(demographics, dtype=str)
    if not {"ActorID", "Sex"} <= set(people):
        raise ValueError(f"{demographics}: expected columns ActorID and Sex, found {', '.join(people.columns)}")
    sex = dict(zip(people.ActorID, people.Sex, strict=True))
    rows = cremad(source)
    unknown = sorted(set(rows.table.group) - set(sex))
    if unknown:
        raise ValueError(f"{demographics} has no line for actor {unknown[0]} ({len(unknown)} in all)")
    return Rows(
        rows.table.assign(label=rows.table.group.map(sex)),
        origin=rows.origin,
        comparable=False,
        seed=rows.seed,
        notes=rows.notes,
    )


def group_of(task: str, table: pd.DataFrame) -> pd.Series | None:
    """The group of each row of EVAR's own metadata, where the row says it."""
    if task in ("cremad", "cremad_gender"):
        if "speaker_id" in table:
            return table.speaker_id.astype(str)
        return table.file_name.map(lambda n: Path(n).name[:4])
    if task == "voxforge":
        return table.file_name.map(_voxforge_group)
    return None


def _voxforge_group(name: str) -> str:
    parts = PurePosixPath(name).parts
    session = parts[-3] if len(parts) >= 3 and parts[-2].lower() in ("wav", "flac") else parts[0]
    return speaker_of(session)
