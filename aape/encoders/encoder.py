"""What is dissected: an `Encoder`, a frozen audio model with the places where its neurons are read.

A *neuron* is one channel of one counted module, by convention the output of the activation function inside a block's MLP.
Three things are enough to dissect any model: the modules whose outputs are counted, a function from waveform to clip
embedding, and the sample rate that it expects. `aape.encoders.module.from_module` makes an `Encoder` of a torch module.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aape.display import Displayed

Finish = Callable[
    [list[Tensor]], Tensor
]  # sequences after the last block -> clip embedding [batch, dim]


@dataclass(frozen=True)
class Stages:
    """An encoder taken apart at its blocks, so that a pass can start in the middle.

    With `sequences, finish = begin(wave)`, passing the sequences through all blocks and then through `finish` must equal
    `embed(wave)`. Block i holds counted layer i.

    Attributes:
        begin: wave [batch, samples] -> token sequences before block 0, a list with one [batch, tokens, width] per chunk;
            and a function from the sequences after the last block to the clip embedding [batch, dim].
        blocks: the blocks in order, [batch, tokens, width] -> [batch, tokens, width].
        projections: the linear layer of each block that adds the counted activations to the residual stream, so that
            block(x) = rest(x) + projection(activations), with nothing in between.
    """

    begin: Callable[[Tensor], tuple[list[Tensor], Finish]]
    blocks: Sequence[Callable[[Tensor], Tensor]]
    projections: Sequence[nn.Linear]


@dataclass(frozen=True, repr=False)
class Encoder(Displayed):
    """A frozen audio model with the places where its neurons are read.

    Attributes:
        name: what tables and manifests call the model.
        sample_rate: sample rate of the wave that `embed` takes, Hz.
        clip_seconds: the longest wave that passes through the blocks at once, s.
        module: holds every weight; `.to(device)` moves it.
        activations: layer name -> module whose output [batch, ..., neurons] is counted, in order of depth.
        embed: wave [batch, samples] float32 -> clip embedding [batch, dim]. It must not switch gradients off.
        weights: where the weights came from: `source`, `sha256`, `seed`, `revision`, whatever applies.
        preactivation: the counted modules are the linear layers before the activation function. The signs are the same,
            but means are not those of the neurons, so none are kept, and `aape.causal.silencing` refuses to scale there.
        chunks: `embed` takes waves longer than `clip_seconds` and cuts them itself.
        padding_masks: (valid samples [batch], samples of the wave) -> one bool mask [batch, tokens] for each call of
            the counted modules, True where the token saw only zero padding. None: not known for this model.
        token_grid: samples of the wave -> for each call of the counted modules int64 [tokens, 2], the (frequency,
            time) cell of each token on the clip's map, -1 for tokens without a place (class tokens). Time runs on
            across chunks; frequency is 0 where tokens follow each other in time. None: not known for this model.
        stages: the model taken apart at its blocks, or None; it only makes deactivation faster.
        cell_seconds: time between two neighbouring time cells of the grid, s; None: they share the clip evenly.
        log_mel: wave [batch, samples] -> the spectrogram that the model sees, from the first to the last sample
            [batch, bands, frames], lowest band first; an axis of length 1 may precede the bands. It is used for pictures
            only. A module that `embed` calls with the whole wave is not run again for them. None: not known.
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
        """The device that holds the weights."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def dtype(self) -> str:
        """The floating-point type of the weights, such as "float32"; several types are joined by +."""
        types = {
            str(p.dtype).removeprefix("torch.")
            for p in self.module.parameters()
            if p.is_floating_point()
        }
        return "+".join(sorted(types)) or "float32"

    @property
    def identity(self) -> str:
        """SHA-256 over the module's whole state, the window, and which tokens are padding in clips that end early.

        Counted modules outside `module` are included. It is computed anew each time, because weights may be changed in place.
        """
        valid = torch.arange(1, 8) * self.dry_samples // 8
        masks = None
        if self.padding_masks is not None:
            masks = [mask.tolist() for mask in self.padding_masks(valid, self.dry_samples)]
        described = f"{sha256_of_state(self.module)} {self.clip_seconds} {self.chunks} {masks}"
        for name, module in self._outside().items():
            described += f" {name} {sha256_of_state(module)}"
        return hashlib.sha256(described.encode()).hexdigest()

    @property
    def dry_samples(self) -> int:
        """Length of the wave of dry runs: `clip_seconds`, but at most 1 s where waves of any length are taken."""
        seconds = min(self.clip_seconds, 1.0) if self.chunks else self.clip_seconds
        return round(seconds * self.sample_rate)

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights (in place, as torch modules do) and return self."""
        for module in (self.module, *self._outside().values()):
            module.to(device)
        return self

    def _outside(self) -> dict[str, nn.Module]:
        """Counted modules that are not part of `module`."""
        inside = set(self.module.modules())
        return {name: module for name, module in self.activations.items() if module not in inside}

    def with_layers(self, layers: Sequence[str]) -> Encoder:
        """The same model with only these layers counted, in this order.

        Artifacts of some layers number their layers from 0 within them, so use this encoder to silence those neurons.

        Raises:
            ValueError: no layer is named, or one that the encoder does not have.
        """
        if not layers or not {*layers} <= {*self.layers}:
            raise ValueError(f"layers={list(layers)}: expected some of {', '.join(self.layers)}")
        if tuple(layers) == self.layers:
            return self
        chosen = {name: self.activations[name] for name in layers}
        return replace(self, activations=chosen, stages=None)

    def _facts(self) -> dict[str, str]:
        before = " (before the activation)" if self.preactivation else ""
        longer = ", longer in chunks" if self.chunks else ""
        known = {"padding": self.padding_masks, "a map of tokens": self.token_grid}
        names = [name for name, function in known.items() if function]
        return {
            "layers": f"{len(self.layers)}: {self.layers[0]} ...{before}",
            "wave": f"{self.sample_rate} Hz, {self.clip_seconds:g} s{longer}",
            "weights": ", ".join(f"{key} {str(value)[:60]}" for key, value in self.weights.items()),
            "held as": f"{self.dtype} on {self.device}",
            "knows": " and ".join(names) or "neither padding nor a map",
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


def noise(clips: int, samples: int) -> Tensor:
    """The fixed wave of dry runs [clips, samples]: uniform noise, the same values on every machine."""
    return torch.from_numpy(np.random.RandomState(0).uniform(-0.1, 0.1, (clips, samples))).float()


@contextlib.contextmanager
def hooked(
    encoder: Encoder, layers: Sequence[str], see: Callable[[int, Tensor], Tensor | None]
) -> Iterator[Encoder]:
    """Show every call of some layers to a function, while the context lasts. All forward hooks are set here.

    Args:
        encoder: the model.
        layers: names of the layers to look at, from `encoder.layers`.
        see: (index in `layers`, activations [batch, ..., neurons]) -> None, or a tensor that the model is given in
            their place. The activations are the model's own tensor: change a copy.

    Yields:
        The encoder. The hooks are removed however the context ends.

    Raises:
        ValueError: (when the model runs) a layer's output is not a float tensor [batch, ..., neurons].
    """
    with contextlib.ExitStack() as stack:
        for index, name in enumerate(layers):
            hook = _forward_hook(name, index, see)
            handle = encoder.activations[name].register_forward_hook(hook)
            stack.callback(handle.remove)
        yield encoder


def _forward_hook(
    name: str, index: int, see: Callable[[int, Tensor], Tensor | None]
) -> Callable[..., Any]:
    """A hook that shows the first output of a module to `see`."""

    def hook(_module: object, _inputs: object, output: Any) -> Any:
        several = isinstance(output, tuple) and len(output) > 0
        activations = output[0] if several else output
        _check_activations(name, activations)
        replacement = see(index, activations)
        if replacement is None or not several:
            return replacement
        return (replacement, *output[1:])

    return hook


def _check_activations(name: str, activations: Any) -> None:
    """Refuse what is not a float tensor [batch, ..., neurons]."""
    if not isinstance(activations, Tensor):
        raise ValueError(
            f"layer {name!r} gave a {type(activations).__name__}, expected a float tensor [batch, ..., neurons]"
        )
    if activations.is_nested:
        raise ValueError(
            f"layer {name!r} gave a nested tensor, from which padding is left out; expected a float tensor [batch, ..., "
            "neurons]. Build nn.TransformerEncoder(..., enable_nested_tensor=False), or set its use_nested_tensor = False"
        )
    if activations.ndim < 2 or not activations.is_floating_point():
        raise ValueError(
            f"layer {name!r} gave {tuple(activations.shape)}, {activations.dtype}; expected a float tensor [batch, ..., neurons]"
        )


def rounding(dtype: str) -> float:
    """How far embeddings of the same clip may differ, relative to the largest value, between devices and libraries.

    Args:
        dtype: the floating-point type of the weights, as `Encoder.dtype`.
    """
    return 1e-3 if dtype in ("float32", "float64") else 5e-2


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """An explicit device, else CUDA if available (the process's own GPU under torchrun), else the CPU.

    Raises:
        ValueError: not a device of torch, or CUDA or MPS is asked for and not available.
    """
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is not a device of torch: use 'cuda', 'cuda:1', 'mps' or 'cpu'"
        ) from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(chosen.type, True):
        raise ValueError(
            f"device={str(device)!r} is not available to torch; use device='cpu' or leave it out"
        )
    return chosen


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 without TF32, because rounding moves signs near zero."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    exact: bool | str
    try:
        places, switch, exact = [matmul, cudnn], "allow_tf32", False
        before = [getattr(place, switch) for place in places]
    except RuntimeError:  # torch's newer switches were set; unless they were, setting them makes the older ones unreadable
        places, switch, exact = [matmul, cudnn.conv, cudnn.rnn], "fp32_precision", "ieee"
        before = [getattr(place, switch) for place in places]
    try:
        for place in places:
            setattr(place, switch, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, switch, value)
