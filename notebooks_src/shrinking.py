"""Executed notebooks made small enough to commit: short sounds, pictures of few colours, no paths of this machine."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import soundfile
import soxr
from nbformat import NotebookNode
from PIL import Image

from aape.study.study import ROOT

WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\||\d+it \[|it/s\]|s/it\]")  # a line that tqdm draws
SOUND = re.compile(r"data:audio/[\w.-]+;base64,([A-Za-z0-9+/=\s]+)")
PLAYER = re.compile(r"<audio\b.*?</audio>", re.DOTALL)
PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\s]+")
# "/" and at least two names. Not in the middle of a URL, of a relative path, or of a fraction.
PATH = re.compile(r"(?:file://|(?<![\w./:+<~-]))((?:/[\w.@+~-]+){2,})/?")


@dataclass(frozen=True)
class Level:
    """How much is taken away.

    Attributes:
        colours: of a picture, at most.
        width: of a picture, pixels, at most.
        seconds: of a sound, at most; 0: sounds are dropped.
        rate: of a sound, Hz.
    """

    colours: int
    width: int
    seconds: float
    rate: int


LEVELS = (
    Level(colours=256, width=1600, seconds=5.0, rate=16000),
    Level(colours=128, width=1200, seconds=3.0, rate=16000),
    Level(colours=64, width=1000, seconds=1.5, rate=8000),
    Level(colours=64, width=900, seconds=0, rate=8000),
    Level(colours=32, width=700, seconds=0, rate=8000),
)


def shrink(book: NotebookNode, at_most: float) -> str:
    """The text of an executed notebook with as much detail as fits.

    Args:
        book: as papermill wrote it; not changed.
        at_most: bytes.

    Raises:
        ValueError: it does not fit without sounds and with the smallest pictures either.
    """
    bare = without_traces(book)
    for level in LEVELS:
        text = nbformat.writes(_at_level(bare, level)) + "\n"
        size = len(text.encode())
        if size <= at_most:
            return text
    raise ValueError(
        f"the notebook has {size:,} bytes at the smallest pictures and without sounds, more than {at_most:,.0f}; show less "
        "in it"
    )


def without_traces(book: NotebookNode) -> NotebookNode:
    """A copy without progress bars, widgets, times of execution and absolute paths."""
    bare = nbformat.from_dict(book)
    kept = ("kernelspec", "language_info")
    about = {name: book.metadata[name] for name in kept if name in book.metadata}
    bare.metadata = nbformat.from_dict(about)
    for cell in bare.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "injected-parameters" in tags:
            cell.source = relative(cell.source)
        if cell.cell_type == "code":
            cleaned = [_clean_output(output) for output in cell.outputs]
            cell.outputs = [output for output in cleaned if output is not None]
    return bare


def _clean_output(output: NotebookNode) -> NotebookNode | None:
    """A copy of an output with relative paths; None: it is a progress bar."""
    cleaned = nbformat.from_dict(output)
    if output.output_type == "stream":
        lines = re.split(r"[\r\n]", output.text)
        written = [line for line in lines if not PROGRESS.search(line)]
        cleaned.text = relative("\n".join(written))
        return cleaned if cleaned.text.strip() else None
    data = output.get("data", {})
    if WIDGET in data:
        return None
    for kind, content in data.items():
        if isinstance(content, str) and kind.startswith("text/"):
            cleaned.data[kind] = relative(content)
    return cleaned


def relative(text: str) -> str:
    """Text in which the repository's folder is "." and every other absolute path is its last part."""
    pieces = []
    end = 0
    for embedded in EMBEDDED.finditer(text):  # "/" is a digit of base64
        before = text[end : embedded.start()]
        pieces += [_relative(before), embedded.group()]
        end = embedded.end()
    pieces.append(_relative(text[end:]))
    return "".join(pieces)


def _relative(text: str) -> str:
    repository = rf"(?<![\w.])(?:file://)?{re.escape(str(ROOT))}(?![\w-])"
    return PATH.sub(lambda path: Path(path[1]).name, re.sub(repository, ".", text))


def absolute_paths(text: str) -> list[str]:
    """Everything in a text that looks like an absolute path."""
    return PATH.findall(EMBEDDED.sub("", text))


def _at_level(book: NotebookNode, level: Level) -> NotebookNode:
    """A copy with smaller pictures and sounds."""
    smaller = nbformat.from_dict(book)
    for cell in smaller.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = small_picture(data["image/png"], level)
            if "text/html" in data:
                data["text/html"] = _small_html(data["text/html"], level)
    return smaller


def _small_html(html: str, level: Level) -> str:
    """HTML with smaller embedded sounds and pictures."""
    if level.seconds:
        html = _replaced(
            SOUND, html, "data:audio/mpeg;base64,", lambda sound: small_sound(sound, level)
        )
        html = html.replace('type="audio/wav"', 'type="audio/mpeg"')
    elif SOUND.search(html):
        html = PLAYER.sub("<em>(a sound; run the notebook to hear it)</em>", html)
    return _replaced(
        PICTURE, html, "data:image/png;base64,", lambda picture: small_picture(picture, level)
    )


def _replaced(
    pattern: re.Pattern[str], html: str, beginning: str, smaller: Callable[[str], str]
) -> str:
    return pattern.sub(lambda match: beginning + smaller(match[1]), html)


def small_picture(encoded: str, level: Level) -> str:
    """A PNG (base64) with few colours and at most `level.width` pixels wide; the original where that is smaller."""
    content = base64.b64decode(encoded)
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    if flat.width > level.width:
        height = round(flat.height * level.width / flat.width)
        flat = flat.resize((level.width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    few = flat.quantize(level.colours, dither=Image.Dither.NONE)
    few.save(file, format="PNG", optimize=True)
    shorter = base64.b64encode(file.getvalue()).decode()
    return min(shorter, encoded.strip(), key=len)


def small_sound(encoded: str, level: Level) -> str:
    """The beginning of a sound (base64) as a mono MP3 (base64)."""
    content = base64.b64decode(encoded)
    wave, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    samples = round(level.seconds * rate)
    mono = wave[:samples].mean(axis=1)
    resampled = soxr.resample(mono, rate, level.rate)
    file = io.BytesIO()
    soundfile.write(file, resampled, level.rate, format="MP3", subtype="MPEG_LAYER_III")
    return base64.b64encode(file.getvalue()).decode()
