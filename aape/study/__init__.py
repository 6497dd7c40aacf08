"""Whole experiments: a study file, its analysis, and its ablations."""

from aape.study.loading import load_encoder, load_task
from aape.study.study import AblationSettings, AblationTarget, Study, load_study

__all__ = ["AblationSettings", "AblationTarget", "Study", "load_encoder", "load_study", "load_task"]
