"""Does it matter? The classes' neurons silenced, against many random sets of neurons silenced in the same way.

The targets are stated in the study file before anything is seen: the neurons specific to a class, shared by several,
or of all classes, of one task. They are chosen on the training clips and tested on the others, by a linear classifier
fitted on the intact encoder's embeddings and then left alone. For each target and encoder:

* the same number of random neurons in each layer, drawn many times (layer-matched controls), and as many that are also
  of like activation rate: the distribution against which a drop is judged, p = (1 + #{control <= target}) / (1 + n);
* the paper's own control (each index plus one), and a set of like activation rate in the target's classes;
* the neurons' mean in place of zero, a sweep of gains, and the neurons that all clips would have chosen;
* an interval by bootstrap over groups of clips, before and after paired, and the spread over classifiers refitted on
  bootstrapped training groups.

q is p after Benjamini and Hochberg over the classes of all targets of one encoder and measure. Two measures: accuracy
in percentage points, and the mean log-probability of the true class in nats, which moves when accuracy is too coarse.

    result = ablate(load_study("miniature"))
    result.summary()

Every batch of clips is kept in `outputs/<study>/ablations/` as it is done, so a sweep that was cut off goes on, and a
study with more targets or controls computes only what is new.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from aape.artifacts import Artifacts, load_artifacts
from aape.chance import benjamini_hochberg, one_sided_p
from aape.classifier import Fold, folds
from aape.encoder import choose_device
from aape.files import write_text
from aape.selection import Selection, jaccard_index, select
from aape.study import AblationTarget, Study, load_encoder, load_study, load_task
from aape.trials import MEASURES, Bench, Sets, Trial, require_clips

NEAREST = 10  # a rate-matched control takes each neuron from this many nearest in rate that are still free
CONTROLS = {"layer-matched": "layer", "rate-matched": "rate", "rate-matched in the classes": "target_rate"}
_AT = ("task", "model", "target", "mode")
_CHANGE = ("class", "targeted", "measure", "before", "after", "difference")
TABLES = {  # name -> columns that it has even without a row
    "effects": (*_AT, "kind", *_CHANGE),
    "controls": (*_AT, "control", "number", *_CHANGE),
    "off_target": ("task", "model", "silenced", "neurons", *_CHANGE),
    "gains": (*_AT, "gain", *_CHANGE),
    "classifier": ("task", "model"),
    "identification": (*_AT, "fold", "training_clips", "all_clips", "both", "jaccard"),
    "neurons": (*_AT, "fold", "layer", "neuron", "name"),
}
_Choice = tuple[dict[str, Selection], dict[str, Selection] | None]  # by fold, as the study asks; in the other way


# -- targets and controls ---------------------------------------------------------------------------------------


def label_of(target: AblationTarget) -> str:
    """What tables call a target: "jazz", "classical & jazz", "all of classical, jazz"."""
    if target.mode == "all":
        return f"all of {', '.join(target.classes)}" if target.classes else "all classes"
    return " & ".join(target.classes)


def target_classes(target: AblationTarget, classes: Sequence[str]) -> list[int]:
    """Indices of a target's classes.

    Raises:
        ValueError: a class that the task does not have, one class for `shared`, or several for `specific`.
    """
    unknown = [c for c in target.classes if c not in classes]
    if unknown:
        raise ValueError(
            f"target {label_of(target)!r}: task {target.task} has no class {unknown[0]!r}; it has {', '.join(classes)}"
        )
    if target.mode == "specific" and len(target.classes) != 1:
        raise ValueError(
            f"target of task {target.task}: mode 'specific' takes one class, found {len(target.classes)}; "
            "several take 'shared' (neurons of each of them) or 'all' (neurons of any of them)"
        )
    if target.mode == "shared" and len(set(target.classes)) < 2:
        raise ValueError(f"target of task {target.task}: mode 'shared' takes two classes or more")
    return [classes.index(c) for c in target.classes or classes]


def target_neurons(selection: Selection, target: AblationTarget) -> np.ndarray:
    """Neurons [k, 2] of a target: specific to its class, to each of its classes (shared), or to any of them (all)."""
    members = selection.members[:, :, target_classes(target, selection.classes)]
    return np.argwhere(members.any(axis=2) if target.mode == "all" else members.all(axis=2)).reshape(-1, 2)


def identify(artifacts: Artifacts, parts: Sequence[Fold], how: str, **options: Any) -> dict[str, Selection]:
    """The selection for each fold, from its training clips ("train") or from all clips, as in the paper ("all").

    Args:
        artifacts: of one model and task. parts: its folds. how: see above.
        **options: of `select`: rate, quantile, weak_filter.

    Raises:
        ValueError: training clips asked for where the artifacts hold no counts of single clips.
    """
    options |= {"classes": artifacts.classes, "layers": artifacts.layers}
    if how == "all":
        return dict.fromkeys([f.name for f in parts], select(artifacts.over_zero.double().numpy(), **options))
    if not _counts_of_all(artifacts):
        raise ValueError(
            f"{artifacts.path}: choosing neurons on training clips needs clip_counts.npy with every clip. Collect with "
            "counts of all clips, or set ablation.identify to 'all', the paper's way, which also sees the test clips."
        )
    return {fold.name: select(artifacts.probabilities(clips=fold.fit), **options) for fold in parts}


def _counts_of_all(artifacts: Artifacts) -> bool:
    return artifacts.has_counts and "kept_clips" not in artifacts.manifest


def matched(neurons: np.ndarray, width: int, rng: np.random.Generator, rates: np.ndarray | None = None) -> np.ndarray:
    """Random neurons [k, 2] outside `neurons` [k, 2], as many in each layer; with `rates` each of like activation rate.

    Args:
        neurons: [k, 2] of (layer, neuron).
        width: neurons in each layer.
        rng: of the draw; the order in which neurons choose is random too.
        rates: activation rates [layers, neurons]; each neuron is then taken from the nearest that are still free.

    Raises:
        ValueError: fewer candidates in a layer than the control needs.
    """
    found = []
    for layer in np.unique(neurons[:, 0]):
        mine = neurons[neurons[:, 0] == layer, 1]
        free = np.setdiff1d(np.arange(width), mine)
        if len(free) < len(mine):
            raise ValueError(
                f"layer {layer}: a control needs {len(mine)} neurons outside the target, but only {len(free)} of its "
                f"{width} are. Choose a lower rate or a smaller target."
            )
        if rates is None:
            found += [(layer, n) for n in np.sort(rng.choice(free, len(mine), replace=False))]
            continue
        for neuron in rng.permutation(mine):
            distance = np.abs(rates[layer, free] - rates[layer, neuron])
            place = rng.choice(np.argsort(distance, kind="stable")[:NEAREST])
            found.append((layer, free[place]))
            free = np.delete(free, place)
    return np.array(sorted(found), dtype=np.int64)


def index_plus_one(neurons: np.ndarray, width: int) -> np.ndarray:
    """The paper's control: the neuron beside each one, the first after the last. May overlap with the target."""
    return np.stack([neurons[:, 0], (neurons[:, 1] + 1) % width], axis=1)


# -- effects ----------------------------------------------------------------------------------------------------


def paired_interval(
    difference: np.ndarray, groups: np.ndarray, *, count: int, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of a mean of paired differences [clips], by bootstrap over groups of clips.

    NaN where there are fewer than two groups, of which nothing can be said, or no bootstraps are asked for.
    """
    names, of_clip = np.unique(groups, return_inverse=True)
    if len(names) < 2 or count == 0:
        return np.nan, np.nan
    sums = np.bincount(of_clip, weights=difference)
    sizes = np.bincount(of_clip)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)  # [count, groups]
    low, high = np.percentile((drawn @ sums) / (drawn @ sizes), [2.5, 97.5])
    return float(low), float(high)


def _trials(bench: Bench, study: Study, target: AblationTarget, chosen: _Choice, at: Mapping[str, Any]) -> list[Trial]:
    """Every trial of one target."""
    settings, tested, (selections, others) = study.ablation, bench.tested, chosen
    sets = {name: target_neurons(selection, target) for name, selection in selections.items()}
    classes = target_classes(target, bench.classes)
    here = np.isin(bench.labels, classes) & tested
    trials: list[Trial] = []

    def add(
        table: str, neurons: Sets, clips: np.ndarray = tested, change: Mapping[str, Any] = {}, **where: Any
    ) -> None:
        trials.append(Trial(neurons, clips, table=table, classes=classes, at={**at, **where}, **change))

    add("effects", sets, change={"refit": True}, kind="silenced")
    if not any(len(s) for s in sets.values()):
        return trials
    width = bench.artifacts.over_zero.shape[1]
    add("effects", {f: index_plus_one(n, width) for f, n in sets.items()}, kind="index plus one")
    if settings.mean_replacement:
        union = np.unique(np.concatenate(list(sets.values())), axis=0)
        place = {tuple(row): i for i, row in enumerate(union.tolist())}
        means = bench.means(union)
        values = {f: means[f][[place[tuple(r)] for r in n.tolist()]] for f, n in sets.items()}
        add("effects", sets, change={"values": values}, kind="replaced by mean")
    if others is not None:
        other = "all clips" if settings.identify == "train" else "training clips"
        theirs = {f: target_neurons(s, target) for f, s in others.items()}
        add("effects", theirs, kind=f"silenced, chosen on {other}")
    for gain in settings.gains:
        add("gains", sets, here, {"gain": gain}, **{"gain": gain})
    in_classes = {f: s.probabilities[:, :, classes].mean(axis=2) for f, s in selections.items()}
    overall = {f.name: _overall_rate(bench.artifacts, f, settings.identify) for f in bench.folds}
    everywhere = settings.controls if settings.controls_elsewhere is None else settings.controls_elsewhere
    for kind, count, rates in (
        ("layer-matched", settings.controls, dict.fromkeys(sets)),
        ("rate-matched", settings.rate_matched, overall),
        ("rate-matched in the classes", settings.target_rate_matched, in_classes),
    ):
        for i in range(count):
            members = dict(sets)
            for f in (f for f in sets if len(sets[f])):
                seed = zlib.crc32(f"{bench.task.name}|{label_of(target)}|{target.mode}|{kind}|{f}".encode())
                members[f] = matched(sets[f], width, np.random.default_rng([study.seed, seed, i]), rates[f])
            clips = tested if kind == "layer-matched" and i < everywhere else here
            add("controls", members, clips, control=kind, number=i)
    return trials


def _overall_rate(artifacts: Artifacts, fold: Fold, how: str) -> np.ndarray:
    """Activation rate [layers, neurons] over all tokens, of the training clips or of all (mean over classes then)."""
    if how == "all" or not artifacts.has_counts:
        return artifacts.over_zero.double().mean(dim=2).numpy()
    active = artifacts.counts[fold.fit].sum(axis=0, dtype=np.int64)
    return active / artifacts.tokens[fold.fit].sum()


def _off_target_trials(bench: Bench, selections: Mapping[str, Selection], at: Mapping[str, Any]) -> list[Trial]:
    """The neurons of each class silenced; classes without any are left out."""
    trials = []
    for c, name in enumerate(bench.classes):
        sets = {f: s.neurons(name) for f, s in selections.items()}
        if size := float(np.mean([len(s) for s in sets.values()])):
            where = {**at, "silenced": name, "neurons": size}
            trials.append(Trial(sets, bench.tested, table="off_target", classes=[c], at=where))
    return trials


# -- the experiment ---------------------------------------------------------------------------------------------


def judged(effects: pd.DataFrame, q: float) -> tuple[pd.DataFrame, int]:
    """The rows of silenced targets that were tested, and how many of them fall below their layer-matched controls."""
    tested = effects[effects.layer_p.notna()]
    return tested, int(((tested.layer_q < q) & (tested.difference < tested.layer_mean)).sum())


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult:
    """Tables of the experiment; each is also a CSV file `ablation_<name>.csv` in `directory`.

    effects: a row per task, model, target, kind of change, class and measure.
    controls: a row per control set, class and measure.
    off_target: the change in each class when another class's neurons are silenced.
    gains: the change in each class of a target by gain.
    classifier: accuracy of the intact classifier by class, clips in the encoder's training data set apart.
    identification: size and overlap of the sets chosen on training clips and on all clips.
    neurons: the silenced neurons.
    """

    directory: Path
    stand_in: bool
    labels: Mapping[str, str]  # model -> what figures call it
    titles: Mapping[str, str]  # task -> what figures call it
    effects: pd.DataFrame
    controls: pd.DataFrame
    off_target: pd.DataFrame
    gains: pd.DataFrame
    classifier: pd.DataFrame
    identification: pd.DataFrame
    neurons: pd.DataFrame

    def __repr__(self) -> str:
        return f"Ablation in {self.directory}: {len(self.summary())} targeted classes by model\n{self.verdict()}"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)

    def summary(self, measure: str = "log_probability") -> pd.DataFrame:
        """A row per task, target, model and class of the target: before, change, controls, p and q."""
        rows = self.effects
        rows = rows[(rows.kind == "silenced") & rows.targeted & (rows.measure == measure)]
        columns = ["task", "target", "model", "class", "clips", "in_sample", "neurons", "before", "difference"]
        columns += ["low", "high", "refit_sd", "layer_mean", "layer_low", "layer_high", "layer_p", "layer_q"]
        if rows.rate_controls.gt(0).any():
            columns += ["rate_mean", "rate_p", "rate_q"]
        return rows[columns].reset_index(drop=True)

    def table(self, measure: str = "log_probability") -> pd.DataFrame:
        """The summary for a notebook: eight columns of text, the deepest fall first; classes without neurons last."""
        found = self.summary(measure).sort_values("difference", kind="stable", na_position="last")
        change, before = ("points", "%") if measure == "accuracy" else ("nats", "nats")
        number = lambda values, form: [form.format(v) if np.isfinite(v) else "" for v in values]  # noqa: E731
        return pd.DataFrame(
            {
                "target (class)": found.target + " (" + found["class"] + ")",
                "task": found.task.map(lambda t: self.titles.get(t, t)),
                "model": found.model.map(lambda m: self.labels.get(m, m)),
                "neurons": number(found.neurons, "{:.4g}"),
                f"before, {before}": number(found.before, "{:.3g}"),
                f"change, {change}": number(found.difference, "{:+.3g}"),
                f"random sets, {change}": number(found.layer_mean, "{:+.3g}"),
                "q": number(found.layer_q, "{:.3g}"),
            }
        ).reset_index(drop=True)

    def verdict(self, q: float = 0.05) -> str:
        """Plain sentences: for each encoder, whether silencing the targets costs more than the controls do."""
        lines = []
        for measure, unit in (("accuracy", "points of accuracy"), ("log_probability", "nats of log-probability")):
            for model, mine in self.summary(measure).groupby("model", sort=False):
                label = self.labels.get(str(model), str(model))
                tested, fallen = judged(mine, q)
                if tested.empty:
                    lines.append(f"{label}: nothing to test (no target has neurons, or no controls).")
                    continue
                best = tested.iloc[tested.layer_p.argmin()]
                lines.append(
                    f"{label}, {unit}: {fallen} of {len(tested)} targeted classes fall "
                    f"below their layer-matched controls (q < {q:g}); on average {tested.difference.mean():+.3g} "
                    f"against {tested.layer_mean.mean():+.3g} for the controls; smallest p = {best.layer_p:.3g} "
                    f"(q = {best.layer_q:.3g}, {best['class']} in {best.task}: {best.difference:+.3g} against "
                    f"{best.layer_mean:+.3g})."
                )
        return "\n".join(lines)


def load_result(study: Study) -> AblationResult:
    """The tables of an earlier `ablate`, without the models.

    Raises:
        FileNotFoundError: no such tables.
    """
    tables = {}
    for name in TABLES:
        path = study.directory / f"ablation_{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run Ablations.ipynb with study {study.name!r} first")
        tables[name] = pd.read_csv(path, dtype={"class": str, "silenced": str, "target": str, "model": str})
    return _result(study, tables)


def _result(study: Study, tables: Mapping[str, pd.DataFrame]) -> AblationResult:
    labels = {name: model.label for name, model in study.encoders.items()}
    titles = {name: task.title for name, task in study.tasks.items()}
    return AblationResult(study.directory, study.stand_in, labels, titles, **tables)


def ablate(
    study: str | Path | Study, *, device: str | torch.device | None = None, batch_size: int | None = None
) -> AblationResult:
    """The deactivation experiment of a study, for every model and task that its targets name.

    Args:
        study: with `ablation.targets`; the artifacts of its models and tasks must have been collected.
        device: None: CUDA if there, else CPU.
        batch_size: clips at once; None: the study's.

    Raises:
        ValueError: no targets; unknown classes; artifacts that do not belong to the encoder; a target without a neuron
            in every model; too few candidates for a control. What was computed until then is kept.
        FileNotFoundError: artifacts that have not been collected.
    """
    study = study if isinstance(study, Study) else load_study(study)
    settings = study.ablation
    if not settings.targets:
        raise ValueError(
            f"study {study.name!r} states no ablation targets: list them under ablation.targets, each with task, "
            "classes and mode (specific, shared, all)"
        )
    models = [copy for name in settings.models or study.models for copy in study.copies(name)]
    tasks = {name: load_task(study, name) for name in dict.fromkeys(t.task for t in settings.targets)}
    artifacts = {(m, task): load_artifacts(study.artifacts_directory(task, m)) for m in models for task in tasks}
    chosen = {(m, task): _selections(found, study, task) for (m, task), found in artifacts.items()}
    _require_neurons(study, chosen)  # before hours of work
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for model in models:
        encoder = load_encoder(study, model).to(choose_device(device))
        for name, task in tasks.items():
            bench = Bench(
                encoder,
                task,
                artifacts[model, name],
                study.directory / "ablations" / f"{name}_{study.model(model).folder}",
                refit_count=settings.refits,
                seed=study.seed,
                batch_size=study.collect.batch_size if batch_size is None else batch_size,
            )
            for table, new in _one(bench, study, model, name, chosen[model, name]).items():
                rows[table] += new
    tables = {name: pd.DataFrame(new, columns=None if new else list(TABLES[name])) for name, new in rows.items()}
    tables["effects"] = _against_controls(tables["effects"], tables["controls"])
    study.directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_text(study.directory / f"ablation_{name}.csv", table.to_csv(index=False))
    return _result(study, tables)


def _selections(artifacts: Artifacts, study: Study, task: str) -> _Choice:
    require_clips(artifacts)
    parts = folds(artifacts.splits, artifacts.labels, artifacts.classes)
    options = study.selection.model_dump() | {"rate": study.rate(task)}
    how = study.ablation.identify
    other = "all" if how == "train" else "train" if _counts_of_all(artifacts) else None
    theirs = None if other is None else identify(artifacts, parts, other, **options)
    return identify(artifacts, parts, how, **options), theirs


def _require_neurons(study: Study, chosen: Mapping[tuple[str, str], _Choice]) -> None:
    """A target that is empty in every model, so that there is nothing to silence, is an error in the study."""
    for target in study.ablation.targets:
        selections = [s for (_, task), (mine, _) in chosen.items() if task == target.task for s in mine.values()]
        if not any([len(target_neurons(selection, target)) for selection in selections]):
            raise ValueError(
                f"no model of study {study.name!r} has a neuron for the target {label_of(target)!r} of {target.task} "
                f"({target.mode}): the set is empty. Choose other classes, another mode or a higher selection rate."
            )


def _one(bench: Bench, study: Study, model: str, task: str, chosen: _Choice) -> dict[str, list[dict[str, Any]]]:
    """All targets of one task on one model: rows for the tables."""
    settings, artifacts, where = study.ablation, bench.artifacts, {"task": task, "model": model}
    trained_on = study.model(model).heard.get(task, [])
    unknown = sorted(set(trained_on) - set(artifacts.splits.tolist()))
    if unknown:
        raise ValueError(
            f"models.{model}.heard: {task} has no split {unknown[0]!r}; it has {', '.join(sorted(set(artifacts.splits)))}"
        )
    in_sample = np.isin(artifacts.splits, trained_on)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    rows["classifier"] = bench.classifier_scores(in_sample).assign(**where).to_dict("records")
    trials = [Trial(None, bench.tested, refit=True)]
    if settings.off_target:
        trials += _off_target_trials(bench, chosen[0], where)
    for target in (t for t in settings.targets if t.task == task):
        at = where | {"target": label_of(target), "mode": target.mode}
        mine = _trials(bench, study, target, chosen, at)
        trials += mine
        for fold, neurons in (mine[0].neurons or {}).items():
            rows["neurons"] += [
                at | {"fold": fold, "layer": layer, "neuron": neuron, "name": artifacts.layers[layer]}
                for layer, neuron in neurons.tolist()
            ]
            if chosen[1] is not None:
                pair = [neurons, target_neurons(chosen[1][fold], target)]
                rows["identification"].append(
                    at | {"fold": fold} | _overlap(*(pair if settings.identify == "train" else pair[::-1]))
                )
    intact, *found = bench.run(trials)
    for trial, after in zip(trials[1:], found, strict=True):
        rows[trial.table] += _changes(bench, study, trial, intact, after, in_sample)
    return rows


def _overlap(train: np.ndarray, everyone: np.ndarray) -> dict[str, Any]:
    """How far two sets of neurons [k, 2] agree."""
    a, b = set(map(tuple, train.tolist())), set(map(tuple, everyone.tolist()))
    jaccard = float(jaccard_index(len(a & b), len(a | b), np.nan))
    return {"training_clips": len(a), "all_clips": len(b), "both": len(a & b), "jaccard": jaccard}


def _changes(
    bench: Bench, study: Study, trial: Trial, before: np.ndarray, after: np.ndarray, in_sample: np.ndarray
) -> list[dict[str, Any]]:
    """A row per measure and class that was run: before, after, difference, for effects with interval and refits.

    Raises:
        RuntimeError: a target that changes nothing at all.
    """
    at, rows = trial.at or {}, []
    size = float(np.mean([len(n) for n in (trial.neurons or {}).values()]))
    if size == 0:
        after = np.full_like(after, np.nan)
    elif at.get("kind") == "silenced" and (after[0] == before[0])[:, bench.tested].all():
        raise RuntimeError(
            f"target {at['target']!r} of {bench.task.name}: silencing its neurons in {bench.encoder.name} changes "
            f"nothing for {bench.tested.sum()} test clips, bit for bit. They are 0 there, or the hooked modules are not "
            "on the way to the embedding."
        )
    moved = after - before[: len(after)]
    for (m, measure), (c, name) in itertools.product(enumerate(MEASURES), enumerate(bench.classes)):
        mine = bench.tested & (bench.labels == c)
        first, second = before[0, m, mine].mean(), after[0, m, mine].mean()
        if trial.table != "effects" and not np.isfinite(second):
            continue
        row = {**at, "class": name, "targeted": c in trial.classes, "measure": measure}
        row |= {"before": first, "after": second, "difference": second - first}
        if trial.table == "effects":
            seed = zlib.crc32(f"{bench.task.name}|{at['target']}|{at['kind']}|{c}".encode())
            low, high = paired_interval(
                moved[0, m, mine],
                bench.groups[mine],
                count=study.ablation.bootstrap if np.isfinite(second) else 0,
                rng=np.random.default_rng([study.seed, seed]),
            )
            spread = moved[1:, m, mine].mean(axis=1)
            row |= {"clips": int(mine.sum()), "in_sample": int((mine & in_sample).sum())}
            row |= {"groups": len(set(bench.groups[mine].tolist())), "neurons": size, "low": low, "high": high}
            row["refit_mean"] = spread.mean() if len(spread) else np.nan
            row["refit_sd"] = spread.std(ddof=1) if len(spread) > 1 else np.nan
        rows.append(row)
    return rows


def _against_controls(effects: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """With the controls' mean, 95 % range and p of each silenced class, and q over the targeted ones of a model."""
    by = [*_AT, "class", "measure"]
    changes = {key: mine.to_numpy() for key, mine in controls.groupby([*by, "control"]).difference}
    silenced = effects[effects.kind == "silenced"]
    for control, short in CONTROLS.items():
        found: dict[Any, dict[str, float]] = {}
        for index, key, difference in zip(
            silenced.index, silenced[by].itertuples(index=False, name=None), silenced.difference, strict=True
        ):
            values = changes.get((*key, control), np.array([]))
            ends = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
            found[index] = {
                f"{short}_controls": len(values),
                f"{short}_mean": values.mean() if len(values) else np.nan,
                f"{short}_low": ends[0],
                f"{short}_high": ends[1],
                f"{short}_p": one_sided_p(difference, values),
            }
        effects = effects.join(pd.DataFrame.from_dict(found, orient="index"))
        tested = effects[effects.targeted & effects[f"{short}_p"].notna()]
        effects[f"{short}_q"] = tested.groupby(["model", "measure"])[f"{short}_p"].transform(benjamini_hochberg)
    return effects
