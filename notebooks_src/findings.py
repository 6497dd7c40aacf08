"""The answers that a study gives, read from its CSV files: a question, an answer in a word, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd
from scipy.stats import binomtest

from aape.study.ablation_result import load_result, read_text_table
from aape.study.study import SharingFigure, Study


@dataclass(frozen=True)
class Finding:
    """One answer of a study.

    Attributes:
        question: as a reader would ask it.
        answer: a word, or very few.
        sentence: the answer with its main numbers.
        details: one line of numbers per model.
        figure: name of the figure that shows it.
    """

    question: str
    answer: str
    sentence: str
    details: list[str] = field(default_factory=list)
    figure: str = ""


def findings(study: Study) -> list[Finding]:
    """All answers of a study; a question without its tables is left out."""
    answers = [
        coverage(study),
        *(sharing(study, figure) for figure in study.sharing),
        ablation(study),
    ]
    return [answer for answer in answers if answer is not None]


def read(study: Study, name: str) -> pd.DataFrame:
    """A table of the study; empty where the analysis has not written it."""
    path = study.directory / f"{name}.csv"
    return read_text_table(path) if path.is_file() else pd.DataFrame()


def statistics(study: Study) -> pd.DataFrame:
    """Task-level statistics of all models, a row per task and encoder, in the study's order; empty without analysis."""
    tables = []
    for model, spec in study.models.items():
        table = read(study, f"task_level_neuron_statistics_{spec.folder}")
        tables.append(table if "model" in table else table.assign(model=model))
    stacked = pd.concat(tables, ignore_index=True)
    if not len(stacked):
        return stacked
    order = list(study.tasks).index
    return stacked.sort_values("task", key=lambda tasks: tasks.map(order), kind="stable")


def by_model(study: Study, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(label, rows) of each model that a table has rows of."""
    for model, spec in study.models.items():
        rows = table[table["model"].isin(study.copies(model))]
        if len(rows):
            yield spec.label + (f" ({len(spec.seeds)} seeds)" if spec.seeds else ""), rows


def coverage(study: Study) -> Finding | None:
    """Which share of the classes has neurons of its own, and whether that of two models differs."""
    table = statistics(study)
    classes = read(study, "class_level_neuron_statistics")
    if "calibrated_coverage" not in table or "calibrated" not in classes:
        return None
    shares = {label: rows.calibrated_coverage.mean() for label, rows in by_model(study, table)}
    details = []
    for label, rows in by_model(study, table):
        details.append(
            f"{label}: {shares[label]:.0%} of the classes of a task have a neuron that passes the calibration, on average "
            f"over tasks (selected: {rows.coverage.mean():.0%}; with permuted labels: {rows.coverage_null_mean.mean():.0%}). "
            f"A selected neuron is specific to {rows.classes_per_neuron.mean():.2g} classes; its AAPE is "
            f"{rows.aape_share.mean():.1%} of ln C."
        )
    listed = ", ".join(f"{share:.0%} ({label})" for label, share in shares.items())
    sentence = f"Classes with a neuron that passes the calibration: {listed}."
    roles = {spec.role: name for name, spec in reversed(study.models.items())}
    if "ssl" not in roles or "sl" not in roles:
        question = "How many classes have neurons of their own?"
        return Finding(question, f"{next(iter(shares.values())):.0%}", sentence, details, "chance")
    covered = {}
    for role in ("ssl", "sl"):
        rows = classes[classes["model"] == study.copies(roles[role])[0]]
        covered[role] = rows.set_index(["task", "class"]).calibrated > 0
    ssl, sl = covered["ssl"].align(covered["sl"], join="inner")  # tasks that both were collected on
    only_ssl = int((ssl & ~sl).sum())
    only_sl = int((sl & ~ssl).sum())
    p = binomtest(only_ssl, only_ssl + only_sl).pvalue if only_ssl + only_sl else 1.0
    answer = "No difference"
    if p <= 0.05:
        answer = "Yes" if only_ssl > only_sl else "No, fewer"
    sentence += (
        f" Of {len(ssl)} classes, {only_ssl} are covered only by the SSL model and {only_sl} only by the SL model (sign "
        f"test, p = {p:.2g})."
    )
    return Finding(
        "Does the SSL model cover more classes than the SL model?",
        answer,
        sentence,
        details,
        "chance",
    )


def sharing(study: Study, figure: SharingFigure) -> Finding | None:
    """Whether classes that are alike (of one name, or an octave apart) share more neurons than others."""
    summary = read(study, "sharing_summary")
    if "alike p" not in summary:
        return None
    rows = summary[(summary["figure"] == figure.name) & summary["alike p"].notna()]
    if rows.empty:
        return None
    alike = "an octave apart" if rows["alike"].iloc[0] == "an octave apart" else "of the same name"
    titles = " and ".join(
        dict.fromkeys([study.task(figure.rows).title, study.task(figure.columns).title])
    )
    question = f"Do classes of {titles} that are {alike} share more neurons than others?"
    details = []
    significant = []
    for label, of_model in by_model(study, rows):
        p_values = ", ".join(f"{p:.2g}" for p in of_model["alike p"])
        details.append(
            f"{label}: mean Jaccard index {of_model['alike Jaccard'].mean():.3f}, others "
            f"{of_model['other Jaccard'].mean():.3f} (p = {p_values})."
        )
        if (of_model["alike p"] <= 0.05).all():
            significant.append(label)
    least = rows["least p"].min()
    if least > 0.05:
        sentence = f"There are so few classes that p cannot be below {least:.2g}."
        return Finding(question, "Undecided", sentence, details, figure.name)
    sentence = f"Significantly more (p ≤ 0.05) in {len(significant)} of {len(details)} models"
    sentence += f": {', '.join(significant)}." if significant else "."
    return Finding(
        question, _share_of(len(significant), len(details)), sentence, details, figure.name
    )


def ablation(study: Study) -> Finding | None:
    """Whether silencing class-specific neurons hurts their class more than silencing equally active random neurons."""
    try:
        result = load_result(study)
    except FileNotFoundError:
        return None
    summary = result.summary()
    tested = summary[summary.active_q.notna()]
    answer = (
        _share_of(int((tested.active_q < 0.05).sum()), len(tested)) if len(tested) else "Undecided"
    )
    question = "Does silencing class-specific neurons hurt their class more than silencing equally active random neurons?"
    return Finding(question, answer, result.verdict(), [], "ablation_controls")


def _share_of(count: int, total: int) -> str:
    if count == 0:
        return "No"
    return "Yes" if count == total else "Partly"
