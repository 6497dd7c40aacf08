"""Long work that is interrupted: nothing is lost, nothing stale or damaged is used, and one process works at a time."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aape import files
from aape.files import FolderBusy, folder_lock, whole_file
from aape.resuming import code_version, forget, missing, resumed

BATCHES = {"first": 1, "second": 2, "third": 3}


class Work:
    """A computation that remembers which batches it was asked for."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def __call__(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        for name in names:
            self.computed.append(name)
            yield {"value": np.full(3, len(self.computed)), "name": np.array(name)}


def run(folder: Path, work: Work, key: object = "key", code: str = "1") -> list[str]:
    return [str(result["name"]) for result in resumed(folder, key, BATCHES, work, code=code)]


def test_only_what_is_missing_is_computed_and_the_order_is_kept(tmp_path: Path):
    work = Work()
    assert run(tmp_path / "kept", work) == [*BATCHES] and work.computed == [*BATCHES]
    assert run(tmp_path / "kept", work) == [*BATCHES] and work.computed == [*BATCHES]
    (tmp_path / "kept" / "second.npz").unlink()
    assert run(tmp_path / "kept", work) == [*BATCHES] and work.computed == [*BATCHES, "second"]


def test_the_computation_is_run_to_its_end(tmp_path: Path):
    ended = []

    def compute(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        yield from Work()(names)
        ended.append(True)

    assert len(list(resumed(tmp_path, "key", BATCHES, compute, code="1"))) == 3 and ended == [True]


def test_another_key_other_code_and_other_content_of_a_batch_are_computed_again(tmp_path: Path):
    run(tmp_path, Work())
    for how in ({"key": "other"}, {"code": "2"}):
        work = Work()
        run(tmp_path, work, **how)
        assert work.computed == [*BATCHES]
    changed = BATCHES | {"third": 4}
    assert missing(tmp_path, "key", changed, code="2") == ["third"]


def test_an_interrupted_run_keeps_what_it_had(tmp_path: Path):
    work = Work()
    for result in resumed(tmp_path, "key", BATCHES, work, code="1"):
        if str(result["name"]) == "second":
            break
    assert run(tmp_path, work) == [*BATCHES] and work.computed == ["first", "second", "third"]


@given(place=st.integers(0, 10_000), change=st.sampled_from(["cut", "flip", "empty", "junk"]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_result_is_never_used_and_never_raised(tmp_path: Path, place: int, change: str):
    run(tmp_path, Work())
    path = tmp_path / "second.npz"
    content = bytearray(path.read_bytes())
    position = place % len(content)
    if change == "flip":
        content[position] ^= 1 << place % 8
    damaged = {
        "cut": content[:position],
        "flip": content,
        "empty": b"",
        "junk": b"\x93NUMPY" + content[:position],
    }
    path.write_bytes(bytes(damaged[change]))
    work = Work()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [
            result["value"].tolist() for result in resumed(tmp_path, "key", BATCHES, work, code="1")
        ]
    again = work.computed == ["second"]
    assert again or (
        change == "flip" and not work.computed
    )  # a bit that nothing reads, such as a time stamp
    assert values == [[1] * 3, [1] * 3 if again else [2] * 3, [3] * 3]
    forget(tmp_path)


def test_a_full_disk_is_explained_and_what_was_computed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    work, replace = Work(), os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "second.npz":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        OSError, match=r"no space left in .* kept: free some space, then call again"
    ) as raised:
        run(tmp_path, work)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert run(tmp_path, work) == [*BATCHES] and work.computed == [
        "first",
        "second",
        "second",
        "third",
    ]
    assert not list(tmp_path.glob(".*.part"))


def test_forgetting_leaves_the_files_of_others(tmp_path: Path):
    run(tmp_path / "kept", Work())
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    forget(tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]
    (tmp_path / "kept" / "notes.txt").unlink()
    forget(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_code_version_follows_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    package = tmp_path / "aape"
    (package / "causal").mkdir(parents=True)
    (package / "causal" / "silencing.py").write_text("gain = 0\n")
    monkeypatch.setattr("aape.resuming.__file__", str(package / "resuming.py"))
    code_version.cache_clear()
    before = code_version("causal")
    (package / "causal" / "silencing.py").write_text("gain   =   0  # silences\n")
    code_version.cache_clear()
    assert code_version("causal") == before
    (package / "causal" / "silencing.py").write_text("gain = 1\n")
    code_version.cache_clear()
    assert code_version("causal") != before
    code_version.cache_clear()


# --- files and locks --------------------------------------------------------------------------------------------------


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path):
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


HOLDER = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from aape.files import folder_lock, whole_file
with folder_lock({folder!r}), whole_file(Path({folder!r}) / "table.csv"):
    print("held", flush=True)
    time.sleep(60)
"""


def holding(folder: Path) -> subprocess.Popen:
    """Another process that holds the lock of a folder while it writes a file."""
    script = HOLDER.format(root=str(REPOSITORY), folder=str(folder))
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    return holder


def test_a_second_process_is_refused_and_takes_over_after_a_kill(tmp_path: Path):
    folder = tmp_path / "folder"
    with folder_lock(folder), pytest.raises(FolderBusy, match=f"process {os.getpid()} on"):
        folder_lock(folder).__enter__()
    with holding(folder) as holder:
        with (
            pytest.raises(FolderBusy, match=f"process {holder.pid} on .*Wait for it or stop it"),
            folder_lock(folder),
        ):
            pass
        assert len(list(folder.glob(".table.csv.*.part"))) == 1
        (folder / ".mine.part").write_text("not one of our temporary files")
        holder.send_signal(signal.SIGKILL)
    with folder_lock(folder):
        assert sorted(path.name for path in folder.iterdir()) == [
            ".lock",
            ".lock.json",
            ".mine.part",
        ]


@pytest.mark.parametrize("locks", [True, False])
def test_a_job_that_was_killed_resumes_on_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
):
    monkeypatch.setattr(files, "STALE_SECONDS", 3.0)
    if not locks:
        monkeypatch.setattr(files, "FileLock", _no_locks)
    with holding(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-node")
    start = time.monotonic()
    with folder_lock(tmp_path):
        assert (tmp_path / ".lock.json").is_file()
    assert time.monotonic() - start < 20


def test_a_job_that_still_runs_on_another_host_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "HEARTBEAT_SECONDS", 0.5)
    monkeypatch.setattr(files, "FileLock", _no_locks)
    with folder_lock(tmp_path):
        monkeypatch.setattr(socket, "gethostname", lambda: "another-node")
        with pytest.raises(FolderBusy, match="is in use by process"), folder_lock(tmp_path):
            pass


def _no_locks(path: Path) -> object:
    """As filelock behaves on a file system without locks."""

    class Lock:
        def acquire(self, blocking: bool) -> object:
            raise OSError(errno.ENOLCK, "No locks available")

    return Lock()
