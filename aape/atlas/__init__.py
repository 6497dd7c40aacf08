"""Hear what a neuron listens to: maps of its activations, and a site of pages that opens from disk."""

from aape.atlas.build import build_atlas, build_study
from aape.atlas.maps import token_maps
from aape.atlas.pair import About
from aape.atlas.show import show_neuron

__all__ = ["About", "build_atlas", "build_study", "show_neuron", "token_maps"]
