"""Linear probes of the miniature's three models: on fold 5 of ESC-50, and on the stand-in tasks.

    python -m miniature.probe --esc50 ../shared/data/esc50                  # the real recordings
    python -m miniature.probe --esc50 ../shared/data/esc50 --study miniature   # and every stand-in task

A probe is a logistic regression on standardised clip embeddings of the frozen encoder. Its penalty is chosen on data
inside the training part (ESC-50: trained on folds 1 to 3, looked at on fold 4; tasks: valid), then it is fitted on all
that is not test. Accuracy comes with a 95 % interval from a bootstrap over groups (recordings, voices, instruments)
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

from aape.encoders import Encoder
from aape.tasks import Task, from_metadata
from miniature import encoders
from miniature.train import _write

PENALTIES = (0.001, 0.01, 0.1)  # C of scikit-learn's LogisticRegression
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


def _fit(embeddings: np.ndarray, labels: np.ndarray, penalty: float):  # type: ignore[no-untyped-def]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500))
    return probe.fit(embeddings.astype(np.float64), labels)


def linear_probe(
    embeddings: np.ndarray, labels: np.ndarray, splits: np.ndarray, *, inner: str, test: str
) -> tuple[np.ndarray, float]:
    """Which test clips are classified rightly, bool [test clips], and the penalty chosen.

    Raises ValueError if a split that is needed has no clip.
    """
    for split in (inner, test):
        if not (splits == split).any():
            raise ValueError(f"no clip in split {split!r}; found {sorted(set(splits))}")
    outer, look = (splits != inner) & (splits != test), splits == inner
    scores = [
        _fit(embeddings[outer], labels[outer], c).score(embeddings[look], labels[look]) for c in PENALTIES
    ]
    penalty = PENALTIES[int(np.argmax(scores))]
    fitted = _fit(embeddings[splits != test], labels[splits != test], penalty)
    chosen = splits == test
    return fitted.predict(embeddings[chosen]) == labels[chosen], penalty


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


def probe_task(models: Mapping[str, Encoder], task: Task, *, data: str) -> pd.DataFrame:
    """One row a model; `models` holds one under "untrained", which the others are compared with."""
    splits = np.array(task.splits)
    folds = "test" not in splits
    inner, test = ("fold4", "fold5") if folds else ("valid", "test")
    correct, penalties = {}, {}
    for key, encoder in models.items():
        correct[key], penalties[key] = linear_probe(
            clip_embeddings(encoder, task), task.labels, splits, inner=inner, test=test
        )
    groups = np.array(task.groups)[splits == test]
    draws = dict(zip(models, group_bootstrap(np.stack([correct[k] for k in models]), groups), strict=True))
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
                "penalty": penalties[key],
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
            f"{by_model[m].accuracy:.3f} [{by_model[m].low:.3f}, {by_model[m].high:.3f}]" for m in by_model
        ]
        gains = [
            f"{by_model[m].above_untrained:+.3f} [{by_model[m].above_low:+.3f}, {by_model[m].above_high:+.3f}]"
            for m in by_model
            if m != UNTRAINED
        ]
        title = f"{task} ({data})" if data == "stand-in" else f"**{data}**"
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
    tables = []

    def probe(task: Task, data: str) -> None:
        tables.append(probe_task(models, task, data=data))
        print(tables[-1].drop(columns=["data", "name", "weights_sha256"]).round(3).to_string(), flush=True)
        table = pd.concat(tables).to_csv(index=False, float_format="%.4f", lineterminator="\n")
        _write(given.out, table.encode())

    if given.esc50 is not None:
        meta = given.esc50 / "meta" / "esc50.csv"
        probe(from_metadata(meta, given.esc50 / "audio", clip_seconds=5.0, name="esc50"), "ESC-50, fold 5")
    if given.study is not None:
        from aape.study import load_study

        for name, spec in load_study(given.study).tasks.items():
            task = spec.call()
            if task.name != name:
                raise ValueError(f"study {given.study}: task {name!r} loads one named {task.name!r}")
            probe(task, "stand-in" if given.study == "miniature" else given.study)
    print(markdown(pd.read_csv(given.out)))


if __name__ == "__main__":
    main()
