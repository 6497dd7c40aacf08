"""Reading weights from a file without running any code from it, and filling a model with them."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def _allowed() -> list[Any]:
    """What trainers save next to weights: arguments, paths, and numbers and arrays of NumPy.

    A class is also allowed under its name in other versions of Python and NumPy, and in other operating systems.
    """
    allowed: list[Any] = [argparse.Namespace, np.ndarray, np.dtype]
    allowed += [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    for module in ("pathlib", "pathlib._local"):
        allowed += [
            (pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath")
        ]
        allowed += [
            (pathlib.PureWindowsPath, f"{module}.{name}")
            for name in ("WindowsPath", "PureWindowsPath")
        ]
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    return allowed


def read_checkpoint(path: Path, prefixes: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file or a torch checkpoint, by name without `prefixes`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a checkpoint, or it needs code that is not allow-listed.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}; Install.md says where the weights come from"
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_allowed()):
                state = torch.load(path, map_location="cpu", weights_only=True)
        entries = state.get("model", state).items()
    except (
        Exception
    ) as error:  # a damaged or foreign file can raise anything that zipfile, pickle and torch know
        advice = "It may be damaged or another kind of file: download it again."
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            advice = "It holds objects other than tensors: save its tensors only, torch.save(model.state_dict(), path)."
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a checkpoint that can be read safely, expected a torch or "
            f"safetensors file of tensors. {advice} The cause: {error}"
        ) from error
    prefix = re.compile(f"^({'|'.join(map(re.escape, prefixes))})")
    return {prefix.sub("", key): value for key, value in entries if isinstance(value, Tensor)}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a model of exactly this architecture, as float32; the rest of the file is ignored.

    Raises:
        ValueError: tensors missing, of another shape, integers where weights are expected, or not finite; named.
    """
    expected = model.state_dict()
    weights = {key: tensors[key] for key in expected if key in tensors}
    for key, value in weights.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(
                f"{path}: {key} holds integers, or values that are not finite; expected the weights of a model"
            )
    try:
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:  # torch names what is missing or of another shape
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
