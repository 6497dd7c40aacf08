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

from aape.ablation import AblationResult, ablate
from aape.analysis import Analysis, TaskResult, analyze, example
from aape.artifacts import Artifacts, load_artifacts
from aape.chance import Calibrated, calibrate, counted_clips
from aape.figures.tables import table
from aape.selection import Selection, entropy, select
from aape.sharing import jaccard, sharing_against_chance
from aape.silencing import silenced
from aape.study import Study, load_study
