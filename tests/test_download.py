"""Downloads from a server on this machine, which can cut connections, change files and hide their length."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pooch
import pytest

from aape import cli
from aape.datasets import DATASETS
from aape.datasets import download as module
from aape.datasets.base import Dataset, Remote
from aape.datasets.download import download

CONTENT = bytes(range(256)) * 4000  # about 1 MB
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's `files`, breaks `cut` transfers off half-way, and puts what was sent into `log`."""

    def do_HEAD(self):
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        if self.server.length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        if (content := self.do_HEAD()) is None:
            return
        if self.server.cut:
            self.server.cut -= 1
            content = content[: len(content) // 2]
        self.server.log.append(self.path)
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        instance.files, instance.cut, instance.log = {"/m2d.bin": CONTENT}, 0, []
        instance.length = True  # whether it says how long a file is
        instance.url = lambda path="/m2d.bin": (
            f"http://127.0.0.1:{instance.server_address[1]}{path}"
        )
        threading.Thread(target=instance.serve_forever, args=(0.02,), daemon=True).start()
        yield instance
        instance.shutdown()


def item(server, checksum=None, path="/m2d.bin", folder="weights"):
    remote = Remote(path.strip("/"), server.url(path), checksum)
    return {"m2d": Dataset("m2d", "test", "1 MB", "none", {}, (remote,), folder=folder)}


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return buffer.getvalue()


def tarred(mode, size=50_000, names=("a.txt", "b.txt")):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            file.addfile(member, io.BytesIO((name.encode() * size)[:size]))
    return buffer.getvalue()


def test_a_file_arrives_whole_once_and_after_a_broken_transfer(server, tmp_path):
    server.cut = 3
    with pytest.raises(ConnectionError, match="Run the same command again"):
        download(["m2d"], tmp_path, items=item(server))
    assert len(server.log) == 3  # tried again, and nothing half is left
    assert list((tmp_path / "weights").iterdir()) == []
    server.cut = 1
    for _ in range(2):
        places = download(["m2d"], tmp_path, items=item(server, SHA256))
    assert (places["m2d"] / "m2d.bin").read_bytes() == CONTENT and len(server.log) == 5
    assert [p.name for p in places["m2d"].iterdir()] == ["m2d.bin"]


WHOLE = {"/m.zip": zipped("one", "1" * 1000), "/m.tar.gz": tarred("w:gz")}


@pytest.mark.parametrize("name", WHOLE)
def test_an_archive_that_is_cut_is_removed(server, tmp_path, name):
    whole, server.length = WHOLE[name], False
    for end in (len(whole) // 10, len(whole) // 2):
        server.files[name] = whole[:end]
        with pytest.raises(ValueError, match="does not open as an archive"):
            download(["m2d"], tmp_path, items=item(server, path=name))
        assert not (tmp_path / "archives" / name[1:]).exists()
    server.files[name] = whole
    assert any(download(["m2d"], tmp_path, items=item(server, path=name))["m2d"].iterdir())


def test_a_file_must_match_its_checksum(server, tmp_path):
    with pytest.raises(ValueError, match=r"is not the expected file: .*on purpose, please tell us"):
        download(["m2d"], tmp_path, items=item(server, "sha256:" + "0" * 64))
    assert not (tmp_path / "weights" / "m2d.bin").exists()


def test_archives_are_unpacked_once(server, tmp_path):
    server.files["/m.zip"] = zipped("model/checkpoint.pth", "one")
    items = item(server, path="/m.zip", folder=".")
    checkpoint = download(["m2d"], tmp_path, items=items)["m2d"] / "model" / "checkpoint.pth"
    checkpoint.write_text("the user's own")
    download(["m2d"], tmp_path, items=items)
    assert checkpoint.read_text() == "the user's own"


def test_what_cannot_be_fetched(server, tmp_path):
    for name, message in (("m2x", "nothing called 'm2x'"), ("voxforge", "--help voxforge")):
        with pytest.raises(ValueError, match=message):
            download([name], tmp_path)
    with pytest.raises(ConnectionError, match="404"):
        download(["m2d"], tmp_path, items=item(server, path="/gone.bin"))


def test_nothing_is_fetched_unless_asked_and_addresses_are_pinned(monkeypatch, capsys):
    monkeypatch.setattr(
        module.requests, "get", lambda *_, **__: pytest.fail("fetched without being asked")
    )
    assert cli.main(["download"]) == 0
    shown = capsys.readouterr().out
    for name, entry in DATASETS.items():
        assert name in shown and not any(
            branch in r.url for r in entry.remotes for branch in ("master", "/main/")
        )
