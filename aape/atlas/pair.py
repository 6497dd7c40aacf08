"""One model on one task in the atlas: which clips are shown, the pass over them, and the files that come of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import unicodedata
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import aape
from aape.artifacts.belonging import check_belong_together
from aape.artifacts.folder import Artifacts
from aape.atlas.maps import BATCH, grid_of, maps_of_pairs, pooled
from aape.atlas.record import POOL, SCHEMA, Heard, b64, bytes_of, choose_clips, records
from aape.atlas.sound import Pictures, encoded, keep, sound_format, wave_hash
from aape.atlas.study_tables import SCORES, class_chance, effects, rounded, study_tables, task_chance
from aape.causal.attribution import FOLDER, attributed
from aape.encoders.encoder import Encoder, full_precision
from aape.files import Cache, sha256_of, write_text
from aape.neurons.selection import Selection
from aape.sounds.task import Task, prefetched

FREQUENCIES, TIMES = 12, 64  # cells of a record's map, at most
CELLS = 8192  # of all maps of a record together, which keeps it below 8 kB
MAP_VALUES = 1 << 26  # activations that a batch's maps hold at once
# probabilities by neuron and class in pair.js; of more, the TOP largest of each neuron, and those of its own classes
WHOLE_TABLE = 6_000_000
TOP = 16
Batch = tuple[np.ndarray, np.ndarray, dict[int, str]]  # waves [batch, samples], valid samples, complaints


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


def read_script(out: Path, key: str) -> Any:
    """What `write_script` was given."""
    text = (out / f"{key}.js").read_text()
    return json.loads(text.removeprefix(f"aapeAtlas({json.dumps(key)},").removesuffix(");\n"))


class Pair:
    """One model on one task, on its way into the atlas.

    Args: as `build_atlas`, its defaults filled in; `out` is the atlas' folder.
    """

    def __init__(
        self, artifacts: Artifacts, encoder: Encoder, task: Task, selection: Selection, about: About, out: Path,
        clips: int = 20,
    ) -> None:  # fmt: skip
        if not 10 <= clips <= 60:
            raise ValueError(f"clips: expected 10 to 60 for each neuron, found {clips}")
        if selection.classes != artifacts.classes or selection.members.shape != tuple(artifacts.over_zero.shape):
            raise ValueError(f"the selection is not of {artifacts.path}: make it with select() from these artifacts")
        self.task_row = check_belong_together(encoder, task, artifacts) if artifacts.has_counts else np.zeros(0, int)
        self.encoder = encoder.with_layers(artifacts.layers) if artifacts.has_counts else encoder
        self.task, self.about, self.out, self.clips = task, about, out, clips
        self.artifacts, self.heard = artifacts, Heard.of(artifacts, selection)
        self.grid, self.shape = None, (0, 0)  # (frequency, time) of the model's maps, and of a record's
        if encoder.token_grid is not None:
            rows, columns = grid_of(encoder, task.samples(encoder.sample_rate))[1]
            self.cell_seconds = encoder.cell_seconds or task.clip_seconds / columns
            # some models pad every clip to their own length, which nobody wants to see
            self.grid = rows, min(columns, math.ceil(task.clip_seconds / self.cell_seconds))
            rows = min(rows, FREQUENCIES)
            self.shape = rows, max(1, min(self.grid[1], TIMES, CELLS // clips // rows))
        self.pictures = Pictures(encoder)

    def build(self, there: dict[str, Any] | None, neurons: np.ndarray) -> dict[str, Any]:
        """Write the pair's files, unless they are there and up to date, and return its line of the index.

        Args:
            there: its line in the index so far. neurons: int64 [k, 2] that get a page.
        """
        heard, name, mine = self.heard, self.about.folder, self.artifacts.path.resolve().name
        read = [*study_tables(self.artifacts, self.about.task).values(), *(self.artifacts.path / FOLDER).glob("*.npz")]
        made_of = [SCHEMA, aape.__version__, asdict(self.about), self.clips, neurons.tolist()]
        made_of += [hashlib.sha256(np.packbits(heard.selection.members).tobytes()).hexdigest()]
        made_of += [sha256_of(path) for path in sorted(read) if path.is_file()]
        made_of += [self.artifacts.manifest.get("checksums", str(self.artifacts.path))]
        identity = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        if there and there["artifacts"] != mine:
            raise ValueError(
                f"{self.out} shows {there['artifacts']} as {there['m']!r} on {there['t']!r} already; to show {mine} too, "
                "give it another name with about=About(...)"
            )
        if there and there["identity"] == identity and not there["missing"] and (self.out / name / "pair.js").is_file():
            return there
        for folder in (name, "clips"):
            (self.out / folder).mkdir(exist_ok=True)
        flat = neurons[:, 0] * heard.width + neurons[:, 1]
        counts = heard.counts(flat, heard.rows)
        choices = self._choose(flat, counts)
        shown, files, maps = self._listen(neurons, choices, identity)
        attribution = attributed(self.encoder, self.artifacts) if self.artifacts.has_counts else None
        made = records(heard, flat, counts, choices, maps, attribution or {})
        for layer in np.unique(neurons[:, 0]).tolist():
            of_layer = {str(r["n"]): r for r in made if r["l"] == layer}
            write_script(self.out, f"{name}/L{layer:02}", {"v": SCHEMA, "records": of_layer})
        classes = self._classes()
        write_script(self.out, f"{name}/pair", self._content(neurons, classes, shown, files))
        shutil.rmtree(self.out / ".partial" / name, ignore_errors=True)
        complaints = [complaint for *_, complaint in files if complaint]
        if complaints:
            warnings.warn(f"{name}: {len(complaints)} clips are shown without sound: {complaints[0]}", stacklevel=3)
        entry = {"identity": identity, "artifacts": mine, "missing": len(complaints), "pages": len(neurons)}
        return self._entry(classes) | entry

    def _choose(self, flat: np.ndarray, counts: np.ndarray) -> list[list[tuple[int, int]]]:
        """For each neuron its (clip, role)s, clips as positions in `heard.rows`."""
        heard = self.heard
        if not len(heard.rows):
            return [[] for _ in flat]
        pool = np.zeros(len(heard.rows), dtype=bool)
        pool[np.random.default_rng(0).permutation(len(pool))[:POOL]] = True
        shown, choices = pool.copy(), []
        for column, neuron in zip(counts.T, flat.tolist(), strict=True):
            inside, rng = heard.inside(heard.own(neuron)), np.random.default_rng(neuron)
            rates = column / heard.tokens
            choices.append(choose_clips(rates, inside, heard.groups, pool, shown, self.clips, rng))
            shown[[clip for clip, _ in choices[-1]]] = True
        return choices

    def _listen(
        self, neurons: np.ndarray, choices: list[list[tuple[int, int]]], identity: str
    ) -> tuple[list[int], list[list[Any]], np.ndarray | None]:
        """One pass over the clips that are shown, kept batch by batch.

        Returns:
            The clips, rising; of each [sound or None, picture or None, seconds, complaint or None]; and float16 maps
            [neurons and their clips, frequency, time], None without a grid.
        """
        wanted: dict[int, list[tuple[int, int]]] = {}  # clip -> its neurons, and where each one's map goes
        for at, (k, clip) in enumerate((k, clip) for k, chosen in enumerate(choices) for clip, _ in chosen):
            wanted.setdefault(clip, []).append((k, at))
        depth = {clip: max(neurons[k, 0] for k, _ in of) for clip, of in wanted.items()}
        shown = sorted(wanted, key=lambda clip: (-depth[clip], clip))  # a batch leaves the model behind its last layer
        maps, size = None, BATCH
        if self.grid is not None and shown:
            most = max(map(len, wanted.values()))  # maps of a clip
            size = int(np.clip(MAP_VALUES // (most * math.prod(self.grid)), 1, BATCH))
            maps = np.zeros((sum(map(len, choices)), *self.shape), np.float16)
        batches = [shown[i : i + size] for i in range(0, len(shown), size)]
        cache = Cache(self.out / ".partial" / self.about.folder)
        done = [self._kept(cache.get(str(i), [identity, batch])) for i, batch in enumerate(batches)]
        todo = [i for i, arrays in enumerate(done) if not arrays]
        rows = [self.task_row[self.heard.rows[batches[i]]] for i in todo]
        bar = tqdm(total=len(shown), unit="clip", desc=f"atlas, {self.about.folder}", disable=None)

        def finish(i: int, heard: Batch, arrays: dict[str, np.ndarray], log_mels: list[np.ndarray]) -> None:
            files = self._files(batches[i], heard, log_mels)
            done[i] = arrays | {"files": np.array(json.dumps(files))}
            cache.put(str(i), [identity, batches[i]], done[i])
            bar.update(len(batches[i]))

        finishing: deque[Future[None]] = deque()  # sounds and pictures are made while the model hears the next clips
        with bar, full_precision(), ThreadPoolExecutor(1) as beside:
            bar.update(len(shown) - sum(map(len, rows)))
            for i, heard in zip(todo, prefetched(self.task, rows, self.encoder.sample_rate), strict=True):
                arrays: dict[str, np.ndarray] = {}
                with self.pictures.overheard(heard[0]) as log_mels:
                    if self.grid is not None:
                        asked = np.array([(b, k) for b, clip in enumerate(batches[i]) for k, _ in wanted[clip]])
                        stop = i != todo[0]  # the first pass also checks the grid
                        waves = torch.from_numpy(heard[0])
                        found = maps_of_pairs(self.encoder, waves, asked[:, 0], neurons[asked[:, 1]], stop)
                        arrays["maps"] = pooled(found[..., : self.grid[1]], *self.shape).astype(np.float16)
                finishing.append(beside.submit(finish, i, heard, arrays, log_mels))
                if len(finishing) > 2:
                    finishing.popleft().result()
            for rest in finishing:
                rest.result()
        for batch, arrays in zip(batches, done, strict=True):
            if maps is not None:
                maps[[at for clip in batch for _, at in wanted[clip]]] = arrays["maps"]
        files = [file for arrays in done for file in json.loads(str(arrays["files"]))]
        by_clip = np.argsort(shown).tolist()
        return [shown[i] for i in by_clip], [files[i] for i in by_clip], maps

    def _kept(self, arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """A batch that was done before, if its files are still there and nothing was amiss."""
        if arrays is None:
            return {}
        files = json.loads(str(arrays["files"]))
        there = all(not said and all((self.out / "clips" / n).is_file() for n in (a, b)) for a, b, _, said in files)
        return arrays if there else {}

    def _files(self, batch: list[int], heard: Batch, log_mels: list[np.ndarray]) -> list[list[Any]]:
        """Write sounds and pictures of a batch: of each clip their names, seconds of sound, and what is wrong with it."""
        waves, valid, complaints = heard
        rate, folder, found = self.encoder.sample_rate, self.out / "clips", []
        for b, row in enumerate(self.heard.rows[batch].tolist()):
            sound = image = None
            file = self.task.files[int(self.task_row[row])]
            said = complaints.get(b)
            if not said and sha256_of(self.task.audio_dir / file) != self.artifacts.manifest["clips"]["sha256"][row]:
                said = f"{file} has changed since it was counted; collect again"
            if not said:
                wave = waves[b, : valid[b]]
                name = wave_hash(wave, rate)
                look = hashlib.sha256(f"{name} {len(waves[b])} {self.pictures.identity}".encode()).hexdigest()[:16]
                sound = keep(folder / f"{name}.{sound_format(rate)}", partial(encoded, wave, rate))
                log_mel = log_mels[0][b] if log_mels else None
                image = keep(folder / f"{look}.png", partial(self.pictures.of, waves[b], log_mel))
            found.append([sound, image, round(int(valid[b]) / rate, 3), said])
        return found

    def _content(
        self, neurons: np.ndarray, classes: list[dict[str, Any]], shown: list[int], files: list[list[Any]]
    ) -> dict[str, Any]:
        """Everything on the pair but the records: classes, clips, and all neurons for the search."""
        heard, artifacts, about, table = self.heard, self.artifacts, self.about, self.heard.table
        content: dict[str, Any] = {
            "v": SCHEMA, "layers": list(artifacts.layers), "width": heard.width,
            "pages": {str(layer): neurons[neurons[:, 0] == layer, 1].tolist() for layer in np.unique(neurons[:, 0])},
            "classes": classes, "effects": effects(artifacts, about.task, about.model),
            "seconds": self.task.clip_seconds, "sound": sound_format(self.encoder.sample_rate),
            "own_picture": self.pictures.own, "clips": [],
            "aape": b64(heard.aape.astype(np.float32)), "members": {
                "at": b64((table.layer * heard.width + table.neuron).to_numpy(np.uint32)),
                "c": b64(table.c.to_numpy(np.uint16)), "calibrated": b64(table.calibrated.fillna(2).to_numpy(np.uint8)),
                "out": bytes_of(table.p_outside.fillna(0).to_numpy()),
                **{column: b64(table[column].to_numpy(np.float32)) for column in ("q", *SCORES)},
            },
        }  # fmt: skip
        if heard.p.size <= WHOLE_TABLE:
            content["p"] = bytes_of(heard.p)
        else:
            top = np.argpartition(-heard.p, TOP - 1, axis=1)[:, :TOP]
            largest = bytes_of(np.take_along_axis(heard.p, top, axis=1))
            content["p_top"] = {"k": TOP, "c": b64(top.astype(np.uint16)), "p": largest}
            content["members"]["p"] = bytes_of(table.p.to_numpy())  # a neuron's classes need not be among its largest
        if shown and self.grid is not None:
            content |= {"grid": self.shape, "map_seconds": self.cell_seconds * self.grid[1]}
        if shown:
            rows = heard.rows[shown]
            known = artifacts.manifest["group_column"] is not None  # else every clip is its own, and files say more
            groups = artifacts.groups[rows] if known else np.full(len(rows), "")
            said = (
                column.tolist()
                for column in (heard.labels[shown], groups, artifacts.splits[rows], artifacts.files[rows])
            )
            content["clips"] = [[*file, *more] for file, *more in zip(files, *said, strict=True)]
        return content

    def _classes(self) -> list[dict[str, Any]]:
        """Each class's name, clips, neurons, how many are calibrated, and what permuted labels give."""
        artifacts, table = self.artifacts, self.heard.table
        chance = class_chance(artifacts, self.about.task, self.about.model)
        many, nothing = len(artifacts.classes), table.calibrated.isna().all()  # the analysis has not been run
        clips = np.bincount(artifacts.labels, minlength=many).tolist() if artifacts.manifest else [None] * many
        neurons = np.bincount(table.c, minlength=many).tolist()
        sure = np.bincount(table.c, table.calibrated, many)  # NaN where it is not known of one
        return [
            {
                "name": name, "clips": clips[c], "neurons": neurons[c], "chance": chance.get(name),
                "calibrated": None if nothing else rounded(sure[c]),
            }
            for c, name in enumerate(artifacts.classes)
        ]  # fmt: skip

    def _entry(self, classes: list[dict[str, Any]]) -> dict[str, Any]:
        """The pair's line in the index."""
        about, selection, table = self.about, self.heard.selection, self.heard.table
        chance = task_chance(self.artifacts, about.task, about.model)
        if len(table) and table.calibrated.notna().all():  # after `dissect` neurons.csv is the only table
            sure = table[table.calibrated == 1]
            chance["calibrated_neurons"] = len(sure.drop_duplicates(["layer", "neuron"]))
        return {
            "folder": about.folder, "m": about.model, "t": about.task, "label": about.label, "title": about.title,
            "role": about.role, "layers": len(self.artifacts.layers), "width": self.heard.width,
            "layer_names": list(self.artifacts.layers),
            "classes": [[c["name"], c["neurons"], c["calibrated"]] for c in classes],
            "selected": int(selection.selected.sum()), "coverage": rounded(selection.coverage),
            "chance": chance, "best": _best(table),
        }  # fmt: skip


def _best(table: pd.DataFrame) -> list[Any] | None:
    """[layer, neuron, class, p - p outside] of the neuron to start with: the strongest, of one class only if there is."""
    single = table[~table.duplicated(["layer", "neuron"], keep=False)]
    if single.empty or (single.calibrated.iloc[0] != 1 and table.calibrated.iloc[0] == 1):
        single = table
    if single.empty:
        return None
    return [*single[["layer", "neuron", "c"]].iloc[0].tolist(), rounded((single.p - single.p_outside).iloc[0], 3)]
