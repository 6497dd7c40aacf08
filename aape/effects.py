"""What changing a target's neurons does to its classes, and what random sets of neurons do: rows of the tables.

An `Aim` is one target on one `Bench`: the neurons changed in each mode, the controls, a sweep of gains. The effect on a
class is its change minus the mean change of the clips of other classes on the panel, which the controls hear too.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
ROUND = 10  # controls between two looks at whether more of them can matter
SIDES = (-1, 1)  # as low as the target, as high
AT = ("task", "model", "target", "mode")
Row = dict[str, Any]


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


class Aim:
    """A target on a bench.

    Args:
        bench: where it is run.
        target: what is meant.
        chosen: the selection by fold.
        panel: bool [clips], a few tested clips of every class.
        at: task and model.

    Attributes:
        at: task, model, target and mode, as tables call them.
        classes: indices.
        sets: its neurons by fold. neurons: how many, on average over the folds.
        here: bool [clips], tested clips of its classes.
        panel: bool [clips], clips of the panel that are of other classes.
    """

    def __init__(
        self, bench: Bench, target: AblationTarget, chosen: Mapping[str, Selection], panel: np.ndarray, at: Row
    ) -> None:
        self.bench, self.target, self.chosen = bench, target, chosen
        self.at = at | {"target": label_of(target), "mode": target.mode}
        self.classes = target_classes(target, bench.classes)
        self.sets = {fold: target_neurons(selection, target) for fold, selection in chosen.items()}
        self.neurons = float(np.mean([len(neurons) for neurons in self.sets.values()]))
        mine = np.isin(bench.labels, self.classes)
        self.here, self.panel = mine & bench.tested, panel & ~mine

    def changes(self, trial: Trial, before: np.ndarray, after: np.ndarray, everywhere: bool = False) -> Iterator[Row]:
        """A row per measure and class that was heard (of the target, or every one); before, after: [measures, clips].

        The effect stands in rows of a kind of change, which heard the panel.
        """
        moved = after - before
        for (m, measure), (c, name) in itertools.product(enumerate(MEASURES), enumerate(self.bench.classes)):
            mine, targeted = trial.clips & (self.bench.labels == c), c in self.classes
            if not mine.any() or not (targeted or everywhere):
                continue
            row = {**trial.at, "class": name, "targeted": targeted, "measure": measure}
            row |= {"before": before[m, mine].mean(), "after": after[m, mine].mean()}
            row["difference"] = row["after"] - row["before"]
            if "kind" in trial.at:
                row["off_target"] = moved[m, self.panel].mean() if targeted and self.panel.any() else np.nan
                row["effect"] = row["difference"] - np.nan_to_num(row["off_target"]) if targeted else np.nan
            yield row

    def run(self, trials: Sequence[Trial], before: np.ndarray, bar: tqdm | None = None) -> list[Row]:
        """Rows of trials that are run here. before: [measures, clips], intact."""
        found = zip(trials, self.bench.run(trials, bar), strict=True)
        return [row for trial, after in found for row in self.changes(trial, before, after[0])]

    # -- the target -----------------------------------------------------------------------------------------------

    def effects(
        self,
        others: Mapping[str, Selection] | None,
        settings: AblationSettings,
        before: np.ndarray,
        in_sample: np.ndarray,
    ) -> list[Row]:
        """Rows of the target's own trials, a kind each, with interval, rank and refits; NaN where it has no neurons.

        Args:
            others: the selection by fold made in the other way (all clips, or training clips). settings: modes, draws.
            before: [judges, measures, clips], intact. in_sample: bool [clips], clips that the encoder was trained on.

        Raises:
            RuntimeError: the target changes nothing at all.
        """
        head, width = settings.modes[0], self.bench.width
        kinds: dict[str, tuple[Sets, str | float]] = {mode: (self.sets, MODES[mode]) for mode in settings.modes}
        kinds["zero, index plus one"] = {f: index_plus_one(n, width) for f, n in self.sets.items()}, 0.0
        if others is not None:
            seen = "all clips" if settings.identify == "train" else "training clips"
            theirs = {fold: target_neurons(selection, self.target) for fold, selection in others.items()}
            kinds[f"{head}, chosen on {seen}"] = theirs, MODES[head]
        if not self.neurons:
            kinds = {head: kinds[head]}
        trials = []
        for kind, (sets, change) in kinds.items():
            clips = self.bench.tested if kind in MODES else self.here | self.panel
            trials.append(Trial(sets, clips, change, all_judges=kind == head, at=self.at | {"kind": kind}))
        found = zip(trials, self.bench.run(trials), strict=True)
        return [row for trial, after in found for row in self._effect(trial, before, after, settings, in_sample)]

    def _effect(
        self, trial: Trial, before: np.ndarray, after: np.ndarray, settings: AblationSettings, in_sample: np.ndarray
    ) -> list[Row]:
        bench, panel, everywhere = self.bench, self.panel, trial.at["kind"] in MODES
        neurons = float(np.mean([len(n) for n in (trial.neurons or {}).values()]))
        draws = settings.bootstrap if neurons else 0
        after = after if neurons else np.full_like(after, np.nan)
        moved = after - before[: len(after)]
        if neurons and not moved[0][:, trial.clips].any():
            raise RuntimeError(
                f"target {self.at['target']!r} of {bench.task.name}: changing its neurons in {bench.encoder.name} "
                f"changes nothing for {trial.clips.sum()} test clips, bit for bit. They are as they were made there, or "
                "the hooked modules are not on the way to the embedding."
            )
        rows = list(self.changes(trial, before[0], after[0], everywhere))
        for row in rows:
            c, m = bench.classes.index(row["class"]), MEASURES.index(row["measure"])
            mine = bench.tested & (bench.labels == c)
            seed = zlib.crc32(f"{bench.task.name}|{self.at['target']}|{row['kind']}|{c}".encode())
            paired: dict[str, Any] = {"count": draws, "rng": np.random.default_rng([bench.seed, seed])}
            own = moved[0, m, mine], bench.groups[mine]
            again = moved[1:, m][:, mine].mean(axis=1)  # by refitted classifiers
            row["low"], row["high"] = paired_interval(*own, **paired)
            if row["targeted"]:
                minus = (moved[0, m, panel], bench.groups[panel]) if panel.any() else None
                row["effect_low"], row["effect_high"] = paired_interval(*own, **paired, minus=minus)
                again = again - (moved[1:, m][:, panel].mean(axis=1) if panel.any() else 0)
                if everywhere and neurons:
                    falls = [r["difference"] for r in rows if r["measure"] == row["measure"]]
                    row["rank"] = 1 + sum(fall < row["difference"] for fall in falls)
            row |= {
                "clips": int(mine.sum()),
                "in_sample": int((mine & in_sample).sum()),
                "groups": len(set(bench.groups[mine].tolist())),
                "neurons": neurons,
                "refit_mean": again.mean() if len(again) else np.nan,
                "refit_sd": again.std(ddof=1) if len(again) > 1 else np.nan,
            }
        return rows

    # -- its controls ---------------------------------------------------------------------------------------------

    def controls(self, settings: AblationSettings, own: list[Row], before: np.ndarray, bar: tqdm) -> list[Row]:
        """Rows of the control sets of each kind and mode, drawn until they are all there or none can matter any more.

        A class is left out once each of its tests has (n + 1) // 20 controls on either side: no p can then be 0.05 or
        less, and none that would be is touched by it.

        Args:
            settings: how many. own: the target's effect rows. before: [measures, clips], intact. bar: moved on.
        """
        bench, head, decisive = self.bench, settings.modes[0], next(iter(CONTROLS))
        in_classes = {f: s.probabilities[:, :, self.classes].mean(axis=2) for f, s in self.chosen.items()}
        overall = {f.name: activity(bench.artifacts, f, settings.identify) for f in bench.folds}
        rates: dict[str, Mapping[str, Any]]
        rates = dict(zip(CONTROLS, (in_classes, dict.fromkeys(self.sets), overall), strict=True))
        counts = (settings.controls, settings.layer_matched, settings.rate_matched)
        wanted = {(head, control): n for control, n in zip(CONTROLS, counts, strict=True)}
        wanted |= {(mode, decisive): settings.other_modes for mode in settings.modes[1:]}
        mine = {(r["kind"], r["class"], r["measure"]): r["effect"] for r in own if r["targeted"]}
        sides: Counter[tuple] = Counter()  # (kind, control, class, measure, side) -> controls there
        rows: list[Row] = []
        for start in range(0, max(wanted.values()), ROUND):
            trials, planned = [], 0
            for (mode, control), n in wanted.items():
                tests = {
                    c: itertools.product([mode], [control], [bench.classes[c]], MEASURES, SIDES) for c in self.classes
                }
                undecided = [c for c, keys in tests.items() if min(sides[key] for key in keys) < max(1, (n + 1) // 20)]
                clips = self.panel | self.here & np.isin(bench.labels, undecided)
                numbers = range(start, min(start + ROUND, n))
                planned += len(numbers) * int((self.panel | self.here).sum())
                for number in numbers if undecided else ():
                    at = self.at | {"kind": mode, "control": control, "number": number}
                    sets = self._draw(control, rates[control], number)
                    trials.append(Trial(sets, clips, MODES[mode], at=at))
            bar.update(planned - sum(int(trial.clips.sum()) for trial in trials))
            new = self.run(trials, before, bar)
            for row in new:
                more = row["effect"] - mine[row["kind"], row["class"], row["measure"]]
                for side in SIDES:
                    key = row["kind"], row["control"], row["class"], row["measure"], side
                    sides[key] += side * more >= -1e-9
            rows += new
        return rows

    def _draw(self, control: str, rates: Mapping[str, Any], number: int) -> Sets:
        members = dict(self.sets)
        for fold, neurons in self.sets.items():
            if len(neurons):
                name = f"{self.bench.task.name}|{self.at['target']}|{self.target.mode}|{control}|{fold}"
                rng = np.random.default_rng([self.bench.seed, zlib.crc32(name.encode()), number])
                members[fold] = matched(neurons, self.bench.width, rng, rates[fold])
        return members


def against_controls(own: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """With the controls' mean, 95 % range, p, two-sided p, and q over the targeted classes of a model, measure, kind."""
    by = [*AT, "kind", "class", "measure"]
    found = {key: v.to_numpy() for key, v in controls.groupby([*by, "control"]).effect} if len(controls) else {}
    for control, short in CONTROLS.items():
        columns = []
        for key, effect in zip(own[by].itertuples(index=False, name=None), own.effect, strict=True):
            values = found.get((*key, control), np.array([np.nan]))
            p = one_sided_p(effect, values)
            two_sided = min(1.0, 2 * min(p, one_sided_p(-effect, -values)))
            known = int(np.isfinite(values).sum())
            columns.append((known, values.mean(), *np.percentile(values, [2.5, 97.5]), p, two_sided))
        names = [f"{short}_{what}" for what in ("controls", "mean", "low", "high", "p", "p_two_sided")]
        own = own.join(pd.DataFrame(columns, columns=names, index=own.index))
        families = own.groupby(["model", "measure", "kind"])[f"{short}_p"]
        own[f"{short}_q"] = families.transform(lambda p: benjamini_hochberg(p.to_numpy()))
    return own
