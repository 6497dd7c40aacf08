"""What the collecting pass costs, as ratios measured in one run.

    python -m benchmarks.collecting FOLDER [--clips 64] [--seconds 5] [--hub NAME_OR_FOLDER] [--rate 44100] [--memory]

FOLDER holds sounds, in any depth; the clips are a seeded choice of them, the encoder a ViT-Base of M2D's shape with
random weights, or that of --hub. With --rate they are first written at that rate, as datasets come, so that decoding
them includes resampling.

1. counting: `count_batch` against the bare `embed` on the same decoded batches, taken in turn;
2. the straightforward way: keep every layer's activations of the whole run, then reduce them class by class;
3. overlap: `collect` from audio files against decoding plus bare forward passes, one after the other;
4. --memory: peak resident memory of whole `collect` runs over 250, 1,000 and 2,000 clips of 1 s, a process each.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch

from aape.collecting.counting import count_batch
from aape.collecting.passing import collect
from aape.encoders import m2d
from aape.encoders.dry_run import widths
from aape.encoders.encoder import Encoder, hooked
from aape.encoders.hub import from_hub
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task, read_clips

BATCH = 16


def task_of(sounds: Path, clips: int, seconds: float, folder: Path) -> Task:
    """A seeded choice of sounds, labelled by their place in it: 50 classes as in ESC-50."""
    suffixes = {f".{kind.lower()}" for kind in soundfile.available_formats()} | {".ogg", ".mp3"}
    files = sorted(
        str(p.relative_to(sounds)) for p in sounds.rglob("*") if p.suffix.lower() in suffixes
    )
    table = (
        pd.DataFrame({"file_name": files, "split": "test"})
        .sample(frac=1, random_state=0)
        .head(clips)
    )
    table["label"] = [f"class {i % 50}" for i in range(len(table))]
    table.to_csv(folder / "clips.csv", index=False)
    return from_metadata(folder / "clips.csv", sounds, clip_seconds=seconds, name="sounds")


def straightforward(
    encoder: Encoder, waves: list[torch.Tensor], labels: np.ndarray, classes: int
) -> torch.Tensor:
    """Keep all activations, then count class by class: [layers, neurons, classes]."""
    kept: list[list[torch.Tensor]] = [[] for _ in encoder.layers]
    with (
        hooked(encoder, encoder.layers, lambda layer, x: kept[layer].append(x)),
        torch.inference_mode(),
    ):
        for wave in waves:
            encoder.embed(wave)
    layers = []
    for values in kept:
        whole = torch.cat(values)  # [clips, tokens, neurons]
        layers.append(
            torch.stack(
                [
                    (whole[torch.from_numpy(np.flatnonzero(labels == c))] > 0)
                    .float()
                    .mean(dim=(0, 1))
                    for c in range(classes)
                ],
                dim=-1,
            )
        )
    return torch.stack(layers)


def at_rate(task: Task, rate: int, folder: Path) -> Task:
    """The same clips as WAV files at another rate."""
    for name in task.files:
        wave, old = soundfile.read(task.audio_dir / name)
        path = (folder / name).with_suffix(".wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, soxr.resample(wave, old, rate), rate)
    table = pd.DataFrame(
        {"file_name": [str(Path(name).with_suffix(".wav")) for name in task.files], "split": "test"}
    )
    table["label"] = [task.classes[label] for label in task.labels]
    table.to_csv(folder / "clips.csv", index=False)
    return from_metadata(
        folder / "clips.csv", folder, clip_seconds=task.clip_seconds, name="sounds"
    )


def speed(encoder: Encoder, task: Task, folder: Path) -> None:
    """Parts 1 to 3."""
    neurons = widths(encoder)[encoder.layers[0]]
    batches = [np.arange(s, min(s + BATCH, len(task))) for s in range(0, len(task), BATCH)]
    start = time.perf_counter()
    decoded = [read_clips(task, b, encoder.sample_rate) for b in batches]
    decoding = time.perf_counter() - start
    waves = [torch.from_numpy(w) for w, _, _ in decoded]
    valid = [torch.from_numpy(v) for _, v, _ in decoded]

    def bare(i: int) -> None:
        with torch.inference_mode():
            encoder.embed(waves[i])

    def counting(i: int) -> None:
        count_batch(encoder, waves[i], valid[i], encoder.layers, neurons)

    bare(0), counting(0)
    ratios, bare_seconds = [], 0.0
    for i in range(len(waves)):
        times = {}
        for run in (
            bare,
            counting,
            counting,
            bare,
        ):  # mirrored, so that a drifting machine cancels out
            start = time.perf_counter()
            run(i)
            times[run] = times.get(run, 0.0) + time.perf_counter() - start
        ratios.append(times[counting] / times[bare])
        bare_seconds += times[bare] / 2
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(
        f"counting / bare forward pass: median {middle:.3f} (min {low:.3f}, max {high:.3f}, {len(ratios)} batches)"
    )

    start = time.perf_counter()
    for i in range(len(waves)):
        counting(i)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    straightforward(encoder, waves, task.labels[np.concatenate(batches)], len(task.classes))
    theirs = time.perf_counter() - start
    tokens = int(count_batch(encoder, waves[0], valid[0], encoder.layers, neurons).tokens[0]) * len(
        task
    )
    channels = len(encoder.layers) * neurons
    print(f"counting / keeping activations and reducing them: {ours / theirs:.3f}")
    print(
        f"memory it would keep: {tokens * channels * 4 / 2**30:.1f} GiB for {len(task)} clips; "
        f"counts per clip: {len(task) * channels / 2**30:.2f} GiB, on disk"
    )
    start = time.perf_counter()
    collect(encoder, task, folder / "run", batch_size=BATCH)
    whole = time.perf_counter() - start
    print(
        f"collect from files / (decoding + bare passes, one after the other): {whole / (decoding + bare_seconds):.3f} "
        f"(collect {whole:.1f} s, decoding {decoding:.1f} s, bare passes {bare_seconds:.1f} s)"
    )


def memory(sounds: Path) -> None:
    """Part 4."""
    for clips in (250, 1000, 2000):
        command = [
            sys.executable,
            "-m",
            "benchmarks.collecting",
            str(sounds),
            "--one-run",
            str(clips),
        ]
        print(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(),
            flush=True,
        )


def one_run(sounds: Path, clips: int, folder: Path) -> None:
    """A whole run in this process, and its peak memory."""
    collect(
        m2d.load("random"), task_of(sounds, clips, 1.0, folder), folder / "run", batch_size=BATCH
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{clips} clips: peak resident memory {peak:.2f} GiB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--hub", help="a model's name or folder, in place of the ViT-Base")
    parser.add_argument("--rate", type=int, help="Hz, of the files that are read")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one-run", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.one_run:
            one_run(options.sounds, options.one_run, folder)
            return
        print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        if options.memory:
            memory(options.sounds)
        else:
            encoder = from_hub(options.hub) if options.hub else m2d.load("random")
            task = task_of(options.sounds, options.clips, options.seconds, folder)
            if options.rate:
                task = at_rate(task, options.rate, folder / "resampled")
            speed(encoder, task, folder)


if __name__ == "__main__":
    main()
