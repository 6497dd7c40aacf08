"""The counting of active tokens per clip while a batch goes through.

A neuron is *active* at a token when its activation is > 0. Counts are integers per clip, so everything later
(conditional probabilities, permutations, subsets) is exact and needs no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aape.encoder import Encoder, hooked


def count_active(output: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """How many tokens of each clip are active, how many of those that a mask marks, and the sum of the activations.

    On the CPU each clip is compared while it is in the cache, and eight neighbouring booleans are added as the bytes of
    one 64-bit word, in blocks of 255 tokens so that no byte overflows into the next: twice as fast as comparing the
    whole batch and ten times as fast as torch's sum of booleans.

    Args:
        output: activations [batch, tokens, neurons].
        mask: bool [batch, tokens], or None.

    Returns:
        int32 [batch, neurons], the same over marked tokens (None without a mask), and float32 [batch, neurons].
    """
    batch, _, neurons = output.shape
    if output.device.type != "cpu" or output.dtype not in (torch.float32, torch.float64):
        active = output > 0
        marked = None if mask is None else (active & mask[:, :, None]).sum(dim=1, dtype=torch.int32)
        return active.sum(dim=1, dtype=torch.int32), marked, output.sum(dim=1, dtype=torch.float32)
    values = output.detach().numpy()
    counts = np.zeros((batch, neurons), dtype=np.int32)
    marked_counts = None if mask is None else np.zeros_like(counts)
    sums = np.zeros((batch, neurons), dtype=np.float32)
    for clip in range(batch):
        # [tokens, neurons], contiguous whatever the strides of the output
        is_active = np.greater(values[clip], 0, order="C")
        counts[clip] = _column_sums(is_active)
        sums[clip] = np.add.reduce(values[clip], axis=0)
        if marked_counts is not None and mask is not None:
            marked_counts[clip] = _column_sums(is_active[mask[clip].numpy()])
    marked = None if marked_counts is None else torch.from_numpy(marked_counts)
    return torch.from_numpy(counts), marked, torch.from_numpy(sums)


def _column_sums(booleans: np.ndarray) -> np.ndarray:
    """Sum booleans [tokens, neurons] over tokens; see `count_active`."""
    if booleans.shape[1] % 8:
        return booleans.sum(axis=0, dtype=np.int32)
    words = booleans.view(np.int64)  # [tokens, neurons / 8]
    total = np.zeros(booleans.shape[1], dtype=np.int32)
    for start in range(0, len(words), 255):
        total += np.add.reduce(words[start : start + 255], axis=0).view(np.uint8)
    return total


@dataclass
class BatchCounts:
    """What one batch left, on the CPU.

    Attributes:
        embeddings: float32 [batch, dim].
        counts: active tokens, int32 [batch, layers, neurons].
        means: mean activation over the clip's tokens, float32 [batch, layers, neurons].
        tokens, padding_tokens: int64 [batch].
        padding: active tokens among those of padding, int32 [batch, layers, neurons]; None where there are none.
    """

    embeddings: Tensor
    counts: Tensor
    means: Tensor
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
        raise ValueError(f"{encoder.name}: layer {silent[0]!r} was never called by embed(); check the pattern")
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
    sums = torch.zeros(counts.shape, device=on)
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
        call = calls[layer]
        calls[layer] += 1
        values = output.reshape(batch, -1, neurons)
        if masks and (call >= len(masks) or masks[call].shape[1] != values.shape[1]):
            raise ValueError(
                f"{encoder.name}: padding_masks speaks of {len(masks)} calls, call {call} of layer "
                f"{layers[layer]!r} has {values.shape[1]} tokens; make padding_masks agree with embed"
            )
        mask = masks[call] if masks and padded[call] else None
        active, marked, total = count_active(values, mask)
        counts[:, layer] += active
        sums[:, layer] += total
        if padding is not None and marked is not None:
            padding[:, layer] += marked
        if layer == 0:
            tokens += values.shape[1]
            if mask is not None:
                padding_tokens += mask.sum(dim=1).cpu()

    with hooked(encoder, layers, see), torch.inference_mode():
        embeddings = encoder.embed(wave)
    if embeddings.ndim != 2 or embeddings.shape[0] != batch:
        raise ValueError(f"{encoder.name}: embed gave {tuple(embeddings.shape)}, expected [batch={batch}, dim]")
    return BatchCounts(
        embeddings=embeddings.float().cpu(),
        counts=counts.cpu(),
        means=sums.cpu() / tokens[:, None, None],
        tokens=tokens,
        padding=None if padding is None else padding.cpu(),
        padding_tokens=padding_tokens,
    )
