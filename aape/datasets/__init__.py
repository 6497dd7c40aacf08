"""The datasets, one file each: what it is, where it comes from, licence, citation, how it is read, its published counts.

Weights that are downloaded in the same way are in weights.py.
"""

from __future__ import annotations

from aape.datasets import (
    cremad,
    esc50,
    gise51,
    gtzan,
    nemo,
    nsynth,
    ravdess,
    surge,
    voxceleb1,
    voxforge,
    weights,
)
from aape.datasets.base import Dataset

_ALL = (
    weights.M2D,
    weights.M2D_ENCONLY,
    esc50.DATASET,
    gise51.DATASET,
    voxforge.DATASET,
    voxceleb1.DATASET,
    cremad.DATASET,
    gtzan.DATASET,
    nsynth.DATASET,
    surge.DATASET,
    ravdess.DATASET,
    nemo.DATASET,
)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
TASKS: dict[str, Dataset] = {task: dataset for dataset in _ALL for task in dataset.tasks}
