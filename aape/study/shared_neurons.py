"""What the classes of two tasks, or of one, share: one sharing figure of a study for one encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from aape.neurons.sharing import Sharing, against_permuted, by_distance, matched, pairs_of
from aape.sounds.regrouping import pitch_of
from aape.study.study import SharingFigure, Study
from aape.study.task_result import TaskResult


@dataclass(frozen=True, eq=False)
class SharedNeurons:
    """One sharing figure of one encoder.

    Attributes:
        figure: the study's entry.
        model: name of the encoder.
        names: of the classes of rows and columns.
        sharing: what is shared, and what permuted labels give.
        pairs: a row per pair of classes, the most shared first.
        summary: one row about all pairs.
        pitches: MIDI pitch of each row and column; None where the classes are not pitches.
        curve: sharing by distance in semitones; None where the classes are not pitches.
    """

    figure: SharingFigure
    model: str
    names: tuple[list[str], list[str]]
    sharing: Sharing
    pairs: pd.DataFrame
    summary: dict[str, Any]
    pitches: tuple[list[int], list[int]] | None
    curve: pd.DataFrame | None


def all_shared(study: Study, results: Mapping[tuple[str, str], TaskResult]) -> list[SharedNeurons]:
    """Every sharing figure of the study for every encoder that both of its tasks were collected with."""
    found = []
    for figure in study.sharing:
        for model in study.encoders:
            if (figure.rows, model) in results and (figure.columns, model) in results:
                rows, columns = results[figure.rows, model], results[figure.columns, model]
                found.append(compare_classes(study, figure, model, rows, columns))
    return found


def compare_classes(
    study: Study, figure: SharingFigure, model: str, rows: TaskResult, columns: TaskResult
) -> SharedNeurons:
    """Sharing of every pair of classes of two tasks, or within one where the figure's rows and columns are the same."""
    within = figure.rows == figure.columns
    if within:
        sharing = against_permuted(rows.members, rows.drawn)
    else:
        sharing = against_permuted(rows.members, rows.drawn, columns.members, columns.drawn)
    names = {"figure": figure.name, "model": model}
    pairs = _pair_table(sharing, rows, columns, names)
    summary = _summary(sharing, rows, columns, pairs, names | {"what": figure.title})
    pitches = curve = None
    if study.task(figure.rows).kind == study.task(figure.columns).kind == "pitch":
        pitches = (
            [pitch_of(name) for name in rows.class_names],
            [pitch_of(name) for name in columns.class_names],
        )
        curve = by_distance(sharing.observed, *pitches, within=within, seed=study.seed).assign(
            **names
        )
    summary |= _alike(study, sharing, rows, columns, pitches)
    class_names = rows.class_names, columns.class_names
    return SharedNeurons(figure, model, class_names, sharing, pairs, summary, pitches, curve)


def _pair_table(
    sharing: Sharing, rows: TaskResult, columns: TaskResult, names: dict[str, str]
) -> pd.DataFrame:
    """A row per pair of classes, the most shared first."""
    counted = pairs_of(sharing.observed, sharing.within)
    first, second = np.nonzero(counted)
    pairs = pd.DataFrame(
        names
        | {
            "rows": np.array(rows.class_names)[first],
            "columns": np.array(columns.class_names)[second],
            "jaccard": sharing.observed[counted],
            "shared_neurons": sharing.shared[counted],
            "chance": sharing.mean[counted],
            "chance_low": sharing.low[counted],
            "chance_high": sharing.high[counted],
        }
    )
    return pairs.sort_values(["jaccard", "rows", "columns"], ascending=[False, True, True])


def _summary(
    sharing: Sharing,
    rows: TaskResult,
    columns: TaskResult,
    pairs: pd.DataFrame,
    names: dict[str, str],
) -> dict[str, Any]:
    """One row about all pairs of classes."""
    in_rows = rows.members.any(axis=2)
    in_columns = columns.members.any(axis=2)
    counted = pairs_of(sharing.observed, sharing.within)
    if counted.any():
        null = sharing.null[:, counted].mean(axis=1)
    else:
        null = sharing.null[:, 0, 0]
    low, high = np.quantile(null, [0.025, 0.975])
    return names | {
        "neurons in both": int((in_rows & in_columns).sum()),
        "of": f"{in_rows.sum()} and {in_columns.sum()}",
        "mean Jaccard": pairs["jaccard"].mean(),
        "chance": float(null.mean()),
        "chance low": low,
        "chance high": high,
        "pairs": len(pairs),
    }


def _alike(
    study: Study,
    sharing: Sharing,
    rows: TaskResult,
    columns: TaskResult,
    pitches: tuple[list[int], list[int]] | None,
) -> dict[str, Any]:
    """Do classes that are alike (of one name, or an octave apart) share more than others? Empty where none are."""
    if pitches is not None:
        what = "an octave apart"
        distance = np.abs(np.subtract.outer(*pitches))
        alike = (distance > 0) & (distance % 12 == 0)
        other = (distance > 1) & np.isin(distance % 12, (1, 11))  # a semitone off an octave
    else:
        what = "same name"
        row_names = np.char.lower(rows.class_names)
        column_names = np.char.lower(columns.class_names)
        alike = (row_names[:, None] == column_names) & (not sharing.within)
        other = ~alike
    if not alike.any() or not other.any():
        return {}
    chance = None if np.isnan(sharing.mean).all() else sharing.mean
    test = matched(
        sharing.observed, alike, other, chance=chance, within=sharing.within, seed=study.seed
    )
    return {
        "alike": what,
        "alike Jaccard": test.alike,
        "other Jaccard": test.other,
        "alike p": test.p,
        "least p": test.least_p,
    }
