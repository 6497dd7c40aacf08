"""Acoustic events: ESC-50 and GISE-51."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from aape.datasets.source import Rows, Source


def esc50(source: Source) -> Rows:
    """ESC-50 (Piczak 2015): `meta/esc50.csv` and `audio/`, five official folds; group = Freesound recording."""
    meta = source.companion("esc50.csv") or next(iter(sorted(source.root.glob("*/meta/esc50.csv"))), None)
    if meta is None:
        raise FileNotFoundError(
            f"no meta/esc50.csv under {source.root}; give the unpacked folder of ESC-50 (ESC-50-<commit>/)"
        )
    table = pd.read_csv(meta, dtype={"filename": str, "src_file": str})
    wanted = {"filename", "fold", "category", "src_file"}
    if not wanted <= set(table):
        raise ValueError(f"{meta}: expected columns {', '.join(sorted(wanted))}, found {', '.join(table.columns)}")
    rows = pd.DataFrame(
        {"file_name": "audio/" + table.filename, "label": table.category, "fold": table.fold, "group": table.src_file}
    )
    # Unpacked, the archive is a folder of its own: ESC-50-<commit>/ or ESC-50-master/.
    inside = meta.parent.parent
    base = inside.relative_to(source.root).as_posix() if inside.is_relative_to(source.root) else "."
    return Rows(
        rows,
        origin="meta/esc50.csv of the dataset, official folds",
        bases=("" if base == "." else base, ""),
        shortest=4.9,
    )


_GISE_SPLITS = {"train": "train", "val": "valid", "eval": "test"}


def gise51(source: Source) -> Rows:
    """GISE-51 (Yadav and Foster 2021, arXiv 2103.12306): `isolated_events/<train|val|eval>/<label>/<clip>`.

    That is the layout that the dataset's own generate_mixtures.py and Scaper read. A split folder without folders of
    labels needs a `<split>.csv` beside it or in `meta/`: file name first, and a column `label`. Group = Freesound
    id, the leading number of a clip's name; a name without one is its own group.
    """
    base = next((b for b in ("isolated_events", "") if (source.root / b / "train").is_dir()), None)
    if base is None:
        raise FileNotFoundError(
            f"no isolated_events/train under {source.root}; unpack isolated_events.tar.gz of Zenodo record 4593514"
        )
    frames = []
    for theirs, ours in _GISE_SPLITS.items():
        folder = f"{base}/{theirs}".strip("/")
        inside = [f for f in source.index.files if f.startswith(f"{folder}/")]
        if not inside:
            raise FileNotFoundError(f"no audio under {source.root / folder}; expected GISE-51's {theirs} events")
        if all(f.count("/") == folder.count("/") + 1 for f in inside):
            frames.append(_gise_list(source, folder, theirs).assign(split=ours))
        else:
            labels = [f.removeprefix(f"{folder}/").split("/")[0] for f in inside]
            frames.append(pd.DataFrame({"file_name": inside, "label": labels, "split": ours}))
    rows = pd.concat(frames, ignore_index=True)
    rows["group"] = [_freesound_id(name) for name in rows.file_name]
    notes = [
        "clips of 5.0 s: our choice, the published study's is not stated where we could read it",
        "group is the leading number of the file name, taken for the Freesound id that FSD50K names its clips by",
    ]
    class_map = source.companion("lbl_map.json")
    if class_map is not None:
        named = set(json.loads(class_map.read_text(encoding="utf-8")))
        odd = sorted(named ^ set(rows.label))
        if odd:
            notes.append(f"classes differ from {class_map.name} in: {', '.join(odd)}")
    return Rows(rows, origin="folders train, val, eval of the dataset", notes=tuple(notes))


def _gise_list(source: Source, folder: str, split: str) -> pd.DataFrame:
    path = source.companion(f"{split}.csv", f"isolated_events/{split}.csv")
    if path is None:
        raise FileNotFoundError(
            f"{source.root / folder} has no folders named after classes, and there is no {split}.csv in "
            f"{source.root} or its meta/ to say which clip belongs to which class"
        )
    table = pd.read_csv(path, dtype=str)
    label = next((c for c in ("label", "labels", "category", "class") if c in table), None)
    if label is None:
        raise ValueError(f"{path}: expected a column label, found {', '.join(table.columns)}")
    names = table.iloc[:, 0].map(lambda n: n if Path(n).suffix else f"{n}.wav")
    return pd.DataFrame({"file_name": f"{folder}/" + names.map(lambda n: Path(n).name), "label": table[label]})


def _freesound_id(name: str) -> str:
    stem = Path(name).stem
    match = re.match(r"\d+", stem)
    return match.group() if match else stem
