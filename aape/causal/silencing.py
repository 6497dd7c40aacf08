"""Silencing, weakening, strengthening or mean-ablating neurons, and embedding clips under many such changes cheaply.

The activation of a neuron is multiplied by a gain at the output of its activation module: 0 silences the neuron,
0 < gain < 1 weakens it, gain > 1 strengthens it. Zero is not what a neuron does on average, so it can also be replaced
by a value, such as its mean over the training clips.

    with silenced(encoder, [[3, 17], [5, 2]]):
        embedding = encoder.embed(wave)

`embed_with_sets` embeds a batch of clips once for each of many sets of neurons. Where the encoder comes with its
`stages`, the front end runs once, the blocks up to the first layer of a set run once for all sets, and each set pays
only for the blocks that follow: silencing k neurons of a block changes the block's output by k columns of the
projection behind them, an [tokens, k] by [k, width] product. Staged embeddings equal those of full passes to 1e-6 of
the largest absolute embedding value, not bit for bit, because that one sum is taken in another order.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from aape.encoders.dry_run import widths
from aape.encoders.encoder import Encoder, Stages, hooked

_widths: WeakKeyDictionary[nn.Module, int] = (
    WeakKeyDictionary()
)  # activation module -> neurons, from a dry run


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons that are changed together.

    Attributes:
        neurons: int64 [k, 2] of (layer index, neuron index), both from 0.
        gain: factor on their activations.
        replace_by: float32 [k], values that replace the activations, or None.
    """

    neurons: np.ndarray
    gain: float = 0.0
    replace_by: np.ndarray | None = None

    @property
    def layers(self) -> list[int]:
        """Indices of the layers that are changed, in order."""
        return sorted(set(self.neurons[:, 0].tolist()))

    def neurons_of(self, layer: int) -> Tensor:
        """Neuron indices [n] in one layer."""
        return torch.from_numpy(self.neurons[self.neurons[:, 0] == layer, 1])

    def changed(self, layer: int, activations: Tensor) -> Tensor:
        """The values that replace the activations [..., n] of the set's neurons in one layer."""
        if self.replace_by is None:
            return activations * self.gain
        values = torch.from_numpy(self.replace_by[self.neurons[:, 0] == layer])
        return values.to(activations).expand_as(activations)


def neuron_set(
    encoder: Encoder, neurons: ArrayLike, gain: float = 0.0, replace_by: ArrayLike | None = None
) -> NeuronSet:
    """A `NeuronSet` that was checked against the encoder.

    Args:
        encoder: whose layers and neurons the indices refer to.
        neurons: integers [k, 2] of (layer index, neuron index), k >= 1, no pair twice.
        gain: factor on the activations, 0 or more. It cannot be combined with `replace_by`.
        replace_by: values [k] that replace the activations.

    Raises:
        ValueError: an empty set, a wrong shape or type, a pair out of range or twice, a gain below 0 or not finite,
            both a gain and `replace_by`, a wrong number of values, values that are not finite, or an encoder that is
            hooked before its activation functions.
    """
    if encoder.preactivation:
        raise ValueError(
            f"{encoder.name}: its counted layers ({encoder.layers[0]!r} ...) are the linear layers before the "
            "activation function. Scaling there is not scaling a neuron: wrap the model with the activation modules."
        )
    array = np.asarray(neurons)
    if (
        array.ndim != 2
        or array.shape[1] != 2
        or not array.size
        or not np.issubdtype(array.dtype, np.integer)
    ):
        raise ValueError(
            "neurons must be integers [k, 2] of (layer index, neuron index), k >= 1: found "
            f"{array.dtype} {list(array.shape)}{'' if array.size else ', an empty set'}"
        )
    sizes = _sizes(encoder)
    pairs = [tuple(pair) for pair in array.tolist()]
    for layer, neuron in pairs:
        if not 0 <= layer < len(sizes) or not 0 <= neuron < sizes[layer]:
            raise ValueError(
                f"neuron [{layer}, {neuron}] is not in {encoder.name}, whose layers 0 to {len(sizes) - 1} have "
                f"{', '.join(map(str, sizes))} neurons, counted from 0"
            )
    pair, times = Counter(pairs).most_common(1)[0]
    if times > 1:
        raise ValueError(f"neuron {list(pair)} is in the set {times} times, expected once")
    if not math.isfinite(gain) or gain < 0 or (gain and replace_by is not None):
        raise ValueError(
            f"gain must be 0 or more, and cannot be combined with replace_by; found {gain}"
        )
    values = None if replace_by is None else np.asarray(replace_by, dtype=np.float32)
    if values is not None and (values.shape != (len(array),) or not np.isfinite(values).all()):
        raise ValueError(
            f"replace_by must hold {len(array)} finite values, one per neuron; found {values}"
        )
    return NeuronSet(array.astype(np.int64), float(gain), values)


def _sizes(encoder: Encoder) -> list[int]:
    """Neurons of each counted layer, found by one dry run and remembered for the lifetime of the modules."""
    if any(module not in _widths for module in encoder.activations.values()):
        for name, width in widths(encoder).items():
            _widths[encoder.activations[name]] = width
    return [_widths[module] for module in encoder.activations.values()]


@contextlib.contextmanager
def _applied(encoder: Encoder, change: NeuronSet, above: int = -1) -> Iterator[dict[int, int]]:
    """Change the set's neurons in the layers above index `above`; yields the number of calls of each layer so far."""
    layers = [layer for layer in change.layers if layer > above]
    neurons = [change.neurons_of(layer).to(encoder.device) for layer in layers]
    calls = dict.fromkeys(layers, 0)

    def see(i: int, activations: Tensor) -> Tensor:
        # A copy: an activation function may return its input, and other hooks may keep its output.
        changed = activations.clone()
        changed[..., neurons[i]] = change.changed(layers[i], activations[..., neurons[i]])
        calls[layers[i]] += 1
        return changed

    with hooked(encoder, [encoder.layers[layer] for layer in layers], see):
        yield calls


@contextlib.contextmanager
def silenced(
    encoder: Encoder, neurons: ArrayLike, gain: float = 0.0, replace_by: ArrayLike | None = None
) -> Iterator[Encoder]:
    """Silence neurons, or steer the model with them, for the duration of a `with` block.

    Inside the block the encoder runs with the chosen neurons changed. After the block, also after an error, it runs as
    before. A gain above 1 amplifies what the neurons contribute, which steers the embedding towards what they respond to.

    A toy model whose single layer gives the positive and the negative part of the wave, averaged over time:

    >>> import torch
    >>> from aape import from_module, silenced
    >>> class Halves(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.act = torch.nn.ReLU()
    ...     def forward(self, wave):
    ...         return self.act(torch.stack([wave, -wave], dim=-1)).mean(dim=1)
    >>> model = Halves()
    >>> encoder = from_module(model, activations="act", embed=model, sample_rate=4, clip_seconds=1.0, name="toy")
    >>> wave = torch.tensor([[1.0, 3.0, -2.0, -2.0]])
    >>> encoder.embed(wave)
    tensor([[1., 1.]])
    >>> with silenced(encoder, [[0, 1]]):  # layer 0, neuron 1
    ...     encoder.embed(wave)
    tensor([[1., 0.]])
    >>> with silenced(encoder, [[0, 1]], gain=8.0):  # steering
    ...     encoder.embed(wave)
    tensor([[1., 8.]])
    >>> with silenced(encoder, [[0, 1]], replace_by=[0.5]):  # mean ablation, where 0.5 is the mean activation
    ...     encoder.embed(wave)
    tensor([[1.0000, 0.5000]])

    Args:
        encoder: any `Encoder`.
        neurons: integers [k, 2] of (layer index, neuron index), both from 0.
        gain: factor on their activations: 0 silences them, 1 changes nothing bit for bit.
        replace_by: values [k] that replace the activations, instead of a gain.

    Yields:
        The encoder itself.

    Raises:
        ValueError: see `neuron_set`.

    Warns:
        RuntimeWarning: on leaving, if a chosen layer never ran inside the block, so that nothing was changed there.
    """
    change = neuron_set(encoder, neurons, gain, replace_by)
    with _applied(encoder, change) as calls:
        yield encoder
    complaint = _idle(encoder, calls)
    if complaint:
        warnings.warn(complaint, RuntimeWarning, stacklevel=3)


def _idle(encoder: Encoder, calls: dict[int, int]) -> str:
    """A message about a layer that was to be changed and never ran, else ""."""
    idle = [layer for layer, times in calls.items() if not times]
    if not idle:
        return ""
    return (
        f"{encoder.name}: layer {idle[0]} ({encoder.layers[idle[0]]!r}) did not run while its neurons were to be changed: "
        "nothing was silenced there.\nembed must call it each time; after torch.compile it does not: make the encoder of "
        "the module as it was before compiling."
    )


@torch.no_grad()
def embed_with_sets(encoder: Encoder, wave: Tensor, sets: Sequence[NeuronSet | None]) -> Tensor:
    """Embed a batch of clips once for every set of neurons.

    Args:
        encoder: any `Encoder`; with `stages` the shared part of the passes is computed once.
        wave: [batch, samples] at the encoder's sample rate.
        sets: from `neuron_set`, at least one; None: the intact encoder.

    Returns:
        Embeddings [sets, batch, dim], on the encoder's device.

    Raises:
        ValueError: stages that do not fit the encoder, or a layer that never runs.
    """
    wave = wave.to(encoder.device)
    if encoder.stages is not None:
        return _staged(encoder, encoder.stages, wave, sets)
    embeddings = []
    for change in sets:
        if change is None:
            embeddings.append(encoder.embed(wave))
            continue
        with _applied(encoder, change) as calls:
            embeddings.append(encoder.embed(wave))
        complaint = _idle(encoder, calls)
        if complaint:
            raise ValueError(complaint)
    return torch.stack(embeddings)


def _staged(
    encoder: Encoder, stages: Stages, wave: Tensor, sets: Sequence[NeuronSet | None]
) -> Tensor:
    """wave [batch, samples] -> [sets, batch, dim], each layer below the first one of a set computed once for all sets.

    The intact hidden state passes through the blocks. When it reaches the first layer of a set, that set branches off
    and runs to the end. So one intact state and one branch exist at a time, however many sets there are.
    """
    blocks = len(stages.blocks)
    if blocks != len(encoder.layers):
        found = f"{blocks} blocks for {len(encoder.layers)} counted layers"
        raise ValueError(f"{encoder.name}: stages has {found}, expected one block per layer")
    first = [blocks if change is None else change.layers[0] for change in sets]
    outputs: list[list[Tensor]] = [[] for _ in sets]  # by set, by chunk
    sequences, finish = stages.begin(wave)
    for intact in sequences:
        for layer in range(min(max(first) + 1, blocks)):
            intact, activations = _one_block(encoder, stages, layer, intact)
            for s, change in enumerate(sets):
                if change is not None and first[s] == layer:
                    outputs[s].append(_branch(encoder, stages, change, layer, intact, activations))
        for s, change in enumerate(sets):
            if change is None:
                outputs[s].append(intact)
    return torch.stack([finish(of_set) for of_set in outputs])


def _one_block(
    encoder: Encoder, stages: Stages, layer: int, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Output of a block [batch, tokens, width], and the activations [batch, tokens, neurons] of its counted layer."""
    seen: list[Tensor] = []
    with hooked(encoder, [encoder.layers[layer]], lambda _, activations: seen.append(activations)):
        state = stages.blocks[layer](state)
    if len(seen) != 1:
        raise RuntimeError(
            f"{encoder.name}: {encoder.layers[layer]!r} ran {len(seen)} times in block {layer} of its stages, "
            "expected once. Give it stages whose block i holds counted layer i."
        )
    return state, seen[0]


def _branch(
    encoder: Encoder,
    stages: Stages,
    change: NeuronSet,
    layer: int,
    intact: Tensor,
    activations: Tensor,
) -> Tensor:
    """State after the last block when a set is changed, from the intact output of the block of its first layer."""
    neurons = change.neurons_of(layer).to(intact.device)
    before = activations[..., neurons]
    columns = stages.projections[layer].weight[:, neurons]
    # The change adds W (a' - a) to the block's output [batch, tokens, width].
    state = intact + nn.functional.linear(change.changed(layer, before) - before, columns)
    with _applied(encoder, change, above=layer):
        for block in stages.blocks[layer + 1 :]:
            state = block(state)
    return state
