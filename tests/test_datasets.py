"""Metadata builders on tiny rebuilt trees with the real names, layouts and quirks of each dataset."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from aape.cli import main
from aape.cliplist import seeded_split
from aape.datasets import TASKS
from aape.datasets.base import evar_metadata
from aape.datasets.check import AudioIndex, build_metadata, why_invalid
from aape.datasets.ravdess import EMOTIONS
from aape.datasets.voxforge import speaker_of
from aape.task import from_folder, from_metadata


@pytest.fixture(autouse=True)
def no_evar(monkeypatch):
    monkeypatch.delenv("EVAR", raising=False)


def clip(path: Path, seconds: float = 0.05, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(int(seconds * rate)) * 0.3)
    container = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".au": "AU"}[path.suffix.lower()]
    soundfile.write(path, wave, rate, format=container)
    return path


def cut(path: Path, keep: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def build(dataset, root, tmp_path, **options):
    out = tmp_path / "metadata" / f"{dataset}.csv"
    report = build_metadata(dataset, root, out, **options)
    return report, pd.read_csv(out, keep_default_na=False, dtype={"file_name": str, "group": str})


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".au", ".aiff"])
def test_whole_files_are_valid_and_cut_files_are_not(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 100_000), 44100)
    assert why_invalid(path) is None
    assert why_invalid(path, check="read") is None
    assert "truncated" in why_invalid(cut(path))


def test_a_cut_inside_the_last_ogg_page_is_noticed(tmp_path):
    path = clip(tmp_path / "a.ogg", seconds=2.0)
    path.write_bytes(path.read_bytes()[:-7])
    assert "truncated" in why_invalid(path)


def test_a_wav_from_a_pipe_promises_two_gigabytes_and_is_whole(tmp_path):
    path = clip(tmp_path / "a.wav", seconds=2.0)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert why_invalid(path, check="read") is None


def test_empty_silent_garbage_and_nan_files(tmp_path):
    (tmp_path / "zero.wav").write_bytes(b"")
    assert why_invalid(tmp_path / "zero.wav") == "empty file (0 bytes)"
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    assert why_invalid(tmp_path / "none.wav") == "no samples"
    (tmp_path / "noise.wav").write_bytes(b"\x07" * 5000)
    assert "not readable as audio (5,000 bytes)" in why_invalid(tmp_path / "noise.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 8000, subtype="FLOAT")
    assert why_invalid(tmp_path / "nan.wav") is None
    assert "no numbers" in why_invalid(tmp_path / "nan.wav", check="read")


def test_index_finds_other_cases_and_containers_and_skips_hidden_files(tmp_path):
    clip(tmp_path / "AudioWAV" / "1001_A.WAV")
    clip(tmp_path / "jazz" / "jazz.00054.flac")
    clip(tmp_path / "jazz" / "jazz.00055.ogg")
    clip(tmp_path / "jazz" / "jazz.00055.wav")
    clip(tmp_path / "a b" / "._c.wav")
    index = AudioIndex(tmp_path)
    assert index.find("1001_a.wav") == "AudioWAV/1001_A.WAV"
    assert index.find("jazz/jazz.00054.wav") == "jazz/jazz.00054.flac"
    assert index.find("jazz/jazz.00055.wav") == "jazz/jazz.00055.wav"
    assert index.find("jazz/jazz.00056.wav") is None
    assert len(index.files) == 4


def test_seeded_split_keeps_groups_whole_and_every_stratum_in_every_split():
    groups = [f"{s}{i}" for s in "ab" for i in range(10) for _ in range(3)]
    strata = [g[0] for g in groups]
    shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
    splits = seeded_split(groups, strata, shares=shares, seed=1)
    assert splits == seeded_split(groups, strata, shares=shares, seed=1)
    assert splits != seeded_split(groups, strata, shares=shares, seed=2)
    table = pd.DataFrame({"g": groups, "s": strata, "split": splits}).drop_duplicates()
    assert table.g.is_unique
    assert table.groupby("s").split.value_counts().to_dict() == {
        (s, k): v for s in "ab" for k, v in {"train": 7, "valid": 1, "test": 2}.items()
    }


# --- datasets ----------------------------------------------------------------------------------------------------


def esc50_tree(root: Path) -> Path:
    names = ["1-100032-A-0.wav", "1-100032-B-0.wav", "2-118625-A-10.wav"]
    for name in names:
        clip(root / "audio" / name, seconds=5.0, rate=2000)
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "1-100032-B-0.wav,1,0,dog,True,100032,B\n"
        "2-118625-A-10.wav,2,10,rain,True,118625,A\n"
        "5-9-A-10.wav,5,10,rain,True,9,A\n"
    )
    return root


@pytest.mark.filterwarnings("ignore:.*have no clip in a split")
def test_esc50(tmp_path):
    report, table = build("esc50", esc50_tree(tmp_path / "ESC-50-33c8ce9"), tmp_path)
    assert table.columns.tolist() == ["file_name", "label", "fold", "group"]
    assert table.group.tolist() == ["100032", "100032", "118625"]
    assert report.missing == ("audio/5-9-A-10.wav",)
    assert report.counts["fold1"] == 2
    assert not report.as_published
    task = from_metadata(
        tmp_path / "metadata" / "esc50.csv", tmp_path / "ESC-50-33c8ce9", clip_seconds=5.0, name="esc50"
    )
    assert task.classes == ("dog", "rain")
    assert task.group_column == "group"


def test_esc50_in_the_folder_that_the_archive_makes(tmp_path):
    esc50_tree(tmp_path / "esc50" / "ESC-50-33c8ce9")
    _, table = build("esc50", tmp_path / "esc50", tmp_path)
    assert table.file_name[0] == "ESC-50-33c8ce9/audio/1-100032-A-0.wav"
    assert len(table) == 3


def test_a_whole_but_short_clip_is_kept_and_named(tmp_path):
    root = esc50_tree(tmp_path / "ESC-50-33c8ce9")
    clip(root / "audio" / "5-9-A-10.ogg", seconds=3.6, rate=8000)
    report, table = build("esc50", root, tmp_path)
    assert report.short == (("audio/5-9-A-10.ogg", "3.60 s"),)
    assert "audio/5-9-A-10.ogg" in table.file_name.tolist()
    assert report.missing == () == report.invalid


def test_gise51_folders(tmp_path):
    root = tmp_path / "gise"
    for split in ("train", "val", "eval"):
        clip(root / "isolated_events" / split / "Coin_(dropping)" / "10045_0.wav")
        clip(root / "isolated_events" / split / "Waves_and_surf" / "clip.wav")
    (root / "meta").mkdir()
    (root / "meta" / "lbl_map.json").write_text(json.dumps({"Coin_(dropping)": 0, "Wind": 1}))
    report, table = build("gise51", root, tmp_path)
    assert sorted(set(table.split)) == ["test", "train", "valid"]
    assert sorted(set(table.label)) == ["Coin_(dropping)", "Waves_and_surf"]
    assert table.group[0] == "10045"
    assert any("Waves_and_surf, Wind" in note for note in report.notes)
    assert report.published["classes"] == 51


def test_gise51_lists(tmp_path):
    for split in ("train", "val", "eval"):
        clip(tmp_path / split / "77.wav")
        (tmp_path / f"{split}.csv").write_text("fname,label\n77,Wind\n78,Glass\n")
    report, table = build("gise51", tmp_path, tmp_path)
    assert set(table.label) == {"Wind"}
    assert report.missing == ("train/78.wav", "val/78.wav", "eval/78.wav")


def gtzan_tree(root: Path, genres: str = "genres") -> Path:
    for name in ("blues/blues.00029", "jazz/jazz.00054", "jazz/jazz.00001"):
        clip(root / genres / f"{name}.wav", seconds=30.0, rate=200)
    cut(root / genres / "jazz/jazz.00054.wav")
    lists = root / "GTZAN_split"
    lists.mkdir()
    (lists / "train_filtered.txt").write_text("blues/blues.00029.wav\njazz/jazz.00054.wav\n")
    (lists / "valid_filtered.txt").write_text("jazz/jazz.00001.wav\n")
    (lists / "test_filtered.txt").write_text("blues/blues.00012.wav\n")
    return root


@pytest.mark.parametrize("genres", ["genres", "genres_original", "Data/genres_original", "."])
def test_gtzan_tells_the_truncated_clip_from_the_missing_one(tmp_path, genres):
    report, table = build("gtzan", gtzan_tree(tmp_path / "g", genres), tmp_path)
    prefix = "" if genres == "." else f"{genres}/"
    assert [name for name, _ in report.invalid] == [f"{prefix}jazz/jazz.00054.wav"]
    assert "truncated" in report.invalid[0][1]
    assert report.missing == ("blues/blues.00012.wav",)
    assert table.label.tolist() == ["blues", "jazz"]
    assert "group" not in table
    assert report.published == {"clips": 930, "classes": 10, "train": 443, "valid": 197, "test": 290}
    assert any("SHA-256 differs" in note for note in report.notes)  # these lists are ours


def test_gtzan_without_lists_says_how_to_get_them(tmp_path):
    root = gtzan_tree(tmp_path / "g")
    shutil.rmtree(root / "GTZAN_split")
    with pytest.raises(FileNotFoundError, match="download gtzan"):
        build("gtzan", root, tmp_path)


def test_gtzan_lists_from_elsewhere(tmp_path):
    root = gtzan_tree(tmp_path / "g")
    shutil.move(root / "GTZAN_split", tmp_path / "lists")
    report, _ = build("gtzan", root, tmp_path, lists=tmp_path / "lists")
    assert report.counts["clips"] == 2


@pytest.mark.filterwarnings("ignore:.*have no clip in a split")
def test_nspitch(tmp_path):
    for split, note in (
        ("train", "bass_synthetic_033-022-050"),
        ("valid", "guitar_acoustic_010-108-127"),
        ("test", "reed_acoustic_037-068-100"),
    ):
        clip(tmp_path / f"nsynth-{split}" / "audio" / f"{note}.wav")
        instrument, pitch, velocity = note.rsplit("-", 2)
        content = {note: {"pitch": int(pitch), "velocity": int(velocity), "instrument_str": instrument}}
        (tmp_path / f"nsynth-{split}" / "examples.json").write_text(json.dumps(content))
    _, table = build("nspitch", tmp_path, tmp_path)
    assert table.label.tolist() == [22, 108, 68]
    assert table.group.tolist() == ["bass_synthetic_033", "guitar_acoustic_010", "reed_acoustic_037"]
    assert table.split.tolist() == ["train", "valid", "test"]
    # as from_metadata sorts them: numbers as numbers
    task = from_metadata(tmp_path / "metadata" / "nspitch.csv", tmp_path, clip_seconds=4.0, name="nspitch")
    assert task.classes == ("22", "68", "108")


def surge_tree(root: Path) -> Path:
    for patch in ("surge-patches-Bass-Dark Horse-velocity64", "surge-patches-Lead-Sine-velocity64", "surge-C"):
        for pitch in (21, 60, 108):
            clip(root / patch / f"{pitch}.ogg")
    return root


def test_surge_with_evars_list(tmp_path):
    root = surge_tree(tmp_path / "surge")
    (root / "surge-C" / "60.ogg").unlink()
    predefined = tmp_path / "evar" / "evar" / "predefined"
    predefined.mkdir(parents=True)
    (predefined / "dataset_surge_tone_splits.csv").write_text(
        "tone,split\nsurge-patches-Bass-Dark Horse-velocity64,train\n"
        "surge-patches-Lead-Sine-velocity64,valid\nsurge-C,test\nsurge-D,test\n"
    )
    report, table = build("surge", root, tmp_path, evar=tmp_path / "evar")
    assert report.comparable
    assert report.missing == ("surge-C/60.ogg", "surge-D/ (3 clips)")
    assert table.split.value_counts().to_dict() == {"train": 3, "valid": 3, "test": 2}
    assert sorted(set(table.label)) == [21, 60, 108]
    assert "surge-patches-Bass-Dark Horse-velocity64" in set(table.group)


def test_surge_without_evar_is_marked_as_not_comparable(tmp_path):
    report, table = build("surge", surge_tree(tmp_path / "surge"), tmp_path, seed=3)
    assert not report.comparable
    assert report.seed == 3
    assert "NOT COMPARABLE" in str(report)
    assert table.groupby("group").split.nunique().max() == 1
    sidecar = json.loads((tmp_path / "metadata" / "surge.json").read_text())
    assert sidecar["comparable"] is False
    assert sidecar["seed"] == 3


def vc1_tree(root: Path, base: str = "wav") -> Path:
    names = ["id10001/1zcIwhmdeo4/00001.wav", "id10270/5r0dWxy17C8/00001.wav", "id10003/na8-QEFmj44/00003.wav"]
    for name in names:
        clip(root / base / name)
    (root / "iden_split.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    (root / "vox1_meta.csv").write_text(
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
        "id10001\tA.J._Buckley\tm\tIreland\tdev\n"
        "id10003\tAamir_Khan\tm\tIndia\tdev\n"
        "id10270\tEartha_Kitt\tf\tUSA\ttesto \n"
    )
    return root


@pytest.mark.parametrize("base", ["wav", ".", "vox1_dev_wav/wav"])
def test_vc1(tmp_path, base):
    root = vc1_tree(tmp_path / "vc1", base)
    gender, table = build("vc1_gender", root, tmp_path)
    assert table.label.tolist() == ["Male", "Female", "Male"]
    assert table.split.tolist() == ["train", "valid", "test"]
    assert table.group.tolist() == ["id10001", "id10270", "id10003"]
    country, by_country = build("vc1_country", root, tmp_path)
    assert by_country.label.tolist() == ["Ireland", "USA", "India"]
    assert by_country.file_name.tolist() == table.file_name.tolist()  # one pass serves both
    assert any("not speakers" in note for note in gender.notes)
    assert any("3 of the 3 countries have a single speaker" in note for note in country.notes)


def test_vc1_splits_from_evar(tmp_path):
    root = vc1_tree(tmp_path / "vc1")
    (root / "iden_split.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"iden_split\.txt"):
        build("vc1_gender", root, tmp_path)
    folder = tmp_path / "evar" / "evar" / "metadata"
    folder.mkdir(parents=True)
    (folder / "vc1.csv").write_text("file_name,label,split\nwav/id10001/1zcIwhmdeo4/00001.wav,id10001,train\n")
    _, table = build("vc1_gender", root, tmp_path, evar=tmp_path / "evar")
    assert table.values.tolist() == [["wav/id10001/1zcIwhmdeo4/00001.wav", "Male", "train", "id10001"]]


def test_vc1_speaker_without_metadata(tmp_path):
    root = vc1_tree(tmp_path / "vc1")
    (root / "vox1_meta.csv").write_text("VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n")
    with pytest.raises(ValueError, match="no line for 3 speaker"):
        build("vc1_country", root, tmp_path)


def voxforge_tree(root: Path) -> Path:
    for language in ("de", "fr"):
        for speaker in ("ralfherzog", "anonymous", "Marie Curie", "guenter", "timobaumann", "petra"):
            session = f"{speaker}-20080322-{language}1"
            kind = "flac" if speaker == "guenter" else "wav"
            for name in ("de1-01", "de1-02"):
                clip(root / language / session / kind / f"{name}.{kind}")
    return root


def test_voxforge_by_folder(tmp_path):
    root = voxforge_tree(tmp_path / "voxforge")
    clip(root / "klingon" / "worf-20080322-x" / "wav" / "a.wav")
    report, table = build("voxforge", root, tmp_path)
    assert table.label.value_counts().to_dict() == {"de": 12, "fr": 12}
    assert table.groupby("group").split.nunique().max() == 1
    assert set(pd.crosstab(table.label, table.split).to_numpy().ravel()) != {0}
    assert {"ralfherzog", "anonymous-20080322-de1", "anonymous-20080322-fr1", "Marie Curie"} <= set(table.group)
    assert not report.comparable
    assert any("1 sessions of unknown language" in n for n in report.notes)


def test_voxforge_by_list_of_addresses(tmp_path):
    root = tmp_path / "voxforge"
    clip(root / "ralfherzog-20080322-de1" / "wav" / "de1-01.wav")
    clip(root / "1028-20100710-hne" / "wav" / "ar-01.WAV")
    (root / "voxforge_urls.txt").write_text(
        "www.repository.voxforge1.org/downloads/de/Trunk/Audio/Main/16kHz_16bit/ralfherzog-20080322-de1.tgz\n"
        "www.repository.voxforge1.org/downloads/SpeechCorpus/Trunk/Audio/Main/16kHz_16bit/1028-20100710-hne.tgz\n"
    )
    _, table = build("voxforge", root, tmp_path)
    assert dict(zip(table.group, table.label, strict=True)) == {"ralfherzog": "de", "1028": "en"}
    assert speaker_of("Anonymous-20080425-bqj") == "Anonymous-20080425-bqj"


def cremad_tree(root: Path) -> Path:
    for actor in range(1001, 1011):
        for emotion in ("ANG", "HAP"):
            clip(root / "AudioWAV" / f"{actor}_DFA_{emotion}_XX.wav")
    clip(root / "AudioWAV" / "1001_ITH_SAD_X.WAV")
    (root / "VideoDemographics.csv").write_text(
        '"ActorID","Age","Sex","Race","Ethnicity"\n'
        + "".join(f'{a},30,"{"Male" if a % 2 else "Female"}","-","-"\n' for a in range(1001, 1011))
    )
    return root


def test_cremad_without_evar(tmp_path):
    root = cremad_tree(tmp_path / "CREMA-D")
    emotion, table = build("cremad", root, tmp_path)
    gender, by_gender = build("cremad_gender", root, tmp_path)
    assert table.label.value_counts().to_dict() == {"ANG": 10, "HAP": 10, "SAD": 1}
    assert table.groupby("group").split.nunique().max() == 1
    assert by_gender.drop(columns="label").equals(table.drop(columns="label"))  # one pass serves both
    assert by_gender.label[by_gender.group == "1001"].unique().tolist() == ["Male"]
    assert not emotion.comparable
    assert not gender.comparable


def test_ravdess_names(tmp_path):
    root = tmp_path / "ravdess"
    for actor in range(1, 25):
        clip(root / f"Actor_{actor:02d}" / f"03-01-05-02-01-01-{actor:02d}.wav", seconds=3.0, rate=500)
    clip(root / "Actor_01" / "03-02-05-02-01-01-01.wav")  # song
    emotion, table = build("ravdess", root, tmp_path)
    assert set(table.label) == {"angry"} and table.group.tolist() == [f"{a:02d}" for a in range(1, 25)]
    assert not emotion.comparable and emotion.counts["groups"] == 24
    _, by_gender = build("ravdess_gender", root, tmp_path)
    assert by_gender.drop(columns="label").equals(table.drop(columns="label"))  # one pass serves both
    assert by_gender.label[:2].tolist() == ["Male", "Female"]
    both = pd.crosstab(by_gender.label, by_gender.split)
    assert both.to_dict() == {s: {"Female": n, "Male": n} for s, n in (("test", 3), ("train", 7), ("valid", 2))}


def test_the_real_ravdess(ravdess, tmp_path):
    report, table = build("ravdess", ravdess, tmp_path)
    assert report.as_published and not report.missing and not report.invalid and not report.short
    assert table.label.value_counts().to_dict() == {**dict.fromkeys(EMOTIONS, 192), "neutral": 96}
    task = from_folder(ravdess, pattern="{}-{}-{label}-{}-{}-{}-{group}", clip_seconds=4.0)
    assert len(task) == 1440 and len(set(task.groups)) == 24 and task.classes[0] == "01"


def evar_clone(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "evar" / "evar" / "metadata"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.csv").write_text(content)
    return tmp_path / "evar"


def test_cremad_with_evars_metadata(tmp_path, monkeypatch):
    root = cremad_tree(tmp_path / "CREMA-D")
    clone = evar_clone(
        tmp_path,
        cremad="file_name,label,speaker_id,split\n1001_DFA_ANG_XX.wav,ANG,1001,test\n1002_DFA_HAP_XX.wav,HAP,1002,train\n",
    )
    monkeypatch.setenv("EVAR", str(clone))
    report, table = build("cremad", root, tmp_path)
    assert report.comparable
    assert report.origin == "EVAR's cremad.csv, used as it is"
    assert table.to_csv(index=False) == (
        "file_name,label,split,group\n"
        "AudioWAV/1001_DFA_ANG_XX.wav,ANG,test,1001\nAudioWAV/1002_DFA_HAP_XX.wav,HAP,train,1002\n"
    )


def test_evars_nspitch_with_its_doubled_suffix(tmp_path):
    root = tmp_path / "nsynth"
    clip(root / "nsynth-train" / "audio" / "bass_synthetic_033-022-050.wav")
    clone = evar_clone(
        tmp_path,
        **{"nspitch.csv": ",file_name,label,split\n0,nsynth-train/audio/bass_synthetic_033-022-050.wav,22,train\n"},
    )
    assert evar_metadata("nspitch", clone).name == "nspitch.csv.csv"
    report, table = build("nspitch", root, tmp_path, evar=clone)
    assert table.group.tolist() == ["bass_synthetic_033"]
    assert any(".csv twice" in note for note in report.notes)
    (clone / "evar" / "metadata" / "nspitch.csv").write_text("file_name,label,split\n")
    assert evar_metadata("nspitch", clone).name == "nspitch.csv"


def test_evars_gtzan_keeps_its_rows_without_a_split_out(tmp_path):
    root = gtzan_tree(tmp_path / "g")
    clone = evar_clone(
        tmp_path, gtzan="file_name,label,split\nblues/blues.00029.wav,blues,train\njazz/jazz.00001.wav,jazz,\n"
    )
    report, table = build("gtzan", root, tmp_path, evar=clone)
    assert table.file_name.tolist() == ["genres/blues/blues.00029.wav"]
    assert any("1 rows of gtzan.csv have no split" in note for note in report.notes)


def test_evars_gtzan_as_a_task_without_any_builder(tmp_path):
    root = gtzan_tree(tmp_path / "g")
    rows = "blues/blues.00029.wav,blues,train\njazz/jazz.00054.wav,jazz,\njazz/jazz.00001.wav,jazz,train\n"
    (tmp_path / "gtzan.csv").write_text("file_name,label,split\n" + rows)
    with pytest.warns(UserWarning, match="1 row.s. without a split are left out"):
        task = from_metadata(tmp_path / "gtzan.csv", root / "genres", clip_seconds=30.0, name="gtzan")
    assert task.files == ("blues/blues.00029.wav", "jazz/jazz.00001.wav")
    assert task.labels.tolist() == [0, 1]
    assert task.groups == ("0", "1")


def test_evars_voxforge_gets_speakers(tmp_path):
    root = voxforge_tree(tmp_path / "voxforge")
    clone = evar_clone(tmp_path, voxforge="file_name,label,split\nde/ralfherzog-20080322-de1/wav/de1-01.wav,de,train\n")
    report, table = build("voxforge", root, tmp_path, evar=clone)
    assert report.comparable
    assert table.group.tolist() == ["ralfherzog"]


# --- errors and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", sorted(TASKS))
def test_an_empty_folder_says_what_was_expected(tmp_path, dataset):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        build(dataset, tmp_path / "empty", tmp_path)
    assert not (tmp_path / "metadata").exists()


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="expected one of esc50"):
        build("esc10", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="header"):
        build("esc50", tmp_path, tmp_path, check="thorough")
    with pytest.raises(FileNotFoundError, match="no such"):
        build("surge", tmp_path / "no such", tmp_path)


def test_command_line(tmp_path, capsys):
    root, out = esc50_tree(tmp_path / "esc"), tmp_path / "esc50.csv"
    assert main(["metadata", "esc50", str(root), str(out)]) == 1
    shown = capsys.readouterr().out
    assert "missing, left out: 1" in shown
    assert "audio/5-9-A-10.wav" in shown
    clip(root / "audio" / "5-9-A-10.wav", seconds=5.0, rate=2000)
    assert main(["metadata", "esc50", str(root), str(out)]) == 0
    assert main(["metadata", "gtzan", str(root), str(out)]) == 2
