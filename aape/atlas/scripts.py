"""Values as files that a page opened from disk can read, since browsers block fetch and modules on file://."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from aape.files import write_text

SCHEMA = 3  # format of everything that the page reads


def write_script(out: Path, key: str, content: Any) -> None:
    """Write `<out>/<key>.js`, a classic script that hands `content` to the page."""
    write_text(out / f"{key}.js", script_text(key, content))


def script_text(key: str, content: Any) -> str:
    """The text of such a script."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return f"aapeAtlas({json.dumps(key)},{text});\n"


def read_script(out: Path, key: str) -> Any:
    """What `write_script` was given."""
    text = (out / f"{key}.js").read_text()
    return json.loads(text.removeprefix(f"aapeAtlas({json.dumps(key)},").removesuffix(");\n"))


def rounded(value: Any, digits: int = 4) -> float | None:
    """A number with a few significant digits, for JSON; None if it is not finite."""
    value = float(value)
    if not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def base64_of(array: np.ndarray) -> str:
    """The bytes of an array, little-endian, in base64."""
    little_endian = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little_endian.tobytes()).decode()


def bytes_of(shares: np.ndarray) -> str:
    """Shares 0..1 as one byte each, in base64."""
    return base64_of(np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8))
