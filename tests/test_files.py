"""Whole files, caches that never lie, and the lock of a folder."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aape.files import Cache, FolderBusy, Shown, folder_lock, whole_file

ARRAYS = {"a": np.arange(12, dtype=np.uint16).reshape(3, 4), "names": np.array(["x", "yy"]), "none": np.zeros((0, 2))}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]


def test_a_cache_gives_back_what_was_put_under_the_same_key_only(tmp_path: Path):
    cache = Cache(tmp_path / "made on demand")
    assert cache.get("one/two", [1]) is None
    cache.put("one/two", {"b": 1, "a": [2]}, ARRAYS)
    back = cache.get("one/two", {"a": [2], "b": 1})
    assert back is not None and set(back) == set(ARRAYS)
    assert all(np.array_equal(back[k], v) and back[k].dtype == v.dtype for k, v in ARRAYS.items())
    assert cache.get("one/two", {"a": [2], "b": 2}) is None
    cache.put("one/two", 3, {})
    assert cache.get("one/two", 3) == {}
    np.savez(cache.path("one/two"), **{"__key__": "3", "__digest__": "0", "a": np.full((3, 4), np.nan)})
    with pytest.warns(UserWarning, match="not what was written"):  # by another hand
        assert cache.get("one/two", 3) is None


@given(place=st.integers(0, 10_000), change=st.sampled_from(["cut", "flip", "empty", "junk"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_entry_is_never_taken_and_never_raised(tmp_path: Path, place: int, change: str):
    cache = Cache(tmp_path)
    cache.put("entry", "key", ARRAYS)
    content = bytearray(cache.path("entry").read_bytes())
    at = place % len(content)
    if change == "flip":
        content[at] ^= 1 << place % 8
    damaged = {"cut": content[:at], "flip": content, "empty": b"", "junk": b"\x93NUMPY" + content[:at]}[change]
    cache.path("entry").write_bytes(bytes(damaged))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        back = cache.get("entry", "key")
    if back is not None:  # a bit that nothing reads, such as a time stamp of the zip
        assert change == "flip" and all(np.array_equal(back[k], v) for k, v in ARRAYS.items()) and len(back) == 3
    else:
        assert any("computed anew" in str(w.message) for w in said)


HOLDER = """
import sys, time
sys.path.insert(0, {root!r})
from aape.files import folder_lock, whole_file
with folder_lock({folder!r}), whole_file(__import__("pathlib").Path({folder!r}) / "table.csv"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_folder(tmp_path: Path):
    folder = tmp_path / "folder"
    with folder_lock(folder), pytest.raises(FolderBusy, match=f"process {os.getpid()} on .* 0.0 minutes ago"):
        folder_lock(folder).__enter__()
    script = HOLDER.format(root=str(REPOSITORY), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(FolderBusy, match=f"process {holder.pid} on .*\nWait for it or end it"), folder_lock(folder):
            pass
        assert len(list(folder.glob(".table.csv.*.part"))) == 1
        (folder / ".mine.part").write_text("no temporary file of ours")
        holder.send_signal(signal.SIGKILL)
    with folder_lock(folder):  # its owner is gone: taken over, and its litter removed
        assert sorted(p.name for p in folder.iterdir()) == [".lock", ".lock.json", ".mine.part"]
    note = {"pid": 1, "host": "elsewhere", "started": time.time() - 7200}
    (folder / ".lock.json").write_text(json.dumps(note))
    with pytest.raises(FolderBusy, match=r"process 1 on elsewhere, .* 120.0 minutes ago.*\n.*delete .*\.lock\.json"):
        folder_lock(folder).__enter__()
    (folder / ".lock.json").write_text("")  # a note that cannot be read: the system's lock alone decides
    with folder_lock(folder):
        pass


def test_facts_cannot_bring_markup():
    class Mischief(Shown):
        def _facts(self) -> dict[str, str]:
            return {"<script>": "<script>"}

    assert "<script" not in Mischief()._repr_html_()
