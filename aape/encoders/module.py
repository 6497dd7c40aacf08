"""`from_module`: an `Encoder` from any torch module, and where the tokens of such a model lie on a clip."""

from __future__ import annotations

import fnmatch
import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from aape.encoders.encoder import Encoder, hooked, noise

_ACTIVATION_NAMES = "gelu, relu, silu, swish, mish, elu, glu, snake, tanh, sigmoid, activation"
_RULE = (
    "A module counts as an activation function if it has no submodules and its class is from "
    f"torch.nn.modules.activation or has one of these words in its name: {_ACTIVATION_NAMES}."
)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function, element-wise or gated, judged by its class (torch, timm, transformers).

    It has no submodules, and its class is from `torch.nn.modules.activation` or has one of these words in its name: gelu,
    relu, silu, swish, mish, elu, glu, snake, tanh, sigmoid, activation.
    """
    if any(True for _ in module.children()):
        return False
    kind = type(module)
    named = re.search(_ACTIVATION_NAMES.replace(", ", "|"), kind.__name__, re.IGNORECASE)
    return named is not None or kind.__module__ == "torch.nn.modules.activation"


def from_module(
    module: nn.Module,
    *,
    activations: str | Mapping[str, nn.Module],
    embed: Callable[[Tensor], Tensor],
    sample_rate: int,
    clip_seconds: float,
    name: str,
    samples_per_token: float | None = None,
    **more: Any,
) -> Encoder:
    """Make an `Encoder` of any torch module.

    Models that follow the interface of a benchmark need one call each:

        # HEAR (Turian et al. 2022, arXiv 2203.03022)
        model = hear21passt.base.load_model()
        embed = lambda wave: hear21passt.base.get_scene_embeddings(wave, model)
        from_module(model, activations=..., embed=embed, sample_rate=model.sample_rate, clip_seconds=10.0, name="PaSST")

        # X-ARES (Zhang et al. 2025, arXiv 2505.16369)
        embed = lambda wave: model(wave).mean(dim=1)
        from_module(model, activations=..., embed=embed, sample_rate=model.sampling_rate, clip_seconds=10.0, name="mine",
                    samples_per_token=model.hop_size_in_ms * model.sampling_rate / 1000)

    Other units than neurons are named by a mapping. `module` must hold all weights:

        # the residual stream after each block
        streams = {f"stream {i}": block for i, block in enumerate(model.blocks)}
        from_module(model, activations=streams, embed=model, ...)

        # features of a sparse autoencoder on the stream after block 3; sae(x) = sae.decode(sae.act(sae.encode(x)))
        def embed(wave):
            handle = model.blocks[3].register_forward_hook(lambda block, inputs, stream: sae(stream))
            try:
                return model(wave)
            finally:
                handle.remove()

        from_module(nn.ModuleList([model, sae]), activations={"features": sae.act}, embed=embed, ...)

    Args:
        module: the model. It is put into evaluation mode, and its gradient checkpointing is switched off, because that runs
            blocks again in the backward pass; no value changes.
        activations: a glob over the names of `module.named_modules()`, such as `"blocks.*.mlp.act"`; * does not match a
            dot. Every match must be an activation function with output [batch, ..., neurons]. A module counts as one if
            it has no submodules and its class is from `torch.nn.modules.activation` or has one of these words in its
            name: gelu, relu, silu, swish, mish, elu, glu, snake, tanh, sigmoid, activation. The linear layer in front of
            it counts the same signs (GELU, ReLU and SiLU keep them) and is taken with a warning. Or a mapping from layer
            names to modules inside `module`, which may be of any class: their outputs [batch, ..., units] are counted.
        embed: wave [batch, samples] -> [batch, dim], including front end, chunking and pooling.
        sample_rate: Hz.
        clip_seconds: the longest wave that `embed` takes, s, unless `chunks`.
        name: what tables call the model.
        samples_per_token: samples of the wave per token, for a model whose tokens follow each other in time, without
            class tokens. Gives `padding_masks` and `token_grid`. A centred STFT (torch.stft, librosa), which gives
            n // hop + 1 frames of n samples, is one of these; a class token in front would be taken for its first frame.
        more: other fields of `Encoder`: `weights`, e.g. {"source": ..., "revision": ...}; `chunks`; `padding_masks` and
            `token_grid`, for models whose tokens are laid out otherwise; ...

    Raises:
        ValueError: nothing matches, a match is neither an activation function nor a linear layer, a module of the mapping
            is not inside `module`, two names share one module, or both `samples_per_token` and what it would give are
            passed.
    """
    linear: list[str] = []
    if isinstance(activations, str):
        counted = _matching(module, activations)
        linear = [layer for layer, m in counted.items() if isinstance(m, nn.Linear)]
        if len(linear) < len(counted):
            _check_are_activations(counted, f"activations={activations!r}")
    else:
        counted = dict(activations)
        _check_are_inside(module, counted)
    _switch_checkpointing_off(module)
    if len(set(counted.values())) < len(counted):
        raise ValueError(
            f"{', '.join(counted)} are one and the same module; give every layer its own activation module"
        )
    if linear:
        warnings.warn(
            f"{name}: {linear[0]!r} ... are linear layers. If the activation follows at once and keeps signs (GELU, "
            "ReLU, SiLU), the counts are those of the neurons; means are not, so none are kept; silencing there is refused.",
            stacklevel=2,
        )
    fields: dict[str, Any] = {
        "weights": {"source": "given by the caller"},
        "preactivation": bool(linear),
    }
    fields |= {key: value for key, value in more.items() if value is not None}
    encoder = Encoder(
        name, int(sample_rate), float(clip_seconds), module.eval(), counted, embed, **fields
    )
    return encoder if samples_per_token is None else _with_time_tokens(encoder, samples_per_token)


def _matching(module: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The modules whose names match a glob; * does not match a dot."""
    counted = {}
    for name, submodule in module.named_modules(remove_duplicate=False):
        same_depth = name.count(".") == pattern.count(".")
        if name and same_depth and fnmatch.fnmatchcase(name, pattern):
            counted[name] = submodule
    if not counted:
        raise ValueError(
            f"activations={pattern!r} matches no module of {type(module).__name__}. {_advice(module)}"
        )
    return counted


def _check_are_activations(counted: Mapping[str, nn.Module], source: str) -> None:
    for name, module in counted.items():
        if not is_activation(module):
            raise ValueError(
                f"{source} must match activation functions (or only the linear layers before them), but it also matches "
                f"{name!r} ({type(module).__name__}). {_RULE} Narrow the pattern, rename the class of a module of your own, "
                "or pass a mapping {name: module}, whose modules may be of any class."
            )


def _check_are_inside(module: nn.Module, counted: Mapping[str, nn.Module]) -> None:
    inside = set(module.modules())
    for name, submodule in counted.items():
        if submodule not in inside:
            raise ValueError(
                f"activations: {name!r} ({type(submodule).__name__}) is not inside module, whose weights identify the "
                "encoder. Pass a module that holds both, such as nn.ModuleList([model, sae])."
            )
    if not counted:
        raise ValueError(
            "activations: expected a mapping of at least one layer name to a module, found an empty one"
        )


def _switch_checkpointing_off(module: nn.Module) -> None:
    """Gradient checkpointing as timm and transformers have it: blocks run again in the backward pass, without hooks."""
    for submodule in module.modules():
        for switch in ("grad_checkpointing", "gradient_checkpointing"):
            if getattr(submodule, switch, False) is True:
                setattr(submodule, switch, False)


def _advice(module: nn.Module) -> str:
    """What `activations` could be, for a model where it matched nothing."""
    known = [name for name, m in module.named_modules() if name and is_activation(m)]
    if known:
        return f"Its activation functions are: {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
    wider = [
        name
        for name, m in module.named_modules()
        if isinstance(m, nn.Linear) and m.out_features > m.in_features
    ]
    return (
        f"It has no activation function that is a module of its own (F.gelu?). {_RULE} To count, match the linear layer in front"
        f"{f' ({wider[0]}?)' if wider else ''}; to silence too, give each block an nn.GELU() and match that."
    )


# --- tokens that follow each other in time ------------------------------------------------------------------------


def _with_time_tokens(encoder: Encoder, samples_per_token: float) -> Encoder:
    """The encoder with padding masks and grid of tokens that follow each other in time."""
    if samples_per_token <= 0 or encoder.padding_masks or encoder.token_grid:
        raise ValueError(
            f"samples_per_token={samples_per_token}: expected > 0; it gives padding_masks and token_grid"
        )

    def tokens_per_call(samples: int) -> list[int]:
        tokens: list[int] = []

        def see(_index: int, activations: Tensor) -> None:
            tokens.append(activations[..., 0].numel())

        with hooked(encoder, encoder.layers[:1], see), torch.no_grad():
            encoder.embed(noise(1, samples).to(encoder.device))
        return tokens

    tokens = TimeTokens(
        tokens_per_call, samples_per_token, encoder.clip_seconds * encoder.sample_rate
    )
    return replace(
        encoder,
        padding_masks=tokens.padding_masks,
        token_grid=tokens.grid,
        cell_seconds=samples_per_token / encoder.sample_rate,
    )


def time_grid(counts: Sequence[int], starts: Sequence[float]) -> list[Tensor]:
    """The grid of tokens that follow each other in time: frequency 0, time running on across calls.

    Args:
        counts: tokens of each call.
        starts: where on the clip each call begins, in cells. Each call gets the nearest cell after the previous call, so
            that pieces which are not a whole number of tokens do not make time drift.
    """
    grid, end = [], 0
    for count, start in zip(counts, starts, strict=True):
        times = max(end, math.ceil(start - 0.5)) + torch.arange(count)
        end = int(times[0]) + count if count else end
        grid.append(torch.stack([torch.zeros_like(times), times], dim=1))
    return grid


class TimeTokens:
    """Padding masks and token grid of a model whose tokens follow each other in time.

    Args:
        tokens_per_call: samples of a wave -> tokens of each call; asked once per length.
        samples_per_token: samples of the wave per token.
        window: samples of a chunk.
    """

    def __init__(
        self, tokens_per_call: Callable[[int], list[int]], samples_per_token: float, window: float
    ) -> None:
        self.tokens_per_call = functools.cache(tokens_per_call)
        self.step = float(samples_per_token)
        self.window = round(window)

    def tokens(self, samples: int) -> list[int]:
        """Tokens of each call, for a wave of this length.

        Raises:
            ValueError: they cannot be `samples_per_token` apart.
        """
        counts = self.tokens_per_call(samples)
        lengths = [min(self.window, samples - start) for start in range(0, samples, self.window)]
        fits = len(counts) == len(lengths)
        for count, length in zip(counts, lengths, strict=False):
            # A front end that pads to its whole window makes tokens behind a short wave.
            fits = fits and (self._fits(count, length) or self._fits(count, self.window))
        if not fits:
            raise ValueError(
                f"{samples} samples gave {counts} tokens, samples_per_token={self.step:g} would give about "
                f"{samples / self.step:.0f}. Class tokens? Pass padding_masks and token_grid instead."
            )
        return counts

    def _fits(self, count: int, length: int) -> bool:
        """Whether a piece can have this number of tokens.

        Convolutions without padding lose up to three of them; a centred STFT has one more where the hop divides the length.
        """
        lost = math.ceil(length / self.step) - count
        return 0 <= lost <= 3 or count == self._centred(length)

    def _centred(self, length: int) -> int:
        return int(length // self.step) + 1

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Token t is padding when sample t * `samples_per_token` lies behind the last valid one.

        The last frame of a centred STFT, which is centred behind the last sample, belongs to that sample.
        """
        masks = []
        for call, tokens in enumerate(self.tokens(samples)):
            start = call * self.window
            length = min(self.window, samples - start)
            first = torch.arange(tokens, device=valid_samples.device) * self.step
            if tokens == self._centred(length):
                first = first.clamp(max=length - 1)
            masks.append(start + first >= valid_samples[:, None])
        return masks

    def grid(self, samples: int) -> list[Tensor]:
        """Frequency 0, time running on across calls."""
        tokens = self.tokens(samples)
        starts = [call * self.window / self.step for call in range(len(tokens))]
        return time_grid(tokens, starts)
