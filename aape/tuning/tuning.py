"""`tune`: play test sounds to an encoder and describe what each neuron responds to. No data and no labels are needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from aape.display import Displayed
from aape.encoders.encoder import Encoder
from aape.files import whole_file, write_json
from aape.tuning.analysis import analyse, compare_measures, neuron_table, tuned_by_layer
from aape.tuning.curves import LEAST_SIZE
from aape.tuning.responses import record
from aape.tuning.sentences import sentence


@dataclass(frozen=True, repr=False)
class Tuning(Displayed):
    """Tuning of every neuron of an encoder.

    Attributes:
        model: name of the encoder.
        identity: SHA-256 of the encoder's state.
        measure: the response that the tuning is computed from: "share" of active tokens, or "mean" activation in standard
            deviations over tokens.
        seconds: duration of the sounds.
        neurons: one row per neuron, see `table`.
        axes: curve -> its conditions: frequency, modulation, fundamental, click_rate (Hz), level (dB relative to full scale).
        curves: curve -> responses, float32 [conditions, neurons], in the order of the rows of `neurons`.
        evidence: correlation on held-out realisations per measure, curve and layer.
        shares: share of tuned neurons per measure, layer and property.
    """

    model: str
    identity: str
    measure: str
    seconds: float
    neurons: pd.DataFrame
    axes: Mapping[str, np.ndarray]
    curves: Mapping[str, np.ndarray]
    evidence: pd.DataFrame
    shares: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row per neuron.

        Columns: layer, neuron; for each curve best_..._hz, ..._size (maximum minus minimum, in units of the response),
        ..._reliability, ..._q, ..._tuned; bandwidth_octaves; threshold_db and dynamic_range_db (NaN unless level_tuned); for
        each contrast (sweep: upward minus downward; tone: tones minus noise; periodicity: harmonic minus inharmonic; onset
        and offset: early minus late response) ..._index and the same columns; sentence.
        """
        return self.neurons

    def tuned_by_layer(self) -> pd.DataFrame:
        """Share of tuned neurons, layer by property."""
        return tuned_by_layer(self.neurons)

    def curve(self, layer: int, neuron: int, name: str = "frequency") -> pd.Series:
        """One neuron's curve, indexed by its conditions (Hz or dB).

        Raises:
            KeyError: no such neuron or curve.
        """
        chosen = np.flatnonzero((self.neurons.layer == layer) & (self.neurons.neuron == neuron))
        if not len(chosen):
            raise KeyError(f"{self.model} has no neuron {neuron} in layer {layer}")
        return pd.Series(self.curves[name][:, chosen[0]], index=self.axes[name])

    def save(self, folder: str | Path) -> Path:
        """Write tuning.npz, neurons.csv, evidence.csv, shares.csv and tuning.json; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"axis {name}": values for name, values in self.axes.items()}
        arrays |= {f"curve {name}": values for name, values in self.curves.items()}
        with whole_file(folder / "tuning.npz") as file:
            np.savez(file, **arrays)
        for name in ("neurons", "evidence", "shares"):
            with whole_file(folder / f"{name}.csv") as file:
                getattr(self, name).to_csv(file, index=False)
        facts = ("model", "identity", "measure", "seconds")
        write_json(folder / "tuning.json", {name: getattr(self, name) for name in facts})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Tuning:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: a file is missing.
        """
        folder = Path(folder)
        values: dict[str, Any] = json.loads((folder / "tuning.json").read_text(encoding="utf-8"))
        for name in ("neurons", "evidence", "shares"):
            values[name] = pd.read_csv(folder / f"{name}.csv", float_precision="round_trip")
        with np.load(folder / "tuning.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        axes = {
            name.removeprefix("axis "): array
            for name, array in arrays.items()
            if name.startswith("axis ")
        }
        curves = {
            name.removeprefix("curve "): array
            for name, array in arrays.items()
            if name.startswith("curve ")
        }
        return cls(axes=axes, curves=curves, **values)

    def _facts(self) -> dict[str, str]:
        tuned = self.neurons.filter(like="_tuned").mean()
        shares = {str(name).removesuffix("_tuned"): share for name, share in tuned.items()}
        units = {"share": "share of active tokens", "mean": "mean activation"}
        return {
            "neurons": f"{len(self.neurons):,} in {self.neurons.layer.nunique()} layers",
            "response": f"{units[self.measure]} to sounds of {self.seconds:g} s",
            "tuned": ", ".join(f"{name} {share:.1%}" for name, share in shares.items()),
        }

    def _title(self) -> str:
        return f"Tuning of {self.model}"


def tune(
    encoder: Encoder,
    *,
    out_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    measure: str | None = None,
) -> Tuning:
    """Play test sounds to an encoder and describe what each neuron responds to.

    The sounds are tones, noise, modulated sounds, sweeps, harmonic complexes, clicks, onsets, offsets and silence, see
    `aape.tuning.battery`. Of two measures of response, the share of active tokens and the mean activation, the one that
    repeats better on held-out realisations is used; `evidence` and `shares` show both.

    Args:
        encoder: the model.
        out_dir: folder for the result and for responses, so that an interrupted call resumes and a second one takes
            seconds; None writes nothing.
        device: of the forward passes; CUDA if available, else the CPU.
        batch_size: sounds per forward pass.
        measure: "share" or "mean" to use this measure whatever the evidence says, for example the measure of a trained model
            for its untrained twin.
    """
    responses = record(encoder, out_dir=out_dir, device=device, batch_size=batch_size)
    evidence = compare_measures(responses)
    if measure is None:
        measure = str(evidence.groupby("measure").correlation.mean().idxmax())
    tables, shares = {}, []
    for name in LEAST_SIZE:
        analysed = analyse(responses, name)
        tables[name] = analysed, neuron_table(responses, analysed)
        shares.append(tuned_by_layer(tables[name][1]).reset_index().assign(measure=name))
    analysed, neurons = tables[measure]
    rows: list[Any] = neurons.to_dict("records")
    neurons["sentence"] = [sentence(row) for row in rows]
    tuning = Tuning(
        model=encoder.name,
        identity=encoder.identity,
        measure=measure,
        seconds=responses.seconds,
        neurons=neurons,
        axes=analysed.axes,
        curves={name: analysed.effects[name].values for name in analysed.axes},
        evidence=evidence,
        shares=pd.concat(shares, ignore_index=True),
    )
    if out_dir is not None:
        tuning.save(out_dir)
    return tuning
