"""The analysis of a study, from artifacts alone: tables, nulls, sharing, figures.

`analyze` walks over the study's tasks and models, writes the tables beside the artifacts and draws the figures.
What takes long is kept under `outputs/<study>/.analysis/`, by the checksums of the artifacts and the settings.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from aape.artifacts import Artifacts, load_artifacts
from aape.chance import (
    Counted,
    Stability,
    UnitSums,
    calibrate_counts,
    counted_clips,
    exchangeable_units,
    one_sided_p,
    stability,
)
from aape.figures import sharing as figures
from aape.files import whole_file, write_text
from aape.selection import Selection, jaccard_index, select
from aape.sharing import DistanceCurve, Sharing, by_distance, shared_neurons, sharing_against_chance
from aape.study import Study, load_study

CACHE_FORMAT = 1  # raise it when the meaning of what is kept changes
SHARING_DRAWS = 1000


@dataclass
class TaskResult:
    """One model on one task. L layers, N neurons, C classes.

    members, calibrated: bool [L, N, C]; selected: bool [L, N]; entropy: float64 [L, N], AAPE in nats.
    row: the task-level statistics. neurons: a row per class-specific (neuron, class). classes: a row per
    class. sensitivity: a row per variant of the settings. null: name -> [permutations] (empty without counts).
    """

    task: str
    model: str
    class_names: tuple[str, ...]
    members: np.ndarray
    calibrated: np.ndarray
    selected: np.ndarray
    entropy: np.ndarray
    row: dict[str, Any]
    neurons: pd.DataFrame
    classes: pd.DataFrame
    sensitivity: pd.DataFrame
    null: dict[str, np.ndarray]


@dataclass
class Analysis:
    """What `analyze` found. Tables are DataFrames; `figures`: name -> PNG beside the PDF of the same name.

    results: (task, model) -> TaskResult. missing: (task, model) without artifacts. statistics: model ->
    task-level statistics. sharing: figure name -> model -> Sharing; curves likewise, of the pitch figures.
    """

    study: Study
    results: dict[tuple[str, str], TaskResult]
    missing: list[tuple[str, str]]
    notes: list[str]
    statistics: dict[str, pd.DataFrame]
    side_by_side: pd.DataFrame
    chance: pd.DataFrame
    classes: pd.DataFrame
    sensitivity: pd.DataFrame
    sharing: dict[str, dict[str, Sharing]]
    curves: dict[str, dict[str, DistanceCurve]]
    sharing_summary: pd.DataFrame
    strongest_pairs: pd.DataFrame
    octaves: pd.DataFrame
    published: pd.DataFrame
    published_lists: pd.DataFrame
    figures: dict[str, Path] = field(default_factory=dict)


def analyze(study: str | Path | Study, *, draw: bool = True, progress: bool = True) -> Analysis:
    """Everything of a study that its artifacts show. Writes CSVs and figures below the study's directory.

    Tasks and models without artifacts are listed under `missing` and left out.
    Raises FileNotFoundError if there are no artifacts at all; ValueError for damaged or edited artifacts, for
    folders whose artifacts belong to another task, and for a model whose artifacts differ in shape or weights
    from task to task.
    """
    loaded = study if isinstance(study, Study) else load_study(study)
    artifacts, missing = find_artifacts(loaded)
    notes = _check_together(loaded, artifacts)
    cache = loaded.directory / ".analysis"
    cache.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str], TaskResult] = {}
    for (task, model), found in tqdm(artifacts.items(), desc="tasks", disable=None if progress else True):
        results[task, model] = _task_result(loaded, task, model, found, cache, progress)
        _write_csv(results[task, model].neurons, found.path / "neurons.csv")

    models = [model for model in _models(loaded) if any(key[1] == model for key in results)]
    statistics: dict[str, pd.DataFrame] = {}
    for model in models:
        rows = {task: results[task, model].row for task in loaded.tasks if (task, model) in results}
        statistics[model] = pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")
        name = f"task_level_neuron_statistics_{loaded.model(model).folder}.csv"
        _write_csv(statistics[model].reset_index(), loaded.directory / name)
    classes = pd.concat(
        [r.classes.assign(task=task, model=model) for (task, model), r in results.items()], ignore_index=True
    )
    classes = classes[["task", "model", *[c for c in classes.columns if c not in ("task", "model")]]]
    _write_csv(classes, loaded.directory / "class_level_neuron_statistics.csv")
    variants = pd.concat(
        [r.sensitivity.assign(task=task, model=model) for (task, model), r in results.items()], ignore_index=True
    )
    _write_csv(variants, loaded.directory / "sensitivity.csv")

    sharing, curves, pairs = _sharing(loaded, results, artifacts, cache, progress)
    summary = _sharing_summary(loaded, sharing, results)
    octaves = _octave_table(curves)
    published, published_lists = pd.DataFrame(), pd.DataFrame()
    if loaded.reproduces_paper:
        published, published_lists = published_comparison(loaded, results, artifacts)
    tables = {
        "sharing_summary.csv": summary,
        "sharing_pairs.csv": pairs,
        "sharing_by_distance.csv": octaves,
        "published_comparison.csv": published,
        "published_neuron_lists.csv": published_lists,
    }
    for name, table in tables.items():
        if len(table):
            _write_csv(table, loaded.directory / name)
    labels = {model: loaded.model(model).label for model in _models(loaded)}
    analysis = Analysis(
        study=loaded,
        results=results,
        missing=missing,
        notes=notes,
        statistics=statistics,
        side_by_side=side_by_side(statistics, labels),
        chance=chance_table(statistics, labels),
        classes=classes,
        sensitivity=sensitivity_table(variants, labels),
        sharing=sharing,
        curves=curves,
        sharing_summary=summary,
        strongest_pairs=pairs,
        octaves=octaves,
        published=published,
        published_lists=published_lists,
    )
    if draw:
        analysis.figures = _draw(analysis)
    return analysis


# Artifacts


def find_artifacts(study: Study) -> tuple[dict[tuple[str, str], Artifacts], list[tuple[str, str]]]:
    """(task, model) -> artifacts, and the pairs that have none. FileNotFoundError if there are none at all."""
    found, missing = {}, []
    for task in study.tasks:
        for model in _models(study):
            path = study.artifacts_directory(task, model)
            if not (path / "over_zero.pt").is_file() and not (path / "manifest.json").is_file():
                missing.append((task, model))
                continue
            artifacts = load_artifacts(path)
            named = artifacts.manifest.get("task", task)
            if named != task and named in study.tasks:
                raise ValueError(f"{path} holds artifacts of the task {named!r}, expected {task!r}; collect it again")
            found[task, model] = artifacts
    if not found:
        raise FileNotFoundError(
            f"no artifacts of study {study.name!r} below {study.directory}; run a collecting notebook first, for "
            f"example M2D_ESC50.ipynb with study = {study.name!r}"
        )
    return found, missing


def _check_together(study: Study, artifacts: dict[tuple[str, str], Artifacts]) -> list[str]:
    notes = []
    for model in _models(study):
        mine = {task: a for (task, m), a in artifacts.items() if m == model}
        facts = {t: (tuple(a.over_zero.shape[:2]), _weights(a)) for t, a in mine.items()}
        for task, fact in facts.items():
            first, expected = next(iter(facts.items()))
            for what, here, there in zip(("layers and neurons", "weights"), fact, expected, strict=True):
                if here is not None and there is not None and here != there:
                    raise ValueError(
                        f"{mine[task].path} and {mine[first].path} should be of one model ({model}), but their {what} "
                        f"differ: {here} and {there}. Collect again the one that is out of date."
                    )
    for task in study.tasks:
        names = {m: a.classes for (t, m), a in artifacts.items() if t == task}
        if len(set(names.values())) > 1:
            raise ValueError(
                f"the models' artifacts of task {task!r} have different classes or another order: "
                + "; ".join(f"{m}: {', '.join(c[:4])}, ..." for m, c in names.items())
            )
        seen: dict[Any, str] = {}
        for model in names:
            weights = _weights(artifacts[task, model])
            if weights is not None and weights in seen:
                notes.append(f"{task}: {seen[weights]} and {model} have the same weights")
            seen[weights] = model
    for (task, model), a in artifacts.items():
        if not a.has_counts:
            notes.append(f"{task}, {model}: no counts per clip, so nothing is known of chance")
        elif "kept_clips" in a.manifest:
            notes.append(f"{task}, {model}: counts of {len(a.counts)} of {len(a.labels)} clips were kept")
    return sorted(set(notes))


def _weights(artifacts: Artifacts) -> str | None:
    weights = artifacts.manifest.get("weights")
    if weights is None:
        return None
    return str(weights.get("sha256") or json.dumps(weights, sort_keys=True))


def _models(study: Study) -> list[str]:
    return list(study.encoders)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _identity(artifacts: Artifacts) -> Any:
    if artifacts.manifest:
        return artifacts.manifest["checksums"], _key(artifacts.manifest["clips"])
    return hashlib.sha256(artifacts.over_zero.numpy().tobytes()).hexdigest(), artifacts.classes


# One task


def probabilities_of(artifacts: Artifacts) -> np.ndarray:
    """float64 [L, N, C]: from the counts where those of all clips are there, else over_zero."""
    if artifacts.has_counts and "kept_clips" not in artifacts.manifest:
        return artifacts.probabilities()
    return artifacts.over_zero.double().numpy()


def _task_result(study: Study, task: str, model: str, artifacts: Artifacts, cache: Path, progress: bool) -> TaskResult:
    settings = {
        "format": CACHE_FORMAT,
        "rate": study.rate(task),
        "selection": study.selection.model_dump(),
        "chance": study.chance.model_dump(),
        "seed": study.seed,
    }
    path = cache / f"{task}_{study.model(model).folder}.npz"
    key = _key(settings, _identity(artifacts))
    kept = _load_kept(path, key)
    if kept is not None:
        return _unpack(task, model, kept)
    result = task_result(study, task, model, artifacts, progress)
    _keep(path, key, _pack(result))
    return result


def task_result(study: Study, task: str, model: str, artifacts: Artifacts, progress: bool = True) -> TaskResult:
    """Selection, null, stability and sensitivity of one model on one task."""
    chance = study.chance
    p = probabilities_of(artifacts)
    options: dict[str, Any] = {
        "rate": study.rate(task),
        "quantile": study.selection.quantile,
        "weak_filter": study.selection.weak_filter,
    }
    chosen = select(p, classes=artifacts.classes, layers=artifacts.layers, **options)
    row: dict[str, Any] = {
        "title": study.task(task).title,
        "classes": len(artifacts.classes),
        "clips": len(artifacts.labels) if artifacts.manifest else None,
        "tokens": int(artifacts.tokens.sum()) if artifacts.manifest else None,
        **_selection_numbers(chosen),
        "threshold": chosen.threshold,
        "weak_threshold": chosen.weak_threshold,
        "rate": chosen.rate,
        "quantile": chosen.quantile,
        "weak_filter": chosen.weak_filter,
        "ln_classes": float(np.log(len(artifacts.classes))),
    }
    per_layer = chosen.members.any(axis=2).sum(axis=1)
    several = (chosen.members.sum(axis=2) > 1).sum(axis=1)
    classes = pd.DataFrame({"class": artifacts.classes, "neurons": chosen.per_class.to_numpy()})
    if not artifacts.has_counts:
        neurons = chosen.table().assign(q=np.nan, q_neuron=np.nan, calibrated=False)
        result = TaskResult(
            task, model, artifacts.classes, chosen.members, np.zeros_like(chosen.members), chosen.selected,
            chosen.entropy, row, neurons, classes, _sensitivity(artifacts, p, chosen, options, study), {},
        )  # fmt: skip
        row |= _by_layer("layer", per_layer) | _by_layer("several_classes_layer", several)
        return result

    data = counted_clips(artifacts)
    calibrated = calibrate_counts(
        data, chosen, permutations=chance.permutations, seed=study.seed, q=chance.q, effect=chance.effect,
        progress=progress and data.counts.nbytes > 2**26,  # what takes seconds needs no bar of its own
    )  # fmt: skip
    null = calibrated.null
    row["groups"] = len(np.unique(data.groups))
    row["permutation"] = null.units.description
    row["permutations"] = null.permutations
    row["null_clips"] = calibrated.clips
    for name, values in _null_numbers(null).items():
        row |= _interval(name, values)
    observed_aape, observed_spread = row["mean_aape"], row["classes_per_neuron"]
    row["p_mean_aape"] = one_sided_p(observed_aape, null.mean_aape, slack=1e-6)  # the null is in float32
    row["p_classes_per_neuron"] = one_sided_p(observed_spread, null.classes_per_neuron, slack=1e-6)
    row["neurons_differing"] = float((np.nan_to_num(null.neuron_q, nan=1.0) < chance.q).mean())  # of all neurons
    row["pairs_differing"] = null.discoveries
    row["p_task"] = null.task_p
    row["effect"] = chance.effect
    alive = calibrated.members.any(axis=2)
    row["calibrated_neurons"] = int(alive.sum())
    row["calibrated_coverage"] = calibrated.coverage
    row["calibrated_per_class_mean"] = float(calibrated.per_class.mean())
    row["calibrated_per_class_median"] = float(np.median(calibrated.per_class))
    row["calibrated_classes_per_neuron"] = float(calibrated.members.sum() / alive.sum()) if alive.any() else np.nan
    same, shuffled = _stabilities(data, len(artifacts.classes), options, chance.resamples, study.seed)
    row["stability"], row["stability_shuffled"] = same.mean, shuffled.mean
    row |= _by_layer("layer", per_layer) | _by_layer("several_classes_layer", several)
    row |= _by_layer("calibrated_layer", alive.sum(axis=1))
    low, high = np.quantile(null.per_class, [0.025, 0.975], axis=0)
    classes = classes.assign(
        clips=np.bincount(artifacts.labels, minlength=len(classes)),
        null_mean=null.per_class.mean(axis=0),
        null_low=low,
        null_high=high,
        calibrated=calibrated.per_class.to_numpy(),
        stability=same.by_class,
        stability_shuffled=shuffled.by_class,
    )
    return TaskResult(
        task, model, artifacts.classes, chosen.members, calibrated.members, chosen.selected, chosen.entropy, row,
        calibrated.table(), classes, _sensitivity(artifacts, p, chosen, options, study), _null_numbers(null),
    )  # fmt: skip


def _selection_numbers(chosen: Selection) -> dict[str, Any]:
    per_class, kept = chosen.per_class, int(chosen.selected.sum())
    return {
        "neurons_selected": kept,
        "coverage": chosen.coverage,
        "per_class_mean": float(per_class.mean()),
        "per_class_median": float(np.median(per_class)),
        "per_class_min": int(per_class.min()),
        "per_class_max": int(per_class.max()),
        "classes_per_neuron": float(per_class.sum() / kept) if kept else np.nan,
        "mean_aape": float(chosen.entropy[chosen.selected].mean()) if kept else np.nan,
    }


def _null_numbers(null: Any) -> dict[str, np.ndarray]:
    return {
        "coverage": null.coverage,
        "per_class_mean": null.per_class.mean(axis=1),
        "classes_per_neuron": null.classes_per_neuron,
        "mean_aape": null.mean_aape,
    }


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return {f"{name}_null_{end}": np.nan for end in ("mean", "low", "high")}
    low, high = np.quantile(known, [0.025, 0.975])
    return {f"{name}_null_mean": known.mean(), f"{name}_null_low": low, f"{name}_null_high": high}


def _by_layer(name: str, values: np.ndarray) -> dict[str, int]:
    return {f"{name}_{index:02d}": int(value) for index, value in enumerate(values)}


def _stabilities(
    data: Counted, n_classes: int, options: dict[str, Any], splits: int, seed: int
) -> tuple[Stability, Stability]:
    """Of the labels, and of labels shuffled once (halves of noise agree too, where neurons are active for all)."""
    sums = UnitSums(data, exchangeable_units(data.labels, data.groups, n_classes))
    real = stability(sums, splits=splits, seed=seed, **options)
    return real, stability(sums.permuted_once(seed + 1), splits=max(1, splits // 2), seed=seed, **options)


def _sensitivity(
    artifacts: Artifacts, p: np.ndarray, stated: Selection, options: dict[str, Any], study: Study
) -> pd.DataFrame:
    """How the numbers move with each choice; overlap: Jaccard of the (neuron, class) pairs with the stated ones."""
    rows = []

    def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return jaccard_index((a & b).sum(), (a | b).sum(), empty=1.0)

    def add(setting: str, value: str, chosen: list[Selection], note: str = "") -> None:
        numbers = pd.DataFrame([_selection_numbers(c) for c in chosen]).mean()
        overlap = np.mean([alike(c.members, stated.members) for c in chosen]) if chosen else np.nan
        rows.append({"setting": setting, "value": value, **numbers, "overlap": overlap, "note": note})

    add("as stated", f"{stated.weak_filter}, {stated.rate:g}, {stated.quantile:g}", [stated])
    other = "paper" if stated.weak_filter == "lape" else "lape"
    add("filter", other, [select(p, **(options | {"weak_filter": other}))])
    for rate in (stated.rate / 2, min(1.0, stated.rate * 2)):
        add("rate", "half" if rate < stated.rate else "double", [select(p, **(options | {"rate": rate}))])
    for quantile in (0.9, 0.99):
        add("quantile", f"{quantile:g}", [select(p, **(options | {"quantile": quantile}))])
    whole = artifacts.has_counts and "kept_clips" not in artifacts.manifest
    unknown = "" if whole else "needs the counts of all clips"
    if whole:
        size = np.bincount(artifacts.labels, minlength=len(artifacts.classes))
        if size.min() == size.max():
            add("clips per class", "equal", [stated], "they are equal")
        else:
            rng = np.random.default_rng(study.seed)
            drawn = []
            for _ in range(study.chance.resamples):
                rows_drawn = [
                    rng.choice(np.flatnonzero(artifacts.labels == c), size.min(), replace=False)
                    for c in range(len(size))
                ]
                drawn.append(select(artifacts.probabilities(clips=np.concatenate(rows_drawn)), **options))
            add("clips per class", "equal", drawn, f"{size.min()} instead of {size.min()} to {size.max()}")
    else:
        add("clips per class", "equal", [], unknown)
    if not whole:
        add("zero padding", "left out", [], unknown)
    elif artifacts.manifest.get("padding") == "unknown":
        add("zero padding", "left out", [], "the encoder does not say which tokens are padding")
    elif artifacts.padding_counts is None:
        add("zero padding", "left out", [stated], "no clip is padded")
    else:
        share = artifacts.padding_tokens.sum() / artifacts.tokens.sum()
        try:
            bare = select(artifacts.probabilities(padding=False), **options)
            add("zero padding", "left out", [bare], f"{share:.1%} of the tokens")
        except ValueError as error:  # a class of nothing but padding
            add("zero padding", "left out", [], str(error))
    return pd.DataFrame(rows)


# Kept results


def _pack(result: TaskResult) -> dict[str, np.ndarray]:
    text = {
        "row": result.row,
        "class_names": result.class_names,
        **{name: getattr(result, name).to_dict(orient="list") for name in ("neurons", "classes", "sensitivity")},
    }
    shape = np.array(result.members.shape)
    return {
        "text": np.frombuffer(json.dumps(text, default=_plain).encode(), dtype=np.uint8),
        "shape": shape,
        "members": np.packbits(result.members),
        "calibrated": np.packbits(result.calibrated),
        "selected": result.selected,
        "entropy": result.entropy,
        **{f"null_{name}": values for name, values in result.null.items()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _unpack(task: str, model: str, kept: dict[str, np.ndarray]) -> TaskResult:
    text = json.loads(kept["text"].tobytes())
    shape = tuple(kept["shape"])
    bits = {
        name: np.unpackbits(kept[name], count=int(np.prod(shape))).reshape(shape).astype(bool)
        for name in ("members", "calibrated")
    }
    return TaskResult(
        task,
        model,
        tuple(text["class_names"]),
        bits["members"],
        bits["calibrated"],
        kept["selected"],
        kept["entropy"],
        text["row"],
        pd.DataFrame(text["neurons"]),
        pd.DataFrame(text["classes"]),
        pd.DataFrame(text["sensitivity"]),
        {name.removeprefix("null_"): v for name, v in kept.items() if name.startswith("null_")},
    )


def _keep(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, key=np.array(key), **arrays)  # type: ignore[arg-type]
    with whole_file(path) as file:
        file.write(buffer.getvalue())


def _load_kept(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """What was kept under this key; None if there is nothing, or of other artifacts or settings."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in file.files if name != "key"}
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: computed again
        return None


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


# Tables


def side_by_side(statistics: dict[str, pd.DataFrame], labels: dict[str, str]) -> pd.DataFrame:
    """The models next to each other: a row per task."""
    columns = {
        "coverage": "coverage",
        "per_class_mean": "neurons per class",
        "classes_per_neuron": "classes per neuron",
        "mean_aape": "mean AAPE (nats)",
        "calibrated_coverage": "calibrated coverage",
        "calibrated_per_class_mean": "calibrated per class",
    }
    parts = {
        labels[model]: table.reindex(columns=list(columns)).rename(columns=columns)
        for model, table in statistics.items()
    }
    table = pd.concat(parts, axis=1).swaplevel(axis=1)
    order = [(name, model) for name in columns.values() for model in parts]
    return table[order]


def chance_table(statistics: dict[str, pd.DataFrame], labels: dict[str, str]) -> pd.DataFrame:
    """Percentile selection, its null (mean and 95 % interval) and the calibrated selection, side by side."""
    rows = []
    for model, table in statistics.items():
        for task, row in table.iterrows():
            if "coverage_null_mean" not in row or pd.isna(row["coverage_null_mean"]):
                continue
            entry: dict[str, Any] = {"task": task, "model": labels[model]}
            for name, title, digits in (
                ("coverage", "coverage", 2),
                ("per_class_mean", "neurons per class", 1),
                ("classes_per_neuron", "classes per neuron", 1),
                ("mean_aape", "mean AAPE", 4),
            ):
                entry[title] = round(row[name], digits)
                entry[f"{title}, permuted"] = (
                    f"{row[f'{name}_null_mean']:.{digits}f} "
                    f"[{row[f'{name}_null_low']:.{digits}f}, {row[f'{name}_null_high']:.{digits}f}]"
                )
            entry["p (AAPE)"] = row["p_mean_aape"]
            entry["neurons with q < 0.05"] = f"{row['neurons_differing']:.0%}"
            entry["calibrated coverage"] = round(row["calibrated_coverage"], 2)
            entry["calibrated per class"] = round(row["calibrated_per_class_mean"], 1)
            entry["stability"] = round(row["stability"], 2)
            entry["stability, shuffled"] = round(row["stability_shuffled"], 2)
            rows.append(entry)
    return pd.DataFrame(rows)


def sensitivity_table(variants: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    """One row per variant: means over the tasks, by model; the CSV has the tasks one by one."""
    columns = {
        "coverage": "coverage",
        "per_class_mean": "neurons per class",
        "classes_per_neuron": "classes per neuron",
        "overlap": "overlap with stated",
    }
    kept = variants.assign(
        variant=[s if s == "as stated" else f"{s}: {v}" for s, v in zip(variants.setting, variants.value, strict=True)],
        model=[labels[m] for m in variants.model],
    )
    order = list(dict.fromkeys(kept.variant))
    models = list(dict.fromkeys(kept.model))
    table = kept.pivot_table(index="variant", columns="model", values=list(columns), aggfunc="mean", dropna=False)
    table = table.rename(columns=columns, level=0).reindex(order)
    return table[[(name, model) for name in columns.values() for model in models]].rename_axis(columns=[None, None])


# Sharing


def pitch_of(name: str) -> int:
    """MIDI pitch from a class name such as "60" or "pitch_060". ValueError if there is no number in it."""
    found = re.findall(r"\d+", name)
    if not found:
        raise ValueError(f"class {name!r} of a pitch task has no number in its name")
    return int(found[-1])


def _sharing(
    study: Study,
    results: dict[tuple[str, str], TaskResult],
    artifacts: dict[tuple[str, str], Artifacts],
    cache: Path,
    progress: bool,
) -> tuple[dict[str, dict[str, Sharing]], dict[str, dict[str, DistanceCurve]], pd.DataFrame]:
    sharing: dict[str, dict[str, Sharing]] = {}
    curves: dict[str, dict[str, DistanceCurve]] = {}
    pairs: list[pd.DataFrame] = []
    jobs = [(figure, model) for figure in study.sharing for model in _models(study)]
    for figure, model in tqdm(jobs, desc="sharing", disable=None if progress else True):
        if (figure.rows, model) not in results or (figure.columns, model) not in results:
            continue
        rows, columns = results[figure.rows, model], results[figure.columns, model]
        is_pitch = study.task(figure.rows).kind == study.task(figure.columns).kind == "pitch"
        key = _key(
            CACHE_FORMAT, [_identity(artifacts[t, model]) for t in (figure.rows, figure.columns)],
            [study.rate(t) for t in (figure.rows, figure.columns)], study.selection.model_dump(), study.seed,
            SHARING_DRAWS, is_pitch,
        )  # fmt: skip
        path = cache / f"{figure.name}_{study.model(model).folder}.npz"
        kept = _load_kept(path, key)
        within = figure.rows == figure.columns
        if kept is None:
            result = sharing_against_chance(
                rows.members, None if within else columns.members, draws=SHARING_DRAWS, seed=study.seed
            )
            kept = {n: getattr(result, n) for n in ("observed", "mean", "low", "high", "p", "q")}
            kept["mean_null"] = _grand_mean(result.null, within)
            if is_pitch:
                pitches = [[pitch_of(c) for c in r.class_names] for r in (rows, columns)]
                curve = by_distance(result, *pitches)
                kept |= {f"curve_{n}": getattr(curve, n) for n in DistanceCurve.__annotations__}
            _keep(path, key, kept)
        sharing.setdefault(figure.name, {})[model] = Sharing(
            observed=kept["observed"], mean=kept["mean"], low=kept["low"], high=kept["high"],
            p=kept["p"], q=kept["q"], null=kept["mean_null"], within=within,
        )  # fmt: skip
        if is_pitch:
            fields = {n: kept[f"curve_{n}"] for n in DistanceCurve.__annotations__}
            curves.setdefault(figure.name, {})[model] = DistanceCurve(**fields)
        pairs.append(_pair_table(figure.name, model, rows, columns, sharing[figure.name][model]))
    table = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame()
    return sharing, curves, table


def _grand_mean(null: np.ndarray, within: bool) -> np.ndarray:
    """float32 [draws]: mean Jaccard over the pairs of different classes (or of all pairs of two tasks)."""
    return null[:, _counted(null.shape[1:], within)].mean(axis=1) if null[0].size > within else null[:, 0, 0]


def _counted(shape: tuple[int, ...], within: bool) -> np.ndarray:
    return np.triu(np.ones(shape, dtype=bool), k=1) if within else np.ones(shape, dtype=bool)


def _pair_table(name: str, model: str, rows: TaskResult, columns: TaskResult, found: Sharing) -> pd.DataFrame:
    """All pairs with any shared neuron, the most shared first."""
    shared = shared_neurons(rows.members, columns.members)
    i, j = np.nonzero(_counted(shared.shape, found.within) & (shared > 0))
    table = pd.DataFrame(
        {
            "figure": name,
            "model": model,
            "rows": np.asarray(rows.class_names, dtype=object)[i],
            "columns": np.asarray(columns.class_names, dtype=object)[j],
            "jaccard": found.observed[i, j],
            "shared_neurons": shared[i, j],
            "chance": found.mean[i, j],
            "chance_high": found.high[i, j],
            "p": found.p[i, j],
            "q": found.q[i, j],
        }
    )
    return table.sort_values(["jaccard", "rows", "columns"], ascending=[False, True, True])


def _sharing_summary(
    study: Study, sharing: dict[str, dict[str, Sharing]], results: dict[tuple[str, str], TaskResult]
) -> pd.DataFrame:
    """A row per figure and model: mean sharing, what re-dealing gives, and how many pairs survive."""
    table = []
    for figure in study.sharing:
        for model, found in sharing.get(figure.name, {}).items():
            counted = _counted(found.observed.shape, found.within)
            rows, columns = results[figure.rows, model], results[figure.columns, model]
            both = rows.members.any(axis=2) & columns.members.any(axis=2)
            mean = found.observed[counted].mean() if counted.any() else np.nan
            low, high = np.quantile(found.null, [0.025, 0.975])
            table.append(
                {
                    "figure": figure.name,
                    "what": figure.title,
                    "model": model,
                    "neurons in both": int(both.sum()),
                    "of": f"{rows.members.any(axis=2).sum()} and {columns.members.any(axis=2).sum()}",
                    "mean Jaccard": mean,
                    "chance": float(found.null.mean()),
                    "chance low": low,
                    "chance high": high,
                    "pairs": int((~np.isnan(found.p) & counted).sum()),
                    "pairs with q < 0.05": int(((found.q < study.chance.q) & counted).sum()),
                }
            )
    return pd.DataFrame(table)


def _octave_table(curves: dict[str, dict[str, DistanceCurve]]) -> pd.DataFrame:
    """Mean sharing by pitch distance, with the null's band, and against the distances one semitone off."""
    table = []
    for name, by_model in curves.items():
        for model, curve in by_model.items():
            for d in range(len(curve.distance)):
                off = [curve.observed[k] for k in (d - 1, d + 1) if 0 <= k < len(curve.distance)]
                table.append(
                    {
                        "figure": name,
                        "model": model,
                        "semitones": int(curve.distance[d]),
                        "pairs": int(curve.pairs[d]),
                        "mean_jaccard": curve.observed[d],
                        "chance": curve.mean[d],
                        "chance_low": curve.low[d],
                        "chance_high": curve.high[d],
                        "above_neighbours": curve.observed[d] - np.mean(off) if off else np.nan,
                    }
                )
    return pd.DataFrame(table)


# The paper's figures

PUBLISHED_LISTS = {
    # EVAR's configs m2d_abl_neuron1 and m2d_abl_neuron2; [layer, neuron], counted from 0
    ("cremad", "ANG", "HAP"): (
        "0,1 0,112 0,793 3,382 3,741 3,755 3,1959 3,2097 3,2233 5,1430 5,2471 6,1196 7,638 7,1157 7,2499 8,386 "
        "8,2554 9,347 10,393 10,2120 10,2369 10,2663"
    ),
    ("gtzan", "jazz", "classical"): (
        "3,2540 4,270 4,827 5,1521 5,2462 6,907 6,2415 6,2852 7,540 7,763 7,2466 7,2756 8,193 8,348 8,690 8,1315 "
        "8,1669 8,2804 9,328 9,596 9,660 9,1720 10,1521 10,1861 10,2798 11,1030"
    ),
}
PUBLISHED_SHAPE = (12, 3072)


def published_neurons(task: str, first: str, second: str) -> set[tuple[int, int]]:
    """The published neurons shared by two classes, as (layer, neuron)."""
    text = PUBLISHED_LISTS[task, first, second]
    return {(int(a), int(b)) for a, b in (pair.split(",") for pair in text.split())}


def not_comparable(study: Study, artifacts: Artifacts | None) -> str:
    """Why a study's figure cannot be held against the published one; empty if it can."""
    if artifacts is None:
        return "no artifacts"
    if study.stand_in:
        return "not comparable: stand-ins"
    weights = artifacts.manifest.get("weights", {})
    if not weights or weights.get("source") == "random":
        return "not comparable: weights random or unknown"
    if tuple(artifacts.over_zero.shape[:2]) != PUBLISHED_SHAPE:
        return f"not comparable: {tuple(artifacts.over_zero.shape[:2])} layers and neurons"
    return ""


def published_comparison(
    study: Study, results: dict[tuple[str, str], TaskResult], artifacts: dict[tuple[str, str], Artifacts]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The paper's values beside the study's, and its two neuron lists beside ours under both filters."""
    rows = []
    ssl, sl = (next((m for m in _models(study) if study.model(m).role == role), "") for role in ("ssl", "sl"))

    def add(what: str, paper: str, task: str, model: str, column: str, form: str) -> None:
        result = results.get((task, model))
        own = form.format(result.row[column]) if result else "-"
        reason = not_comparable(study, artifacts.get((task, model)))
        rows.append({"figure": what, "paper": paper, "this study": own, "remark": reason or "comparable"})

    for task in study.tasks:
        add(f"coverage, SSL, {task}", "about 100 %", task, ssl, "coverage", "{:.0%}")
    if "vc1_country" in study.tasks:
        add("coverage, SL, vc1_country", "49 %", "vc1_country", sl, "coverage", "{:.0%}")
    for task, value in (("cremad", "172.0"), ("esc50", "37.9")):
        if task in study.tasks:
            add(f"neurons per class, SSL, {task}", value, task, ssl, "per_class_mean", "{:.1f}")

    lists = []
    for task, first, second in PUBLISHED_LISTS:
        if task not in study.tasks:
            continue
        found = artifacts.get((task, ssl))
        reason = not_comparable(study, found)
        theirs = published_neurons(task, first, second)
        for weak_filter in ("lape", "paper"):
            entry: dict[str, Any] = {
                "task": task,
                "classes": f"{first} and {second}",
                "filter": weak_filter,
                "published": len(theirs),
                "ours": None,
                "in both": None,
                "remark": reason,
            }
            if found is not None and not reason:
                indices = [_find_class(found.classes, name) for name in (first, second)]
                if None in indices:
                    entry["remark"] = f"no class named {first} or {second}"
                else:
                    chosen = select(
                        probabilities_of(found), rate=study.rate(task), quantile=study.selection.quantile,
                        weak_filter=weak_filter,
                    )  # fmt: skip
                    mine = chosen.members[:, :, indices].all(axis=2)
                    ours = {(int(a), int(b)) for a, b in np.argwhere(mine)}
                    entry |= {"ours": len(ours), "in both": len(ours & theirs), "remark": "comparable"}
            lists.append(entry)
    return pd.DataFrame(rows), pd.DataFrame(lists)


def _find_class(classes: Iterable[str], name: str) -> int | None:
    for index, candidate in enumerate(classes):
        if candidate.lower().startswith(name.lower()[:3]):
            return index
    return None


# Figures


def _draw(analysis: Analysis) -> dict[str, Path]:
    study, directory = analysis.study, analysis.study.directory
    mark = "stand-ins" if study.stand_in else ""
    drawn: dict[str, Path] = {}
    panels = _models(study)
    labels = {m: study.model(m).label for m in panels}
    for figure in study.sharing:
        found = analysis.sharing.get(figure.name, {})
        if not any(m in found for m in panels):
            continue
        model = next(m for m in panels if m in found)
        rows, columns = (analysis.results[t, model].class_names for t in (figure.rows, figure.columns))
        kind = study.task(figure.rows).kind
        is_pitch = figure.name in analysis.curves
        whole = figures.sharing_figure(
            {labels[m]: found.get(m) for m in panels},
            rows,
            columns,
            titles=(study.task(figure.rows).title, study.task(figure.columns).title),
            what=figure.title,
            pitches=([pitch_of(c) for c in rows], [pitch_of(c) for c in columns]) if is_pitch else None,
            curves={labels[m]: analysis.curves[figure.name].get(m) for m in panels} if is_pitch else None,
            list_pairs=kind == "event",
            level=study.chance.q,
            mark=mark,
        )
        drawn[figure.name] = figures.save(whole, directory, figure.name)
    names = {m: study.model(m).label for m in _models(study)}
    drawn["neurons_by_layer"] = figures.save(
        figures.layer_figure(analysis.results, list(study.tasks), names, mark), directory, "neurons_by_layer"
    )
    if any(result.null for result in analysis.results.values()):
        drawn["chance"] = figures.save(
            figures.chance_figure(analysis.results, list(study.tasks), names, mark), directory, "chance"
        )
    return drawn
