"""Tasks: metadata, audio in any shape, and complaints that help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_task, write_clips
from scipy.signal import correlate

from aape.task import BadClip, cache_dir, from_metadata


def task_of(folder: Path, text: str, names: tuple[str, ...] = ("a.wav", "b.wav"), **options):
    (folder / "audio").mkdir(exist_ok=True)
    for name in names:
        (folder / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "audio" / name, np.full(1000, 0.1), 1000, subtype="FLOAT")
    (folder / "m.csv").write_text(text)
    return from_metadata(folder / "m.csv", folder / "audio", clip_seconds=1.0, name="t", **options)


def test_evar_format_keeps_the_order_and_sorts_classes_as_evar_does(tmp_path: Path):
    task = task_of(
        tmp_path, "file_name,label,split\nb.wav,10,train\na.wav,9,test\nc.wav,9,val\n", ("a.wav", "b.wav", "c.wav")
    )
    assert task.files == ("b.wav", "a.wav", "c.wav")
    assert task.classes == ("9", "10")  # numbers sort as numbers
    assert task.labels.tolist() == [1, 0, 0] and task.splits == ("train", "test", "valid")
    assert task.groups == ("0", "1", "2") and task.group_column is None


def test_esc50s_own_layout_is_recognised(tmp_path: Path):
    task = task_of(
        tmp_path,
        "filename,fold,target,category,esc10,src_file,take\na.wav,1,0,dog,True,100,A\nb.wav,2,0,dog,True,100,B\n",
    )
    assert task.classes == ("dog",) and task.splits == ("fold1", "fold2")
    assert task.groups == ("100", "100") and task.group_column == "src_file"


def test_real_esc50(esc50: Path):
    task = from_metadata(esc50 / "meta/esc50.csv", esc50 / "audio", clip_seconds=5.0, name="esc50")
    assert len(task) == 2000 and len(task.classes) == 50 and len(set(task.groups)) == 1524
    assert task.classes == tuple(sorted(task.classes)) and set(task.splits) == {f"fold{i}" for i in range(1, 6)}
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
    (tmp_path / "audio").mkdir()
    time = np.arange(44100) / 44100
    stereo = np.stack([np.sin(2 * np.pi * 440 * time), np.zeros_like(time)], axis=1) * 0.5
    soundfile.write(tmp_path / "audio" / f"a b.{suffix}", stereo, 44100)
    (tmp_path / "m.csv").write_text(f"file_name,label,split\na b.{suffix},x,train\n")
    task = from_metadata(tmp_path / "m.csv", tmp_path / "audio", clip_seconds=1.0, name="t")
    wave, valid = task.read(0, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 0.25  # mean of a tone and silence
    assert abs(valid - 16000) <= 1
    likeness = correlate(wave, expected.astype(np.float32)).max() / (expected**2).sum()  # codecs shift in time
    assert likeness == pytest.approx(1.0, abs=0.05)
    cached = list((cache_dir() / "resampled").rglob("*.npz"))
    assert cached
    again, _ = task.read(0, 16000)
    assert np.array_equal(wave, again)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,split\na.wav,train\n", "expected columns file_name, label and split"),
        ("file_name,label\na.wav,x\n", "expected columns"),
        ("file_name,label,split\n", "no rows"),
        ("file_name,label,split\na.wav,x,train\na.wav,y,test\n", "line 3: .a.wav. is a file that an earlier line has"),
        ("file_name,label,split\na.wav,,train\n", "line 2: no label"),
        ("file_name,label,split\n,x,train\n", "line 2: no file_name"),
        ('file_name,label,split\na.wav,"x,y",train\n', "line 2: label 'x,y' names several classes"),
        ("file_name,label,split\na.wav,x,dev\n", "split 'dev', expected train, valid, test"),
        ("file_name,label,fold\na.wav,x,one\n", "fold must be numbers"),
        ("file_name,label,split,group\na.wav,x,train,\n", "line 2: empty group"),
    ],
)
def test_bad_metadata(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        task_of(tmp_path, text)


def test_missing_metadata_folder_and_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no metadata at"):
        from_metadata(tmp_path / "no.csv", tmp_path, clip_seconds=1, name="t")
    csv = write_clips(tmp_path, 4)
    with pytest.raises(FileNotFoundError, match="no audio folder"):
        from_metadata(csv, tmp_path / "elsewhere", clip_seconds=1, name="t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="4 of the 4 files"):
        from_metadata(csv, tmp_path / "empty", clip_seconds=1, name="t")
    (tmp_path / "audio" / "002.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 4 files .* e.g. 002.wav"):
        from_metadata(csv, tmp_path / "audio", clip_seconds=1, name="t")


def test_a_class_missing_from_a_split_is_said(tmp_path: Path):
    with pytest.warns(UserWarning, match="no clip in a split: y in train"):
        task_of(
            tmp_path, "file_name,label,split\na.wav,x,train\nb.wav,x,test\nc.wav,y,test\n", ("a.wav", "b.wav", "c.wav")
        )


def test_labels_that_look_like_missing_values_stay_labels(tmp_path: Path):
    task = task_of(tmp_path, "file_name,label,split\na.wav,NA,train\nb.wav,None,train\n")
    assert task.classes == ("NA", "None")


def test_bad_audio_is_named(tmp_path: Path):
    task = make_task(tmp_path)
    audio = tmp_path / "audio"
    (audio / task.files[0]).write_bytes(b"")
    (audio / task.files[1]).write_bytes(b"RIFF nonsense")
    soundfile.write(audio / task.files[2], np.zeros(0), 1000)
    wave = np.zeros(500)
    wave[250] = np.nan
    soundfile.write(audio / task.files[3], wave, 1000, subtype="FLOAT")
    for index, message in enumerate(("cannot be read", "cannot be read", "no samples", r"sample 250 \(at 0.250 s\)")):
        with pytest.raises(BadClip, match=f"{task.files[index]}.*{message}"):
            task.read(index, 1000)
