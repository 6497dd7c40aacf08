"""What is dissected: an `Encoder`, and `from_module`, which makes one of any torch module.

A *neuron* is one channel of one hooked module, by convention the output of the activation function inside a
block's MLP. Whatever a model looks like inside, three things are enough to dissect it: the modules whose outputs
are counted, a function from waveform to clip embedding, and the sample rate it wants.
"""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import functools
import hashlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from aape.display import Displayed
from aape.encoders.tokens import TimeTokens


@dataclass(frozen=True)
class Stages:
    """An encoder taken apart at its blocks, so that a pass can start in the middle.

    With `sequences, finish = begin(wave)`, `finish` of what the blocks make of the sequences must equal `embed(wave)`.
    Block i holds counted layer i.

    Attributes:
        begin: wave [batch, samples] -> token sequences before block 0, a list of [batch, tokens, width], one a chunk;
            and a function from the sequences after the last block to the clip embedding [batch, dim].
        blocks: the blocks in order, [batch, tokens, width] -> [batch, tokens, width].
        projections: the linear layer of each block that adds the counted activations to the residual stream, so that
            block(x) = rest(x) + projection(activations), nothing in between.
    """

    begin: Callable[[Tensor], tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]]
    blocks: Sequence[Callable[[Tensor], Tensor]]
    projections: Sequence[nn.Linear]


@dataclass(frozen=True, repr=False)
class Encoder(Displayed):
    """A frozen audio model with the places where its neurons are read.

    Attributes:
        name: what tables and manifests call it.
        sample_rate: of the wave that `embed` takes, Hz.
        clip_seconds: the longest wave that passes through the blocks at once, s.
        module: holds every weight; `.to(device)` moves it.
        activations: layer name -> module whose output [batch, ..., neurons] is counted, in order of depth.
        embed: wave [batch, samples] float32 -> clip embedding [batch, dim]. It does not switch gradients off.
        weights: where the weights came from: `source`, `sha256`, `seed`, `revision`, whatever applies.
        preactivation: the counted modules are the linear layers before the activation: the signs are the same, but
            means are not those of the neurons, so none are kept, nor is scaling there, so `aape.causal.silencing` refuses.
        chunks: `embed` takes waves longer than `clip_seconds` and cuts them itself.
        padding_masks: (valid samples [batch], samples of the wave) -> one bool mask [batch, tokens] for each call of
            the counted modules, True where the token saw nothing but zero padding. None: not known for this model.
        token_grid: samples of the wave -> for each call of the counted modules int64 [tokens, 2], the (frequency,
            time) cell of each token on the clip's map, -1 for tokens without a place (class tokens). Time runs on
            across chunks; frequency is 0 where tokens are time only. None: not known for this model.
        stages: the model taken apart at its blocks, or None; only speeds deactivation up.
        cell_seconds: sound between two neighbouring time cells of the grid, s; None: they share the clip evenly.
        log_mel: wave [batch, samples] -> the spectrogram that the model sees of it, from the first to the last sample
            [batch, bands, frames], lowest band first, an axis of 1 may precede them; only for pictures. A module that
            `embed` calls with the whole wave is not run again for them. None: not known for this model.
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
    token_grid: Callable[[int], list[Tensor]] | None = None
    stages: Stages | None = None
    cell_seconds: float | None = None
    log_mel: Callable[[Tensor], Tensor] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the counted layers, in order."""
        return tuple(self.activations)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> str:
        """The floating-point type of the weights, "float32"; several are joined by +."""
        kinds = {str(p.dtype).removeprefix("torch.") for p in self.module.parameters() if p.is_floating_point()}
        return "+".join(sorted(kinds)) or "float32"

    @property
    def identity(self) -> str:
        """SHA-256 over the module's whole state, the window, and which tokens are padding in clips that end early.

        Never from memory: weights may be changed in place.
        """
        valid = torch.arange(1, 8) * self.dry_samples // 8
        masks = (
            None if self.padding_masks is None else [m.tolist() for m in self.padding_masks(valid, self.dry_samples)]
        )
        told = f"{sha256_of_state(self.module)} {self.clip_seconds} {self.chunks} {masks}"
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def dry_samples(self) -> int:
        """Length of the wave of dry runs: `clip_seconds`, but at most 1 s where any length is taken."""
        return round((min(self.clip_seconds, 1.0) if self.chunks else self.clip_seconds) * self.sample_rate)

    @property
    def probe(self) -> list[float]:
        """What `embed` makes of a fixed noise wave: at most 64 values, evenly spread over the embedding.

        Two encoders of one identity whose probes differ by more than 1e-3 of the largest value embed differently.
        """
        with torch.no_grad():
            return spread(self.embed(noise(1, self.dry_samples).to(self.device))[0])

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights (in place, as torch modules do) and return self."""
        self.module.to(device)
        return self

    def with_layers(self, layers: Sequence[str]) -> Encoder:
        """The same model with these layers alone, in this order: what artifacts of some layers count from 0.

        Raises:
            ValueError: a layer that it does not have, or none.
        """
        if not layers or not {*layers} <= {*self.layers}:
            raise ValueError(f"layers={list(layers)}: expected some of {', '.join(self.layers)}")
        if tuple(layers) == self.layers:
            return self
        return replace(self, activations={name: self.activations[name] for name in layers}, stages=None)

    def _facts(self) -> dict[str, str]:
        known = {"padding": self.padding_masks, "a map of tokens": self.token_grid}
        return {
            "layers": f"{len(self.layers)}: {self.layers[0]} ...{' (before the activation)' * self.preactivation}",
            "wave": f"{self.sample_rate} Hz, {self.clip_seconds:g} s{', longer in chunks' * self.chunks}",
            "weights": ", ".join(f"{k} {str(v)[:60]}" for k, v in self.weights.items()),
            "held as": f"{self.dtype} on {self.device}",
            "knows": " and ".join(name for name, function in known.items() if function) or "neither padding nor a map",
        }

    def _title(self) -> str:
        return f"Encoder {self.name}"


def sha256_of_state(module: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of a module's state."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def spread(embedding: Tensor) -> list[float]:
    """At most 64 values [dim] of an embedding, evenly spread."""
    which = torch.linspace(0, len(embedding) - 1, min(64, len(embedding))).long()
    return embedding.float().cpu()[which].tolist()


def noise(clips: int, samples: int) -> Tensor:
    """The fixed wave of dry runs [clips, samples]: uniform noise, the same values on every machine."""
    return torch.from_numpy(np.random.RandomState(0).uniform(-0.1, 0.1, (clips, samples))).float()


_ALONE: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()
_NEW_LOCK = threading.Lock()


def alone_with(encoder: Encoder) -> threading.Lock:
    """A lock to hold while a thread works with an encoder among others: where a loader gives two threads the same model,
    they take turns, for the hooks of two passes would mix.
    """
    with _NEW_LOCK:
        return _ALONE.setdefault(encoder.module, threading.Lock())


@functools.cache
def _keep_freed_memory() -> None:
    """Where this process uses glibc: keep what one batch frees for the next, up to 1 GB.

    A batch's activations are large enough for glibc to give them back to the system each time. To get the same pages
    again, zeroed, costs a small encoder's pass on a CPU up to a fifth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # numbered in malloc.h
        mallopt(mmap_threshold, 1 << 25)  # the most that it takes
        mallopt(trim_threshold, 1 << 30)


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
    _keep_freed_memory()
    with contextlib.ExitStack() as stack:
        for place, name in enumerate(layers):

            def hook(_module: object, _inputs: object, output: Any, place: int = place, name: str = name) -> Any:
                first = output[0] if isinstance(output, tuple) and output else output
                if not isinstance(first, Tensor) or first.ndim < 2 or not first.is_floating_point():
                    found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
                    raise ValueError(f"layer {name!r} gave {found}, expected a float tensor [batch, ..., neurons]")
                instead = see(place, first)
                return instead if instead is None or not isinstance(output, tuple) else (instead, *output[1:])

            stack.callback(encoder.activations[name].register_forward_hook(hook).remove)
        yield encoder


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function, element-wise or gated, by its class (torch, timm, transformers)."""
    kind, known = type(module), r"gelu|relu|silu|swish|mish|elu|glu|snake|tanh|sigmoid|activation"
    told = kind.__module__ == "torch.nn.modules.activation" or re.search(known, kind.__name__, re.I)
    return bool(told) and not [*module.children()]


def from_module(
    module: nn.Module,
    *,
    activations: str,
    embed: Callable[[Tensor], Tensor],
    sample_rate: int,
    clip_seconds: float,
    name: str,
    samples_per_token: float | None = None,
    **more: Any,
) -> Encoder:
    """Wrap any torch module.

    Args:
        module: the model; it is put into evaluation mode.
        activations: a glob over the names of `module.named_modules()`, `"blocks.*.mlp.act"`; * stays between two dots.
            Each must be an activation function with output [batch, ..., neurons]. The linear layer in front of it
            counts the same signs (GELU, ReLU and SiLU keep them) and is taken with a warning.
        embed: wave [batch, samples] -> [batch, dim]; front end, chunking and pooling are its business.
        sample_rate: Hz.
        clip_seconds: the longest wave that `embed` takes, s, unless `chunks`.
        name: what tables call the model.
        samples_per_token: of a model whose tokens follow each other in time, without class tokens: how many samples
            of the wave each stands for. Gives `padding_masks` and `token_grid`.
        more: other fields of `Encoder`: `weights`, e.g. {"source": ..., "revision": ...}; `chunks`; `padding_masks` and
            `token_grid`, for models whose tokens are laid out otherwise; ...

    Raises:
        ValueError: nothing matches, a match is neither an activation nor a linear layer, two names share one module,
            or both `samples_per_token` and what it would give.
    """
    named = dict(module.named_modules(remove_duplicate=False))
    dots = activations.count(".")  # so no * stands for a dot
    found = {n: m for n, m in named.items() if n and fnmatch.fnmatchcase(n, activations) and n.count(".") == dots}
    if not found:
        raise ValueError(f"activations={activations!r} matches no module of {type(module).__name__}. {_advice(module)}")
    linear = [n for n, m in found.items() if isinstance(m, nn.Linear)]
    wrong = [n for n, m in found.items() if not is_activation(m)]
    if wrong and linear != [*found]:
        raise ValueError(
            f"activations={activations!r} must match activation functions (or only the linear layers before them), but "
            f"it also matches {wrong[0]!r} ({type(found[wrong[0]]).__name__}). Narrow the pattern."
        )
    if len(set(found.values())) != len(found):
        raise ValueError(f"{', '.join(found)} are one and the same module; give every layer its own activation module")
    if samples_per_token is not None and (
        samples_per_token <= 0 or more.get("padding_masks") or more.get("token_grid")
    ):
        raise ValueError(f"samples_per_token={samples_per_token}: expected > 0; it gives padding_masks and token_grid")
    if linear:
        warnings.warn(
            f"{name}: {linear[0]!r} ... are linear layers. If the activation follows at once and keeps signs (GELU, "
            "ReLU, SiLU), the counts are those of the neurons; means are not, so none are kept; silencing there is refused.",
            stacklevel=2,
        )
    more = {field: value for field, value in more.items() if value is not None}
    more = dict[str, Any](weights={"source": "given by the caller"}, preactivation=bool(linear)) | more
    encoder = Encoder(name, int(sample_rate), float(clip_seconds), module.eval(), found, embed, **more)
    if samples_per_token is None:
        return encoder

    def tokens_of(samples: int) -> list[int]:
        seen: list[int] = []
        with hooked(encoder, encoder.layers[:1], lambda _, x: seen.append(x[..., 0].numel())), torch.no_grad():
            encoder.embed(noise(1, samples).to(encoder.device))
        return seen

    tokens = TimeTokens(tokens_of, samples_per_token, clip_seconds * sample_rate)
    step = samples_per_token / sample_rate
    return replace(encoder, padding_masks=tokens.padding_masks, token_grid=tokens.grid, cell_seconds=step)


def _advice(module: nn.Module) -> str:
    """What `activations` could be, for a model where it matched nothing."""
    known = [n for n, m in module.named_modules() if n and is_activation(m)]
    if known:
        return f"Its activation functions are: {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
    wider = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features > m.in_features]
    return (
        "It has no activation function that is a module of its own (F.gelu?). To count, match the linear layer in front"
        f"{f' ({wider[0]}?)' if wider else ''}; to silence too, give each block an nn.GELU() and match that."
    )


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """An explicit device, else CUDA if there (the process's own one under torchrun), else the CPU.

    Raises:
        ValueError: CUDA or MPS asked for and not there.
    """
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(chosen.type, True):
        raise ValueError(f"device={str(device)!r} is not there for torch; use device='cpu' or leave it out")
    return chosen


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 without TF32: rounding moves signs near zero."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    exact: bool | str
    try:
        places, switch, exact = [matmul, cudnn], "allow_tf32", False
        before = [getattr(place, switch) for place in places]
    except RuntimeError:  # somebody set torch's newer switches; where nobody did, they would make the older unreadable
        places, switch, exact = [matmul, cudnn.conv, cudnn.rnn], "fp32_precision", "ieee"
        before = [getattr(place, switch) for place in places]
    try:
        for place in places:
            setattr(place, switch, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, switch, value)
