"""Files: written whole or not at all, checksums, caches keyed by content, and the lock of a folder."""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

_LITTER = ".*.[0-9]*-[0-9]*.part"  # the temporary names of `whole_file`


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # hashlib.file_digest needs Python 3.11
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def whole_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, renamed to it when the block ends well and removed when it does not.

    The temporary name belongs to this process and thread. Content and name are on the disk when the block is left,
    unless `sync` is False, which is for caches that notice a torn entry.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if sync:
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Write a text file, whole or not at all; `sync` as in `whole_file`."""
    with whole_file(path, sync) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any, sync: bool = True) -> None:
    """Write JSON with sorted keys, whole or not at all; `sync` as in `whole_file`."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", sync)


class Cache:
    """Arrays on disk, found again by name and key: whatever cannot be trusted is computed anew, never raised.

    An entry is one `.npz` file that also holds its key and the SHA-256 of its arrays.

    Args:
        folder: made when the first entry is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """The file of an entry; a name may contain folders."""
        return self.folder / f"{name}.npz"

    def get(self, name: str, key: Any) -> dict[str, np.ndarray] | None:
        """The arrays that `put` stored, or None: not there, of another key, or, with a warning, damaged.

        Args:
            name: of the entry. key: all that the arrays depend on; anything that JSON can hold.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            found, digest = str(arrays.pop("__key__")), str(arrays.pop("__digest__"))
            if digest != _digest(found, arrays):
                raise ValueError("its content is not what was written")
        except Exception as error:  # a damaged or foreign file can raise anything that zipfile and NumPy know
            warnings.warn(f"{path} cannot be used ({error}); what it held is computed anew", stacklevel=2)
            return None
        return arrays if found == _text(key) else None

    def put(self, name: str, key: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Store arrays, whole or not at all, in place of an earlier entry of that name."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _text(key)
        buffer = io.BytesIO()  # first to memory: zipfile on a full disk leaves with other errors than OSError
        meta = {"__key__": np.array(text), "__digest__": np.array(_digest(text, arrays))}
        np.savez(buffer, **meta, **arrays)  # type: ignore[arg-type]
        with whole_file(path, sync=False) as file:
            file.write(buffer.getbuffer())


def _text(key: Any) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(key.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class FolderBusy(OSError):
    """Another process holds the lock of a folder."""


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold the one lock of a folder, so that no two processes write there.

    The operating system frees the lock when its owner ends, however it ends; the next owner then removes the
    temporary files that were left. Who owns it stands in `.lock.json`, and a note from another host is never
    overruled, because file locks do not always reach across machines.

    Raises:
        FolderBusy: held by another process (or thread) here, or, as far as can be seen, on another host.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note, here = folder / ".lock.json", socket.gethostname()
    try:
        with FileLock(folder / ".lock").acquire(blocking=False):
            host, owner = _owner(note)
            if host not in (None, here):
                raise FolderBusy(
                    f"{owner}; whether it still runs cannot be seen from {here}.\n"
                    f"If it is gone, delete {note} and call again; nothing was changed."
                )
            for litter in folder.rglob(_LITTER):
                litter.unlink(missing_ok=True)
            write_json(note, {"pid": os.getpid(), "host": here, "started": time.time()}, sync=False)
            try:
                yield
            finally:
                note.unlink(missing_ok=True)
    except Timeout:
        raise FolderBusy(f"{_owner(note)[1]}.\nWait for it or end it, then call again; nothing was changed.") from None


def _owner(note: Path) -> tuple[str | None, str]:
    """Host in a lock's note (None: no note, or none that can be read), and a sentence on its owner."""
    try:
        owner = json.loads(note.read_text())
        host, pid, minutes = str(owner["host"]), int(owner["pid"]), (time.time() - float(owner["started"])) / 60
    except (OSError, ValueError, KeyError, TypeError):
        return None, f"{note.parent} is in use by another process"
    return host, f"{note.parent} is in use by process {pid} on {host}, which took it {minutes:.1f} minutes ago"


class Shown:
    """An object that shows itself by its facts: a line for each as text, a row for each in Jupyter."""

    def _facts(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def _title(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return "\n".join([self._title(), *(f"  {name}: {value}" for name, value in self._facts().items())])

    def _repr_html_(self) -> str:
        facts = [[html.escape(str(cell)) for cell in fact] for fact in self._facts().items()]
        left = "style='text-align:left'"
        rows = "".join(f"<tr><th {left}>{name}</th><td {left}>{value}</td></tr>" for name, value in facts)
        return f"<b>{html.escape(self._title())}</b><table>{rows}</table>"
