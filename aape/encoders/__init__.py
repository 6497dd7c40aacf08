"""What is dissected: `Encoder`, `from_module` for any torch model, `m2d` for M2D and ViTs of its shape."""

from aape.encoders.base import Encoder, Stages, from_module

__all__ = ["Encoder", "Stages", "from_module"]
