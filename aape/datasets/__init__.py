"""The datasets, one file each: what it is, where from, licence, citation, how it is read, its published counts.

Also the weights that are fetched the same way. Importing this package takes nothing but the standard library.
"""

from __future__ import annotations

from aape.datasets import cremad, esc50, gise51, gtzan, nsynth, ravdess, surge, voxceleb1, voxforge, weights
from aape.datasets.base import Dataset

_FILES = (esc50, gise51, voxforge, voxceleb1, cremad, gtzan, nsynth, surge, ravdess)
DATASETS: dict[str, Dataset] = {
    dataset.name: dataset for dataset in (weights.M2D, weights.M2D_ENCONLY, *(file.DATASET for file in _FILES))
}
TASKS: dict[str, Dataset] = {task: dataset for dataset in DATASETS.values() for task in dataset.tasks}
