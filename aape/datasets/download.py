"""Checkpoints and freely downloadable datasets, fetched only when asked for.

pooch does the work: temporary names, another try where a transfer breaks, checksums. An archive whose publisher states
no checksum is held to that of its first download, which `checksums.json` in the folder records once the archive has
been unpacked to its end.
"""

from __future__ import annotations

import contextlib
import gzip
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
from aape.files import sha256_of, write_json, write_text

_EXPANSION = 100  # an archive that unpacks to more than so many times its size is none of recordings
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


def download(names: Iterable[str], folder: str | Path, *, items: Mapping[str, Dataset] = DATASETS) -> dict[str, Path]:
    """Fetch datasets and weights, unpack archives, and return where each lies.

    What is whole already is not fetched again; a broken transfer is tried again from its beginning. A file that was put
    where it belongs by other means is taken as it is.

    Args:
        names: of datasets, or of their tasks.
        folder: where to; each goes into a folder of its name, archives are kept in `archives/`.
        items: what can be had.

    Raises:
        ValueError: an unknown name, a file that is not what its checksum says, an archive that does not open.
        ConnectionError: the server could not be reached or kept breaking off.
        OSError: the disk has not the space that the server announces, or is full.
    """
    folder = Path(folder).expanduser().absolute()
    wanted = [find(name, items) for name in names]
    for item in wanted:
        if not item.remotes:
            raise ValueError(f"{item.name} cannot be fetched from here; `aape download --help {item.name}` says how")
    places = {item.name: folder / (item.folder or item.name) for item in wanted}
    for item in wanted:
        for remote in item.remotes:
            _fetch(remote, places[item.name], folder)
    return places


def _fetch(remote: Remote, into: Path, folder: Path) -> None:
    """One file to its place, whole, unpacked and recorded."""
    archive = remote.name.endswith((".zip", ".tar", ".tar.gz"))
    store, ledger = folder / "archives" if archive else into, folder / "checksums.json"
    target = store / remote.name
    try:
        recorded = (
            {url: dict(e) for url, e in json.loads(ledger.read_text("utf-8")).items()} if ledger.is_file() else {}
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{ledger} is damaged ({error}); mend it, or delete it to start over") from None
    checksum = remote.checksum or recorded.get(remote.url, {}).get("sha256")
    pup = pooch.create(store, "", registry={remote.name: checksum}, urls={remote.name: remote.url}, retry_if_failed=2)
    options: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "timeout": 30.0}  # archives as they are
    if not target.is_file():
        store.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(requests.RequestException, ValueError):  # the download itself will say what is wrong
            length = requests.head(remote.url, allow_redirects=True, **options).headers.get("Content-Length", 0)
            if int(length) > (free := shutil.disk_usage(store).free):
                raise OSError(
                    f"{remote.url} needs {int(length):,} bytes, {store} has {free:,} free; give another --folder"
                )
    try:
        pup.fetch(remote.name, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), **options))
    except requests.RequestException as error:
        remedy = f"Run the same command again, or put the file at {target} yourself"
        raise ConnectionError(f"{remote.url} could not be fetched: {error}. {remedy}.") from error
    except ValueError as error:
        remedy = "tell us" if remote.checksum else f"take its entry, of the first download, out of {ledger}"
        raise ValueError(
            f"{remote.url} is not the file it should be: {error} If it was replaced on purpose, {remedy}."
        ) from error
    if archive:
        _unpack(target, into)
    if archive and checksum is None:
        entry = {"sha256": sha256_of(target), "bytes": target.stat().st_size}
        write_json(ledger, recorded | {remote.url: entry})


def _unpack(archive: Path, into: Path) -> None:
    """Unpack once: a stamp beside the archive says which bytes were unpacked where."""
    stamp = archive.with_name(archive.name + ".unpacked")
    key = f"{archive.stat().st_size} {archive.stat().st_mtime_ns} {into}"
    if stamp.is_file() and stamp.read_text("utf-8") == key and into.is_dir():
        return
    print(f"unpacking {archive.name} into {into}", file=sys.stderr)
    into.mkdir(parents=True, exist_ok=True)
    try:
        (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, into)
    except _BROKEN as error:
        archive.unlink()
        raise ValueError(f"{archive} does not open as an archive ({error}) and was removed; fetch it again") from error
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
        raise ValueError(f"{archive} would unpack to more than {_EXPANSION} times its size; that is no dataset")
