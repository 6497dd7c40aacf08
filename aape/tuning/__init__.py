"""What neurons respond to, without labels: tuning to test sounds, and receptive fields on natural sound."""

from aape.tuning.tuning import Tuning, tune

__all__ = ["Tuning", "tune"]
