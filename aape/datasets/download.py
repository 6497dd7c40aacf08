"""Checkpoints and freely downloadable datasets, fetched only when asked for.

pooch does the work: temporary names, another try where a transfer breaks, checksums. A file whose publisher states no
checksum is held to that of its first download, which `checksums.json` in the folder records once the file is known to
be whole: an archive that was unpacked to its end, another file whose length is the one that the server announced.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pooch
import requests

from aape.datasets import DATASETS
from aape.datasets.base import Dataset, Remote, find
from aape.files import write_json, write_text

_IDENTITY = {"Accept-Encoding": "identity"}  # with Content-Encoding, lengths would count compressed bytes
_TIMEOUT = 30.0  # s without a byte
_EXPANSION = 100  # an archive that unpacks to more than so many times its size is none of recordings
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


def download(
    names: Iterable[str], folder: str | Path, *, items: Mapping[str, Dataset] = DATASETS, retries: int = 2
) -> dict[str, Path]:
    """Fetch datasets and weights, unpack archives, and return where each lies.

    What is whole already is not fetched again; a broken transfer is tried again from its beginning. A file that was put
    where it belongs by other means is taken as it is.

    Args:
        names: of datasets, or of their tasks.
        folder: where to; each goes into a folder of its name, archives are kept in `archives/`.
        items: what can be had. retries: attempts after the first (pooch).

    Raises:
        ValueError: an unknown name, a file that is not what its checksum says, an archive that does not open.
        ConnectionError: the server could not be reached or kept breaking off.
        OSError: not enough space.
    """
    folder = Path(folder).expanduser().absolute()
    wanted = [find(name, items) for name in names]
    for item in wanted:
        if not item.remotes:
            raise ValueError(f"{item.name} cannot be fetched from here; `aape download --help {item.name}` says how")
    places = {item.name: folder / (item.folder or item.name) for item in wanted}
    for item in wanted:
        for remote in item.remotes:
            _fetch(remote, places[item.name], folder, retries)
    return places


def _fetch(remote: Remote, into: Path, folder: Path, retries: int) -> None:
    """One file to its place, whole, unpacked and recorded."""
    archive = remote.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))
    store = folder / "archives" if archive else into / remote.into
    target, ledger = store / remote.name, folder / "checksums.json"
    store.mkdir(parents=True, exist_ok=True)
    recorded = _recorded(ledger)
    checksum = remote.checksum or recorded.get(remote.url, {}).get("sha256")
    announced = None if target.is_file() else _announced_length(remote.url)
    free = shutil.disk_usage(store).free
    if announced is not None and announced > free:
        raise OSError(f"{remote.url} needs {announced:,} bytes, {store} has {free:,} free; give --folder elsewhere")
    pup = pooch.create(
        store, "", registry={remote.name: checksum}, urls={remote.name: remote.url}, retry_if_failed=retries
    )
    try:
        getter = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), headers=_IDENTITY, timeout=_TIMEOUT)
        pup.fetch(remote.name, downloader=getter)
    except requests.RequestException as error:
        raise ConnectionError(
            f"{remote.url} could not be fetched: {error}. Run the same command again, or put the file at {target} "
            "yourself."
        ) from error
    except ValueError as error:
        remedy = "tell us" if remote.checksum else f"take its entry, of the first download, out of {ledger}"
        raise ValueError(
            f"{remote.url} is not the file it should be: {error} If it was replaced on purpose, {remedy}; else try "
            "again later."
        ) from error
    size = target.stat().st_size
    if announced is not None and size != announced:
        target.unlink()
        raise ConnectionError(f"{remote.url}: {size:,} of {announced:,} bytes arrived; run the same command again")
    if archive:
        _unpack(target, into)
    if checksum is None and (archive or announced is not None):
        entry = {"sha256": pooch.file_hash(str(target)), "bytes": size}
        write_json(ledger, recorded | {remote.url: entry})


def _recorded(ledger: Path) -> dict[str, dict[str, Any]]:
    """Address -> SHA-256 and length of files whose publisher states no checksum, as first downloaded."""
    try:
        return {url: dict(entry) for url, entry in json.loads(ledger.read_text("utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{ledger} is damaged ({error}); mend it, or delete it to start over") from None


def _announced_length(url: str) -> int | None:
    """How long the server says a file is, or None where it does not say."""
    try:
        reply = requests.head(url, headers=_IDENTITY, timeout=_TIMEOUT, allow_redirects=True)
    except requests.RequestException:
        return None  # the download itself will say what is wrong
    length = reply.headers.get("Content-Length", "") if reply.ok and "Content-Encoding" not in reply.headers else ""
    return int(length) if length.isdigit() else None


def _unpack(archive: Path, into: Path) -> None:
    """Unpack once: a stamp beside the archive says which bytes were unpacked where."""
    stamp = archive.with_name(archive.name + ".unpacked")
    key = hashlib.sha256(f"{archive.stat().st_size} {archive.stat().st_mtime_ns} {into}".encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key and into.is_dir():
        return
    print(f"unpacking {archive.name} into {into}", file=sys.stderr)
    into.mkdir(parents=True, exist_ok=True)
    try:
        (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, into)
    except _BROKEN as error:
        archive.unlink()
        raise ValueError(
            f"{archive} does not open as an archive ({error}) and was removed; run the same command again"
        ) from error
    write_text(stamp, key)


def _unpack_zip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        _check_size(archive, sum(member.file_size for member in file.infolist()))
        file.extractall(into)  # leaves out `..` and leading slashes by itself


def _unpack_tar(archive: Path, into: Path) -> None:
    total = 0
    with archive.open("rb") if archive.suffix == ".tar" else gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as file:
            for member in file:
                total += member.size
                _check_size(archive, total)
                file.extract(member, into, filter="data")
            if stream.tell() == file.offset:
                raise EOFError("it ends without its end mark")
        while stream.read(1 << 20):  # to the end, where gzip checks its sum
            pass


def _check_size(archive: Path, unpacked: int) -> None:
    if unpacked > _EXPANSION * archive.stat().st_size + 10_000_000:
        raise ValueError(
            f"{archive} would unpack to more than {_EXPANSION} times its size; that is no dataset, look at it"
        )
