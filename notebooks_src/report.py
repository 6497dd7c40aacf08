"""A page and a summary of what a study found.

python -m notebooks_src.report miniature             # writes outputs/miniature/summary.md and index.html
python -m notebooks_src.report miniature --gallery   # and gallery/miniature/: README.md, pictures and tables
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from aape.cli import guarded
from aape.figures.tables import MOST_COLUMNS, three_digits
from aape.files import write_text
from aape.study.ablation_result import load_result
from aape.study.study import ROOT, Study, load_study
from aape.study.tables import OVERVIEW, over_seeds
from notebooks_src.findings import findings, read, statistics

GALLERY = ROOT / "gallery"
TEMPLATE = Path(__file__).with_name("report.html")
PERMUTED = {  # column -> heading
    "title": "task",
    "model": "model",
    "coverage_null_mean": "coverage, permuted",
    "per_class_mean_null_mean": "neurons per class, permuted",
    "classes_per_neuron_null_mean": "classes per neuron, permuted",
    "below_ln_classes": "ln C - AAPE, nats",
    "below_ln_classes_null_mean": "ln C - AAPE, permuted",
    "p_mean_aape": "p (AAPE)",
}
SHARED = {
    "figure": "figure",
    "model": "model",
    "mean Jaccard": "mean Jaccard",
    "chance low": "permuted, 2.5 %",
    "chance high": "permuted, 97.5 %",
    "pairs": "pairs",
    "alike p": "p (alike classes)",
}
CAPTIONS = {  # beginning of a figure's name -> caption; the order is that of the page
    "criteria": "How far a class falls when the neurons that each criterion ranks highest for it are silenced: AAPE, attribution "
    "and others, next to random neurons",
    "chance": "What the selection gives with the real labels and with permuted labels",
    "ablation_controls": "How far a class falls when its neurons are silenced, next to equally active random neurons",
    "within_task": "Which classes of one task share selected neurons, next to what permuted labels share",
    "cross_task": "Which classes of two tasks share selected neurons, next to what permuted labels share",
    "neurons_by_layer": "In which layers the selected neurons are",
    "ablation_off_target": "How every class changes when the neurons of each targeted class are silenced",
    "ablation_gains": "How a class changes when its neurons are weakened or strengthened",
    "ablation": "How every class of the task changes when the neurons of a target are silenced",
}
TO_GALLERY = (
    "task_level_*",
    "class_level_*",
    "sharing_summary",
    "sharing_by_distance",
    "ablation_effects",
    "criteria_*",
)
AS_HTML = (
    "Analyze_ClassSpecificNeurons",
    "Ablations",
)  # notebooks that one wants to read in a browser


def captions(study: Study) -> dict[str, str]:
    """Name of each figure that the study has -> caption, the most interesting first."""
    names = sorted(path.stem for path in study.directory.glob("*.png"))
    found: dict[str, str] = {}
    for beginning, caption in CAPTIONS.items():
        for name in names:
            if name.startswith(beginning) and name not in found:
                detail = name.removeprefix(beginning).strip("-_").replace("_", " ")
                found[name] = f"{caption} ({detail})" if detail else caption
    return found | {name: name.replace("_", " ") for name in names if name not in found}


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """Heading -> table of strings, at most eight columns; what the study lacks is left out."""
    overview = over_seeds(study, statistics(study), ["task"])
    if len(overview) and "title" not in overview:
        overview = overview.assign(title=overview["task"])
    summary = over_seeds(study, read(study, "sharing_summary"), ["figure"])
    found = {"Class-specific neurons": as_text(overview, OVERVIEW)}
    if "p_mean_aape" in overview:
        found["With permuted labels"] = as_text(overview, PERMUTED)
    found["Shared neurons"] = as_text(summary, SHARED)
    if (study.directory / "ablation_effects.csv").is_file():
        found["Silenced neurons and activity-matched random neurons"] = as_text(
            load_result(study).table()
        )
    return {title: table for title, table in found.items() if len(table)}


def as_text(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """At most eight columns of strings with three significant digits; columns: name -> heading, as far as they exist."""
    headings = {name: name for name in frame} if columns is None else columns
    names = [name for name in headings if name in frame][:MOST_COLUMNS]
    shown = frame[names].rename(columns=headings)
    return shown.apply(lambda column: column.map(three_digits))


def markdown(table: pd.DataFrame) -> str:
    """A table of strings as Markdown."""
    lines = []
    for row in [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]:
        cells = [str(cell).replace("|", "\\|") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary_text(study: Study) -> str:
    """Title, caution and answers as Markdown."""
    lines = [f"# {study.description}", "", study.caution(), ""]
    for finding in findings(study):
        lines.append(f"- **{finding.question}** {finding.answer}. {finding.sentence}")
        lines += [f"  - {detail}" for detail in finding.details]
    return "\n".join([*lines, ""])


def write_report(study: Study) -> None:
    """Write summary.md and index.html into the study's folder."""
    folder = study.directory
    _notebooks_as_html(folder / "notebooks")
    figures = captions(study)
    answers = findings(study)
    on_cards = {answer.figure for answer in answers}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        study=study,
        models=", ".join(spec.label for spec in study.models.values()),
        findings=answers,
        atlas=(folder / "atlas" / "index.html").is_file(),
        figures=figures,
        others={name: caption for name, caption in figures.items() if name not in on_cards},
        tables=tables(study),
        files=sorted(path.name for path in folder.glob("*.csv")),
        notebooks=sorted(path.name for path in (folder / "notebooks").glob("[!.]*.[hi]*")),
    )
    write_text(folder / "index.html", page)
    write_text(folder / "summary.md", summary_text(study))


def _notebooks_as_html(folder: Path) -> None:
    """Executed notebooks that one wants to read, as pages next to them."""
    for name in AS_HTML:
        notebook = folder / f"{name}.ipynb"
        if notebook.is_file():
            page, _ = HTMLExporter().from_notebook_node(nbformat.read(notebook, as_version=4))
            write_text(notebook.with_suffix(".html"), page)


def write_gallery(study: Study) -> None:
    """What one wants to see without running anything, in gallery/<study>/: answers, tables and pictures."""
    folder = GALLERY / study.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix in (".png", ".csv", ".md"):
            path.unlink()
    figures = captions(study)
    copied = [
        path for pattern in TO_GALLERY for path in sorted(study.directory.glob(f"{pattern}.csv"))
    ]
    for path in [*copied, *(study.directory / f"{name}.png" for name in figures)]:
        shutil.copy(path, folder / path.name)
    lines = [summary_text(study)]
    for name, caption in figures.items():
        lines.append(f"![{caption}]({name}.png)\n\n*{caption}.*\n")
    for title, table in tables(study).items():
        lines.append(f"\n## {title}\n\n{markdown(table)}")
    lines.append(f"\nAll columns: {', '.join(f'[{path.name}]({path.name})' for path in copied)}.\n")
    lines.append(
        f"Made on {datetime.date.today()} by `python -m notebooks_src.report {study.name} --gallery`, after all notebooks "
        "of the study were executed.\n"
    )
    write_text(folder / "README.md", "\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", default="miniature")
    parser.add_argument(
        "--gallery", action="store_true", help="also what is committed below gallery/"
    )
    options = parser.parse_args(arguments)

    def run() -> None:
        study = load_study(options.study)
        write_report(study)
        if options.gallery:
            write_gallery(study)
        print(f"open {(study.directory / 'index.html').resolve().as_uri()}")

    return guarded("notebooks_src.report", run)


if __name__ == "__main__":
    sys.exit(main())
