"""What is dissected: an `Encoder`, and `from_module`, which makes one of any torch module.

A *neuron* is one channel of one hooked module, by convention the output of the activation function inside a
block's MLP. Whatever a model looks like inside, three things are enough to dissect it: the modules whose outputs
are counted, a function from waveform to clip embedding, and the sample rate it wants.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stages:
    """An encoder taken apart at its blocks, so that a pass can start in the middle.

    `finish([blocks(x) for x in begin(wave)])` must equal `embed(wave)`. Block i holds counted layer i.

    Attributes:
        begin: wave [batch, samples] -> token sequences before block 0, a list of [batch, tokens, width], one a chunk.
        blocks: the blocks in order, [batch, tokens, width] -> [batch, tokens, width].
        finish: the sequences after the last block -> clip embedding [batch, dim].
        projections: the linear layer of each block that adds the counted activations to the residual stream, so that
            block(x) = rest(x) + projection(activations), nothing in between; or None.
    """

    begin: Callable[[Tensor], list[Tensor]]
    blocks: Sequence[nn.Module]
    finish: Callable[[list[Tensor]], Tensor]
    projections: Sequence[nn.Linear] | None = None


@dataclass(frozen=True)
class Encoder:
    """A frozen audio model with the places where its neurons are read.

    Attributes:
        name: what tables and manifests call it.
        sample_rate: of the wave that `embed` takes, Hz.
        clip_seconds: the longest wave that passes through the blocks at once, s.
        module: holds every weight; `.to(device)` moves it.
        activations: layer name -> module whose output [batch, ..., neurons] is counted, in order of depth.
        embed: wave [batch, samples] float32 -> clip embedding [batch, dim].
        weights: where the weights came from: `source`, `sha256`, `seed`, whatever applies.
        preactivation: the counted modules are the linear layers before the activation: the signs are the same,
            but scaling there is not scaling a neuron, so `aape.silencing` refuses.
        chunks: `embed` takes waves longer than `clip_seconds` and cuts them itself.
        padding_masks: (valid samples [batch], samples of the wave) -> one bool mask [batch, tokens] for each call of
            the counted modules, True where the token saw nothing but zero padding. None: not known for this model.
        stages: the model taken apart at its blocks, or None; only speeds deactivation up.
    """

    name: str
    sample_rate: int
    clip_seconds: float
    module: nn.Module
    activations: Mapping[str, nn.Module]
    embed: Callable[[Tensor], Tensor]
    weights: Mapping[str, Any] = field(default_factory=dict)
    preactivation: bool = False
    chunks: bool = False
    padding_masks: Callable[[Tensor, int], list[Tensor]] | None = None
    stages: Stages | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the counted layers, in order."""
        return tuple(self.activations)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights (in place, as torch modules do) and return self."""
        self.module.to(device)
        return self


@contextlib.contextmanager
def hooked(encoder: Encoder, layers: Sequence[str], see: Callable[[int, Tensor], Tensor | None]) -> Iterator[Encoder]:
    """The one door for forward hooks: while the context lasts, every call of the named layers is shown to `see`.

    Args:
        encoder: the model.
        layers: names of the layers to look at, of `encoder.layers`.
        see: (place in `layers`, activations [batch, ..., neurons]) -> None, or a tensor that the model is given in
            their place. The activations are the model's own: a change is made on a copy.

    Yields:
        The encoder. No hook stays behind, whatever ends the context.

    Raises:
        ValueError: (when the model runs) a layer's output is no float tensor [batch, ..., neurons].
    """
    with contextlib.ExitStack() as stack:
        for place, name in enumerate(layers):

            def hook(_module: object, _inputs: object, output: Any, place: int = place, name: str = name) -> Any:
                first = output[0] if isinstance(output, tuple) and output else output
                if not isinstance(first, Tensor) or first.ndim < 2 or not first.is_floating_point():
                    found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
                    raise ValueError(f"layer {name!r} gave {found}, expected a float tensor [batch, ..., neurons]")
                instead = see(place, first)
                if instead is None:
                    return None
                return (instead, *output[1:]) if isinstance(output, tuple) else instead

            stack.callback(encoder.activations[name].register_forward_hook(hook).remove)
        yield encoder


def _matching(module: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Modules by name: `pattern` as a glob whose * stays within one dotted part, else as a regular expression."""
    names = [(name, m) for name, m in module.named_modules(remove_duplicate=False) if name]
    parts = pattern.split(".")
    found = {
        name: m
        for name, m in names
        if len(name.split(".")) == len(parts)
        and all(fnmatch.fnmatchcase(n, p) for n, p in zip(name.split("."), parts, strict=True))
    }
    if found:
        return found
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"activations={pattern!r} matches no module as a glob and is no regular expression: {error}"
        ) from error
    return {name: m for name, m in names if expression.fullmatch(name)}


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an element-wise activation function, by its class (torch, timm, transformers)."""
    if isinstance(module, nn.MultiheadAttention) or any(True for _ in module.children()):
        return False
    if type(module).__module__ == "torch.nn.modules.activation":
        return True
    return re.search(r"gelu|relu|silu|swish|mish|elu|tanh|sigmoid|activation", type(module).__name__, re.I) is not None


def from_module(
    module: nn.Module,
    *,
    activations: str,
    embed: Callable[[Tensor], Tensor],
    sample_rate: int,
    clip_seconds: float,
    name: str,
    weights: Mapping[str, Any] | None = None,
    chunks: bool = False,
    padding_masks: Callable[[Tensor, int], list[Tensor]] | None = None,
) -> Encoder:
    """Wrap any torch module.

    Args:
        module: the model; it is put into evaluation mode.
        activations: a glob (`"blocks.*.mlp.act"`) or a regular expression over the names of `module.named_modules()`.
            Each must be an activation function with output [batch, ..., neurons]. The linear layer in front of it
            counts the same signs (GELU, ReLU and SiLU keep them) and is taken with a warning.
        embed: wave [batch, samples] -> [batch, dim]; front end, chunking and pooling are its business.
        sample_rate: Hz.
        clip_seconds: the longest wave that `embed` takes, s, unless `chunks`.
        name: what tables call the model.
        weights: provenance, e.g. {"source": ..., "sha256": ...}.
        chunks: `embed` takes longer waves too.
        padding_masks: see `Encoder`.

    Raises:
        ValueError: nothing matches, a match is neither an activation nor a linear layer, or two names share one module.
    """
    found = _matching(module, activations)
    if not found:
        known = [n for n, m in module.named_modules() if n and is_activation(m)]
        raise ValueError(
            f"activations={activations!r} matches no module of {type(module).__name__}. "
            f"Its activation functions are: {', '.join(known[:12]) or 'none that is a module of its own'}"
            f"{' ...' if len(known) > 12 else ''}"
        )
    linear = [n for n, m in found.items() if isinstance(m, nn.Linear)]
    wrong = [n for n, m in found.items() if n not in linear and not is_activation(m)]
    if wrong or (linear and len(linear) != len(found)):
        culprits = wrong or linear
        raise ValueError(
            f"activations={activations!r} must match activation functions (or, with a warning, only the linear layers "
            f"before them), but it also matches {len(culprits)} other module(s), e.g. {culprits[0]!r} "
            f"({type(found[culprits[0]]).__name__}). Narrow the pattern."
        )
    if len({id(m) for m in found.values()}) != len(found):
        names = ", ".join(found)
        raise ValueError(
            f"activations={activations!r}: {names} are one and the same module object, so their outputs cannot be "
            "told apart. Give every layer its own activation module."
        )
    if linear:
        warnings.warn(
            f"{name}: {linear[0]!r} ... are linear layers. If the activation follows at once and keeps signs (GELU, "
            "ReLU, SiLU), the counts are those of the neurons; silencing there is refused.",
            stacklevel=2,
        )
    module.eval()
    return Encoder(
        name=name,
        sample_rate=int(sample_rate),
        clip_seconds=float(clip_seconds),
        module=module,
        activations=found,
        embed=embed,
        weights=dict(weights or {"source": "given by the caller"}),
        preactivation=bool(linear),
        chunks=chunks,
        padding_masks=padding_masks,
    )


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """An explicit device, else CUDA if there (the process's own one under torchrun), else the CPU.

    Raises:
        ValueError: CUDA or MPS asked for and not there.
    """
    if device is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but torch finds no CUDA device; use device='cpu' or leave it out")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device='mps', but torch finds no Apple GPU; use device='cpu' or leave it out")
    return chosen


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 without TF32: rounding moves signs near zero."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
