"""Metadata of the datasets, on tiny rebuilt trees with their real names, layouts and quirks."""

from __future__ import annotations

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


def tree(root: Path, *clips: str, texts: dict[str, str] | None = None, seconds: float = 0.05, rate: int = 8000) -> Path:
    """A folder with short recordings and text files of these names."""
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in clips:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        wave = 0.1 * np.sin(np.arange(int(seconds * rate)) * 0.3)
        soundfile.write(root / name, wave, rate, format=Path(name).suffix[1:].upper())
    return root


def cut(path: Path, keep: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def build(dataset, root, tmp_path, **options):
    out = tmp_path / "metadata" / f"{dataset}.csv"
    report = build_metadata(dataset, root, out, **options)
    return report, pd.read_csv(out, keep_default_na=False, dtype={"file_name": str, "group": str})


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "au", "aiff"])
def test_whole_files_are_valid_and_cut_files_are_not(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 100_000), 44100)
    assert why_invalid(path) is None and why_invalid(path, check="read") is None
    assert "truncated" in why_invalid(cut(path))


def test_a_cut_inside_the_last_ogg_page_is_noticed(tmp_path):
    path = tree(tmp_path, "a.ogg", seconds=2.0) / "a.ogg"
    path.write_bytes(path.read_bytes()[:-7])
    assert "truncated" in why_invalid(path)


def test_a_wav_from_a_pipe_promises_four_gigabytes_and_is_whole(tmp_path):
    path = tree(tmp_path, "a.wav", seconds=2.0) / "a.wav"
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


def test_index_finds_other_cases_containers_and_folders_and_skips_hidden_files(tmp_path):
    index = AudioIndex(
        tree(tmp_path, "AudioMP3/1001_A.mp3", "AudioWAV/1001_A.WAV", "x/jazz/jazz.00054.flac", "jazz/jazz.00055.ogg",
             "jazz/jazz.00055.wav", "a b/._c.wav")
    )  # fmt: skip
    assert index.find("1001_a.wav") == "AudioWAV/1001_A.WAV"
    assert index.find("jazz/jazz.00054.wav") == "x/jazz/jazz.00054.flac"
    assert index.find("jazz/jazz.00055.wav") == "jazz/jazz.00055.wav"
    assert index.find("jazz/jazz.00056.wav") is None and index.find("rock/jazz.00055.wav") is None
    assert len(index.files) == 5


def test_seeded_split_keeps_groups_whole_and_every_stratum_in_every_split():
    groups = [f"{s}{i}" for s in "ab" for i in range(10) for _ in range(3)]
    strata = [g[0] for g in groups]
    shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
    splits = seeded_split(groups, strata, shares=shares, seed=1)
    assert splits == seeded_split(groups, strata, shares=shares, seed=1)
    assert splits != seeded_split(groups, strata, shares=shares, seed=2)
    table = pd.DataFrame({"g": groups, "s": strata, "split": splits}).drop_duplicates()
    assert table.g.is_unique
    counts = table.groupby("s").split.value_counts().to_dict()
    assert counts == {(s, k): v for s in "ab" for k, v in {"train": 7, "valid": 1, "test": 2}.items()}


# --- datasets ----------------------------------------------------------------------------------------------------


def esc50_tree(root: Path) -> Path:
    meta = (
        "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "1-100032-B-0.wav,1,0,dog,True,100032,B\n2-118625-A-10.wav,2,10,rain,True,118625,A\n"
        "5-9-A-10.wav,5,10,rain,True,9,A\n"
    )
    clips = [f"audio/{name}" for name in ("1-100032-A-0.wav", "1-100032-B-0.wav", "2-118625-A-10.wav")]
    return tree(root, *clips, texts={"meta/esc50.csv": meta}, seconds=5.0, rate=2000)


@pytest.mark.filterwarnings("ignore:.*have no clip in a split")
@pytest.mark.parametrize("inside", ["", "ESC-50-33c8ce9"])  # the folder that the archive makes
def test_esc50(tmp_path, inside):
    esc50_tree(tmp_path / "esc50" / inside)
    report, table = build("esc50", tmp_path / "esc50", tmp_path)
    assert table.columns.tolist() == ["file_name", "label", "fold", "group"]
    assert table.file_name[0] == str(Path(inside, "audio/1-100032-A-0.wav"))
    assert table.group.tolist() == ["100032", "100032", "118625"]
    assert report.missing == ("audio/5-9-A-10.wav",)
    assert report.counts["fold1"] == 2 and not report.as_published
    task = from_metadata(tmp_path / "metadata" / "esc50.csv", tmp_path / "esc50", clip_seconds=5.0, name="esc50")
    assert task.classes == ("dog", "rain") and task.group_column == "group"


def test_a_whole_but_short_clip_is_kept_and_named(tmp_path):
    root = tree(esc50_tree(tmp_path / "esc50"), "audio/5-9-A-10.ogg", seconds=3.6)
    report, table = build("esc50", root, tmp_path)
    assert report.short == (("audio/5-9-A-10.ogg", "3.60 s"),)
    assert "audio/5-9-A-10.ogg" in table.file_name.tolist()
    assert report.missing == () == report.invalid


def test_gise51_folders(tmp_path):
    names = [
        f"isolated_events/{s}/{c}"
        for s in ("train", "val", "eval")
        for c in ("Coin_(dropping)/10045_0.wav", "Waves/c.wav")
    ]
    root = tree(tmp_path / "gise", *names, texts={"meta/lbl_map.json": '{"Coin_(dropping)": 0, "Wind": 1}'})
    report, table = build("gise51", root, tmp_path)
    assert table.split.tolist() == ["train"] * 2 + ["valid"] * 2 + ["test"] * 2
    assert sorted(set(table.label)) == ["Coin_(dropping)", "Waves"] and table.group[0] == "10045"
    assert any("Waves, Wind" in note for note in report.notes) and report.published["classes"] == 51


def test_gise51_lists(tmp_path):
    splits = ("train", "val", "eval")
    texts = {f"{split}.csv": "fname,label\n77,Wind\n78,Glass\n" for split in splits}
    report, table = build("gise51", tree(tmp_path, *(f"{s}/77.wav" for s in splits), texts=texts), tmp_path)
    assert set(table.label) == {"Wind"}
    assert report.missing == ("train/78.wav", "val/78.wav", "eval/78.wav")


def gtzan_tree(root: Path, genres: str = "genres") -> Path:
    lists = {"train": "blues/blues.00029.wav\njazz/jazz.00054.wav\n", "valid": "jazz/jazz.00001.wav\n",
             "test": "blues/blues.00012.wav\n"}  # fmt: skip
    clips = [f"{genres}/{name}.wav" for name in ("blues/blues.00029", "jazz/jazz.00054", "jazz/jazz.00001")]
    tree(root, *clips, texts={f"GTZAN_split/{k}_filtered.txt": v for k, v in lists.items()}, seconds=30.0, rate=200)
    cut(root / genres / "jazz/jazz.00054.wav")
    return root


@pytest.mark.parametrize("genres", ["genres", "Data/genres_original", "dataset/genres_original", "data/gtzan", "."])
def test_gtzan_tells_the_truncated_clip_from_the_missing_one(tmp_path, genres):
    report, table = build("gtzan", gtzan_tree(tmp_path / "g", genres), tmp_path)
    assert [name for name, _ in report.invalid] == [str(Path(genres, "jazz/jazz.00054.wav"))]
    assert "truncated" in report.invalid[0][1]
    assert report.missing == ("blues/blues.00012.wav",)
    assert table.label.tolist() == ["blues", "jazz"] and "group" not in table
    assert report.published == {"clips": 930, "classes": 10, "train": 443, "valid": 197, "test": 290}
    assert any("SHA-256 differs" in note for note in report.notes)  # these lists are ours


def test_gtzan_without_lists_says_how_to_get_them(tmp_path):
    root = gtzan_tree(tmp_path / "g")
    shutil.rmtree(root / "GTZAN_split")
    with pytest.raises(FileNotFoundError, match="download gtzan"):
        build("gtzan", root, tmp_path)


@pytest.mark.filterwarnings("ignore:.*have no clip in a split")
def test_nspitch(tmp_path):
    notes = {"train": "bass_synthetic_033-022-050", "valid": "guitar_acoustic_010-108-127", "test": "reed_037-068-100"}
    for split, note in notes.items():
        instrument, pitch, _ = note.rsplit("-", 2)
        content = {note: {"pitch": int(pitch), "instrument_str": instrument}}
        tree(tmp_path / f"nsynth-{split}", f"audio/{note}.wav", texts={"examples.json": json.dumps(content)})
    _, table = build("nspitch", tmp_path, tmp_path)
    assert table.label.tolist() == [22, 108, 68] and table.split.tolist() == ["train", "valid", "test"]
    assert table.group.tolist() == ["bass_synthetic_033", "guitar_acoustic_010", "reed_037"]
    # as from_metadata sorts them: numbers as numbers
    task = from_metadata(tmp_path / "metadata" / "nspitch.csv", tmp_path, clip_seconds=4.0, name="nspitch")
    assert task.classes == ("22", "68", "108")


def surge_tree(root: Path) -> Path:
    patches = ("surge-patches-Bass-Dark Horse-velocity64", "surge-patches-Lead-Sine-velocity64", "surge-C")
    return tree(root, *(f"{patch}/{pitch}.ogg" for patch in patches for pitch in (21, 60, 108)))


def test_surge_with_evars_list(tmp_path):
    root = surge_tree(tmp_path / "surge")
    (root / "surge-C" / "60.ogg").unlink()
    splits = (
        "tone,split\nsurge-patches-Bass-Dark Horse-velocity64,train\n"
        "surge-patches-Lead-Sine-velocity64,valid\nsurge-C,test\nsurge-D,test\n"
    )
    clone = tree(tmp_path / "clone", texts={"evar/predefined/dataset_surge_tone_splits.csv": splits})
    report, table = build("surge", root, tmp_path, evar=clone)
    assert report.comparable and report.missing == ("surge-C/60.ogg", "surge-D/ (3 clips)")
    assert table.split.value_counts().to_dict() == {"train": 3, "valid": 3, "test": 2}
    assert sorted(set(table.label)) == [21, 60, 108]
    assert "surge-patches-Bass-Dark Horse-velocity64" in set(table.group)


def test_surge_without_evar_is_marked_as_not_comparable(tmp_path):
    report, table = build("surge", surge_tree(tmp_path / "surge"), tmp_path, seed=3)
    assert not report.comparable and "NOT COMPARABLE" in str(report)
    assert table.groupby("group").split.nunique().max() == 1
    sidecar = json.loads((tmp_path / "metadata" / "surge.json").read_text())
    assert (sidecar["comparable"], sidecar["seed"]) == (False, 3)


def vc1_tree(root: Path, base: str = "wav", between: str = "\t") -> Path:
    names = ["id10001/1zcIwhmdeo4/00001.wav", "id10270/5r0dWxy17C8/00001.wav", "id10003/na8-QEFmj44/00003.wav"]
    meta = (
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA.J._Buckley\tm\tIreland\tdev\n"
        "id10003\tAamir_Khan\tm\tIndia\tdev\nid10270\tEartha_Kitt\tf\tUSA\ttesto \n"
    )
    split = "".join(f"{i} {n}\n" for i, n in enumerate(names, 1))
    texts = {"iden_split.txt": split, "vox1_meta.csv": meta.replace("\t", between)}
    return tree(root, *(f"{base}/{name}" for name in names), texts=texts)


@pytest.mark.parametrize(("base", "between"), [("wav", "\t"), (".", ","), ("vox1_dev_wav/wav", "\t")])
def test_vc1(tmp_path, base, between):
    root = vc1_tree(tmp_path / "vc1", base, between)
    gender, table = build("vc1_gender", root, tmp_path)
    assert table.label.tolist() == ["Male", "Female", "Male"] and table.split.tolist() == ["train", "valid", "test"]
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
    clone = evar_clone(tmp_path, vc1="file_name,label,split\nwav/id10001/1zcIwhmdeo4/00001.wav,id10001,train\n")
    _, table = build("vc1_gender", root, tmp_path, evar=clone)
    assert table.values.tolist() == [["wav/id10001/1zcIwhmdeo4/00001.wav", "Male", "train", "id10001"]]


def test_vc1_speaker_without_metadata(tmp_path):
    root = vc1_tree(tmp_path / "vc1")
    (root / "vox1_meta.csv").write_text("VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n")
    with pytest.raises(ValueError, match="no line for 3 speaker"):
        build("vc1_country", root, tmp_path)


def voxforge_tree(root: Path) -> Path:
    speakers = {name: "wav" for name in ("ralfherzog", "anonymous", "Marie Curie", "timobaumann", "petra")}
    return tree(
        root,
        *(f"{language}/{speaker}-20080322-{language}1/{kind}/de1-0{i}.{kind}"
          for language in ("de", "fr") for speaker, kind in {**speakers, "guenter": "flac"}.items() for i in (1, 2)),
    )  # fmt: skip


def test_voxforge_by_folder(tmp_path):
    root = tree(voxforge_tree(tmp_path / "voxforge"), "klingon/worf-20080322-x/wav/a.wav")
    report, table = build("voxforge", root, tmp_path)
    assert table.label.value_counts().to_dict() == {"de": 12, "fr": 12}
    assert table.groupby("group").split.nunique().max() == 1
    assert set(pd.crosstab(table.label, table.split).to_numpy().ravel()) != {0}
    assert {"ralfherzog", "anonymous-20080322-de1", "anonymous-20080322-fr1", "Marie Curie"} <= set(table.group)
    assert not report.comparable and any("1 sessions of unknown language" in n for n in report.notes)


def test_voxforge_by_list_of_addresses(tmp_path):
    urls = (
        "www.repository.voxforge1.org/downloads/de/Trunk/Audio/Main/16kHz_16bit/ralfherzog-20080322-de1.tgz\n"
        "www.repository.voxforge1.org/downloads/SpeechCorpus/Trunk/Audio/Main/16kHz_16bit/1028-20100710-hne.tgz\n"
    )
    names = ("ralfherzog-20080322-de1/wav/de1-01.wav", "1028-20100710-hne/wav/ar-01.WAV")
    _, table = build("voxforge", tree(tmp_path / "vf", *names, texts={"voxforge_urls.txt": urls}), tmp_path)
    assert dict(zip(table.group, table.label, strict=True)) == {"ralfherzog": "de", "1028": "en"}
    assert speaker_of("Anonymous-20080425-bqj") == "Anonymous-20080425-bqj"


def cremad_tree(root: Path) -> Path:
    names = [f"AudioWAV/{actor}_DFA_{emotion}_XX.wav" for actor in range(1001, 1011) for emotion in ("ANG", "HAP")]
    people = "".join(f'{a},30,"{"Male" if a % 2 else "Female"}","-","-"\n' for a in range(1001, 1011))
    texts = {"VideoDemographics.csv": f'"ActorID","Age","Sex","Race","Ethnicity"\n{people}'}
    return tree(root, *names, "AudioWAV/1001_ITH_SAD_X.WAV", texts=texts)


def test_cremad_without_evar(tmp_path):
    root = cremad_tree(tmp_path / "CREMA-D")
    emotion, table = build("cremad", root, tmp_path)
    gender, by_gender = build("cremad_gender", root, tmp_path)
    assert table.label.value_counts().to_dict() == {"ANG": 10, "HAP": 10, "SAD": 1}
    assert table.groupby("group").split.nunique().max() == 1
    assert by_gender.drop(columns="label").equals(table.drop(columns="label"))  # one pass serves both
    assert by_gender.label[by_gender.group == "1001"].unique().tolist() == ["Male"]
    assert not emotion.comparable and not gender.comparable


def test_ravdess_names(tmp_path):
    names = [f"Actor_{a:02d}/03-01-05-02-01-01-{a:02d}.wav" for a in range(1, 25)]
    root = tree(tmp_path / "ravdess", *names, "Actor_01/03-02-05-02-01-01-01.wav", seconds=3.0, rate=500)  # and a song
    emotion, table = build("ravdess", root, tmp_path)
    assert set(table.label) == {"angry"} and table.group.tolist() == [f"{a:02d}" for a in range(1, 25)]
    assert not emotion.comparable and emotion.counts["groups"] == 24
    _, by_gender = build("ravdess_gender", root, tmp_path)
    assert by_gender.drop(columns="label").equals(table.drop(columns="label"))  # one pass serves both
    assert by_gender.label[:2].tolist() == ["Male", "Female"]
    both = pd.crosstab(by_gender.label, by_gender.split).to_dict()
    assert both == {s: {"Female": n, "Male": n} for s, n in (("test", 3), ("train", 7), ("valid", 2))}


def test_the_real_ravdess(ravdess, tmp_path):
    report, table = build("ravdess", ravdess, tmp_path)
    assert report.as_published and not report.missing and not report.invalid and not report.short
    assert table.label.value_counts().to_dict() == {**dict.fromkeys(EMOTIONS, 192), "neutral": 96}
    task = from_folder(ravdess, pattern="{}-{}-{label}-{}-{}-{}-{group}", clip_seconds=4.0)
    assert len(task) == 1440 and len(set(task.groups)) == 24 and task.classes[0] == "01"


# --- EVAR's own metadata ---------------------------------------------------------------------------------------------


def evar_clone(tmp_path: Path, **files: str) -> Path:
    return tree(tmp_path / "clone", texts={f"evar/metadata/{name}.csv": content for name, content in files.items()})


def test_cremad_with_evars_metadata(tmp_path, monkeypatch):
    rows = "1001_DFA_ANG_XX.wav,ANG,1001,test\n1002_DFA_HAP_XX.wav,HAP,1002,train\n"
    monkeypatch.setenv("EVAR", str(evar_clone(tmp_path, cremad="file_name,label,speaker_id,split\n" + rows)))
    report, table = build("cremad", cremad_tree(tmp_path / "CREMA-D"), tmp_path)
    assert report.comparable and report.origin == "EVAR's cremad.csv, used as it is"
    assert table.to_csv(index=False) == (
        "file_name,label,split,group\n"
        "AudioWAV/1001_DFA_ANG_XX.wav,ANG,test,1001\nAudioWAV/1002_DFA_HAP_XX.wav,HAP,train,1002\n"
    )


def test_evars_nspitch_with_its_doubled_suffix(tmp_path):
    name = "nsynth-train/audio/bass_synthetic_033-022-050.wav"
    clone = evar_clone(tmp_path, **{"nspitch.csv": f",file_name,label,split\n0,{name},22,train\n"})
    assert evar_metadata("nspitch", clone).name == "nspitch.csv.csv"
    report, table = build("nspitch", tree(tmp_path / "nsynth", name), tmp_path, evar=clone)
    assert table.group.tolist() == ["bass_synthetic_033"]
    assert any(".csv twice" in note for note in report.notes)
    evar_clone(tmp_path, nspitch="file_name,label,split\n")
    assert evar_metadata("nspitch", clone).name == "nspitch.csv"


def test_evars_gtzan_keeps_its_rows_without_a_split_out(tmp_path):
    root = gtzan_tree(tmp_path / "g")
    rows = "blues/blues.00029.wav,blues,train\njazz/jazz.00054.wav,jazz,\njazz/jazz.00001.wav,jazz,train\n"
    clone = evar_clone(tmp_path, gtzan="file_name,label,split\n" + rows)
    report, table = build("gtzan", root, tmp_path, evar=clone)
    assert table.file_name.tolist() == ["genres/blues/blues.00029.wav", "genres/jazz/jazz.00001.wav"]
    assert any("1 rows of gtzan.csv have no split" in note for note in report.notes)
    with pytest.warns(UserWarning, match="1 row.s. without a split are left out"):  # and given to a task as it is
        task = from_metadata(clone / "evar/metadata/gtzan.csv", root / "genres", clip_seconds=30.0, name="gtzan")
    assert task.files == ("blues/blues.00029.wav", "jazz/jazz.00001.wav")
    assert task.labels.tolist() == [0, 1] and task.groups == ("0", "1")


def test_evars_voxforge_gets_speakers(tmp_path):
    clone = evar_clone(tmp_path, voxforge="file_name,label,split\nde/ralfherzog-20080322-de1/wav/de1-01.wav,de,train\n")
    report, table = build("voxforge", voxforge_tree(tmp_path / "voxforge"), tmp_path, evar=clone)
    assert report.comparable and table.group.tolist() == ["ralfherzog"]


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
    assert "missing, left out: 1" in shown and "audio/5-9-A-10.wav" in shown
    tree(root, "audio/5-9-A-10.wav", seconds=5.0, rate=2000)
    assert main(["metadata", "esc50", str(root), str(out)]) == 0
    assert main(["metadata", "gtzan", str(root), str(out)]) == 2
