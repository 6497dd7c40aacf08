"""The figures of a study's analysis, drawn from its results and saved as PDF and PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from aape.figures import activity
from aape.figures.sharing import sharing_figure
from aape.figures.style import save
from aape.study.shared_neurons import SharedNeurons
from aape.study.study import SharingFigure, Study
from aape.study.task_result import TaskResult

Results = Mapping[tuple[str, str], TaskResult]  # (task, encoder) -> result


def draw_figures(
    study: Study, results: Results, shared: Sequence[SharedNeurons]
) -> dict[str, Path]:
    """Draw and save every figure that there are results for; returns name -> PNG."""
    titles = {name: spec.title for name, spec in study.tasks.items()}
    labels = panels_of(study, results)
    drawn: dict[str, Figure] = {}
    if any("permutations" in result.row for result in results.values()):
        copies = {spec.label: study.copies(model) for model, spec in study.models.items()}
        drawn["chance"] = activity.chance_figure(results, copies, titles)
    drawn["neurons_by_layer"] = activity.layer_figure(results, labels, titles)
    for figure in study.sharing:
        of_figure = {labels[s.model]: s for s in shared if s.figure == figure and s.model in labels}
        if of_figure:
            drawn[figure.name] = _sharing(study, figure, of_figure, list(labels.values()))
    return {name: save(figure, study.directory, name) for name, figure in drawn.items()}


def panels_of(study: Study, results: Results) -> dict[str, str]:
    """Encoders that have a panel in figures with one panel per model, and their labels; of several seeds the first."""
    collected = {model for _, model in results}
    chosen = {}
    for model in study.models:
        copies = study.copies(model)
        encoder = next((copy for copy in copies if copy in collected), copies[0])
        chosen[encoder] = study.encoder(encoder).label
    return chosen


def _sharing(
    study: Study,
    figure: SharingFigure,
    of_figure: Mapping[str, SharedNeurons],
    labels: Sequence[str],
) -> Figure:
    first = next(iter(of_figure.values()))
    rows, columns = study.task(figure.rows).title, study.task(figure.columns).title
    where = f"within {rows}" if first.sharing.within else f"{rows} (rows) and {columns} (columns)"
    panels = {label: of_figure[label].sharing if label in of_figure else None for label in labels}
    curves = {
        label: shared.curve for label, shared in of_figure.items() if shared.curve is not None
    }
    return sharing_figure(
        panels,
        first.names,
        [rows, columns],
        f"Shared neurons ({figure.title}): {where}",
        first.pitches,
        curves or None,
    )
