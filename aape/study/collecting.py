"""Collecting a model and a task of a study, by name."""

from __future__ import annotations

from pathlib import Path

from aape.artifacts.folder import Artifacts
from aape.collecting.passing import collect
from aape.collecting.relabelling import relabel
from aape.study.loading import load_encoder, load_task
from aape.study.study import Study, load_study


def collect_study(
    study: str | Path | Study,
    model: str,
    task: str,
    *,
    device: str | None = None,
    batch_size: int | None = None,
) -> Artifacts:
    """Collect a study's model on one of its tasks, with the study's settings.

    A task with `same_clips_as` needs no pass of its own: the other task is collected, unless it is finished, and its
    artifacts are written again with this task's labels.

    Args:
        study: a name, a file, or a loaded study.
        model: name of the model in the study.
        task: name of the task in the study.
        device: as in `collect`.
        batch_size: clips per batch; None: the study's.
    """
    loaded = load_study(study)
    out_dir = loaded.artifacts_directory(task, model)
    other_task = loaded.task(task).same_clips_as
    if other_task is not None:
        artifacts = collect_study(loaded, model, other_task, device=device, batch_size=batch_size)
        return relabel(artifacts, load_task(loaded, task), out_dir)
    return collect(
        load_encoder(loaded, model),
        load_task(loaded, task),
        out_dir,
        batch_size=loaded.collect.batch_size if batch_size is None else batch_size,
        device=device,
        splits=loaded.collect.splits,
    )
