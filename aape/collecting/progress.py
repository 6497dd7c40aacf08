"""Progress of a pass: a bar in terminals and notebooks, one line per tenth in logs."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


class _LogFile:
    """Writes each state of a progress bar as a line of its own."""

    def write(self, text: str) -> None:
        state = text.strip()
        if state:
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(total: int, title: str, show: bool) -> tqdm:
    """A progress bar over clips. A log would hold every redrawn bar, so it gets a line per tenth of the clips."""
    in_notebook = "ipykernel" in sys.modules
    if in_notebook or sys.stderr.isatty():
        return tqdm(total=total, unit="clip", desc=title, disable=not show)
    tenth = max(1, total // 10)
    return tqdm(
        total=total,
        unit="clip",
        desc=title,
        disable=not show,
        miniters=tenth,
        mininterval=0,
        file=_LogFile(),
    )
