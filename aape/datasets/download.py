"""Checkpoints and freely downloadable datasets, fetched only when asked for.

    python common.py download --list
    python common.py download m2d esc50 gtzan_split

pooch does the work (temporary names, retries, SHA-256, unpacking). Its own HTTP downloader starts a broken transfer
from zero; `Resuming` below goes on with a Range request where the server allows that, and from zero where it does not
(GitHub's source archives do not). A file whose publisher states no checksum is held to that of its first download,
which `checksums.json` in the folder records.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import pooch
import requests
from tqdm.auto import tqdm

from aape.study import ROOT

_TIMEOUT = 30.0  # s without a byte


@dataclass(frozen=True)
class File:
    """One file of an item: its name here, its address, and its checksum as "sha256:..." or "md5:...", or None."""

    name: str
    url: str
    checksum: str | None = None


@dataclass(frozen=True)
class Item:
    """Something to download.

    Attributes:
        files: what is fetched, into `archives/` of the folder where it is unpacked, else into `into`.
        into: folder that it is unpacked or put into, below the download folder.
        about: what it is. size: as its source states it. licence: as its source states it.
    """

    files: tuple[File, ...]
    into: str
    about: str
    size: str
    licence: str


_M2D = "https://github.com/nttcslab/m2d/releases/download/v0.1.0"
_SPLITS = "https://raw.githubusercontent.com/jongpillee/music_dataset_split/07e855758f180ac8bdc0e3abebbde19277094681/GTZAN_split"
_NSYNTH = "http://download.magenta.tensorflow.org/datasets/nsynth"
_ZENODO = "https://zenodo.org/records"
_VOX = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"
_ESC50 = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"

ITEMS: Mapping[str, Item] = {
    "m2d": Item(
        (File("m2d_vit_base-80x608p16x16-221006-mr7.zip", f"{_M2D}/m2d_vit_base-80x608p16x16-221006-mr7.zip"),),
        ".",
        "M2D/0.7, the SSL ViT of the paper: encoder and decoder",
        "not stated",
        "NTT's, LICENSE.pdf in nttcslab/m2d",
    ),
    "m2d_enconly": Item(
        (
            File(
                "m2d_vit_base-80x608p16x16-221006-mr7_enconly.zip",
                f"{_M2D}/m2d_vit_base-80x608p16x16-221006-mr7_enconly.zip",
            ),
        ),
        ".",
        "M2D/0.7, encoder only: all that is needed here",
        "not stated",
        "NTT's, LICENSE.pdf in nttcslab/m2d",
    ),
    "esc50": Item(
        # No checksum: GitHub packs source archives on demand and two different MD5s of this very commit's archive are in
        # circulation. The metadata builder checks the contents instead.
        (File(f"ESC-50-{_ESC50[:7]}.zip", f"https://github.com/karolpiczak/ESC-50/archive/{_ESC50}.zip"),),
        "esc50",
        "ESC-50, 2,000 clips of 5 s",
        "about 600 MB",
        "CC BY-NC 3.0",
    ),
    "gise51": Item(
        tuple(
            File(name, f"{_ZENODO}/4593514/files/{name}?download=1")
            for name in ("isolated_events.tar.gz", "meta.tar.gz")
        ),
        "gise51",
        "GISE-51, isolated events and class map",
        "about 2.4 GB",
        "CC BY 4.0",
    ),
    "gtzan": Item(
        (
            File(
                "genres.tar.gz",
                "http://opihi.cs.uvic.ca/sound/genres.tar.gz",
                "md5:5b3d6dddb579ab49814ab86dba69e7c7",  # mirdata's
            ),
        ),
        "gtzan",
        "GTZAN genre collection, 1,000 clips of 30 s (a server that is often down)",
        "about 1.2 GB",
        "none stated",
    ),
    "gtzan_split": Item(
        (
            File(
                "train_filtered.txt",
                f"{_SPLITS}/train_filtered.txt",
                "sha256:2b04966cef1486f1a7767b74271533fa23e220388db804a1937835e1fc4fa3fa",
            ),
            File(
                "valid_filtered.txt",
                f"{_SPLITS}/valid_filtered.txt",
                "sha256:f8fbee7c52397a0e0f3a91dc54fedecb2e27f5bdc9a9daeab8cb10d077e26956",
            ),
            File(
                "test_filtered.txt",
                f"{_SPLITS}/test_filtered.txt",
                "sha256:09cafa6a89ce0a27f30ed250d56ecb4d03c22fffb5a693f96c7ae655ee02ac72",
            ),
        ),
        "gtzan/GTZAN_split",
        "GTZAN's fault-filtered split",
        "20 kB",
        "MIT",
    ),
    "nsynth": Item(
        tuple(
            File(f"nsynth-{s}.jsonwav.tar.gz", f"{_NSYNTH}/nsynth-{s}.jsonwav.tar.gz")
            for s in ("train", "valid", "test")
        ),
        "nsynth",
        "NSynth, 305,979 notes of 4 s",
        "not verified here",
        "CC BY 4.0",
    ),
    "surge": Item(
        (File("surge-velocity64-2K.tar", f"{_ZENODO}/4677097/files/surge-velocity64-2K.tar?download=1"),),
        "surge",
        "Surge synthesiser pitch dataset, 2,084 patches of 88 notes",
        "not verified here",
        "see the Zenodo record",
    ),
    "vc1_meta": Item(
        (File("iden_split.txt", f"{_VOX}/iden_split.txt"), File("vox1_meta.csv", f"{_VOX}/vox1_meta.csv")),
        "voxceleb1",
        "VoxCeleb1's identification split, genders and nationalities (the audio is given on request only)",
        "not verified here",
        "see the VoxCeleb site",
    ),
}


class WrongFile(RuntimeError):
    """What arrived whole is not what its checksum says; trying once more did not help."""


class Resuming:
    """A downloader for pooch that keeps what has arrived and asks only for the rest.

    What has arrived lies in `<name>.part`, with the ETag or date it belongs to in `<name>.part.json`; If-Range makes
    the server start over when the file has changed since.
    """

    def __init__(self, part: Path, known: str | None) -> None:
        self.part = part
        self.known = known
        self.whole = 0  # transfers that ended as they should
        self.note = part.with_name(part.name + ".json")

    def __call__(self, url: str, output_file: str | BinaryIO, pup: Any, check_only: bool = False) -> bool | None:
        if check_only:
            return requests.head(url, timeout=_TIMEOUT, allow_redirects=True).status_code == 200
        have = self.part.stat().st_size if self.part.is_file() else 0
        validator = json.loads(self.note.read_text()).get(url) if have and self.note.is_file() else None
        # identity: with Content-Encoding, offsets would count compressed bytes
        headers = {"Accept-Encoding": "identity"}
        if have and validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": validator}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:  # the part is longer than the file: it is not ours
                self.part.unlink()
                raise requests.RequestException(f"{url}: the part on disk does not belong to it; starting over")
            response.raise_for_status()
            resumed = response.status_code == 206
            if resumed:
                start = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
                if start != str(have):
                    self.part.unlink()
                    raise requests.RequestException(f"{url}: asked for bytes from {have}, was sent from {start or '?'}")
            remaining = int(response.headers.get("Content-Length", 0))
            _check_space(self.part.parent, remaining, url)
            etag = response.headers.get("ETag")
            strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
            self.note.write_text(json.dumps({url: strong} if strong else {}))
            total = have + remaining if resumed else remaining
            with (
                self.part.open("ab" if resumed else "wb") as file,
                tqdm(
                    total=total or None,
                    initial=have if resumed else 0,
                    unit="B",
                    unit_scale=True,
                    desc=self.part.stem,
                    disable=None,
                ) as bar,
            ):
                for block in response.iter_content(1 << 16):
                    file.write(block)
                    bar.update(len(block))
            if total and self.part.stat().st_size != total:
                raise requests.ConnectionError(f"{url}: {self.part.stat().st_size:,} of {total:,} bytes arrived")
        self.note.unlink()
        self._refuse_a_second_wrong_file(url)
        if hasattr(output_file, "write"):
            with self.part.open("rb") as file:
                shutil.copyfileobj(file, output_file)
            self.part.unlink()
        else:
            os.replace(self.part, output_file)
        return None

    def _refuse_a_second_wrong_file(self, url: str) -> None:
        """pooch tries again after a wrong checksum; once is enough, a large file is not fetched six times."""
        self.whole += 1
        if self.known is None or self.whole < 2:
            return
        algorithm, expected = self.known.split(":")
        found = pooch.file_hash(str(self.part), alg=algorithm)
        if found != expected:
            self.part.unlink()
            raise WrongFile(f"{url} is not the file it should be: expected {self.known}, found {algorithm}:{found}")


def _check_space(folder: Path, needed: int, url: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{url} needs {needed:,} more bytes, {folder} has {free:,} free; give --folder elsewhere")


class _Recorded:
    """`checksums.json`: SHA-256 of files whose publisher states none, as first downloaded."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checksums.json"
        self.entries: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.entries = json.loads(self.path.read_text(encoding="utf-8"))

    def checksum(self, file: File) -> str | None:
        entry = self.entries.get(file.url)
        return file.checksum or (f"sha256:{entry['sha256']}" if entry else None)

    def add(self, file: File, path: Path) -> None:
        if file.checksum is not None or file.url in self.entries:
            return
        self.entries[file.url] = {
            "sha256": pooch.file_hash(str(path), alg="sha256"),
            "bytes": path.stat().st_size,
            "first_downloaded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self.entries, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def download(
    names: Iterable[str], folder: str | Path | None = None, *, items: Mapping[str, Item] = ITEMS, retries: int = 5
) -> dict[str, Path]:
    """Fetch items, unpack archives, and return where each lies.

    What is whole already is not fetched again; a broken transfer goes on where it stopped, also in a later call.

    Args:
        names: keys of `items`.
        folder: where to; None: `data/` beside common.py, where the study `paper` looks.
        items: what can be had.
        retries: attempts after the first, each waiting a little longer (pooch).

    Raises:
        ValueError: an unknown name, or a file that is not what its checksum says.
        ConnectionError: the server could not be reached or kept breaking off.
        OSError: not enough space.
    """
    folder = ROOT / "data" if folder is None else Path(folder).expanduser().absolute()
    names = list(names)
    unknown = [n for n in names if n not in items]
    if unknown:
        raise ValueError(f"nothing called {unknown[0]!r} to download; known: {', '.join(items)}")
    folder.mkdir(parents=True, exist_ok=True)
    recorded = _Recorded(folder)
    places = {}
    for name in names:
        item = items[name]
        for file in item.files:
            _fetch(file, item, folder, recorded, retries)
        places[name] = folder / item.into
    return places


def _fetch(file: File, item: Item, folder: Path, recorded: _Recorded, retries: int) -> None:
    archive = file.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))
    store = folder / "archives" if archive else folder / item.into
    store.mkdir(parents=True, exist_ok=True)
    target, known = store / file.name, recorded.checksum(file)
    pup = pooch.create(
        path=store, base_url="", registry={file.name: known}, urls={file.name: file.url}, retry_if_failed=retries
    )
    try:
        pup.fetch(file.name, downloader=Resuming(store / f"{file.name}.part", known))
    except (WrongFile, ValueError) as error:
        whose = "" if file.checksum else f" That is what {recorded.path} recorded at the first download."
        remedy = "tell us" if file.checksum else "take its entry out of that file"
        raise ValueError(
            f"{error}.{whose} If its publisher replaced it on purpose, {remedy}; else try again later."
        ) from error
    except requests.RequestException as error:
        raise ConnectionError(
            f"{file.url} could not be fetched: {error}. Run the same command again to go on where it stopped, or put "
            f"the file at {target} yourself."
        ) from error
    recorded.add(file, target)
    if archive:
        _unpack(target, folder / item.into)


def _unpack(archive: Path, into: Path) -> None:
    """Unpack once: a stamp beside the archive says which bytes were unpacked where."""
    stamp = archive.with_name(archive.name + ".unpacked")
    key = hashlib.sha256(f"{archive.stat().st_size} {archive.stat().st_mtime_ns} {into}".encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key and into.is_dir():
        return
    print(f"unpacking {archive.name} into {into}", file=sys.stderr)
    # Since mid-2023 every Python refuses archive members that point outside, if asked to.
    if archive.suffix != ".zip" and hasattr(tarfile, "data_filter"):
        shutil.unpack_archive(archive, into, filter="data")
    else:
        shutil.unpack_archive(archive, into)
    stamp.write_text(key)


def listing(items: Mapping[str, Item] = ITEMS) -> str:
    """What can be had, as text."""
    lines = []
    for name, item in items.items():
        checksum = "checksum published" if all(f.checksum for f in item.files) else "checksum of the first download"
        lines.append(f"{name:<12} {item.about}\n{'':<12} {item.size}; {item.licence}; {checksum}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="download", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help="what to fetch (see --list)")
    parser.add_argument("--folder", help="where to (default: data/ beside common.py)")
    parser.add_argument("--list", action="store_true", help="show what can be had, and fetch nothing")
    options = parser.parse_args(argv)
    if options.list or not options.names:
        print(listing())
        return 0
    try:
        places = download(options.names, options.folder)
    except (ValueError, OSError) as error:
        print(f"download: {error}", file=sys.stderr)
        return 1
    for name, place in places.items():
        print(f"{name}: {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
