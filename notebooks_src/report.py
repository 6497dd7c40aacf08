"""What a study found, in short: answers with their numbers, and a page that gathers tables and figures.

python -m notebooks_src.report miniature             # writes outputs/miniature/summary.md and index.html
python -m notebooks_src.report miniature --gallery   # and gallery/miniature/: README.md, pictures and tables
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jinja2
import pandas as pd
from scipy.stats import binomtest

from aape.figures.tables import MOST_COLUMNS, three_digits
from aape.files import write_text
from aape.study.ablation_result import load_result, read_text_table
from aape.study.analysis import OVERVIEW, over_seeds
from aape.study.study import ROOT, Study, load_study

GALLERY = ROOT / "gallery"
CHANCE = {
    "task": "task",
    "model": "model",
    "coverage_null_mean": "coverage, permuted",
    "per_class_mean_null_mean": "neurons per class, permuted",
    "classes_per_neuron_null_mean": "classes per neuron, permuted",
    "below_ln_classes": "ln C - AAPE, nats",
    "below_ln_classes_null_mean": "ln C - AAPE, permuted",
    "p_mean_aape": "p (AAPE)",
}
SHARED = (
    "figure", "model", "mean Jaccard", "chance low", "chance high", "pairs", "pairs with q < 0.05", "alike p",
)  # fmt: skip
COPIED = (
    "task_level_*", "class_level_*", "sharing_summary", "sharing_by_distance", "ablation_effects", "criteria_*",
)  # fmt: skip

PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ study.description }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; } figure { margin: 2rem 0; } figcaption { color: #555; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
.note { background: #fff4d6; padding: .75rem 1rem; border-left: 4px solid #e0a800; }
</style></head><body>
<h1>{{ study.description }}</h1>
{% if study.note %}<p class="note">{% if study.stand_in %}<strong>Stand-ins.</strong> {% endif %}{{ study.note }}</p>{% endif %}
{% if atlas %}<p><a href="atlas/index.html"><strong>Atlas: hear what the neurons listen to</strong></a></p>{% endif %}
<h2>In short</h2>
{% for finding in findings %}
<p><strong>{{ finding.question }}</strong> {{ finding.answer }}.</p>
<ul>{% for line in finding.numbers %}<li>{{ line }}</li>{% endfor %}</ul>
{% endfor %}
<h2>Figures</h2>
{% for figure in figures %}
<figure><img src="{{ figure }}.png" alt="{{ figure }}" loading="lazy">
<figcaption>{{ figure }}, <a href="{{ figure }}.pdf">PDF</a></figcaption></figure>
{% endfor %}
<h2>Tables</h2>
{% for title, table in tables.items() %}
<h3>{{ title }}</h3>
<div class="scroll">{{ table.to_html(index=False, border=0) | safe }}</div>
{% endfor %}
<p>Complete: {% for name in files %}<a href="{{ name }}">{{ name }}</a> {% endfor %}</p>
<h2>Executed notebooks</h2>
<ul>{% for name in notebooks %}<li><a href="notebooks/{{ name }}">{{ name }}</a></li>{% endfor %}</ul>
</body></html>
"""
)


@dataclass(frozen=True)
class Finding:
    """A question, the study's answer in a word or two, and a line of numbers for each model."""

    question: str
    answer: str
    numbers: list[str]


def as_text(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """At most eight columns of strings with three significant digits; columns: name -> heading, as far as they exist."""
    names = {c: c for c in frame} if columns is None else {c: n for c, n in columns.items() if c in frame}
    shown = frame[list(names)[:MOST_COLUMNS]].rename(columns=names)
    return shown.apply(lambda column: column.map(three_digits))


def markdown(table: pd.DataFrame) -> str:
    """A table of strings as Markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def _read(study: Study, name: str) -> pd.DataFrame:
    """A table of the study; empty where the analysis has not written it."""
    path = study.directory / f"{name}.csv"
    return read_text_table(path) if path.is_file() else pd.DataFrame()


def statistics(study: Study) -> pd.DataFrame:
    """Task-level statistics of all models, a row per task and encoder, in the study's order; empty without analysis."""
    tables = []
    for model, spec in study.models.items():
        table = _read(study, f"task_level_neuron_statistics_{spec.folder}")
        tables.append(table if "model" in table else table.assign(model=model))
    stacked = pd.concat(tables, ignore_index=True)
    if len(stacked):
        stacked = stacked.sort_values("task", key=lambda t: t.map(list(study.tasks).index), kind="stable")
    return stacked


def _models(study: Study, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(label, rows) of each model that a table has rows of."""
    for model, spec in study.models.items():
        rows = table[table["model"].isin(study.copies(model))]
        if len(rows):
            yield spec.label + (f" ({len(spec.seeds)} seeds)" if spec.seeds else ""), rows


def _coverage(study: Study) -> list[Finding]:
    table, classes = statistics(study), _read(study, "class_level_neuron_statistics")
    if "calibrated_coverage" not in table or "calibrated" not in classes:
        return []
    said = [
        f"{label}: {rows.calibrated_coverage.mean():.0%} of a task's classes have a neuron after calibration, mean over "
        f"tasks ({rows.coverage.mean():.0%} before, permuted labels {rows.coverage_null_mean.mean():.0%}); a selected neuron is "
        f"specific to {rows.classes_per_neuron.mean():.2g} classes, its AAPE {rows.aape_share.mean():.1%} of ln C"
        for label, rows in _models(study, table)
    ]
    roles = {spec.role: name for name, spec in reversed(study.models.items())}
    if not {"ssl", "sl"} <= set(roles):
        return [Finding("How many classes have neurons of their own?", "Model by model", said)]
    ssl, sl = (
        classes[classes["model"] == study.copies(roles[role])[0]].set_index(["task", "class"]).calibrated > 0
        for role in ("ssl", "sl")
    )
    ssl, sl = ssl.align(sl, join="inner")  # tasks that both were collected on
    first, second = int((ssl & ~sl).sum()), int((sl & ~ssl).sum())
    p = binomtest(first, first + second).pvalue if first + second else 1.0
    answer = "No difference that chance would not give" if p > 0.05 else "Yes" if first > second else "No, fewer"
    test = f"Only the SSL model has one for {first} of {len(ssl)} classes, only the SL model for {second} (sign test, "
    return [Finding("Does the SSL model cover more classes than the SL model?", answer, [*said, f"{test}p = {p:.2g})"])]


def _sharing(study: Study) -> list[Finding]:
    """For each figure with classes that are alike (of one name, or an octave apart): do they share more than others?"""
    summary = _read(study, "sharing_summary")
    found = []
    for figure in study.sharing if "alike p" in summary else ():
        rows = summary[(summary["figure"] == figure.name) & summary["alike p"].notna()]
        if rows.empty:
            continue
        what = rows["alike"].iloc[0]
        said = [
            f"{label}: mean Jaccard {mine['alike Jaccard'].mean():.3f} against {mine['other Jaccard'].mean():.3f} of the "
            f"others (p = {', '.join(f'{p:.2g}' for p in mine['alike p'])})"
            for label, mine in _models(study, rows)
        ]
        above = sum((mine["alike p"] <= 0.05).all() for _, mine in _models(study, rows))
        least = rows["least p"].min()
        limit = [f"with so few classes p cannot be below {least:.2g}"] if least > 0.05 else []
        answer = "Cannot be told" if limit else f"{above} of {len(said)} models"
        tasks = " and ".join(dict.fromkeys([figure.rows, figure.columns]))
        question = f"Do classes of {tasks} ({what}) share more neurons than others?"
        found.append(Finding(question, answer, said + limit))
    return found


def _ablations(study: Study) -> list[Finding]:
    try:
        result = load_result(study)
    except FileNotFoundError:
        return []
    question = "Does silencing class-specific neurons hurt their class more than silencing random ones?"
    return [Finding(question, "Model by model", result.verdict().split("\n"))]


def findings(study: Study) -> list[Finding]:
    """Answers from the study's CSV files; a question without its files is left out."""
    return [*_coverage(study), *_sharing(study), *_ablations(study)]


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """Heading -> table of strings, at most eight columns; what the study lacks is left out."""
    overview = over_seeds(study, statistics(study), ["task"])
    summary = over_seeds(study, _read(study, "sharing_summary"), ["figure"])
    shown = [name for name in SHARED if name in summary]
    found = {
        "Class-specific neurons": as_text(overview, OVERVIEW),
        "What permuted labels give": as_text(overview, CHANCE) if "p_mean_aape" in overview else pd.DataFrame(),
        "Shared neurons": as_text(summary[shown]),
    }
    with contextlib.suppress(FileNotFoundError):  # a study may have no ablations
        found["Silenced neurons against random sets"] = as_text(load_result(study).table())
    return {title: table for title, table in found.items() if len(table)}


def _text(study: Study) -> str:
    """Title, note and findings as Markdown."""
    note = ("**Every number and figure here is of stand-ins.** " if study.stand_in else "") + study.note
    lines = ["\n  - ".join([f"- **{f.question}** {f.answer}.", *f.numbers]) for f in findings(study)]
    return "\n".join([f"# {study.description}", *(["", note] if note else []), "", *lines, ""])


def write_report(study: Study) -> None:
    """Write summary.md and index.html into the study's folder."""
    folder = study.directory
    page = PAGE.render(
        study=study,
        findings=findings(study),
        atlas=(folder / "atlas" / "index.html").is_file(),
        figures=sorted(p.stem for p in folder.glob("*.png")),
        tables=tables(study),
        files=sorted(p.name for p in folder.glob("*.csv")),
        notebooks=sorted(p.name for p in (folder / "notebooks").glob("*.ipynb")),
    )
    write_text(folder / "index.html", page)
    write_text(folder / "summary.md", _text(study))


def write_gallery(study: Study) -> None:
    """What one wants to see without running, in gallery/<study>/: answers, tables, pictures, and who made it when."""
    folder = GALLERY / study.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in [path for path in folder.iterdir() if path.suffix in (".png", ".csv", ".md")]:
        old.unlink()
    copied = [path for name in COPIED for path in sorted(study.directory.glob(f"{name}.csv"))]
    pictures = sorted(study.directory.glob("*.png"))
    for path in [*copied, *pictures]:
        shutil.copy(path, folder / path.name)
    lines = [
        _text(study),
        f"Made on {datetime.date.today()} by `python -m notebooks_src.report {study.name} --gallery`, after all notebooks "
        "of the study were executed.",
        *(f"\n## {title}\n\n{markdown(table)}" for title, table in tables(study).items()),
        f"\nAll columns: {', '.join(f'[{path.name}]({path.name})' for path in copied)}.\n",
        *(f"![{re.sub('[_-]', ' ', path.stem)}]({path.name})\n" for path in pictures),
    ]
    write_text(folder / "README.md", "\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="miniature")
    parser.add_argument("--gallery", action="store_true", help="also into the repository: gallery/<study>/")
    options = parser.parse_args(arguments)
    study = load_study(options.study)
    write_report(study)
    print((study.directory / "summary.md").read_text())
    print(f"page: {study.directory / 'index.html'}")
    if options.gallery:
        write_gallery(study)
        print(f"gallery: {GALLERY / study.name / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
