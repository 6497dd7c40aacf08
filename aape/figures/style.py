"""What all figures share: colours, sizes of text, panels, and saving."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aape.files import whole_file

# Okabe and Ito's palette: told apart with any colour vision.
PALETTE = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

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
_ONE = threading.RLock()  # matplotlib's settings are those of all threads


def styled(draw: Draw) -> Draw:
    """A decorator of functions that draw, with our sizes of text; in threads one after the other."""

    @functools.wraps(draw)
    def drawn(*given: Any, **how: Any) -> Any:
        with _ONE, matplotlib.rc_context(STYLE):
            return draw(*given, **how)

    return cast(Draw, drawn)


def panels(rows: int, columns: int, size: tuple[float, float], title: str, **how: Any) -> tuple[Figure, np.ndarray]:
    """A figure of some inches with its title, and its axes [rows, columns]; how: see `Figure.subplots`."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False, **how)
    for axes in grid.flat:
        axes.tick_params(labelsize=7)
    return figure, grid


def legend_below(figure: Figure, axes: Axes, title: str = "", columns: int = 3) -> None:
    """What the labelled things in some axes are, below the whole figure."""
    figure.legend(*axes.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=columns)


def colours(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model, in the study's order."""
    return dict(zip(models, itertools.cycle(PALETTE), strict=False))


def nothing(axes: Axes, text: str) -> None:
    """Words in place of a panel's content."""
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, transform=axes.transAxes)


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write `name`.pdf and `name`.png (the bytes carry no time stamp); returns the path of the PNG."""
    figure.draw_without_rendering()  # the layout settles in the second pass
    with whole_file(directory / f"{name}.pdf") as file:
        figure.savefig(file, format="pdf", metadata={"CreationDate": None}, bbox_inches="tight")
    figure.set_layout_engine("none")
    with whole_file(directory / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=130, bbox_inches="tight")
    return directory / f"{name}.png"
