"""Dissect audio Transformers neuron by neuron.

The public names are imported when they are first used, so that `import aape` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see
    from aape.artifacts.folder import Artifacts, load_artifacts
    from aape.atlas import build_atlas, show_neuron, token_maps
    from aape.causal.attribution import attribute
    from aape.causal.silencing import silenced
    from aape.collecting.passing import collect
    from aape.collecting.relabelling import relabel
    from aape.criteria.comparing import compare_criteria
    from aape.criteria.ranking import rank
    from aape.dissecting import Dissection, dissect
    from aape.encoders import m2d
    from aape.encoders.encoder import Encoder
    from aape.encoders.hub import from_hub
    from aape.encoders.module import from_module
    from aape.neurons import chance
    from aape.neurons.chance import Calibrated, calibrate
    from aape.neurons.selection import Selection, entropy, select
    from aape.neurons.sharing import jaccard, sharing_against_chance
    from aape.sounds.loading import from_datasets, from_folder, from_metadata
    from aape.sounds.task import BadClip, Task
    from aape.study.ablation import ablate
    from aape.study.ablation_result import AblationResult
    from aape.study.analysis import Analysis, analyze
    from aape.study.collecting import collect_study
    from aape.study.loading import load_encoder, load_task
    from aape.study.study import Study, load_study
    from aape.tuning.receptive_fields import ReceptiveFields, receptive_fields
    from aape.tuning.tuning import Tuning, tune

__version__ = "0.4.0"

_MODULES = {  # module -> the public names that it defines
    "aape.artifacts.folder": ("Artifacts", "load_artifacts"),
    "aape.atlas": ("build_atlas", "show_neuron", "token_maps"),
    "aape.causal.attribution": ("attribute",),
    "aape.causal.silencing": ("silenced",),
    "aape.collecting.passing": ("collect",),
    "aape.collecting.relabelling": ("relabel",),
    "aape.study.collecting": ("collect_study",),
    "aape.criteria.comparing": ("compare_criteria",),
    "aape.criteria.ranking": ("rank",),
    "aape.dissecting": ("Dissection", "dissect"),
    "aape.encoders.encoder": ("Encoder",),
    "aape.encoders.hub": ("from_hub",),
    "aape.encoders.module": ("from_module",),
    "aape.neurons.chance": ("Calibrated", "calibrate"),
    "aape.neurons.selection": ("Selection", "entropy", "select"),
    "aape.neurons.sharing": ("jaccard", "sharing_against_chance"),
    "aape.sounds.loading": ("from_datasets", "from_folder", "from_metadata"),
    "aape.sounds.task": ("BadClip", "Task"),
    "aape.study.ablation": ("ablate",),
    "aape.study.ablation_result": ("AblationResult",),
    "aape.study.analysis": ("Analysis", "analyze"),
    "aape.study.loading": ("load_encoder", "load_task"),
    "aape.study.study": ("Study", "load_study"),
    "aape.tuning.receptive_fields": ("ReceptiveFields", "receptive_fields"),
    "aape.tuning.tuning": ("Tuning", "tune"),
}
_SUBMODULES = {"chance": "aape.neurons.chance", "m2d": "aape.encoders.m2d"}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AblationResult",
    "Analysis",
    "Artifacts",
    "BadClip",
    "Calibrated",
    "Dissection",
    "Encoder",
    "ReceptiveFields",
    "Selection",
    "Study",
    "Task",
    "Tuning",
    "ablate",
    "analyze",
    "attribute",
    "build_atlas",
    "calibrate",
    "chance",
    "collect",
    "collect_study",
    "compare_criteria",
    "dissect",
    "entropy",
    "from_datasets",
    "from_folder",
    "from_hub",
    "from_metadata",
    "from_module",
    "jaccard",
    "load_artifacts",
    "load_encoder",
    "load_study",
    "load_task",
    "m2d",
    "rank",
    "receptive_fields",
    "relabel",
    "select",
    "sharing_against_chance",
    "show_neuron",
    "silenced",
    "token_maps",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(_SUBMODULES[name])
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'aape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
