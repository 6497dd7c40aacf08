"""The paper's published values and a study's: coverage, neurons per class, and the two lists of neurons.

Kawamura, Niizumi, Ono 2026, arXiv 2602.15307. A study says `reproduces_paper: true` to be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.neurons.selection import WEAK_FILTERS, select
from aape.study.study import Study

LISTS = {
    # EVAR's configs m2d_abl_neuron1 and m2d_abl_neuron2; layer,neuron, counted from 0
    ("cremad", "ANG", "HAP"): (
        "0,1 0,112 0,793 3,382 3,741 3,755 3,1959 3,2097 3,2233 5,1430 5,2471 6,1196 7,638 7,1157 7,2499 8,386 "
        "8,2554 9,347 10,393 10,2120 10,2369 10,2663"
    ),
    ("gtzan", "jazz", "classical"): (
        "3,2540 4,270 4,827 5,1521 5,2462 6,907 6,2415 6,2852 7,540 7,763 7,2466 7,2756 8,193 8,348 8,690 8,1315 "
        "8,1669 8,2804 9,328 9,596 9,660 9,1720 10,1521 10,1861 10,2798 11,1030"
    ),
}
SHAPE = (12, 3072)  # layers and neurons of the paper's models
Place = tuple[str, str]  # task, model


def published_neurons(task: str, first: str, second: str) -> set[tuple[int, int]]:
    """The published neurons shared by two classes, as (layer, neuron)."""
    pairs = (pair.split(",") for pair in LISTS[task, first, second].split())
    return {(int(layer), int(neuron)) for layer, neuron in pairs}


def not_comparable(study: Study, artifacts: Artifacts | None) -> str:
    """Why a study's number cannot be compared with the published one; empty if it can."""
    if artifacts is None:
        return "no artifacts"
    if study.substitute:
        return "not comparable: substitute models or sounds"
    if artifacts.manifest.get("weights", {}).get("source", "random") == "random":
        return "not comparable: weights random or unknown"
    shape = tuple(artifacts.over_zero.shape[:2])
    return "" if shape == SHAPE else f"not comparable: {shape} layers and neurons"


def published_values(
    study: Study, results: Mapping[Place, Any], artifacts: Mapping[Place, Artifacts]
) -> pd.DataFrame:
    """The paper's coverage and neurons per class, and the study's; results: see `aape.study.task_result.TaskResult`."""
    if not study.reproduces_paper:
        return pd.DataFrame()
    ssl = _model_of_role(study, "ssl")
    sl = _model_of_role(study, "sl")
    published = [("coverage", task, ssl, "about 100 %") for task in study.tasks]
    published.append(("coverage", "vc1_country", sl, "49 %"))
    published.append(("per_class_mean", "cremad", ssl, "172.0"))
    published.append(("per_class_mean", "esc50", ssl, "37.9"))
    rows = []
    for column, task, model, value in published:
        if task not in study.tasks or not model:
            continue
        measure, form = (
            ("coverage", "{:.0%}") if column == "coverage" else ("neurons per class", "{:.1f}")
        )
        result = results.get((task, model))
        rows.append(
            {
                "figure": f"{measure}, {study.encoder(model).label}, {study.task(task).title}",
                "paper": value,
                "this study": "-" if result is None else form.format(result.row[column]),
                "remark": not_comparable(study, artifacts.get((task, model))) or "comparable",
            }
        )
    return pd.DataFrame(rows)


def published_lists(study: Study, artifacts: Mapping[Place, Artifacts]) -> pd.DataFrame:
    """The paper's two lists of shared neurons and ours, with both filters and both meanings of "shared by these classes".

    The row in which ours and the published neurons agree tells which definitions the authors used.
    """
    if not study.reproduces_paper:
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    for (task, *names), weak_filter, exclusive in itertools.product(
        LISTS, WEAK_FILTERS, (False, True)
    ):
        if task not in study.tasks:
            continue
        found = artifacts.get((task, _model_of_role(study, "ssl")))
        published = published_neurons(task, *names)
        remark = not_comparable(study, found)
        ours = None
        if found is not None and not remark:
            classes = [
                name
                for name in (_class_named(found, published) for published in names)
                if name is not None
            ]
            if len(classes) < len(names):
                remark = f"no class named {' or '.join(names)}"
            else:
                settings = study.select_by(task) | {"weak_filter": weak_filter}
                shared = select(found, **settings).shared(classes, exclusive=exclusive)
                ours = {(int(layer), int(neuron)) for layer, neuron in shared}
        rows.append(
            {
                "task": task,
                "classes": " and ".join(names),
                "filter": weak_filter,
                "meaning": "exactly these" if exclusive else "at least these",
                "published": len(published),
                "ours": None if ours is None else len(ours),
                "in both": None if ours is None else len(ours & published),
                "remark": remark or "comparable",
            }
        )
    return pd.DataFrame(rows)


def _class_named(artifacts: Artifacts, name: str) -> str | None:
    """The class whose name begins like a published one: ANG is also called angry or anger."""
    for candidate in artifacts.classes:
        if candidate.lower().startswith(name.lower()[:3]):
            return candidate
    return None


def _model_of_role(study: Study, role: str) -> str:
    """The encoder in the role of the paper's SSL or SL model; "" if there is none."""
    for name, spec in study.encoders.items():
        if spec.role == role:
            return name
    return ""
