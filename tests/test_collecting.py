"""The collecting pass: right numbers, same bytes, no work lost."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPOSITORY, Toy, make_task, make_toy, one_thread
from torch import nn

import aape.collecting.passing as collecting
from aape.artifacts import manifest
from aape.artifacts.folder import load_artifacts
from aape.collecting.passing import collect
from aape.encoders.encoder import hooked
from aape.encoders.module import from_module
from aape.files import Cache, FolderBusy, folder_lock, sha256_of
from aape.sounds.loading import from_metadata
from aape.sounds.task import BadClip


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


def bare(module=None, embed=None, **options):
    """An encoder as README makes one: nothing is said of its weights."""
    module = Toy() if module is None else module
    options = {"activations": "layers.*.act", "name": "toy", "samples_per_token": 100} | options
    return from_module(module, embed=embed or module, sample_rate=1000, clip_seconds=1.0, **options)


def rows_of(task, rows, name: str, change=lambda line: line):
    """A task of some of a task's clips, in this order."""
    head, *lines = task.metadata.read_text().splitlines()
    path = task.metadata.with_name(f"{name}.csv")
    path.write_text("\n".join([head, *(change(lines[row]) for row in rows)]) + "\n")
    return from_metadata(path, task.audio_dir, clip_seconds=task.clip_seconds, name=name)


@pytest.fixture
def heard(monkeypatch) -> list[int]:
    """Grows by one with every batch that goes through an encoder."""
    batches: list[int] = []
    real = collecting.count_batch
    monkeypatch.setattr(collecting, "count_batch", lambda *a: batches.append(1) or real(*a))
    return batches


def literal_counts(encoder, task):
    """Every activation kept, clip by clip, then compared with zero and averaged: the slow way."""
    counts = np.zeros((len(task), 3, 8), dtype=int)
    means, padding, tokens = np.zeros(counts.shape), np.zeros_like(counts), np.zeros(len(task), dtype=int)
    for clip in range(len(task)):
        wave, valid = task.read(clip, encoder.sample_rate)
        for layer, values in activations(encoder, wave).items():
            tokens[clip], means[clip, layer] = len(values), values.mean(axis=0)
            for token, row in enumerate(values):
                counts[clip, layer] += row > 0
                if token * 100 >= valid:
                    padding[clip, layer] += row > 0
    return counts, padding, tokens, means


def activations(encoder, wave: np.ndarray) -> dict[int, np.ndarray]:
    """[tokens, neurons] of each layer, of one clip alone."""
    kept: dict[int, np.ndarray] = {}
    with hooked(encoder, encoder.layers, lambda i, x: kept.__setitem__(i, x[0].numpy())), torch.no_grad():
        encoder.embed(torch.from_numpy(wave)[None])
    return kept


def test_every_artifact_equals_a_literal_computation(tmp_path: Path, toy, task):
    artifacts = collect(toy, task, tmp_path / "noise_analysis", batch_size=5)
    counts, padding, tokens, means = literal_counts(toy, task)
    assert np.array_equal(artifacts.counts, counts) and artifacts.counts.dtype == np.uint8
    assert np.array_equal(artifacts.padding_counts, padding) and padding.any()
    assert np.allclose(artifacts.means, means, rtol=1e-3, atol=1e-6) and artifacts.means.dtype == np.float16
    assert np.array_equal(artifacts.tokens, tokens)
    for c in range(3):
        mine = task.labels == c
        expected = counts[mine].sum(axis=0) / tokens[mine].sum()
        assert np.allclose(artifacts.probabilities()[:, :, c], expected, atol=0, rtol=1e-15)
        assert np.array_equal(artifacts.over_zero[:, :, c].numpy(), expected.astype(np.float32))
        sound = (counts - padding)[mine].sum(axis=0) / (tokens - artifacts.padding_tokens)[mine].sum()
        assert np.allclose(artifacts.probabilities(padding=False)[:, :, c], sound)
    by_fold = artifacts.probabilities(split=["fold2", "fold3"], classes={"both": ["class0", "class2"]})
    rows = np.isin(task.splits, ["fold2", "fold3"]) & (task.labels != 1)
    assert np.allclose(by_fold[:, :, 0], counts[rows].sum(axis=0) / tokens[rows].sum())
    assert (artifacts.path / "classes.txt").read_text() == "class0\nclass1\nclass2\n"
    assert artifacts.files.tolist() == list(task.files) and artifacts.groups.tolist() == list(task.groups)
    waves = torch.stack([torch.from_numpy(task.read(clip, 1000)[0]) for clip in range(len(task))])
    assert np.allclose(artifacts.embeddings(), toy.embed(waves).detach(), atol=1e-6)
    for fold, labels in artifacts.gts.items():
        assert labels.tolist() == task.labels[np.asarray(task.splits) == fold].tolist()
    said = artifacts.manifest
    assert said["weights"]["sha256"] == "toy-0" and said["group_column"] == "group" and said["padding"] == "counted"


def test_same_bytes_twice_and_signs_only_near_zero_with_another_batch_size(tmp_path: Path, toy, task):
    first = collect(toy, task, tmp_path / "a", batch_size=7)
    assert contents(first.path) == contents(collect(toy, task, tmp_path / "b", batch_size=7).path)
    third = collect(toy, task, tmp_path / "elsewhere" / "c", batch_size=24)
    for clip, layer, neuron in np.argwhere(np.asarray(third.counts) != np.asarray(first.counts)):
        assert np.abs(activations(toy, task.read(int(clip), 1000)[0])[layer][:, neuron]).min() <= 1e-5


def test_a_whole_run_returns_at_once_and_another_runs_folder_is_refused(tmp_path: Path, toy, task, heard, monkeypatch):
    out = tmp_path / "out"
    collect(toy, task, out, batch_size=8)
    before = contents(out)
    heard.clear()
    with folder_lock(out):  # what is whole can be read while another holds the folder
        assert collect(toy, task, out, batch_size=3).has_counts  # and the batch size no longer matters
    with monkeypatch.context() as patch:  # another process finishes between the question and the lock
        answers = iter([False])
        patch.setattr(collecting, "_is_whole", lambda *a: next(answers, True))
        assert collect(toy, task, out).has_counts
    (out / ".partial").mkdir()  # of somebody else
    (out / ".partial" / "notes.txt").write_text("theirs")
    assert collect(toy, task, out).has_counts and (out / ".partial" / "notes.txt").read_text() == "theirs"
    with pytest.raises(ValueError, match="splits is .*fold5.* there and .*'fold1'] here"):
        collect(toy, task, out, splits=["fold1"])
    soundfile.write(task.audio_dir / task.files[3], np.zeros(700), 1000, subtype="FLOAT")
    with pytest.raises(ValueError, match=rf"clip {task.files[3]}: sha256 is '\w+' there"):
        collect(toy, task, out)
    assert contents(out) == before and not heard
    with folder_lock(tmp_path / "b"), pytest.raises(FolderBusy, match=f"in use by process {os.getpid()} on"):
        collect(toy, task, tmp_path / "b")
    assert not (tmp_path / "b" / ".partial").exists()


FOREIGN = (
    *manifest.FILES,
    "manifest.json",
    *(f".partial{name}" for name in ("", "/notes.txt", "/settings.json", "/batch-1.npz")),
)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_another_tool_left_is_named_and_not_touched(tmp_path: Path, toy, task, name: str):
    out = tmp_path / "foreign"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"theirs": 1}')
    with pytest.raises(ValueError, match=re.escape(name.split("/")[0])):
        collect(toy, task, out)
    left = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    assert left == {name: '{"theirs": 1}'}


def test_a_file_that_appears_during_the_pass_is_not_overwritten(tmp_path: Path, toy, task, heard, monkeypatch):
    out, real = tmp_path / "out", collecting.count_batch
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "count_batch", lambda *a: (out / "features.pt").write_text("theirs") and real(*a))
        with pytest.raises(ValueError, match="features.pt appeared during the pass"):
            collect(toy, task, out)
    assert (out / "features.pt").read_text() == "theirs"
    (out / "features.pt").unlink()
    heard.clear()
    assert collect(toy, task, out).has_counts and not heard  # nothing is computed twice
    assert not (out / ".partial").exists()
    for folder in ("scratch", "linked"):
        (tmp_path / folder).mkdir()
    (tmp_path / "linked" / ".partial").symlink_to(tmp_path / "scratch")  # a faster disk
    assert collect(toy, task, tmp_path / "linked").has_counts and not [*(tmp_path / "scratch").iterdir()]


def test_other_weights_or_another_embedding_are_noticed_without_being_told(tmp_path: Path, task):
    def scaled(factor: float):
        module = Toy()
        return bare(module, embed=lambda wave: module(wave) * factor)

    out = tmp_path / "noise"
    whole = collect(bare(), task, out)
    with pytest.raises(ValueError, match="identity .* there and .* here"):
        collect(bare(Toy(1)), task, out)
    with pytest.raises(ValueError, match="same weights embed .* there and .* here"):
        collect(scaled(1.01), task, out)
    assert collect(scaled(1.0001), task, out).has_counts
    none = {"padding_masks": lambda valid, samples: [torch.zeros(len(valid), samples // 100, dtype=torch.bool)]}
    for change in ({"clip_seconds": 0.5, "chunks": True}, none):  # the probe hears no difference
        with pytest.raises(ValueError, match="weights, window and padding. is .* there and .* here"):
            collect(dataclasses.replace(bare(), **change), dataclasses.replace(task, clip_seconds=1.0), out)
    same = rows_of(task, range(24), "same")
    theirs = collect(bare(Toy(1)), same, tmp_path / "same")
    assert "pass_of" not in theirs.manifest and not np.array_equal(theirs.counts, whole.counts)
    assert "pass_of" in collect(bare(), same, tmp_path / "same-0").manifest


def test_clips_that_differ_late_are_other_clips(tmp_path: Path, toy):
    """Equally long files that begin alike: 40,000 samples of silence are 160 kB."""
    task = make_task(tmp_path / "data", 12)
    late = np.zeros((12, 40_300), dtype=np.float32)
    late[:, -300:] = np.random.default_rng(0).normal(0, 0.3, (12, 300))
    for name, wave in zip(task.files, late, strict=True):
        soundfile.write(task.audio_dir / name, wave, 40_300, subtype="FLOAT")  # the last 7 ms of 1 s
    out = tmp_path / "runs" / "noise"
    first = collect(toy, task, out)
    taken = collect(toy, rows_of(task, reversed(range(12)), "back"), tmp_path / "runs" / "back")
    assert "pass_of" in taken.manifest and np.array_equal(taken.embeddings(), first.embeddings()[::-1])
    assert len(np.unique(taken.embeddings(), axis=0)) == 12
    late[3, -1] += 0.5
    soundfile.write(task.audio_dir / task.files[3], late[3], 40_300, subtype="FLOAT")
    with pytest.raises(ValueError, match=f"clip {task.files[3]}: sha256 is .* there and .* here"):
        collect(toy, task, out)


def test_values_that_are_no_numbers_are_named_by_clip_and_layer(tmp_path: Path, task):
    module = Toy()
    peaks = [activations(bare(module), task.read(i, 1000)[0])[0].max() for i in range(len(task))]
    real, worst = module.layers[1].fc.forward, int(np.argmax(peaks))
    module.layers[1].fc.forward = lambda x: real(x) / (x.amax(dim=(1, 2), keepdim=True) < max(peaks))
    encoder = bare(module, embed=lambda wave: module(wave).nan_to_num())
    with pytest.raises(BadClip, match=f"{task.files[worst]}: toy makes .* not finite, in layer layers.1.act"):
        collect(encoder, task, tmp_path / "out")
    skipped = collect(encoder, task, tmp_path / "skip" / "out", on_bad_clip="skip")
    assert [s["file"] for s in skipped.manifest["skipped"]] == [task.files[worst]] and len(skipped.files) == 23


def test_a_mean_that_cannot_be_written_leaves_no_clip_out(tmp_path: Path, task):
    module = Toy()
    with torch.no_grad():
        module.layers[1].fc.weight *= 1e7
    with pytest.raises(ValueError, match="beyond float16.*means=False"):
        collect(bare(module), task, tmp_path / "out", on_bad_clip="skip")
    assert collect(bare(module), task, tmp_path / "other" / "out", means=False).has_all_counts


def test_a_model_in_training_mode_and_one_in_half_precision(tmp_path: Path, task):
    module = nn.Sequential(nn.Unflatten(1, (-1, 100)), nn.Linear(100, 8), nn.ReLU(), nn.Dropout(0.5))
    encoder = bare(module, lambda wave: module(wave.to(module[1].weight.dtype)).mean(dim=1), activations="2")
    module.train()
    with pytest.raises(ValueError, match=r"same wave differently .* training mode\? Call module.eval"):
        collect(encoder, task, tmp_path / "out")
    module.eval().to(torch.bfloat16)
    half = collect(encoder, task, tmp_path / "half")
    assert half.manifest["dtype"] == "bfloat16" and "bfloat16" in half._repr_html_()


def test_what_a_model_keeps_from_the_pass_lets_gradients_through_later(tmp_path: Path, task):
    class Positions(Toy):
        kept = None

        def forward(self, wave):
            self.kept = torch.linspace(0.5, 1, 8) if self.kept is None else self.kept
            return super().forward(wave) * self.kept

    encoder = bare(Positions())
    collect(encoder, task, tmp_path / "out")
    encoder.embed(torch.ones(1, 1000)).sum().backward()


def test_padding_and_cut_clips_are_said(tmp_path: Path, toy, task):
    with pytest.warns(UserWarning, match=r"6 of 24 clips last longer than clip_seconds=1 \(the longest 1.2 s\)"):
        told = collect(toy, task, tmp_path / "a" / "out")
    assert told.manifest["cut"] == 6
    silent = dataclasses.replace(toy, padding_masks=None)
    seconds = np.array([soundfile.info(task.audio_dir / f).duration for f in task.files])
    share = np.clip(1 - seconds, 0, None).mean()
    with pytest.warns(UserWarning, match=f"{share:.1%} of all samples are zero padding.*samples_per_token="):
        unknown = collect(silent, task, tmp_path / "b" / "out")
    with pytest.raises(ValueError, match="does not say which tokens"):
        unknown.probabilities(padding=False)
    full = rows_of(task, np.flatnonzero(seconds >= 1), "full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* are cut there")
        assert collect(silent, dataclasses.replace(full, clip_seconds=0.9), tmp_path / "c").padding_counts is None


@pytest.mark.parametrize("names", [("a", "b\u2028", "c"), ("a", "b\x85b", "c"), ("é", "e\u0301", "c"), ("a", "", "c")])
def test_class_names_that_could_not_be_read_back_are_refused_before_the_pass(tmp_path: Path, toy, task, names):
    with pytest.raises(ValueError, match="line break|Unicode normalisation"):
        collect(toy, dataclasses.replace(task, classes=names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SCRIPT = f"""
import os, signal, sys
sys.path[:0] = [{str(REPOSITORY / "tests")!r}, {str(REPOSITORY)!r}]
from conftest import make_toy
from aape.sounds.loading import from_metadata
import aape.collecting.passing as collecting
csv, audio, out, how = sys.argv[1:]
task = from_metadata(csv, audio, clip_seconds=1.0, name="noise")
real, seen = collecting.count_batch, []
def count_batch(*arguments):
    seen.append(1)
    if how == "killed" and len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
collecting.count_batch = count_batch
for keep in (None, 9):
    if how != "killed" or not os.fork():
        collecting.collect(make_toy(), task, out + f"/{{keep}}/noise", batch_size=4, device="cpu", keep_clips=keep)
    else:
        os.wait()
"""


def run_script(task, out: Path, how: str, *launcher: str) -> None:
    (out.parent / "script.py").write_text(SCRIPT)
    words = [str(out.parent / "script.py"), str(task.metadata), str(task.audio_dir), str(out), how]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *launcher, *words], capture_output=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, toy, task, heard):
    run_script(task, tmp_path / "killed", "killed")
    for keep in (None, 9):
        out = tmp_path / "killed" / str(keep) / "noise"
        assert len(list((out / ".partial").glob("batch-*.npz"))) == 3 and not (out / "manifest.json").exists()
        with pytest.raises(FileNotFoundError, match="cut off: call it again"):
            load_artifacts(out)
        with pytest.raises(ValueError, match="batch_size is 4 there and 6 here"):
            collect(toy, task, out, batch_size=6, keep_clips=keep)
        with pytest.raises(ValueError, match="identity .* there and .* here"):
            collect(make_toy(1), task, out, batch_size=4, keep_clips=keep)
        heard.clear()
        resumed = collect(toy, task, out, batch_size=4, keep_clips=keep)
        assert len(heard) == (3 if keep is None else 6)  # of 6 batches, 3 were there; sums are saved at the end
        whole = collect(toy, task, tmp_path / f"x{keep}" / "whole", batch_size=4, keep_clips=keep)
        assert contents(resumed.path) == contents(whole.path)
        assert not (out / ".partial").exists()


def test_two_processes_give_the_bytes_of_one(tmp_path: Path, toy, task):
    run_script(task, tmp_path / "two", "whole", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    with one_thread():  # as the processes have: it stands in the manifest
        for keep in (None, 9):
            one = collect(toy, task, tmp_path / f"one{keep}" / "noise", batch_size=4, device="cpu", keep_clips=keep)
            assert contents(one.path) == contents(tmp_path / "two" / str(keep) / "noise")


def test_kept_clips_are_a_subset_and_over_zero_is_exact(tmp_path: Path, toy, task):
    whole = collect(toy, task, tmp_path / "x" / "whole", batch_size=4)
    some = collect(toy, task, tmp_path / "y" / "some", batch_size=4, keep_clips=9, seed=5)
    assert torch.equal(whole.over_zero, some.over_zero)
    kept = some.manifest["kept_clips"]
    assert len(kept) == 9 and np.array_equal(some.counts, whole.counts[kept])
    assert np.array_equal(some.means, whole.means[kept])
    with pytest.raises(ValueError, match="9 clips only were kept"):
        some.probabilities()
    least = collect(toy, task, tmp_path / "z" / "least", batch_size=4, keep_clips=len(task.classes))
    assert sorted(least.labels[least.kept]) == list(range(len(task.classes)))
    with pytest.raises(ValueError, match="keep_clips: expected a clip of each of 3 classes or more, or 0, found 2"):
        collect(toy, task, tmp_path / "z" / "less", keep_clips=2)


def test_chosen_layers_splits_and_files(tmp_path: Path, toy, task):
    whole = collect(toy, task, tmp_path / "x" / "whole")
    with pytest.warns(UserWarning, match=r"of 3 layers 1 are counted, .* in encoder.with_layers\(\['layers.2.act'\]\)"):
        some = collect(toy, task, tmp_path / "y" / "some", layers=["layers.2.act"], splits=["fold1", "fold2", "fold3"])
    alone = toy.with_layers(some.layers)
    assert alone.layers == some.layers and toy.with_layers(toy.layers) is toy
    with pytest.raises(ValueError, match="expected some of layers.0.act"):
        toy.with_layers(["layers.3.act"])
    rows = np.isin(task.splits, ["fold1", "fold2", "fold3"])
    assert some.layers == ("layers.2.act",) and np.array_equal(some.counts[:, 0], whole.counts[rows, 2])
    without = collect(toy, task, tmp_path / "x" / "bare", means=False)
    assert np.array_equal(without.counts, whole.counts) and not (without.path / "clip_means.npy").exists()
    with pytest.warns(UserWarning, match="linear layers"):
        linear = bare(toy.module, activations="layers.*.fc")
    before = collect(linear, task, tmp_path / "linear" / "out")  # its means are others: criteria would differ silently
    assert np.array_equal(before.counts, whole.counts) and not (before.path / "clip_means.npy").exists()
    for artifacts in (without, before):
        with pytest.raises(
            ValueError, match=r"holds no clip_means.npy.*\n.*functions are modules.*ablation.modes: \[zero\]"
        ):
            _ = artifacts.means
    long = dataclasses.replace(task, clip_seconds=1.2)
    assert collect(make_toy(chunks=True), long, tmp_path / "z").tokens.tolist() == [12] * 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["nope"]}, r"layers must be a list of some of layers.0.act, .* found \['nope'\]"),
        ({"layers": ["layers.0.act"] * 2}, "layers: names none, or one twice"),
        ({"layers": []}, r"layers must be a list .* found \[\]"),
        ({"splits": "21"}, "splits must be a list of some of 1, 2, found '21'"),
        ({"splits": "fold1"}, "splits must be a list of some of fold1, fold2, .* found 'fold1'"),
        ({"batch_size": 0}, "batch_size: .* greater than or equal to 1"),
        ({"device": "mps" if torch.cuda.is_available() else "cuda"}, "not there for torch"),
        ({"on_bad_clip": "maybe"}, "on_bad_clip: .*'stop' or 'skip'"),
        ({"clips": 6, "splits": ["fold1"]}, "class 'class1' of noise has no clip in fold1"),
        ({"clips": 6, "seconds": 1.2}, r"clips of noise last 1.2 s, toy takes at most 1.0 s"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_the_pass(tmp_path: Path, toy, options: dict, message: str):
    task = make_task(tmp_path / "data", options.pop("clips", 24), options.pop("seconds", 1.0))
    if options.get("splits") == "21":  # its letters are names
        task = dataclasses.replace(task, splits=("1", "2") * 12)
    with pytest.raises(ValueError, match=message):
        collect(toy, task, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_bad_clip_stops_the_run_and_keeps_its_work_or_is_skipped(tmp_path: Path, toy, task):
    (task.audio_dir / task.files[13]).write_bytes(b"not audio")
    out = tmp_path / "out"
    with pytest.raises(BadClip, match=f"{task.files[13]}.*computed is kept.*on_bad_clip='skip'"):
        collect(toy, task, out, batch_size=4)
    assert len(list((out / ".partial").glob("batch-*.npz"))) == 3
    skipped = collect(toy, task, tmp_path / "other" / "out", batch_size=4, on_bad_clip="skip")
    assert [s["file"] for s in skipped.manifest["skipped"]] == [task.files[13]]
    assert len(skipped.files) == 23 and task.files[13] not in skipped.files
    counts, *_ = literal_counts(toy, rows_of(task, [i for i in range(24) if i != 13], "good"))
    assert np.array_equal(skipped.counts, counts)
    (task.audio_dir / task.files[13]).unlink()  # since the task was made
    skipped = collect(toy, task, tmp_path / "third" / "out", batch_size=4, on_bad_clip="skip")
    assert "missing" in skipped.manifest["skipped"][0]["reason"] and np.array_equal(skipped.counts, counts)


@pytest.mark.parametrize("keep", [None, 9])
def test_in_a_cut_off_pass_batches_of_mended_files_alone_are_heard_again(tmp_path, toy, task, heard, monkeypatch, keep):
    def go(name: str, cut=False, clips=task, **options):
        options = {"batch_size": 4, "keep_clips": keep} | options
        heard.clear()
        if not cut:
            return collect(toy, clips, tmp_path / name / "noise", **options)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(collecting, "merge", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
            collect(toy, clips, tmp_path / name / "noise", **options)

    bad, good = task.audio_dir / task.files[21], (task.audio_dir / task.files[21]).read_bytes()
    whole = go("whole")
    bad.write_bytes(b"not audio")
    skipped = go("skipped", on_bad_clip="skip")
    with pytest.raises(BadClip, match="mend the file and call again, or"):
        go("a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert contents(go("a", on_bad_clip="skip").path) == contents(skipped.path)
    assert len(heard) == 1
    go("b", cut=True, on_bad_clip="skip")
    with pytest.raises(BadClip):  # what was left out is not overlooked
        go("b")
    bad.write_bytes(good)
    first = task.audio_dir / task.files[0]
    other = first.read_bytes()
    soundfile.write(first, np.zeros(1000), 1000, subtype="FLOAT")
    go("b", cut=True)  # of a first batch that is not wanted
    assert len(heard) == (6 if keep else 2)
    first.write_bytes(other)
    with pytest.raises(ValueError, match=f"clip {task.files[5]} is only there"):
        go("b", clips=rows_of(task, [*range(5), *range(6, 24)], "noise"))
    assert contents(go("b").path) == contents(whole.path)
    assert len(heard) == (6 if keep else 1)


def test_a_full_disk_loses_nothing(tmp_path: Path, toy, task, monkeypatch):
    out = tmp_path / "out"
    real, writes = np.savez, []

    def savez(file, **arrays):
        writes.append("embeddings" in arrays)
        if sum(writes) == 4:
            file.write(b"half a fi")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", savez)
        with pytest.raises(OSError, match=r"no space in .* 0.000 to 0.000 GiB .*free.\n.*computed is kept"):
            collect(toy, task, out, batch_size=4)
    names = sorted(p.name for p in (out / ".partial").iterdir())
    assert names == ["batch-000000.npz", "batch-000001.npz", "batch-000002.npz", "settings.npz"]
    whole = collect(toy, task, tmp_path / "w" / "whole", batch_size=4)
    assert contents(collect(toy, task, out, batch_size=4).path) == contents(whole.path)


@pytest.mark.parametrize(("keep", "damaged"), [(None, "batch-000002"), (9, "batch-000002"), (9, "sums-0")])
def test_what_was_damaged_is_computed_anew(tmp_path: Path, toy, task, monkeypatch, keep: int | None, damaged: str):
    whole = collect(toy, task, tmp_path / "w" / "whole", batch_size=4, keep_clips=keep)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "merge", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(toy, task, out, batch_size=4, keep_clips=keep)
    (out / ".partial" / "settings.npz").write_text("")
    path = out / ".partial" / f"{damaged}.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=f"{damaged}.npz cannot be used"):
        collect(toy, task, out, batch_size=4, keep_clips=keep)
    assert contents(out) == contents(whole.path)


def test_sums_are_kept_whichever_batch_comes_last(tmp_path: Path, toy, task, monkeypatch):
    whole, out = collect(toy, task, tmp_path / "w" / "whole", batch_size=4), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "merge", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(toy, task, out, batch_size=4, keep_clips=9)
    with np.load(out / ".partial" / "sums-0.npz") as file:
        key, sums, of = json.loads(str(file["__key__"])), np.zeros_like(file["sums"]), file["of"] * (np.arange(6) == 5)
    collecting.add_by_class(sums, task.labels[20:], whole.counts[20:])  # of the last batch, by a second process
    Cache(out / ".partial").put("sums-1", key, {"sums": sums, "of": of, "less": np.array(0)})
    for name in ("sums-0", "batch-000005"):
        (out / ".partial" / f"{name}.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be used"):
        assert torch.equal(collect(toy, task, out, batch_size=4, keep_clips=9).over_zero, whole.over_zero)


def test_tasks_on_the_same_audio_share_one_pass(tmp_path: Path, toy, task, heard):
    rows = [i for i in reversed(range(24)) if task.groups[i] != "g5"]
    coarse = rows_of(task, rows, "coarse", lambda line: line.replace("class2", "class0"))
    alone = collect(toy, coarse, tmp_path / "alone" / "coarse_analysis", batch_size=24)
    collect(toy, task, tmp_path / "both" / "noise_analysis", batch_size=24)
    heard.clear()
    shared = collect(toy, coarse, tmp_path / "both" / "coarse_analysis", batch_size=24)
    assert not heard and shared.manifest["pass_of"] == "noise_analysis (task noise)"
    assert np.array_equal(shared.counts, alone.counts) and torch.equal(shared.over_zero, alone.over_zero)
    assert np.array_equal(shared.padding_counts, alone.padding_counts)
    assert np.allclose(shared.means, alone.means, rtol=1e-3)
    assert np.allclose(shared.embeddings(), alone.embeddings(), atol=1e-6)
    assert shared.classes == ("class0", "class1")
    (tmp_path / "both" / "noise_analysis" / "gts.pt").unlink()  # no business of another task's
    shutil.rmtree(shared.path)
    assert "pass_of" not in collect(toy, coarse, shared.path, batch_size=24).manifest


@pytest.fixture
def folder(tmp_path: Path, toy, task) -> Path:
    return collect(toy, task, tmp_path / "out", batch_size=8).path


def test_edited_or_missing_files(folder: Path):
    for name in manifest.REQUIRED:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} is not the file its manifest describes"):
            load_artifacts(folder)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            load_artifacts(folder)
        (folder / name).write_bytes(content)
    assert load_artifacts(folder, verify=True).has_counts


@pytest.mark.parametrize("sealed", [False, True])
def test_an_edited_manifest(folder: Path, sealed: bool):
    """Every edit is noticed: by the manifest's own hash, and where that is made anew, by schema and other files."""
    path = folder / "manifest.json"
    whole = json.loads(path.read_text())
    clips, sums = whole["clips"], whole["checksums"]
    top = [
        {"extra": 1}, {"neurons": "8"}, {"neurons": 9}, {"layers": ["a", "a", "b"]}, {"layers": whole["layers"][:2]},
        {"classes": ["class0", "class1"]}, {"classes": ["class1", "class0", "class2"]}, {"format": 2},
        {"padding": "none"}, {"means": False}, {"kept_clips": [0, 1]}, {"kept": "2 by seed 0", "kept_clips": [0, 1]},
        {"clip_seconds": float("nan")}, {"splits": ["fold1"]}, {"clips": []}, {"identity": None},
        {"checksums": sums | {"../x": "0" * 64}}, {"checksums": sums | {"gts.pt": "0"}}, {"checksums": {}},
        {"clips": {k: v for k, v in clips.items() if k != "group"}},
    ]  # fmt: skip
    for column, value in {
        "tokens": 0, "padding_tokens": 1000, "label": (clips["label"][0] + 1) % 3, "split": clips["split"][1],
        "file": clips["file"][1],
    }.items():  # fmt: skip
        top.append({"clips": clips | {column: [value, *clips[column][1:]]}})
    top += [] if sealed else [{"cut": 5}, {"versions": {}}]  # only the hash tells
    for m in [whole | change for change in top] + [{k: v for k, v in whole.items() if k != "classes"}]:
        if sealed:
            m["sha256"] = manifest._digest({k: v for k, v in m.items() if k != "sha256"})
        path.write_text(json.dumps(m))
        with pytest.raises(ValueError, match="manifest"):
            load_artifacts(folder)
    path.write_text(json.dumps(whole))
    for name, content in (
        ("gts.pt", [1]),
        ("gts.pt", {"fold1": 3}),
        ("features.pt", torch.zeros(3)),
        ("features.pt", {}),
    ):
        before = (folder / name).read_bytes()
        torch.save(content, folder / name)
        sums = whole["checksums"] | {name: sha256_of(folder / name)}
        manifest.write_manifest(path, {k: v for k, v in whole.items() if k != "sha256"} | {"checksums": sums})
        with pytest.raises(ValueError, match=f"{name} and manifest.json do not speak of the same pass"):
            load_artifacts(folder)
        (folder / name).write_bytes(before)
    for text in ("{", "[]", "", "null", "[" * 100_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match="is not a manifest"):
            load_artifacts(folder)


def test_artifacts_of_another_tool_and_questions_that_cannot_be_answered(folder: Path, tmp_path: Path):
    ours, foreign = load_artifacts(folder), tmp_path / "foreign"
    foreign.mkdir()
    for name in ("over_zero.pt", "classes.txt"):
        shutil.copy(folder / name, foreign)
    theirs = load_artifacts(foreign)
    assert theirs.over_zero.shape == (3, 8, 3) and not theirs.has_counts
    assert "of another tool" in repr(theirs) and "mean activation" in theirs._repr_html_()
    for ask, words in (
        (lambda: theirs.counts, "no clip_counts.npy"),
        (theirs.probabilities, "no manifest.json"),
        (lambda: ours.probabilities(split="train"), "no split 'train'; it has fold1"),
        (lambda: ours.probabilities(classes={"high": ["class9"]}), "'high' is to hold 'class9'"),
        (lambda: ours.probabilities(clips=np.array([0])), "class 'class1' has no clip among the 1 chosen"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    (foreign / "classes.txt").write_text("a\nb\n")
    torch.save(torch.full((3, 8, 2), 1.5), tmp_path / "large.pt")
    for content, words in (
        ((foreign / "over_zero.pt").read_bytes(), r"\(3, 8, 3\), expected \[layers, neurons, 2\]"),
        ((tmp_path / "large.pt").read_bytes(), "outside"),
        (b"junk", "no whole file of tensors"),
    ):
        (foreign / "over_zero.pt").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_artifacts(foreign)
