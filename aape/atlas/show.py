"""A neuron's page in a notebook's cell: the same numbers and clips as in the atlas, with the sounds inside."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from aape.artifacts.folder import Artifacts
from aape.atlas.pair import About, Pair, read_script
from aape.atlas.record import BINS, ROLES, checked
from aape.encoders.encoder import Encoder
from aape.neurons.selection import Selection, select
from aape.sounds.task import Task

HOT, REST, BAND = "#b4430a", "#8b95a5", "#c9ced6"  # as the atlas' page


@dataclass(frozen=True, repr=False)
class NeuronView:
    """What `show_neuron` found; Jupyter shows it with figure and players.

    Attributes:
        record: as in the atlas. pair: of the model and the task, as in the atlas. sounds: file name -> its bytes.
    """

    record: Mapping[str, Any]
    pair: Mapping[str, Any]
    sounds: Mapping[str, bytes]

    @property
    def title(self) -> str:
        """One line on the neuron."""
        own = ", ".join(self.pair["classes"][c]["name"] for c in self.record["own"])
        return f"layer {self.record['l']}, neuron {self.record['n']}: most active for {own}"

    def __repr__(self) -> str:
        aape, rank, density = (self.record[key] for key in ("aape", "rank", "density"))
        return f"Neuron, {self.title}\n  AAPE {aape} nats, rank {rank}; active at {density} of all tokens"

    def figure(self) -> Figure:
        """p by class before the band of permuted labels, and clips by share of active tokens."""
        bars, own, names = self.record["bars"], self.record["own"], [c["name"] for c in self.pair["classes"]]
        c = np.array(bars["c"] or range(len(names)))
        p, *band = (np.frombuffer(base64.b64decode(bars[k]), np.uint8) / 255 for k in ("p", "low", "high") if k in bars)
        order = np.argsort(-p, kind="stable")[:30][::-1]
        figure = Figure(figsize=(9, 0.8 + 0.22 * max(8, len(order))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        place = np.arange(len(order))
        if band:
            low, high = (b[order] for b in band)
            left.barh(place, high - low, left=low, height=0.9, color=BAND)
        left.barh(place, p[order], height=0.5, color=np.where(np.isin(c[order], own), HOT, REST))
        left.set_yticks(place, [names[i].replace("$", r"\$")[:30] for i in c[order]])
        title = "by class" + " (grey: 95 % of permuted labels)" * bool(band)
        left.set(xlim=(0, 1), xlabel="share of active tokens", title=title)
        colours = {HOT: "its classes", REST: "others"}
        for side, (colour, label) in zip(self.record.get("histogram", []), colours.items(), strict=False):
            share = np.array(side) / max(1, sum(side))
            right.stairs(share, np.linspace(0, 1, BINS + 1), color=colour, label=label, fill=colour == REST)
        right.set(xlabel="share of active tokens", ylabel="share of clips", title="clip by clip")
        right.legend(fontsize="small")
        return figure

    def _cells(self) -> str:
        cells = []
        for place, (number, role, share) in enumerate(self.record["clips"]):
            sound, image, _, complaint, c, group, _, file = self.pair["clips"][number]
            name = html.escape(self.pair["classes"][c]["name"])
            said = f"{name}, {html.escape(group or file)}<br>{ROLES[role]}, {share:.0%} of tokens active"
            player = f"no sound: {html.escape(complaint or '')}"
            if sound:
                kind = "mpeg" if sound.endswith("mp3") else "wav"
                player = f"<audio controls preload='none' style='width:15em;height:2em' src='{_data(f'audio/{kind}', self.sounds[sound])}'></audio>"
                look = "height:6em;grid-area:1/1"
                scene = (
                    f"<img style='{look};width:15em;filter:invert(1)' src='{_data('image/png', self.sounds[image])}'>"
                )
                if "maps" in self.record:
                    look += (
                        f";width:{15 * self.pair['map_seconds'] / self.pair['seconds']:.3f}em"  # its cells may go on
                    )
                    scene += f"<img style='{look};image-rendering:pixelated;position:relative' src='{_data('image/png', self._map(place))}'>"
                player = f"<div style='display:grid;overflow:hidden'>{scene}</div>{player}"
            cells.append(f"<figure style='margin:0;width:15em'>{player}<figcaption>{said}</figcaption></figure>")
        return "".join(cells)

    def _map(self, place: int) -> bytes:
        rows, columns = self.pair["grid"]
        raw = np.frombuffer(base64.b64decode(self.record["maps"]), np.uint8)
        levels = np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)[place * rows * columns :][: rows * columns]
        rgba = np.zeros((rows, columns, 4), np.uint8)
        rgba[..., :3] = [int(HOT[i : i + 2], 16) for i in (1, 3, 5)]
        rgba[..., 3] = levels.reshape(rows, columns)[::-1] * 13
        file = io.BytesIO()
        Image.fromarray(rgba).save(file, "PNG")
        return file.getvalue()

    def _repr_html_(self) -> str:
        figure = io.BytesIO()
        self.figure().savefig(figure, format="png", dpi=100)
        image = f"<img alt='p by class; clips by share of active tokens' src='{_data('image/png', figure.getvalue())}'>"
        return f"<b>{html.escape(self.title)}</b><br>{image}<div style='display:flex;flex-wrap:wrap;gap:1em'>{self._cells()}</div>"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def show_neuron(
    artifacts: Artifacts,
    encoder: Encoder,
    task: Task,
    layer: int,
    neuron: int,
    *,
    clips: int = 20,
    selection: Selection | None = None,
) -> NeuronView:
    """A neuron's page for a notebook's cell: p by class, clips with players, and where it is active in them.

    Args:
        artifacts, encoder, task, clips, selection: as `build_atlas`.
        layer, neuron: counted from 0.

    Raises:
        ValueError: as `build_atlas`.
    """
    about = About("", encoder.name, task.name, encoder.name, task.name)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pair = Pair(artifacts, encoder, task, selection or select(artifacts), about, out, clips)
        pair.build(None, checked(pair.heard, [[layer, neuron]]))
        record = read_script(out, f"{about.folder}/L{layer:02}")["records"][str(neuron)]
        sounds = {path.name: path.read_bytes() for path in (out / "clips").iterdir()}
        return NeuronView(record, read_script(out, f"{about.folder}/pair"), sounds)
