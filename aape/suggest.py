"""What to say about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar known name, as a question, or all known names."""
    known = list(known)
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(known)}"
