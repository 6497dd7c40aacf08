"""The paper's published values beside a study's: coverage, neurons per class, and the two lists of neurons.

Kawamura, Niizumi, Ono 2026, arXiv 2602.15307. A study says `reproduces_paper: true` to be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from aape.artifacts import Artifacts
from aape.selection import WEAK_FILTERS, select
from aape.study import Study

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
    """Why a study's figure cannot be held against the published one; empty if it can."""
    if artifacts is None:
        return "no artifacts"
    if study.stand_in:
        return "not comparable: stand-ins"
    weights, shape = artifacts.manifest.get("weights", {}), tuple(artifacts.over_zero.shape[:2])
    if not weights or weights.get("source") == "random":
        return "not comparable: weights random or unknown"
    return "" if shape == SHAPE else f"not comparable: {shape} layers and neurons"


def published_values(
    study: Study, rows: Mapping[Place, Mapping[str, Any]], artifacts: Mapping[Place, Artifacts]
) -> pd.DataFrame:
    """The paper's coverage and neurons per class beside the study's (rows: the task-level statistics)."""
    ssl, sl = _by_role(study)
    wanted = [("coverage", task, ssl, "about 100 %") for task in study.tasks]
    wanted += [("coverage", "vc1_country", sl, "49 %")]
    wanted += [("per_class_mean", "cremad", ssl, "172.0"), ("per_class_mean", "esc50", ssl, "37.9")]
    table = []
    for column, task, model, paper in wanted:
        if task in study.tasks and model:
            row = rows.get((task, model))
            own = "-" if row is None else f"{row[column]:.0%}" if column == "coverage" else f"{row[column]:.1f}"
            what = "coverage" if column == "coverage" else "neurons per class"
            table.append(
                {
                    "figure": f"{what}, {study.encoder(model).label}, {task}",
                    "paper": paper,
                    "this study": own,
                    "remark": not_comparable(study, artifacts.get((task, model))) or "comparable",
                }
            )
    return pd.DataFrame(table)


def published_lists(study: Study, artifacts: Mapping[Place, Artifacts]) -> pd.DataFrame:
    """The paper's two lists of shared neurons beside ours: both filters, both meanings of "shared by these classes".

    The row in which ours and the published neurons agree says which definitions the authors used.
    """
    ssl, _ = _by_role(study)
    table = []
    for task, *names in LISTS:
        if task not in study.tasks:
            continue
        found = artifacts.get((task, ssl))
        reason = not_comparable(study, found)
        theirs = published_neurons(task, *names)
        for weak_filter, exclusive in itertools.product(WEAK_FILTERS, (False, True)):
            entry = {
                "task": task, "classes": " and ".join(names), "filter": weak_filter,
                "meaning": "exactly these" if exclusive else "at least these", "published": len(theirs),
                "ours": None, "in both": None, "remark": reason or "comparable",
            }  # fmt: skip
            table.append(entry)
            if found is None or reason:
                continue
            alike = [[c for c in found.classes if c.lower().startswith(name.lower()[:3])] for name in names]
            if not all(alike):
                entry["remark"] = f"no class named {' or '.join(names)}"
                continue
            chosen = select(found, rate=study.rate(task), quantile=study.selection.quantile, weak_filter=weak_filter)
            shared = chosen.shared([first for first, *_ in alike], exclusive=exclusive)
            ours = {(int(layer), int(neuron)) for layer, neuron in shared}
            entry |= {"ours": len(ours), "in both": len(ours & theirs)}
    return pd.DataFrame(table)


def _by_role(study: Study) -> list[str]:
    """The encoders that stand for the paper's SSL and SL model; "" where there is none."""
    found = {spec.role: name for name, spec in reversed(study.encoders.items())}
    return [found.get("ssl", ""), found.get("sl", "")]
