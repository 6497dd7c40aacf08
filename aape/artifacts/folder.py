"""Files on disk: what a collecting pass leaves, checked when it is read back.

A folder of artifacts holds `over_zero.pt` and `classes.txt`, which other tools make too, and from our own pass
`clip_counts.npy`, `clip_means.npy`, `padding_counts.npy`, `features.pt`, `gts.pt` and `manifest.json`. Every file is written under a
temporary name and renamed when whole; the manifest comes last, so where it stands the rest is whole.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from aape.artifacts.manifest import ARRAYS, read_manifest
from aape.display import Displayed
from aape.files import sha256_of, whole_file

if TYPE_CHECKING:  # torch takes seconds to import, and the statistics do without
    from torch import Tensor

LARGE = 64 << 20  # bytes; larger files are only verified on request


def save_tensors(path: Path, content: Tensor | dict[str, Tensor]) -> None:
    """torch.save through an open file, so that the bytes do not depend on the file's name."""
    import torch

    try:
        with whole_file(path) as file:
            torch.save(content, file)
    except RuntimeError as error:  # what torch makes of a full disk
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """torch.load without running code, or of a map of the file.

    Raises:
        ValueError: not a whole file of tensors.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise ValueError(f"{path} is no whole file of tensors ({str(error)[:200]}); collect again") from error


def load_array(path: Path) -> np.ndarray:
    """An array, memory-mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _of_clips(name: str, doc: str) -> property:
    """A column of the manifest's clips as an attribute of the artifacts."""

    def column(artifacts: Artifacts) -> np.ndarray:
        if "clips" not in artifacts.manifest:
            raise ValueError(f"{artifacts.path}: no manifest.json with clips, so {name} of single clips is not known")
        return np.asarray(artifacts.manifest["clips"][name])

    return property(column, doc=doc)


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
        return tuple(self.manifest.get("layers", [f"layer {i}" for i in range(len(self.over_zero))]))

    @property
    def has_all_counts(self) -> bool:
        """Whether the counts of every clip are known, so that any question about some clips can be answered."""
        return self.has_counts and "kept_clips" not in self.manifest

    @property
    def has_counts(self) -> bool:
        """Whether counts per clip are there, of every clip or of those that were kept."""
        return bool(self.manifest) and (self.path / "clip_counts.npy").is_file()

    def _need(self, file: str) -> Path:
        if not self.manifest or not (self.path / file).is_file():
            raise ValueError(f"{self.path} holds no {file}, which is needed here; collect again, and with it")
        return self.path / file

    files = _of_clips("file", "File name of each clip, str [clips].")
    splits = _of_clips("split", "Split or fold of each clip, str [clips].")
    groups = _of_clips("group", "Group (recording, speaker, ...) of each clip, str [clips].")
    labels = _of_clips("label", "Class index of each clip, int64 [clips].")
    tokens = _of_clips("tokens", "Tokens per clip, int64 [clips].")
    padding_tokens = _of_clips("padding_tokens", "Tokens of zero padding per clip, int64 [clips].")

    @property
    def kept(self) -> np.ndarray:
        """Which clip each row of `counts` and `means` is, int64, rising: all, or those that were kept."""
        return np.asarray(self.manifest.get("kept_clips", range(len(self.labels))), dtype=np.int64)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Active tokens per clip, unsigned [clips that were kept (`kept`), layers, neurons], memory-mapped."""
        return load_array(self._need("clip_counts.npy"))

    @functools.cached_property
    def means(self) -> np.ndarray:
        """Mean activation over a clip's tokens, float16 [clips, layers, neurons], memory-mapped; rows as `counts`."""
        if not self.manifest.get("means", True):
            raise ValueError(
                f"{self.path} holds no clip_means.npy, the neurons' mean activations: collected with means=False, or at "
                "linear layers in front of the activation functions.\nCollect elsewhere with means=True and a model whose "
                "activation functions are modules, or do without: criteria of rates; ablation.modes: [zero]."
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
        return None if self.manifest.get("padding") == "none" else load_array(self._need("padding_counts.npy"))

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

    def rows(self, split: str | Sequence[str] | None = None, clips: np.ndarray | None = None) -> np.ndarray:
        """Indices of the clips of a split (or several) that are also in `clips` (bool mask or indices).

        Raises:
            ValueError: no such split.
        """
        chosen = np.ones(len(self.splits), dtype=bool)
        if split is not None:
            wanted, have = [split] if isinstance(split, str) else list(split), sorted(set(self.splits))
            if unknown := sorted({*wanted} - {*have}):
                raise ValueError(f"{self.path} has no split {unknown[0]!r}; it has {', '.join(have)}")
            chosen &= np.isin(self.splits, wanted)
        if clips is not None:
            chosen &= np.isin(np.arange(len(chosen)), np.arange(len(chosen))[np.asarray(clips)])
        return np.flatnonzero(chosen)

    def probabilities(
        self,
        split: str | Sequence[str] | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        clips: np.ndarray | None = None,
        padding: bool = True,
    ) -> np.ndarray:
        """Conditional activation probabilities of any regrouping of clips, without the model.

        p[l, n, c] = active tokens / tokens over all clips of class c (paper; the estimate of LAPE, Tang et al. 2024).

        Args:
            split: one split, several, or None for all.
            classes: new class name -> old names that it unites; None keeps the task's.
            clips: bool mask or indices over clips.
            padding: count tokens of zero padding too, as EVAR does. Zeros that stand in a file itself count either way.

        Returns:
            float64 [layers, neurons, classes].

        Raises:
            ValueError: no counts, an unknown split or class, a class without a clip or token in the choice.
        """
        if "kept_clips" in self.manifest:
            raise ValueError(f"{self.path}: counts of {len(self.counts)} clips only were kept; use over_zero instead")
        rows = self.rows(split, clips)
        index = {name: i for i, name in enumerate(self.classes)}
        wanted = {name: [name] for name in self.classes} if classes is None else classes
        if unknown := [(new, o) for new, old in wanted.items() for o in old if o not in index]:
            raise ValueError(f"class {unknown[0][0]!r} is to hold {unknown[0][1]!r}, which {self.path} does not have")
        pad = None if padding else self.padding_counts
        tokens = self.tokens - (0 if padding else self.padding_tokens)
        out = np.empty((*self.counts.shape[1:], len(wanted)), dtype=np.float64)
        for c, (new, old) in enumerate(wanted.items()):
            mine = rows[np.isin(self.labels[rows], [index[o] for o in old])]
            if (total := int(tokens[mine].sum())) == 0:
                raise ValueError(f"class {new!r} has no clip among the {len(rows)} chosen (split={split})")
            active = _sum_of_rows(self.counts, mine) - (0 if pad is None else _sum_of_rows(pad, mine))
            out[:, :, c] = active / total
        return out

    def _facts(self) -> dict[str, Any]:
        m, (layers, neurons, classes) = self.manifest, self.over_zero.shape
        facts: dict[str, Any] = {"model": "of another tool"}
        if m:
            splits = ", ".join(f"{n:,} {split}" for split, n in sorted(Counter(self.splits.tolist()).items()))
            groups = f"{len(set(self.groups))} by {m['group_column']}" if m["group_column"] else "every clip its own"
            padded = "unknown" if m["padding"] == "unknown" else f"{self.padding_tokens.sum() / self.tokens.sum():.1%}"
            facts = {
                "model": f"{m['encoder']}, {m['dtype']} on {m['device']}",
                "weights": f"{m['weights'].get('source')} (identity {m['identity'][:12]}...)",
                "task": f"{m['task']}, clips of {m['clip_seconds']} s",
                "clips": splits + (f"; {m['cut']:,} cut at clip_seconds" if m["cut"] else ""),
                "groups": groups,
                "tokens": f"{self.tokens.sum():,}, of zero padding {padded}",
            } | {f"note {i}": note for i, note in enumerate(m["notes"], 1)}
        return facts | {
            "layers x neurons, classes": f"{layers} x {neurons}, {classes}",
            "mean activation probability": f"{float(self.over_zero.double().mean()):.3f}",
            "folder": f"{self.path}, {sum(f.stat().st_size for f in self.path.glob('*')) / 2**20:.1f} MiB",
        }

    def _title(self) -> str:
        return f"Artifacts {self.path.name}"


def _sum_of_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sum of chosen rows, int64, some at a time: all of a class may not fit into memory."""
    total = np.zeros(values.shape[1:], np.int64)
    for start in range(0, len(rows), 512):
        total += values[rows[start : start + 512]].sum(axis=0, dtype=np.int64)
    return total


def load_artifacts(directory: str | Path, *, verify: bool = False) -> Artifacts:
    """Read a folder of artifacts and check that it is whole and consistent.

    Args:
        directory: ours, or another tool's over_zero.pt with classes.txt.
        verify: also verify the checksums of files above 64 MiB; smaller ones always are.

    Raises:
        FileNotFoundError: no such folder, or an unfinished one.
        ValueError: a file was changed, is of another shape, or belongs elsewhere.
    """
    path = Path(directory)
    if missing := [f for f in ("over_zero.pt", "classes.txt") if not (path / f).is_file()]:
        cut_off = (path / ".partial").is_dir()
        how = "its collection was cut off: call it again and it goes on" if cut_off else "collect it"
        raise FileNotFoundError(f"{path} has no {' and no '.join(missing)}; {how}")
    manifest = read_manifest(path / "manifest.json") if (path / "manifest.json").is_file() else {}
    for name, digest in manifest.get("checksums", {}).items():
        if not (file := path / name).is_file():
            raise FileNotFoundError(f"{file} is missing, its manifest lists it; collect again")
        if (verify or file.stat().st_size <= LARGE) and (found := sha256_of(file)) != digest:
            raise ValueError(
                f"{file} is not the file its manifest describes (SHA-256 {found[:12]}..., expected {digest[:12]}...): "
                "edited, or of another run. Restore it, or delete the folder and collect again."
            )
    classes = tuple((path / "classes.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    over_zero = load_tensors(path / "over_zero.pt")
    shape = tuple(getattr(over_zero, "shape", ()))
    if len(shape) != 3 or shape[2] != len(classes):
        raise ValueError(f"{path}/over_zero.pt is {shape}, expected [layers, neurons, {len(classes)}] by classes.txt")
    if not ((over_zero >= 0) & (over_zero <= 1)).all():
        raise ValueError(f"{path}/over_zero.pt holds values outside [0, 1]; expected probabilities")
    artifacts = Artifacts(path, classes, over_zero, manifest)
    if manifest and (name := next(_disagreeing(artifacts), None)):
        raise ValueError(
            f"{path}/{name} and manifest.json do not speak of the same pass: other classes, clips or sizes.\n"
            "Restore the folder, or delete it and collect again."
        )
    return artifacts


def _disagreeing(artifacts: Artifacts) -> Iterator[str]:
    """Files that contradict the manifest beside them."""
    m, path = artifacts.manifest, artifacts.path
    if list(artifacts.classes) != m["classes"]:
        yield "classes.txt"
    shape = len(m["layers"]), m["neurons"]
    if artifacts.over_zero.shape != (*shape, len(m["classes"])):
        yield "over_zero.pt"
    rows = len(m.get("kept_clips", m["clips"]["file"]))
    for name in set(ARRAYS) & set(m["checksums"]):
        values = load_array(path / name)
        right_type = values.dtype == np.float16 if name == "clip_means.npy" else values.dtype.kind == "u"
        if values.shape != (rows, *shape) or not right_type:
            yield name
    labels = {split: artifacts.labels[artifacts.splits == split].tolist() for split in set(artifacts.splits)}
    for name, axes in (("gts.pt", 1), ("features.pt", 2)):
        found = load_tensors(path / name, mmap=True)
        tensors = {s: rows for s, rows in found.items() if hasattr(rows, "ndim")} if isinstance(found, dict) else {}
        sizes = {split: (rows.ndim, *rows.shape[:1]) for split, rows in tensors.items()}
        if sizes != {split: (axes, len(rows)) for split, rows in labels.items()}:
            yield name
    if any(artifacts.gts[split].tolist() != rows for split, rows in labels.items()):
        yield "gts.pt"


class ArrayWriter:
    """Append rows to a .npy file of known final shape, without holding or mapping it."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._file, self._dtype = file, dtype
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)

    def append(self, rows: np.ndarray) -> None:
        """Write rows [k, ...]."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
