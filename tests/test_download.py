"""Downloads from a server on this machine, which can cut connections, change files and refuse ranges."""

import hashlib
import http.server
import io
import json
import threading
import zipfile

import pooch
import pytest

from aape.datasets import download as module
from aape.datasets.download import File, Item, download

CONTENT = bytes(range(256)) * 4000  # about 1 MB
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cut` breaks that many transfers off half-way; `log` holds (path, Range, bytes sent)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/m2d.bin": CONTENT}
        self.cut = 0
        self.ranges = True
        self.etag = '"v1"'
        self.log = []

    def url(self, path="/m2d.bin"):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if server.ranges and asked and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        if server.cut:
            server.cut -= 1
            body = body[: len(body) // 2]
        server.log.append((self.path, asked, len(body)))
        self.wfile.write(body)

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


def item(server, checksum=None, path="/m2d.bin", into="weights", name=None):
    file = File(name or path.strip("/"), server.url(path), checksum)
    return {"m2d": Item((file,), into, "test", "1 MB", "none")}


def test_a_file_arrives_whole_once(server, tmp_path):
    for _ in range(2):
        places = download(["m2d"], tmp_path, items=item(server, SHA256))
    assert (places["m2d"] / "m2d.bin").read_bytes() == CONTENT
    assert len(server.log) == 1
    assert [p.name for p in places["m2d"].iterdir()] == ["m2d.bin"]


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    server.cut = 2
    download(["m2d"], tmp_path, items=item(server, SHA256))
    assert (tmp_path / "weights" / "m2d.bin").read_bytes() == CONTENT
    assert len(server.log) == 3
    assert goes_on(server.log[1]) > 0.4 * len(CONTENT)
    assert goes_on(server.log[2]) > 0.6 * len(CONTENT)
    assert sum(sent for *_, sent in server.log) < 1.3 * len(CONTENT)


def goes_on(entry):
    """Where a request asked to go on; the last block of a broken transfer (64 KiB) may be fetched twice."""
    return int(entry[1].removeprefix("bytes=").rstrip("-"))


def test_a_later_call_goes_on_too(server, tmp_path):
    server.cut = 1
    with pytest.raises(ConnectionError, match="go on where it stopped"):
        download(["m2d"], tmp_path, items=item(server, SHA256), retries=0)
    assert not (tmp_path / "weights" / "m2d.bin").exists()
    download(["m2d"], tmp_path, items=item(server, SHA256), retries=0)
    assert 0.4 * len(CONTENT) < goes_on(server.log[1]) <= 0.5 * len(CONTENT)
    assert (tmp_path / "weights" / "m2d.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["ranges", "etag", "replaced"])
def test_where_it_cannot_go_on_it_starts_over(server, tmp_path, change):
    expected = CONTENT
    server.etag = None if change == "etag" else server.etag
    server.cut = 1
    with pytest.raises(ConnectionError):
        download(["m2d"], tmp_path, items=item(server), retries=0)
    if change == "ranges":
        server.ranges = False
    elif change == "replaced":  # the halves of two versions must never be put together
        server.etag, expected = '"v2"', CONTENT[::-1]
        server.files["/m2d.bin"] = expected
    download(["m2d"], tmp_path, items=item(server), retries=0)
    assert server.log[-1][2] == len(CONTENT)
    assert (tmp_path / "weights" / "m2d.bin").read_bytes() == expected


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "m2d.bin.part").write_bytes(CONTENT + b"more")
    (tmp_path / "weights" / "m2d.bin.part.json").write_text(json.dumps({server.url(): server.etag}))
    download(["m2d"], tmp_path, items=item(server, SHA256))
    assert (tmp_path / "weights" / "m2d.bin").read_bytes() == CONTENT


def test_a_wrong_file_is_refused_after_one_more_try(server, tmp_path):
    server.files["/m2d.bin"] = b"<html>not found</html>"
    with pytest.raises(ValueError, match=r"expected sha256:\w{64}, found sha256:\w{64}.*publisher"):
        download(["m2d"], tmp_path, items=item(server, SHA256))
    assert len(server.log) == 2
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
    server.files["/m2d.bin"], server.etag = b"something else", '"v2"'
    with pytest.raises(ValueError, match=r"recorded at the first download"):
        download(["m2d"], tmp_path, items=item(server))
    assert not target.exists()


def test_archives_are_unpacked_once_and_again_when_they_change(server, tmp_path):
    def archive(text):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth", text)
        return buffer.getvalue()

    server.files["/m2d.zip"] = archive("one")
    items = item(server, path="/m2d.zip", into=".")
    place = download(["m2d"], tmp_path, items=items)["m2d"]
    checkpoint = place / "m2d_vit_base-80x608p16x16-221006-mr7" / "checkpoint-300.pth"
    assert checkpoint.read_text() == "one"
    checkpoint.write_text("the user's own")
    download(["m2d"], tmp_path, items=items)
    assert checkpoint.read_text() == "the user's own"
    (tmp_path / "checksums.json").unlink()
    (tmp_path / "archives" / "m2d.zip").unlink()
    server.files["/m2d.zip"] = archive("two!")
    download(["m2d"], tmp_path, items=items)
    assert checkpoint.read_text() == "two!"


def test_no_space(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="needs 1,024,000 more bytes"):
        download(["m2d"], tmp_path, items=item(server))


def test_unknown_names_and_missing_files(server, tmp_path):
    with pytest.raises(ValueError, match="nothing called 'm2x'"):
        download(["m2x"], tmp_path)
    with pytest.raises(ConnectionError, match="404"):
        download(["m2d"], tmp_path, items=item(server, path="/gone.bin"), retries=0)


def test_command_line_fetches_nothing_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.requests, "get", lambda *_, **__: pytest.fail("fetched without being asked"))
    assert module.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in module.ITEMS)
    assert module.main(["nothing", "--folder", str(tmp_path)]) == 1
    assert "nothing called 'nothing'" in capsys.readouterr().err


def test_addresses_are_pinned():
    for name, entry in module.ITEMS.items():
        for file in entry.files:
            assert "master" not in file.url, name
            assert "/main/" not in file.url, name
    assert any("221006-mr7.zip" in f.url for f in module.ITEMS["m2d"].files)
