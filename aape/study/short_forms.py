"""Short forms of a study's entries, and paths with variables in them.

`hub: openai/whisper-tiny` stands for `loader: aape.encoders.hub:from_hub` with `options`, and so on. A study validates the
written-out entries.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROLE_FOLDERS = {
    "ssl": "analysis",
    "sl": "vit",
    "untrained": "untrained",
}  # the folders' names in the authors' code

# Short form -> the function that it stands for, and for each key of the entry the argument that it becomes.
_SHORT: dict[str, tuple[str, dict[str, str]]] = {
    "hub": ("aape.encoders.hub:from_hub", {"hub": "name_or_folder"}),
    "folder": (
        "aape.sounds.loading:from_folder",
        {"folder": "folder", "pattern": "pattern", "clip_seconds": "clip_seconds"},
    ),
    "metadata": (
        "aape.sounds.loading:from_metadata",
        {"metadata": "csv_path", "audio_dir": "audio_dir", "clip_seconds": "clip_seconds"},
    ),
}
SHORT_KEYS = {key for _, arguments in _SHORT.values() for key in arguments}


def written_out(kind: str, name: str, entry: Any) -> Any:
    """Write out an entry of `models` or `tasks`: its short form, and what follows from its name.

    Args:
        kind: "models" or "tasks".
        name: of the model or task.
        entry: what the study file says. Anything but a dictionary comes back as it is, for the validation to refuse.

    Raises:
        ValueError: not exactly one of loader and the short forms.
    """
    if not isinstance(entry, dict):
        return entry
    forms = ("loader", "hub") if kind == "models" else ("loader", "folder", "metadata")
    given = [form for form in forms if entry.get(form) is not None]
    if not given and "same_clips_as" in entry:
        return {"title": name} | entry
    if len(given) != 1:
        raise ValueError(
            f"{kind}.{name}: expected one of {', '.join(forms)}; found {' and '.join(given) or 'none'}"
        )
    (form,) = given
    if kind == "models":
        defaults = {"label": name, "folder": ROLE_FOLDERS.get(str(entry.get("role")), name)}
    else:
        defaults = {"title": name}
    entry = defaults | entry
    if form == "loader":
        return entry
    if form == "metadata":
        entry.setdefault("audio_dir", str(Path(with_variables(str(entry["metadata"]))).parent))
    loader, arguments = _SHORT[form]
    options = {} if kind == "models" else {"name": name}
    for key, argument in arguments.items():
        if key in entry:
            options[argument] = entry.pop(key)
    return entry | {"loader": loader, "options": options | entry.get("options", {})}


def with_loader(entry: Any, tasks: dict[str, Any]) -> Any:
    """A written-out entry of `tasks`; if it has no loader, with that of the task whose clips it has."""
    if not isinstance(entry, dict) or "loader" in entry:
        return entry
    other = tasks.get(entry["same_clips_as"])
    if not isinstance(other, dict) or "loader" not in other:
        return entry
    return {"loader": other["loader"], "options": other.get("options", {})} | entry


def with_variables(path: str) -> str:
    """A path with `$NAME` and `${NAME:-default}` expanded; a variable that is not set stays."""

    def value_or_default(match: re.Match[str]) -> str:
        return os.environ.get(match[1]) or match[2]

    return os.path.expandvars(re.sub(r"\$\{(\w+):-([^}]*)\}", value_or_default, path))
