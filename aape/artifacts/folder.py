"""A folder of artifacts: what a collecting pass leaves on disk, checked when it is read back.

`over_zero.pt` and `classes.txt` are made by other tools too, with `features.pt` and `gts.pt` in the authors' layout. Our
pass adds `clip_counts.npy`, `clip_means.npy`, `padding_counts.npy` and `manifest.json`. The manifest is written last: if it
is there, the other files are complete.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from aape.artifacts.manifest import ARRAYS, read_manifest
from aape.display import Displayed
from aape.files import sha256_of, whole_file

if TYPE_CHECKING:  # torch takes seconds to import, and the statistics do not need it
    from torch import Tensor


def save_tensors(path: Path, content: Tensor | dict[str, Tensor]) -> None:
    """Save tensors through an open file, so that the bytes do not depend on the file's name."""
    import torch

    try:
        with whole_file(path) as file:
            torch.save(content, file)
    except RuntimeError as error:  # what torch makes of a full disk
        cause = error.__context__
        raise (cause if isinstance(cause, OSError) else error) from None


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """Load tensors without running code; `mmap` maps the file instead of reading it.

    Raises:
        ValueError: the file is not a complete file of tensors.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise ValueError(
            f"{path} is not a complete file of tensors ({str(error)[:200]}); collect again"
        ) from error


def load_array(path: Path) -> np.ndarray:
    """An array, memory-mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True, eq=False, repr=False)
class Artifacts(Displayed):
    """What is known of one model on one task.

    Attributes:
        path: the folder.
        classes: class names in the tensor's order.
        over_zero: conditional activation probabilities, float32 [layers, neurons, classes].
        manifest: what made it; empty for artifacts of other tools.
    """

    path: Path
    classes: tuple[str, ...]
    over_zero: Tensor
    manifest: Mapping[str, Any]

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names, in order."""
        return tuple(
            self.manifest.get("layers", [f"layer {i}" for i in range(len(self.over_zero))])
        )

    @property
    def has_counts(self) -> bool:
        """Whether counts per clip are there."""
        return bool(self.manifest) and (self.path / "clip_counts.npy").is_file()

    def _need(self, file: str) -> Path:
        if not (self.path / file).is_file():
            raise ValueError(
                f"{self.path} has no {file}, which is needed here; collect again to get it"
            )
        return self.path / file

    def _column(self, name: str) -> np.ndarray:
        """A column of the manifest's clips."""
        if "clips" not in self.manifest:
            raise ValueError(
                f"{self.path} has no manifest.json with clips, so the {name} of each clip is not known"
            )
        return np.asarray(self.manifest["clips"][name])

    @functools.cached_property
    def files(self) -> np.ndarray:
        """File name of each clip, str [clips]."""
        return self._column("file")

    @functools.cached_property
    def splits(self) -> np.ndarray:
        """Split or fold of each clip, str [clips]."""
        return self._column("split")

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """Group (recording, speaker, ...) of each clip, str [clips]."""
        return self._column("group")

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Class index of each clip, int64 [clips]."""
        return self._column("label")

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Tokens per clip, int64 [clips]."""
        return self._column("tokens")

    @functools.cached_property
    def padding_tokens(self) -> np.ndarray:
        """Tokens of zero padding per clip, int64 [clips]."""
        return self._column("padding_tokens")

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Active tokens per clip, unsigned [clips, layers, neurons], memory-mapped."""
        return load_array(self._need("clip_counts.npy"))

    @functools.cached_property
    def means(self) -> np.ndarray:
        """Mean activation over a clip's tokens, float16 [clips, layers, neurons], memory-mapped."""
        if not self.manifest.get("means", True):
            raise ValueError(
                f"{self.path} holds no clip_means.npy, the neurons' mean activations: it was collected with means=False, or "
                "at linear layers in front of the activation functions.\nCollect elsewhere with means=True and a model "
                "whose activation functions are modules, or use what needs no means: criteria of rates; ablation.modes: "
                "[zero]."
            )
        return load_array(self._need("clip_means.npy"))

    @functools.cached_property
    def padding_counts(self) -> np.ndarray | None:
        """The same over tokens of zero padding; None where no clip is padded."""
        if self.manifest.get("padding") == "unknown":
            raise ValueError(
                f"{self.path}: some clips are padded, but {self.manifest['encoder']} does not say which tokens that "
                "makes; give its Encoder padding_masks and collect again"
            )
        return (
            None
            if self.manifest.get("padding") == "none"
            else load_array(self._need("padding_counts.npy"))
        )

    @functools.cached_property
    def features(self) -> dict[str, Tensor]:
        """Clip embeddings by split, float32 [clips, dim]."""
        return load_tensors(self._need("features.pt"))

    @functools.cached_property
    def gts(self) -> dict[str, Tensor]:
        """Class indices by split, int64 [clips], in the order of `features`."""
        return load_tensors(self._need("gts.pt"))

    def embeddings(self) -> np.ndarray:
        """Clip embeddings in the order of the clips, float32 [clips, dim]."""
        dim = next(iter(self.features.values())).shape[1]
        out = np.empty((len(self.splits), dim), dtype=np.float32)
        for split, rows in self.features.items():
            out[self.splits == split] = rows.numpy()
        return out

    def rows(
        self, split: str | Sequence[str] | None = None, clips: np.ndarray | None = None
    ) -> np.ndarray:
        """Indices of the clips of a split (or several) that are also in `clips` (bool mask or indices).

        Raises:
            ValueError: no such split.
        """
        chosen = np.ones(len(self.splits), dtype=bool)
        if split is not None:
            wanted = [split] if isinstance(split, str) else list(split)
            known = sorted(set(self.splits.tolist()))
            unknown = sorted(set(wanted) - set(known))
            if unknown:
                raise ValueError(
                    f"{self.path} has no split {unknown[0]!r}; it has {', '.join(known)}"
                )
            chosen &= np.isin(self.splits, wanted)
        if clips is not None:
            every = np.arange(len(chosen))
            chosen &= np.isin(every, every[np.asarray(clips)])
        return np.flatnonzero(chosen)

    def training_rows(self, split: str | Sequence[str] | None = None) -> np.ndarray:
        """Indices of the clips that neurons may be chosen on: those of `split`, else of "train" if there is one, else all.

        Raises:
            ValueError: no such split.
        """
        if split is None and "train" in self.splits:
            split = "train"
        return self.rows(split)

    def probabilities(
        self,
        split: str | Sequence[str] | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        clips: np.ndarray | None = None,
        padding: bool = True,
    ) -> np.ndarray:
        """Conditional activation probabilities for any regrouping of the clips, without the model.

        p[l, n, c] = active tokens / tokens over all clips of class c (paper; the estimate of LAPE, Tang et al. 2024).

        Args:
            split: one split, several, or None for all.
            classes: new class name -> old names that it unites; None keeps the task's classes.
            clips: bool mask or indices over clips.
            padding: count tokens of zero padding too, as EVAR does. Zeros in a file itself always count.

        Returns:
            float64 [layers, neurons, classes].

        Raises:
            ValueError: no counts, an unknown split or class, or a class without any clip or token among those chosen.
        """
        rows = self.rows(split, clips)
        members = {name: [name] for name in self.classes} if classes is None else classes
        padding_counts = None if padding else self.padding_counts
        tokens = self.tokens if padding else self.tokens - self.padding_tokens
        out = np.empty((*self.counts.shape[1:], len(members)), dtype=np.float64)
        for place, (name, old_names) in enumerate(members.items()):
            of_class = rows[np.isin(self.labels[rows], self._indices(name, old_names))]
            total = int(tokens[of_class].sum())
            if total == 0:
                raise ValueError(
                    f"class {name!r} has no clip among the {len(rows)} chosen (split={split})"
                )
            active = _sum_of_rows(self.counts, of_class)
            if padding_counts is not None:
                active -= _sum_of_rows(padding_counts, of_class)
            out[:, :, place] = active / total
        return out

    def _indices(self, name: str, old_names: Sequence[str]) -> list[int]:
        """Indices of the classes that a new class unites."""
        unknown = [old for old in old_names if old not in self.classes]
        if unknown:
            raise ValueError(
                f"class {name!r} unites {unknown[0]!r}, which {self.path} does not have"
            )
        return [self.classes.index(old) for old in old_names]

    def _facts(self) -> dict[str, Any]:
        layers, neurons, classes = self.over_zero.shape
        size = sum(file.stat().st_size for file in self.path.glob("*"))
        facts = self._facts_of_pass() if self.manifest else {"model": "of another tool"}
        facts["layers x neurons, classes"] = f"{layers} x {neurons}, {classes}"
        facts["mean activation probability"] = f"{float(self.over_zero.double().mean()):.3f}"
        facts["folder"] = f"{self.path}, {size / 2**20:.1f} MiB"
        return facts

    def _facts_of_pass(self) -> dict[str, Any]:
        manifest = self.manifest
        splits = ", ".join(
            f"{count:,} {split}" for split, count in sorted(Counter(self.splits.tolist()).items())
        )
        groups = "each clip its own"
        if manifest["group_column"]:
            groups = f"{len(set(self.groups))} by {manifest['group_column']}"
        padded = "unknown"
        if manifest["padding"] != "unknown":
            padded = f"{self.padding_tokens.sum() / self.tokens.sum():.1%}"
        facts = {
            "model": f"{manifest['encoder']}, {manifest['dtype']} on {manifest['device']}",
            "weights": f"{manifest['weights'].get('source')} (identity {manifest['identity'][:12]}...)",
            "task": f"{manifest['task']}, clips of {manifest['clip_seconds']} s",
            "clips": splits
            + (f"; {manifest['cut']:,} cut at clip_seconds" if manifest["cut"] else ""),
            "groups": groups,
            "tokens": f"{self.tokens.sum():,}, zero padding {padded}",
        }
        return facts | {f"note {number}": note for number, note in enumerate(manifest["notes"], 1)}

    def _title(self) -> str:
        return f"Artifacts {self.path.name}"


def _sum_of_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sum of chosen rows, int64, 512 at a time: all of a class may not fit into memory."""
    total = np.zeros(values.shape[1:], np.int64)
    for start in range(0, len(rows), 512):
        total += values[rows[start : start + 512]].sum(axis=0, dtype=np.int64)
    return total


def load_artifacts(directory: str | Path) -> Artifacts:
    """Read a folder of artifacts and check that it is complete and unchanged.

    Args:
        directory: a folder of our pass, or one in the authors' layout: over_zero.pt with classes.txt, and perhaps
            features.pt and gts.pt.

    Raises:
        FileNotFoundError: no such folder, or an unfinished one.
        ValueError: a file was changed, or has another shape than expected.
    """
    path = Path(directory)
    absent = [name for name in ("over_zero.pt", "classes.txt") if not (path / name).is_file()]
    if absent:
        interrupted = (path / ".partial").is_dir()
        how = (
            "its collection was interrupted: call it again to resume"
            if interrupted
            else "collect it"
        )
        raise FileNotFoundError(f"{path} has no {' and no '.join(absent)}; {how}")
    manifest = read_manifest(path / "manifest.json") if (path / "manifest.json").is_file() else {}
    for name, digest in manifest.get("checksums", {}).items():
        _check_unchanged(path / name, digest)
    classes = tuple(
        (path / "classes.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    )
    over_zero = load_tensors(path / "over_zero.pt")
    shape = tuple(getattr(over_zero, "shape", ()))
    if len(shape) != 3 or shape[2] != len(classes):
        raise ValueError(
            f"{path}/over_zero.pt is {shape}, expected [layers, neurons, {len(classes)}] by classes.txt"
        )
    if not ((over_zero >= 0) & (over_zero <= 1)).all():
        raise ValueError(f"{path}/over_zero.pt holds values outside [0, 1]; expected probabilities")
    if manifest:
        _check_shapes(path, manifest, classes, shape)
    return Artifacts(path, classes, over_zero, manifest)


def _check_unchanged(file: Path, digest: str) -> None:
    """Check the SHA-256 of a file, once per process while the file stays the same."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, its manifest lists it; collect again")
    status = file.stat()
    state = (str(file.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, digest)
    if state in _UNCHANGED:
        return
    found = sha256_of(file)
    if found != digest:
        raise ValueError(
            f"{file} is not the file its manifest describes (SHA-256 {found[:12]}..., expected {digest[:12]}...): it was "
            "edited, or belongs to another run. Restore it, or delete the folder and collect again."
        )
    _UNCHANGED.add(state)


_UNCHANGED: set[tuple[str | int, ...]] = set()


def _check_shapes(
    path: Path, manifest: Mapping[str, Any], classes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    """Check that the arrays have the sizes that the manifest says."""
    layers, neurons = len(manifest["layers"]), manifest["neurons"]
    clips = len(manifest["clips"]["file"])
    expected = {
        "classes.txt": list(classes) == manifest["classes"],
        "over_zero.pt": shape[:2] == (layers, neurons),
    }
    for name in set(ARRAYS) & set(manifest["checksums"]):
        expected[name] = load_array(path / name).shape == (clips, layers, neurons)
    wrong = [name for name, agrees in expected.items() if not agrees]
    if wrong:
        raise ValueError(
            f"{path}/{wrong[0]} and manifest.json are not of the same pass: other classes, clips or sizes.\n"
            "Restore the folder, or delete it and collect again."
        )


class ArrayWriter:
    """Append rows to a .npy file of known final shape, without holding or mapping it."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._file, self._dtype = file, dtype
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_2_0(file, header)

    def append(self, rows: np.ndarray) -> None:
        """Write rows [k, ...]."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
