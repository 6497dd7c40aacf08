"""What changing a target's neurons does to its classes, and what random sets of neurons do: rows of the tables.

`of_target` runs one target on one `Bench`: the neurons changed in each mode, the controls, a sweep of gains. The effect
on a class is its change minus the mean change of the clips of other classes on the panel, which the controls hear too.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from aape.chance import benjamini_hochberg, one_sided_p
from aape.selection import Selection
from aape.study import AblationSettings, AblationTarget
from aape.targets import activity, index_plus_one, label_of, matched, target_classes, target_neurons
from aape.trials import MEASURES, Bench, Sets, Trial

MODES: dict[str, str | float] = {"mean": "mean", "zero": 0.0, "resample": "resample"}  # name -> `Trial.change`
CONTROLS = {"as active in the classes": "active", "layer-matched": "layer", "rate-matched": "rate"}  # first: decisive
SIDES = (-1, 1)  # as low as the target, as high
ROUND = 10  # controls between two looks at whether more of them can matter
AT = ("task", "model", "target", "mode")
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Aim:
    """A target on a bench.

    Attributes:
        at: task, model, target and mode, as tables call them.
        classes: indices.
        sets: its neurons by fold.
        here: bool [clips], tested clips of its classes.
        panel: bool [clips], clips of the panel that are of other classes.
    """

    target: AblationTarget
    at: Row
    classes: list[int]
    sets: Sets
    here: np.ndarray
    panel: np.ndarray

    @classmethod
    def of(
        cls, bench: Bench, target: AblationTarget, chosen: Mapping[str, Selection], panel: np.ndarray, at: Row
    ) -> Aim:
        """The target on a bench. chosen: the selection by fold; panel: bool [clips]; at: task and model."""
        classes = target_classes(target, bench.classes)
        mine = np.isin(bench.labels, classes)
        sets = {fold: target_neurons(selection, target) for fold, selection in chosen.items()}
        at = at | {"target": label_of(target), "mode": target.mode}
        return cls(target, at, classes, sets, mine & bench.tested, panel & ~mine)


def size(sets: Sets) -> float:
    """Neurons in a set, on average over the folds."""
    return float(np.mean([len(neurons) for neurons in sets.values()]))


# -- statistics -------------------------------------------------------------------------------------------------


def paired_interval(
    difference: np.ndarray,
    groups: np.ndarray,
    *,
    count: int,
    rng: np.random.Generator,
    minus: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[float, float]:
    """95 % interval of a mean of paired differences [clips], by bootstrap-t over groups of clips.

    Groups are drawn with replacement, and the quantiles are those of (mean* - mean) / its standard error*, which is
    honest with few groups, where percentiles of mean* are too narrow (Efron and Tibshirani 1993, chapter 12).

    Args:
        difference: [clips].
        groups: of each clip.
        count: bootstraps.
        rng: of the draws.
        minus: differences and groups of other clips, whose mean is taken off.

    Returns:
        Ends; NaN with fewer than three groups, of which nothing can be said, or without bootstraps.
    """
    parts = [(1.0, difference, groups)] + ([] if minus is None else [(-1.0, *minus)])
    names = np.unique(np.concatenate([g for _, _, g in parts]))
    if len(np.unique(groups)) < 3 or count == 0:
        return np.nan, np.nan
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    weights = np.concatenate([np.ones((1, len(names))), drawn])  # the clips as they are, then the bootstraps
    mean, rest = np.zeros(len(weights)), np.zeros(weights.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        for sign, values, of in parts:
            place = np.searchsorted(names, of)
            sums = np.bincount(place, weights=values, minlength=len(names))
            sizes = np.bincount(place, minlength=len(names))
            part = (weights @ sums) / (weights @ sizes)
            mean += sign * part
            rest += sign * (sums - part[:, None] * sizes) / (weights @ sizes)[:, None]
        error = np.sqrt((weights * rest**2).sum(axis=1) * len(names) / (len(names) - 1))  # of a ratio of sums
        t = (mean[1:] - mean[0]) / error[1:]
    if error[0] == 0:
        return float(mean[0]), float(mean[0])
    low, high = np.percentile(t[np.isfinite(t)], [2.5, 97.5])
    return float(mean[0] - high * error[0]), float(mean[0] - low * error[0])


def _changes(
    bench: Bench, aim: Aim, trial: Trial, before: np.ndarray, after: np.ndarray, everywhere: bool = False
) -> Iterator[tuple[Row, int, int]]:
    """A row per measure and class (of the target, or every one), with both places; before, after: [measures, clips].

    The change is that of the trial's clips. The effect stands in rows of a kind of change, which heard the panel.
    """
    for (m, measure), (c, name) in itertools.product(enumerate(MEASURES), enumerate(bench.classes)):
        targeted = c in aim.classes
        if not targeted and not everywhere:
            continue
        mine = trial.clips & (bench.labels == c)
        if not mine.any():
            continue
        first, second = before[m, mine].mean(), after[m, mine].mean()
        row = {**trial.at, "class": name, "targeted": targeted, "measure": measure, "before": first, "after": second}
        row["difference"] = second - first
        if "kind" in trial.at:
            others = (after - before)[m, aim.panel]
            row["off_target"] = others.mean() if targeted and len(others) else np.nan
            row["effect"] = row["difference"] - np.nan_to_num(row["off_target"]) if targeted else np.nan
        yield row, c, m


def change_rows(
    bench: Bench, aim: Aim, trials: list[Trial], before: np.ndarray, bar: tqdm | None = None, everywhere: bool = False
) -> list[Row]:
    """Rows of some trials that are run here. before: [measures, clips], intact."""
    return [
        row
        for trial, after in zip(trials, bench.run(trials, bar), strict=True)
        for row, _, _ in _changes(bench, aim, trial, before, after[0], everywhere)
    ]


# -- the target -------------------------------------------------------------------------------------------------


def effects(bench: Bench, aim: Aim, others: Mapping[str, Selection] | None, settings: AblationSettings) -> list[Trial]:
    """The target's own trials, a kind each."""
    head, some = settings.modes[0], size(aim.sets) > 0
    kinds: dict[str, tuple[Sets, str | float]] = {
        mode: (aim.sets, MODES[mode]) for mode in (settings.modes if some else [head])
    }
    if some:
        kinds["zero, index plus one"] = {f: index_plus_one(n, bench.width) for f, n in aim.sets.items()}, 0.0
    if some and others is not None:
        clips = "all clips" if settings.identify == "train" else "training clips"
        theirs = {f: target_neurons(s, aim.target) for f, s in others.items()}
        kinds[f"{head}, chosen on {clips}"] = theirs, MODES[head]
    return [
        Trial(
            sets,
            bench.tested if kind in MODES else aim.here | aim.panel,
            change,
            all_judges=kind == head,
            at=aim.at | {"kind": kind},
        )
        for kind, (sets, change) in kinds.items()
    ]


def effect_rows(
    bench: Bench, aim: Aim, trial: Trial, before: np.ndarray, after: np.ndarray, draws: int, in_sample: np.ndarray
) -> list[Row]:
    """Rows of one of the target's own trials, with interval, rank and refits; NaN where it has no neurons.

    Args:
        bench: where it ran. aim: the target. trial: one of `effects`. before, after: [judges, measures, clips]. draws:
            bootstraps. in_sample: bool [clips], clips that the encoder was trained on.

    Raises:
        RuntimeError: the target changes nothing at all.
    """
    rows, neurons = [], size(trial.neurons or {})
    after, draws = (after, draws) if neurons else (np.full_like(after, np.nan), 0)
    moved = after - before[: len(after)]
    everywhere = trial.at["kind"] in MODES
    if neurons and not moved[0][:, bench.tested & trial.clips].any():
        raise RuntimeError(
            f"target {aim.at['target']!r} of {bench.task.name}: changing its neurons in {bench.encoder.name} changes "
            f"nothing for {trial.clips.sum()} test clips, bit for bit. They are as they were made there, or the hooked "
            "modules are not on the way to the embedding."
        )
    changes = list(_changes(bench, aim, trial, before[0], after[0], everywhere))
    for row, c, m in changes:
        mine = bench.tested & (bench.labels == c)
        seed = zlib.crc32(f"{bench.task.name}|{aim.at['target']}|{row['kind']}|{c}".encode())
        rng = np.random.default_rng([bench.seed, seed])
        row["low"], row["high"] = paired_interval(moved[0, m, mine], bench.groups[mine], count=draws, rng=rng)
        if row["targeted"]:
            minus = (moved[0, m, aim.panel], bench.groups[aim.panel]) if aim.panel.any() else None
            row["effect_low"], row["effect_high"] = paired_interval(
                moved[0, m, mine], bench.groups[mine], count=draws, rng=rng, minus=minus
            )
            if everywhere and neurons:
                fall = [r["difference"] for r, _, n in changes if n == m]
                row["rank"] = 1 + sum(other < row["difference"] for other in fall)
        again = moved[1:, m][:, mine].mean(axis=1)
        if row["targeted"] and aim.panel.any():
            again = again - moved[1:, m][:, aim.panel].mean(axis=1)
        row |= {
            "clips": int(mine.sum()),
            "in_sample": int((mine & in_sample).sum()),
            "groups": len(set(bench.groups[mine].tolist())),
            "neurons": neurons,
            "refit_mean": again.mean() if len(again) else np.nan,
            "refit_sd": again.std(ddof=1) if len(again) > 1 else np.nan,
        }
        rows.append(row)
    return rows


# -- its controls -----------------------------------------------------------------------------------------------


def control_rows(
    bench: Bench,
    aim: Aim,
    chosen: Mapping[str, Selection],
    settings: AblationSettings,
    own: list[Row],
    before: np.ndarray,
    bar: tqdm,
) -> list[Row]:
    """Rows of the control sets of each kind and mode, drawn until they are all there or none can matter any more.

    A class is left out once each of its tests has (n + 1) // 20 controls on either side: no p can then be 0.05 or less,
    and none that would be is touched by it.

    Args:
        bench: where they run. aim: the target. chosen: the selection by fold. settings: how many.
        own: the target's effect rows. before: [measures, clips], intact. bar: moved on.
    """
    in_classes = {f: s.probabilities[:, :, aim.classes].mean(axis=2) for f, s in chosen.items()}
    overall = {f.name: activity(bench.artifacts, f, settings.identify) for f in bench.folds}
    rates: dict[str, Mapping[str, np.ndarray | None]]
    rates = dict(zip(CONTROLS, (in_classes, dict.fromkeys(aim.sets), overall), strict=True))
    head, decisive = settings.modes[0], next(iter(CONTROLS))
    counts = (settings.controls, settings.layer_matched, settings.rate_matched)
    wanted = {(head, control): n for control, n in zip(CONTROLS, counts, strict=True)}
    wanted |= {(mode, decisive): settings.other_modes for mode in settings.modes[1:]}
    mine = {(r["kind"], r["class"], r["measure"]): r["effect"] for r in own if r["targeted"]}
    sides: Counter[tuple] = Counter()  # (kind, control, class, measure, side) -> controls there
    rows: list[Row] = []
    for start in range(0, max(wanted.values()), ROUND):
        trials, planned = [], 0
        for (mode, control), n in wanted.items():
            tests = {c: itertools.product([mode], [control], [bench.classes[c]], MEASURES, SIDES) for c in aim.classes}
            undecided = [c for c, keys in tests.items() if min(sides[key] for key in keys) < max(1, (n + 1) // 20)]
            clips = aim.panel | aim.here & np.isin(bench.labels, undecided)
            numbers = range(start, min(start + ROUND, n))
            planned += len(numbers) * int((aim.panel | aim.here).sum())
            for number in numbers if undecided else ():
                at = aim.at | {"kind": mode, "control": control, "number": number}
                trials.append(Trial(_draw(bench, aim, control, rates[control], number), clips, MODES[mode], at=at))
        bar.update(planned - sum(int(trial.clips.sum()) for trial in trials))
        new = change_rows(bench, aim, trials, before, bar)
        for row in new:
            more = row["effect"] - mine[row["kind"], row["class"], row["measure"]]
            for side in SIDES:
                sides[row["kind"], row["control"], row["class"], row["measure"], side] += side * more >= -1e-9
        rows += new
    return rows


def _draw(bench: Bench, aim: Aim, control: str, rates: Mapping[str, np.ndarray | None], number: int) -> Sets:
    members = dict(aim.sets)
    for fold, neurons in aim.sets.items():
        if len(neurons):
            name = f"{bench.task.name}|{aim.at['target']}|{aim.target.mode}|{control}|{fold}"
            rng = np.random.default_rng([bench.seed, zlib.crc32(name.encode()), number])
            members[fold] = matched(neurons, bench.width, rng, rates[fold])
    return members


def against_controls(own: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """With the controls' mean, 95 % range, p, two-sided p, and q over the targeted classes of a model, measure, kind."""
    by = [*AT, "kind", "class", "measure"]
    found = {key: v.to_numpy() for key, v in controls.groupby([*by, "control"]).effect} if len(controls) else {}
    for control, short in CONTROLS.items():
        columns = []
        for key, effect in zip(own[by].itertuples(index=False, name=None), own.effect, strict=True):
            values = found.get((*key, control), np.array([]))
            ends = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
            p = one_sided_p(effect, values)
            two_sided = min(1.0, 2 * min(p, one_sided_p(-effect, -values)))
            columns.append((len(values), values.mean() if len(values) else np.nan, *ends, p, two_sided))
        names = [f"{short}_{what}" for what in ("controls", "mean", "low", "high", "p", "p_two_sided")]
        own = own.join(pd.DataFrame(columns, columns=names, index=own.index))
        families = own.groupby(["model", "measure", "kind"])[f"{short}_p"]
        own[f"{short}_q"] = families.transform(lambda p: benjamini_hochberg(p.to_numpy()))
    return own
