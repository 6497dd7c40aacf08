"""How public objects show themselves: a few facts, as lines of text or as a small table in Jupyter."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any


class Displayed:
    """Base class of objects that describe themselves by a title and a few named facts.

    A subclass implements `_facts`; it may override `_title`.
    """

    def _facts(self) -> Mapping[str, Any]:
        """Facts to show, in order: name -> value."""
        raise NotImplementedError

    def _title(self) -> str:
        """The heading above the facts."""
        return type(self).__name__

    def __repr__(self) -> str:
        lines = [f"  {name}: {value}" for name, value in self._facts().items()]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        style = "style='text-align:left'"
        rows = []
        for name, value in self._facts().items():
            left, right = html.escape(str(name)), html.escape(str(value))
            rows.append(f"<tr><th {style}>{left}</th><td {style}>{right}</td></tr>")
        return f"<b>{html.escape(self._title())}</b><table>{''.join(rows)}</table>"
