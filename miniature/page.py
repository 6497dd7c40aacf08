"""A page with one spectrogram per class of every synthetic task, to see at a glance that the sounds are what they say.

python -m miniature.page outputs/miniature/sounds.html
"""

from __future__ import annotations

import argparse
import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

from miniature import tasks
from miniature.midi import SAMPLE_RATE

ABOUT = {
    "esc50": "Sound events, computed or from effect programs of the soundfont.",
    "gise51": "Sound events in other rooms and from other sources; twelve classes are also in esc50.",
    "nspitch": "Acoustic instruments; the label is the MIDI pitch.",
    "surge": "Synthesiser programs and computed patches; the label is the MIDI pitch.",
    "gtzan": "Generated pieces in ten genres.",
    "voxforge": "Six languages.",
    "vc1_gender": "Speakers of ten countries, by gender.",
    "vc1_country": "English text read with the letter-to-sound rules and the sounds of each country's language.",
    "cremad": "Six emotions as prosody: pace, pitch, pitch range, loudness, contour, tremor.",
    "cremad_gender": "The same clips by gender.",
}


def decibels(wave: np.ndarray) -> np.ndarray:
    """Spectrogram [bands, frames] in dB below its peak: 25 ms windows, 10 ms apart, 80 bands up to 8 kHz (mel scale)."""
    _, _, spectrum = signal.stft(wave, SAMPLE_RATE, nperseg=400, noverlap=240, nfft=1024)
    power = np.abs(spectrum) ** 2  # [513, frames]
    edges = 700 * (
        10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82) / 2595) - 1
    )  # Hz, HTK mel
    hz = np.linspace(0, SAMPLE_RATE / 2, power.shape[0])
    up = (hz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - hz) / np.diff(edges)[1:, None]
    bands = np.maximum(0, np.minimum(up, down)) @ power
    return 10 * np.log10(np.maximum(bands / bands.max(), 1e-8))


def picture(
    task: str, cache_dir: str | Path | None = None, split: str = "test", classes: int = 25
) -> bytes:
    """PNG with the first ``split`` clip of each class; of more than ``classes`` classes, evenly spaced ones."""
    from matplotlib.figure import Figure

    folder = tasks.render(task, cache_dir)
    first: dict[str, tasks.Clip] = {}
    for clip in tasks.plan(task):
        if clip.split == split:
            first.setdefault(clip.label, clip)
    names = sorted(first, key=lambda name: (int(name), name) if name.isdigit() else (0, name))
    if len(names) > classes:
        names = [names[k] for k in np.linspace(0, len(names) - 1, classes).round().astype(int)]
    columns = min(6, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.1 * columns, 1.7 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        wave, _ = soundfile.read(folder / "audio" / first[name].file_name)
        padded = np.pad(wave, (0, max(0, round(tasks.CLIP_SECONDS * SAMPLE_RATE) - len(wave))))
        axis.imshow(decibels(padded), origin="lower", aspect="auto", vmin=-70, vmax=0, cmap="magma",
                    extent=(0, tasks.CLIP_SECONDS, 0, 80))  # fmt: skip
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=6)
    figure.supxlabel("s", fontsize=7)
    figure.supylabel("mel band, 0 to 8 kHz", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()


def page(names: Sequence[str] = tasks.TASKS, cache_dir: str | Path | None = None) -> str:
    """The HTML page, images inlined; tasks that are not in the cache are rendered first."""
    body = []
    for task in names:
        clips = tasks.plan(task)
        counts = Counter(clip.split for clip in clips)
        said = ", ".join(f"{counts[split]} {split}" for split in tasks.SPLITS)
        image = base64.b64encode(picture(task, cache_dir)).decode()
        body.append(
            f"<h2>{html.escape(task)}</h2><p>{html.escape(ABOUT[task])} {len({c.label for c in clips})} classes, "
            f"{len(clips)} clips ({said}), {len({c.group for c in clips})} groups. Shown: the first test clip of a "
            f'class.</p><img alt="{html.escape(task)}" src="data:image/png;base64,{image}">'
        )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Sounds of the miniature</title>'
        "<style>body{font-family:sans-serif;max-width:1100px;margin:2em auto}img{max-width:100%}</style>"
        "<h1>Sounds of the miniature</h1><p>Synthetic sounds, rendered on this machine. The tasks have the names of the "
        "datasets that they replace and contain none of their audio.</p>"
        + "".join(body)
        + "</html>\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m miniature.page", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="the HTML file to write")
    parser.add_argument("--cache", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    partial = options.file.with_suffix(".partial")
    partial.write_text(page(cache_dir=options.cache), encoding="utf-8")
    partial.replace(options.file)
    print(options.file)


if __name__ == "__main__":
    main()
