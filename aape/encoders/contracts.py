"""Encoders from two published contracts of audio benchmarks: HEAR and X-ARES."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch import Tensor, nn

from aape.encoder import Encoder, from_module, is_activation


def from_hear(
    module: Any, *, weights: str = "", activations: str | None = None, clip_seconds: float = 10.0, name: str = ""
) -> Encoder:
    """A model of the HEAR benchmark (Turian et al. 2022, arXiv 2203.03022): its module with `load_model` and
    `get_scene_embeddings`, in PyTorch.

    Args:
        module: e.g. `import hear21passt.base as module`.
        weights: what `load_model` is given; nothing if empty.
        activations: as in `from_module`; None where the model has activation functions of one kind of place only.
        clip_seconds: the longest wave, s.
        name: what tables call it; the module's name.

    Raises:
        ValueError: no such functions, another framework, or activations that must be chosen.
    """
    lacking = [f for f in ("load_model", "get_scene_embeddings") if not callable(getattr(module, f, None))]
    if lacking:
        raise ValueError(f"{module!r} has no {lacking[0]}: expected a module of HEAR's common API")
    model: Any = module.load_model(weights) if weights else module.load_model()
    rate = int(model.sample_rate)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{module!r}: load_model gave a {type(model).__name__}, expected a torch module")
    return from_module(
        model,
        activations=activations or _sole_place(model),
        embed=lambda wave: module.get_scene_embeddings(wave, model),
        sample_rate=rate,
        clip_seconds=clip_seconds,
        name=name or getattr(module, "__name__", type(model).__name__),
        weights={"source": f"{getattr(module, '__name__', module)}, HEAR", "file": weights},
    )


def from_xares(model: Any, *, activations: str | None = None, clip_seconds: float = 10.0, name: str = "") -> Encoder:
    """An encoder object of X-ARES (Zhang et al. 2025, arXiv 2505.16369): wave [batch, samples] -> [batch, time, dim], with
    `sampling_rate` and `hop_size_in_ms`. The clip embedding is the mean over time.

    Args:
        model: the object, a torch module.
        activations: as in `from_module`; None where the model has activation functions of one kind of place only.
        clip_seconds: the longest wave, s.
        name: what tables call it; the class's name.

    Raises:
        ValueError: not of the contract, or activations that must be chosen.
    """
    lacking = [a for a in ("sampling_rate", "hop_size_in_ms") if not hasattr(model, a)]
    if lacking:
        raise ValueError(f"{type(model).__name__} has no {lacking[0]}: expected an encoder of X-ARES")
    rate, hop = int(model.sampling_rate), float(model.hop_size_in_ms)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{type(model).__name__} is no torch module: expected an encoder of X-ARES")

    def embed(wave: Tensor) -> Tensor:
        return model(wave).mean(dim=1)

    options: dict[str, Any] = {
        "activations": activations or _sole_place(model),
        "embed": embed,
        "sample_rate": rate,
        "clip_seconds": clip_seconds,
        "name": name or type(model).__name__,
        "weights": {"source": f"{type(model).__module__}.{type(model).__name__}, X-ARES"},
    }
    encoder = from_module(model, **options, samples_per_token=hop * rate / 1000)
    try:
        encoder.token_grid(round(clip_seconds * rate))  # type: ignore[misc]
    except ValueError:  # patches or class tokens: the hop is that of the output, not of the tokens
        return from_module(model, **options)
    return encoder


def _sole_place(model: nn.Module) -> str:
    """The glob of a model's activation functions, where they repeat over its blocks in one place only."""
    names = [name for name, m in model.named_modules() if is_activation(m)]
    places = Counter(re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in names)
    repeated = [place for place, n in places.items() if n > 1]
    if len(repeated) != 1:
        found = ", ".join(f"{place!r} ({n})" for place, n in places.items()) or "none that is a module of its own"
        raise ValueError(
            f"{type(model).__name__}: pass activations=, the glob of the neurons. Its activation functions: {found}"
        )
    return repeated[0]
