"""What all figures share: colours, sizes of text, panels, and saving."""

from __future__ import annotations

import functools
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aape.files import whole_file

# Okabe and Ito's palette, which can be told apart with any colour vision.
BLUE, ORANGE, GREEN, PINK, SKY, GOLD = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)
GREY, LIGHT_BLUE = "#7F7F7F", "#B8D4E8"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, GOLD)
UNTRAINED = ("untrained", "random")  # names of models that hold one of these words are grey

# Matplotlib's own font has Latin, Greek and Cyrillic letters; the others are used where they are installed.
OTHER_SCRIPTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Devanagari",
    "Noto Sans Arabic",
    "Hiragino Sans",
    "PingFang SC",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "IPAexGothic",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)

STYLE: dict[Any, Any] = {
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.titlesize": 10,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.title_fontsize": 7,
    "text.parse_math": False,  # a class may be called US$
}
Draw = TypeVar("Draw", bound=Callable[..., Any])


def styled(draw: Draw) -> Draw:
    """A decorator of functions that draw: they use our sizes of text and fonts for all scripts that are installed."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Any:
        with matplotlib.rc_context(STYLE | {"font.family": _fonts()}):
            return draw(*arguments, **options)

    return cast(Draw, drawn)


@functools.cache
def _fonts() -> list[str]:
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


def panels(
    rows: int, columns: int, size: tuple[float, float], title: str, **how: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of some inches with its title, and its axes [rows, columns]; `how` goes to `Figure.subplots`."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False, **how)
    for axes in grid.flat:
        axes.tick_params(labelsize=7)
    return figure, grid


def legend_below(figure: Figure, axes: Axes, title: str = "", columns: int = 3) -> None:
    """A legend of the labelled things in some axes, below the whole figure."""
    figure.legend(
        *axes.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=columns
    )


def colours(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model, in the study's order: the same in every figure, and grey for untrained models."""
    trained = itertools.cycle(PALETTE)
    chosen = {}
    for model in models:
        is_untrained = any(word in model.lower() for word in UNTRAINED)
        chosen[model] = GREY if is_untrained else next(trained)
    return chosen


def nothing(axes: Axes, text: str) -> None:
    """Words in place of a panel's content."""
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, transform=axes.transAxes)


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write `name`.pdf and `name`.png (the bytes carry no time stamp); returns the path of the PNG.

    Warns:
        UserWarning: letters that no installed font has are drawn as boxes.
    """
    name = short_file_name(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.draw_without_rendering()  # the layout settles in the second pass
        with whole_file(directory / f"{name}.pdf") as file:
            figure.savefig(file, format="pdf", metadata={"CreationDate": None}, bbox_inches="tight")
        figure.set_layout_engine("none")
        with whole_file(directory / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=130, bbox_inches="tight")
    boxes = 0
    for warning in caught:
        if "missing from" in str(warning.message):
            boxes += 1
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if boxes:
        warnings.warn(
            f"{name}: no installed font has some of the letters, which are drawn as boxes. Install a font that has them, "
            "such as Noto Sans CJK (Debian: fonts-noto-cjk), delete matplotlib's font cache, and draw again.",
            stacklevel=2,
        )
    return directory / f"{name}.png"


def short_file_name(name: str, limit: int = 120) -> str:
    """A file name that every file system takes: without separators, and with a hash in place of what is too long."""
    name = name.replace("/", "-").replace("\\", "-")
    if len(name.encode()) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[:limit].decode(errors='ignore')}-{digest}"
