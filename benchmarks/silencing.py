"""Silencing five sets of neurons: the staged engine against a straightforward loop over full passes.

    python benchmarks/silencing.py ../shared/data/esc50 [--clips 80] [--threads 2]

ViT-Base with random weights on real ESC-50 clips of 5 s. The loop reads the audio files and runs the whole encoder
once for each set, with the same batches and the same hooks; the engine reads each clip once. Sets are random, with 24
neurons spread over the layers from the starting one on. Prints the ratio of times and the largest difference of
embeddings, without and with the intact encoder as a sixth run of both (the "before" of every comparison). Loop and
engine take turns, so that a busy machine slows both; the CPU time of one thread (--threads 1) is the surest figure
where others use the machine too.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that it also runs where aape is not installed

from aape.causal.silencing import NeuronSet, embed_with_sets, neuron_set, silenced
from aape.encoders import m2d
from aape.encoders.encoder import Encoder
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task, prefetched, read_clips


def random_sets(
    encoder: Encoder, starts: list[int], seed: int = 0, size: int = 24
) -> list[NeuronSet | None]:
    """One set for each starting layer; a neuron of that layer is in it."""
    rng = np.random.default_rng(seed)
    depth = len(encoder.layers)
    sets: list[NeuronSet | None] = []
    for start in starts:
        layers = np.sort(np.concatenate([[start], rng.integers(start, depth, size - 1)]))
        neurons = rng.choice(3072, size, replace=False)
        sets.append(neuron_set(encoder, np.stack([layers, neurons], axis=1)))
    return sets


def loop(
    encoder: Encoder, task: Task, batches: list[np.ndarray], sets: list[NeuronSet | None]
) -> torch.Tensor:
    """The straightforward way: [sets, clips, dim]."""
    embeddings = []
    with torch.inference_mode():
        for change in sets:
            with nullcontext() if change is None else silenced(encoder, change.neurons):
                of_set = [
                    encoder.embed(torch.from_numpy(read_clips(task, batch, encoder.sample_rate)[0]))
                    for batch in batches
                ]
            embeddings.append(torch.cat(of_set))
    return torch.stack(embeddings)


def engine(
    encoder: Encoder, task: Task, batches: list[np.ndarray], sets: list[NeuronSet | None]
) -> torch.Tensor:
    """Ours: [sets, clips, dim]."""
    waves = (
        torch.from_numpy(wave) for wave, _, _ in prefetched(task, batches, encoder.sample_rate)
    )
    return torch.cat([embed_with_sets(encoder, wave, sets) for wave in waves], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("esc50", type=Path)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = m2d.load("random", name="ViT-Base, random weights")
    task = from_metadata(
        options.esc50 / "meta/esc50.csv", options.esc50 / "audio", clip_seconds=5.0, name="esc50"
    )
    clips = np.arange(0, len(task), len(task) // options.clips)[: options.clips]
    batches = [clips[i : i + options.batch] for i in range(0, len(clips), options.batch)]
    print(
        f"{len(clips)} clips, batches of {options.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    engine(encoder, task, batches[:1], random_sets(encoder, [0]))  # warm up
    print(
        "start layers, (+ intact)        wall s: loop  engine  ratio    CPU s: loop  engine  ratio   largest difference"
    )
    for starts in ([3] * 5, [9] * 5, [9, 9, 10, 10, 11], [9, 10, 10, 11, 11], [11] * 5):
        for before in (False, True):
            sets = random_sets(encoder, starts) + ([None] if before else [])
            compare(encoder, task, batches, sets, f"{starts}{' + intact' if before else ''}")


def compare(
    encoder: Encoder, task: Task, batches: list[np.ndarray], sets: list[NeuronSet | None], name: str
) -> None:
    """Time both over the same batches, in turns, and print a row."""
    wall, cpu = {"loop": 0.0, "engine": 0.0}, {"loop": 0.0, "engine": 0.0}
    largest, scale = 0.0, 0.0
    for batch in batches:
        found = {}
        for way, function in (("loop", loop), ("engine", engine)):
            started = time.perf_counter(), time.process_time()
            found[way] = function(encoder, task, [batch], sets)
            wall[way] += time.perf_counter() - started[0]
            cpu[way] += time.process_time() - started[1]
        largest = max(largest, float((found["loop"] - found["engine"]).abs().max()))
        scale = max(scale, float(found["loop"].abs().max()))
    print(
        f"{name:<32}{wall['loop']:12.1f} {wall['engine']:7.1f} {wall['engine'] / wall['loop']:6.3f}"
        f"{cpu['loop']:15.1f} {cpu['engine']:7.1f} {cpu['engine'] / cpu['loop']:6.3f}"
        f"   {largest:.1e} of {scale:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
