"""Plays the battery to an encoder and records what every neuron does.

The response of a neuron to a sound is recorded in two ways over the tokens of the response window: the share of active
tokens (activation > 0), and the mean activation. A token belongs to the window if its centre in time does; class tokens have
no place in time and belong to no window. Encoders that do not know where their tokens lie are recorded over all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from aape.collecting.counting import count_active
from aape.encoders.dry_run import numbered
from aape.encoders.encoder import Encoder, choose_device, full_precision, hooked
from aape.resuming import code_version, resumed
from aape.sounds.task import in_batches
from aape.tuning.battery import battery, waveform

BATCH_SIZE = 16
MEASURES = ("share", "mean")


@dataclass(frozen=True)
class Responses:
    """Responses of all neurons to all sounds.

    Attributes:
        battery: the sounds, see `aape.tuning.battery`.
        seconds: their duration.
        layer, neuron: int64 [neurons]; neurons of all layers follow each other.
        share: share of active tokens in the response window, float32 [sounds, neurons].
        mean: mean activation there, in standard deviations of the neuron's activation over all tokens of steady responses,
            float32 [sounds, neurons].
    """

    battery: pd.DataFrame
    seconds: float
    layer: np.ndarray
    neuron: np.ndarray
    share: np.ndarray
    mean: np.ndarray


def record(
    encoder: Encoder,
    *,
    out_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
) -> Responses:
    """Play the whole battery to an encoder.

    Sounds last 1 s, or as long as the encoder takes at once if that is shorter or if it takes only one length.

    Args:
        encoder: the model.
        out_dir: where responses are kept, so that an interrupted call resumes; None keeps nothing.
        device: of the forward passes; CUDA if available, else the CPU.
        batch_size: sounds per forward pass.
    """
    samples = encoder.dry_samples
    seconds = samples / encoder.sample_rate
    sounds = battery(encoder.sample_rate, seconds)
    encoder.to(choose_device(device))
    layer, neuron = numbered(encoder)
    batches = _batches(sounds, batch_size or BATCH_SIZE)

    def compute(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        for name in tqdm(names, desc=f"playing {len(sounds)} sounds", disable=None):
            yield respond(encoder, sounds.iloc[batches[name]])

    if out_dir is None:
        results = list(compute(list(batches)))
    else:
        code = code_version("tuning/stimuli", "tuning/battery", "tuning/responses")
        rows_of = {name: rows.tolist() for name, rows in batches.items()}
        results = [
            dict(result)
            for result in resumed(
                Path(out_dir) / "responses", encoder.identity, rows_of, compute, code=code
            )
        ]
    order = np.argsort(np.concatenate(list(batches.values())))
    share = np.concatenate([result["share"] for result in results])[order]
    mean = np.concatenate([result["mean"] for result in results])[order]
    return Responses(
        battery=sounds,
        seconds=seconds,
        layer=layer,
        neuron=neuron,
        share=share,
        mean=mean / _token_deviation(results, sounds, batches),
    )


def _batches(sounds: pd.DataFrame, batch_size: int) -> dict[str, np.ndarray]:
    """Name of each batch -> its rows of the battery; sounds of a batch share their response window."""
    batches: dict[str, np.ndarray] = {}
    for group in sounds.groupby(["start", "end"]).indices.values():
        for rows in in_batches(np.asarray(group), batch_size):
            batches[f"sounds-{len(batches):04d}"] = rows
    return batches


def _token_deviation(
    results: Sequence[dict[str, np.ndarray]], sounds: pd.DataFrame, batches: dict[str, np.ndarray]
) -> np.ndarray:
    """Standard deviation of each neuron's activation over the tokens of all steady responses [neurons]."""
    steady = [sounds.start[rows[0]] == sounds.start.min() for rows in batches.values()]
    chosen = [result for result, is_steady in zip(results, steady, strict=True) if is_steady]
    sizes = [len(result["mean"]) for result in chosen]
    square = np.average([result["square"] for result in chosen], axis=0, weights=sizes)
    mean = np.average([result["mean"].mean(axis=0) for result in chosen], axis=0, weights=sizes)
    variance = np.maximum(square - mean**2, 0)
    return np.maximum(np.sqrt(variance), 1e-12).astype(np.float32)


def respond(encoder: Encoder, sounds: pd.DataFrame) -> dict[str, np.ndarray]:
    """Responses to some sounds with one response window.

    Returns:
        share and mean, float32 [sounds, neurons]; square, the mean of squared activations over sounds and tokens, float32
        [neurons].
    """
    samples = encoder.dry_samples
    waves = np.stack([waveform(row, encoder.sample_rate, samples) for _, row in sounds.iterrows()])
    tokens = tokens_in_window(encoder, samples, sounds.start.iloc[0], sounds.end.iloc[0])
    layers = len(encoder.layers)
    active: list[list[Tensor]] = [[] for _ in range(layers)]  # one tensor per call
    sums: list[list[Tensor]] = [[] for _ in range(layers)]
    squares: list[list[Tensor]] = [[] for _ in range(layers)]
    counts: list[list[int]] = [[] for _ in range(layers)]

    def see(layer: int, output: Tensor) -> None:
        values = output.detach().flatten(1, -2).float()  # [sounds, tokens, neurons]
        call = len(counts[layer])
        if tokens is not None:
            values = values[:, tokens[call].to(values.device)]
        in_window, _, total = count_active(values)
        counts[layer].append(values.shape[1])
        active[layer].append(in_window)
        sums[layer].append(total)
        squares[layer].append(values.square().sum(dim=(0, 1)))

    with torch.no_grad(), full_precision(), hooked(encoder, encoder.layers, see):
        encoder.embed(torch.from_numpy(waves).to(encoder.device))
    share, mean, square = [], [], []
    for layer in range(layers):
        total = sum(counts[layer])
        share.append(torch.stack(active[layer]).sum(dim=0) / total)
        mean.append(torch.stack(sums[layer]).sum(dim=0) / total)
        square.append(torch.stack(squares[layer]).sum(dim=0) / (total * len(waves)))
    return {
        "share": torch.cat(share, dim=1).float().cpu().numpy(),
        "mean": torch.cat(mean, dim=1).cpu().numpy(),
        "square": torch.cat(square).cpu().numpy(),
    }


def tokens_in_window(
    encoder: Encoder, samples: int, start: float, end: float
) -> list[Tensor] | None:
    """Indices of the tokens of each call whose centre lies in a window of time; None if that is not known.

    A window that holds no token gets the tokens nearest to its middle.
    """
    if encoder.token_grid is None:
        return None
    calls = encoder.token_grid(samples)
    columns = 1 + max(int(cells[:, 1].max()) for cells in calls)
    cell_seconds = encoder.cell_seconds or samples / encoder.sample_rate / columns
    centres = [(cells[:, 1] + 0.5) * cell_seconds for cells in calls]  # of class tokens below 0
    inside = [(centre >= start) & (centre < end) for centre in centres]
    if not any(chosen.any() for chosen in inside):
        distances = [(centre - (start + end) / 2).abs() for centre in centres]
        nearest = min(float(distance.min()) for distance in distances)
        inside = [distance <= nearest + 1e-6 for distance in distances]
    return [torch.nonzero(chosen).flatten() for chosen in inside]
