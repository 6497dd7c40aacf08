"""Tables as notebooks show them: at most eight columns, three significant digits, the rest in the CSV that is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

MOST_COLUMNS = 8


def three_digits(value: Any) -> str:
    """A number with three significant digits and no exponent, a share of a million as such; other values as they are."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not isinstance(value, (float, np.floating)):
        return str(value)
    if np.isnan(value):
        return ""
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-6:
        return "<0.000001" if value > 0 else ">-0.000001"
    decimals = 2 - int(np.floor(np.log10(abs(float(f"{value:.2e}")))))
    return f"{value:,.{max(0, decimals)}f}"


def table(
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    *,
    rows: int = 15,
    csv: str | None = None,
) -> Styler:
    """A table that fits the page.

    Args:
        frame: any table; an index without a name (0, 1, ...) is left out.
        columns: column -> heading, in the order shown; those that the frame lacks are left out. None: all of them.
        rows: at most so many, from the top; what is left out is said below, as it is of columns beyond the eighth.
        csv: file that holds everything, named below.
    """
    names = (
        {c: c for c in frame.columns}
        if columns is None
        else {c: n for c, n in columns.items() if c in frame}
    )
    shown = frame[list(names)].rename(columns=names)
    numbered = (
        frame.index.nlevels == 1
        and frame.index.name is None
        and pd.api.types.is_integer_dtype(frame.index)
    )
    fitting = MOST_COLUMNS - (0 if numbered else frame.index.nlevels)
    below = [f"{len(shown) - rows:,} more rows"] if len(shown) > rows else []
    below += [f"{len(names) - fitting} more columns"] if len(names) > fitting else []
    below += [f"everything: {csv}"] if csv else []
    shown = shown.iloc[:rows, :fitting]
    style = (shown.reset_index(drop=True) if numbered else shown).style.format(three_digits)
    if numbered:
        style = style.hide(axis="index")
    styles = [
        {"selector": "th, td", "props": "text-align: right; padding: 2px 8px; white-space: normal"}
    ]
    if below:
        style = style.set_caption("; ".join(below))
        styles.append(
            {"selector": "caption", "props": "caption-side: bottom; text-align: left; color: gray"}
        )
    return style.set_table_styles(styles)
