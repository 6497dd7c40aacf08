"""Writing files completely or not at all, checksums, and the lock that gives a folder to one process at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

HEARTBEAT_SECONDS = 5.0  # the owner of a lock renews its note this often
STALE_SECONDS = (
    30.0  # a note from another host that was not renewed for this long belongs to a dead process
)
_TEMPORARY = ".*.[0-9]*-[0-9]*.part"  # names that `whole_file` uses
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # hashlib.file_digest needs Python 3.11
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def whole_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Write a file completely or not at all.

    The block writes to a temporary file next to `path`. The temporary file is renamed to `path` when the block succeeds
    and is removed when it fails.

    Args:
        path: the file to write.
        sync: whether content and name must have reached the disk when the block is left. Files whose damage would be
            noticed and repaired do without it.

    Raises:
        OSError: the file cannot be written. If the disk is full, the message says what to do.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with full_disk_explained(path.parent):
            with temporary.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if sync:
                sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn the system's error for a full disk or an exceeded quota into a message that says what to do.

    Raises:
        OSError: with the same error number.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or str(error.strerror).startswith(
            "no space"
        ):
            raise
        message = (
            f"no space left in {folder}. Everything that was computed is kept: free some space, then call again to "
            "resume."
        )
        raise OSError(error.errno, message) from error


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder have reached the disk, on systems that can do so."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Write a text file completely or not at all; `sync` as in `whole_file`."""
    with whole_file(path, sync) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any, sync: bool = True) -> None:
    """Write JSON with sorted keys, completely or not at all; `sync` as in `whole_file`."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", sync)


class FolderBusy(OSError):
    """Another process holds the lock of a folder."""


@dataclass(frozen=True)
class _Owner:
    """Who holds a lock, as its note says."""

    host: str
    process: int
    silent_seconds: float  # since the note was last renewed

    def describe(self, folder: Path) -> str:
        return (
            f"{folder} is in use by process {self.process} on {self.host}, which was active "
            f"{self.silent_seconds:.0f} s ago. Wait for it or stop it, then call again; nothing was changed"
        )


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder while the block runs, so that no second process writes there.

    Two mechanisms work together. A lock of the operating system is released however its owner ends. Because such locks
    do not always reach other hosts, the owner also renews a note (`.lock.json`) every few seconds. A note from another
    host that is no longer renewed belongs to a process that has ended; this call waits until that is certain and then
    goes on, so that a job that was killed and restarted on another node resumes. Where the file system has no locks, the
    note alone decides.

    Raises:
        FolderBusy: another process, here or on another host, is using the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / ".lock.json"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / ".lock").acquire(blocking=False))
            locked = True
        except Timeout:
            owner = _owner_of(note)
            raise FolderBusy(
                owner.describe(folder) if owner else f"{folder} is in use by another process"
            ) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            locked = False
        _wait_for_other_host(folder, note, locked)
        for temporary in folder.rglob(_TEMPORARY):
            temporary.unlink(missing_ok=True)
        write_json(note, {"process": os.getpid(), "host": socket.gethostname()}, sync=False)
        ended = threading.Event()
        renewing = threading.Thread(target=_renew, args=(note, ended), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            note.unlink(missing_ok=True)


def _wait_for_other_host(folder: Path, note: Path, locked: bool) -> None:
    """Return when no other process can be using the folder; raise FolderBusy if one is active.

    Args:
        folder: the locked folder.
        note: its note.
        locked: whether the operating system's lock is held, which settles the question for processes of this host.
    """
    told = False
    first_silence: float | None = None
    while (owner := _owner_of(note)) is not None and owner.silent_seconds < STALE_SECONDS:
        if locked and owner.host == socket.gethostname():
            return
        renewed = first_silence is not None and owner.silent_seconds < first_silence
        if renewed:
            raise FolderBusy(owner.describe(folder))
        first_silence = owner.silent_seconds
        if not told:
            tqdm.write(
                f"{folder} was in use on {owner.host} {owner.silent_seconds:.0f} s ago; checking whether it still is"
            )
            told = True
        time.sleep(1.0)


def _owner_of(note: Path) -> _Owner | None:
    """The owner that a note names; None if there is no note or it cannot be read."""
    try:
        with note.open() as file:  # opening makes network file systems look at the current times
            content = json.load(file)
            renewed = os.fstat(file.fileno()).st_mtime
        return _Owner(
            str(content["host"]),
            int(content["process"]),
            max(0.0, _file_system_now(note.parent) - renewed),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_system_now(folder: Path) -> float:
    """The current time by the clock that stamps files in this folder, which may be another host's."""
    probe = folder / f".{os.getpid()}.clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _renew(note: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(note)
