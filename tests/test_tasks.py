"""Tasks: metadata, audio in any shape, and complaints that help."""

import os
import shutil
import sys
import types
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_task, write_clips
from scipy.signal import correlate

from aape import cli
from aape.collecting.passing import collect
from aape.sounds.audio import read_mono, seconds_of
from aape.sounds.folders import clips_of_names
from aape.sounds.loading import from_datasets, from_folder, from_metadata
from aape.sounds.task import BadClip


def noise(*seed: int, seconds: float = 0.5, rate: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(rate * seconds))


def sounds(folder: Path, *names: str, seconds: float = 0.5, rate: int = 1000) -> Path:
    """A folder with recordings of these names, each with samples of its own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, noise(*os.fsencode(name), seconds=seconds, rate=rate), rate)
    return folder


def task_of(folder: Path, text: str, names: tuple[str, ...] = ("a.wav", "b.wav"), **options):
    sounds(folder / "audio", *names)
    (folder / "m.csv").write_text(text)
    return from_metadata(folder / "m.csv", folder / "audio", clip_seconds=1.0, name="t", **options)


def test_evar_format_and_esc50s_own(tmp_path: Path):
    text = "\ufefffile_name,label,split\nb.wav,10,train\na.wav,9,test\nc.wav,9,val\n"
    task = task_of(tmp_path, text, ("a.wav", "b.wav", "c.wav"))
    assert task.files == ("b.wav", "a.wav", "c.wav") and task.classes == (
        "9",
        "10",
    )  # numbers sort as numbers
    assert task.labels.tolist() == [1, 0, 0] and task.splits == ("train", "test", "valid")
    assert task.groups == ("0", "1", "2") and task.group_column is None
    assert len(repr(task)) < 600 and "3 of 1 s" in repr(task) and "<table>" in task._repr_html_()
    for one, other in (("01", "02"), ("NA", "None")):  # text as written
        assert task_of(
            tmp_path, f"file_name,label,split\nb.wav,{other},train\na.wav,{one},train\n"
        ).classes == (
            one,
            other,
        )
    task = task_of(tmp_path, "file_name,label,split,group\na.wav,x, train,r1\nb.wav, x ,test,r1 \n")
    assert task.classes == ("x",) and task.groups == ("r1", "r1")
    header = "filename,fold,target,category,esc10,src_file,take\n"
    task = task_of(tmp_path, header + "a.wav,1,0,dog,True,100,A\nb.wav,2.0,0,dog,True,100,B\n")
    assert task.classes == ("dog",) and task.splits == ("fold1", "fold2")
    assert task.groups == ("100", "100") and task.group_column == "src_file"


def test_real_esc50(esc50: Path):
    task = from_metadata(esc50 / "meta/esc50.csv", esc50 / "audio", clip_seconds=5.0, name="esc50")
    assert len(task) == 2000 and len(task.classes) == 50 and len(set(task.groups)) == 1524
    assert task.classes == tuple(sorted(task.classes)) and set(task.splits) == {
        f"fold{i}" for i in range(1, 6)
    }
    wave, valid = task.read(7, 16000)
    assert wave.shape == (80000,) and valid == 80000 and wave.dtype == np.float32


def test_clips_are_cut_at_the_end_and_padded_with_zeros(tmp_path: Path):
    task = make_task(tmp_path)
    for index in range(6):
        raw = soundfile.read(tmp_path / "audio" / task.files[index], dtype="float32")[0]
        wave, valid = task.read(index, 1000)
        assert valid == min(len(raw), 1000)
        assert np.array_equal(wave[:valid], raw[:valid]) and not wave[valid:].any()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "AIFF"])
def test_any_format_rate_and_channel_count(tmp_path: Path, suffix: str):
    time = np.arange(44100) / 44100
    stereo = np.stack([np.sin(2 * np.pi * 440 * time), np.zeros_like(time)], axis=1) * 0.5
    soundfile.write(tmp_path / f"a b.{suffix}", stereo, 44100)
    (tmp_path / "m.csv").write_text(f"file_name,label,split\na b.{suffix},x,train\n")
    task = from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=1.0, name="t")
    wave, valid = task.read(0, 16000)
    expected = (
        np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 0.25
    )  # mean of a tone and silence
    assert abs(valid - 16000) <= 1
    likeness = (
        correlate(wave, expected.astype(np.float32)).max() / (expected**2).sum()
    )  # codecs shift in time
    assert likeness == pytest.approx(1.0, abs=0.05)
    assert np.array_equal(wave, task.read(0, 16000)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,class\na.wav,x", "expected columns file_name, category, and split or fold"),
        ("file_name,label,split", "with 0 rows"),
        (
            "file_name,label,split\na.wav,x,train\n./a.wav,y,test",
            "line 3: 'a.wav' is also on an earlier line",
        ),
        ("file_name,label,split\na.wav,,train", "line 2: a field is empty"),
        (
            "file_name,label,split\na.wav,x,held",
            "line 2: 'held' is no split, expected train, valid, test",
        ),
        (
            "file_name,label,fold\na.wav,x,1\nb.wav,x,1.5",
            "line 3: 'fold1.5' is no split, expected .* a whole number",
        ),
        ("file_name,label,split\na.wav,1,train\nb.wav,01,test", "'01' and '1' are one number"),
        (
            "file_name,label,split\na.wav,x,train\n../a.wav,x,train",
            "line 3: .* leaves the audio folder",
        ),
        ("file_name,label,split\n/a.wav,x,train", "line 2: .* leaves the audio folder"),
        (
            "file_name,label,split,label\na.wav,x,train,y",
            "expected columns, each column once, found file_name, label, split, label",
        ),
        ("file_name,label,split\na.wav,x,train,", "Expected 3 fields in line 2, saw 4"),
        ("file_name,label,split\na.wav,x", "line 2: a field is empty"),
        ('file_name,label,split\na.wav,"x,train\nb.wav,y,test', "close every quote"),
        ("file_name,label,split,group\na.wav,x,train,", "line 2: a field is empty"),
        (
            "file_name,label,split\nbüro.wav,x,train".encode("utf-16"),
            "not UTF-8 .*save it as UTF-8",
        ),
    ],
)
def test_bad_metadata(tmp_path: Path, text: str | bytes, message: str):
    (sounds(tmp_path, "a.wav", "b.wav") / "m.csv").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    with pytest.raises(ValueError, match=rf"m\.csv.*{message}"):
        from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=1.0, name="t")


@pytest.mark.parametrize("column", ["speaker", "actor_id", "Recording"])
def test_a_column_of_groups_is_not_passed_over_in_silence(tmp_path: Path, column: str):
    text = f"file_name,animal,split,{column}\na.wav,x,train,s1\nb.wav,x,train,s1\n"
    with pytest.warns(UserWarning, match=f"column '{column}' .* Give group='{column}'"):
        assert task_of(tmp_path, text, label="animal").group_column is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = task_of(tmp_path, text, label="animal", group=column)
        task_of(tmp_path, text.replace(column, "take"), label="animal")
    assert task.classes == ("x",) and task.groups == ("s1", "s1") and task.group_column == column
    with pytest.raises(ValueError, match="expected columns .*speakr, .*found"):
        task_of(tmp_path, text, label="animal", group="speakr")


def test_the_column_of_the_classes_is_not_that_of_the_groups(tmp_path: Path):
    text = "file_name,speaker_id,split\na.wav,x,train\nb.wav,y,train\n"
    task = task_of(tmp_path, text, label="speaker_id")
    assert task.classes == ("x", "y") and task.group_column is None and task.groups == ("0", "1")
    with pytest.raises(
        ValueError, match="expected two columns, found label and group both 'speaker_id'"
    ):
        task_of(tmp_path, text, label="speaker_id", group="speaker_id")
    text = text.replace("speaker_id,split", "speaker_id,split,src_file").replace("train", "train,r")
    assert task_of(tmp_path, text, label="speaker_id").groups == ("r", "r")


def test_missing_metadata_and_files(tmp_path: Path):
    csv = write_clips(tmp_path, 4)
    (tmp_path / "audio" / "002.wav").unlink()
    for path, words in (
        (tmp_path / "no.csv", "no metadata at"),
        (csv, "1 of the 4 files .* e.g. 002.wav"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            from_metadata(path, tmp_path / "audio", clip_seconds=1, name="t")


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_audio_that_was_cut_off_is_refused(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 200_000), 44100)
    assert len(read_mono(path, 44100, 1.0)) >= 44100
    content = path.read_bytes()
    for end in (len(content) // 8, len(content) // 2):
        path.write_bytes(content[:end])
        with pytest.raises(BadClip, match=f"a.{suffix}.*(truncated|cannot be read)"):
            read_mono(path, 44100, 1.0)


def test_a_wav_from_a_pipe_is_whole(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16000) * 0.3), 8000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # it promises four gigabytes
    (tmp_path / "a.wav").write_bytes(content)
    assert seconds_of(tmp_path / "a.wav") == 2.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as audio .*0 bytes"),
        (b"RIFF nonsense", "cannot be read as audio .*13 bytes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS pointer: run `git lfs pull",
        ),
        (np.zeros(0), "no samples"),
        (np.where(np.arange(500) == 250, np.nan, 0), r"sample 250 \(at 0.250 s\)"),
    ],
)
def test_bad_audio_is_named(tmp_path: Path, content: bytes | np.ndarray, message: str):
    path = tmp_path / "bad.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, content, 1000, subtype="FLOAT")
    with pytest.raises(BadClip, match=f"bad.wav.*{message}"):
        read_mono(path, 1000, 1.0)


def test_a_clip_of_less_than_a_sample_is_bad(tmp_path: Path):
    task = task_of(tmp_path, "file_name,label,split\na.wav,x,train\n")
    soundfile.write(tmp_path / "audio" / "a.wav", np.ones(1), 48000)
    with pytest.raises(BadClip, match="a.wav: no sample of it is left at 16000 Hz. Replace it"):
        task.read(0, 16000)


def test_check_names_all_bad_clips_and_without_leaves_the_others_as_they_are(tmp_path: Path):
    wave = np.random.default_rng(0).normal(0, 0.1, 1000)
    bad = {
        "broken": None,
        "empty": np.zeros(0),
        "nan": np.where(np.arange(1000) == 5, np.nan, wave),
        "int16": wave * 2**15,
        "zeros": np.zeros(1000),
        "cancel": np.stack([wave, -wave], axis=1),
        "late": np.concatenate([np.zeros(1000), wave]),
        "dc": np.full(1000, 0.5),
    }
    names = [*(f"good{i}" for i in range(12)), *bad]
    lines = ["file_name,label,split,group"]
    for i, name in enumerate(names):
        label, split = "ab"[i % 2], ("train", "test")[i // 2 % 2]
        lines.append(f"{name}.wav,{label},{split},g{i // 3}")
        samples = bad.get(name, wave + i / 1000)
        if samples is not None:
            soundfile.write(tmp_path / f"{name}.wav", samples, 1000, subtype="FLOAT")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    task = from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=1.0, name="t")
    table = task.check()
    complaints = dict(zip(table["file"].str.removesuffix(".wav"), table["complaint"], strict=True))
    expected = {
        "broken": "cannot be read",
        "empty": "no samples",
        "nan": "1 samples are not finite",
        "int16": "expected -1 to 1",
        "zeros": "silent",
        "cancel": "channels cancel",
        "late": "silent in its first 1 s",
        "dc": "constant",
    }
    assert complaints.keys() == expected.keys()
    assert all(expected[name] in complaint for name, complaint in complaints.items())
    good = task.without(table["file"])
    assert good.check().empty and len(good) == 12
    for field in ("files", "splits", "groups"):
        assert getattr(good, field) == getattr(task, field)[:12]
    assert np.array_equal(good.labels, task.labels[:12]) and good.classes == task.classes
    with pytest.raises(ValueError, match="no file 'x.wav'"):
        task.without(["x.wav"])


def test_a_subset_keeps_what_it_keeps_unchanged(tmp_path: Path):
    task = make_task(tmp_path)
    part = task.subset(classes=task.classes[1:], splits=["fold1", "fold3"], clips=range(20))
    wanted = [i for i in range(20) if task.labels[i] > 0 and task.splits[i] in ("fold1", "fold3")]
    assert part.files == tuple(task.files[i] for i in wanted) and part.classes == task.classes[1:]
    assert part.labels.tolist() == [task.labels[i] - 1 for i in wanted]
    assert part.splits == tuple(task.splits[i] for i in wanted) and part.groups == tuple(
        task.groups[i] for i in wanted
    )
    for wrong, message in (
        ({"classes": ["x"]}, "no class 'x'"),
        ({"splits": ["x"]}, "no split"),
        ({"clips": []}, "no clip"),
    ):
        with pytest.raises(ValueError, match=message):
            task.subset(**wrong)


def test_class_folders(tmp_path: Path):
    names = [
        f"{c}/{sub}{i}.wav" for c in ("cat", "dog") for i in range(10) for sub in ("", "deep/")
    ]
    task = from_folder(sounds(tmp_path / "pets", *names), clip_seconds=0.5)
    assert task.name == "pets" and task.classes == ("cat", "dog") and len(task) == 40
    assert [task.classes[c] for c in task.labels] == [f.split("/")[0] for f in task.files]
    counts = Counter(zip(task.splits, task.labels.tolist(), strict=True))
    for label in (0, 1):
        assert (
            counts["train", label] >= 10
            and counts["valid", label] >= 1
            and counts["test", label] >= 1
        )
    assert task.group_column is None and any(
        "the split is ours, seed 0" in note for note in task.notes
    )
    assert from_folder(tmp_path / "pets", clip_seconds=0.5).splits == task.splits
    assert from_folder(tmp_path / "pets", clip_seconds=0.5, seed=1).splits != task.splits
    names = [f"{s}/{c}/{i}.wav" for s in ("train", "val", "test") for c in "ab" for i in range(2)]
    task = from_folder(sounds(tmp_path / "split", *names), clip_seconds=0.5)
    assert dict(zip(task.files, task.splits, strict=True))["val/a/0.wav"] == "valid"
    assert not any("ours" in note for note in task.notes)


def test_a_pattern_names_classes_and_groups(tmp_path: Path):
    names = [f"{w}_{who}_{i}.wav" for w in ("one", "two") for who in "abcdefghij" for i in range(2)]
    task = from_folder(
        sounds(tmp_path, *names), clip_seconds=0.5, pattern="{label}_{group}_{take}.wav"
    )
    assert task.classes == ("one", "two") and set(task.groups) == set("abcdefghij")
    split_of = set(zip(task.groups, task.splits, strict=True))
    assert len(split_of) == 10 and Counter(s for _, s in split_of) == {
        "train": 7,
        "valid": 1,
        "test": 2,
    }
    by_function = from_folder(
        tmp_path, clip_seconds=0.5, pattern="{label}_*", group=lambda name: name.split("_")[1]
    )
    assert by_function.splits == task.splits and by_function.groups == task.groups
    numbers = from_folder(
        tmp_path, clip_seconds=0.5, pattern="{label}_*", group=lambda name: int(name[-5]) or None
    )
    assert numbers.groups[:2] == ("one_a_0.wav", "1")
    halves = from_folder(
        tmp_path, clip_seconds=0.5, pattern="{label}_{group}_*", split={"train": 0.5, "test": 0.5}
    )
    assert Counter(halves.splits) == {"train": 20, "test": 20}


@pytest.mark.parametrize(
    ("pattern", "file", "found"),
    [
        ("{label}_{group}_{take}.wav", "one_ann_b_3.wav", ("one", "", "ann")),
        (
            "{label}_{group}_{}",
            "x/y/one_ann_3.flac",
            ("one", "", "ann"),
        ),  # without / and suffix: names alone
        ("{split}/**/{group}/{label}-*.wav", "val/a/b/ann/one-2.wav", ("one", "valid", "ann")),
        ("Actor_{group}/{}-{}-{label}-*", "Actor_03/03-01-05-01.ogg", ("05", "", "03")),
        ("{label}/{}/(x) {}.wav", "dog/2024/(x) [1].wav", ("dog", "", None)),
        (None, "dev/dog/a.wav", ("dog", "valid", None)),
        (None, "testing/dog/b/a.wav", ("dog", "test", None)),
    ],
)
def test_patterns(pattern: str | None, file: str, found: tuple):
    clip = clips_of_names([file], pattern)[0]
    assert (clip.label, clip.split, clip.group) == found


@pytest.mark.filterwarnings("ignore:.*is padding")
@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        ("", None, "holds no audio; expected files that end in .wav"),
        ("a.wav x/b.wav", None, "expected folders named after classes, found 1 file.s. without one, e.g. a.wav"),
        ("x/a.wav x/b.wav", None, "all 2 clips are of one class, 'x'"),
        ("x_ann_1.wav y_ann_1.wav", "{label}_{group}_{}", "all 2 clips are of one group, 'ann'"),
        ("x_ann_1.wav y_ann_1.wav y_bob_1.wav", "{label}_{group}_{}", "2 group.s. .ann, bob. cannot fill the splits train,"),
        ("x_x_1.wav", "{label}_{label}.wav", "needs {label}"),
        ("x_ann-1.wav y_bob_1.wav", "{label}+{group}.wav", "2 of 2 files do not fit .*ann-1.wav .fits as far as '{label}'"),
        ("x/empty.wav y/empty.wav", None, "x/empty.wav: cannot be read as audio .*0 bytes"),
        ("train/x/1.wav test/x/1.wav more/x/1.wav", None, "more, test, train some are splits, 'more' is not"),
        ("train/x/1.wav test/x/1.wav more/x/1.wav", "{split}/{label}/*", "more/x/1.wav: {split} is 'more', expected train"),
    ],
)  # fmt: skip
def test_folders_that_are_no_task(tmp_path: Path, names: str, pattern: str | None, message: str):
    for path in map(Path, sounds(tmp_path, *names.split()).rglob("*empty.wav")):
        path.write_bytes(b"")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_folder(tmp_path, pattern=pattern)


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    folder = sounds(tmp_path, *(f"{label}/{i}.wav" for label in "xy" for i in range(4)))
    (folder / "x" / "gone.wav").symlink_to(
        tmp_path / "nowhere"
    )  # as git-annex leaves what was not fetched
    (folder / "y" / "empty.wav").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"2 of 10 files cannot be read, e.g. .*x/gone.wav.*Task.check\(\)"
    ):
        task = from_folder(folder)
    assert len(task) == 10 and task.clip_seconds == 0.5


def test_audio_in_other_containers_is_named(tmp_path: Path):
    folder = sounds(
        tmp_path, *(f"{label}/{i}.wav" for label in ("x/deep", "y") for i in range(4)), "y/0.flac"
    )
    for name in ("x/deep/0.m4a", "x/5.M4A", "z/0.m4a", "z/1.m4a"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "y" / "loop").symlink_to(folder)
    with pytest.warns(UserWarning) as told:
        assert len(from_folder(folder, clip_seconds=0.5)) == 8
    messages = " ".join(str(warning.message) for warning in told)
    assert "3 audio files cannot be read and are left out, e.g. x/5.M4A. Convert them" in messages
    assert (
        "1 of 9 files are in the folder in another container, e.g. y/0.flac; they are left out"
        in messages
    )
    with pytest.raises(
        FileNotFoundError, match="holds no audio; .* found 2 others, e.g. 0.m4a. Convert them"
    ):
        from_folder(folder / "z", clip_seconds=0.5)


@pytest.mark.parametrize("split", [{"train": 5, "test": 5}, {"train": 0.5, "tests": 0.5}])
def test_shares_of_a_split_are_checked(tmp_path: Path, split: dict):
    sounds(tmp_path, *(f"{label}/{i}.wav" for label in "xy" for i in range(4)))
    with pytest.raises(ValueError, match="expected shares of train, valid, test .* add up to 1"):
        from_folder(tmp_path, split=split)


def test_files_that_do_not_fit_a_pattern_are_named(tmp_path: Path):
    names = [f"{label}_{i}.wav" for label in "xy" for i in range(3)]
    with pytest.warns(
        UserWarning, match=r"1 of 7 files do not fit .*z-1.wav .fits as far as '{label}'"
    ):
        assert len(from_folder(sounds(tmp_path, *names, "z-1.wav"), pattern="{label}_{}.wav")) == 6


def test_nine_of_ten_clips_are_kept_whole(tmp_path: Path):
    for i, seconds in enumerate((0.2, 0.2, 0.3, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4, 1.4)):
        sounds(tmp_path, f"{'xy'[i % 2]}/{i}.wav", seconds=seconds)
    task = from_folder(tmp_path, split={"train": 0.5, "test": 0.5})
    assert task.clip_seconds == 0.5  # between 0.4 and 1.4, a tenth of the way
    # one of ten is cut; padded 2 * .3 + 3 * .2 + 4 * .1 = 1.6 of 5 s
    assert task.notes[0].endswith(
        "(median 0.35): clip_seconds=0.5 cuts 10% of them, and 32% of the result is padding"
    )
    sounds(tmp_path / "long", "x/0.wav", "y/0.wav", seconds=7200)
    with pytest.raises(
        ValueError, match="a tenth of the clips last 7,200 s or more; give clip_seconds"
    ):
        from_folder(tmp_path / "long")


@pytest.mark.parametrize("seconds", ["2,5", "0.5", 0, -3, 5000, float("nan")])
def test_a_length_must_be_a_number_of_seconds(tmp_path: Path, seconds: object):
    text = "file_name,label,split\na.wav,x,train\nb.wav,y,test\n"
    (sounds(tmp_path, "a.wav", "b.wav") / "m.csv").write_text(text)
    with pytest.raises(ValueError, match="task t: clip_seconds: expected a number of seconds"):
        from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=seconds, name="t")


def test_a_table_of_a_folder_can_be_edited_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    names = [f"{w}_{who}_{i}.wav" for w in ("one", "two") for who in "abcdefghij" for i in range(2)]
    folder = sounds(tmp_path / "digits", *names)
    out = tmp_path / "clips.csv"
    assert cli.main(["table", str(folder), "-o", str(out), "--pattern", "{label}_{group}_{}"]) == 0
    assert "classes: one, two" in capsys.readouterr().out
    read = from_metadata(out, folder, clip_seconds=0.5, name="digits")
    made = from_folder(folder, pattern="{label}_{group}_{}", clip_seconds=0.5)
    for field in ("files", "splits", "groups", "classes"):
        assert getattr(read, field) == getattr(made, field)
    assert read.notes == made.notes
    assert (
        read.notes[-1]
        == "the split is ours by whole groups, seed 0: not comparable with published results"
    )
    assert cli.main(["table", str(tmp_path / "digits"), "-o", str(out)]) == 2
    assert "expected folders named after classes" in capsys.readouterr().err
    pets = sounds(
        tmp_path / "pets",
        *(f"{name}/{i}.wav" for name in ("rain, heavy", "wind") for i in range(4)),
    )
    assert cli.main(["table", str(pets), "-o", str(out)]) == 0
    assert from_metadata(out, pets, clip_seconds=0.5, name="pets").classes == (
        "rain, heavy",
        "wind",
    )
    (pets / "wind").rename(pets / "a,b")
    assert cli.main(["table", str(pets), "-o", str(out)]) == 2
    assert "'a,b' would be read back as several classes" in capsys.readouterr().err
    for words in (
        ["table", str(pets), "-o", str(pets)],
        ["dissect", "m", str(pets), "--table", str(out), "--pattern", "x"],
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert (
            "expected a file" in (said := capsys.readouterr().err) or "takes no --pattern" in said
        )


def told(make: Callable[[], object]) -> tuple[object, str]:
    """What a call returns, and all its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    return made, "\n".join(str(warning.message) for warning in caught)


def test_the_same_samples_count_once(tmp_path: Path):
    """Copies under other names, with other tags or in another container; also below a second folder."""
    names = [f"{label}-{take}-{who}.wav" for label in "ab" for take in range(2) for who in range(6)]
    folder = sounds(tmp_path / "s", *names)
    once = from_folder(folder, clip_seconds=0.5, pattern="{label}-{}-{group}")
    for name in names:
        wave, rate = soundfile.read(folder / name, dtype="int16")
        (folder / "again").mkdir(exist_ok=True)
        soundfile.write(folder / "again" / name.replace(".wav", ".flac"), wave, rate)
    twice, said = told(lambda: from_folder(folder, clip_seconds=0.5, pattern="{label}-{}-{group}"))
    assert twice.files == once.files and twice.splits == once.splits
    assert (
        "24 of 48 files are copies" in said and "e.g. again/a-0-0.flac; they are left out" in said
    )
    shutil.copy(folder / "a-0-0.wav", folder / "b-9-1.wav")  # another class and group
    shutil.copy(folder / "a-0-0.wav", folder / "a-9-0.wav")  # the same, counted once
    task, said = told(lambda: from_folder(folder, clip_seconds=0.5, pattern="{label}-{}-{group}"))
    assert {*task.files} == {*names, "b-9-1.wav"}
    assert (
        "1 clips have copies, with the same samples, in another class, split or group, e.g. a-0-0.wav and"
        in said
    )
    lines = [
        f"{name},{name[0]},train" for name in ("a-0-0.wav", "a-9-0.wav", "b-9-1.wav", "b-0-0.wav")
    ]
    (tmp_path / "m.csv").write_text("\n".join(["file_name,label,split", *lines]))
    task, said = told(lambda: from_metadata(tmp_path / "m.csv", folder, clip_seconds=0.5, name="t"))
    assert task.files == ("a-0-0.wav", "b-9-1.wav", "b-0-0.wav")
    assert "1 of 4 files are copies" in said and "1 clips have copies" in said


def test_clips_that_only_begin_alike_are_not_copies(tmp_path: Path):
    for name, ends in (("a", 0), ("b", 1)):
        for i in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            wave = np.concatenate([np.zeros(300), noise(i, ends)])
            soundfile.write(tmp_path / name / f"{i}.wav", wave, 1000)
    task, said = told(lambda: from_folder(tmp_path, clip_seconds=0.5))
    assert len(task) == 8 and "cop" not in said


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "M\u00fcller") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("spellings", "classes", "said"),
    [
        ((COMPOSED, DECOMPOSED), 1, ""),
        (("dog", " dog", "dog  ", "do\u200bg", "\ufeffdog"), 1, ""),
        (("guard dog", "guard  dog", "guard\u00a0dog"), 1, ""),
        (("Dog", "dog"), 2, "the classes 'Dog' and 'dog' differ only in upper and lower case"),
    ],
)
def test_names_that_look_the_same(
    tmp_path: Path, spellings: tuple[str, ...], classes: int, said: str
):
    files = [f"{i}.wav" for i in range(len(spellings) + 1)]
    lines = [
        f'{file},"{name}",train,"{name}"'
        for file, name in zip(files, (*spellings, "other"), strict=True)
    ]
    (sounds(tmp_path, *files) / "m.csv").write_text(
        "\n".join(["file_name,label,split,group", *lines]), encoding="utf-8"
    )
    task, warned = told(
        lambda: from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=0.5, name="t")
    )
    assert len(task.classes) == len({*task.groups}) == classes + 1
    assert said in warned and bool(said) == ("differ only" in warned)


def test_listed_files_are_found_in_the_other_unicode_form_and_in_another_case(tmp_path: Path):
    sounds(tmp_path, f"{DECOMPOSED}.wav", "B.WAV")
    (tmp_path / "m.csv").write_text(
        f"file_name,label,split\n{COMPOSED}.wav,x,train\nb.wav,y,train\n", encoding="utf-8"
    )
    task = from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=0.5, name="t")
    assert task.files == (f"{DECOMPOSED}.wav", "B.WAV") and task.check().empty


def test_a_name_that_is_not_utf_8_is_named(tmp_path: Path):
    folder = sounds(tmp_path / "s", "a/0.wav", "b/0.wav")
    (folder / "a" / "0.wav").rename(os.fsdecode(os.fsencode(folder) + b"/a/M\xfcller.wav"))
    with pytest.raises(ValueError, match=r"the name a/M\\xfcller.wav is not UTF-8; rename"):
        from_folder(folder, clip_seconds=0.5)


def with_unknown_length(path: Path, data: bytearray) -> None:
    """FLAC as written to a pipe: the 36 bits of STREAMINFO that count the samples are 0."""
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path):
    soundfile.write(tmp_path / "a.flac", noise(0, seconds=3.0, rate=16000), 16000)
    whole = read_mono(tmp_path / "a.flac", 16000, 5.0)
    with_unknown_length(tmp_path / "a.flac", bytearray((tmp_path / "a.flac").read_bytes()))
    assert seconds_of(tmp_path / "a.flac") == 3.0 and np.array_equal(
        read_mono(tmp_path / "a.flac", 16000, 5.0), whole
    )
    assert np.array_equal(read_mono(tmp_path / "a.flac", 16000, 1.0)[:16000], whole[:16000])


@pytest.mark.parametrize("loud_first", [True, False])
@pytest.mark.parametrize("rate", [44100, 16000])  # MPEG-1, MPEG-2
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_that_does_not_state_its_length(
    tmp_path: Path, mode: str, rate: int, loud_first: bool
):
    parts = [noise(0, seconds=4.0, rate=rate), np.zeros(2 * rate)]
    path = tmp_path / "a.mp3"
    wave = np.concatenate(parts if loud_first else parts[::-1])
    soundfile.write(path, wave, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    assert seconds_of(path) == pytest.approx(6.0, abs=0.1)
    data = path.read_bytes()
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    start = data.rfind(b"\xff", 0, tag)
    after = data.find(data[start : start + 2], start + 4)
    path.write_bytes(data[:start] + data[after:])  # as encoders to a pipe leave it
    if mode == "VARIABLE":
        with pytest.raises(
            BadClip, match="variable bit rate that does not state its length; convert it"
        ):
            seconds_of(path)
    else:
        assert seconds_of(path) == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize(
    ("tops", "names"),
    [
        (("fold1", "fold2"), ("100-0-0-0.wav", "101-1-0-0.wav")),
        (("train", "test"), ("dog_0.wav", "cat_0.wav")),
    ],
)
def test_splits_are_not_taken_for_classes(
    tmp_path: Path, tops: tuple[str, ...], names: tuple[str, ...]
):
    sounds(tmp_path, *(f"{top}/{name}" for top in tops for name in names))
    with pytest.raises(
        ValueError,
        match=f"the folders {', '.join(sorted(tops))} are splits, expected class folders",
    ):
        from_folder(tmp_path, clip_seconds=0.5)


def test_silence_after_mixing_is_named_by_class(tmp_path: Path, toy):
    for label, sign in (("miswired", -1), ("right", 1)):
        (tmp_path / "s" / label).mkdir(parents=True)
        for i in range(5):
            wave = noise(sign + 1, i, seconds=1.0)
            soundfile.write(
                tmp_path / "s" / label / f"{i}.wav", np.stack([wave, sign * wave], axis=1), 1000
            )
    task = from_folder(tmp_path / "s", clip_seconds=1.0)
    _, said = told(lambda: collect(toy, task, tmp_path / "out"))
    assert (
        "s: 5 clips are silent after mixing their channels and cutting: 5 of 5 of 'miswired'"
        in said
    )
    assert set(task.check()["class"]) == {"miswired"}


def test_sample_rates_are_noted(tmp_path: Path):
    for label, rate in (("a", 8000), ("b", 16000)):
        sounds(tmp_path, *(f"{label}/{i}.wav" for i in range(4)), rate=rate)
    task, said = told(lambda: from_folder(tmp_path, clip_seconds=0.5))
    assert "sample rates differ by class: 8,000 Hz in 'a', 16,000 Hz in 'b'" in said
    assert any("files of 8,000 Hz hold nothing above 4,000 Hz" in note for note in task.notes)


def test_a_list_without_splits_gets_one(tmp_path: Path):
    files = [f"{i:02d}.wav" for i in range(40)]
    lines = [f"{file};{'ab'[i // 10 % 2]};s{i % 10}" for i, file in enumerate(files)]
    (sounds(tmp_path, *files) / "m.csv").write_text("\n".join(["filename;label;group", *lines]))
    task = from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=0.5, name="t")
    assert Counter(task.splits) == {"train": 28, "valid": 4, "test": 8}
    assert (
        len({*zip(task.groups, task.splits, strict=True)}) == 10
        and "the split is ours by whole groups" in task.notes[-1]
    )


@pytest.mark.parametrize("label", ["x;y", "x|y", "x,y"])
def test_several_labels_in_one_field_are_refused(tmp_path: Path, label: str):
    (sounds(tmp_path, "a.wav") / "m.csv").write_text(
        f'file_name,label,split\na.wav,"{label}",train\n'
    )
    with pytest.raises(
        ValueError, match="names several classes. Several labels per clip are not supported here"
    ):
        from_metadata(tmp_path / "m.csv", tmp_path, clip_seconds=0.5, name="t")


@pytest.mark.parametrize(("columns", "splits", "groups"), [
    ({"fold": lambda i: i // 8 + 1, "src_file": lambda i: 100 + i // 2}, {f"fold{i}": 8 for i in range(1, 6)}, "src_file"),
    ({"speaker_id": lambda i: i % 10}, {"train": 28, "valid": 4, "test": 8}, "speaker_id"),
])  # fmt: skip
def test_columns_of_a_dataset_are_those_of_a_csv(
    tmp_path: Path, monkeypatch, columns: dict, splits: dict, groups: str
):
    """As the Hub has ESC-50: one split, with the columns of the official list. A substitute for the package is enough."""
    audio = type("Audio", (), {"__init__": lambda self, decode=True: None})
    rows = []
    for i in range(40):
        path = sounds(tmp_path, f"{i}.wav") / f"{i}.wav"
        row = {
            "filename": path.name,
            "category": ["dog", "rain"][i // 10 % 2],
            "audio": {"path": str(path), "bytes": None},
        }
        rows.append(row | {name: value(i) for name, value in columns.items()})
    features = dict.fromkeys(rows[0]) | {"audio": audio()}
    table = type(
        "Rows",
        (list,),
        {"_fingerprint": "x", "features": features, "cast_column": lambda self, *_: self},
    )(rows)
    package = types.ModuleType("datasets")
    package.Audio, package.load_dataset = audio, lambda name, revision=None: {"train": table}
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task = from_datasets("esc50", clip_seconds=0.5, label="category")
    assert Counter(task.splits) == splits and task.group_column == groups
    assert task.groups == tuple(str(columns[groups](i)) for i in range(40))
    assert np.array_equal(
        task.read(3, 1000)[0], soundfile.read(tmp_path / "3.wav", dtype="float32")[0]
    )


def test_a_dataset_with_an_audio_column(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    folder = sounds(tmp_path / "wavs", *(f"{i}.wav" for i in range(6)))
    columns = {
        "sound": [str(folder / f"{i}.wav") for i in range(6)],
        "animal": [0, 1] * 3,
        "who": list("abcdef"),
    }
    kinds = {"sound": datasets.Audio(), "animal": datasets.ClassLabel(names=["cat", "dog"])}
    made = datasets.Dataset.from_dict(columns)
    for name, kind in kinds.items():
        made = made.cast_column(name, kind)
    for split, rows in (("train", range(4)), ("test", range(4, 6))):
        made.select(rows).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    task = from_datasets(str(tmp_path / "hub"), clip_seconds=0.5, label="animal", group="who")
    assert task.classes == ("cat", "dog") and Counter(task.splits) == {"train": 4, "test": 2}
    assert task.groups == tuple("abcdef")
    assert np.array_equal(
        task.read(1, 1000)[0], soundfile.read(folder / "1.wav", dtype="float32")[0]
    )
    with pytest.warns(UserWarning, match="column 'speaker' .* Give group='speaker'"):
        made.rename_column("who", "speaker").to_parquet(tmp_path / "other" / "train.parquet")
        task = from_datasets(str(tmp_path / "other"), clip_seconds=0.5, label="animal")
    assert task.group_column is None and "the split is ours, seed 0" in task.notes[-1]
    columns |= {"animal": [-1] * 4 + [1, 1], "who": [*"xxxxx", None]}
    withheld = datasets.Dataset.from_dict(columns, features=made.features)
    for split, rows in (("train", made), ("test", withheld)):
        rows.to_parquet(tmp_path / "withheld" / f"{split}.parquet")
    with pytest.warns(
        UserWarning, match=r"withheld: 4 row\(s\) without a value of 'animal' are left out"
    ):
        task = from_datasets(
            str(tmp_path / "withheld"), clip_seconds=0.5, label="animal", group="who"
        )
    assert task.labels.tolist() == [0, 1] * 3 + [1, 1] and task.groups == (
        *"abcdefx",
        "test/000005.wav",
    )
    with pytest.raises(
        ValueError,
        match="expected columns 'animal' and 'speaker' and one of audio, found sound, animal, who",
    ):
        from_datasets(str(tmp_path / "hub"), clip_seconds=0.5, label="animal", group="speaker")


def test_an_ogg_file_that_is_read_in_part_is_not_taken_for_truncated(tmp_path: Path) -> None:
    """libsndfile fails to seek to the end of some Ogg files after a partial read: a real recording of ESC-50 was refused."""
    path = tmp_path / "long.ogg"
    for seconds in (6.9, 7.001, 7.3):
        wave = np.random.default_rng(0).normal(0, 0.1, round(seconds * 16000))
        soundfile.write(path, wave, 16000, format="OGG", subtype="VORBIS")
        assert len(read_mono(path, 16000, 5.0)) >= 80000
