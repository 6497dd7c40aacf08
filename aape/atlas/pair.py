"""One model on one task in the atlas: which clips are shown, the pass over them, and the files that come of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import aape
from aape.artifacts import Artifacts
from aape.atlas.maps import BATCH, batch_maps, grid_of, packed, pooled
from aape.atlas.record import (
    BARS,
    POOL,
    SCHEMA,
    Heard,
    b64,
    bytes_of,
    chance_bands,
    choose_clips,
    crowd,
    histogram,
    nearest,
)  # fmt: skip
from aape.atlas.sound import Pictures, encoded, keep, sound_format, wave_hash
from aape.atlas.tables import SCORES, class_chance, effects, rounded, study_tables, task_chance
from aape.attribution import FOLDER, attributed
from aape.encoder import Encoder, full_precision
from aape.files import Cache, sha256_of, write_text
from aape.selection import Selection
from aape.task import Task, prefetched
from aape.trials import check_belong_together
from aape.units import share_of_groups

FREQUENCIES, TIMES = 12, 64  # cells of a record's map, at most
CELLS = 8192  # of all maps of a record together, which keeps it below 8 kB
MAP_VALUES = 1 << 26  # activations that a batch's maps hold at once
WHOLE_TABLE = 6_000_000  # probabilities by neuron and class in pair.js; of more, the TOP largest of each neuron
TOP = 16


@dataclass(frozen=True)
class About:
    """What pages call a model on a task, and the study that they belong to.

    Attributes:
        study: name; an atlas holds one study.
        model, task: short names, as they stand in addresses and in the study's tables.
        label, title: of the model and of the task.
        role: of the model: "ssl", "sl", "untrained" or None.
        note: one sentence on the study, shown on the first page.
        stand_in: results of stand-in sounds or models, said on every page.
    """

    study: str
    model: str
    task: str
    label: str
    title: str
    role: str | None = None
    note: str = ""
    stand_in: bool = False

    @property
    def folder(self) -> str:
        """Name of the pair's folder."""
        return f"{_slug(self.model)}-{_slug(self.task)}"


def _slug(name: str) -> str:
    """A name as a part of a file name: as it is where it is plain, else with a hash that keeps it apart."""
    plain = re.sub(r"[^a-z0-9]+", "_", unicodedata.normalize("NFKC", name).lower()).strip("_")[:40]
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("_")


def write_script(out: Path, key: str, content: Any) -> None:
    """`<out>/<key>.js`, a script that hands `content` to the page."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    write_text(out / f"{key}.js", f"aapeAtlas({json.dumps(key)},{text});\n")


@dataclass(frozen=True)
class Shown:
    """What the pass over the shown clips left.

    Attributes:
        clips: position of each among `Heard.rows`, rising.
        files: of each [sound or None, picture or None, seconds, complaint or None].
        maps: float16 [neurons and their clips, frequency, time]; None without a grid.
    """

    clips: list[int]
    files: list[list[Any]]
    maps: np.ndarray | None


class Pair:
    """One model on one task, on its way into the atlas.

    Args: as `build_atlas`, its defaults filled in; `out` is the atlas' folder.
    """

    def __init__(
        self, artifacts: Artifacts, encoder: Encoder, task: Task, selection: Selection, about: About, out: Path
    ) -> None:
        self.encoder, self.task, self.about, self.out = encoder, task, about, out
        self.artifacts, self.heard = artifacts, Heard.of(artifacts, selection)
        self.task_row = check_belong_together(encoder, task, artifacts) if artifacts.has_counts else np.zeros(0, int)
        self.grid, self.cell_seconds = None, 0.0
        if encoder.token_grid is not None:
            rows, columns = grid_of(encoder, task.samples(encoder.sample_rate))[1]
            self.cell_seconds = encoder.cell_seconds or task.clip_seconds / columns
            # some models pad every clip to their own length, which nobody wants to see
            self.grid = (rows, min(columns, math.ceil(task.clip_seconds / self.cell_seconds)))
        self.pictures = Pictures(encoder)

    def build(self, index: dict[str, Any], neurons: np.ndarray, clips: int) -> None:
        """Write the pair's files and put it into the index, unless it is there and up to date.

        Args:
            index: the atlas'; it is changed. neurons: int64 [k, 2] that get a page. clips: shown of each.
        """
        heard, name = self.heard, self.about.folder
        read = [*study_tables(self.artifacts, self.about.task).values(), *(self.artifacts.path / FOLDER).glob("*.npz")]
        tables = [sha256_of(path) for path in sorted(read) if path.is_file()]
        members = hashlib.sha256(np.packbits(heard.selection.members).tobytes()).hexdigest()
        made_of = [SCHEMA, aape.__version__, asdict(self.about), clips, neurons.tolist(), members, tables]
        made_of += [self.artifacts.manifest.get("checksums", str(self.artifacts.path))]
        identity = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        pairs = {entry["folder"]: entry for entry in index["pairs"]}
        there, mine = pairs.get(name, {"identity": None}), self.artifacts.path.resolve().name
        if there.get("artifacts", mine) != mine:
            raise ValueError(
                f"{self.out} shows {there['artifacts']} as {there['m']!r} on {there['t']!r} already; to show {mine} too, "
                "give it another name with about=About(...)"
            )
        if there["identity"] == identity and not there["missing"] and (self.out / name / "pair.js").is_file():
            return
        for folder in (name, "clips"):
            (self.out / folder).mkdir(exist_ok=True)
        flat = neurons[:, 0] * heard.width + neurons[:, 1]
        choices, counts = self._choose(flat, clips)
        shown = self._listen(neurons, choices, identity, clips)
        records = self._records(flat, choices, counts, shown)
        pair = self._pair(neurons, shown, records, clips)
        for layer in np.unique(neurons[:, 0]).tolist():
            of_layer = {str(r["n"]): r for r in records if r["l"] == layer}
            write_script(self.out, f"{name}/L{layer:02}", {"v": SCHEMA, "records": of_layer})
        write_script(self.out, f"{name}/pair", pair)
        complaints = [complaint for *_, complaint in shown.files if complaint]
        entry = {"identity": identity, "artifacts": mine, "missing": len(complaints), "pages": len(neurons)}
        index["pairs"] = list((pairs | {name: self._entry(pair["classes"]) | entry}).values())
        write_script(self.out, "index", index)
        shutil.rmtree(self.out / ".partial" / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # another pair was cut off, or nothing was begun
            (self.out / ".partial").rmdir()
        if complaints:
            warnings.warn(f"{name}: {len(complaints)} clips are shown without sound: {complaints[0]}", stacklevel=3)

    def _choose(self, flat: np.ndarray, clips: int) -> tuple[list[list[tuple[int, int]]], np.ndarray]:
        """For each neuron its (clip, role)s, clips as positions in `heard.rows`; and the counts [clips, k]."""
        heard = self.heard
        if not len(heard.rows):
            return [[] for _ in flat], np.zeros((0, len(flat)), np.uint8)
        counts = heard.counts(flat, heard.rows)
        pool = np.zeros(len(heard.rows), dtype=bool)
        pool[np.random.default_rng(0).permutation(len(pool))[:POOL]] = True
        choices = []
        for column, neuron in zip(counts.T, flat.tolist(), strict=True):
            inside = np.isin(heard.labels, heard.own(neuron))
            rng = np.random.default_rng(neuron)
            choices.append(choose_clips(column / heard.tokens, inside, heard.groups, pool, clips, rng))
        return choices, counts

    def _shape(self, clips: int) -> tuple[int, int]:
        """(frequency, time) of a record's maps."""
        assert self.grid is not None
        rows = min(self.grid[0], FREQUENCIES)
        return rows, max(1, min(self.grid[1], TIMES, CELLS // clips // rows))

    def _listen(self, neurons: np.ndarray, choices: list[list[tuple[int, int]]], identity: str, clips: int) -> Shown:
        """Sounds, pictures and maps of the clips that are shown, from one pass over them, kept batch by batch."""
        wanted: dict[int, list[int]] = {}  # clip -> places of its neurons
        for k, chosen in enumerate(choices):
            for clip, _ in chosen:
                wanted.setdefault(clip, []).append(k)
        shown = sorted(wanted)
        size = BATCH
        if self.grid is not None:
            size = int(np.clip(MAP_VALUES // max(1, len(neurons) * math.prod(self.grid)), 1, BATCH))
        batches = [shown[i : i + size] for i in range(0, len(shown), size)]
        cache = Cache(self.out / ".partial" / self.about.folder)
        done = [self._kept(cache.get(str(i), [identity, batch])) for i, batch in enumerate(batches)]
        todo = [i for i, arrays in enumerate(done) if not arrays]
        rows = [self.task_row[self.heard.rows[batches[i]]] for i in todo]
        bar = tqdm(total=len(shown), unit="clip", desc=f"atlas, {self.about.folder}", disable=None)
        with bar, full_precision(), ThreadPoolExecutor(1) as beside:
            bar.update(len(shown) - sum(map(len, rows)))
            reader = prefetched(self.task, rows, self.encoder.sample_rate)
            for i, (waves, valid, complaints) in zip(todo, reader, strict=True):
                files = beside.submit(self._files, batches[i], waves, valid, complaints)
                arrays = {}
                if self.grid is not None:
                    maps = batch_maps(self.encoder, neurons, torch.from_numpy(waves))[..., : self.grid[1]]
                    maps = pooled(maps, *self._shape(clips))
                    each = [maps[b, wanted[clip]] for b, clip in enumerate(batches[i])]
                    arrays = {"maps": np.concatenate(each).astype(np.float16)}
                done[i] = arrays | files.result()
                cache.put(str(i), [identity, batches[i]], done[i])
                bar.update(len(batches[i]))
        columns = [np.concatenate([a[key] for a in done]).tolist() if done else [] for key in FILES]
        files_of = [
            [name or None, image or None, t, complaint or None]
            for name, image, t, complaint in zip(*columns, strict=True)
        ]
        if self.grid is None or not done:
            return Shown(shown, files_of, None)
        order = {pair: i for i, pair in enumerate((k, clip) for clip in shown for k in wanted[clip])}
        by_neuron = [order[k, clip] for k, chosen in enumerate(choices) for clip, _ in chosen]
        return Shown(shown, files_of, np.concatenate([a["maps"] for a in done])[by_neuron])

    def _kept(self, arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """A batch that was done before, if its files are still there and nothing was amiss."""
        if arrays is None or any(arrays["complaints"].tolist()):
            return {}
        names = [*arrays["sounds"].tolist(), *arrays["pictures"].tolist()]
        return arrays if all((self.out / "clips" / name).is_file() for name in names) else {}

    def _files(
        self, batch: list[int], waves: np.ndarray, valid: np.ndarray, complaints: dict[int, str]
    ) -> dict[str, np.ndarray]:
        """Write sounds and pictures of a batch: names, seconds of sound, and what is wrong with a clip."""
        rate, folder = self.encoder.sample_rate, self.out / "clips"
        sounds, pictures, said = [], [], []
        for b, clip in enumerate(batch):
            said.append(complaints.get(b) or self._changed(int(self.heard.rows[clip])))
            wave, sound, image = waves[b, : valid[b]], "", ""
            if not said[b]:
                name = wave_hash(wave, rate)
                look = hashlib.sha256(f"{name} {len(waves[b])} {self.pictures.identity}".encode()).hexdigest()[:16]
                sound = keep(folder / f"{name}.{sound_format(rate)}", partial(encoded, wave, rate))
                image = keep(folder / f"{look}.png", partial(self.pictures.of, waves[b]))
            sounds.append(sound)
            pictures.append(image)
        found = [np.array(sounds, str), np.array(pictures, str), np.round(valid / rate, 3), np.array(said, str)]
        return dict(zip(FILES, found, strict=True))

    def _changed(self, row: int) -> str:
        """A complaint if a clip's file is not the one that was counted, else nothing."""
        name = self.task.files[int(self.task_row[row])]
        if sha256_of(self.task.audio_dir / name) == self.artifacts.manifest["clips"]["sha256"][row]:
            return ""
        return f"{name} has changed since it was counted; collect again"

    def _records(
        self, flat: np.ndarray, choices: list[list[tuple[int, int]]], counts: np.ndarray, shown: Shown
    ) -> list[dict[str, Any]]:
        """The record of every neuron that has a page."""
        heard, classes = self.heard, self.heard.p.shape[1]
        number = {clip: i for i, clip in enumerate(shown.clips)}
        rank = np.argsort(np.argsort(heard.aape, kind="stable"), kind="stable") + 1
        weight = np.full(classes, 1 / classes)
        if self.artifacts.manifest:
            weight = np.bincount(self.artifacts.labels, self.artifacts.tokens, classes) / self.artifacts.tokens.sum()
        counted = len(heard.rows) > 0 and len(flat) > 0
        if counted:
            low, high = chance_bands(heard, counts)
            rates = counts / heard.tokens[:, None].astype(np.float32)
            spread, near = share_of_groups(rates, heard.labels, heard.groups), nearest(heard, flat)
        known = attributed(self.encoder, self.artifacts) if counted else None
        attribution = {by: a.reshape(heard.p.shape) for by, a in (known or {}).items()}
        records, done = [], 0
        for k, neuron in enumerate(flat.tolist()):
            p, own = heard.p[neuron], heard.own(neuron)
            bars = np.arange(classes) if classes <= BARS else np.sort(np.argsort(-p, kind="stable")[:BARS])
            record: dict[str, Any] = {
                "v": SCHEMA, "l": neuron // heard.width, "n": neuron % heard.width, "own": own.tolist(),
                "aape": rounded(heard.aape[neuron], 5), "rank": int(rank[neuron]), "density": rounded(p @ weight, 3),
                "bars": {"c": None if classes <= BARS else bars.tolist(), "p": bytes_of(p[bars])}, "clips": [],
            }  # fmt: skip
            if counted:
                mine = rates[:, k]
                record["clips"] = [[number[clip], role, rounded(mine[clip], 3)] for clip, role in choices[k]]
                record["bars"] |= {"low": bytes_of(low[bars, k]), "high": bytes_of(high[bars, k])}
                record["histogram"] = histogram(mine, np.isin(heard.labels, own))
                record["groups"] = rounded(spread[k], 3)  # None where every clip is a group of its own
                record["crowd"] = [] if record["groups"] is None else crowd(mine, heard.groups)
                record["near"] = [[*divmod(other, heard.width), rounded(r, 3)] for other, r in near[k]]
            if attribution:  # a class without clips in training has none, NaN
                record["attribution"] = {by: b64(a[neuron, bars].astype(np.float32)) for by, a in attribution.items()}
                lower = attribution["zero"][:, own] < attribution["zero"][neuron, own]
                record["attribution"]["rank"] = (1 + lower.sum(axis=0)).tolist()
            if shown.maps is not None:
                maps = shown.maps[done : done + len(choices[k])].astype(np.float32)
                done += len(choices[k])
                record["top"] = rounded(maps.max(initial=0.0))
                record["maps"] = packed(maps, float(maps.max(initial=0.0)))
            records.append(record)
        return records

    def _pair(self, neurons: np.ndarray, shown: Shown, records: list[dict[str, Any]], clips: int) -> dict[str, Any]:
        """Everything on the pair but the records: classes, clips, and all neurons for the search."""
        heard, artifacts, about = self.heard, self.artifacts, self.about
        table = heard.table
        pages: dict[str, list[int]] = {}
        for layer, neuron in neurons.tolist():
            pages.setdefault(str(layer), []).append(neuron)
        content: dict[str, Any] = {
            "v": SCHEMA, "layers": list(artifacts.layers), "width": heard.width, "pages": pages,
            "classes": self._classes(), "effects": effects(artifacts, about.task, about.model),
            "seconds": self.task.clip_seconds, "sound": sound_format(self.encoder.sample_rate),
            "own_picture": self.pictures.own, "groups": [], "clips": [],
            "aape": b64(heard.aape.astype(np.float32)), "members": {
                "at": b64((table.layer * heard.width + table.neuron).to_numpy(np.uint32)),
                "c": b64(table.c.to_numpy(np.uint16)), "q": b64(table.q.to_numpy(np.float32)),
                "calibrated": b64(table.calibrated.fillna(2).to_numpy(np.uint8)),
                "out": bytes_of(table.p_outside.fillna(0).to_numpy()),
                **{score: b64(table[score].to_numpy(np.float32)) for score in SCORES},
            },
        }  # fmt: skip
        if heard.p.size <= WHOLE_TABLE:
            content["p"] = bytes_of(heard.p)
        else:
            top = np.argpartition(-heard.p, TOP - 1, axis=1)[:, :TOP]
            largest = bytes_of(np.take_along_axis(heard.p, top, axis=1))
            content["p_top"] = {"k": TOP, "c": b64(top.astype(np.uint16)), "p": largest}
        if shown.maps is not None and self.grid is not None:
            content |= {"grid": self._shape(clips), "map_seconds": self.cell_seconds * self.grid[1]}
        if shown.clips:
            groups = heard.groups[shown.clips]
            used = sorted({*groups.tolist(), *(g for r in records for g, _ in r["crowd"])})
            number = {g: i for i, g in enumerate(used)}
            for record in records:
                record["crowd"] = [[number[g], n] for g, n in record["crowd"]]
            rows = heard.rows[shown.clips]
            columns = [
                heard.labels[shown.clips],
                [number[g] for g in groups],
                artifacts.splits[rows],
                artifacts.files[rows],
            ]
            of_clips = zip(shown.files, *(np.asarray(c).tolist() for c in columns), strict=True)
            known = artifacts.manifest["group_column"] is not None  # else every clip is its own, and files say more
            content["groups"] = np.unique(artifacts.groups)[used].tolist() if known else [""] * len(used)
            content["clips"] = [[*files, *rest] for files, *rest in of_clips]
        return content

    def _classes(self) -> list[dict[str, Any]]:
        """Each class's name, clips, neurons, how many are calibrated, and what permuted labels give."""
        table, chance = self.heard.table, class_chance(self.artifacts, self.about.task, self.about.model)
        by_class = table.groupby("c").calibrated
        neurons, unknown, sure = by_class.size(), by_class.apply(lambda x: x.isna().any()), by_class.sum()
        clips = np.bincount(self.artifacts.labels).tolist() if self.artifacts.manifest else {}
        found = []
        for c, name in enumerate(self.artifacts.classes):
            known = not unknown.get(c, table.calibrated.isna().all())
            entry = {
                "name": name, "clips": clips[c] if clips else None, "neurons": int(neurons.get(c, 0)),
                "calibrated": int(sure.get(c, 0)) if known else None, "chance": chance.get(name),
            }  # fmt: skip
            found.append(entry)
        return found

    def _entry(self, classes: list[dict[str, Any]]) -> dict[str, Any]:
        """The pair's line in the index."""
        about, selection = self.about, self.heard.selection
        return {
            "folder": about.folder, "m": about.model, "t": about.task, "label": about.label, "title": about.title,
            "role": about.role, "layers": len(self.artifacts.layers), "width": self.heard.width,
            "classes": [[c["name"], c["neurons"], c["calibrated"]] for c in classes],
            "selected": int(selection.selected.sum()), "coverage": rounded(selection.coverage),
            "chance": task_chance(self.artifacts, about.task), "best": _best(self.heard.table),
        }  # fmt: skip


FILES = ("sounds", "pictures", "seconds", "complaints")


def _best(table: pd.DataFrame) -> list[Any] | None:
    """[layer, neuron, class, p - p outside] of the neuron to start with: the strongest, of one class only if there is."""
    single = table[~table.duplicated(["layer", "neuron"], keep=False)]
    if single.empty or (single.calibrated.iloc[0] != 1 and table.calibrated.iloc[0] == 1):
        single = table
    if single.empty:
        return None
    return [*single[["layer", "neuron", "c"]].iloc[0].tolist(), rounded((single.p - single.p_outside).iloc[0], 3)]
