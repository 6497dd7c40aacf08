"""What neurons respond to: tuning and receptive fields of whisper-tiny, the miniature's models and untrained models.

    python -m benchmarks.tuning WHISPER ESC50 --work FOLDER        # gallery/tuning and benchmarks/tuning.md

WHISPER is the folder of whisper-tiny's encoder (or openai/whisper-tiny), ESC50 the folder of ESC-50. Everything slow is kept in
FOLDER, so that a second call only draws. Times are CPU seconds of this process, with one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aape import calibrate, collect, from_hub, from_metadata, receptive_fields, select, tune
from aape.causal.attribution import attribute
from aape.encoders.encoder import Encoder
from aape.sounds.task import Task
from aape.tuning.receptive_fields import ReceptiveFields
from aape.tuning.relevance import relevance
from aape.tuning.tuning import Tuning
from miniature import encoders as miniature

ROOT = Path(__file__).resolve().parent.parent
CLIPS, CLIP_SECONDS = 500, 2.0
PAIRS = {  # trained model -> untrained model of the same shape
    "whisper-tiny": "whisper-tiny, untrained",
    "MSM-MAE (miniature)": "untrained ViT (miniature)",
    "supervised ViT (miniature)": "untrained ViT (miniature)",
}


def loaders(whisper: str) -> dict[str, Callable[[], Encoder]]:
    """Name of each model -> how to load it."""
    return {
        "whisper-tiny": lambda: from_hub(whisper),
        "whisper-tiny, untrained": lambda: from_hub(whisper, seed=0),
        "MSM-MAE (miniature)": miniature.load_ssl,
        "supervised ViT (miniature)": miniature.load_sl,
        "untrained ViT (miniature)": miniature.load_untrained,
    }


def folder_of(work: Path, model: str) -> Path:
    """Where results of a model are kept."""
    return work / "".join(c if c.isalnum() else "-" for c in model)


def sounds(esc50: Path) -> Task:
    """500 clips of ESC-50, cut to their first 2 s: ten of every class."""
    task = from_metadata(esc50 / "meta" / "esc50.csv", esc50 / "audio", clip_seconds=CLIP_SECONDS, name="esc50")
    order = np.random.default_rng(0).permutation(len(task))
    per_class = pd.Series(task.labels[order]).groupby(task.labels[order]).cumcount().to_numpy()
    chosen = np.sort(order[per_class < CLIPS // len(task.classes)])
    columns = {name: tuple(np.array(getattr(task, name))[chosen]) for name in ("files", "splits", "groups")}
    return replace(task, labels=task.labels[chosen], **columns)


def measured(encoder: Encoder, task: Task, folder: Path) -> tuple[Tuning, ReceptiveFields, dict[str, float]]:
    """Tuning and receptive fields of a model, and the CPU seconds they took; kept in a folder."""
    times = folder / "seconds.csv"
    if times.is_file():
        seconds = pd.read_csv(times, index_col=0).iloc[:, 0].to_dict()
        return Tuning.load(folder), ReceptiveFields.load(folder / "fields.npz"), seconds
    start = time.process_time()
    tuning = tune(encoder, out_dir=folder)
    middle = time.process_time()
    fields = receptive_fields(encoder, task)
    fields.save(folder / "fields.npz")
    seconds = {"tune": middle - start, "receptive fields": time.process_time() - middle}
    pd.Series(seconds, name="seconds").to_csv(times)
    return tuning, fields, seconds


def does_it_matter(encoder: Encoder, task: Task, tuning: Tuning, folder: Path) -> pd.DataFrame:
    """Are class-specific neurons, and neurons found by attribution, tuned more or less often than others of their layers?"""
    path = folder / "relevance.csv"
    if path.is_file():
        return pd.read_csv(path)
    artifacts = collect(encoder, task, folder / "esc50")
    selection = select(artifacts, rate=0.02)
    calibrated = calibrate(artifacts, selection, permutations=200)
    effects = attribute(encoder, task, artifacts, replace_by="mean")
    strongest = np.abs(np.asarray(effects)).max(axis=2)
    by_attribution = strongest >= np.quantile(strongest, 0.98)
    chosen = {
        "class-specific": np.asarray(selection.members).any(axis=2),
        "calibrated": np.asarray(calibrated.members).any(axis=2),
        "attribution, strongest 2 %": by_attribution,
    }
    table = relevance(tuning.table(), chosen)
    table.to_csv(path, index=False)
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whisper")
    parser.add_argument("esc50", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "tuning")
    parser.add_argument("--gallery", type=Path, default=ROOT / "gallery" / "tuning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = sounds(options.esc50)
    tunings: dict[str, Tuning] = {}
    fields: dict[str, ReceptiveFields] = {}
    seconds: dict[str, dict[str, float]] = {}
    matters = []
    for model, load in loaders(options.whisper).items():
        folder = folder_of(options.work, model)
        encoder = load()
        tunings[model], fields[model], seconds[model] = measured(encoder, task, folder)
        if model in PAIRS:
            table = does_it_matter(encoder, task, tunings[model], folder)
            matters.append(table.assign(model=model))
        print(model, seconds[model], flush=True)
    write(options.gallery, tunings, fields, seconds, pd.concat(matters))


if __name__ == "__main__":
    main()
