"""Hooks on an encoder's activations, and the counting of active tokens per clip while a batch goes through.

A neuron is *active* at a token when its activation is > 0. Counts are integers per clip, so everything later
(conditional probabilities, permutations, subsets) is exact and needs no second pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aape.encoders.base import Encoder


@contextlib.contextmanager
def hooked(encoder: Encoder, layers: Sequence[str], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While the context lasts, call `see(layer index, output [batch, ..., neurons])` for every pass of a layer.

    Leaves no hook behind, whatever ends the context.
    """
    handles = []
    try:
        for index, name in enumerate(layers):

            def hook(
                _module: object, _inputs: object, output: object, index: int = index, name: str = name
            ) -> None:
                see(index, _tensor_of(output, name))

            handles.append(encoder.activations[name].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor_of(output: object, layer: str) -> Tensor:
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor) or first.ndim < 2 or not first.is_floating_point():
        found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"layer {layer!r} gave {found}, expected a float tensor [batch, ..., neurons]")
    return first


def count_active(active: Tensor) -> Tensor:
    """Sum booleans [batch, tokens, neurons] over tokens -> int32 [batch, neurons].

    On the CPU eight neighbouring booleans are added as the bytes of one 64-bit word, in blocks of 255 tokens so that
    no byte overflows into the next: three to five times faster than torch's sum of booleans.
    """
    batch, tokens, neurons = active.shape
    if active.device.type != "cpu" or neurons % 8 or not active.is_contiguous():
        return active.sum(dim=1, dtype=torch.int32)
    words = active.view(torch.int64)  # [batch, tokens, neurons / 8]
    counts = torch.zeros(batch, neurons, dtype=torch.int32)
    for start in range(0, tokens, 255):
        counts += words[:, start : start + 255].sum(dim=1).view(torch.uint8)
    return counts


@dataclass
class BatchCounts:
    """What one batch left: embeddings [batch, dim] float32, counts and padding [batch, layers, neurons] int32, and
    tokens, padding tokens [batch] int64, all on the CPU. `padding` is None where no token of the batch was padding."""

    embeddings: Tensor
    counts: Tensor
    tokens: Tensor
    padding: Tensor | None
    padding_tokens: Tensor


def widths(encoder: Encoder) -> dict[str, int]:
    """Neurons of each layer, found by encoding `clip_seconds` of silence.

    Raises:
        ValueError: a layer was not called, or its output is not [batch, ..., neurons].
    """
    seen: dict[int, int] = {}

    def see(layer: int, output: Tensor) -> None:
        if output.shape[0] != 2:
            raise ValueError(
                f"layer {encoder.layers[layer]!r} gave {tuple(output.shape)} for a batch of 2 clips, expected "
                "[2, ..., neurons]: its first axis is not the batch (windowed attention?), so clips cannot be told apart"
            )
        seen[layer] = output.shape[-1]

    samples = round(encoder.clip_seconds * encoder.sample_rate)
    with hooked(encoder, encoder.layers, see), torch.inference_mode():
        encoder.embed(torch.zeros(2, samples, device=encoder.device))
    silent = [name for i, name in enumerate(encoder.layers) if i not in seen]
    if silent:
        raise ValueError(
            f"{encoder.name}: layer {silent[0]!r} was never called by embed(); check the pattern"
        )
    return {name: seen[i] for i, name in enumerate(encoder.layers)}


def common_width(encoder: Encoder, layers: Sequence[str]) -> int:
    """Neurons per layer, which must be equal: the artifacts are one tensor [layers, neurons, classes].

    Raises:
        ValueError: layers of different width, named; an unknown layer.
    """
    by_layer = widths(encoder)
    unknown = [name for name in layers if name not in by_layer]
    if unknown:
        raise ValueError(f"{encoder.name} has no layer {unknown[0]!r}; its layers are {', '.join(by_layer)}")
    found = {by_layer[name] for name in layers}
    if len(found) != 1:
        raise ValueError(
            f"{encoder.name}: layers of different width cannot share one tensor [layers, neurons, classes]: "
            + ", ".join(f"{n} has {by_layer[n]}" for n in layers)
            + ". Choose layers of one width (layers=...), one collection for each."
        )
    return found.pop()


def count_batch(
    encoder: Encoder, wave: Tensor, valid_samples: Tensor, layers: Sequence[str], neurons: int
) -> BatchCounts:
    """Encode a batch and count active tokens per clip, layer and neuron.

    Args:
        wave: [batch, samples] float32.
        valid_samples: [batch], how many samples of each row are sound; zero padding behind.
        layers: names of the layers to count.
        neurons: their width.
    """
    batch, samples = wave.shape
    masks = encoder.padding_masks(valid_samples, samples) if encoder.padding_masks else []
    padded = [bool(m.any()) for m in masks]
    on = wave.device
    masks = [m.to(on) for m in masks]
    counts = torch.zeros(batch, len(layers), neurons, dtype=torch.int32, device=on)
    padding = torch.zeros_like(counts) if any(padded) else None
    calls = [0] * len(layers)
    tokens = torch.zeros(batch, dtype=torch.int64)
    padding_tokens = torch.zeros(batch, dtype=torch.int64)

    def see(layer: int, output: Tensor) -> None:
        nonlocal tokens, padding_tokens
        if output.shape[0] != batch or output.shape[-1] != neurons:
            raise ValueError(
                f"layer {layers[layer]!r} gave {tuple(output.shape)}, expected [{batch}, ..., {neurons}] "
                "([batch, ..., neurons])"
            )
        active = (output > 0).reshape(batch, -1, neurons)
        counts[:, layer] += count_active(active)
        call = calls[layer]
        calls[layer] += 1
        if layer == 0:
            tokens += active.shape[1]
        if masks:
            if call >= len(masks) or masks[call].shape[1] != active.shape[1]:
                raise ValueError(
                    f"{encoder.name}: padding_masks speaks of {len(masks)} calls, call {call} of layer "
                    f"{layers[layer]!r} has {active.shape[1]} tokens; make padding_masks agree with embed"
                )
            if padded[call]:
                assert padding is not None  # set above whenever any mask is
                padding[:, layer] += count_active(active & masks[call][:, :, None])
                if layer == 0:
                    padding_tokens += masks[call].sum(dim=1).cpu()

    with hooked(encoder, layers, see), torch.inference_mode():
        embeddings = encoder.embed(wave)
    if embeddings.ndim != 2 or embeddings.shape[0] != batch:
        raise ValueError(
            f"{encoder.name}: embed gave {tuple(embeddings.shape)}, expected [batch={batch}, dim]"
        )
    return BatchCounts(
        embeddings.float().cpu(),
        counts.cpu(),
        tokens,
        None if padding is None else padding.cpu(),
        padding_tokens,
    )
