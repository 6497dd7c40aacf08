"""What changing a target's neurons does to its classes, and what random neurons do: rows of the tables.

The effect on a class is its change minus the mean change of clips of other classes. A set of neurons that disturbs
everything equally therefore has no effect.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from tqdm.auto import tqdm

from aape.causal.controls import activity_matched, can_be_disjoint, disjoint_matched, overlap
from aape.causal.intervals import STEP, paired_interval, possible
from aape.causal.runner import MEASURES, MODES, Intervention, NeuronsByFold, Runner
from aape.neurons.pvalues import benjamini_hochberg, one_sided_p
from aape.study.study import AblationSettings
from aape.study.targets import Target

AT = ("task", "model", "target", "mode")  # columns that name a target in a model
ACTIVE, DISJOINT = "activity-matched", "activity-matched, disjoint"
CONTROLS = {ACTIVE: "active", DISJOINT: "disjoint"}  # name -> prefix of its columns
SEEDED_BY = {
    ACTIVE: "as active in the classes",
    DISJOINT: "disjoint",
}  # part of the seed: other words draw other sets
PAPER_CONTROL = "zero, index plus one"
ROUND = 10  # controls between two looks at whether more of them can matter
TIE = 1e-9  # sums of the same numbers in another order differ by less

Row = dict[str, Any]


class TargetEffects:
    """Measures the effects of one target's neurons.

    Args:
        runner: embeds clips while neurons are changed.
        target: the neurons.
        names: task, model, target and mode, as the tables call them.
        panel: bool [clips], tested clips, from which those of other classes are taken.
        settings: of the experiment.
    """

    def __init__(
        self,
        runner: Runner,
        target: Target,
        names: Row,
        panel: np.ndarray,
        settings: AblationSettings,
    ) -> None:
        self.runner, self.target, self.names, self.settings = runner, target, names, settings
        in_classes = np.isin(runner.labels, target.classes)
        self.tested = in_classes & runner.tested  # bool [clips], of the target's classes
        self.others = panel & ~in_classes  # bool [clips], of other classes

    def of_target(self) -> list[Row]:
        """Rows of the target's own neurons in every mode, on all classes, and of the paper's control."""
        rows: list[Row] = []
        every_class = range(len(self.runner.classes))
        for mode, after in zip(self.settings.modes, self._run_modes(), strict=True):
            of_mode = self._changes({"kind": mode}, after, self.runner.tested, every_class)
            self._add_effects(of_mode, after)
            self._add_uncertainty(of_mode, after)
            self._add_ranks(of_mode)
            rows += of_mode
        after = self._run_paper_control()
        of_control = self._changes({"kind": PAPER_CONTROL}, after, self.tested, self.target.classes)
        self._add_effects(of_control, after)
        self._add_uncertainty(of_control, after)
        return rows + of_control

    def gains(self) -> list[Row]:
        """Rows of a sweep of gains, on the target's classes."""
        interventions = [
            Intervention(self.target.neurons, float(gain)) for gain in self.settings.gains
        ]
        rows: list[Row] = []
        outcomes = self.runner.run(interventions, self.tested)[:, 0]
        for gain, after in zip(self.settings.gains, outcomes, strict=True):
            rows += self._changes({"gain": float(gain)}, after, self.tested, self.target.classes)
        return rows

    def on_panel(self, panel: np.ndarray) -> list[Row]:
        """Rows of the first mode for every class, on the clips of a panel."""
        intervention = Intervention(self.target.neurons, MODES[self.settings.modes[0]])
        after = self.runner.run([intervention], panel)[0, 0]
        return self._changes({}, after, panel, range(len(self.runner.classes)))

    def of_random_sets(self, target_rows: Iterable[Row], bar: tqdm) -> list[Row]:
        """Rows of random sets: activity-matched ones in each mode, and disjoint ones in the first mode."""
        settings = self.settings
        effects = {
            (row["kind"], row["class"], row["measure"]): row["effect"] for row in target_rows
        }
        first, *others = settings.modes
        rows = self._controls(first, ACTIVE, settings.controls or 0, effects, bar)
        for mode in others:
            rows += self._controls(mode, ACTIVE, settings.other_modes, effects, bar)
        width = self.runner.artifacts.over_zero.shape[1]
        if all(can_be_disjoint(neurons, width) for neurons in self.target.neurons.values()):
            rows += self._controls(first, DISJOINT, settings.disjoint, effects, bar)
        return rows

    def _controls(
        self,
        mode: str,
        control: str,
        count: int,
        effects: dict[tuple[str, str, str], float],
        bar: tqdm,
    ) -> list[Row]:
        """Rows of `count` random sets; fewer where more of them cannot matter (Besag and Clifford 1991).

        A class is left out once each of its measures has (count + 1) // 20 activity-matched sets on either side of the
        target's effect: no p can then be 0.05 or less. Disjoint sets are all drawn.
        """
        enough = max(1, (count + 1) // 20) if control == ACTIVE else np.inf
        lower_and_higher = {(name, measure): np.zeros(2) for _, name, measure in effects}
        undecided = list(self.target.classes)
        rows: list[Row] = []
        for start in range(0, count, ROUND):
            numbers = range(start, min(start + ROUND, count))
            clips = self.others | (self.tested & np.isin(self.runner.labels, undecided))
            sets = [self._drawn(control, number) for number in numbers]
            outcomes = self.runner.run(
                [Intervention(drawn, MODES[mode]) for drawn in sets], clips, bar
            )[:, 0]
            for number, drawn, after in zip(numbers, sets, outcomes, strict=True):
                labels = {
                    "kind": mode,
                    "control": control,
                    "number": number,
                    **self._likeness(drawn),
                }
                of_control = self._changes(labels, after, clips, undecided)
                self._add_effects(of_control, after)
                for row in of_control:
                    excess = row["effect"] - effects[mode, row["class"], row["measure"]]
                    lower_and_higher[row["class"], row["measure"]] += [
                        excess <= TIE,
                        excess >= -TIE,
                    ]
                rows += of_control
            undecided = [c for c in undecided if self._fewest(lower_and_higher, c) < enough]
            if not undecided:
                break
        return rows

    def _fewest(self, lower_and_higher: dict[tuple[str, str], np.ndarray], c: int) -> float:
        """The smallest number of controls on one side of a class's effect, over both measures."""
        name = self.runner.classes[c]
        return min(lower_and_higher[name, measure].min() for measure in MEASURES)

    def _drawn(self, control: str, number: int) -> NeuronsByFold:
        """A random set for each fold."""
        draw = {ACTIVE: activity_matched, DISJOINT: disjoint_matched}[control]
        drawn = {}
        for fold, neurons in self.target.neurons.items():
            name = f"{self.names['task']}|{self.target.label}|{self.target.mode}|{SEEDED_BY[control]}|{fold}"
            rng = np.random.default_rng([self.runner.seed, zlib.crc32(name.encode()), number])
            drawn[fold] = draw(neurons, self.target.activity[fold], rng)
        return drawn

    def _likeness(self, drawn: NeuronsByFold) -> Row:
        """Share of the target's neurons in a set, and the mean activation rate of the set in the target's classes."""
        neurons_of_folds = self.target.neurons.items()
        shares = [
            overlap(neurons, drawn[fold]) for fold, neurons in neurons_of_folds if len(neurons)
        ]
        return {"overlap": float(np.mean(shares)), "activity": self.target.mean_activity(drawn)}

    def _run_modes(self) -> np.ndarray:
        """Scores in each mode, [modes, measures, clips]; NaN without neurons."""
        interventions = [
            Intervention(self.target.neurons, MODES[mode]) for mode in self.settings.modes
        ]
        if not self.target.size:
            return np.full((len(interventions), *self.runner.intact[0].shape), np.nan)
        outcomes = self.runner.run(interventions, self.runner.tested)[:, 0]
        for mode, after in zip(self.settings.modes, outcomes, strict=True):
            if np.array_equal(after, self.runner.intact[0], equal_nan=True):
                raise RuntimeError(
                    f"target {self.target.label!r} of {self.names['task']}: changing its neurons in "
                    f"{self.runner.encoder.name} ({mode}) changes nothing for any test clip, bit for bit. Either the "
                    "activations have these values already, or the hooked modules are not on the way to the embedding."
                )
        return outcomes

    def _run_paper_control(self) -> np.ndarray:
        """Scores with each neuron's successor silenced (of the last one the first), [measures, clips]."""
        if not self.target.size:
            return np.full(self.runner.intact[0].shape, np.nan)
        width = self.runner.artifacts.over_zero.shape[1]
        successors = {}
        for fold, neurons in self.target.neurons.items():
            successors[fold] = np.stack([neurons[:, 0], (neurons[:, 1] + 1) % width], axis=1)
        return self.runner.run([Intervention(successors)], self.tested | self.others)[0, 0]

    def _changes(
        self, labels: Row, after: np.ndarray, clips: np.ndarray, classes: Iterable[int]
    ) -> list[Row]:
        """A row per measure and class with embedded clips; after: scores [measures, clips]."""
        before = self.runner.intact[0]
        classes = list(classes)
        rows = []
        for m, measure in enumerate(MEASURES):
            for c in classes:
                members = clips & (self.runner.labels == c)
                if not members.any():
                    continue
                row = {**self.names, **labels, "class": self.runner.classes[c]}
                row |= {"targeted": c in self.target.classes, "measure": measure}
                row |= {"before": before[m, members].mean(), "after": after[m, members].mean()}
                row["difference"] = row["after"] - row["before"]
                rows.append(row)
        return rows

    def _add_effects(self, rows: Sequence[Row], after: np.ndarray) -> None:
        """Add the mean change of other classes and the effect to rows of targeted classes."""
        change = after - self.runner.intact[0]
        for row in rows:
            row["off_target"], row["effect"] = np.nan, np.nan
            if row["targeted"] and self.others.any():
                row["off_target"] = change[MEASURES.index(row["measure"]), self.others].mean()
            if row["targeted"]:
                row["effect"] = row["difference"] - np.nan_to_num(row["off_target"])

    def _add_uncertainty(self, rows: Sequence[Row], after: np.ndarray) -> None:
        """Add 95 % intervals of the change and of the effect, and the numbers of clips, groups and neurons."""
        runner = self.runner
        change = after - runner.intact[0]
        for row in rows:
            measure, m = row["measure"], MEASURES.index(row["measure"])
            c = runner.classes.index(row["class"])
            members = runner.tested & (runner.labels == c)
            name = f"{row['task']}|{row['target']}|{row['kind']}|{c}"
            rng = np.random.default_rng([runner.seed, zlib.crc32(name.encode())])
            bootstraps = self.settings.bootstrap if self.target.size else 0
            options: dict[str, Any] = {"count": bootstraps, "rng": rng, "step": STEP[measure]}
            changes = change[m, members], runner.groups[members]
            row["low"], row["high"] = possible(
                paired_interval(*changes, **options), measure, row["before"]
            )
            if row["targeted"]:
                others = change[m, self.others], runner.groups[self.others]
                before = runner.intact[0, m, self.others].mean() if self.others.any() else None
                ends = paired_interval(*changes, *others, **options)
                row["effect_low"], row["effect_high"] = possible(
                    ends, measure, row["before"], before
                )
            row["clips"], row["groups"] = int(members.sum()), len(np.unique(runner.groups[members]))
            row["neurons"] = self.target.size
            row["activity"] = self.target.mean_activity(self.target.neurons)

    def _add_ranks(self, rows: Sequence[Row]) -> None:
        """Add to targeted classes the rank among all classes by how far they fall: 1 where no class falls further."""
        if not self.target.size:
            return
        for row in rows:
            if row["targeted"]:
                falls = [
                    other["difference"] for other in rows if other["measure"] == row["measure"]
                ]
                row["rank"] = 1 + sum(fall < row["difference"] for fall in falls)


def against_controls(effects: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """The effects next to those of their random sets.

    Added columns, `active_` for activity-matched sets and `disjoint_` for sets without the target's neurons:

    - `_controls`, `_mean`, `_sd`, `_low`, `_high`: number of sets, mean, standard deviation and 95 % range of their effects.
    - `_activity`: mean activation rate of the sets in the target's classes (`activity`: of the target's own neurons).
    - `_p`: (1 + #{sets as low or lower}) / (1 + n).

    And for activity-matched sets:

    - `overlap`: the mean share of the target's neurons that a set contains.
    - `active_p_two_sided`; `active_q`: that of Benjamini and Hochberg over the targeted classes of one model, measure and
      kind of change.
    - `at_floor`: no set was as low, so that p and q would be smaller with more sets.
    - `detectable`: the effect below which one class alone would have reached q < 0.05, if the effects of sets are normal.
    """
    by = [*AT, "kind", "class", "measure"]
    sets = {key: rows for key, rows in controls.groupby([*by, "control"])}
    none = pd.DataFrame(columns=["effect", "overlap", "activity"], dtype=float)
    compared = []
    for key, effect in zip(
        effects[by].itertuples(index=False, name=None), effects.effect, strict=True
    ):
        row: Row = {}
        for control, prefix in CONTROLS.items():
            row |= _compared(effect, sets.get((*key, control), none), prefix)
        compared.append(row)
    table = effects.join(pd.DataFrame(compared, index=effects.index))
    families = table.groupby(["model", "measure", "kind"]).active_p
    table["active_q"] = families.transform(lambda p: benjamini_hochberg(p.to_numpy()))
    table["at_floor"] = table.active_p <= 1 / (1 + table.active_controls)
    tests = families.transform("count")
    table["detectable"] = table.active_mean + norm.ppf(0.05 / tests.clip(lower=1)) * table.active_sd
    return table


def _compared(effect: float, sets: pd.DataFrame, prefix: str) -> Row:
    """Columns of one effect next to the effects of random sets of one kind."""
    values = sets.effect.to_numpy()
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    p = one_sided_p(effect, values)
    row = {
        f"{prefix}_controls": len(values),
        f"{prefix}_mean": sets.effect.mean(),
        f"{prefix}_sd": sets.effect.std(),
        f"{prefix}_low": low,
        f"{prefix}_high": high,
        f"{prefix}_activity": sets.activity.mean(),
        f"{prefix}_p": p,
    }
    if prefix == CONTROLS[ACTIVE]:
        row["active_p_two_sided"] = min(1.0, 2 * min(p, one_sided_p(-effect, -values)))
        row["overlap"] = sets.overlap.mean()
    return row
