"""AAPE: dissect audio Transformers neuron by neuron."""

__version__ = "0.1.0"
