"""Checkpoints and freely downloadable datasets, fetched only when asked for.

pooch does the work: temporary names, another try if a transfer breaks, checksums, unpacking.
"""

from __future__ import annotations

import gzip
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pooch
import requests

from aape.datasets import DATASETS
from aape.datasets.base import Dataset, Remote, find

_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


def download(
    names: Iterable[str], folder: str | Path, *, items: Mapping[str, Dataset] = DATASETS
) -> dict[str, Path]:
    """Fetch datasets and weights, unpack archives, and return the folder of each.

    A file that is complete is not fetched again. A file that was put in its place by other means is used as it is.

    Args:
        names: of datasets, or of their tasks.
        folder: each goes into a folder of its name in this one; archives are kept in `archives/`.
        items: what can be downloaded.

    Raises:
        ValueError: an unknown name, a file that does not match its checksum, an archive that does not open.
        ConnectionError: the server could not be reached or kept breaking off.
    """
    folder = Path(folder).expanduser().absolute()
    wanted = [find(name, items) for name in names]
    for item in wanted:
        if not item.remotes:
            raise ValueError(
                f"{item.name} cannot be fetched from here; `aape download --help {item.name}` says how"
            )
    places = {item.name: folder / (item.folder or item.name) for item in wanted}
    for item in wanted:
        for remote in item.remotes:
            _fetch(remote, places[item.name], folder)
    return places


def _fetch(remote: Remote, into: Path, folder: Path) -> None:
    """One file, checked and unpacked."""
    unpack = None
    if remote.name.endswith(".zip"):
        unpack = pooch.Unzip(extract_dir=str(into))
    elif remote.name.endswith((".tar", ".tar.gz")):
        unpack = pooch.Untar(extract_dir=str(into))
    store = folder / "archives" if unpack else into
    target = store / remote.name
    urls = {remote.name: remote.url}
    pup = pooch.create(
        store, "", registry={remote.name: remote.checksum}, urls=urls, retry_if_failed=2
    )
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), headers={"Accept-Encoding": "identity"}, timeout=30.0
    )
    try:
        pup.fetch(remote.name, downloader=downloader)
    except requests.RequestException as error:
        remedy = f"Run the same command again, or put the file at {target} yourself"
        raise ConnectionError(f"{remote.url} could not be fetched: {error}. {remedy}.") from error
    except ValueError as error:
        raise ValueError(
            f"{remote.url} is not the expected file: {error} If it was replaced on purpose, please tell us."
        ) from error
    if unpack is None:
        return
    try:
        unpack(str(target), "fetch", pup)
    except _BROKEN as error:
        target.unlink()
        raise ValueError(
            f"{target} does not open as an archive ({error}) and was removed; fetch it again"
        ) from error
