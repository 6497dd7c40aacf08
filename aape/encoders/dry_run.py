"""What must hold of an encoder before anything is counted, and is found by dry runs on noise: widths and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aape.encoders.encoder import Encoder, hooked, noise, spread

Calls = dict[str, list[tuple[int, int]]]  # layer -> (tokens, neurons) of each call


@torch.no_grad()  # not inference_mode: what a model keeps for later (positions, say) could take no gradient then
def embedded(encoder: Encoder, wave: Tensor) -> Tensor:
    """The clip embeddings [batch, dim], checked to be that."""
    found = encoder.embed(wave)
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(wave):
        return found
    what = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__} (a model's output?)"
    how = "Take its tokens, e.g. .last_hidden_state.mean(dim=1)"
    raise ValueError(f"{encoder.name}: embed gave {what}, expected a tensor [{len(wave)} clips, dim]. {how}")


def _look(encoder: Encoder, wave: Tensor) -> tuple[Calls, Tensor]:
    """What each layer makes of a wave [batch, samples], and the embeddings."""
    seen: Calls = {name: [] for name in encoder.layers}

    def see(layer: int, output: Tensor) -> None:
        if len(output) != len(wave):
            found = f"gave {tuple(output.shape)} for {len(wave)} clips, expected [{len(wave)}, ..., neurons]"
            raise ValueError(
                f"layer {encoder.layers[layer]!r} {found}: the batch is not first (windowed attention?).\nWhere time is first, "
                "put in the place of each act a module with the forward self.act(x.transpose(0, 1)).transpose(0, 1), and "
                "match the act within."
            )
        seen[encoder.layers[layer]].append((output[0, ..., 0].numel(), output.shape[-1]))

    with hooked(encoder, encoder.layers, see):
        return seen, embedded(encoder, wave)


def dry_run(encoder: Encoder) -> tuple[Calls, list[float]]:
    """(Tokens, neurons) of each call of each layer, and the encoder's probe, from noise.

    Raises:
        ValueError: a layer was not called, or its output is not [batch, ..., neurons]; `embed` gives no embeddings, no
            numbers, or others when a clip is alone: dropout or batch statistics are in use.
    """
    pair = noise(2, encoder.dry_samples).to(encoder.device)
    seen, embeddings = _look(encoder, pair)
    if silent := [name for name in encoder.layers if not seen[name]]:
        raise ValueError(f"{encoder.name}: layer {silent[0]!r} was never called by embed(); check the pattern")
    try:
        shorter, _ = _look(encoder, pair[:1, : encoder.dry_samples // 2])
    except (RuntimeError, ValueError, AssertionError, IndexError):
        shorter = seen  # embed takes waves of one length only: nothing to compare
    for name, calls in seen.items():
        if len(found := sorted({width for _, width in [*calls, *shorter[name]]})) > 1:
            raise ValueError(
                f"{encoder.name}: the last axis of layer {name!r} has {found} channels, by the length of the wave: that is "
                "time, not neurons. Expected [batch, ..., neurons]: transpose, or leave it out"
            )
    alone, first = embedded(encoder, pair[:1])[0].float(), embeddings[0].float()
    if not alone.isfinite().all():
        raise ValueError(f"{encoder.name} embeds noise as {alone[:3].tolist()} ..., expected numbers: damaged weights?")
    error, size = float((alone - first).abs().max()), float(first.abs().max())
    if error > size * (1e-3 if encoder.dtype in ("float32", "float64") else 5e-2):
        raise ValueError(
            f"{encoder.name} embeds the same wave differently a second time, by {error / size:.1%} of the largest "
            "value: is it in training mode? Call module.eval() and collect again."
        )
    return seen, spread(alone)


def widths(encoder: Encoder) -> dict[str, int]:
    """Neurons of each layer. Raises ValueError where `dry_run` does."""
    return {name: calls[0][1] for name, calls in dry_run(encoder)[0].items()}


def common_width(encoder: Encoder, layers: Sequence[str], seen: Calls) -> int:
    """Neurons per layer, which must be equal: the artifacts are one tensor [layers, neurons, classes].

    Args:
        layers: the names of those to be counted. seen: what `dry_run` found of all.

    Raises:
        ValueError: layers of different width or with different tokens, named.
    """
    width = {name: seen[name][0][1] for name in layers}
    if len(set(width.values())) != 1:
        found = ", ".join(f"{n} has {w}" for n, w in width.items())
        raise ValueError(f"{encoder.name}: expected layers of one width, {found}; collect them apart (layers=...)")
    same_tokens(encoder, {name: [tokens for tokens, _ in seen[name]] for name in layers})
    return width[layers[0]]


def same_tokens(encoder: Encoder, tokens: Mapping[str, list[int]]) -> None:
    """Refuse layers that see different tokens: a share of tokens would be of another whole in each."""
    groups: dict[str, list[str]] = {}
    for name, calls in tokens.items():
        groups.setdefault(" + ".join(map(str, calls)), []).append(name)
    if len(groups) > 1:
        found = "; ".join(f"{calls} tokens in {', '.join(names)}" for calls, names in groups.items())
        raise ValueError(f"{encoder.name}: expected layers of like tokens, {found}; collect them apart (layers=...)")
