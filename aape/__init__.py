"""Dissect audio Transformers neuron by neuron: the public names, loaded when first used."""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = {
    "ablation": ["AblationResult", "ablate"],
    "analysis": ["Analysis", "analyze"],
    "atlas": ["build_atlas", "show_neuron", "token_maps"],
    "artifacts": ["Artifacts", "load_artifacts"],
    "attribution": ["attribute"],
    "chance": ["Calibrated", "calibrate"],
    "criteria": ["rank"],
    "collecting": ["collect", "collect_study"],
    "dissecting": ["Dissection", "dissect"],
    "contest": ["compare_criteria"],
    "encoder": ["Encoder", "from_module"],
    "encoders": ["m2d"],
    "encoders.contracts": ["from_hear", "from_xares"],
    "encoders.hub": ["from_hub"],
    "selection": ["Selection", "entropy", "select"],
    "sharing": ["jaccard", "sharing_against_chance"],
    "silencing": ["silenced"],
    "study": ["Study", "load_encoder", "load_study", "load_task"],
    "task": ["BadClip", "Task", "from_datasets", "from_folder", "from_metadata"],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__version__ = "0.3.1"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """A public name, imported from its room on first use, so that `import aape` costs nothing."""
    if name == "m2d":
        return importlib.import_module("aape.encoders.m2d")
    if name not in _HOME:
        raise AttributeError(f"module 'aape' has no attribute {name!r}")
    return getattr(importlib.import_module(f"aape.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
