"""Downloads from a server on this machine, which can cut connections, change files and hide their length."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
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


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cut` breaks that many transfers off half-way; `log` holds the paths that were sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/m2d.bin": CONTENT}
        self.cut = 0
        self.length = True  # whether it says how long a file is
        self.log = []

    def url(self, path="/m2d.bin"):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return None
        self.send_response(200)
        if self.server.length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        content = self.do_HEAD()
        if content is None:
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
    instance = Server()
    thread = threading.Thread(target=instance.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield instance
    instance.shutdown()
    instance.server_close()


def item(server, checksum=None, path="/m2d.bin", folder="weights"):
    remote = Remote(path.strip("/"), server.url(path), checksum)
    return {"m2d": Dataset("m2d", "test", "1 MB", "none", {}, (remote,), folder=folder)}


def zipped(text):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("model/checkpoint-300.pth", text)
    return buffer.getvalue()


def tarred(mode, size=50_000):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name in ("a.txt", "b.txt"):
            member = tarfile.TarInfo(name)
            member.size = size
            file.addfile(member, io.BytesIO((name.encode() * size)[:size]))
    return buffer.getvalue()


def test_a_file_arrives_whole_once(server, tmp_path):
    for _ in range(2):
        places = download(["m2d"], tmp_path, items=item(server, SHA256))
    assert (places["m2d"] / "m2d.bin").read_bytes() == CONTENT
    assert server.log == ["/m2d.bin"]
    assert [p.name for p in places["m2d"].iterdir()] == ["m2d.bin"]


def test_a_broken_transfer_is_tried_again_and_leaves_nothing_half(server, tmp_path):
    server.cut = 3
    with pytest.raises(ConnectionError, match="Run the same command again"):
        download(["m2d"], tmp_path, items=item(server))
    assert len(server.log) == 3
    assert list((tmp_path / "weights").iterdir()) == [] and not (tmp_path / "checksums.json").exists()
    server.cut = 1
    download(["m2d"], tmp_path, items=item(server))
    assert (tmp_path / "weights" / "m2d.bin").read_bytes() == CONTENT


def test_a_file_whose_length_nobody_knows_is_never_pinned(server, tmp_path):
    server.length, server.cut = False, 1
    download(["m2d"], tmp_path, items=item(server))
    assert (tmp_path / "weights" / "m2d.bin").stat().st_size == len(
        CONTENT
    ) // 2  # the end of the reply is all there is
    assert not (tmp_path / "checksums.json").exists()


@pytest.mark.parametrize("name", ["/m2d.zip", "/m2d.tar", "/m2d.tar.gz"])
def test_an_archive_that_is_cut_is_removed_and_never_pinned(server, tmp_path, name):
    whole = {"/m2d.zip": zipped("one" * 1000), "/m2d.tar": tarred("w"), "/m2d.tar.gz": tarred("w:gz")}[name]
    server.length = False
    for end in (len(whole) // 2, 512 + 50_176) if name == "/m2d.tar" else (len(whole) // 2, len(whole) - 10):
        server.files[name] = whole[:end]
        with pytest.raises(ValueError, match="does not open as an archive"):
            download(["m2d"], tmp_path, items=item(server, path=name))
        assert not (tmp_path / "archives" / name[1:]).exists() and not (tmp_path / "checksums.json").exists()
    server.files[name] = whole
    download(["m2d"], tmp_path, items=item(server, path=name))
    assert json.loads((tmp_path / "checksums.json").read_text())[server.url(name)]["bytes"] == len(whole)


def test_an_archive_that_unpacks_without_end_is_refused(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", bytes(30_000_000))
    server.files |= {"/m2d.zip": buffer.getvalue(), "/m2d.tar.gz": tarred("w:gz", 20_000_000)}
    for path in ("/m2d.zip", "/m2d.tar.gz"):
        with pytest.raises(ValueError, match="more than 100 times its size"):
            download(["m2d"], tmp_path, items=item(server, path=path))
    assert not (tmp_path / "weights" / "bomb").exists()


def test_members_that_point_outside_stay_inside(server, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("../outside.txt"))
    server.files["/m2d.tar"] = buffer.getvalue()
    with pytest.raises(ValueError, match="does not open"):
        download(["m2d"], tmp_path / "data", items=item(server, path="/m2d.tar", folder="."))
    assert not (tmp_path / "outside.txt").exists()


def test_a_wrong_file_is_refused(server, tmp_path):
    server.files["/m2d.bin"] = b"<html>not found</html>"
    with pytest.raises(ValueError, match=r"is not the file it should be: SHA256.*publisher"):
        download(["m2d"], tmp_path, items=item(server, SHA256))
    assert list((tmp_path / "weights").iterdir()) == []


def test_the_first_checksum_is_recorded_and_held_to(server, tmp_path):
    download(["m2d"], tmp_path, items=item(server))
    entries = json.loads((tmp_path / "checksums.json").read_text())
    assert entries[server.url()]["sha256"] == SHA256.removeprefix("sha256:")
    assert entries[server.url()]["bytes"] == len(CONTENT)
    target = tmp_path / "weights" / "m2d.bin"
    target.write_bytes(b"damaged on disk")
    download(["m2d"], tmp_path, items=item(server))  # fetched again
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.files["/m2d.bin"] = b"something else"
    with pytest.raises(ValueError, match=r"recorded at the first download"):
        download(["m2d"], tmp_path, items=item(server))
    assert not target.exists()
    (tmp_path / "checksums.json").write_text("{garbled")
    with pytest.raises(ValueError, match=r"checksums.json is damaged"):
        download(["m2d"], tmp_path, items=item(server))


def test_archives_are_unpacked_once_and_again_when_they_change(server, tmp_path):
    server.files["/m2d.zip"] = zipped("one")
    items = item(server, path="/m2d.zip", folder=".")
    checkpoint = download(["m2d"], tmp_path, items=items)["m2d"] / "model" / "checkpoint-300.pth"
    assert checkpoint.read_text() == "one"
    checkpoint.write_text("the user's own")
    download(["m2d"], tmp_path, items=items)
    assert checkpoint.read_text() == "the user's own"
    (tmp_path / "checksums.json").unlink()
    (tmp_path / "archives" / "m2d.zip").unlink()
    server.files["/m2d.zip"] = zipped("two!")
    download(["m2d"], tmp_path, items=items)
    assert checkpoint.read_text() == "two!"


def test_no_space(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="needs 1,024,000 bytes"):
        download(["m2d"], tmp_path, items=item(server))
    assert server.log == []


def test_unknown_names_and_missing_files(server, tmp_path):
    with pytest.raises(ValueError, match="nothing called 'm2x'"):
        download(["m2x"], tmp_path)
    with pytest.raises(ValueError, match="--help voxforge"):
        download(["voxforge"], tmp_path)
    with pytest.raises(ConnectionError, match="404"):
        download(["m2d"], tmp_path, items=item(server, path="/gone.bin"), retries=0)


def test_command_line_fetches_nothing_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.requests, "get", lambda *_, **__: pytest.fail("fetched without being asked"))
    assert cli.main(["download"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in DATASETS)
    assert cli.main(["download", "nothing", "--folder", str(tmp_path)]) == 2
    assert "nothing called 'nothing'" in capsys.readouterr().err


def test_addresses_are_pinned():
    for name, entry in DATASETS.items():
        for remote in entry.remotes:
            assert "master" not in remote.url, name
            assert "/main/" not in remote.url, name
