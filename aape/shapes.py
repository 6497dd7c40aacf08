"""What must hold of an encoder before anything is counted, and is found by dry runs on noise: widths and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aape.encoder import Encoder, hooked, noise


def _look(encoder: Encoder, samples: int) -> dict[str, list[tuple[int, int]]]:
    """(Tokens, width) of each call of each layer, on two waves of noise."""
    seen: dict[str, list[tuple[int, int]]] = {name: [] for name in encoder.layers}

    def see(layer: int, output: Tensor) -> None:
        if output.shape[0] != 2:
            raise ValueError(
                f"layer {encoder.layers[layer]!r} gave {tuple(output.shape)} for a batch of 2 clips, expected "
                "[2, ..., neurons]: its first axis is not the batch (windowed attention?), so clips cannot be told apart"
            )
        seen[encoder.layers[layer]].append((output[0, ..., 0].numel(), output.shape[-1]))

    with hooked(encoder, encoder.layers, see):
        embedded(encoder, noise(2, samples).to(encoder.device))
    return seen


@torch.inference_mode()
def embedded(encoder: Encoder, wave: Tensor) -> Tensor:
    """The clip embeddings [batch, dim], checked to be that."""
    found = encoder.embed(wave)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(wave):
        what = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        advice = (
            "" if isinstance(found, Tensor) else ": a model's output? Take its tokens: .last_hidden_state.mean(dim=1)"
        )
        raise ValueError(f"{encoder.name}: embed gave {what}, expected a tensor [{len(wave)} clips, dim]{advice}")
    return found


def shapes(encoder: Encoder) -> dict[str, list[tuple[int, int]]]:
    """(Tokens, neurons) of each call of each layer, from dry runs on noise.

    Raises:
        ValueError: a layer was not called, or its output is not [batch, ..., neurons].
    """
    seen = _look(encoder, encoder.dry_samples)
    if silent := [name for name in encoder.layers if not seen[name]]:
        raise ValueError(f"{encoder.name}: layer {silent[0]!r} was never called by embed(); check the pattern")
    try:
        shorter = _look(encoder, encoder.dry_samples // 2)
    except (RuntimeError, ValueError, AssertionError, IndexError):
        shorter = seen  # embed takes waves of one length only: nothing to compare
    for name, calls in seen.items():
        found = sorted({width for _, width in [*calls, *shorter[name]]})
        if len(found) > 1:
            raise ValueError(
                f"{encoder.name}: the last axis of layer {name!r} has {' or '.join(map(str, found))} channels, by the "
                "length of the wave: that is time, not neurons. Expected [batch, ..., neurons]: transpose, or leave it out"
            )
    return seen


def widths(encoder: Encoder) -> dict[str, int]:
    """Neurons of each layer. Raises ValueError where `shapes` does."""
    return {name: calls[0][1] for name, calls in shapes(encoder).items()}


def common_width(encoder: Encoder, layers: Sequence[str]) -> int:
    """Neurons per layer, which must be equal: the artifacts are one tensor [layers, neurons, classes].

    Raises:
        ValueError: layers of different width or with different tokens, named; an unknown layer; see `shapes`.
    """
    by_layer = shapes(encoder)
    if unknown := [name for name in layers if name not in by_layer]:
        raise ValueError(f"{encoder.name} has no layer {unknown[0]!r}; its layers are {', '.join(by_layer)}")
    width = {name: by_layer[name][0][1] for name in layers}
    tokens = {name: [n for n, _ in by_layer[name]] for name in layers}
    if len(set(width.values())) != 1:
        raise ValueError(
            f"{encoder.name}: layers of different width cannot share one tensor [layers, neurons, classes]: "
            + ", ".join(f"{n} has {width[n]}" for n in layers)
            + ". Choose layers of one width (layers=...), one collection for each."
        )
    same_tokens(encoder, tokens)
    return width[layers[0]]


def same_tokens(encoder: Encoder, tokens: Mapping[str, list[int]]) -> None:
    """Refuse layers that see different tokens: a share of tokens would be of another whole in each."""
    groups: dict[str, list[str]] = {}
    for name, calls in tokens.items():
        groups.setdefault(" + ".join(map(str, calls)), []).append(name)
    if len(groups) > 1:
        found = "; ".join(f"{calls} tokens in {', '.join(names)}" for calls, names in groups.items())
        raise ValueError(
            f"{encoder.name}: its layers see different tokens of one clip ({found}; + between calls). Choose layers of "
            "one kind (layers=[...]), one collection for each."
        )
