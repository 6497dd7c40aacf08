"""The collecting pass: right numbers, same bytes, no work lost."""

import dataclasses
import errno
import os
import re
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

from aape import collecting
from aape.artifacts import manifest
from aape.artifacts.folder import load_artifacts
from aape.collecting import passing
from aape.collecting.passing import collect
from aape.collecting.relabelling import relabel
from aape.encoders.encoder import hooked
from aape.encoders.module import from_module
from aape.files import FolderBusy, folder_lock
from aape.sounds.audio import BadClip
from aape.sounds.loading import from_metadata


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
def encoded(monkeypatch) -> list[int]:
    """Grows by one with every batch that goes through an encoder."""
    batches: list[int] = []
    real = passing.count_batch
    monkeypatch.setattr(
        passing, "count_batch", lambda *arguments: batches.append(1) or real(*arguments)
    )
    return batches


def literal_counts(encoder, task):
    """Every activation kept, clip by clip, then compared with zero and averaged: the slow way."""
    counts = np.zeros((len(task), 3, 8), dtype=int)
    means, padding, tokens = (
        np.zeros(counts.shape),
        np.zeros_like(counts),
        np.zeros(len(task), dtype=int),
    )
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
    with (
        hooked(encoder, encoder.layers, lambda i, x: kept.__setitem__(i, x[0].numpy())),
        torch.no_grad(),
    ):
        encoder.embed(torch.from_numpy(wave)[None])
    return kept


def test_every_artifact_equals_a_literal_computation(tmp_path: Path, toy, task):
    artifacts = collect(toy, task, tmp_path / "noise_analysis", batch_size=5)
    counts, padding, tokens, means = literal_counts(toy, task)
    assert np.array_equal(artifacts.counts, counts) and artifacts.counts.dtype == np.uint8
    assert np.array_equal(artifacts.padding_counts, padding) and padding.any()
    assert (
        np.allclose(artifacts.means, means, rtol=1e-3, atol=1e-6)
        and artifacts.means.dtype == np.float16
    )
    assert np.array_equal(artifacts.tokens, tokens)
    for c in range(3):
        mine = task.labels == c
        expected = counts[mine].sum(axis=0) / tokens[mine].sum()
        assert np.allclose(artifacts.probabilities()[:, :, c], expected, atol=0, rtol=1e-15)
        assert np.array_equal(artifacts.over_zero[:, :, c].numpy(), expected.astype(np.float32))
        sound = (counts - padding)[mine].sum(axis=0) / (tokens - artifacts.padding_tokens)[
            mine
        ].sum()
        assert np.allclose(artifacts.probabilities(padding=False)[:, :, c], sound)
    by_fold = artifacts.probabilities(
        split=["fold2", "fold3"], classes={"both": ["class0", "class2"]}
    )
    rows = np.isin(task.splits, ["fold2", "fold3"]) & (task.labels != 1)
    assert np.allclose(by_fold[:, :, 0], counts[rows].sum(axis=0) / tokens[rows].sum())
    assert (artifacts.path / "classes.txt").read_text() == "class0\nclass1\nclass2\n"
    assert artifacts.files.tolist() == list(task.files) and artifacts.groups.tolist() == list(
        task.groups
    )
    waves = torch.stack([torch.from_numpy(task.read(clip, 1000)[0]) for clip in range(len(task))])
    assert np.allclose(artifacts.embeddings(), toy.embed(waves).detach(), atol=1e-6)
    for fold, labels in artifacts.gts.items():
        assert labels.tolist() == task.labels[np.asarray(task.splits) == fold].tolist()
    said = artifacts.manifest
    assert (
        said["weights"]["sha256"] == "toy-0"
        and said["group_column"] == "group"
        and said["padding"] == "counted"
    )


def test_same_bytes_twice_and_signs_only_near_zero_with_another_batch_size(
    tmp_path: Path, toy, task
):
    first = collect(toy, task, tmp_path / "a", batch_size=7)
    assert contents(first.path) == contents(collect(toy, task, tmp_path / "b", batch_size=7).path)
    third = collect(toy, task, tmp_path / "elsewhere" / "c", batch_size=24)
    for clip, layer, neuron in np.argwhere(np.asarray(third.counts) != np.asarray(first.counts)):
        assert (
            np.abs(activations(toy, task.read(int(clip), 1000)[0])[layer][:, neuron]).min() <= 1e-5
        )


def test_finished_artifacts_are_returned_at_once_and_another_runs_folder_is_refused(
    tmp_path: Path, toy, task, encoded, monkeypatch
):
    out = tmp_path / "out"
    collect(toy, task, out, batch_size=8)
    before = contents(out)
    encoded.clear()
    with folder_lock(out):  # finished artifacts can be read while another process holds the folder
        assert collect(
            toy, task, out, batch_size=3
        ).has_counts  # and the batch size no longer matters
    with (
        monkeypatch.context() as patch
    ):  # another process finishes between the question and the lock
        answers = iter([False])
        patch.setattr(passing, "_finished", lambda *arguments: next(answers, True))
        assert collect(toy, task, out).has_counts
    (out / ".partial").mkdir()  # of somebody else
    (out / ".partial" / "notes.txt").write_text("theirs")
    assert collect(toy, task, out).has_counts
    assert (out / ".partial" / "notes.txt").read_text() == "theirs"
    with pytest.raises(ValueError, match="splits is .*fold5.* there and .*'fold1'] here"):
        collect(toy, task, out, splits=["fold1"])
    soundfile.write(task.audio_dir / task.files[3], np.zeros(700), 1000, subtype="FLOAT")
    with pytest.raises(
        ValueError, match=rf"1 of 24 clips differ .* of {task.files[3]}, sha256 is '\w+' there"
    ):
        collect(toy, task, out)
    assert contents(out) == before and not encoded
    with (
        folder_lock(tmp_path / "b"),
        pytest.raises(FolderBusy, match=f"in use by process {os.getpid()} on"),
    ):
        collect(toy, task, tmp_path / "b")
    assert not (tmp_path / "b" / ".partial").exists()


FOREIGN = (
    *manifest.FILES,
    "manifest.json",
    ".pass.json",
    *(f".partial{name}" for name in ("", "/notes.txt", "/batch-1.npz")),
)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_another_tool_left_is_named_and_not_touched(tmp_path: Path, toy, task, name: str):
    out = tmp_path / "foreign"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"theirs": 1}')
    with pytest.raises(
        ValueError, match=re.escape("foreign" if name == ".pass.json" else name.split("/")[0])
    ):
        collect(toy, task, out)
    left = {
        p.relative_to(out).as_posix(): p.read_text()
        for p in out.rglob("*")
        if p.is_file() and p.name != ".lock"
    }
    assert left == {name: '{"theirs": 1}'}


def test_other_weights_or_another_embedding_are_noticed_without_being_told(
    tmp_path: Path, task, interrupted
):
    def scaled(factor: float):
        module = Toy()
        return bare(module, embed=lambda wave: module(wave) * factor)

    finished, unfinished = tmp_path / "finished", tmp_path / "unfinished"
    whole = collect(bare(), task, finished)
    interrupted(bare(), task, unfinished)
    for out in (finished, unfinished):
        with pytest.raises(ValueError, match="identity .* there and .* here"):
            collect(bare(Toy(1)), task, out)
        with pytest.raises(ValueError, match="same weights embed .* there and .* here"):
            collect(scaled(1.01), task, out)
        assert np.array_equal(collect(scaled(1.0001), task, out).counts, whole.counts)
    none = {
        "padding_masks": lambda valid, samples: [
            torch.zeros(len(valid), samples // 100, dtype=torch.bool)
        ]
    }
    for change in (
        {"clip_seconds": 0.5, "chunks": True},
        none,
    ):  # embeddings do not tell the difference
        with pytest.raises(
            ValueError, match="weights, window and padding. is .* there and .* here"
        ):
            collect(
                dataclasses.replace(bare(), **change),
                dataclasses.replace(task, clip_seconds=1.0),
                finished,
            )


def test_clips_that_differ_late_are_other_clips(tmp_path: Path, toy):
    """Equally long files that begin alike: 40,000 samples of silence are 160 kB."""
    task = make_task(tmp_path / "data", 12)
    late = np.zeros((12, 40_300), dtype=np.float32)
    late[:, -300:] = np.random.default_rng(0).normal(0, 0.3, (12, 300))
    for name, wave in zip(task.files, late, strict=True):
        soundfile.write(
            task.audio_dir / name, wave, 40_300, subtype="FLOAT"
        )  # the last 7 ms of 1 s
    out = tmp_path / "noise"
    first = collect(toy, task, out)
    late[3, -1] += 0.5
    soundfile.write(task.audio_dir / task.files[3], late[3], 40_300, subtype="FLOAT")
    with pytest.raises(
        ValueError, match=f"1 of 12 clips differ .* of {task.files[3]}, sha256 is .* there"
    ):
        collect(toy, task, out)
    with pytest.raises(ValueError, match=f"does not have 1 of the 12 clips.* e.g. {task.files[3]}"):
        relabel(first, task, tmp_path / "relabelled")


def test_values_that_are_no_numbers_are_named_by_clip_and_layer(tmp_path: Path, task):
    module = Toy()
    peaks = [activations(bare(module), task.read(i, 1000)[0])[0].max() for i in range(len(task))]
    real, worst = module.layers[1].fc.forward, int(np.argmax(peaks))
    module.layers[1].fc.forward = lambda x: (
        real(x) / (x.amax(dim=(1, 2), keepdim=True) < max(peaks))
    )
    encoder = bare(module, embed=lambda wave: module(wave).nan_to_num())
    with pytest.raises(
        BadClip, match=f"{task.files[worst]}: toy makes .* not finite, in layer layers.1.act"
    ):
        collect(encoder, task, tmp_path / "out")


def test_a_mean_that_cannot_be_written_is_explained(tmp_path: Path, task):
    module = Toy()
    with torch.no_grad():
        module.layers[1].fc.weight *= 1e7
    with pytest.raises(ValueError, match="beyond float16.*means=False"):
        collect(bare(module), task, tmp_path / "out")
    assert collect(bare(module), task, tmp_path / "other" / "out", means=False).has_counts


def test_a_model_in_training_mode_and_one_in_half_precision(tmp_path: Path, task):
    module = nn.Sequential(
        nn.Unflatten(1, (-1, 100)), nn.Linear(100, 8), nn.ReLU(), nn.Dropout(0.5)
    )
    encoder = bare(
        module, lambda wave: module(wave.to(module[1].weight.dtype)).mean(dim=1), activations="2"
    )
    module.train()
    with pytest.raises(
        ValueError, match=r"same wave differently .* training mode\? Call module.eval"
    ):
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
    with pytest.warns(
        UserWarning, match=r"6 of 24 clips last longer than clip_seconds=1 \(the longest 1.2 s\)"
    ):
        told = collect(toy, task, tmp_path / "a" / "out")
    assert told.manifest["cut"] == 6
    silent = dataclasses.replace(toy, padding_masks=None)
    seconds = np.array([soundfile.info(task.audio_dir / f).duration for f in task.files])
    share = np.clip(1 - seconds, 0, None).mean()
    with pytest.warns(
        UserWarning, match=f"{share:.1%} of all samples are zero padding.*samples_per_token="
    ):
        unknown = collect(silent, task, tmp_path / "b" / "out")
    with pytest.raises(ValueError, match="does not say which tokens"):
        unknown.probabilities(padding=False)
    full = rows_of(task, np.flatnonzero(seconds >= 1), "full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* are cut there")
        assert (
            collect(
                silent, dataclasses.replace(full, clip_seconds=0.9), tmp_path / "c"
            ).padding_counts
            is None
        )


@pytest.mark.parametrize(
    "names", [("a", "b\u2028", "c"), ("a", "b\x85b", "c"), ("é", "e\u0301", "c"), ("a", "", "c")]
)
def test_class_names_that_could_not_be_read_back_are_refused_before_the_pass(
    tmp_path: Path, toy, task, names
):
    with pytest.raises(ValueError, match="line break|Unicode normalisation"):
        collect(toy, dataclasses.replace(task, classes=names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SCRIPT = f"""
import os, signal, sys
sys.path[:0] = [{str(REPOSITORY / "tests")!r}, {str(REPOSITORY)!r}]
from conftest import make_toy
from aape.sounds.loading import from_metadata
from aape.collecting import passing
csv, audio, out, killed_at = sys.argv[1:]
task = from_metadata(csv, audio, clip_seconds=1.0, name="noise")
real, seen = passing.count_batch, []
def count_batch(*arguments):
    seen.append(1)
    if len(seen) == int(killed_at):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
passing.count_batch = count_batch
passing.collect(make_toy(), task, out, batch_size=4, device="cpu")
"""


def run_script(task, out: Path, *launcher: str, killed_at: int = 0) -> None:
    """Collect in another process, which kills itself at a batch (from 1; 0: never)."""
    (out.parent / "script.py").write_text(SCRIPT)
    words = [
        str(out.parent / "script.py"),
        str(task.metadata),
        str(task.audio_dir),
        str(out),
        str(killed_at),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *launcher, *words], capture_output=True, timeout=300, env=environment
    )
    assert (ended.returncode != 0) == (killed_at > 0), ended.stderr.decode()[-2000:]


TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def test_a_killed_pass_resumes_and_ends_with_the_same_bytes(tmp_path: Path, toy, task, encoded):
    out = tmp_path / "killed"
    run_script(task, out, killed_at=4)
    assert (
        len(list((out / ".partial").glob("batch-*.npz"))) == 3
        and not (out / "manifest.json").exists()
    )
    with pytest.raises(FileNotFoundError, match="interrupted: call it again"):
        load_artifacts(out)
    with pytest.raises(ValueError, match="batch_size is 4 there and 6 here"):
        collect(toy, task, out, batch_size=6)
    with pytest.raises(ValueError, match="identity .* there and .* here"):
        collect(make_toy(1), task, out, batch_size=4)
    encoded.clear()
    with one_thread():
        resumed = collect(toy, task, out, batch_size=4)
        assert len(encoded) == 3  # of 6 batches
        whole = collect(toy, task, tmp_path / "whole", batch_size=4)
    assert contents(resumed.path) == contents(whole.path)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == [".lock"]


@pytest.mark.parametrize("killed_at", [0, 2])
def test_two_processes_give_the_bytes_of_one(
    tmp_path: Path, toy, task, monkeypatch, killed_at: int
):
    run_script(task, tmp_path / "two", *TWO_PROCESSES, killed_at=killed_at)
    assert (tmp_path / "two" / "manifest.json").exists() == (not killed_at)
    for name in ("RANK", "WORLD_SIZE"):  # an earlier launch left them behind
        monkeypatch.setenv(name, "2")
    with one_thread():  # as the processes have: the manifest says so
        two = collect(toy, task, tmp_path / "two", batch_size=4, device="cpu")
        one = collect(toy, task, tmp_path / "one", batch_size=4, device="cpu")
    assert contents(one.path) == contents(two.path)


def test_chosen_layers_splits_and_files(tmp_path: Path, toy, task):
    whole = collect(toy, task, tmp_path / "x" / "whole")
    with pytest.warns(
        UserWarning,
        match=r"1 of 3 layers are counted, .* use encoder.with_layers\(\['layers.2.act'\]\)",
    ):
        some = collect(
            toy,
            task,
            tmp_path / "y" / "some",
            layers=["layers.2.act"],
            splits=["fold1", "fold2", "fold3"],
        )
    alone = toy.with_layers(some.layers)
    assert alone.layers == some.layers and toy.with_layers(toy.layers) is toy
    with pytest.raises(ValueError, match="expected some of layers.0.act"):
        toy.with_layers(["layers.3.act"])
    rows = np.isin(task.splits, ["fold1", "fold2", "fold3"])
    assert some.layers == ("layers.2.act",) and np.array_equal(
        some.counts[:, 0], whole.counts[rows, 2]
    )
    without = collect(toy, task, tmp_path / "x" / "bare", means=False)
    assert (
        np.array_equal(without.counts, whole.counts)
        and not (without.path / "clip_means.npy").exists()
    )
    with pytest.warns(UserWarning, match="linear layers"):
        linear = bare(toy.module, activations="layers.*.fc")
    before = collect(
        linear, task, tmp_path / "linear" / "out"
    )  # its means are others: criteria would differ silently
    assert (
        np.array_equal(before.counts, whole.counts)
        and not (before.path / "clip_means.npy").exists()
    )
    for artifacts in (without, before):
        with pytest.raises(
            ValueError,
            match=r"holds no clip_means.npy.*\n.*functions are modules.*ablation.modes: \[zero\]",
        ):
            _ = artifacts.means
    long = dataclasses.replace(task, clip_seconds=1.2)
    assert collect(make_toy(chunks=True), long, tmp_path / "z").tokens.tolist() == [12] * 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["nope"]},
            r"layers must be a list of some of layers.0.act, .* found \['nope'\]",
        ),
        ({"layers": ["layers.0.act"] * 2}, "layers must be a list .* each once"),
        ({"layers": []}, r"layers must be a list .* found \[\]"),
        ({"splits": "21"}, "splits must be a list of some of 1, 2, .* found '21'"),
        ({"splits": "fold1"}, "splits must be a list of some of fold1, fold2, .* found 'fold1'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, found 0"),
        ({"device": "mps" if torch.cuda.is_available() else "cuda"}, "not available to torch"),
        ({"clips": 6, "splits": ["fold1"]}, "class 'class1' of noise has no clip in fold1"),
        ({"clips": 6, "seconds": 1.2}, r"clips of noise last 1.2 s, toy takes at most 1.0 s"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_the_pass(
    tmp_path: Path, toy, monkeypatch, options: dict, message: str
):
    task = make_task(tmp_path / "data", options.pop("clips", 24), options.pop("seconds", 1.0))
    if options.get("splits") == "21":  # its letters are names
        task = dataclasses.replace(task, splits=("1", "2") * 12)
    monkeypatch.setattr("aape.collecting.plan.sha256_of", None)  # nothing is read
    with pytest.raises(ValueError, match=message):
        collect(toy, task, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_all_bad_clips_of_a_batch_are_named_and_the_pass_resumes_without_them(
    tmp_path: Path, toy, task, encoded
):
    out, bad = tmp_path / "out", [13, 15]
    (task.audio_dir / task.files[13]).write_bytes(b"not audio")
    (task.audio_dir / task.files[15]).unlink()
    with pytest.raises(
        BadClip,
        match=rf"2 of the 4 clips(.*\n)+.*{task.files[13]}.*\n.*{task.files[15]}.*\n.*is kept",
    ) as told:
        collect(toy, task, out, batch_size=4)
    assert "remove them from the task, then call again" in str(told.value)
    assert len(list((out / ".partial").glob("batch-*.npz"))) == 3
    encoded.clear()
    good = rows_of(task, [clip for clip in range(24) if clip not in bad], "noise")
    # labels and splits may change, too
    good = dataclasses.replace(
        good, labels=good.labels % 2, classes=("even", "odd"), splits=("test",) * 22
    )
    resumed = collect(toy, good, out, batch_size=4)
    assert len(encoded) == 3  # of 6 batches
    assert contents(resumed.path) == contents(
        collect(toy, good, tmp_path / "whole", batch_size=4).path
    )
    assert np.array_equal(resumed.counts, literal_counts(toy, good)[0])


@pytest.fixture
def interrupted(monkeypatch):
    """A pass that is interrupted when all batches are computed and nothing else is written."""

    def merge(plan, results, *_):
        for _ in results:
            pass
        raise KeyboardInterrupt

    def run(*arguments, **options) -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(collecting, "merge", merge)
            collect(*arguments, **options)

    return run


def test_batches_that_were_damaged_or_of_a_mended_file_are_computed_again(
    tmp_path: Path, toy, task, interrupted, encoded
):
    whole = collect(toy, task, tmp_path / "whole", batch_size=4)
    first = task.audio_dir / task.files[0]
    content = first.read_bytes()
    soundfile.write(first, np.zeros(1000), 1000, subtype="FLOAT")
    interrupted(toy, task, tmp_path / "out", batch_size=4)
    first.write_bytes(content)
    damaged = tmp_path / "out" / ".partial" / "batch-000002.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    encoded.clear()
    with pytest.warns(UserWarning, match="batch-000002.npz is damaged"):
        collect(toy, task, tmp_path / "out", batch_size=4)
    assert len(encoded) == 2 and contents(tmp_path / "out") == contents(whole.path)


@pytest.mark.parametrize("full", ["batch-000003.npz", "features.pt", "clip_counts.npy"])
def test_a_full_disk_loses_nothing(tmp_path: Path, toy, task, monkeypatch, encoded, full: str):
    out, replace = tmp_path / "out", os.replace

    def no_space(source: Path, target: Path) -> None:
        if Path(target).name == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with pytest.raises(
            OSError, match=r"no space left in .*computed is kept: free some space, then call again"
        ):
            collect(toy, task, out, batch_size=4)
    kept = 3 if full.startswith("batch") else 6
    assert len(list((out / ".partial").glob("batch-*.npz"))) == kept and not list(
        out.rglob(".*.part")
    )
    encoded.clear()
    assert contents(collect(toy, task, out, batch_size=4).path) == contents(
        collect(toy, task, tmp_path / "whole", batch_size=4).path
    )
    assert len(encoded) == 6 - kept + 6


def test_a_log_gets_a_line_per_tenth_of_the_clips(tmp_path: Path, toy, task, capfd):
    collect(toy, task, tmp_path / "out", batch_size=1)
    said = capfd.readouterr()
    lines = [line for line in said.err.split("\n") if "toy on noise" in line]
    assert (
        10 <= len(lines) <= 14
        and "24/24" in lines[-1]
        and "\r" not in said.err.replace("\r\n", "\n")
    )
    assert "24 clips x 3 layers x 8 neurons, at least 0.00 GB" in said.out


def test_partial_results_on_another_disk(tmp_path: Path, toy, task):
    for name in ("scratch", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / ".partial").symlink_to(tmp_path / "scratch")  # a faster disk
    assert collect(toy, task, tmp_path / "out").has_counts and not list(
        (tmp_path / "scratch").iterdir()
    )


def test_relabelled_artifacts_equal_a_pass_of_their_own(tmp_path: Path, toy, task, encoded):
    def coarse(line: str) -> str:
        return line.replace("class2", "class0")

    source = collect(toy, task, tmp_path / "noise_analysis", batch_size=24)
    coarse_task = rows_of(task, range(24), "coarse", coarse)
    alone = collect(toy, coarse_task, tmp_path / "alone", batch_size=24)
    encoded.clear()
    relabelled = relabel(source, coarse_task, tmp_path / "coarse")
    assert not encoded and relabelled.classes == ("class0", "class1")
    assert relabelled.manifest == alone.manifest | {"pass_of": "noise_analysis (task noise)"}
    for name in manifest.FILES:
        assert (relabelled.path / name).read_bytes() == (alone.path / name).read_bytes()
    before = contents(relabelled.path)
    relabel(source, coarse_task, relabelled.path)
    assert contents(collect(toy, coarse_task, relabelled.path).path) == before


def test_some_clips_in_another_order_relabelled(tmp_path: Path, toy, task):
    source = collect(toy, task, tmp_path / "noise_analysis", batch_size=24)
    subset = rows_of(
        task, [clip for clip in reversed(range(24)) if task.groups[clip] != "g5"], "some"
    )
    alone = collect(toy, subset, tmp_path / "alone", batch_size=24)
    some = relabel(source, subset, tmp_path / "some")
    assert np.array_equal(some.counts, alone.counts) and torch.equal(
        some.over_zero, alone.over_zero
    )
    assert np.array_equal(some.padding_counts, alone.padding_counts)
    assert np.allclose(some.means, alone.means, rtol=1e-3)
    assert np.allclose(some.embeddings(), alone.embeddings(), atol=1e-6)
    with pytest.raises(
        ValueError, match="belongs to another run: task is 'some' there and 'noise' here"
    ):
        relabel(source, task, some.path)
    with pytest.raises(ValueError, match="does not have 4 of the 24 clips of noise"):
        relabel(some, task, tmp_path / "more")
    with pytest.raises(ValueError, match="last 0.9 s, those of .* 1 s"):
        relabel(source, dataclasses.replace(subset, clip_seconds=0.9), tmp_path / "shorter")
