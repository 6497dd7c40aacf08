"""Encoders from two published contracts of audio benchmarks: HEAR and X-ARES."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import nn

from aape.encoders.encoder import Encoder, from_module, is_activation


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
        AttributeError: no such functions, or a model of another framework. ValueError: activations must be chosen.
    """
    embed, model = module.get_scene_embeddings, module.load_model(*filter(None, [weights]))
    return from_module(
        model,
        activations=activations or _sole_place(model),
        embed=lambda wave: embed(wave, model),
        sample_rate=int(model.sample_rate),
        clip_seconds=clip_seconds,
        name=name or module.__name__,
        weights={"source": f"{module.__name__}, HEAR", "file": weights},
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
        AttributeError: not of the contract. ValueError: activations must be chosen.
    """
    title, rate = type(model).__name__, int(model.sampling_rate)
    encoder = from_module(
        model,
        activations=activations or _sole_place(model),
        embed=lambda wave: model(wave).mean(dim=1),
        sample_rate=rate,
        clip_seconds=clip_seconds,
        name=name or title,
        samples_per_token=float(model.hop_size_in_ms) * rate / 1000,
        weights={"source": f"{type(model).__module__}.{title}, X-ARES"},
    )
    try:
        encoder.token_grid(round(clip_seconds * rate))  # type: ignore[misc]
    except ValueError:  # patches or class tokens: the hop is that of the output, not of the tokens
        return replace(encoder, padding_masks=None, token_grid=None, cell_seconds=None)
    return encoder


def _sole_place(model: nn.Module) -> str:
    """The glob of a model's activation functions, where they repeat over its blocks in one place only."""
    names = [name for name, m in model.named_modules() if is_activation(m)]
    places = Counter(re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in names)
    repeated = [place for place, n in places.items() if n > 1]
    if len(repeated) != 1:
        found = ", ".join(f"{place!r} ({n})" for place, n in places.items()) or "none that is a module of its own"
        raise ValueError(f"{type(model).__name__}: pass activations=, a glob. Its activation functions: {found}")
    return repeated[0]
