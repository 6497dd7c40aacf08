"""Collecting a model and a task of a study, by name."""

from __future__ import annotations

from pathlib import Path

from aape.artifacts.folder import Artifacts
from aape.collecting.passing import collect
from aape.study.loading import load_encoder, load_task
from aape.study.study import Study, load_study


def collect_study(
    study: str | Path | Study, model: str, task: str, *, device: str | None = None, batch_size: int | None = None
) -> Artifacts:
    """Everything a collecting notebook does: load a study's model and task by name, collect with its settings."""
    loaded = load_study(study)
    return collect(
        load_encoder(loaded, model),
        load_task(loaded, task),
        loaded.artifacts_directory(task, model),
        batch_size=batch_size or loaded.collect.batch_size,
        device=device,
        splits=loaded.collect.splits,
    )
