"""Checks of an encoder before anything is counted, by running it on noise: widths, tokens and embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from aape.encoders.encoder import Encoder, hooked, noise, rounding

Calls = dict[str, list[tuple[int, int]]]  # layer -> (tokens, neurons) of each call


@torch.no_grad()  # not inference_mode: what a model keeps for later (such as positions) could take no gradient then
def embedded(encoder: Encoder, wave: Tensor) -> Tensor:
    """The clip embeddings [batch, dim] of a wave [batch, samples], after a check of their shape."""
    embeddings = encoder.embed(wave)
    if not isinstance(embeddings, Tensor):
        found = f"a {type(embeddings).__name__} (a model's output?)"
    elif embeddings.ndim != 2 or len(embeddings) != len(wave):
        found = str(list(embeddings.shape))
    else:
        return embeddings
    raise ValueError(
        f"{encoder.name}: embed gave {found}, expected a tensor [{len(wave)} clips, dim]. Take the mean over the tokens, "
        "e.g. .last_hidden_state.mean(dim=1)"
    )


def dry_run(encoder: Encoder) -> Calls:
    """(Tokens, neurons) of each call of each layer, from noise.

    Raises:
        ValueError: a layer was not called, or its output is not [batch, ..., neurons]; `embed` gives no embeddings, no
            finite numbers, or others when a clip is alone: dropout or batch statistics are in use.

    Warns:
        UserWarning: a layer runs several times per forward pass.
    """
    pair = noise(2, encoder.dry_samples).to(encoder.device)
    calls, embeddings = _run(encoder, pair)
    for name, of_layer in calls.items():
        if not of_layer:
            raise ValueError(
                f"{encoder.name}: layer {name!r} was never called by embed(); check the pattern"
            )
    try:
        shorter, _ = _run(encoder, pair[:1, : encoder.dry_samples // 2])
    except (RuntimeError, ValueError, AssertionError, IndexError):
        shorter = calls  # embed takes waves of one length only: nothing to compare
    _check_widths(encoder, calls, shorter)
    _warn_of_several_calls(encoder, calls)
    _check_repeatable(encoder, pair[:1], embeddings[0].float())
    return calls


def _run(encoder: Encoder, wave: Tensor) -> tuple[Calls, Tensor]:
    """The calls of each layer for a wave [batch, samples], and the embeddings."""
    calls: Calls = {name: [] for name in encoder.layers}

    def see(index: int, activations: Tensor) -> None:
        name = encoder.layers[index]
        if len(activations) != len(wave):
            raise ValueError(
                f"layer {name!r} gave {tuple(activations.shape)} for {len(wave)} clips, expected [{len(wave)}, ..., "
                "neurons]: the batch is not first (windowed attention?).\nWhere time is first, put in the place of each "
                "act a module with the forward self.act(x.transpose(0, 1)).transpose(0, 1), and match the act within."
            )
        tokens, neurons = activations[0, ..., 0].numel(), activations.shape[-1]
        calls[name].append((tokens, neurons))

    with hooked(encoder, encoder.layers, see):
        return calls, embedded(encoder, wave)


def _check_widths(encoder: Encoder, calls: Calls, shorter: Calls) -> None:
    """Refuse a layer whose last axis depends on the length of the wave."""
    for name in encoder.layers:
        channels = sorted({neurons for _, neurons in calls[name] + shorter[name]})
        if len(channels) > 1:
            raise ValueError(
                f"{encoder.name}: the last axis of layer {name!r} has {channels} channels, by the length of the wave: that "
                "is time, not neurons. Expected [batch, ..., neurons]: transpose, or leave it out"
            )


def _warn_of_several_calls(encoder: Encoder, calls: Calls) -> None:
    """Chunks are several calls of a layer; where a clip is one chunk, several calls are several places in the model."""
    for name, of_layer in calls.items():
        if len(of_layer) > 1 and not encoder.chunks:
            warnings.warn(
                f"{encoder.name}: layer {name!r} runs {len(of_layer)} times per forward pass, and the tokens of all runs are "
                "counted as one layer. If the runs are different places in the model, give each an activation module of "
                "its own.",
                stacklevel=3,
            )
            return


def _check_repeatable(encoder: Encoder, wave: Tensor, before: Tensor) -> None:
    """Refuse an embedding that changes when the clip is alone in its batch."""
    alone = embedded(encoder, wave)[0].float()
    if not alone.isfinite().all():
        raise ValueError(
            f"{encoder.name} embeds noise as {alone[:3].tolist()} ..., expected numbers: damaged weights?"
        )
    error = float((alone - before).abs().max())
    largest = float(before.abs().max())
    if error > largest * rounding(encoder.dtype):
        raise ValueError(
            f"{encoder.name} embeds the same wave differently a second time, by {error / largest:.1%} of the largest "
            "value: is it in training mode? Call module.eval() and collect again."
        )


def widths(encoder: Encoder) -> dict[str, int]:
    """Neurons of each layer. Raises ValueError where `dry_run` does."""
    return {name: calls[0][1] for name, calls in dry_run(encoder).items()}


def numbered(encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Layer and number of every neuron, layer after layer, int64 [neurons] each. Raises ValueError where `dry_run` does."""
    by_layer = list(widths(encoder).values())
    layer = np.repeat(np.arange(len(by_layer)), by_layer)
    neuron = np.concatenate([np.arange(width) for width in by_layer])
    return layer, neuron


def common_width(encoder: Encoder, layers: Sequence[str], calls: Calls) -> int:
    """Neurons per layer, which must be equal: the artifacts are one tensor [layers, neurons, classes].

    Args:
        encoder: the model, for messages.
        layers: names of the layers to be counted.
        calls: the result of `dry_run`.

    Raises:
        ValueError: layers of different width or with different tokens, named.
    """
    width = {name: calls[name][0][1] for name in layers}
    if len(set(width.values())) > 1:
        found = ", ".join(f"{name} has {neurons}" for name, neurons in width.items())
        raise ValueError(
            f"{encoder.name}: expected layers of one width, {found}; collect them apart (layers=...)"
        )
    same_tokens(encoder, {name: [tokens for tokens, _ in calls[name]] for name in layers})
    return width[layers[0]]


def same_tokens(encoder: Encoder, tokens: Mapping[str, list[int]]) -> None:
    """Refuse layers that see different tokens, because a share of tokens would mean something else in each."""
    groups: dict[str, list[str]] = {}
    for name, calls in tokens.items():
        description = " + ".join(map(str, calls))
        groups.setdefault(description, []).append(name)
    if len(groups) > 1:
        found = "; ".join(
            f"{calls} tokens in {', '.join(names)}" for calls, names in groups.items()
        )
        raise ValueError(
            f"{encoder.name}: expected layers of like tokens, {found}; collect them apart (layers=...)"
        )
