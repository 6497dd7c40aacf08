"""What a study found, in short: a plain summary with yes or no, and a page that gathers tables and figures.

python -m notebooks_src.report miniature             # writes outputs/miniature/summary.md and index.html
python -m notebooks_src.report miniature --gallery   # and copies figures and tables to gallery/miniature/ and README.md
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from aape.ablation import AblationResult, judged, load_result
from aape.files import write_text
from aape.study import ROOT, Study, load_study

GALLERY = ROOT / "gallery"
LABELS = {"ssl": "SSL", "sl": "SL"}

PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ study.description }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; } figure { margin: 2rem 0; } figcaption { color: #555; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
.note { background: #fff4d6; padding: .75rem 1rem; border-left: 4px solid #e0a800; }
</style></head><body>
<h1>{{ study.description }}</h1>
{% if study.stand_in %}<p class="note"><strong>Stand-ins.</strong> {{ study.note }}</p>{% endif %}
<h2>In short</h2>
{% for finding in findings %}
<p><strong>{{ finding.question }}</strong> {{ finding.answer }}. {{ finding.numbers }}</p>
{% if finding.table is not none %}
<div class="scroll">{{ finding.table.to_html(index=False, border=0) | safe }}</div>
{% endif %}
{% endfor %}
<h2>Figures</h2>
{% for figure in figures %}
<figure><img src="{{ figure }}" alt="{{ figure }}" loading="lazy">
<figcaption>{{ figure }}{% if pdfs[figure] %}, <a href="{{ pdfs[figure] }}">PDF</a>{% endif %}</figcaption></figure>
{% endfor %}
<h2>Tables</h2>
{% for name, table in tables.items() %}
<h3 id="{{ name }}"><a href="{{ name }}">{{ name }}</a></h3>
<div class="scroll">{{ table | safe }}</div>
{% endfor %}
<h2>Executed notebooks</h2>
<ul>{% for name in notebooks %}<li><a href="notebooks/{{ name }}">{{ name }}</a></li>{% endfor %}</ul>
</body></html>
"""
)


@dataclass(frozen=True)
class Finding:
    """A question the paper asks, the study's answer in a word or two, and the numbers behind it, if many in a table."""

    question: str
    answer: str
    numbers: str
    table: pd.DataFrame | None = None


def markdown(table: pd.DataFrame) -> str:
    """A table of ready strings as Markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _statistics(study: Study) -> dict[str, pd.DataFrame]:
    tables = {}
    for model, spec in study.encoders.items():
        path = study.directory / f"task_level_neuron_statistics_{spec.folder}.csv"
        if path.is_file():
            tables[model] = pd.read_csv(path).set_index("task")
    return tables


def _coverage(study: Study) -> list[Finding]:
    tables = _statistics(study)
    if not {"ssl", "sl"} <= set(tables):
        return []
    question = "Does the self-supervised encoder cover more classes than the supervised one?"
    parts = {
        f"{LABELS.get(m, m)} {t.coverage.mean():.0%} (calibrated {t.calibrated_coverage.mean():.0%})"
        for m, t in tables.items()
    }
    sharper = {m: t.mean_aape.mean() for m, t in tables.items()}
    permuted = {m: t.coverage_null_mean.mean() for m, t in tables.items()}
    answers = []
    for column in ("coverage", "calibrated_coverage"):
        more = tables["ssl"][column].mean() - tables["sl"][column].mean()
        answers.append("No difference" if abs(more) < 0.005 else "Yes" if more > 0 else "No")
    raw, calibrated = answers
    answer = raw if raw == calibrated else f"{raw} by the percentiles, {calibrated.lower()} when calibrated"
    return [
        Finding(
            question,
            answer,
            f"Mean share of classes with a class-specific neuron: {', '.join(sorted(parts))}. Permuted labels give "
            + ", ".join(f"{LABELS.get(m, m)} {v:.0%}" for m, v in permuted.items())
            + ", so coverage alone says little; the mean AAPE of the selected neurons is "
            + ", ".join(f"{LABELS.get(m, m)} {v:.2f}" for m, v in sharper.items())
            + " nats (lower is more specific).",
        )
    ]


def _sharing(study: Study) -> list[Finding]:
    path = study.directory / "sharing_summary.csv"
    if not path.is_file():
        return []
    summary = pd.read_csv(path)
    findings = []
    for name, question in (
        ("cross_task-surge-nspitch", "Do nspitch and surge share more neurons between the same pitches and octaves?"),
        ("cross_task-vc1-cremad_gender", "Do vc1_gender and cremad_gender share neurons for the same gender?"),
        ("cross_task-esc50-gise51", "Do like events of esc50 and gise51 share neurons?"),
    ):
        rows = summary[summary.figure == name]
        if rows.empty:
            continue
        if name == "cross_task-surge-nspitch":
            findings.append(_octaves(study, question, name))
            continue
        findings.append(_same_class(study, question, name))
    return findings


def _octaves(study: Study, question: str, name: str) -> Finding:
    table = pd.read_csv(study.directory / "sharing_by_distance.csv")
    table = table[table.figure == name]
    said, answers = [], []
    for model, mine in table.groupby("model", sort=False):
        mine = mine.assign(distance=mine.semitones.abs())
        same = mine[mine.distance == 0]
        octave = mine[mine.distance == 12]
        above_chance = bool((octave.mean_jaccard > octave.chance_high).all())
        peak = bool((octave.above_neighbours > 0).all())
        answers.append(above_chance and peak)
        said.append(
            f"{LABELS.get(str(model), str(model))}: Jaccard {same.mean_jaccard.mean():.3f} at the same pitch, "
            f"{octave.mean_jaccard.mean():.3f} an octave apart (chance {octave.chance.mean():.3f} to "
            f"{octave.chance_high.mean():.3f}; {octave.above_neighbours.mean():+.3f} against one semitone off)"
        )
    answer = "Octaves: " + ("yes" if answers and answers[0] else "no") + " for the SSL encoder"
    return Finding(question, answer, "; ".join(said) + ".")


def _same_class(study: Study, question: str, name: str) -> Finding:
    pairs = pd.read_csv(study.directory / "sharing_pairs.csv", dtype={"rows": str, "columns": str})
    pairs = pairs[pairs.figure == name]
    said, first = [], False
    for number, (model, mine) in enumerate(pairs.groupby("model", sort=False)):
        same = mine[mine["rows"].str.lower() == mine["columns"].str.lower()]
        other = mine.drop(same.index)
        survive = int((same.q < study.chance.q).sum())
        if number == 0:
            first = survive > 0 and same.jaccard.mean() > other.jaccard.mean()
        said.append(
            f"{LABELS.get(str(model), str(model))}: mean Jaccard {same.jaccard.mean():.3f} between classes of the same "
            f"name, {other.jaccard.mean():.3f} between others; {survive} of {len(same)} same-name pairs above chance "
            f"(q < {study.chance.q:g})"
        )
    return Finding(question, ("Yes" if first else "No") + " for the SSL encoder", "; ".join(said) + ".")


def _signed(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{round(value, digits) + 0.0:+.{digits}f}"  # no "-0.0"


def _targeted(result: AblationResult, measure: str) -> pd.DataFrame:
    """Effects on the targeted classes, a row per target, class and model, with the other ways of silencing beside."""
    keys = ["task", "target", "mode", "model", "class"]
    rows = result.effects[result.effects.targeted & (result.effects.measure == measure)]
    silenced = rows[rows.kind == "silenced"].set_index(keys)
    silenced["at_mean"] = rows[rows.kind == "replaced by mean"].set_index(keys).difference
    return silenced.reset_index()


def _fallen(study: Study, effects: pd.DataFrame, digits: int) -> tuple[str, int, int]:
    """Mean change "against" that of the random sets, how many classes fall below them, and how many were tested."""
    tested, fallen = judged(effects, study.chance.q)
    change = f"{_signed(tested.difference.mean(), digits)} against {_signed(tested.layer_mean.mean(), digits)}"
    return change, fallen, len(tested)


def _ablations(study: Study) -> list[Finding]:
    question = "Does silencing class-specific neurons hurt their class more than silencing random ones?"
    try:
        result = load_result(study)
    except FileNotFoundError:
        return []
    said, answer = [], "Nothing to test"
    accuracy = _targeted(result, "accuracy")
    for model, nats in _targeted(result, "log_probability").groupby("model", sort=False):
        name = LABELS.get(str(model), str(model))
        change, fallen, tested = _fallen(study, nats, 3)
        if not tested:
            said.append(f"{name}: nothing to test.")
            continue
        points = accuracy[(accuracy.model == model) & accuracy.layer_p.notna()]
        point_change, point_fallen, _ = _fallen(study, points, 1)
        if model == "ssl":
            answer = "Yes" if fallen == tested else "In part" if fallen else "No"
            answer += f" for the {name} encoder"
        line = (
            f"{name}: {point_change} points of accuracy ({point_fallen} of {tested} targeted classes below the random "
            f"sets, q < {study.chance.q:g}), {change} nats of log-probability ({fallen} of {tested})"
        )
        for column, meaning in (
            ("target_rate_mean", "a set as active in the class, whatever its AAPE"),
            ("at_mean", "the same neurons at their mean in place of 0"),
        ):
            if column in points and points[column].notna().any():
                line += f"; {meaning}: {_signed(points[column].mean(), 1)} points"
        said.append(line + ".")
        if model == "untrained" and fallen:
            said.append(
                "Neurons selected in the untrained encoder hurt their classes as well: such a drop shows that a set "
                "acts on its class, not that training put it there."
            )
    return [
        Finding(
            question,
            answer,
            f"Mean change, against layer-matched random sets. {' '.join(said)}",
            ablation_table(result),
        )
    ]


def ablation_table(result: AblationResult) -> pd.DataFrame:
    """A row of strings per target, class and model: the change in accuracy and log-probability beside the controls'."""
    keys = ["task", "target", "mode", "class", "model"]
    both = _targeted(result, "accuracy").merge(_targeted(result, "log_probability"), on=keys, suffixes=("", "_log"))
    columns = ["difference", "rate_p", "target_rate_mean", "at_mean"]
    columns += [f"layer_{key}" for key in ("mean", "low", "high", "p", "q")]
    rows = []
    for row in both.to_dict("records"):
        target = f"{row['task']}: {row['target']}"
        named = {
            "target (class)": target if row["target"] == row["class"] else f"{target} ({row['class']})",
            "model": LABELS.get(row["model"], row["model"]),
            "neurons": f"{row['neurons']:.0f}",
            "accuracy before": f"{row['before']:.1f} %",
        }
        for suffix, unit, digits in (("", "points", 1), ("_log", "nats", 3)):
            at = {key: row[f"{key}{suffix}"] for key in columns}
            mean, low, high = (_signed(at[f"layer_{key}"], digits) for key in ("mean", "low", "high"))
            tested = pd.notna(at["layer_p"])
            cells = {
                "change": _signed(at["difference"], digits) or "no neurons",
                "random sets": f"{mean} [{low}, {high}]" if tested else "",
                "p, q": f"{at['layer_p']:.3f}, {at['layer_q']:.3f}" if tested else "",
                "p, rate-matched": f"{at['rate_p']:.3f}" if pd.notna(at["rate_p"]) else "",
                "as active in the class": _signed(at["target_rate_mean"], digits),
                "at their mean": _signed(at["at_mean"], digits),
            }
            named |= {f"{key} ({unit})": cell for key, cell in cells.items()}
        rows.append(named)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()]


def findings(study: Study) -> list[Finding]:
    """Answers to the paper's questions from the study's CSV files; a question without its files is left out."""
    return [*_coverage(study), *_sharing(study), *_ablations(study)]


def summary_text(study: Study, found: list[Finding]) -> str:
    """The findings as Markdown."""
    lines = [f"# {study.description}", ""]
    if study.stand_in:
        lines += [f"Stand-ins: {study.note}", ""]
    return "\n".join([*lines, findings_text(found)]) + "\n"


def findings_text(found: list[Finding]) -> str:
    """A Markdown list of the findings, and the tables behind it."""
    lines = [f"- **{f.question}** {f.answer}. {f.numbers}" for f in found]
    lines += [f"\n{markdown(f.table)}" for f in found if f.table is not None]
    return "\n".join(lines)


def write_report(study: Study) -> list[Finding]:
    """Write summary.md and index.html into the study's folder; returns the findings."""
    folder = study.directory
    found = findings(study)
    figures = sorted(p.name for p in folder.glob("*.png"))
    tables = {}
    for path in sorted(folder.glob("*.csv")):
        table = pd.read_csv(path)
        shown = table.head(40).to_html(index=False, float_format=lambda v: f"{v:.4g}", border=0, na_rep="")
        more = f"<p>{len(table) - 40:,} more rows in the file.</p>" if len(table) > 40 else ""
        tables[path.name] = shown + more
    page = PAGE.render(
        study=study,
        findings=found,
        figures=figures,
        pdfs={f: f"{Path(f).stem}.pdf" if (folder / f"{Path(f).stem}.pdf").is_file() else "" for f in figures},
        tables=tables,
        notebooks=sorted(p.name for p in (folder / "notebooks").glob("*.ipynb")),
    )
    write_text(folder / "index.html", page)
    write_text(folder / "summary.md", summary_text(study, found))
    return found


def results_table(study: Study) -> pd.DataFrame:
    """SSL, SL and untrained side by side, with what permuted labels give, as strings."""
    tables = _statistics(study)
    first = next(iter(tables.values()))
    rows = []
    for task in first.index:
        named = {"task": str(task), "classes": str(first.classes[task])}
        for model, table in tables.items():
            row, name = table.loc[task], LABELS.get(model, model)
            named[f"{name} coverage (permuted)"] = f"{row.coverage:.0%} ({row.coverage_null_mean:.0%})"
            named[f"{name} neurons per class (permuted)"] = (
                f"{row.per_class_mean:.1f} ({row.per_class_mean_null_mean:.1f})"
            )
            named[f"{name} calibrated per class"] = f"{row.calibrated_per_class_mean:.1f}"
        rows.append(named)
    return pd.DataFrame(rows)


def readme_results(study: Study, found: list[Finding], today: datetime.date) -> str:
    """A study's section of README's results."""
    pictures = {
        "chance": "What chance gives",
        "cross_task-esc50-gise51": "Shared neurons of events",
        "ablation_controls": "Silenced neurons against random sets",
    }
    shown = [
        f"![{title}](gallery/{study.name}/{name}.png)\n"
        for name, title in pictures.items()
        if (study.directory / f"{name}.png").is_file()
    ]
    lines = [
        f"### {study.description}\n",
        f"The study `{study.name}`, made on {today} by `python -m notebooks_src.report {study.name} --gallery`. "
        + (
            f"**Stand-ins:** {study.note} They are not comparable with the paper's figures."
            if study.stand_in
            else study.note
        )
        + "\n",
        markdown(results_table(study)) + "\n",
        "*Permuted*: the mean over permuted labels. *Calibrated*: class-specific neurons that also pass q < "
        f"{study.chance.q:g} and differ by {study.chance.effect:g} in activation probability between class and rest.\n",
        *shown[:1],
        findings_text(found) + "\n",
        *shown[1:],
        f"All figures: [gallery/{study.name}](gallery/{study.name}/README.md).",
    ]
    return "\n".join(lines)


def write_readme_results(study: Study, found: list[Finding]) -> None:
    """Put a study's section between its markers in README.

    Raises:
        ValueError: README has no markers for this study.
    """
    path = ROOT / "README.md"
    start, end = f"<!-- results of {study.name} -->\n", f"\n<!-- end of results of {study.name} -->"
    text = path.read_text()
    if start not in text or end not in text:
        raise ValueError(f"{path} has no place for the results: expected {start.strip()} and {end.strip()}")
    before, rest = text.split(start)
    section = readme_results(study, found, datetime.date.today())
    write_text(path, before + start + section + end + rest.split(end)[1])


def write_gallery(study: Study) -> None:
    """Copy what one wants to see without running to gallery/<study>/, with the date and what made it."""
    folder = GALLERY / study.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = sorted(p.name for p in study.directory.glob("*.png"))
    for name in [*names, *(p.name for p in study.directory.glob("task_level_*.csv")), "summary.md"]:
        shutil.copy(study.directory / name, folder / name)
    lines = [
        f"# Gallery: {study.description}",
        "",
        f"Made on {datetime.date.today()} by `python -m notebooks_src.report {study.name} --gallery`, after "
        f"all notebooks of the study `{study.name}` were executed."
        + (f" **Every number and figure here is of stand-ins.** {study.note}" if study.stand_in else ""),
        "",
        "What they say in short: [summary.md](summary.md).",
        "",
        *(f"## {Path(name).stem}\n\n![{Path(name).stem}]({name})\n" for name in names),
    ]
    write_text(folder / "README.md", "\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="miniature")
    parser.add_argument(
        "--gallery", action="store_true", help="also into the repository: gallery/<study>/ and README.md"
    )
    options = parser.parse_args(arguments)
    study = load_study(options.study)
    found = write_report(study)
    print(summary_text(study, found))
    print(f"page: {study.directory / 'index.html'}")
    if options.gallery:
        write_gallery(study)
        write_readme_results(study, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
