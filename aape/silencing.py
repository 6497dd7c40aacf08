"""Turning neurons down, off, up, or to their mean, and embedding clips with many such sets at little cost.

A neuron's activation is multiplied by a gain where the activation module hands it on: 0 silences it, 0 < gain < 1
weakens it, gain > 1 strengthens it. Zero is not what a neuron does on average, so that it can also be replaced by a
value, such as its mean over the training split (`mean_activations`).

    with silenced(encoder, [[3, 17], [5, 2]]):
        embedding = encoder.embed(wave)

`embed_with_sets` embeds batches of clips once for each of many sets. Where the encoder comes with its `stages`, the
front end runs once per batch, the blocks below a set's first layer run once for all sets, and each set pays only for
the layers that follow. If the stages name the projection behind each counted layer, not even the block of the first
silenced layer is computed again: silencing k neurons there changes its output by the k columns of the projection, an
[tokens, k] by [k, width] product. Staged embeddings equal those of full passes to 1e-6 of the largest absolute
embedding value, not bit for bit, since that one sum is taken in another order; without projections, and with
`staged=False`, the same operations run on the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from aape.counting import widths
from aape.encoder import Encoder, Stages

_widths: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # activation module -> neurons, from a dry run


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons that are changed together.

    Attributes:
        neurons: int64 [k, 2] of (layer index, neuron index), both from 0.
        gain: factor on their activations.
        replace_by: float32 [k], values that take the activations' place, or None.
    """

    neurons: np.ndarray
    gain: float = 0.0
    replace_by: np.ndarray | None = None

    @property
    def first_layer(self) -> int:
        """Index of the lowest layer that is changed."""
        return int(self.neurons[:, 0].min())

    def neurons_of(self, layer: int) -> np.ndarray:
        """Neuron indices [n] in one layer."""
        return self.neurons[self.neurons[:, 0] == layer, 1]

    def values_of(self, layer: int) -> np.ndarray | None:
        """What takes the place of the activations in one layer [n], or None."""
        return None if self.replace_by is None else self.replace_by[self.neurons[:, 0] == layer]


def _sizes(encoder: Encoder) -> list[int]:
    """Neurons of each counted layer, found by a dry run once and remembered for the modules' lifetime."""
    if any(module not in _widths for module in encoder.activations.values()):
        for name, width in widths(encoder).items():
            _widths[encoder.activations[name]] = width
    return [_widths[module] for module in encoder.activations.values()]


def neuron_set(
    encoder: Encoder, neurons: ArrayLike | Tensor, gain: float = 0.0, replace_by: ArrayLike | Tensor | None = None
) -> NeuronSet:
    """A `NeuronSet` checked against the encoder.

    Args:
        encoder: whose layers and neurons the indices mean.
        neurons: integers [k, 2] of (layer index, neuron index), k >= 1, no pair twice.
        gain: factor, 0 or more. Has no meaning, and must be left alone, with `replace_by`.
        replace_by: values [k] in place of the activations.

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
    array = neurons.detach().cpu().numpy() if isinstance(neurons, Tensor) else np.asarray(neurons)
    if array.size == 0:
        raise ValueError("the set of neurons is empty: there is nothing to silence, expected [k, 2] with k >= 1")
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"neurons must be integers [k, 2] of (layer index, neuron index), found {array.dtype} {list(array.shape)}"
        )
    array = array.astype(np.int64)
    sizes = _sizes(encoder)
    for layer, neuron in array:
        if not 0 <= layer < len(encoder.layers):
            raise ValueError(
                f"neuron [{layer}, {neuron}]: {encoder.name} has {len(encoder.layers)} counted layers, indices 0 to "
                f"{len(encoder.layers) - 1}"
            )
        width = sizes[layer]
        if not 0 <= neuron < width:
            raise ValueError(
                f"neuron [{layer}, {neuron}]: layer {layer} ({encoder.layers[layer]!r}) of {encoder.name} has {width} "
                f"neurons, indices 0 to {width - 1}"
            )
    unique, counts = np.unique(array, axis=0, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"neuron {unique[counts > 1][0].tolist()} is in the set {counts.max()} times, expected once")
    if not math.isfinite(gain) or gain < 0:
        raise ValueError(f"gain must be 0 or more (0 silences, 1 changes nothing), found {gain}")
    values = None
    if replace_by is not None:
        if gain != 0:
            raise ValueError(f"gain={gain} and replace_by exclude each other: give one of them")
        values = replace_by.detach().cpu().numpy() if isinstance(replace_by, Tensor) else np.asarray(replace_by)
        if values.shape != (len(array),) or not np.isfinite(values.astype(np.float64)).all():
            raise ValueError(
                f"replace_by must hold one finite value for each of the {len(array)} neurons, found shape "
                f"{list(values.shape)}{'' if values.shape != (len(array),) else ' with values that are not finite'}"
            )
        values = values.astype(np.float32)
    return NeuronSet(array, float(gain), values)


def _hook(
    encoder: Encoder, change: NeuronSet, layer: int, ran: set[int] | None = None, spare: bool = False
) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that hands on a changed copy of the activations of one layer.

    The copy is needed: an activation function may hand on its input, and other hooks may keep its output, neither of
    which is ours to write to. With `spare`, where nobody else looks on, it is saved unless input and output share
    memory.
    """
    index = torch.from_numpy(change.neurons_of(layer)).to(encoder.device)
    replacement = change.values_of(layer)
    values = None if replacement is None else torch.from_numpy(replacement).to(encoder.device)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if ran is not None:
            ran.add(layer)
        activations: Tensor = output[0] if isinstance(output, tuple) else output
        shared = not spare or any(
            isinstance(a, Tensor) and a.untyped_storage().data_ptr() == activations.untyped_storage().data_ptr()
            for a in args
        )
        changed = activations.clone() if shared else activations
        if values is None:
            changed[..., index] = activations[..., index] * change.gain
        else:
            changed[..., index] = values.to(activations.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


@contextlib.contextmanager
def _hooked(
    encoder: Encoder, change: NeuronSet, above: int = -1, ran: set[int] | None = None, spare: bool = False
) -> Iterator[list[RemovableHandle]]:
    """Hooks for the changed layers above index `above`, removed on the way out whatever happens."""
    handles: list[RemovableHandle] = []
    try:
        for layer in np.unique(change.neurons[:, 0]).tolist():
            if layer > above:
                module = encoder.activations[encoder.layers[layer]]
                handles.append(module.register_forward_hook(_hook(encoder, change, layer, ran, spare)))
        yield handles
    finally:
        for handle in handles:
            handle.remove()


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
    ran: set[int] = set()
    with _hooked(encoder, change, ran=ran):
        yield encoder
    idle = sorted(set(change.neurons[:, 0].tolist()) - ran)
    if idle:
        warnings.warn(
            f"{encoder.name}: layer {idle[0]} ({encoder.layers[idle[0]]!r}) did not run while its neurons were to be "
            "changed: nothing was silenced there",
            RuntimeWarning,
            stacklevel=3,
        )


def require_effect(before: Tensor, after: Tensor, what: str) -> float:
    """Largest absolute change of the embeddings [clips, dim]; no change at all is an error.

    Raises:
        RuntimeError: the two are identical, so the set does nothing (dead neurons, or a module that is bypassed).
    """
    largest = float((after - before).abs().max()) if before.numel() else 0.0
    if largest == 0.0:
        raise RuntimeError(
            f"{what}: the embeddings of {len(before)} clips are the same, bit for bit, with and without the change. "
            "Expected the chosen neurons to act. Either they are 0 on all these clips, or the hooked modules are not "
            "on the way to the embedding."
        )
    return largest


def _on_device(encoder: Encoder, wave: Tensor) -> Tensor:
    if wave.ndim != 2 or wave.shape[0] == 0:
        raise ValueError(f"a batch of waves is [batch, samples], found {list(wave.shape)}")
    return wave.to(encoder.device, dtype=torch.float32)


def embed_with_sets(
    encoder: Encoder, waves: Iterable[Tensor], sets: Sequence[NeuronSet | None], *, staged: bool | None = None
) -> Iterator[Tensor]:
    """Embed clips once for every set of neurons.

    Args:
        encoder: any `Encoder`; with `stages` the shared part of the passes is computed once.
        waves: batches [batch, samples] at the encoder's sample rate, one after the other; only one is held.
        sets: from `neuron_set`; None stands for the encoder as it is.
        staged: True insists on stages, False runs full passes, None takes stages where there are any.

    Yields:
        For each batch the embeddings [sets, batch, dim], on the encoder's device.

    Raises:
        ValueError: no sets, or `staged=True` without stages.
    """
    if not sets:
        raise ValueError("no sets to embed with: expected at least one NeuronSet, or None for the intact encoder")
    stages = encoder.stages
    if staged and stages is None:
        raise ValueError(f"{encoder.name} has no stages: leave staged=None, or give Encoder its `stages`")
    if stages is not None and staged is not False:
        if len(stages.blocks) != len(encoder.layers):
            raise ValueError(
                f"{encoder.name}: stages has {len(stages.blocks)} blocks for {len(encoder.layers)} counted layers, "
                "expected one block a layer"
            )
        for wave in waves:
            yield _staged(encoder, stages, _on_device(encoder, wave), sets)
    else:
        for wave in waves:
            yield _full(encoder, _on_device(encoder, wave), sets)


@torch.inference_mode()
def _full(encoder: Encoder, wave: Tensor, sets: Sequence[NeuronSet | None]) -> Tensor:
    """One whole pass a set: wave [batch, samples] -> [sets, batch, dim]."""
    embeddings = []
    for change in sets:
        if change is None:
            embeddings.append(encoder.embed(wave))
        else:
            with _hooked(encoder, change):
                embeddings.append(encoder.embed(wave))
    return torch.stack(embeddings)


@torch.inference_mode()
def _staged(encoder: Encoder, stages: Stages, wave: Tensor, sets: Sequence[NeuronSet | None]) -> Tensor:
    """wave [batch, samples] -> [sets, batch, dim], each layer below a set's first one computed once for all sets.

    The intact hidden state walks up the blocks; whenever it reaches the first layer of a set, that set branches off
    and runs to the end. So one intact state and one branch are alive at a time, however many sets there are.
    """
    depth = len(stages.blocks)
    branching: dict[int, list[tuple[int, NeuronSet]]] = {}  # first layer -> sets by their place in the answer
    for s, change in enumerate(sets):
        if change is not None:
            branching.setdefault(change.first_layer, []).append((s, change))
    unchanged = [s for s, change in enumerate(sets) if change is None]
    top = depth if unchanged else max(branching) + 1  # the intact state need not climb further
    outputs: list[list[Tensor]] = [[] for _ in sets]  # by set, by chunk
    for intact in stages.begin(wave):
        for layer in range(top):
            branches = branching.get(layer, [])
            if branches and stages.projections is not None:
                members = np.unique(np.concatenate([change.neurons_of(layer) for _, change in branches]))
                intact, activations = _block_and_activations(encoder, stages, layer, intact, members)
                for s, change in branches:
                    step = _difference(change, layer, activations, members, stages.projections[layer])
                    outputs[s].append(_climb(encoder, stages, change, layer + 1, intact + step))
            else:
                for s, change in branches:
                    outputs[s].append(_climb(encoder, stages, change, layer, intact))
                if layer + 1 < top or unchanged:
                    intact = stages.blocks[layer](intact)
        for s in unchanged:
            outputs[s].append(intact)
    return torch.stack([stages.finish(sequences) for sequences in outputs])


def _climb(encoder: Encoder, stages: Stages, change: NeuronSet, start: int, state: Tensor) -> Tensor:
    """The blocks from index `start` on, with the set's neurons of those layers changed."""
    with _hooked(encoder, change, above=start - 1, spare=True):
        for block in stages.blocks[start:]:
            state = block(state)
    return state


def _block_and_activations(
    encoder: Encoder, stages: Stages, layer: int, state: Tensor, members: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Output of one block, and the activations [batch, tokens, members] of some of its neurons."""
    index = torch.from_numpy(members).to(state.device)
    seen: list[Tensor] = []
    module = encoder.activations[encoder.layers[layer]]
    handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output[..., index]))
    try:
        state = stages.blocks[layer](state)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise RuntimeError(
            f"{encoder.name}: {encoder.layers[layer]!r} ran {len(seen)} times in block {layer} of its stages, "
            "expected once. Give it stages whose block i holds counted layer i."
        )
    return state, seen[0]


def _difference(
    change: NeuronSet, layer: int, activations: Tensor, members: np.ndarray, projection: nn.Linear
) -> Tensor:
    """What changing a set's neurons of this layer adds to the block's output [batch, tokens, width].

    W (a' - a) over the changed neurons, with W the projection's columns and a' = gain * a or the replacement.
    """
    neurons, values = change.neurons_of(layer), change.values_of(layer)
    a = activations[..., torch.from_numpy(np.searchsorted(members, neurons)).to(activations.device)]
    if values is None:
        step = a * (change.gain - 1.0)
    else:
        step = torch.from_numpy(values).to(a) - a
    return nn.functional.linear(step, projection.weight[:, torch.from_numpy(neurons).to(activations.device)])


@torch.inference_mode()
def mean_activations(encoder: Encoder, waves: Iterable[Tensor], neurons: ArrayLike | Tensor) -> np.ndarray:
    """Mean activation of some neurons over all tokens of all clips, the value for `replace_by`.

    Args:
        encoder: any `Encoder`.
        waves: batches [batch, samples], of the training split, say. Tokens of zero padding count as in the embedding.
        neurons: integers [k, 2].

    Returns:
        float32 [k], in the order of `neurons`.

    Raises:
        ValueError: see `neuron_set`; no clip.
    """
    chosen = neuron_set(encoder, neurons).neurons
    totals = np.zeros(len(chosen))  # float64
    tokens = np.zeros(len(encoder.layers))
    with contextlib.ExitStack() as stack:
        for layer in np.unique(chosen[:, 0]).tolist():
            rows = np.flatnonzero(chosen[:, 0] == layer)
            index = torch.from_numpy(chosen[rows, 1]).to(encoder.device)

            def add(
                _module: nn.Module,
                _args: Any,
                output: Tensor,
                layer: int = layer,
                rows: np.ndarray = rows,
                index: Tensor = index,
            ) -> None:
                a = output[..., index].flatten(0, -2)  # [tokens, k]
                totals[rows] += a.sum(0, dtype=torch.float64).cpu().numpy()
                tokens[layer] += len(a)

            stack.callback(encoder.activations[encoder.layers[layer]].register_forward_hook(add).remove)
        for wave in waves:
            encoder.embed(_on_device(encoder, wave))
    if not tokens[chosen[:, 0]].all():
        raise ValueError("mean activations need at least one clip that passes through the chosen layers, found none")
    return (totals / tokens[chosen[:, 0]]).astype(np.float32)


def hooks_left(encoder: Encoder) -> Mapping[str, int]:
    """Forward hooks by module name, over the whole model: what a check for leftovers compares before and after."""
    return {name: len(m._forward_hooks) for name, m in encoder.module.named_modules() if m._forward_hooks}
