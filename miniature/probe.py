"""Linear probes of the miniature's three models: on fold 5 of ESC-50, and on the synthetic tasks.

    python -m miniature.probe --esc50 ../shared/data/esc50                  # the real recordings
    python -m miniature.probe --esc50 ../shared/data/esc50 --study miniature   # and every synthetic task

A probe is a logistic regression on standardised clip embeddings of the frozen encoder, with one penalty for all, set in
advance, fitted on all that is not test (folds 1 to 4; train and valid). Accuracy comes with a 95 % interval from a bootstrap over groups (recordings, voices, instruments)
of the test clips, and with its difference to the untrained model on the same resamples.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from aape.artifacts.belonging import other_encoder
from aape.artifacts.folder import load_artifacts
from aape.encoders.encoder import Encoder
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task
from miniature import encoders
from miniature.train import _write

PENALTY = 0.01  # C of scikit-learn's LogisticRegression
UNTRAINED = "untrained"


def clip_embeddings(encoder: Encoder, task: Task, batch_size: int = 32) -> np.ndarray:
    """Clip embeddings of a task in its order, float32 [clips, dim]."""
    rows = []
    starts = range(0, len(task.files), batch_size)
    for start in tqdm(starts, desc=f"{task.name}, {encoder.name}", disable=None):
        stop = min(start + batch_size, len(task.files))
        waves = np.stack([task.read(i, encoder.sample_rate)[0] for i in range(start, stop)])
        with torch.inference_mode():
            rows.append(encoder.embed(torch.from_numpy(waves).to(encoder.device)).cpu().numpy())
    return np.concatenate(rows)


def collected_embeddings(encoder: Encoder, task: Task, folder: Path) -> np.ndarray | None:
    """The same embeddings from artifacts that the collecting pass left; None unless they are of these weights and clips."""
    if not (folder / "manifest.json").is_file():
        return None
    artifacts = load_artifacts(folder)
    if other_encoder(artifacts.manifest, encoder.identity):
        return None
    if tuple(artifacts.files) != task.files or not np.array_equal(artifacts.labels, task.labels):
        return None
    return artifacts.embeddings()


def linear_probe(
    embeddings: np.ndarray, labels: np.ndarray, splits: np.ndarray, test: str
) -> np.ndarray:
    """Which clips of the split `test` are classified rightly by a probe fitted on the others: bool [test clips].

    Raises ValueError if there is no such clip.
    """
    chosen = splits == test
    if not chosen.any():
        raise ValueError(f"no clip in split {test!r}; found {sorted(set(splits))}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=300, tol=1e-3))
    probe.fit(embeddings[~chosen], labels[~chosen])
    return probe.predict(embeddings[chosen]) == labels[chosen]


def group_bootstrap(
    correct: np.ndarray, groups: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """Accuracies under resampling of whole groups: correct bool [models, clips] -> [models, resamples]."""
    names, index = np.unique(groups, return_inverse=True)
    right = np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in correct])
    size = np.bincount(index, minlength=len(names)).astype(float)
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1.0 / len(names)), resamples
    )
    return (right @ drawn.T) / (size @ drawn.T)


def probe_task(
    models: Mapping[str, Encoder],
    task: Task,
    *,
    data: str,
    folders: Mapping[str, Path] | None = None,
) -> pd.DataFrame:
    """One row a model; `models` holds one under "untrained", which the others are compared with.

    folders: where each model's artifacts on this task would lie, to take the embeddings from.
    """
    splits = np.array(task.splits)
    test = "test" if "test" in splits else "fold5"
    correct = {}
    for key, encoder in models.items():
        embeddings = collected_embeddings(encoder, task, folders[key]) if folders else None
        if embeddings is None:
            embeddings = clip_embeddings(encoder, task)
        correct[key] = linear_probe(embeddings, task.labels, splits, test)
    groups = np.array(task.groups)[splits == test]
    draws = dict(
        zip(models, group_bootstrap(np.stack([correct[k] for k in models]), groups), strict=True)
    )
    rows = []
    for key, encoder in models.items():
        low, high = np.percentile(draws[key], [2.5, 97.5])
        gain_low, gain_high = np.percentile(draws[key] - draws[UNTRAINED], [2.5, 97.5])
        rows.append(
            {
                "data": data,
                "task": task.name,
                "model": key,
                "name": encoder.name,
                "classes": len(task.classes),
                "fitted_clips": int((splits != test).sum()),
                "test_clips": len(groups),
                "test_groups": len(set(groups)),
                "accuracy": correct[key].mean(),
                "low": low,
                "high": high,
                "above_untrained": correct[key].mean() - correct[UNTRAINED].mean(),
                "above_low": gain_low,
                "above_high": gain_high,
                "weights_sha256": str(encoder.weights.get("sha256", ""))[:16],
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The table of the model card: accuracy of each model with its interval, and the trained ones' gain."""
    lines = [
        "| task | classes | test clips (groups) | SSL | SL | untrained | SSL above untrained | SL above untrained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, task), rows in table.groupby(["data", "task"], sort=False):
        by_model = {row.model: row for row in rows.itertuples()}
        first = by_model[UNTRAINED]
        cells = [
            f"{by_model[m].accuracy:.3f} [{by_model[m].low:.3f}, {by_model[m].high:.3f}]"
            for m in by_model
        ]
        gains = [
            f"{by_model[m].above_untrained:+.3f} [{by_model[m].above_low:+.3f}, {by_model[m].above_high:+.3f}]"
            for m in by_model
            if m != UNTRAINED
        ]
        title = f"{task} ({data})" if data == "synthetic" else f"**{data}**"
        lines.append(
            f"| {title} | {first.classes} | {first.test_clips} ({first.test_groups}) | "
            + " | ".join(cells + gains)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--esc50", type=Path, help="folder with audio/ and meta/esc50.csv")
    parser.add_argument("--study", help="probe the tasks of this study too, e.g. miniature")
    parser.add_argument("--weights", type=Path, default=encoders.WEIGHTS)
    parser.add_argument("--out", type=Path, default=encoders.WEIGHTS / "probes.csv")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)
    if given.esc50 is None and given.study is None:
        parser.error("nothing to probe: give --esc50, --study or both")
    torch.set_num_threads(given.threads)
    models = {
        "ssl": encoders.load_ssl(given.weights),
        "sl": encoders.load_sl(given.weights),
        UNTRAINED: encoders.load_untrained(),
    }
    digests = {str(encoder.weights.get("sha256", ""))[:16] for encoder in models.values()}
    tables: dict[tuple[str, str], pd.DataFrame] = {}
    if given.out.is_file():  # what an earlier call found out about the same weights stays
        earlier = pd.read_csv(given.out)
        if set(earlier.weights_sha256) == digests:
            tables = {
                (str(d), str(t)): rows
                for (d, t), rows in earlier.groupby(["data", "task"], sort=False)
            }

    def probe(task: Task, data: str, folders: Mapping[str, Path] | None = None) -> None:
        found = probe_task(models, task, data=data, folders=folders)
        tables[data, task.name] = found
        print(
            found.drop(columns=["data", "name", "weights_sha256"]).round(3).to_string(), flush=True
        )
        table = pd.concat(tables.values()).to_csv(
            index=False, float_format="%.4f", lineterminator="\n"
        )
        _write(given.out, table.encode())

    if given.esc50 is not None:
        meta = given.esc50 / "meta" / "esc50.csv"
        probe(
            from_metadata(meta, given.esc50 / "audio", clip_seconds=5.0, name="esc50"),
            "ESC-50, fold 5",
        )
    if given.study is not None:
        from aape.study.loading import load_task
        from aape.study.study import load_study

        study = load_study(given.study)
        for name in study.tasks:
            task = load_task(study, name)
            if task.name != name:
                raise ValueError(
                    f"study {given.study}: task {name!r} loads one named {task.name!r}"
                )
            folders = {key: study.artifacts_directory(name, study.copies(key)[0]) for key in models}
            probe(task, "synthetic" if given.study == "miniature" else given.study, folders)
    print(markdown(pd.read_csv(given.out)))


if __name__ == "__main__":
    main()
