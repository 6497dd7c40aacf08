"""Metadata of the datasets, on tiny rebuilt trees with their real names, layouts and quirks."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import shared_folder

from aape.cli import main
from aape.datasets import TASKS
from aape.datasets.base import Source
from aape.datasets.check import build_metadata, shown
from aape.datasets.nemo import RAVDESS_NAMES
from aape.datasets.ravdess import EMOTIONS
from aape.sounds.clips import Clip
from aape.sounds.splitting import split_clips


@pytest.fixture(autouse=True)
def no_evar(monkeypatch):
    monkeypatch.delenv("EVAR", raising=False)


def tree(
    root: Path,
    *clips: str,
    texts: dict[str, str] | None = None,
    seconds: float = 0.05,
    rate: int = 8000,
) -> Path:
    """A folder with short recordings and text files of these names."""
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in clips:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        wave = 0.1 * np.sin(np.arange(int(seconds * rate)) * 0.3)
        soundfile.write(root / name, wave, rate, format=Path(name).suffix[1:].upper())
    return root


def build(task: str, root: Path, tmp_path: Path, **options):
    """The report, and the table with its columns as text."""
    report = build_metadata(task, root, tmp_path / "metadata" / f"{task}.csv", **options)
    return report, pd.read_csv(report["csv"], keep_default_na=False, dtype=str)


ESC50 = {
    "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
    "1-100032-B-0.wav,1,0,dog,True,100032,B\n5-9-A-10.wav,5,10,rain,True,9,A\n"
}
GTZAN = {
    "GTZAN_split/train_filtered.txt": "blues/blues.00029.wav\njazz/jazz.00054.wav\n",
    "GTZAN_split/valid_filtered.txt": "jazz/jazz.00001.wav\n",
    "GTZAN_split/test_filtered.txt": "blues/blues.00012.wav\n",
}
NSYNTH = {
    f"nsynth-{split}/examples.json": json.dumps({note: {"pitch": int(note.split("-")[1])}})
    for split, note in (
        ("train", "bass_033-022-050"),
        ("valid", "guitar_010-108-127"),
        ("test", "reed_037-068-100"),
    )
}
SPEAKERS = ("id10001/1zcIwhmdeo4/00001", "id10270/5r0dWxy17C8/00001", "id10003/na8-QEFmj44/00003")
VC1 = {
    "iden_split.txt": "".join(f"{i} {name}.wav\n" for i, name in enumerate(SPEAKERS, 1)),
    "vox1_meta.csv": "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA.J._Buckley\tm\tIreland\tdev\n"
    "id10003\tAamir_Khan\tm\tIndia\tdev\nid10270\tEartha_Kitt\tf\tUSA\ttesto \n",
}
WITH_COMMAS = VC1 | {"vox1_meta.csv": VC1["vox1_meta.csv"].replace("\t", ",")}
SURGE = {
    "evar/predefined/dataset_surge_tone_splits.csv": "tone,split\nBass Dark,train\nLead,valid\n"
}
EVAR = "evar/metadata/"  # of a clone, which the cases have in their own folder


@pytest.mark.parametrize(
    ("task", "texts", "clips", "expected"),
    [
        ("esc50", ESC50, "audio/1-100032-A-0.wav audio/1-100032-B-0.wav audio/5-9-A-10.ogg",
         "audio/1-100032-A-0.wav,dog,1,100032 audio/1-100032-B-0.wav,dog,1,100032 audio/5-9-A-10.ogg,rain,5,9"),
        ("gise51", {}, "isolated_events/train/Coin/10045_0.wav isolated_events/val/Waves/c.wav",
         "isolated_events/train/Coin/10045_0.wav,Coin,train,10045 isolated_events/val/Waves/c.wav,Waves,valid,c"),
        *(("gtzan", GTZAN, f"{place}blues/blues.00029.wav {place}jazz/jazz.00001.au",
           f"{place}blues/blues.00029.wav,blues,train {place}jazz/jazz.00001.au,jazz,valid")
          for place in ("", "dataset/genres_original/", "data/gtzan/")),
        ("nspitch", NSYNTH, "nsynth-train/audio/bass_033-022-050.wav nsynth-test/audio/reed_037-068-100.wav",
         "nsynth-train/audio/bass_033-022-050.wav,22,train,bass_033 nsynth-test/audio/reed_037-068-100.wav,68,test,reed_037"),
        *(("vc1_gender", texts, " ".join(f"{place}{name}.wav" for name in SPEAKERS),
           " ".join(f"{place}{name}.wav,{sex},{split},{name[:7]}"
                    for name, sex, split in zip(SPEAKERS, ("Male", "Female", "Male"), ("train", "valid", "test"), strict=True)))
          for place, texts in (("vox1_dev_wav/wav/", VC1), ("", WITH_COMMAS))),
        ("vc1_country", VC1, f"{SPEAKERS[0]}.wav", f"{SPEAKERS[0]}.wav,Ireland,train,id10001"),
        ("surge", SURGE, "Bass_Dark/21.ogg Lead/21.ogg Lead/60.ogg",
         "Lead/21.ogg,21,valid,Lead Lead/60.ogg,60,valid,Lead"),
        # EVAR's own metadata, used as it is
        ("cremad", {f"{EVAR}cremad.csv": "file_name,label,speaker_id,split\n1001_DFA_ANG_XX.wav,ANG,1001,test\n"},
         "AudioWAV/1001_DFA_ANG_XX.WAV", "AudioWAV/1001_DFA_ANG_XX.WAV,ANG,test,1001"),
        ("voxforge", {f"{EVAR}voxforge.csv": "file_name,label,split\nde/ralf-20080322-de1/wav/de1-01.wav,de,train\n"},
         "de/ralf-20080322-de1/wav/de1-01.wav", "de/ralf-20080322-de1/wav/de1-01.wav,de,train,ralf"),
    ],
)  # fmt: skip
def test_published_splits(tmp_path, task, texts, clips, expected):
    root = tree(tmp_path / "root", *clips.split(), texts=texts)
    report, table = build(task, root, tmp_path, evar=root)
    assert [",".join(row) for row in table.to_numpy()] == expected.split()
    assert report["comparable"] and not report["as_published"] and not report["invalid"]
    assert table.columns[0] == "file_name"


def cremad_tree(root: Path) -> Path:
    names = [
        f"AudioWAV/{actor}_DFA_{emotion}_XX.wav"
        for actor in range(1001, 1011)
        for emotion in ("ANG", "HAP")
    ]
    people = "".join(
        f'{a},30,"{"Male" if a % 2 else "Female"}","-","-"\n' for a in range(1001, 1011)
    )
    texts = {"VideoDemographics.csv": f'"ActorID","Age","Sex","Race","Ethnicity"\n{people}'}
    return tree(
        root, *names, "AudioMP3/1001_DFA_ANG_XX.mp3", "AudioWAV/1001_ITH_SAD_X.WAV", texts=texts
    )


def test_cremad_without_evar(tmp_path):
    root = cremad_tree(tmp_path / "CREMA-D")
    emotion, table = build("cremad", root, tmp_path)
    assert table.label.value_counts().to_dict() == {
        "ANG": 10,
        "HAP": 10,
        "SAD": 1,
    }  # a clip in two containers is one
    assert table.groupby("group").split.nunique().max() == 1
    beside = json.loads(Path(emotion["csv"]).with_suffix(".json").read_text())
    assert table.split_note.str.startswith("the split is ours by whole groups, seed 0").all()
    assert (beside["comparable"], beside["seed"]) == (False, 0) and "NOT COMPARABLE" in shown(
        emotion
    )
    _, by_gender = build("cremad_gender", root, tmp_path)
    assert by_gender.drop(columns="label").equals(
        table.drop(columns="label")
    )  # one pass serves both
    assert by_gender.label[by_gender.group == "1001"].unique().tolist() == ["Male"]
    (root / "VideoDemographics.csv").write_text("ActorID,Sex\n1001,Male\n")
    with pytest.raises(ValueError, match="no line for 9 of the ActorIDs"):
        build("cremad_gender", root, tmp_path)


def test_voxforge_without_evar(tmp_path):
    speakers = {
        "ralf": "wav",
        "anonymous": "wav",
        "Marie Curie": "wav",
        "petra": "wav",
        "timo": "wav",
        "eva": "flac",
    }
    clips = [f"{folder}/Trunk/{who}-2008-x/{kind}/{i}.{kind}" for folder in ("de", "SpeechCorpus") for who, kind in speakers.items() for i in "12"]  # fmt: skip
    report, table = build(
        "voxforge", tree(tmp_path / "v", *clips, "klingon/worf-2008-x/wav/a.wav"), tmp_path
    )
    assert table.label.value_counts().to_dict() == {"de": 12, "en": 12}
    assert table.groupby("group").split.nunique().max() == 1
    assert set(table.group) == {"ralf", "anonymous-2008-x", "Marie Curie", "petra", "timo", "eva"}
    assert (
        "1 other audio files are in the folder and are left out, e.g. klingon/worf-2008-x/wav/a.wav"
        in report["notes"]
    )


def test_the_real_ravdess(ravdess, tmp_path):
    report, table = build("ravdess", ravdess, tmp_path)
    assert report["as_published"] and not any(
        report[key] for key in ("missing", "invalid", "notes")
    )
    assert table.label.value_counts().to_dict() == {**dict.fromkeys(EMOTIONS, 192), "neutral": 96}
    _, by_gender = build("ravdess_gender", ravdess, tmp_path)
    assert by_gender.drop(columns="label").equals(
        table.drop(columns="label")
    )  # one pass serves both
    actors = by_gender.drop_duplicates("group").groupby(["label", "split"]).size().to_dict()
    assert actors == {
        (s, k): n for s in ("Male", "Female") for k, n in (("train", 7), ("valid", 2), ("test", 3))
    }


def test_the_real_nemo(tmp_path):
    nemo = shared_folder("data", "nemo")
    if not nemo.is_dir():
        pytest.skip(f"nEMO is not here: expected it at {nemo}, or set AAPE_SHARED")
    report, table = build("nemo", nemo, tmp_path)
    assert report["counts"]["clips"] == 2006 and report["published"]["clips"] == 4481
    assert not report["missing"] and not report["invalid"]
    assert (
        {*table.label}
        == {"angry", "fearful", "happy", "neutral", "sad", "surprised"}
        <= {*EMOTIONS}
    )
    assert {*table.group} == {"EB0", "IC0", "KD0", "KS0", "MK0", "MP0", "SM0", "TP0", "WR0"}
    names = table.file_name.str.extract(r"samples/(\w{3})_([a-z]+)_\d+\.ogg")
    assert (names[0] == table.group).all() and (names[1].map(RAVDESS_NAMES) == table.label).all()
    _, by_gender = build("nemo_gender", nemo, tmp_path)
    assert by_gender.drop(columns="label").equals(
        table.drop(columns="label")
    )  # one pass serves both
    actors = by_gender.drop_duplicates("group").groupby(["label", "split"]).size().to_dict()
    women, men = {"train": 2, "valid": 1, "test": 1}, {"train": 3, "valid": 1, "test": 1}
    assert actors == {("Female", k): n for k, n in women.items()} | {
        ("Male", k): n for k, n in men.items()
    }


SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}


def test_seeded_split_keeps_groups_whole_and_every_stratum_in_every_split():
    clips = [Clip(f"{i}.wav", s, "", f"{s}{i}") for s in "ab" for i in range(10) for _ in range(3)]
    drawn = split_clips(clips, SHARES, 1, "x")
    assert drawn == split_clips(clips, SHARES, 1, "x", [clip.label for clip in clips])
    assert drawn != split_clips(clips, SHARES, 2, "x")
    table = pd.DataFrame(drawn).drop(columns="file_name").drop_duplicates()
    assert table.group.is_unique
    counts = table.groupby("label").split.value_counts().to_dict()
    assert counts == {
        (s, k): v for s in "ab" for k, v in {"train": 7, "valid": 1, "test": 2}.items()
    }


def test_removing_a_clip_leaves_the_splits_of_the_others_unchanged():
    clips = [Clip(f"{label}{i}.wav", label, "") for label in "ab" for i in range(200)]
    drawn = split_clips(clips, SHARES, 0, "x")
    shares = pd.DataFrame(drawn).groupby("label").split.value_counts(normalize=True)
    assert all(
        abs(shares[label, name] - share) < 0.1 for label in "ab" for name, share in SHARES.items()
    )
    for gone in range(0, 400, 7):
        assert (
            split_clips(clips[:gone] + clips[gone + 1 :], SHARES, 0, "x")
            == drawn[:gone] + drawn[gone + 1 :]
        )
    speakers = [Clip(f"{i}.wav", "ab"[i % 2], "", f"s{i % 6}") for i in range(60)]
    drawn = split_clips(speakers, SHARES, 0, "x")
    assert split_clips(speakers[1:], SHARES, 0, "x") == drawn[1:]


def test_a_list_that_was_written_here_is_never_read_as_evars(tmp_path):
    """In a clone of EVAR the metadata folder also holds what an earlier run wrote."""
    clone = tmp_path / "clone"
    (clone / EVAR).mkdir(parents=True)
    root = cremad_tree(tmp_path / "CREMA-D")
    out = clone / EVAR / "cremad.csv"
    for seed in (3, 5):
        report = build_metadata("cremad", root, out, evar=clone, seed=seed)
        assert (report["comparable"], report["seed"]) == (False, seed)
        assert f"seed {seed}" in pd.read_csv(out)["split_note"].iloc[0]
    tree(root, "AudioWAV/1010_ITH_SAD_X.wav")
    assert (
        build_metadata("cremad", root, out, evar=clone)["counts"]["clips"]
        == report["counts"]["clips"] + 1
    )
    out.with_suffix(".json").unlink()  # now only the note on its split shows that it is not EVAR's
    report = build_metadata("cremad", root, tmp_path / "cremad.csv", evar=clone)
    assert not report["comparable"] and "NOT COMPARABLE" in shown(report)
    assert (
        pd.read_csv(tmp_path / "cremad.csv")["split_note"].str.startswith("the split is ours").all()
    )
    with pytest.raises(
        ValueError, match="is EVAR's own list, which is read here; write to another file"
    ):
        build_metadata("cremad", root, out, evar=clone)


def test_files_are_found_in_other_cases_containers_and_folders(tmp_path):
    source = Source(
        tree(tmp_path, "AudioMP3/1001_A.mp3", "AudioWAV/1001_A.WAV", "x/jazz/jazz.00054.flac", "jazz/jazz.00055.ogg",
             "jazz/jazz.00055.wav", "a b/._c.wav"), "any"
    )  # fmt: skip
    assert source.find("1001_a.wav") == "AudioWAV/1001_A.WAV"
    assert source.find("jazz/jazz.00054.wav") == "x/jazz/jazz.00054.flac"
    assert source.find("jazz/jazz.00055.wav") == "jazz/jazz.00055.wav"
    two = Source(tree(tmp_path / "two", "x/A.wav", "x/a.flac"), "voxceleb1")
    (two.root / "x" / "a.wav").touch()  # another clip, where names have case
    assert len(two.files) == 2 or [two.find(name) for name in two.files] == two.files
    assert source.find("jazz/jazz.00056.wav") is None and source.find("rock/jazz.00055.wav") is None
    assert len(source.files) == 5


def test_missing_and_invalid_clips_are_told_apart(tmp_path):
    root = tree(tmp_path / "g", "blues/blues.00029.wav", "jazz/jazz.00054.wav", texts=GTZAN)
    tree(root, "jazz/jazz.00001.wav", seconds=30.0, rate=200)
    (root / "jazz/jazz.00054.wav").write_bytes(b"RIFF")
    report, table = build("gtzan", root, tmp_path)
    assert (
        table.file_name.tolist() == ["blues/blues.00029.wav", "jazz/jazz.00001.wav"]
        and "group" not in table
    )
    assert report["missing"] == ["blues/blues.00012.wav"]
    assert [name for name, _ in report["invalid"]] == [
        "jazz/jazz.00054.wav"
    ] and "cannot be read" in report["invalid"][0][1]
    assert report["published"] == {
        "clips": 930,
        "classes": 10,
        "train": 443,
        "valid": 197,
        "test": 290,
    }
    text = shown(report)
    assert "missing, left out: 1, e.g. ['blues/blues.00012.wav']" in text


def test_evars_rows_without_a_split_are_left_out(tmp_path):
    rows = "blues/blues.00029.wav,blues,train\njazz/jazz.00054.wav,jazz,\njazz/jazz.00001.wav,jazz,train\n"
    root = tree(tmp_path / "g", "blues/blues.00029.wav", "jazz/jazz.00001.wav",
                texts={"evar/metadata/gtzan.csv": "file_name,label,split\n" + rows})  # fmt: skip
    with pytest.warns(UserWarning, match="1 row.s. without a split or fold are left out"):
        _, table = build("gtzan", root, tmp_path, evar=root)
    assert table.file_name.tolist() == ["blues/blues.00029.wav", "jazz/jazz.00001.wav"]


@pytest.mark.parametrize("task", sorted(TASKS))
def test_an_empty_folder_says_what_was_expected(tmp_path, task):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"empty.*(download --help {TASKS[task].name}|Actor_01)"
    ):
        build(task, tmp_path / "empty", tmp_path)
    assert not (tmp_path / "metadata").exists()


def test_command_line(tmp_path, capsys):
    root, out = (
        tree(tmp_path / "esc", "audio/1-100032-A-0.wav", "audio/5-9-A-10.wav", texts=ESC50),
        tmp_path / "e.csv",
    )
    assert main(["metadata", "esc50", str(root), str(out)]) == 1
    assert "missing, left out: 1, e.g. ['audio/1-100032-B-0.wav']" in capsys.readouterr().out
    tree(root, "audio/1-100032-B-0.wav")
    assert main(["metadata", "esc50", str(root), str(out)]) == 0
    assert main(["metadata", "gtzan", str(root), str(out)]) == 2
