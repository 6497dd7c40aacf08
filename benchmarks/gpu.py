"""How well the collecting pass keeps a device at work: clips per second, busy share, and the ratio to bare passes.

    python -m benchmarks.gpu FOLDER [--device cuda] [--clips 512] [--seconds 5] [--batch 64] [--hub NAME_OR_FOLDER]

FOLDER holds sounds, in any depth. Bare passes run on batches that lie on the device already; `collect` reads, decodes,
copies, counts and writes as well. The busy share is the time between the start and the end of each batch's forward pass
on the device (CUDA events; wall time elsewhere) over the time that `collect` takes. It has run on CPUs only: the code is
the same, and the numbers of a GPU are for whoever has one.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from aape.collecting.passing import collect
from aape.encoders import m2d
from aape.encoders.encoder import Encoder, choose_device
from aape.encoders.hub import from_hub
from aape.sounds.task import read_clips
from benchmarks.collecting import task_of


class Clock:
    """The time that an encoder's forward passes take on its device, s."""

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        self._cuda, self._spans = device.type == "cuda", []
        self.encoder = dataclasses.replace(encoder, embed=self._timed(encoder.embed))

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _timed(self, embed):
        def run(wave: torch.Tensor) -> torch.Tensor:
            start = self._now()
            embedding = embed(wave)
            self._spans.append((start, self._now()))
            return embedding

        return run

    def seconds(self) -> float:
        """Of all passes since the last call; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            spans = [start.elapsed_time(end) / 1000 for start, end in self._spans]
        else:
            spans = [end - start for start, end in self._spans]
        self._spans.clear()
        return sum(spans)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--hub", help="a model's name or folder, in place of a ViT-Base of M2D's shape"
    )
    options = parser.parse_args()
    device = choose_device(options.device)
    encoder = from_hub(options.hub) if options.hub else m2d.load("random")
    clock = Clock(encoder.to(device), device)
    with tempfile.TemporaryDirectory() as name:
        os.environ["AAPE_CACHE"] = f"{name}/cache"
        task = task_of(options.sounds, options.clips, options.seconds, Path(name))
        starts = range(0, len(task), options.batch)
        batches = [np.arange(s, min(s + options.batch, len(task))) for s in starts]
        wave = torch.from_numpy(read_clips(task, batches[0], encoder.sample_rate)[0]).to(device)
        with torch.inference_mode():
            clock.encoder.embed(wave)
            clock.seconds()  # warm
            for batch in batches:
                clock.encoder.embed(wave[: len(batch)])
        bare = clock.seconds()
        start = time.perf_counter()
        collect(
            clock.encoder, task, Path(name) / "run", batch_size=options.batch, device=str(device)
        )
        whole = time.perf_counter() - start
        busy = clock.seconds()
    what = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{what}: {len(task)} clips of {options.seconds:g} s in batches of {options.batch}, {encoder.name}"
    )
    print(f"bare passes {len(task) / bare:.1f} clips/s, collect {len(task) / whole:.1f} clips/s")
    print(
        f"collect / bare passes: {whole / bare:.3f}; the device works {busy / whole:.1%} of that time"
    )


if __name__ == "__main__":
    main()
