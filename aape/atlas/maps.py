"""Where in time and frequency a neuron is active: its activations laid out on the model's own grid of tokens."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aape.encoders.encoder import Encoder, hooked

BATCH = 32  # clips at once
LEVELS = 15  # above 0, of a map that is written as text


class _AllSeen(Exception):
    """The deepest layer that was requested has been seen."""


def token_maps(encoder: Encoder, neurons: Any, waves: Any) -> np.ndarray:
    """Activations of neurons on the model's own grid, from one pass over the clips however many neurons.

    Args:
        encoder: the model; it must say where its tokens lie (`Encoder.token_grid`).
        neurons: int [k, 2] of (layer, neuron), counted from 0.
        waves: float32 [clips, samples] at the encoder's sample rate.

    Returns:
        float32 [clips, k, frequency, time], frequency from the lowest upwards and 1 where tokens are time only. Class
        tokens are left out; a cell that no token covers is 0.

    Raises:
        ValueError: the encoder has no grid, a neuron it does not have, or a grid that does not fit its tokens.
    """
    waves = torch.as_tensor(waves, dtype=torch.float32)
    if waves.ndim != 2:
        raise ValueError(f"waves: expected [clips, samples], found shape {tuple(waves.shape)}")
    neurons, found = np.asarray(neurons, dtype=np.int64).reshape(-1, 2), []
    for batch in waves.split(BATCH) if len(waves) else ():
        clips = np.arange(len(batch)).repeat(len(neurons))
        maps = maps_of_pairs(encoder, batch, clips, np.tile(neurons, (len(batch), 1)))
        found.append(maps.reshape(len(batch), len(neurons), *maps.shape[1:]))
    return np.concatenate(found) if found else np.zeros((0, len(neurons), 0, 0), np.float32)


def maps_of_pairs(
    encoder: Encoder, waves: Tensor, clips: np.ndarray, neurons: np.ndarray, stop: bool = False
) -> np.ndarray:
    """Maps [pairs, frequency, time] as those of `token_maps`, for each of some pairs of a clip and a neuron.

    Args:
        waves: of the clips that go through the model together [batch, samples]. clips: int [pairs], of these.
        neurons: int [pairs, 2]. stop: leave the model behind the last layer that is looked at; what calls it makes
            then is not checked against the grid.
    """
    cells, (rows, columns) = grid_of(encoder, waves.shape[1])
    wrong = neurons[(neurons < 0).any(axis=1) | (neurons[:, 0] >= len(encoder.layers))]
    if len(wrong):
        raise ValueError(
            f"{encoder.name} has no layer {wrong[0, 0]}; it has 0 to {len(encoder.layers) - 1}"
        )
    used = np.unique(neurons[:, 0])
    places = [np.flatnonzero(neurons[:, 0] == layer) for layer in used]  # among the pairs
    maps = torch.zeros(len(neurons), rows * columns, device=encoder.device)
    calls = [0] * len(used)

    def see(place: int, output: Tensor) -> None:
        call = calls[place]
        calls[place] += 1
        values = output.detach().flatten(1, -2)  # [batch, tokens, neurons]
        if call >= len(cells) or values.shape[1] != len(cells[call]):
            raise ValueError(
                f"{encoder.name}: token_grid speaks of {len(cells)} calls with {[len(c) for c in cells]} tokens, call "
                f"{call} of layer {encoder.layers[used[place]]!r} has {values.shape[1]}; make it agree with embed"
            )
        at = places[place]
        mine = neurons[at, 1]
        if mine.max() >= values.shape[2]:
            raise ValueError(
                f"{encoder.name}: no neuron {mine.max()} in layer {used[place]}, of {values.shape[2]}"
            )
        on_map = cells[call] >= 0
        picked = values[
            torch.from_numpy(clips[at]), :, torch.from_numpy(mine)
        ].float()  # [pairs of the layer, tokens]
        maps[torch.from_numpy(at)[:, None], cells[call][on_map]] = picked[:, on_map]
        if stop and all(done == len(cells) for done in calls):
            raise _AllSeen

    layers = [encoder.layers[layer] for layer in used]
    with contextlib.suppress(_AllSeen), hooked(encoder, layers, see), torch.no_grad():
        encoder.embed(waves.to(encoder.device))
    if set(calls) != {len(cells)}:
        raise ValueError(
            f"{encoder.name}: token_grid speaks of {len(cells)} calls, embed made {calls} of the layers"
        )
    return maps.reshape(-1, rows, columns).cpu().numpy()


def grid_of(encoder: Encoder, samples: int) -> tuple[list[Tensor], tuple[int, int]]:
    """For each call of a layer the flat cell of every token [tokens], -1 off the map; and (frequency, time) of the map.

    Raises:
        ValueError: the encoder does not say where its tokens lie.
    """
    if encoder.token_grid is None:
        raise ValueError(
            f"{encoder.name} does not say where its tokens lie in time and frequency. Give from_module "
            "samples_per_token= (tokens that follow each other in time) or token_grid= (any other layout)."
        )
    calls = encoder.token_grid(samples)
    rows, columns = (1 + max(int(cells[:, axis].max()) for cells in calls) for axis in (0, 1))
    flat = [torch.where((c < 0).any(dim=1), -1, c[:, 0] * columns + c[:, 1]).cpu() for c in calls]
    return flat, (rows, columns)


def pooled(maps: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean of what is above 0, over blocks of cells: [..., frequency, time] -> at most [..., rows, columns]."""
    maps = np.maximum(maps, 0)
    for axis, most in ((-2, rows), (-1, columns)):
        size = maps.shape[axis]
        if size > most:
            starts = np.arange(most) * size // most
            width = np.diff([*starts, size]).astype(np.float32)
            maps = np.add.reduceat(maps, starts, axis=axis) / (
                width[:, None] if axis == -2 else width
            )
    return maps


def packed(maps: np.ndarray, top: float) -> str:
    """Maps as text: 16 levels from 0 to `top`, two cells a byte (the first in the high half), in base64."""
    levels = np.rint(np.clip(maps.reshape(-1) / (top or 1), 0, 1) * LEVELS).astype(np.uint8)
    levels = np.append(levels, np.zeros(len(levels) % 2, np.uint8)).reshape(-1, 2)
    return base64.b64encode((levels[:, 0] << 4 | levels[:, 1]).tobytes()).decode()
