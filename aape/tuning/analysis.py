"""From responses to tuning: every curve and every contrast of the battery, and the table of neurons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from aape.tuning.curves import LEAST_SIZE, Effect, contrast, correlation, curve
from aape.tuning.peaks import bandwidth, best, threshold_and_range
from aape.tuning.responses import MEASURES, Responses

CURVES = ("frequency", "modulation", "fundamental", "click_rate", "level")
CONTRASTS = ("sweep", "tone", "periodicity", "onset", "offset")


@dataclass(frozen=True)
class Analysed:
    """All effects of one measure of response.

    Attributes:
        axes: curve -> its conditions (Hz or dB).
        effects: curve or contrast -> its effect.
        silence: response to silence [neurons].
    """

    axes: dict[str, np.ndarray]
    effects: dict[str, Effect]
    silence: np.ndarray


class Sounds:
    """Responses of one measure, by kind of sound."""

    def __init__(self, responses: Responses, measure: str) -> None:
        self.table = responses.battery
        self.values: np.ndarray = getattr(responses, measure)

    def of(
        self, kind: str, *, window: int = 0, by: tuple[str, ...] = ("frequency", "rate")
    ) -> np.ndarray:
        """Responses to one kind [realisations, conditions, neurons].

        Args:
            kind: of the battery.
            window: for sounds with several response windows, which one, in order of time.
            by: columns whose combinations are the conditions; other columns are averaged.
        """
        rows = self.table[self.table.kind == kind]
        starts = np.unique(self.table.start[self.table.kind == kind])
        if kind == "silence":
            starts = np.roll(starts, -1)  # its steady window, which begins first, comes last
        rows = rows[rows.start == starts[window]]
        means = [
            self.values[group.index].mean(axis=0) for _, group in rows.groupby(["realisation", *by])
        ]
        realisations = rows.realisation.nunique()
        return np.stack(means).reshape(realisations, -1, self.values.shape[1])

    def axis(self, kind: str, column: str) -> np.ndarray:
        """Values of a column among the sounds of a kind, in order."""
        return np.unique(self.table[column][self.table.kind == kind])

    def has(self, kind: str) -> bool:
        """Whether the battery holds this kind."""
        return bool((self.table.kind == kind).any())


def analyse(responses: Responses, measure: str) -> Analysed:
    """Compute every curve and every contrast with one measure of response.

    Args:
        responses: to the whole battery.
        measure: "share" (of active tokens) or "mean" (activation).
    """
    sounds = Sounds(responses, measure)
    of_curve, of_contrast = LEAST_SIZE[measure]
    axes = {"frequency": sounds.axis("tone", "frequency")}
    effects = {"frequency": curve(sounds.of("tone", by=("frequency",))[:, None], of_curve)}
    silence = sounds.of("silence", window=-1).mean(axis=(0, 1))
    for name, kinds, column in (
        ("modulation", ("modulated noise", "modulated tone"), "rate"),
        ("fundamental", ("harmonic", "missing fundamental"), "frequency"),
        ("click_rate", ("clicks",), "rate"),
    ):
        played = [sounds.of(kind) for kind in kinds if sounds.has(kind)]
        if played:
            axes[name] = sounds.axis(kinds[0], column)
            effects[name] = curve(np.stack(played, axis=1), of_curve)
    if sounds.has("harmonic"):
        effects["periodicity"] = contrast(
            sounds.of("harmonic") - sounds.of("inharmonic"), of_contrast
        )
    axes["level"] = sounds.axis("tone", "level")
    effects["level"] = curve(_at_best_frequency(sounds, effects["frequency"]), of_curve)
    effects["sweep"] = contrast(sounds.of("sweep up") - sounds.of("sweep down"), of_contrast)
    effects["tone"] = contrast(_tones_minus_noise(sounds), of_contrast)
    controls = {
        "onset": "steady",
        "offset": "silence",
    }  # the same windows without an onset or offset
    for gate, control in controls.items():
        change = _early_minus_late(sounds, gate) - _early_minus_late(sounds, control)
        effects[gate] = contrast(change, of_contrast)
    return Analysed(axes, effects, silence)


def _at_best_frequency(sounds: Sounds, frequency: Effect) -> np.ndarray:
    """Responses to tones at each neuron's strongest frequency and its two neighbours [realisations, 3, levels, neurons]."""
    levels = len(sounds.axis("tone", "level"))
    tones = sounds.of("tone", by=("level", "frequency"))
    tones = tones.reshape(
        len(tones), levels, -1, tones.shape[2]
    )  # [realisations, levels, frequencies, neurons]
    strongest = frequency.values.argmax(axis=0)
    neighbours = [np.clip(strongest + step, 0, tones.shape[2] - 1) for step in (-1, 0, 1)]
    chosen = [
        np.take_along_axis(tones, place[None, None, None], axis=2)[:, :, 0] for place in neighbours
    ]
    return np.stack(chosen, axis=1)


def _tones_minus_noise(sounds: Sounds) -> np.ndarray:
    """Tones minus noise bands of the same centre frequency and level [realisations, pairs, neurons]."""
    bands = sounds.axis("band noise", "frequency")
    among_tones = np.isin(sounds.axis("tone", "frequency"), bands)
    levels = len(sounds.axis("tone", "level"))
    tones = sounds.of("tone", by=("level", "frequency"))[:, np.tile(among_tones, levels)]
    return tones - sounds.of("band noise", by=("level", "frequency"))


def _early_minus_late(sounds: Sounds, kind: str) -> np.ndarray:
    """Response right after the middle of the sound minus the response later [realisations, carriers, neurons]."""
    return sounds.of(kind, window=0) - sounds.of(kind, window=1)


def compare_measures(responses: Responses) -> pd.DataFrame:
    """How well each measure of response repeats on held-out realisations.

    Half of the realisations predict the other half: the correlation of the curves, averaged over neurons, per measure,
    curve and layer. Neurons that never respond count with 0.
    """
    rows = []
    for measure in MEASURES:
        sounds = Sounds(responses, measure)
        kinds = {
            "frequency": ("tone", ("frequency",)),
            "modulation": ("modulated noise", ("rate",)),
        }
        for name, (kind, by) in kinds.items():
            if not sounds.has(kind):
                continue
            values = sounds.of(kind, by=by)
            middle = len(values) // 2
            held_out = correlation(values[:middle].mean(axis=0), values[middle:].mean(axis=0))
            by_layer = pd.Series(held_out).groupby(responses.layer).mean()
            rows += [
                {"measure": measure, "curve": name, "layer": k, "correlation": r}
                for k, r in by_layer.items()
            ]
    return pd.DataFrame(rows)


def neuron_table(responses: Responses, analysed: Analysed) -> pd.DataFrame:
    """One row per neuron, with what its curves and contrasts say.

    Properties of curves that are not tuned are kept as well: look at the column `..._tuned` before you believe them.
    """
    table = pd.DataFrame({"layer": responses.layer, "neuron": responses.neuron})
    effects, axes = analysed.effects, analysed.axes
    for name, effect in effects.items():
        if name in CONTRASTS:
            table[f"{name}_index"] = effect.values[0]
        elif name != "level":
            table[f"best_{name}_hz"] = best(effect.values, axes[name])
            table[f"{name}_size"] = effect.size
        if name == "frequency":
            table["bandwidth_octaves"] = bandwidth(effect.values, axes[name])
        if name == "level":
            threshold, dynamic_range = threshold_and_range(
                effect.values, analysed.silence, axes[name]
            )
            table["threshold_db"] = np.where(effect.tuned, threshold, np.nan)
            table["dynamic_range_db"] = np.where(effect.tuned, dynamic_range, np.nan)
        table[f"{name}_reliability"] = effect.reliability
        table[f"{name}_q"] = effect.q
        table[f"{name}_tuned"] = effect.tuned
    return table.astype(dict.fromkeys(table.select_dtypes("float32"), "float64"))


def tuned_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Share of tuned neurons, layer by property."""
    columns = [str(column) for column in table.filter(like="_tuned")]
    shares = table.groupby("layer")[columns].mean()
    return shares.rename(columns=lambda column: column.removesuffix("_tuned"))
