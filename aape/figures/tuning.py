"""Figures of tuning and receptive fields, each with its conclusion as title."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from aape.figures.style import colours, legend_below, nothing, panels, styled
from aape.tuning.receptive_fields import ReceptiveFields
from aape.tuning.tuning import Tuning

UNITS = {"share": "share of active tokens", "mean": "mean activation (SD over tokens)"}
AXIS_NAMES = {
    "frequency": "frequency of the tone (Hz)",
    "modulation": "modulation rate (Hz)",
    "fundamental": "fundamental (Hz)",
    "click_rate": "click rate (Hz)",
    "level": "level (dB relative to full scale)",
}


@styled
def tuned_figure(tunings: Mapping[str, Tuning], name: str = "modulation") -> Figure:
    """Share of neurons that are tuned to one property, and the distribution of their best condition, by layer.

    Args:
        tunings: label -> tuning; trained models next to untrained ones.
        name: "frequency", "modulation", "fundamental" or "click_rate".
    """
    overall = {label: tuning.neurons[f"{name}_tuned"].mean() for label, tuning in tunings.items()}
    described = "; ".join(f"{label}: {share:.0%}" for label, share in overall.items())
    figure, grid = panels(
        1, 2, (7.2, 3.0), f"Neurons tuned to {name.replace('_', ' ')}, of all layers\n{described}"
    )
    left, right = grid[0]
    for (label, tuning), colour in zip(tunings.items(), colours(tunings).values(), strict=True):
        neurons = tuning.neurons
        shares = 100 * neurons.groupby("layer")[f"{name}_tuned"].mean()
        left.plot(shares.index, shares, "o-", ms=4, color=colour, label=label)
        tuned = neurons[neurons[f"{name}_tuned"]]
        _quartiles(right, tuned.groupby("layer")[f"best_{name}_hz"], colour)
    left.set(xlabel="layer", ylabel="tuned neurons (%)", ylim=(0, None))
    right.set(xlabel="layer", ylabel=f"best {AXIS_NAMES[name]}\nmedian and quartiles")
    _plain_logarithmic(right)
    _integer_layers(left, tunings)
    _integer_layers(right, tunings)
    legend_below(figure, left)
    return figure


@styled
def frequency_figure(tunings: Mapping[str, Tuning]) -> Figure:
    """Best frequency and bandwidth of the tuned neurons, by layer."""
    widths = {
        label: t.neurons.bandwidth_octaves[t.neurons.frequency_tuned].median()
        for label, t in tunings.items()
    }
    described = "; ".join(
        f"{label}: {width:.1f} octaves" for label, width in widths.items() if np.isfinite(width)
    )
    figure, grid = panels(
        1, 2, (7.2, 3.0), f"Median bandwidth of neurons tuned to frequency\n{described}"
    )
    left, right = grid[0]
    for (label, tuning), colour in zip(tunings.items(), colours(tunings).values(), strict=True):
        by_layer = tuning.neurons[tuning.neurons.frequency_tuned].groupby("layer")
        _quartiles(left, by_layer.best_frequency_hz, colour, label)
        _quartiles(right, by_layer.bandwidth_octaves, colour)
    left.set(xlabel="layer", ylabel="best frequency (Hz)\nmedian and quartiles")
    _plain_logarithmic(left)
    right.set(xlabel="layer", ylabel="bandwidth (octaves)\nmedian and quartiles", ylim=(0, None))
    _integer_layers(left, tunings)
    _integer_layers(right, tunings)
    legend_below(figure, left)
    return figure


@styled
def reliability_figure(tunings: Mapping[str, Tuning], name: str = "modulation") -> Figure:
    """Reliability of a curve over independent realisations, and its size, by layer."""
    title = f"Reliable is not tuned: reliability and size of curves for {name.replace('_', ' ')}"
    figure, grid = panels(1, 2, (7.2, 3.0), title)
    left, right = grid[0]
    for (label, tuning), colour in zip(tunings.items(), colours(tunings).values(), strict=True):
        by_layer = tuning.neurons.groupby("layer")
        _quartiles(left, by_layer[f"{name}_reliability"], colour, label)
        _quartiles(right, by_layer[f"{name}_size"], colour)
    measure = next(iter(tunings.values())).measure
    left.set(xlabel="layer", ylabel="correlation of two halves\nof the realisations")
    right.set(xlabel="layer", ylabel=f"maximum minus minimum\n{UNITS[measure]}")
    _plain_logarithmic(right)
    _integer_layers(left, tunings)
    _integer_layers(right, tunings)
    legend_below(figure, left)
    return figure


@styled
def predictability_figure(fields: Mapping[str, ReceptiveFields]) -> Figure:
    """Held-out correlation of the linear receptive field, by layer."""
    first = next(iter(fields.values()))
    medians = {
        label: pd.Series(f.correlation).groupby(f.layer).median() for label, f in fields.items()
    }
    described = "; ".join(
        f"{label}: {m.iloc[0]:.2f} to {m.iloc[-1]:.2f}" for label, m in medians.items()
    )
    title = (
        f"Linear prediction of activations from the spectrogram, first to last layer\n{described}"
    )
    figure, grid = panels(1, 1, (6.4, 3.2), title)
    axes = grid[0, 0]
    for (label, found), colour in zip(fields.items(), colours(fields).values(), strict=True):
        _quartiles(axes, pd.Series(found.correlation).groupby(found.layer), colour, label)
    axes.axhline(0, color="0.7", lw=0.6)
    sounds = f"{first.clips:,} clips of {first.task} in {first.groups:,} groups"
    axes.set(
        xlabel="layer", ylabel=f"held-out correlation\nmedian and quartiles of neurons\n({sounds})"
    )
    _integer_layers(axes, fields)
    legend_below(figure, axes)
    return figure


@styled
def neuron_figure(
    tuning: Tuning, layer: int, neuron: int, fields: ReceptiveFields | None = None
) -> Figure:
    """One neuron: its curves for frequency, modulation and level, and its receptive field."""
    row = tuning.neurons[(tuning.neurons.layer == layer) & (tuning.neurons.neuron == neuron)].iloc[
        0
    ]
    described = textwrap.fill(row.sentence, 120)
    figure, grid = panels(
        1, 4, (10.5, 2.9), f"{tuning.model}, layer {layer}, neuron {neuron}\n{described}"
    )
    for axes, name in zip(grid[0], ("frequency", "modulation", "level"), strict=False):
        if name not in tuning.curves:
            nothing(axes, f"no {name}")
            continue
        curve = tuning.curve(layer, neuron, name)
        axes.plot(curve.index, curve, "o-", ms=3, color="#0072B2")
        axes.set(xlabel=AXIS_NAMES[name], xscale="linear" if name == "level" else "log")
        axes.set_title("tuned" if row[f"{name}_tuned"] else "not tuned")
    grid[0, 0].set_ylabel(UNITS[tuning.measure])
    if fields is None:
        nothing(grid[0, 3], "no receptive field")
        return figure
    draw_field(grid[0, 3], fields, layer, neuron)
    return figure


def draw_field(axes: Axes, fields: ReceptiveFields, layer: int, neuron: int) -> None:
    """A receptive field as a picture: orange excites, blue suppresses."""
    field = fields.field(layer, neuron)
    largest = float(np.abs(field.to_numpy()).max()) or 1.0
    milliseconds = 1000 * field.index.to_numpy()
    bands = np.arange(len(field.columns))
    axes.pcolormesh(
        milliseconds, bands, field.to_numpy().T, cmap="PuOr_r", vmin=-largest, vmax=largest
    )
    ticks = bands[::8]
    axes.set_yticks(ticks, [f"{field.columns[tick]:.0f}" for tick in ticks])
    chosen = (fields.layer == layer) & (fields.neuron == neuron)
    axes.set_title(f"held-out correlation {fields.correlation[chosen][0]:.2f}")
    axes.set(xlabel="time relative to the token (ms)", ylabel="mel band (Hz)")


def _quartiles(axes: Axes, groups: Any, colour: str, label: str | None = None) -> None:
    """Median with quartiles of some values by layer."""
    low, median, high = (groups.quantile(share) for share in (0.25, 0.5, 0.75))
    axes.plot(median.index, median, "o-", ms=4, color=colour, label=label)
    axes.fill_between(median.index, low, high, color=colour, alpha=0.2, lw=0)


def _plain_logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers."""
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _integer_layers(axes: Axes, results: Mapping) -> None:
    """Ticks at whole layers."""
    layers = 1
    for result in results.values():
        numbers = result.neurons.layer if isinstance(result, Tuning) else result.layer
        layers = max(layers, int(numbers.max()) + 1)
    axes.set_xticks(np.arange(0, layers, -(-layers // 16)))
