"""One pass of the model over the clips that pages show: the maps of their neurons, their sounds and their pictures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from aape.artifacts.belonging import check_belong_together
from aape.artifacts.folder import Artifacts
from aape.atlas.choosing import MOST_ACTIVE, Choice
from aape.atlas.frequency import FrequencyAxis
from aape.atlas.maps import BATCH, grid_of, maps_of_pairs, pooled
from aape.atlas.sound import encoded, log_mel, picture, sound_name
from aape.encoders.encoder import Encoder, full_precision
from aape.files import sha256_of, whole_file
from aape.resuming import code_version, resumed
from aape.sounds.task import BadClip, Task, prefetched

FREQUENCIES, TIMES = 12, 64  # cells of a record's map, at most
CELLS = 8192  # of all maps of a record together, which keeps it below 8 kB
MAP_VALUES = 1 << 26  # activations that the maps of a batch hold at once


@dataclass(frozen=True)
class MapGrid:
    """The grid of a model's tokens, and what a page shows of it.

    Attributes:
        columns: time cells of the model that lie within the clip. Some models pad every clip to their own length.
        rows: frequency cells of the model.
        shape: (frequency, time) cells of a record's map.
        cell_seconds: sound per time cell of the model, s.
    """

    columns: int
    rows: int
    shape: tuple[int, int]
    cell_seconds: float

    @classmethod
    def of(cls, encoder: Encoder, task: Task, clips: int) -> MapGrid | None:
        """The grid for pages with this many clips, or None if the model does not say where its tokens lie."""
        if encoder.token_grid is None:
            return None
        rows, columns = grid_of(encoder, task.samples(encoder.sample_rate))[1]
        cell_seconds = encoder.cell_seconds or task.clip_seconds / columns
        columns = min(columns, math.ceil(task.clip_seconds / cell_seconds))
        shown_rows = min(rows, FREQUENCIES)
        shown_columns = max(1, min(columns, TIMES, CELLS // clips // shown_rows))
        return cls(columns, rows, (shown_rows, shown_columns), cell_seconds)


class ClipPass:
    """The pass over the shown clips. An interrupted pass resumes.

    Args:
        encoder, task, artifacts: belong together.
        neurons: int [k, 2] by layer and neuron.
        choices: clips that each neuron's page shows.
        grid: of the maps, or None.
        sounds: folder of sounds and pictures.

    Raises:
        ValueError: encoder, task and artifacts do not belong together.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: Task,
        artifacts: Artifacts,
        neurons: np.ndarray,
        choices: Sequence[Choice],
        grid: MapGrid | None,
        sounds: Path,
    ) -> None:
        self.task_index = check_belong_together(
            encoder, task, artifacts
        )  # of each clip of the artifacts
        self.encoder = encoder.with_layers(artifacts.layers)
        self.task = task
        self.artifacts = artifacts
        self.neurons = neurons
        self.grid = grid
        self.sounds = sounds
        self.requests: dict[
            int, list[tuple[int, int]]
        ] = {}  # clip -> (neuron's place in `neurons`, map's place)
        self.maps = 0
        self.to_filter: set[int] = set()  # places of maps by which their clips are filtered
        self.axis = FrequencyAxis(self.encoder)
        for k, choice in enumerate(choices):
            if choice and choice[0][1] == MOST_ACTIVE:
                self.to_filter.add(self.maps)
            for clip, _ in choice:
                self.requests.setdefault(clip, []).append((k, self.maps))
                self.maps += 1
        self.clips = sorted(self.requests)
        self.batches = self._batches()

    def _batches(self) -> dict[str, list[int]]:
        """Clips of each batch. Clips of deep layers come first: a batch leaves the model behind its deepest layer."""
        depth = {
            clip: max(self.neurons[k, 0] for k, _ in asked) for clip, asked in self.requests.items()
        }
        order = sorted(self.clips, key=lambda clip: (-depth[clip], clip))
        size = BATCH
        if self.grid is not None and order:
            most = max(len(asked) for asked in self.requests.values())
            cells = self.grid.rows * self.grid.columns
            size = int(np.clip(MAP_VALUES // (most * cells), 1, BATCH))
        return {str(start): order[start : start + size] for start in range(0, len(order), size)}

    def run(
        self, folder: Path, name: str
    ) -> tuple[list[list[Any]], np.ndarray | None, dict[int, str]]:
        """Make sounds, pictures and maps.

        Args:
            folder: where finished batches are kept.
            name: of the progress bar.

        Returns:
            [sound, picture, seconds] of each clip of `clips`; float16 maps [all requests, frequency, time] or None; and the
            sound files of filtered clips by the place of their map.
        """
        maps = None if self.grid is None else np.zeros((self.maps, *self.grid.shape), np.float16)
        files: dict[int, list[Any]] = {}
        filtered: dict[int, str] = {}
        key = [self.artifacts.manifest["checksums"], self.grid and self.grid.shape]
        requests = {}
        for batch, clips in self.batches.items():
            requests[batch] = [
                [clip, self.neurons[k].tolist()] for clip in clips for k, _ in self.requests[clip]
            ]
        results = resumed(
            folder, key, requests, self._compute, code=code_version("atlas", "encoders")
        )
        with (
            tqdm(total=len(self.clips), unit="clip", desc=f"atlas, {name}", disable=None) as bar,
            full_precision(),
        ):
            for clips, result in zip(self.batches.values(), results, strict=True):
                files |= zip(clips, json.loads(str(result["files"])), strict=True)
                if maps is not None:
                    places = [place for clip in clips for _, place in self.requests[clip]]
                    maps[places] = result["maps"]
                    filtered |= zip(
                        result["filtered_places"].tolist(), result["filtered"].tolist(), strict=True
                    )
                bar.update(len(clips))
        return [files[clip] for clip in self.clips], maps, filtered

    def _compute(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The results of some batches; their sounds and pictures are written."""
        self.sounds.mkdir(parents=True, exist_ok=True)
        task_batches = [self.task_index[self.batches[name]] for name in names]
        read = prefetched(self.task, task_batches, self.encoder.sample_rate)
        for name, (waves, valid, complaints) in zip(names, read, strict=True):
            if complaints:
                raise BadClip(
                    f"{next(iter(complaints.values()))} Everything before it is kept: call again to resume."
                )
            clips = self.batches[name]
            files = [
                self._write(clip, *clip_wave)
                for clip, *clip_wave in zip(clips, waves, valid, strict=True)
            ]
            result = {"files": np.array(json.dumps(files))}
            if self.grid is not None:
                maps = self._maps(self.grid, clips, waves, check=name == names[0])
                result |= {"maps": maps, **self._filtered(self.grid, clips, waves, valid, maps)}
            yield result

    def _maps(self, grid: MapGrid, clips: list[int], waves: np.ndarray, check: bool) -> np.ndarray:
        """float16 maps of what was requested of some clips; `check` compares all calls of the model with its grid."""
        asked = np.array(
            [(row, k) for row, clip in enumerate(clips) for k, _ in self.requests[clip]]
        )
        neurons = self.neurons[asked[:, 1]]
        maps = maps_of_pairs(
            self.encoder, torch.from_numpy(waves), asked[:, 0], neurons, stop=not check
        )
        return pooled(maps[..., : grid.columns], *grid.shape).astype(np.float16)

    def _filtered(
        self,
        grid: MapGrid,
        clips: list[int],
        waves: np.ndarray,
        valid: np.ndarray,
        maps: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Write the most active clip of each neuron, filtered by the neuron's map; places of the maps, and file names."""
        rate = self.encoder.sample_rate
        places, names = [], []
        rows = [(row, place) for row, clip in enumerate(clips) for _, place in self.requests[clip]]
        for (row, place), levels in zip(rows, maps.astype(np.float32), strict=True):
            if place not in self.to_filter:
                continue
            seconds = grid.cell_seconds * grid.columns
            sound = self.axis.filtered(waves[row, : valid[row]], rate, levels, seconds)
            places.append(place)
            names.append(self._write_sound(sound))
        return {"filtered_places": np.array(places, np.int64), "filtered": np.array(names, str)}

    def _write_sound(self, wave: np.ndarray) -> str:
        """Write a sound file unless it is there, and return its name."""
        rate = self.encoder.sample_rate
        name = sound_name(wave, rate)
        if not (self.sounds / name).is_file():
            self._keep(name, encoded(wave, rate))
        return name

    def _write(self, clip: int, wave: np.ndarray, valid: int) -> list[Any]:
        """Write sound and picture of a clip; [name of the sound, name of the picture, seconds of sound]."""
        path = self.task.audio_dir / self.task.files[self.task_index[clip]]
        if sha256_of(path) != self.artifacts.manifest["clips"]["sha256"][clip]:
            raise ValueError(f"{path} has changed since its tokens were counted; collect again")
        rate = self.encoder.sample_rate
        sound = self._write_sound(wave[:valid])
        image = picture(log_mel(self.encoder, wave), len(wave) / rate)
        image_name = hashlib.sha256(image).hexdigest()[:16] + ".png"
        self._keep(image_name, image)
        return [sound, image_name, round(int(valid) / rate, 3)]

    def _keep(self, name: str, content: bytes) -> None:
        """Write a file whose name says its content."""
        with whole_file(self.sounds / name, sync=False) as file:
            file.write(content)
