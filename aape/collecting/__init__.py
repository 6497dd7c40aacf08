"""The collecting pass: every clip through the encoder once, and the artifacts that it leaves."""

from aape.collecting.writing import merge

__all__ = ["merge"]
