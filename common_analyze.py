"""Front door of the analysis and ablation notebooks: artifacts in, tables and figures out.

Only `ablate` needs the models and their audio.

analysis = analyze("miniature")           # everything of a study
analysis.overview                         # a table
analysis.figures["within_task-gtzan"]     # a figure, PNG beside the PDF

artifacts = load_artifacts("outputs/miniature/esc50_analysis")
artifacts.probabilities(split="train", classes={"animal": ["dog", "cat"], "rest": ["rain"]})
"""

# ruff: noqa: F401, the names are here for others
from __future__ import annotations

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.causal.silencing import silenced
from aape.figures.tables import table
from aape.neurons.chance import Calibrated, calibrate, counted_clips
from aape.neurons.selection import Selection, entropy, select
from aape.neurons.sharing import jaccard, sharing_against_chance
from aape.study.ablation import ablate
from aape.study.ablation_result import AblationResult
from aape.study.analysis import Analysis, TaskResult, analyze, example
from aape.study.study import Study, load_study
