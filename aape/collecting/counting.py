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


def count_active(
    output: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Count the active tokens of each clip, and those that a mask marks, and sum the activations over tokens.

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
        counts = active.sum(dim=1, dtype=torch.int32)
        sums = output.sum(dim=1, dtype=torch.float32)
        if mask is None:
            return counts, None, sums
        marked = active & mask[:, :, None]
        return counts, marked.sum(dim=1, dtype=torch.int32), sums
    values = output.detach().numpy()
    clips, _, neurons = values.shape
    counts_array = np.empty((clips, neurons), dtype=np.int32)
    marked_array = np.empty_like(counts_array)
    sums_array = np.empty((clips, neurons), dtype=np.float32)
    for clip, tokens in enumerate(values):  # [tokens, neurons]
        is_active = np.greater(
            tokens, 0, order="C"
        )  # contiguous whatever the strides of the output
        counts_array[clip] = _column_sums(is_active)
        sums_array[clip] = np.add.reduce(tokens, axis=0)
        if mask is not None:
            marked_array[clip] = _column_sums(is_active[mask[clip].numpy()])
    counts = torch.from_numpy(counts_array)
    sums = torch.from_numpy(sums_array)
    if mask is None:
        return counts, None, sums
    return counts, torch.from_numpy(marked_array), sums


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
        tokens: tokens per clip, int64 [batch].
        padding_tokens: those of zero padding, int64 [batch].
        padding: active tokens among those of padding, int32 [batch, layers, neurons]; None if no clip is padded.
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
        encoder: the model.
        wave: [batch, samples] float32.
        valid_samples: [batch], how many samples of each row are sound; zero padding follows.
        layers: names of the layers to count.
        neurons: their width.

    Raises:
        ValueError: a layer's output has another shape than expected, or layers see different tokens.
    """
    batch, samples = wave.shape
    masks = encoder.padding_masks(valid_samples.cpu(), samples) if encoder.padding_masks else []
    masks_on_device = [mask.to(wave.device) if mask.any() else None for mask in masks]
    counts = torch.zeros(batch, len(layers), neurons, dtype=torch.int32, device=wave.device)
    sums = torch.zeros(counts.shape, device=wave.device)
    padding = None
    if any(mask is not None for mask in masks_on_device):
        padding = torch.zeros_like(counts)
    calls: dict[str, list[int]] = {name: [] for name in layers}  # tokens of each call

    def count(layer: int, output: Tensor) -> None:
        name = layers[layer]
        if output.shape[0] != batch or output.shape[-1] != neurons:
            raise ValueError(
                f"layer {name!r} gave {tuple(output.shape)}, expected [{batch}, ..., {neurons}]"
            )
        values = output.reshape(batch, -1, neurons)
        call = len(calls[name])
        calls[name].append(values.shape[1])
        mask = None
        if call < len(masks) and masks[call].shape[1] == values.shape[1]:
            mask = masks_on_device[call]
        active, in_padding, total = count_active(values, mask)
        counts[:, layer] += active
        sums[:, layer] += total
        if padding is not None and in_padding is not None:
            padding[:, layer] += in_padding

    with hooked(encoder, layers, count):
        embeddings = embedded(encoder, wave).float()
    same_tokens(encoder, calls)
    tokens_of_calls = calls[layers[0]]
    tokens_of_masks = [mask.shape[1] for mask in masks]
    if masks and tokens_of_masks != tokens_of_calls:
        raise ValueError(
            f"{encoder.name}: padding_masks describes {tokens_of_masks} tokens per call, embed made {tokens_of_calls}"
        )
    means = sums / max(sum(tokens_of_calls), 1)
    embeddings = _copied_to_cpu(embeddings)
    counts = _copied_to_cpu(counts)
    means = _copied_to_cpu(means)
    padding = None if padding is None else _copied_to_cpu(padding)
    if wave.is_cuda:
        torch.cuda.current_stream(wave.device).synchronize()  # the one wait of a batch
    tokens = torch.full((batch,), sum(tokens_of_calls))
    padding_tokens = torch.zeros_like(tokens)
    for mask in masks:
        padding_tokens += mask.sum(dim=1)
    return BatchCounts(embeddings, counts, means, tokens, padding, padding_tokens)


def _copied_to_cpu(values: Tensor) -> Tensor:
    return values.to("cpu", non_blocking=values.is_cuda)
