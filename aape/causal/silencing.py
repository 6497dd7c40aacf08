"""Turning neurons down, off, up, or to their mean, and embedding clips with many such sets at little cost.

A neuron's activation is multiplied by a gain where the activation module hands it on: 0 silences it, 0 < gain < 1
weakens it, gain > 1 strengthens it. Zero is not what a neuron does on average, so that it can also be replaced by a
value, such as its mean over the training clips, or by what it does in another clip, token by token (resampling).

    with silenced(encoder, [[3, 17], [5, 2]]):
        embedding = encoder.embed(wave)

`embed_with_sets` embeds a batch of clips once for each of many sets. Where the encoder comes with its `stages`, the
front end runs once, the blocks up to a set's first layer run once for all sets, and each set pays only for the blocks
that follow: silencing k neurons of a block changes its output by k columns of the projection behind them, an
[tokens, k] by [k, width] product. Staged embeddings equal those of full passes to 1e-6 of the largest absolute
embedding value, not bit for bit, since that one sum is taken in another order.
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

    def neurons_of(self, layer: int) -> Tensor:
        """Neuron indices [n] in one layer."""
        return torch.from_numpy(self.neurons[self.neurons[:, 0] == layer, 1])

    def changed(self, layer: int, activations: Tensor, donor: _Donor | None = None, call: int = 0) -> Tensor:
        """What takes the place of the activations [..., n] of one layer's neurons, in its call number `call`."""
        if donor is not None and self.resample:
            return donor.activations(layer, call, self.neurons_of(layer))
        if self.replace_by is None:
            return activations * self.gain
        return torch.from_numpy(self.replace_by[self.neurons[:, 0] == layer]).to(activations).expand_as(activations)


class _Donor:
    """Activations of one batch of other clips in the layers and neurons of the sets that resample."""

    def __init__(self, encoder: Encoder, wave: Tensor, sets: Sequence[NeuronSet]) -> None:
        both = np.concatenate([change.neurons for change in sets])
        self.members = {layer: torch.from_numpy(np.unique(both[both[:, 0] == layer, 1])) for layer in set(both[:, 0])}
        self.calls: dict[int, list[Tensor]] = {layer: [] for layer in self.members}
        layers = list(self.members)

        def see(i: int, activations: Tensor) -> None:
            self.calls[layers[i]].append(activations[..., self.members[layers[i]].to(activations.device)])

        with hooked(encoder, [encoder.layers[layer] for layer in layers], see):
            encoder.embed(wave)

    def activations(self, layer: int, call: int, neurons: Tensor) -> Tensor:
        """[batch, tokens, n] of some neurons in one call of their layer."""
        found = self.calls[layer][call]
        return found[..., torch.searchsorted(self.members[layer], neurons).to(found.device)]


def neuron_set(
    encoder: Encoder, neurons: ArrayLike, gain: float = 0.0, replace_by: ArrayLike | None = None, resample: bool = False
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
    array = np.asarray(neurons)
    if array.ndim != 2 or array.shape[1] != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "neurons must be integers [k, 2] of (layer index, neuron index), k >= 1: found "
            f"{array.dtype} {list(array.shape)}{'' if array.size else ', an empty set'}"
        )
    sizes, pairs = _sizes(encoder), list(map(tuple, array.tolist()))
    for layer, neuron in pairs:
        if not 0 <= layer < len(sizes) or not 0 <= neuron < sizes[layer]:
            raise ValueError(
                f"neuron [{layer}, {neuron}] is not in {encoder.name}, whose layers 0 to {len(sizes) - 1} have "
                f"{', '.join(map(str, sizes))} neurons, each from 0"
            )
    ((pair, times),) = Counter(pairs).most_common(1)
    if times > 1:
        raise ValueError(f"neuron {list(pair)} is in the set {times} times, expected once")
    if not math.isfinite(gain) or gain < 0 or (gain and replace_by is not None):
        raise ValueError(f"gain must be 0 or more, and not given beside replace_by; found {gain}")
    values = None if replace_by is None else np.asarray(replace_by, dtype=np.float32)
    if values is not None and (values.shape != (len(array),) or not np.isfinite(values).all()):
        raise ValueError(f"replace_by must hold {len(array)} finite values, one a neuron; found {values}")
    return NeuronSet(array.astype(np.int64), float(gain), values, resample)


def _sizes(encoder: Encoder) -> list[int]:
    """Neurons of each counted layer, found by a dry run once and remembered for the modules' lifetime."""
    if any(module not in _widths for module in encoder.activations.values()):
        for name, width in widths(encoder).items():
            _widths[encoder.activations[name]] = width
    return [_widths[module] for module in encoder.activations.values()]


@contextlib.contextmanager
def _applied(
    encoder: Encoder, change: NeuronSet, donor: _Donor | None = None, above: int = -1, call: int = 0
) -> Iterator[dict[int, int]]:
    """The set's neurons of the layers above index `above` are changed; yields the calls of each layer so far.

    Each layer's first call counts as its call number `call`, where the clips are those of several chunks.
    """
    layers = [layer for layer in change.layers if layer > above]
    places = [change.neurons_of(layer).to(encoder.device) for layer in layers]
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
    encoder: Encoder, neurons: ArrayLike, gain: float = 0.0, replace_by: ArrayLike | None = None
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
    if complaint := _idle(encoder, calls):
        warnings.warn(complaint, RuntimeWarning, stacklevel=3)


def _idle(encoder: Encoder, calls: dict[int, int]) -> str:
    """What to say where a layer that was to be changed never ran, else ""."""
    if not (idle := [layer for layer, times in calls.items() if not times]):
        return ""
    return (
        f"{encoder.name}: layer {idle[0]} ({encoder.layers[idle[0]]!r}) did not run while its neurons were to be changed: "
        "nothing was silenced there.\nembed must call it each time; after torch.compile it does not: make the encoder of "
        "the module as it was before compiling."
    )


@torch.no_grad()
def embed_with_sets(
    encoder: Encoder, wave: Tensor, sets: Sequence[NeuronSet | None], donors: Tensor | None = None
) -> Tensor:
    """Embed a batch of clips once for every set of neurons.

    Args:
        encoder: any `Encoder`; with `stages` the shared part of the passes is computed once.
        wave: [batch, samples] at the encoder's sample rate.
        sets: from `neuron_set`, at least one; None stands for the encoder as it is.
        donors: clips of the same shape, whose activations the sets that resample take.

    Returns:
        Embeddings [sets, batch, dim], on the encoder's device.

    Raises:
        ValueError: a set that resamples without donors, stages that do not fit the encoder, or a layer that never runs.
    """
    stages = encoder.stages
    if stages is not None and len(stages.blocks) != len(encoder.layers):
        found = f"{len(stages.blocks)} blocks for {len(encoder.layers)} counted layers"
        raise ValueError(f"{encoder.name}: stages has {found}, expected one block a layer")
    resampling, donor = [change for change in sets if change is not None and change.resample], None
    if resampling:
        if donors is None:
            raise ValueError("a set that resamples needs the clips to take the activations from: give `donors`")
        donor = _Donor(encoder, donors.to(encoder.device), resampling)
    wave = wave.to(encoder.device)
    if stages is not None:
        return _staged(encoder, stages, wave, sets, donor)
    embeddings = []
    for change in sets:
        if change is None:
            embeddings.append(encoder.embed(wave))
            continue
        with _applied(encoder, change, donor) as calls:
            embeddings.append(encoder.embed(wave))
        if complaint := _idle(encoder, calls):
            raise ValueError(complaint)
    return torch.stack(embeddings)


def _staged(
    encoder: Encoder, stages: Stages, wave: Tensor, sets: Sequence[NeuronSet | None], donor: _Donor | None
) -> Tensor:
    """wave [batch, samples] -> [sets, batch, dim], each layer below a set's first one computed once for all sets.

    The intact hidden state walks up the blocks; whenever it reaches the first layer of a set, that set branches off
    and runs to the end. So one intact state and one branch are alive at a time, however many sets there are.
    """
    first = [len(stages.blocks) if change is None else change.layers[0] for change in sets]
    outputs: list[list[Tensor]] = [[] for _ in sets]  # by set, by chunk
    seen: list[Tensor] = []  # activations of the layer at hand
    sequences, finish = stages.begin(wave)
    for call, intact in enumerate(sequences):
        for layer in range(min(max(first) + 1, len(stages.blocks))):
            seen.clear()
            with hooked(encoder, [encoder.layers[layer]], lambda _, activations: seen.append(activations)):
                intact = stages.blocks[layer](intact)
            if len(seen) != 1:
                raise RuntimeError(
                    f"{encoder.name}: {encoder.layers[layer]!r} ran {len(seen)} times in block {layer} of its stages, "
                    "expected once. Give it stages whose block i holds counted layer i."
                )
            for s, change in enumerate(sets):
                if change is None or first[s] != layer:
                    continue
                neurons = change.neurons_of(layer).to(intact.device)
                a = seen[0][..., neurons]
                # What the change adds to the block's output [batch, tokens, width]: W (a' - a).
                columns = stages.projections[layer].weight[:, neurons]
                state = intact + nn.functional.linear(change.changed(layer, a, donor, call) - a, columns)
                with _applied(encoder, change, donor, above=layer, call=call):
                    for block in stages.blocks[layer + 1 :]:
                        state = block(state)
                outputs[s].append(state)
        for s, change in enumerate(sets):
            if change is None:
                outputs[s].append(intact)
    return torch.stack([finish(of_set) for of_set in outputs])
