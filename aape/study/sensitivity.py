"""How the numbers of a selection move with each choice of the method."""

from __future__ import annotations

from typing import Any

import numpy as np

from aape.artifacts.folder import Artifacts
from aape.neurons.chance import Calibrated
from aape.neurons.selection import Selection, jaccard_index, select

Row = dict[str, Any]


def selection_numbers(selection: Selection) -> Row:
    """Coverage, neurons per class and the like of one selection."""
    per_class = selection.per_class.to_numpy()
    kept = int(selection.selected.sum())
    return {
        "neurons_selected": kept,
        "coverage": selection.coverage,
        "per_class_mean": per_class.mean().item(),
        "per_class_median": np.median(per_class).item(),
        "per_class_min": per_class.min().item(),
        "per_class_max": per_class.max().item(),
        "classes_per_neuron": float(per_class.sum() / kept) if kept else np.nan,
        "mean_aape": float(selection.entropy[selection.selected].mean()) if kept else np.nan,
    }


def variants(artifacts: Artifacts, stated: Selection) -> list[Row]:
    """The stated selection, and one with each of filter, rate, quantile and zero padding changed."""
    rule = stated.rule

    def changed(setting: str, value: str, **change: Any) -> Row:
        selection = select(stated.probabilities, **vars(rule) | change)
        return _row(stated, selection, setting, value)

    other_filter = "paper" if rule.weak_filter == "lape" else "lape"
    return [
        _row(stated, stated, "as stated", f"{rule.weak_filter}, {rule.rate:g}, {rule.quantile:g}"),
        changed("filter", other_filter, weak_filter=other_filter),
        changed("rate", "half", rate=rule.rate / 2),
        changed("rate", "double", rate=min(1.0, rule.rate * 2)),
        changed("quantile", "0.9", quantile=0.9),
        changed("quantile", "0.99", quantile=0.99),
        _without_padding(artifacts, stated),
    ]


def effect_variants(calibrated: Calibrated) -> list[Row]:
    """The calibrated selection with other smallest effects (p inside minus p outside the class)."""
    rows = []
    for effect in sorted({0.0, 0.05, 0.2, calibrated.effect}):
        value = f"{effect:g} (stated)" if effect == calibrated.effect else f"{effect:g}"
        survivors = calibrated.with_effect(effect).survivors
        note = "of the calibrated neurons"
        rows.append(_row(calibrated.survivors, survivors, "calibrated, least effect", value, note))
    return rows


def _without_padding(artifacts: Artifacts, stated: Selection) -> Row:
    """The selection without tokens of zero padding, as far as it is known which tokens these are."""
    setting, value = "zero padding", "left out"
    if not artifacts.has_counts:
        return _row(stated, None, setting, value, "needs the counts of all clips")
    if artifacts.manifest.get("padding") == "unknown":
        return _row(stated, None, setting, value, "it is not known which tokens are padding")
    if artifacts.padding_counts is None:
        return _row(stated, stated, setting, value, "no clip is padded")
    sound_tokens = artifacts.tokens - artifacts.padding_tokens
    by_class = np.bincount(artifacts.labels, weights=sound_tokens, minlength=len(artifacts.classes))
    if (by_class == 0).any():
        return _row(stated, None, setting, value, "a class is nothing but padding")
    share = artifacts.padding_tokens.sum() / artifacts.tokens.sum()
    selection = select(artifacts.probabilities(padding=False), **vars(stated.rule))
    return _row(stated, selection, setting, value, f"{share:.1%} of the tokens")


def _row(
    stated: Selection, selection: Selection | None, setting: str, value: str, note: str = ""
) -> Row:
    """A row of the sensitivity table; overlap: Jaccard index of the pairs with those of the stated selection."""
    row: Row = {"setting": setting, "value": value}
    if selection is None:
        row |= dict.fromkeys(selection_numbers(stated), np.nan)
        overlap = np.nan
    else:
        row |= selection_numbers(selection)
        shared = (selection.members & stated.members).sum()
        either = (selection.members | stated.members).sum()
        overlap = float(jaccard_index(shared, either, empty=1.0))
    return row | {"overlap": overlap, "note": note}
