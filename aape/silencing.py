"""Turning neurons down, off, up, or to their mean, and embedding clips with many such sets at little cost.

A neuron's activation is multiplied by a gain where the activation module hands it on: 0 silences it, 0 < gain < 1
weakens it, gain > 1 strengthens it. Zero is not what a neuron does on average, so that it can also be replaced by a
value, such as its mean over the training clips, or by what it does in another clip, token by token (resampling).

    with silenced(encoder, [[3, 17], [5, 2]]):
        embedding = encoder.embed(wave)

`embed_with_sets` embeds batches of clips once for each of many sets. Where the encoder comes with its `stages`, the
front end runs once per batch, the blocks below a set's first layer run once for all sets, and each set pays only for
the layers that follow. If the stages name the projection behind each counted layer, not even the block of the first
silenced layer is computed again: silencing k neurons there changes its output by the k columns of the projection, an
[tokens, k] by [k, width] product. Staged embeddings equal those of full passes to 1e-6 of the largest absolute
embedding value, not bit for bit, since that one sum is taken in another order; without projections the same operations
run on the same numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from aape.encoder import Encoder, Stages, hooked
from aape.shapes import widths

_widths: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # activation module -> neurons, from a dry run


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons that are changed together.

    Attributes:
        neurons: int64 [k, 2] of (layer index, neuron index), both from 0.
        gain: factor on their activations.
        replace_by: float32 [k], values that take the activations' place, or None.
        resample: the activations of another clip take their place, token by token.
    """

    neurons: np.ndarray
    gain: float = 0.0
    replace_by: np.ndarray | None = None
    resample: bool = False

    @property
    def layers(self) -> list[int]:
        """Indices of the layers that are changed, in order."""
        return sorted(set(self.neurons[:, 0].tolist()))

    def neurons_of(self, layer: int) -> np.ndarray:
        """Neuron indices [n] in one layer."""
        return self.neurons[self.neurons[:, 0] == layer, 1]

    def changed(self, layer: int, activations: Tensor, donor: _Donor | None = None, call: int = 0) -> Tensor:
        """What takes the place of the activations [..., n] of one layer's neurons, in its call number `call`."""
        if self.resample:
            if donor is None:
                raise ValueError("a set that resamples needs the clips to take the activations from: give `donors`")
            return donor.activations(layer, call, self.neurons_of(layer))
        if self.replace_by is None:
            return activations * self.gain
        return torch.from_numpy(self.replace_by[self.neurons[:, 0] == layer]).to(activations).expand_as(activations)


class _Donor:
    """Activations of one batch of other clips in the layers and neurons of the sets that resample."""

    @torch.inference_mode()
    def __init__(self, encoder: Encoder, wave: Tensor, sets: Sequence[NeuronSet]) -> None:
        both = np.concatenate([change.neurons for change in sets])
        self.members = {layer: np.unique(both[both[:, 0] == layer, 1]) for layer in sorted(set(both[:, 0].tolist()))}
        self.calls: dict[int, list[Tensor]] = {layer: [] for layer in self.members}
        layers = list(self.members)

        def see(i: int, activations: Tensor) -> None:
            index = torch.from_numpy(self.members[layers[i]]).to(activations.device)
            self.calls[layers[i]].append(activations[..., index])

        with hooked(encoder, [encoder.layers[layer] for layer in layers], see):
            encoder.embed(wave)

    def activations(self, layer: int, call: int, neurons: np.ndarray) -> Tensor:
        """[batch, tokens, n] of some neurons in one call of their layer."""
        index = torch.from_numpy(np.searchsorted(self.members[layer], neurons))
        return self.calls[layer][call].index_select(-1, index.to(self.calls[layer][call].device))


def _sizes(encoder: Encoder) -> np.ndarray:
    """Neurons of each counted layer, found by a dry run once and remembered for the modules' lifetime."""
    if any(module not in _widths for module in encoder.activations.values()):
        for name, width in widths(encoder).items():
            _widths[encoder.activations[name]] = width
    return np.array([_widths[module] for module in encoder.activations.values()])


def _numpy(values: ArrayLike | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def neuron_set(
    encoder: Encoder,
    neurons: ArrayLike | Tensor,
    gain: float = 0.0,
    replace_by: ArrayLike | Tensor | None = None,
    resample: bool = False,
) -> NeuronSet:
    """A `NeuronSet` checked against the encoder.

    Args:
        encoder: whose layers and neurons the indices mean.
        neurons: integers [k, 2] of (layer index, neuron index), k >= 1, no pair twice.
        gain: factor, 0 or more. Has no meaning, and must be left alone, with `replace_by`.
        replace_by: values [k] in place of the activations.
        resample: the activations of other clips in their place, which `embed_with_sets` is given.

    Raises:
        ValueError: empty set, wrong shape or type, a pair out of range or twice, a gain below 0 or not finite,
            both a gain and `replace_by`, values of another number than neurons or not finite, or an encoder whose
            hooks sit before the activation function.
    """
    if encoder.preactivation:
        raise ValueError(
            f"{encoder.name}: its counted layers ({encoder.layers[0]!r} ...) are the linear layers before the "
            "activation function. Scaling there is not scaling a neuron: wrap the model with the activation modules."
        )
    array = _numpy(neurons)
    if array.size == 0:
        raise ValueError("the set of neurons is empty: there is nothing to silence, expected [k, 2] with k >= 1")
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"neurons must be integers [k, 2] of (layer index, neuron index), found {array.dtype} {list(array.shape)}"
        )
    array = array.astype(np.int64)
    wrong = array[(array[:, 0] < 0) | (array[:, 0] >= len(encoder.layers))]
    if len(wrong):
        raise ValueError(
            f"neuron {wrong[0].tolist()}: {encoder.name} has {len(encoder.layers)} counted layers, indices 0 to "
            f"{len(encoder.layers) - 1}"
        )
    size = _sizes(encoder)[array[:, 0]]
    wrong = np.flatnonzero((array[:, 1] < 0) | (array[:, 1] >= size))
    if len(wrong):
        layer = array[wrong[0], 0]
        raise ValueError(
            f"neuron {array[wrong[0]].tolist()}: layer {layer} ({encoder.layers[layer]!r}) of {encoder.name} has "
            f"{size[wrong[0]]} neurons, indices 0 to {size[wrong[0]] - 1}"
        )
    unique, counts = np.unique(array, axis=0, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"neuron {unique[counts > 1][0].tolist()} is in the set {counts.max()} times, expected once")
    if not math.isfinite(gain) or gain < 0:
        raise ValueError(f"gain must be 0 or more (0 silences, 1 changes nothing), found {gain}")
    if replace_by is None:
        return NeuronSet(array, float(gain), resample=resample)
    if gain != 0:
        raise ValueError(f"gain={gain} and replace_by exclude each other: give one of them")
    values = _numpy(replace_by).astype(np.float32)
    if values.shape != (len(array),) or not np.isfinite(values).all():
        raise ValueError(
            f"replace_by must hold one finite value for each of the {len(array)} neurons, found shape "
            f"{list(values.shape)}{'' if values.shape != (len(array),) else ' with values that are not finite'}"
        )
    return NeuronSet(array, replace_by=values)


@contextlib.contextmanager
def _applied(
    encoder: Encoder, change: NeuronSet, donor: _Donor | None = None, above: int = -1, call: int = 0
) -> Iterator[dict[int, int]]:
    """The set's neurons of the layers above index `above` are changed; yields the calls of each layer so far.

    Each layer's first call counts as its call number `call`, where the clips are those of several chunks.
    """
    layers = [layer for layer in change.layers if layer > above]
    places = [torch.from_numpy(change.neurons_of(layer)).to(encoder.device) for layer in layers]
    calls = dict.fromkeys(layers, call)

    def see(i: int, activations: Tensor) -> Tensor:
        # A copy: an activation function may hand on its input, and other hooks may keep its output.
        changed = activations.clone()
        changed[..., places[i]] = change.changed(layers[i], activations[..., places[i]], donor, calls[layers[i]])
        calls[layers[i]] += 1
        return changed

    with hooked(encoder, [encoder.layers[layer] for layer in layers], see):
        yield calls


@contextlib.contextmanager
def silenced(
    encoder: Encoder, neurons: ArrayLike | Tensor, gain: float = 0.0, replace_by: ArrayLike | Tensor | None = None
) -> Iterator[Encoder]:
    """Within the block, `encoder` runs with these neurons changed; after it, as before, also after an error.

    Args:
        encoder: any `Encoder`.
        neurons: integers [k, 2] of (layer index, neuron index), both from 0.
        gain: factor on their activations: 0 silences, 1 changes nothing bit for bit.
        replace_by: values [k] in place of the activations, instead of a gain.

    Yields:
        The encoder itself.

    Raises:
        ValueError: see `neuron_set`.

    Warns:
        RuntimeWarning: on leaving, when a chosen layer never ran inside the block, so that nothing was changed there.
    """
    change = neuron_set(encoder, neurons, gain, replace_by)
    with _applied(encoder, change) as calls:
        yield encoder
    idle = [layer for layer in change.layers if not calls[layer]]
    if idle:
        warnings.warn(
            f"{encoder.name}: layer {idle[0]} ({encoder.layers[idle[0]]!r}) did not run while its neurons were to be "
            "changed: nothing was silenced there",
            RuntimeWarning,
            stacklevel=3,
        )


def _on_device(encoder: Encoder, wave: Tensor) -> Tensor:
    if wave.ndim != 2 or wave.shape[0] == 0:
        raise ValueError(f"a batch of waves is [batch, samples], found {list(wave.shape)}")
    return wave.to(encoder.device, dtype=torch.float32)


def embed_with_sets(
    encoder: Encoder, waves: Iterable[Tensor], sets: Sequence[NeuronSet | None], donors: Iterable[Tensor] | None = None
) -> Iterator[Tensor]:
    """Embed clips once for every set of neurons.

    Args:
        encoder: any `Encoder`; with `stages` the shared part of the passes is computed once.
        waves: batches [batch, samples] at the encoder's sample rate, one after the other; only one is held.
        sets: from `neuron_set`; None stands for the encoder as it is.
        donors: batches of the same shapes, whose activations the sets that resample take.

    Yields:
        For each batch the embeddings [sets, batch, dim], on the encoder's device.

    Raises:
        ValueError: no sets, a set that resamples without donors, or stages that do not fit the encoder.
    """
    stages = encoder.stages
    if not sets:
        raise ValueError("no sets to embed with: expected at least one NeuronSet, or None for the intact encoder")
    if stages is not None and len(stages.blocks) != len(encoder.layers):
        raise ValueError(
            f"{encoder.name}: stages has {len(stages.blocks)} blocks for {len(encoder.layers)} counted layers, "
            "expected one block a layer"
        )
    resampling = [change for change in sets if change is not None and change.resample]
    if donors is None and resampling:
        raise ValueError("a set that resamples needs the clips to take the activations from: give `donors`")
    giving = itertools.repeat(None) if donors is None else donors
    for wave, other in zip(waves, giving, strict=False):
        wave = _on_device(encoder, wave)
        donor = _Donor(encoder, _on_device(encoder, other), resampling) if other is not None and resampling else None
        yield _full(encoder, wave, sets, donor) if stages is None else _staged(encoder, stages, wave, sets, donor)


@torch.inference_mode()
def _full(encoder: Encoder, wave: Tensor, sets: Sequence[NeuronSet | None], donor: _Donor | None) -> Tensor:
    """One whole pass a set: wave [batch, samples] -> [sets, batch, dim]."""
    embeddings = []
    for change in sets:
        with contextlib.nullcontext() if change is None else _applied(encoder, change, donor):
            embeddings.append(encoder.embed(wave))
    return torch.stack(embeddings)


@torch.inference_mode()
def _staged(
    encoder: Encoder, stages: Stages, wave: Tensor, sets: Sequence[NeuronSet | None], donor: _Donor | None
) -> Tensor:
    """wave [batch, samples] -> [sets, batch, dim], each layer below a set's first one computed once for all sets.

    The intact hidden state walks up the blocks; whenever it reaches the first layer of a set, that set branches off
    and runs to the end. So one intact state and one branch are alive at a time, however many sets there are.
    """
    branching: dict[int, list[tuple[int, NeuronSet]]] = {}  # first layer -> sets by their place in the answer
    for s, change in enumerate(sets):
        if change is not None:
            branching.setdefault(change.layers[0], []).append((s, change))
    unchanged = [s for s, change in enumerate(sets) if change is None]
    top = len(stages.blocks) if unchanged else max(branching) + 1  # the intact state need not climb further
    outputs: list[list[Tensor]] = [[] for _ in sets]  # by set, by chunk
    sequences, finish = stages.begin(wave)
    for call, intact in enumerate(sequences):
        for layer in range(top):
            branches = branching.get(layer, [])
            if branches and stages.projections is not None:
                members = np.unique(np.concatenate([change.neurons_of(layer) for _, change in branches]))
                intact, activations = _block_and_activations(encoder, stages, layer, intact, members)
                for s, change in branches:
                    neurons = change.neurons_of(layer)
                    a = activations[..., torch.from_numpy(np.searchsorted(members, neurons)).to(intact.device)]
                    columns = stages.projections[layer].weight[:, torch.from_numpy(neurons).to(intact.device)]
                    # What the change adds to the block's output [batch, tokens, width]: W (a' - a).
                    step = nn.functional.linear(change.changed(layer, a, donor, call) - a, columns)
                    outputs[s].append(_climb(encoder, stages, change, donor, layer + 1, call, intact + step))
            else:
                for s, change in branches:
                    outputs[s].append(_climb(encoder, stages, change, donor, layer, call, intact))
                if layer + 1 < top or unchanged:
                    intact = stages.blocks[layer](intact)
        for s in unchanged:
            outputs[s].append(intact)
    return torch.stack([finish(of_set) for of_set in outputs])


def _climb(
    encoder: Encoder, stages: Stages, change: NeuronSet, donor: _Donor | None, start: int, call: int, state: Tensor
) -> Tensor:
    """The blocks from index `start` on, with the set's neurons of those layers changed."""
    with _applied(encoder, change, donor, above=start - 1, call=call):
        for block in stages.blocks[start:]:
            state = block(state)
    return state


def _block_and_activations(
    encoder: Encoder, stages: Stages, layer: int, state: Tensor, members: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Output of one block, and the activations [batch, tokens, members] of some of its neurons."""
    index = torch.from_numpy(members).to(state.device)
    seen: list[Tensor] = []
    with hooked(encoder, [encoder.layers[layer]], lambda _, activations: seen.append(activations[..., index])):
        state = stages.blocks[layer](state)
    if len(seen) != 1:
        raise RuntimeError(
            f"{encoder.name}: {encoder.layers[layer]!r} ran {len(seen)} times in block {layer} of its stages, "
            "expected once. Give it stages whose block i holds counted layer i."
        )
    return state, seen[0]
