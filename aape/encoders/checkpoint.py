"""Reading weights from a file without running any code from it, and filling a model with them."""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            # Full M2D checkpoints carry the training script's arguments beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a checkpoint that can be read safely: {str(error)[:300]} "
            "Expected a torch or safetensors file of tensors; a damaged download should be fetched again."
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a mapping of names to tensors")
    tensors = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            for prefix in prefixes:
                key = key.removeprefix(prefix)
            if value.is_sparse or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(
                    f"{path}: {key} says {list(value.shape)}, of which the file holds "
                    f"{0 if value.is_sparse else value.untyped_storage().nbytes():,} bytes: no checkpoint that was trained"
                )
            tensors[key] = value
    return tensors


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a model of exactly this architecture, as float32; what else the file holds is left out.

    Raises:
        ValueError: tensors missing, of another shape, of whole numbers where weights are expected, or not finite; named.
    """
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    odd = [k for k in wanted if k in tensors and tensors[k].shape != wanted[k].shape]
    if missing or odd:
        found = f"; {odd[0]} is {tuple(tensors[odd[0]].shape)}, expected {tuple(wanted[odd[0]].shape)}" if odd else ""
        raise ValueError(
            f"{path} does not hold a whole {type(model).__name__} of this shape: {len(missing)} tensors missing "
            f"({', '.join(missing[:3])}){found}"
        )
    for key, value in wanted.items():
        if value.is_floating_point() and not (tensors[key].is_floating_point() and tensors[key].isfinite().all()):
            what = "values that are not finite" if tensors[key].is_floating_point() else f"{tensors[key].dtype}"
            raise ValueError(f"{path}: {key} holds {what}, expected weights; a damaged file should be fetched again")
    model.load_state_dict({k: tensors[k].float() for k in wanted})
