"""The collecting notebooks' figure: how active each layer is."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aape.artifacts import Artifacts


def activity_by_layer(artifacts: Artifacts) -> Figure:
    """Share of active tokens of every neuron by layer: median, quartiles and 5 to 95 % of the neurons."""
    share = artifacts.over_zero.double().mean(dim=2).numpy()  # [layers, neurons], classes weigh the same
    layers = np.arange(len(share))
    low, first, median, third, high = np.quantile(share, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
    figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
    axes.fill_between(layers, low, high, color="#0072B2", alpha=0.15, lw=0, label="5 to 95 % of neurons")
    axes.fill_between(layers, first, third, color="#0072B2", alpha=0.3, lw=0, label="quartiles")
    axes.plot(layers, median, color="#0072B2", marker="o", ms=4, label="median neuron")
    never = (artifacts.over_zero == 0).all(dim=2).sum(dim=1).numpy()
    for layer in np.flatnonzero(never):
        axes.annotate(f"{never[layer]} never active", (layer, low[layer]), fontsize=7, ha="center", va="top")
    axes.set(xlabel="layer", ylabel="share of tokens with activation > 0", xticks=layers, ylim=(0, None))
    name = artifacts.manifest.get("encoder", artifacts.path.name)
    axes.set_title(f"{name} on {artifacts.manifest.get('task', 'unknown task')}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure
