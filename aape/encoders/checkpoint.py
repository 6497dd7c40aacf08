"""Reading weights from a file without running any code from it, and filling a model with them."""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def read_checkpoint(path: Path, prefixes: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file or a torch checkpoint, by name without `prefixes`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a checkpoint, or it needs code that is not allow-listed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; Install.md says where the weights come from")
    try:
        # Full M2D checkpoints carry the training script's arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]):
            safe = path.suffix == ".safetensors"
            state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        tensors = {key: value for key, value in state.get("model", state).items() if isinstance(value, Tensor)}
    except Exception as error:  # a damaged or foreign file can raise anything that zipfile, pickle and torch know
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a checkpoint that can be read safely, expected a torch or "
            f"safetensors file of tensors; fetch it again. {str(error)[:300]}"
        ) from error
    for key, value in tensors.items():
        if value.is_sparse or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path}: {key} says {list(value.shape)}, more than the file holds of it")
    return {re.sub(f"^({'|'.join(map(re.escape, prefixes))})", "", key): value for key, value in tensors.items()}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a model of exactly this architecture, as float32; what else the file holds is left out.

    Raises:
        ValueError: tensors missing, of another shape, of whole numbers where weights are expected, or not finite; named.
    """
    wanted = model.state_dict()
    held = {key: tensors[key] for key in wanted if key in tensors}
    for key, value in held.items():
        if wanted[key].is_floating_point() and not (value.is_floating_point() and value.isfinite().all()):
            raise ValueError(f"{path}: {key} holds whole numbers, or values that are not finite; fetch it again")
    try:
        model.load_state_dict({key: value.float() for key, value in held.items()})
    except RuntimeError as error:  # torch names what is missing or of another shape
        raise ValueError(f"{path}: {' '.join(str(error).split())[:500]}") from error
