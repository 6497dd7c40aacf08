"""One sentence per neuron, made from its numbers by a fixed grammar.

    sentence   = properties, "." | "No reliable tuning" [natural] "."
    properties = property { "; " property } [natural]
    property   = frequency | level | contrast | rate
    natural    = "; on natural sound most active in " class

Only reliable and significant properties of at least the stated size are mentioned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTRASTS = {  # contrast -> words for a positive and for a negative index
    "tone": ("prefers tones to noise", "prefers noise to tones"),
    "periodicity": (
        "prefers harmonic to inharmonic sounds",
        "prefers inharmonic to harmonic sounds",
    ),
    "sweep": ("prefers upward sweeps", "prefers downward sweeps"),
    "onset": ("responds to onsets", "is suppressed at onsets"),
    "offset": ("responds to offsets", "is suppressed at offsets"),
}


def sentence(row: Mapping[str, Any], natural_class: str | None = None) -> str:
    """What a neuron responds to.

    Args:
        row: of the table of neurons.
        natural_class: the class of natural sounds in which the neuron is most active, if that is known.
    """
    parts = []
    if row.get("frequency_tuned"):
        octaves = row["bandwidth_octaves"]
        parts.append(f"tuned to {hertz(row['best_frequency_hz'])} ({octaves:.1f} octaves)")
    if row.get("level_tuned") and row["threshold_db"] == row["threshold_db"]:
        parts.append(f"threshold {row['threshold_db']:.0f} dB")
    for name, (positive, negative) in _CONTRASTS.items():
        if row.get(f"{name}_tuned"):
            parts.append(positive if row[f"{name}_index"] > 0 else negative)
    if row.get("modulation_tuned"):
        parts.append(f"responds to modulation around {hertz(row['best_modulation_hz'])}")
    if row.get("fundamental_tuned"):
        parts.append(f"to fundamentals around {hertz(row['best_fundamental_hz'])}")
    if not parts:
        parts.append("no reliable tuning")
    if natural_class is not None:
        parts.append(f"on natural sound most active in {natural_class}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def hertz(frequency: float) -> str:
    """A frequency in words, with two digits: 8 Hz, 1.2 kHz."""
    if frequency >= 1000:
        return f"{frequency / 1000:.2g} kHz"
    return f"{frequency:.2g} Hz" if frequency < 100 else f"{round(frequency, -1):.0f} Hz"
