"""Linear receptive fields on natural sound: what part of a neuron's activation does the local spectrogram predict?

    fields = receptive_fields(encoder, task)
    fields.correlation                                  # held-out, per neuron
    fields.field(layer, neuron)                         # [lags, bands]

The activation at every token is regressed on 310 ms of log-mel spectrogram around it (31 frames x 32 bands), as
spectro-temporal receptive fields are estimated from natural sounds (Theunissen, Sen and Doupe, J. Neurosci. 20:2315, 2000;
ridge regression takes the place of their regularisation). Folds hold whole groups of clips, so that no recording is in both
the fitted and the tested part. Tokens of one point in time but several frequency bins (patches) are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from aape.display import Displayed
from aape.encoders.dry_run import numbered
from aape.encoders.encoder import Encoder, choose_device, full_precision, hooked
from aape.files import whole_file
from aape.sounds.task import BadClip, Task, in_batches, prefetched
from aape.tuning.ridge import Sums, cross_fit, weights
from aape.tuning.spectrogram import BANDS, HOP_SECONDS, LAGS, filters, local, log_mel

FOLDS = 4
BATCH_SIZE = 8


@dataclass(frozen=True, repr=False)
class ReceptiveFields(Displayed):
    """Receptive fields of all neurons of an encoder.

    Attributes:
        model, task: names of encoder and sounds.
        layer, neuron: int64 [neurons].
        correlation: between prediction and activation on held-out groups [neurons].
        fields: weights of all clips, float32 [LAGS, BANDS, neurons], activation per bel.
        lags: time of each frame relative to the token, s.
        bands: centre frequency of each band, Hz.
        strength: of the penalty, relative to the mean variance of a feature.
        clips, groups: their numbers.
    """

    model: str
    task: str
    layer: np.ndarray
    neuron: np.ndarray
    correlation: np.ndarray
    fields: np.ndarray
    lags: np.ndarray
    bands: np.ndarray
    strength: float
    clips: int
    groups: int

    def field(self, layer: int, neuron: int) -> pd.DataFrame:
        """One neuron's field, lags (s) by bands (Hz).

        Raises:
            KeyError: no such neuron.
        """
        chosen = np.flatnonzero((self.layer == layer) & (self.neuron == neuron))
        if not len(chosen):
            raise KeyError(f"{self.model} has no neuron {neuron} in layer {layer}")
        return pd.DataFrame(self.fields[:, :, chosen[0]], index=self.lags, columns=self.bands)

    def table(self) -> pd.DataFrame:
        """One row per neuron: layer, neuron, held-out correlation, and the band with the largest weight, Hz."""
        best_band = self.bands[self.fields.max(axis=0).argmax(axis=0)]
        columns = {
            "layer": self.layer,
            "neuron": self.neuron,
            "correlation": self.correlation,
            "best_band_hz": best_band,
        }
        return pd.DataFrame(columns)

    def save(self, path: str | Path) -> Path:
        """Write everything into one .npz file; returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(file, **vars(self))
        return path

    @classmethod
    def load(cls, path: str | Path) -> ReceptiveFields:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        return cls(
            **{name: value.item() if value.ndim == 0 else value for name, value in values.items()}
        )

    def _facts(self) -> dict[str, str]:
        medians = pd.Series(self.correlation).groupby(self.layer).median()
        by_layer = ", ".join(f"{layer}: {median:.2f}" for layer, median in medians.items())
        return {
            "sounds": f"{self.clips:,} clips of {self.task} in {self.groups:,} groups",
            "median held-out correlation by layer": by_layer,
        }

    def _title(self) -> str:
        return f"Receptive fields of {self.model}"


def receptive_fields(
    encoder: Encoder,
    task: Task,
    *,
    clips: Sequence[int] | np.ndarray | None = None,
    groups: Sequence[str] | np.ndarray | None = None,
    folds: int = FOLDS,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> ReceptiveFields:
    """Fit the receptive field of every neuron and test it on other groups of clips.

    Args:
        encoder: with a token grid.
        task: the sounds; labels are not used.
        clips: indices of the clips to use; all.
        groups: of these clips; the task's. Clips of one group stay in one fold.
        folds: at least 3.
        device: of the forward passes; CUDA if available, else the CPU.
        batch_size: clips per forward pass.
        seed: of the folds.

    Raises:
        ValueError: the encoder does not know where its tokens lie, or there are too few folds or groups.
        BadClip: a clip that cannot be read.
    """
    chosen = np.arange(len(task)) if clips is None else np.asarray(clips)
    grouped = np.asarray(task.groups)[chosen] if groups is None else np.asarray(groups)
    names, group = np.unique(grouped, return_inverse=True)
    if folds < 3 or len(names) < folds:
        raise ValueError(
            f"folds={folds} with {len(names)} groups of clips: expected at least 3 folds and a group for each"
        )
    encoder.to(choose_device(device))
    layer, neuron = numbered(encoder)
    samples = task.samples(encoder.sample_rate)
    places = _places(encoder, samples)
    fold = np.random.default_rng(seed).permutation(len(names))[group] % folds
    sums = [Sums(LAGS * BANDS, len(layer)) for _ in range(folds)]
    batches = _batches(fold, batch_size or BATCH_SIZE)
    origin: np.ndarray | None = None
    reading = prefetched(task, [chosen[rows] for rows in batches], encoder.sample_rate)
    for rows, (waves, _, complaints) in zip(
        tqdm(batches, desc="receptive fields", disable=None), reading, strict=True
    ):
        if complaints:
            raise BadClip(next(iter(complaints.values())))
        x, y = observations(encoder, torch.from_numpy(waves), places)
        if origin is None:
            origin = y.mean(axis=0)
        sums[fold[rows[0]]].add(x, y, origin)
    correlation, strength = cross_fit(sums)
    (solution,) = weights(Sums.total(sums), [strength])
    return ReceptiveFields(
        model=encoder.name,
        task=task.name,
        layer=layer,
        neuron=neuron,
        correlation=correlation,
        fields=solution.reshape(LAGS, BANDS, -1),
        lags=(np.arange(LAGS) - LAGS // 2) * HOP_SECONDS,
        bands=filters(encoder.sample_rate)[1],
        strength=strength,
        clips=len(chosen),
        groups=len(names),
    )


def _batches(fold: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Positions among the clips of each batch; a batch lies in one fold."""
    batches = []
    for number in np.unique(fold):
        batches += in_batches(np.flatnonzero(fold == number), batch_size)
    return batches


@dataclass(frozen=True)
class Places:
    """Where the tokens of a wave lie in time.

    Attributes:
        column: time cell of each token of each call, -1 for class tokens; one tensor [tokens] per call.
        centres: middle of each time cell that holds a token within the wave, s [cells].
        cells: these time cells.
    """

    column: list[Tensor]
    centres: Tensor
    cells: Tensor


def _places(encoder: Encoder, samples: int) -> Places:
    """The places of the tokens for waves of a length. Raises ValueError if the encoder does not know them."""
    if encoder.token_grid is None:
        raise ValueError(
            f"{encoder.name} does not say where its tokens lie in time; give from_module samples_per_token= or token_grid="
        )
    column = [cells[:, 1].cpu() for cells in encoder.token_grid(samples)]
    every = torch.cat(column)
    cells = torch.unique(every[every >= 0])
    seconds = samples / encoder.sample_rate
    cell_seconds = encoder.cell_seconds or seconds / (int(cells.max()) + 1)
    centres = (cells + 0.5) * cell_seconds
    return Places(column, centres[centres < seconds], cells[centres < seconds])


def observations(encoder: Encoder, waves: Tensor, places: Places) -> tuple[np.ndarray, np.ndarray]:
    """Local spectrograms, float32 [points, LAGS * BANDS], and activations [points, neurons], of all clips and time cells."""
    size = int(places.cells.max()) + 1
    per_layer: list[list[Tensor]] = [[] for _ in encoder.layers]

    def see(layer: int, output: Tensor) -> None:
        per_layer[layer].append(output.detach().flatten(1, -2).float())

    with torch.no_grad(), full_precision(), hooked(encoder, encoder.layers, see):
        encoder.embed(waves.to(encoder.device))
    activations = []
    for calls in per_layer:
        values = torch.cat(calls, dim=1)
        column = torch.cat(places.column).to(values.device)
        kept = (column >= 0) & (column < size)
        total = torch.zeros(len(values), size, values.shape[2], device=values.device)
        total.index_add_(1, column[kept], values[:, kept])
        tokens = torch.bincount(column[kept], minlength=size).clamp(min=1)
        mean = total / tokens[:, None]
        activations.append(mean[:, places.cells.to(values.device)].flatten(0, 1).cpu())
    x = local(log_mel(waves, encoder.sample_rate), places.centres).flatten(0, 1)
    return x.numpy(), torch.cat(activations, dim=1).numpy()


def tone_agreement(
    fields: ReceptiveFields, curves: np.ndarray, frequencies: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Does tuning to tones predict the receptive field?

    Per neuron the correlation over bands between its curve for tones and the frequency profile of its field (the weights
    summed over lags), and the same with the curve of a random other neuron of its layer.

    Args:
        fields: of an encoder.
        curves: of the same encoder, `Tuning.curves["frequency"]` [frequencies, neurons].
        frequencies: Hz, `Tuning.axes["frequency"]`.
        seed: of the random neurons.

    Returns:
        Columns layer, neuron, correlation, shuffled.
    """
    rng = np.random.default_rng(seed)
    inside = (fields.bands >= frequencies[0]) & (fields.bands <= frequencies[-1])
    bands = np.log(fields.bands[inside])
    tones = np.stack(
        [np.interp(bands, np.log(frequencies), curve) for curve in curves.T]
    )  # [neurons, bands]
    profiles = fields.fields.sum(axis=0)[inside].T
    other = np.arange(len(tones))
    for layer in np.unique(fields.layer):
        members = np.flatnonzero(fields.layer == layer)
        other[members] = rng.permutation(members)
    columns = {"layer": fields.layer, "neuron": fields.neuron}
    columns |= {
        "correlation": _rowwise(tones, profiles),
        "shuffled": _rowwise(tones[other], profiles),
    }
    return pd.DataFrame(columns)


def _rowwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of each row of a with the same row of b."""
    a, b = (rankdata(values, axis=1) for values in (a, b))
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    norms = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
