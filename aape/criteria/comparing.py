"""The criteria put to the test: which of them finds the neurons that matter?

For each of some classes, equally many neurons by every criterion, chosen on the training clips of a fold, are changed in
the encoder, and its test clips are judged by two classifiers fitted on the intact encoder: a linear one, and the nearest
class mean, which no criterion has seen. The effect is the change of the class's clips minus that of clips of the other
classes. Beside every criterion stand two random floors, drawn for its own sets: as active in the class (activation
rate), and as strong there (mean activation), layer by layer and stratum by stratum. Criteria are compared class by
class, so that intervals are those of paired differences over classes.

    classes = draw_classes(task.classes, 10, seed=1)  # stated before anything is seen
    compare_criteria(encoder, task, artifacts, ["aape", "attribution_mean"], classes=classes).summary()
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts
from aape.causal.classifier import Fold, folds
from aape.causal.controls import activity_matched
from aape.causal.runner import MEASURES, MODES, Intervention, Runner
from aape.criteria.ranking import CRITERIA, Criterion, rank
from aape.encoders.encoder import Encoder, choose_device
from aape.files import folder_lock
from aape.sounds.task import Task

JUDGES = ("linear", "nearest mean")
FLOORS = {"random, as active": "active", "random, as strong": "strong"}  # name -> what columns call it
SHOWN = ("effect", "", ""), ("less_active", "less_active_", ", less as active")  # column, its ends', what a table says

Sets = dict[tuple[str, int], dict[str, np.ndarray]]  # (criterion, class) -> fold -> neurons [k, 2]


class NothingToCompare(ValueError):
    """Fewer than two of the asked classes have a neuron by every criterion."""


def draw_classes(classes: Sequence[str], count: int, seed: int, without: Iterable[str] = ()) -> list[str]:
    """A seeded choice of classes, in their order. without: those that were seen already."""
    free = [name for name in classes if name not in set(without)]
    chosen = np.random.default_rng(seed).choice(len(free), min(count, len(free)), replace=False)
    return [free[i] for i in sorted(chosen)]


def strongest(scores: np.ndarray, k: int) -> np.ndarray:
    """The k neurons [<= k, 2] of largest finite score [layers, neurons]; ties by layer, then neuron."""
    order = np.argsort(-scores, axis=None, kind="stable")[:k]
    places = np.stack(np.unravel_index(order, scores.shape), axis=1)
    return places[np.isfinite(scores.reshape(-1)[order])]


@dataclass(frozen=True, eq=False, repr=False)
class Contest:
    """What came out. rows: a row per criterion, floor (empty for its own set) and draw, class, mode, judge, measure."""

    name: str
    rows: pd.DataFrame

    def summary(self, measure: str = "log_probability") -> pd.DataFrame:
        """A row per criterion, mode and judge: mean effect over classes, and paired difference to each floor, with ends.

        Ends are those of 95 % t intervals over classes. `below` counts the classes that fall further than the floor.
        """
        key, found = ["criterion", "mode", "judge"], []
        rows = self.rows[self.rows.measure == measure]
        of_class = rows.pivot_table(index=[*key, "class"], columns="floor", values="effect", sort=False)  # over draws
        for at, here in of_class.groupby(level=key, sort=False):
            line = dict(zip(key, at, strict=True)) | {"classes": len(here)} | _mean(here[""], "effect", "low", "high")
            for floor, short in FLOORS.items():
                less, name = here[""] - here[floor], f"less_{short}"
                line |= _mean(less, name, f"{name}_low", f"{name}_high") | {f"below_{short}": int((less < 0).sum())}
            found.append(line)
        return pd.DataFrame(found)

    def table(self, measure: str = "log_probability", mode: str | None = None) -> pd.DataFrame:
        """For a notebook: a row per criterion, the deepest fall first, by both judges, beside sets as active. mode: the first."""
        found = self.summary(measure)
        found = found[found["mode"] == (mode or found["mode"].iloc[0])].sort_values("effect", kind="stable")
        table = pd.DataFrame(index=found[found.judge == JUDGES[0]].criterion)
        for judge, (column, ends, what) in itertools.product(JUDGES, SHOWN):
            here = found[found.judge == judge].set_index("criterion")
            cells = zip(here[column], here[f"{ends}low"], here[f"{ends}high"], strict=True)
            table[judge + what] = pd.Series([f"{v:+.3g} [{a:+.2g}, {b:+.2g}]" for v, a, b in cells], index=here.index)
        return table.reset_index()

    def __repr__(self) -> str:
        return f"Contest of criteria: {self.name}\n{self.table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)


def _mean(values: pd.Series, *names: str) -> dict[str, float]:
    """Mean, and the ends of its 95 % t interval, under these names."""
    half = student.ppf(0.975, len(values) - 1) * values.sem() if len(values) > 1 else np.nan
    return dict(zip(names, (values.mean(), values.mean() - half, values.mean() + half), strict=True))


def compare_criteria(
    encoder: Encoder,
    task: Task,
    artifacts: Artifacts,
    criteria: Sequence[str] | Mapping[str, str | Criterion] = tuple(CRITERIA),
    *,
    k: int = 40,
    classes: Sequence[str] | None = None,
    tested: Sequence[str] | None = None,
    modes: Sequence[str] = tuple(MODES),
    draws: int = 3,
    panel: int = 4,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out_dir: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Contest:
    """Every criterion's sets and their floors changed, and held-out clips judged.

    Args:
        encoder, task, artifacts: what belongs together.
        criteria: names (`aape.criteria.ranking.CRITERIA`), or name -> a name or a function of `aape.criteria.ranking.Clips`.
        k: neurons a class; fewer where a criterion has fewer, then for all criteria.
        classes: those that are put to the test; None: all.
        tested: of several folds those whose clips are tested; None: all.
        modes: of `aape.causal.runner.MODES`.
        draws: random sets of each floor.
        panel: clips of each other class of the contest.
        seed: of draws and panel.
        options: criterion -> its own options, such as {"aape": {"rate": 0.1}}.
        out_dir: where what is done is kept; None: `contest` in the artifacts' folder.
        device: None: CUDA if there, else CPU.

    Raises:
        ValueError: as `Runner`; a class or fold that is not there; no draws.
        NothingToCompare: fewer than two classes for which every criterion has a neuron.

    Warns:
        UserWarning: a class for which some criterion has no neuron is left out.
    """
    folder = artifacts.path / "contest" if out_dir is None else Path(out_dir)
    named = dict(criteria) if isinstance(criteria, Mapping) else {name: name for name in criteria}
    names = list(dict.fromkeys(classes or artifacts.classes))
    if draws < 1:
        raise ValueError(f"draws: expected at least one random set of each floor, found {draws}")
    if unknown := sorted(set(names) - set(artifacts.classes)):
        raise ValueError(f"{artifacts.path} has no class {unknown[0]!r}; it has {', '.join(artifacts.classes)}")
    with folder_lock(folder):
        device = choose_device(device)
        parts = folds(artifacts.splits, artifacts.labels, artifacts.classes, artifacts.groups)
        chosen_parts = [fold for fold in parts if tested is None or fold.name in tested]
        if not chosen_parts:
            raise ValueError(f"tested: found {tested}, expected some of {', '.join(fold.name for fold in parts)}")
        bench = Runner(encoder.to(device), task, artifacts, folder, classifiers=JUDGES, parts=chosen_parts, seed=seed)
        sets = _sets(bench, named, [artifacts.classes.index(name) for name in names], k, options or {})
        others = bench.panel(panel) & np.isin(bench.labels, [c for _, c in sets])
        rates = {f.name: (artifacts.probabilities(clips=f.fit), _strength(bench, f)) for f in bench.folds}
        floors = [("", 0), *itertools.product(FLOORS, range(draws))]
        sizes = {c: int((bench.tested & (bench.labels == c) | others).sum()) for _, c in sets}
        total = sum(sizes[c] * len(modes) * len(floors) for _, c in sets)
        rows = []
        with tqdm(total=total, unit="pass", desc=f"{encoder.name} on {task.name}, criteria", disable=None) as bar:
            for (name, c), chosen in sets.items():
                size, own = float(np.mean([len(n) for n in chosen.values()])), bench.tested & (bench.labels == c)
                labels, interventions = [], []
                for floor, i in floors:
                    neurons = chosen
                    if floor:
                        number = list(FLOORS).index(floor)
                        rng = {fold: np.random.default_rng([seed, c, number, i]) for fold in chosen}
                        alike = {fold: both[number][:, :, c] for fold, both in rates.items()}
                        neurons = {f: activity_matched(n, alike[f], rng[f]) for f, n in chosen.items()}
                    at = {"criterion": name, "class": artifacts.classes[c], "neurons": size, "floor": floor, "draw": i}
                    labels += [at | {"mode": mode} for mode in modes]
                    interventions += [Intervention(neurons, MODES[mode]) for mode in modes]
                found = bench.run(interventions, own | others, bar)
                for at, after in zip(labels, found, strict=True):
                    change = after - bench.intact
                    difference, off = change[:, :, own].mean(axis=2), change[:, :, others & ~own].mean(axis=2)
                    for (j, judge), (m, measure) in itertools.product(enumerate(JUDGES), enumerate(MEASURES)):
                        effect = difference[j, m] - off[j, m]
                        values = {"difference": difference[j, m], "off_target": off[j, m], "effect": effect}
                        rows.append({**at, "judge": judge, "measure": measure, **values})
    return Contest(f"{encoder.name} on {task.name}, at most {k} neurons a class", pd.DataFrame(rows))


def _sets(
    bench: Runner, criteria: Mapping[str, Any], classes: Sequence[int], k: int, options: Mapping[str, Any]
) -> Sets:
    """Neurons by every criterion, equally many in a class and fold."""
    chosen: Sets = {}
    for (name, criterion), fold in itertools.product(criteria.items(), bench.folds):
        fitting = {"encoder": bench.encoder, "task": bench.task, **options.get(name, {})}
        splits = sorted(set(bench.artifacts.splits[fold.fit].tolist()))
        scores = rank(bench.artifacts, criterion, split=splits, **fitting)
        for c in classes:
            chosen.setdefault((name, c), {})[fold.name] = strongest(scores[:, :, c], k)
    least = {c: {f.name: min(len(chosen[name, c][f.name]) for name in criteria) for f in bench.folds} for c in classes}
    where = f"{bench.encoder.name} on {bench.task.name}"
    if without := [bench.classes[c] for c in classes if not min(least[c].values())]:
        warnings.warn(f"{where}: left out, some criterion has no neuron: {', '.join(without)}", stacklevel=3)
    if len(classes) - len(without) < 2:  # the effect on one class is beside that on the others
        lacking = [name for name in criteria if any(not len(n) for c in classes for n in chosen[name, c].values())]
        gone = (
            f", of which {', '.join(without)} left out for want of neurons by {', '.join(lacking)}" if without else ""
        )
        raise NothingToCompare(
            f"{where}: expected two classes or more with a neuron by every criterion, found {len(classes)}{gone}.\n"
            "Choose other or more classes, other criteria, or a higher rate: options={'aape': {'rate': 0.05}}."
        )
    sets = {at: of for at, of in chosen.items() if min(least[at[1]].values())}
    return {at: {fold: neurons[: least[at[1]][fold]] for fold, neurons in of.items()} for at, of in sets.items()}


def _strength(bench: Runner, fold: Fold) -> np.ndarray:
    """Mean activation over the training clips of each class, float64 [layers, neurons, classes]."""
    of_class = [fold.fit[bench.labels[fold.fit] == c] for c in range(len(bench.classes))]
    return np.stack([bench.artifacts.means[clips].astype(np.float64).mean(axis=0) for clips in of_class], axis=2)
