"""Long work that can be interrupted: results are kept on disk batch by batch, and only what is missing is computed.

    def compute(names):                     # of the missing batches, in order
        for name in names:
            yield {"counts": count(name)}

    for result in resumed(folder, key, batches, compute, code=code_version("collecting")):
        ...

A kept result is used again only if it belongs to the same key and the same version of the code. A result that is missing,
damaged, or made by other code is computed again. The same call therefore resumes after a crash, a full disk or a kill, on
the same host or on another one. `collect`, `attribute`, the ablation, the analysis and the atlas all use this function.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aape.files import FolderBusy, folder_lock, whole_file

__all__ = ["FolderBusy", "code_version", "folder_lock", "forget", "missing", "resumed"]

Arrays = Mapping[str, np.ndarray]
_KEY = "__key__"


def resumed(
    folder: str | Path,
    key: Any,
    batches: Mapping[str, Any],
    compute: Callable[[Sequence[str]], Iterable[Arrays]],
    *,
    code: str,
) -> Iterator[Arrays]:
    """Yield the result of every batch in order; compute and keep those that are missing.

    Args:
        folder: where results are kept, one file per batch. It is created when the first result is written.
        key: everything that all results depend on, such as settings and a hash of the weights. Anything that JSON can
            hold.
        batches: name of each batch -> what its result depends on besides `key`. Names become file names.
        compute: takes the names of the missing batches, in order, and returns one result for each of them, a dictionary of
            arrays. It can read ahead.
        code: version of the code that computes the results, from `code_version`.

    Yields:
        The results, in the order of `batches`.

    Raises:
        OSError: the disk is full. Everything that was computed is kept.
    """
    store = _Store(Path(folder), key, code)
    absent = missing(folder, key, batches, code=code)
    computed = iter(compute(absent)) if absent else iter(())
    waiting = set(absent)
    for name, depends_on in batches.items():
        if name in waiting:
            yield store.put(name, depends_on, next(computed))
            continue
        kept: Arrays | None = store.get(name, depends_on)
        if kept is None:  # it was damaged after we had looked
            kept = store.put(name, depends_on, next(iter(compute([name]))))
        yield kept
    next(
        computed, None
    )  # lets the computation finish what it does after its last batch, such as a warning


def missing(folder: str | Path, key: Any, batches: Mapping[str, Any], *, code: str) -> list[str]:
    """Names of the batches whose results `resumed` would compute; arguments as there."""
    store = _Store(Path(folder), key, code)
    return [name for name, depends_on in batches.items() if store.get(name, depends_on) is None]


def forget(folder: str | Path) -> None:
    """Remove the results that are kept in a folder, and the folder itself if nothing else is in it."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in folder.glob("*.npz"):
        path.unlink()
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


@functools.cache
def code_version(*packages: str) -> str:
    """A hash of the source code of some parts of this package, such as "collecting" or "causal".

    Results that were kept by other code are computed again, so that a mended error cannot survive on disk. Comments and
    the layout of the code make no difference.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for package in sorted(packages):
        path = root / package
        files = sorted(path.rglob("*.py")) if path.is_dir() else [root / f"{package}.py"]
        for file in files:
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(ast.dump(ast.parse(file.read_bytes())).encode())
    return digest.hexdigest()[:16]


class _Store:
    """Results on disk, found by the name of their batch and valid for one key and one version of the code."""

    def __init__(self, folder: Path, key: Any, code: str) -> None:
        self.folder = folder
        self.key = [key, code]

    def _text(self, depends_on: Any) -> str:
        return json.dumps([*self.key, depends_on], sort_keys=True)

    def get(self, name: str, depends_on: Any) -> dict[str, np.ndarray] | None:
        """The kept result, or None if there is none that can be used."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file[_KEY]) != self._text(depends_on):
                    return None
                return {
                    array: file[array] for array in file.files if array != _KEY
                }  # zip checks every byte by CRC-32
        except Exception as error:  # a damaged file can raise anything that zipfile and NumPy know
            warnings.warn(
                f"{path} is damaged ({error}); its content is computed again", stacklevel=3
            )
            return None

    def put(self, name: str, depends_on: Any, arrays: Arrays) -> Arrays:
        """Keep a result, completely or not at all, in place of an earlier one; returns it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = (
            io.BytesIO()
        )  # first to memory: on a full disk zipfile raises errors that hide the cause
        np.savez(buffer, **{_KEY: np.array(self._text(depends_on))}, **arrays)  # type: ignore[arg-type]
        with whole_file(self.folder / f"{name}.npz", sync=False) as file:
            file.write(buffer.getbuffer())
        return arrays
