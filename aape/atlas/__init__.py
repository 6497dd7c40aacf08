"""Listen to what neurons respond to: maps of their activations, and a site of pages that opens from disk."""

from aape.atlas.build import build_atlas, build_study
from aape.atlas.maps import token_maps
from aape.atlas.show import best_neuron, show_neuron
from aape.atlas.titles import Titles

__all__ = ["Titles", "best_neuron", "build_atlas", "build_study", "show_neuron", "token_maps"]
