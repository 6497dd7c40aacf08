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

from aape.encoders.dry_run import embedded, same_tokens
from aape.encoders.encoder import Encoder, hooked


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
    if output.device.type != "cpu" or output.dtype not in (torch.float32, torch.float64):
        active = output > 0
        marked = None if mask is None else (active & mask[:, :, None]).sum(dim=1, dtype=torch.int32)
        return active.sum(dim=1, dtype=torch.int32), marked, output.sum(dim=1, dtype=torch.float32)
    values = output.detach().numpy()
    counts = np.empty((values.shape[0], values.shape[2]), dtype=np.int32)
    sums, in_mask = np.empty(counts.shape, dtype=np.float32), np.empty_like(counts)
    for clip, tokens in enumerate(values):  # [tokens, neurons]
        is_active = np.greater(tokens, 0, order="C")  # contiguous whatever the strides of the output
        counts[clip] = _column_sums(is_active)
        sums[clip] = np.add.reduce(tokens, axis=0)
        if mask is not None:
            in_mask[clip] = _column_sums(is_active[mask[clip].numpy()])
    return torch.from_numpy(counts), None if mask is None else torch.from_numpy(in_mask), torch.from_numpy(sums)


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
        means: mean activation over the clip's tokens, float32 [batch, layers, neurons]; not finite where an activation
            was not, which counts as inactive.
        tokens, padding_tokens: int64 [batch].
        padding: active tokens among those of padding, int32 [batch, layers, neurons]; None where there are none.
    """

    embeddings: Tensor
    counts: Tensor
    means: Tensor
    tokens: Tensor
    padding: Tensor | None
    padding_tokens: Tensor


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
    masks = encoder.padding_masks(valid_samples.cpu(), samples) if encoder.padding_masks else []
    marks = [m.to(wave.device) if m.any() else None for m in masks]
    counts = torch.zeros(batch, len(layers), neurons, dtype=torch.int32, device=wave.device)
    sums = torch.zeros(counts.shape, device=wave.device)
    padding = torch.zeros_like(counts) if any(m is not None for m in marks) else None
    calls: dict[str, list[int]] = {name: [] for name in layers}  # tokens of each call

    def see(layer: int, output: Tensor) -> None:
        if output.shape[0] != batch or output.shape[-1] != neurons:
            raise ValueError(f"layer {layers[layer]!r} gave {tuple(output.shape)}, expected [{batch}, ..., {neurons}]")
        values = output.reshape(batch, -1, neurons)
        made = calls[layers[layer]]
        made.append(values.shape[1])
        agree = made == [m.shape[1] for m in masks[: len(made)]]
        active, marked, total = count_active(values, marks[len(made) - 1] if agree else None)
        counts[:, layer] += active
        sums[:, layer] += total
        if padding is not None and marked is not None:
            padding[:, layer] += marked

    with hooked(encoder, layers, see):
        embeddings = embedded(encoder, wave).float()
    same_tokens(encoder, calls)
    made = calls[layers[0]]
    if masks and (speaks := [m.shape[1] for m in masks]) != made:
        raise ValueError(f"{encoder.name}: padding_masks speaks of {speaks} tokens a call, embed made {made}")
    found = [embeddings, counts, sums / max(sum(made), 1), *([] if padding is None else [padding])]
    embeddings, counts, means, *inside = [values.to("cpu", non_blocking=values.is_cuda) for values in found]
    if wave.is_cuda:
        torch.cuda.current_stream(wave.device).synchronize()  # the one wait of a batch
    tokens = torch.full((batch,), sum(made))
    padding_tokens = sum((mask.sum(dim=1) for mask in masks), torch.zeros_like(tokens))
    return BatchCounts(embeddings, counts, means, tokens, inside[0] if inside else None, padding_tokens)
