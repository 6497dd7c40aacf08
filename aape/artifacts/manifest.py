"""manifest.json: what made the artifacts of a folder, checked against a schema."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from aape.files import write_json

FORMAT = 4
REQUIRED = ("over_zero.pt", "classes.txt", "features.pt", "gts.pt", "clip_counts.npy")
ARRAYS = ("clip_counts.npy", "clip_means.npy", "padding_counts.npy")  # [clips, layers, neurons]
FILES = tuple(dict.fromkeys(REQUIRED + ARRAYS))


def check_classes(classes: Sequence[str]) -> Sequence[str]:
    """Check that each class name fits on one line of classes.txt and that no two look the same.

    Raises:
        ValueError: an empty name, a line break of any kind in one, or two that are equal after Unicode normalisation.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if name.splitlines() != [name]:
            raise ValueError(
                f"class {name!r} is empty or holds a line break; classes.txt holds one class per line"
            )
        normalised = unicodedata.normalize("NFKC", name)
        if normalised in seen:
            raise ValueError(
                f"classes {seen[normalised]!a} and {name!a} are equal after Unicode normalisation"
            )
        seen[normalised] = name
    return classes


def _once(names: list[str]) -> list[str]:
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"expected at least one name and no duplicates, found: {', '.join(names) or 'none'}"
        )
    return names


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], AfterValidator(_once)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Clips(_Strict):
    """One entry per clip, in the order of the arrays."""

    file: Names
    label: list[Count]
    split: list[str]
    group: list[str]
    tokens: list[Positive]
    padding_tokens: list[Count]
    sha256: list[Digest]


class Settings(_Strict):
    """What identifies a pass, known before it. `identity` and `dtype` are those of `aape.encoders.encoder.Encoder`."""

    encoder: str
    weights: dict[str, JsonValue]
    identity: Digest
    dtype: str
    layers: Names
    neurons: Positive
    task: str
    clip_seconds: Annotated[float, Field(gt=0)]
    sample_rate: Positive
    splits: Names
    data: Digest  # SHA-256 over file names, classes, splits, groups and contents of all clips
    means: bool
    batch_size: Positive
    device: str


class Manifest(Settings):
    """What is known of a finished pass."""

    format: Literal[4]
    classes: Annotated[list[str], Field(min_length=1), AfterValidator(check_classes)]
    group_column: str | None
    clips: Clips
    notes: list[str]  # what a reader of results must know, e.g. that the split was drawn by us
    cut: Count  # clips that last longer than clip_seconds
    padding: Literal["counted", "none", "unknown"]
    hardware: dict[str, str | int]
    versions: dict[str, str]
    code_version: str
    pass_of: str | None = None
    checksums: dict[str, Digest]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        columns = dict(self.clips)
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("clips has columns of different length")
        if set(self.clips.label) != set(range(len(self.classes))):
            raise ValueError("clips.label has other values than the classes")
        expected = set(REQUIRED)
        if self.means:
            expected.add("clip_means.npy")
        if self.padding == "counted":
            expected.add("padding_counts.npy")
        if set(self.checksums) != expected:
            raise ValueError(f"checksums are expected of {', '.join(sorted(expected))}")
        return self


def checked(schema: type[BaseModel], content: Any) -> None:
    """Raise ValueError with the first complaint if content does not fit a schema."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        complaint = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {complaint}" if place else complaint) from error


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Check a manifest and write it. Raises ValueError if it does not fit the schema."""
    checked(Manifest, content)
    write_json(path, dict(content))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        ValueError: it cannot be read, is of another version, or does not fit the schema.
    """
    try:
        content = json.loads(path.read_bytes())
        checked(Manifest, content)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a manifest of this version ({error}).\nRestore it, or delete the folder and collect again."
        ) from error
    return content
