"""Weights and inputs that do not depend on any deep-learning library's initialisation.

Every tensor is drawn by its own parameter name from NumPy's legacy generator, whose stream is frozen, and with a
uniform distribution, which needs no logarithm: the values are the same bits on every machine and version. The
numbers of the official code in tests/data/m2d_official.npz were computed with exactly these.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = (
    "m2d_vit_base-80x608p16x16-221006-mr7"  # the official folder name, which says the input size
)
SECONDS = (1.0, 2.5, 5.0, 8.2)
SAMPLE_RATE = 16000  # Hz
REAL_CLIPS = (
    "1-187207-A-20",
    "1-39901-A-11",
)  # ESC-50; neither has digital silence, whose log is all rounding


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values for one parameter: uniform, standard deviation 0.02, norms about 1 and 0 with spread 0.1."""
    values = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) * 2 - 1
    spread = 0.02 * 3**0.5
    if name.endswith("pos_embed") or name.endswith("cls_token"):
        spread = 0.5
    elif name.endswith("bias"):
        spread = 0.1
    if "norm" in name and name.endswith("weight"):
        return (1 + 0.1 * values).astype(np.float32)
    return (spread * values).astype(np.float32)


def vit_base_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of an encoder-only ViT-Base M2D checkpoint, 80 x 608 in patches of 16 x 16."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 1 + 5 * 38, 768),
        "patch_embed.proj.weight": (768, 1, 16, 16),
        "patch_embed.proj.bias": (768,),
        "norm.weight": (768,),
        "norm.bias": (768,),
    }
    for i in range(12):
        for part, shape in {
            "norm1.weight": (768,),
            "norm1.bias": (768,),
            "attn.qkv.weight": (2304, 768),
            "attn.qkv.bias": (2304,),
            "attn.proj.weight": (768, 768),
            "attn.proj.bias": (768,),
            "norm2.weight": (768,),
            "norm2.bias": (768,),
            "mlp.fc1.weight": (3072, 768),
            "mlp.fc1.bias": (3072,),
            "mlp.fc2.weight": (768, 3072),
            "mlp.fc2.bias": (768,),
        }.items():
            shapes[f"blocks.{i}.{part}"] = shape  # type: ignore[assignment]
    return shapes


def save_checkpoint(root: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Path:
    """Write the drawn weights in the layout of the official release; returns <root>/<folder>/checkpoint-300.pth."""
    path = Path(root) / FOLDER / "checkpoint-300.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: torch.from_numpy(draw(name, shape))
        for name, shape in (shapes or vit_base_shapes()).items()
    }
    torch.save({"model": state, "epoch": 299}, path)
    return path


def noise(seconds: float) -> Tensor:
    """Uniform noise that grows from 0.01 to 0.5, float32 [1, samples]."""
    samples = round(seconds * SAMPLE_RATE)
    values = np.random.RandomState(samples).random_sample(samples) * 2 - 1
    return torch.from_numpy((values * np.linspace(0.01, 0.5, samples)).astype(np.float32))[None]


def real(folder: Path, seconds: float, clips: tuple[str, str] = REAL_CLIPS) -> Tensor:
    """A real clip cut to length, or two of them in a row where one is too short, float32 [1, samples]."""
    import soundfile

    waves = []
    for clip in clips:
        wave, rate = soundfile.read(folder / "audio" / f"{clip}.ogg", dtype="float32")
        if rate != SAMPLE_RATE:
            raise ValueError(f"{clip}: expected {SAMPLE_RATE} Hz, found {rate} Hz")
        waves.append(wave)
    return torch.from_numpy(np.concatenate(waves)[: round(seconds * SAMPLE_RATE)])[None]
