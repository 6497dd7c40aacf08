"""The collecting pass at full width over many clips: memory, disk and speed of what it writes and reads back.

    python -m benchmarks.full_size 2500 10000

A toy encoder as wide as ViT-Base (12 x 3072 neurons), which costs almost nothing, runs on so many clips of 0.1 s, in one
process per run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

from aape.collecting.passing import collect
from aape.encoders.module import from_module
from aape.sounds.loading import from_metadata
from benchmarks.chance import anonymous_gib


class Wide(nn.Module):
    """Two tokens a clip through 12 layers of 3072 neurons that cost next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ModuleList(nn.ReLU() for _ in range(12))
        self.register_buffer(
            "mix", torch.randn(50, 3072, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """[batch, 100] -> [batch, 64]."""
        x = wave.unflatten(1, (2, 50)) @ self.mix
        for act in self.act:
            act(x)
        return x.mean(dim=1)[:, :64]


def disk(clips: int, folder: Path) -> None:
    """One size, in this process."""
    (folder / "audio").mkdir()
    rng, lines = np.random.default_rng(0), ["file_name,label,split"]
    for i in range(clips):
        soundfile.write(folder / "audio" / f"{i}.wav", rng.normal(0, 0.1, 100), 1000)
        lines.append(f"{i}.wav,c{i % 50},{'test' if i // 50 % 2 else 'train'}")
    (folder / "clips.csv").write_text("\n".join(lines))
    task = from_metadata(folder / "clips.csv", folder / "audio", clip_seconds=0.1, name="wide")
    module = Wide()
    encoder = from_module(
        module,
        activations="act.*",
        embed=module,
        sample_rate=1000,
        clip_seconds=0.1,
        name="wide",
        samples_per_token=50,
    )
    start = time.perf_counter()
    artifacts = collect(encoder, task, folder / "run", batch_size=64)
    seconds = time.perf_counter() - start
    size = sum(p.stat().st_size for p in artifacts.path.glob("clip_*.npy"))
    start = time.perf_counter()
    total = artifacts.probabilities().sum() + sum(
        float(artifacts.means[i : i + 512].sum(dtype=np.float64)) for i in range(0, clips, 512)
    )
    reading = time.perf_counter() - start
    print(
        f"{clips} clips: {size / 1e9:.2f} GB of counts and means, collected in {seconds:.0f} s "
        f"({size / 1e6 / seconds:.0f} MB/s), read back in {reading:.1f} s ({size / 1e6 / reading:.0f} MB/s, "
        f"sum {total:.6g}), peak memory of its own {anonymous_gib():.2f} GiB"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=int, nargs="+")
    sizes = parser.parse_args().clips
    if len(sizes) > 1:
        for clips in sizes:
            subprocess.run([sys.executable, "-m", "benchmarks.full_size", str(clips)], check=True)
        return
    with tempfile.TemporaryDirectory() as name:
        os.environ["AAPE_CACHE"] = f"{name}/cache"
        disk(sizes[0], Path(name))


if __name__ == "__main__":
    main()
