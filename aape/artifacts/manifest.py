"""manifest.json: who made the artifacts of a folder, held to a schema and sealed by a hash of its own."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from aape.files import write_json

REQUIRED = ("over_zero.pt", "classes.txt", "features.pt", "gts.pt", "clip_counts.npy")
ARRAYS = ("clip_counts.npy", "clip_means.npy", "padding_counts.npy")  # [clips, layers, neurons]
FILES = tuple(dict.fromkeys(REQUIRED + ARRAYS))


def check_classes(classes: Sequence[str]) -> Sequence[str]:
    """Class names must each fit on a line of classes.txt and be told apart.

    Raises:
        ValueError: an empty name, a line break of any kind in one, or two that are one after Unicode normalisation.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if name.splitlines() != [name]:
            raise ValueError(f"class {name!r} is empty or holds a line break; classes.txt holds one class a line")
        if (key := unicodedata.normalize("NFKC", name)) in seen:
            raise ValueError(f"classes {seen[key]!a} and {name!a} are one name after Unicode normalisation")
        seen[key] = name
    return classes


def _once(names: list[str]) -> list[str]:
    if not names or len(set(names)) != len(names):
        raise ValueError(f"names none, or one twice: {', '.join(names) or '[]'}")
    return names


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], AfterValidator(_once)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Clips(_Strict):
    """One entry a clip, in the order of the arrays."""

    file: Names
    label: list[Count]
    split: list[str]
    group: list[str]
    tokens: list[Positive]
    padding_tokens: list[Count]
    sha256: list[Digest]


class Settings(_Strict):
    """What a pass is to do, known before it. `identity`, `probe` and `dtype` are those of `aape.encoders.encoder.Encoder`."""

    encoder: str
    identity: Digest
    probe: Annotated[list[float], Field(min_length=1)]
    dtype: str
    layers: Names
    neurons: Positive
    task: str
    clip_seconds: Annotated[float, Field(gt=0)]
    sample_rate: Positive
    splits: list[str]
    data: Digest  # over file names, classes, splits, groups and contents of all clips
    kept: str | None
    means: bool
    batch_size: Positive
    device: str
    on_bad_clip: Literal["stop", "skip"]


class Manifest(Settings):
    """What a finished pass says of itself."""

    format: Literal[3]
    weights: dict[str, JsonValue]
    classes: Annotated[list[str], Field(min_length=1), AfterValidator(check_classes)]
    group_column: str | None
    clips: Clips
    kept_clips: list[Count] | None = None
    skipped: list[dict[Literal["file", "reason"], str]]
    notes: list[str]  # what a reader of results must know, e.g. that the split is ours
    cut: Count  # clips that go on behind clip_seconds
    padding: Literal["counted", "none", "unknown"]
    hardware: dict[str, str | int]
    versions: dict[str, str]
    pass_of: str | None = None
    checksums: dict[str, Digest]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        clips, kept = self.clips, self.kept_clips
        rows = len(clips.file)
        files = {*REQUIRED, *(["clip_means.npy"] * self.means), *(["padding_counts.npy"] * (self.padding == "counted"))}
        for complaint, wrong in {
            "clips has columns of different length": any(len(v) != rows for v in clips.__dict__.values()),
            "clips.label has other values than the classes": set(clips.label) != set(range(len(self.classes))),
            "clips.split has other splits than those heard": not set(clips.split) <= set(self.splits),
            "clips.padding_tokens exceed the tokens": any(map(int.__lt__, clips.tokens, clips.padding_tokens)),
            "kept_clips is no ascending choice of the clips": kept is not None
            and (kept != sorted(set(kept)) or not all(k < rows for k in kept)),
            "kept and kept_clips disagree": (self.kept is None) != (kept is None),
            "checksums is not of the files that belong here": set(self.checksums) != files,
        }.items():
            if wrong:
                raise ValueError(complaint)
        return self


def checked(schema: type[BaseModel], content: Any) -> None:
    """Raises ValueError, with the first complaint, where content does not fit the schema."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")) from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Check a manifest, seal it with a hash and write it. Raises ValueError where it does not fit the schema."""
    checked(Manifest, content)
    write_json(path, {**content, "sha256": _digest(content)})


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest as it was written.

    Raises:
        ValueError: unreadable, edited, of another version, or somebody else's.
    """
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop("sha256", None) if isinstance(content, dict) else None
        checked(Manifest, content)
        if seal != _digest(content):
            raise ValueError("its own hash differs: it was edited")
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not a manifest of this version ({error}).\nRestore it or collect anew.") from error
    return content
