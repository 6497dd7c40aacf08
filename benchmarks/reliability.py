"""What was done to the tool, and what held: kills, two writers, a full disk, tampering, bad input.

    python -m benchmarks.reliability [--only WORD] [-o benchmarks/reliability.md]

Needs Linux (fork, `unshare`); takes about ten minutes on two cores. Everything happens in a temporary folder, with a
toy encoder of 3 x 24 neurons and files of noise. A trial *held* when its result has the bytes of an undisturbed run, or
when it ends in an error that names the file or the setting and leaves what was there as it was. Whatever could not be
tried on this machine counts as tried and not held.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pickle
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from torch import Tensor, nn

from aape.artifacts.folder import load_artifacts
from aape.collecting.passing import collect
from aape.encoders.encoder import Encoder
from aape.encoders.module import from_module
from aape.files import FolderBusy, folder_lock
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task
from aape.study.ablation import ablate
from aape.study.analysis import analyze
from aape.study.study import load_study

ROOT = Path(__file__).resolve().parent.parent
RATE = 1000  # Hz


class Toy(nn.Module):
    """Three layers on tokens of 100 samples: [batch, samples] -> [batch, tokens, 24] -> [batch, 24]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.ModuleList(nn.Linear(width, 24) for width in (100, 24, 24))
        self.act = nn.ModuleList(nn.ReLU() for _ in range(3))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, wave: Tensor) -> Tensor:
        x = wave.unflatten(1, (-1, 100))
        for linear, act in zip(self.linear, self.act, strict=True):
            x = act(linear(x))
        return x.mean(dim=1)


def toy(seed: int = 0, scale: float = 1.0) -> Encoder:
    """The toy as an encoder, its embedding multiplied by a factor; a study's loader."""
    module = Toy(seed)
    return from_module(
        module,
        activations="act.*",
        embed=lambda wave: module(wave) * scale,
        sample_rate=RATE,
        clip_seconds=1.0,
        name="toy",
        samples_per_token=100,
    )


def noise(folder: Path, clips: int = 48, name: str = "noise") -> Task:
    """Files of noise in three classes of different loudness, three splits and twelve groups."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    lines = ["file_name,label,split,group"]
    for i in range(clips):
        wave = rng.normal(0, 0.05 + 0.1 * (i % 3), RATE if i % 4 else 700)
        soundfile.write(folder / "audio" / f"{i:03d}.wav", wave, RATE, subtype="FLOAT")
        lines.append(f"{i:03d}.wav,class{i % 3},{('train', 'train', 'valid', 'test')[i // 3 % 4]},g{i // 4}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return from_metadata(folder / f"{name}.csv", folder / "audio", clip_seconds=1.0, name=name)


def task_of(folder: str, name: str = "noise") -> Task:
    """A study's loader."""
    return from_metadata(Path(folder) / f"{name}.csv", Path(folder) / "audio", clip_seconds=1.0, name=name)


def in_child(function: Callable[[], Any], kill_after: float | None = None) -> tuple[int, str]:
    """Run in a forked process, killed after some seconds; returns (0 well, 1 error, -9 killed, ...) and the error."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 0
        try:
            os.close(reader)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            warnings.simplefilter("ignore")
            function()
        except BaseException as error:
            status = 1
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(status)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, text


def bytes_of(folder: Path, suffixes: tuple[str, ...] = ("",)) -> dict[str, bytes]:
    """Contents of all files but the lock's, by path."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".lock"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name.endswith(suffixes)}


@contextlib.contextmanager
def dying_at(event: int) -> Iterator[None]:
    """SIGKILL this process at the n-th rename, fsync, unlink or folder made or removed."""
    seen = itertools.count(1)
    names = ("replace", "fsync", "unlink", "mkdir", "rmdir")
    real = {name: getattr(os, name) for name in names}

    def deadly(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(seen) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*arguments, **options)

        return call

    for name in names:
        setattr(os, name, deadly(name))
    try:
        yield
    finally:
        for name in names:
            setattr(os, name, real[name])


class Table:
    """Rows of what was tried; a row is printed when it is complete."""

    def __init__(self, only: str | None) -> None:
        self.rows: list[tuple[str, str, int, int, str]] = []
        self.only = only

    def run(self, kind: str, what: str, trials: Callable[[], Iterator[str | None]], how: str) -> None:
        """Count the trials of a row; each yields None where it held, else what went wrong."""
        if self.only and self.only not in f"{kind} {what}":
            return
        failures, tried, start = [], 0, time.monotonic()
        try:
            for complaint in trials():
                tried += 1
                failures += [complaint] if complaint else []
        except Exception:
            tried += 1
            failures.append(traceback.format_exc(limit=-3))
        self.rows.append((kind, what, tried, tried - len(failures), how))
        print(f"{kind}: {what}: {tried - len(failures)} of {tried} ({time.monotonic() - start:.0f} s)", flush=True)
        for failure in failures[:5]:
            print("    " + failure[:600].replace("\n", "\n    "), flush=True)

    def text(self, seconds: float) -> str:
        """The page."""
        rows = "".join(f"| {k} | {w} | {t} | {h} | {how} |\n" for k, w, t, h, how in self.rows)
        tried, held = (sum(row[i] for row in self.rows) for i in (2, 3))
        return (
            "# What was tried, and what held\n\n"
            f"Made by `python -m benchmarks.reliability` in {seconds / 60:.0f} minutes ({platform.machine()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}); the script says "
            "what each row does and when a trial counts as held.\n\n"
            "| | what was done | tried | held | a trial held when |\n|---|---|---|---|---|\n"
            f"{rows}| | together | {tried} | {held} | |\n"
        )


def error_names(code: int, text: str, *words: str) -> str | None:
    """None where a child ended in an error of ours that contains the words."""
    ours = text.startswith(("ValueError", "OSError", "FileNotFoundError", "BadClip", "FolderBusy", "RuntimeError"))
    if code == 1 and ours and all(word in text for word in words):
        return None
    return f"expected an error with {words}, got {code} {text or 'no error'}"


# --- kills ------------------------------------------------------------------------------------------------------------


def kills_while_collecting(work: Path, task: Task, **options: Any) -> Iterator[str | None]:
    """At every rename, fsync, unlink and folder of a pass, until one runs through; then the same call once more."""
    whole = work / "whole" / "out"
    collect(toy(), task, whole, batch_size=16, **options)
    expected = bytes_of(whole)
    for event in itertools.count(1):
        out = work / f"{event}" / "out"

        def killed(out: Path = out, event: int = event) -> None:
            with dying_at(event):
                collect(toy(), task, out, batch_size=16, **options)

        code, text = in_child(killed)
        if code == 0:
            return
        again, text = in_child(lambda out=out: collect(toy(), task, out, batch_size=16, **options))
        found = bytes_of(out)
        yield None if code == -9 and again == 0 and found == expected else f"event {event}: {code} {again} {text}"
        shutil.rmtree(out.parent)


def kills_while_taking_over(work: Path, task: Task) -> Iterator[str | None]:
    """As above, where a sibling task has heard the same clips."""
    other = task_of(str(task.audio_dir.parent), "other")
    collect(toy(), task, work / "whole" / "noise", batch_size=16)
    collect(toy(), other, work / "whole" / "out", batch_size=16)
    expected = bytes_of(work / "whole" / "out")
    for event in itertools.count(1):
        place = work / f"{event}"
        shutil.copytree(work / "whole" / "noise", place / "noise")

        def killed(place: Path = place, event: int = event) -> None:
            with dying_at(event):
                collect(toy(), other, place / "out", batch_size=16)

        code, text = in_child(killed)
        if code == 0:
            return
        again, text = in_child(lambda place=place: collect(toy(), other, place / "out", batch_size=16))
        good = code == -9 and again == 0 and bytes_of(place / "out") == expected
        yield None if good else f"event {event}: {code} {again} {text}"
        shutil.rmtree(place)


WORKER = """
import sys
sys.path.insert(0, {root!r})
from benchmarks.reliability import collect, task_of, toy
collect(toy(), task_of({data!r}), sys.argv[1], batch_size=2, device="cpu")
"""


def kills_of_torchrun(work: Path, task: Task) -> Iterator[str | None]:
    """Two processes under torchrun; torchrun is killed, then its workers must end, then the same command again."""
    script = work / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT), data=str(task.audio_dir.parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = work / "whole" / "out"
    collect(toy(), task, whole, batch_size=2, device="cpu")
    for trial in range(2):
        out = work / f"torchrun-{trial}" / "out"
        with subprocess.Popen([*command, str(out)], env=environment, stderr=subprocess.DEVNULL) as running:
            for _ in range(1200):
                if len(list(out.glob(".partial/batch-*.npz"))) > 2 + trial:
                    break
                time.sleep(0.05)
            running.kill()
        for _ in range(100):  # workers notice that their parent is gone
            try:
                with folder_lock(out):
                    break
            except FolderBusy:
                time.sleep(0.1)
        ended = subprocess.run([*command, str(out)], env=environment, capture_output=True, timeout=120)
        good = ended.returncode == 0 and bytes_of(out) == bytes_of(whole)
        yield None if good else ended.stderr.decode()[-1000:]


def study_file(folder: Path, data: Path) -> Path:
    """A study of the toy and an untrained twin on the noise, with one ablation."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "models": {
            "first": {"loader": "benchmarks.reliability:toy", "role": "ssl"},
            "second": {"loader": "benchmarks.reliability:toy", "options": {"seed": 1}, "role": "untrained"},
        },
        "tasks": {"noise": {"loader": "benchmarks.reliability:task_of", "options": {"folder": str(data)}}},
        "selection": {"rate": 0.5, "quantile": 0.5},
        "chance": {"permutations": 20, "resamples": 2},
        "ablation": {
            "models": ["first"],
            "controls": 5,
            "targets": [{"task": "noise", "classes": ["class0"], "mode": "specific"}],
        },
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def kills_of_an_experiment(work: Path, data: Path, run: Callable[[Path], Any]) -> Iterator[str | None]:
    """At random moments of `analyze` or `ablate`; then the same call once more."""
    place = work / "whole"
    study = load_study(study_file(place, data))
    for model in study.models:
        code, text = in_child(lambda m=model: collect(study_model(m), task_of(str(data)), artifacts(study, m)))
        if code:
            raise RuntimeError(text)
    prepared = work / "prepared"
    shutil.copytree(place, prepared)
    start = time.monotonic()
    code, text = in_child(lambda: run(place / "toy.yaml"))
    seconds = time.monotonic() - start
    if code:
        raise RuntimeError(text)
    expected = bytes_of(place, (".csv",))
    rng = random.Random(0)
    for trial in range(6):
        shutil.rmtree(place)
        shutil.copytree(prepared, place)
        delay = rng.uniform(0.05, 0.95) * seconds
        code, text = in_child(lambda: run(place / "toy.yaml"), kill_after=delay)
        again, text = in_child(lambda: run(place / "toy.yaml"))
        good = again == 0 and bytes_of(place, (".csv",)) == expected
        yield None if good else f"trial {trial}, killed after {delay:.1f} s: {code} {again} {text}"


def study_model(name: str) -> Encoder:
    """What the study's loader gives."""
    return toy(0 if name == "first" else 1)


def artifacts(study: Any, model: str) -> Path:
    """Where the study's artifacts lie."""
    return study.artifacts_directory("noise", model)


# --- two writers ------------------------------------------------------------------------------------------------------


def two_writers(work: Path, task: Task) -> Iterator[str | None]:
    """Two processes collect into one folder at the same time: one does it, the other is refused or finds it whole."""
    whole = work / "whole" / "out"
    collect(toy(), task, whole, batch_size=1)
    for trial in range(15):
        out = work / f"{trial}" / "out"
        results = []
        both = [os.pipe() for _ in range(2)]
        children = []
        for _, writer in both:
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    warnings.simplefilter("ignore")
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                    try:
                        collect(toy(), task, out, batch_size=1)
                        os.write(writer, b"done")
                    except FolderBusy as error:
                        os.write(writer, b"refused" if "process" in str(error) else b"unnamed")
                os._exit(0)
            children.append(child)
        for child, (reader, writer) in zip(children, both, strict=True):
            os.close(writer)
            os.waitpid(child, 0)
            with os.fdopen(reader, "rb") as pipe:
                results.append(pipe.read().decode())
        good = sorted(results) in (["done", "done"], ["done", "refused"]) and bytes_of(out) == bytes_of(whole)
        yield None if good else f"trial {trial}: {results}"


def locks(work: Path, task: Task) -> Iterator[str | None]:
    """A lock whose owner was killed is taken over; one of another host is not, and its file is named."""
    out = work / "out"

    def hold() -> None:
        with folder_lock(out):
            time.sleep(60)

    for _ in range(5):
        in_child(hold, kill_after=0.3)
        code, text = in_child(lambda: collect(toy(), task, out))
        yield None if code == 0 else text
        shutil.rmtree(out)
    out.mkdir()
    (out / ".lock.json").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": time.time() - 3600}))
    code, text = in_child(lambda: collect(toy(), task, out))
    yield error_names(code, text, "elsewhere", "60.0 minutes", str(out / ".lock.json"))
    (out / ".lock.json").unlink()
    for run in (analyze, ablate):
        study = load_study(study_file(work / "study", task.audio_dir.parent))
        if not artifacts(study, "first").exists():
            for model in study.models:
                collect(study_model(model), task, artifacts(study, model))
        folder = study.directory / {analyze: ".analysis", ablate: "ablations"}[run]
        with folder_lock(folder):
            code, text = in_child(lambda run=run, work=work: run(work / "study" / "toy.yaml"))
        yield error_names(code, text, "in use by process", str(os.getpid()))


# --- a full disk ------------------------------------------------------------------------------------------------------


def full_disk(folder: Path, data: Path) -> Iterator[str | None]:
    """Runs inside `unshare -rm`: a pass on ever larger disks, each given space when it is full, must end the same."""
    task = task_of(str(data))
    whole = data / "whole-of-full-disk" / "out"
    collect(toy(), task, whole, batch_size=16)
    for kib in range(16, 400, 12):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], check=True)
        try:
            code, text = in_child(lambda: collect(toy(), task, folder / "run" / "out", batch_size=16))
            if code == 0:
                return
            complaint = error_names(code, text, "GiB", str(folder))
            subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
            again, text = in_child(lambda: collect(toy(), task, folder / "run" / "out", batch_size=16))
            same = again == 0 and bytes_of(folder / "run" / "out") == bytes_of(whole)
            yield complaint or (None if same else f"{kib} KiB, then space: {again} {text}")
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk_outside(work: Path, task: Task) -> Iterator[str | None]:
    """The same, told by a process in a namespace of its own, which may mount."""
    folder = work / "disk"
    folder.mkdir()
    command = ["unshare", "-rm", sys.executable, "-m", "benchmarks.reliability"]
    inside = [*command, "--full-disk", str(folder), str(task.audio_dir.parent)]
    ended = subprocess.run(inside, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        yield f"could not be tried here: {ended.stderr[-500:]}"
    yield from (json.loads(line) for line in ended.stdout.splitlines())


# --- tampering --------------------------------------------------------------------------------------------------------


def damaged(content: bytes, how: str, rng: random.Random) -> bytes:
    """A bit flipped, the end cut off, nothing left, or other bytes."""
    at = rng.randrange(len(content))
    flipped = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    return {"flip": flipped, "cut": content[:at], "empty": b"", "junk": rng.randbytes(len(content))}[how]


def tampered_artifacts(work: Path, task: Task) -> Iterator[str | None]:
    """Each file in turn; loading must refuse and name the file, or the manifest."""
    out, other = work / "out", work / "other" / "out"
    collect(toy(), task, out)
    collect(toy(1), task, other)
    rng = random.Random(0)
    for name, content in bytes_of(out).items():
        for how in ["flip"] * 8 + ["cut", "cut", "empty", "junk", "another run's", "gone"]:
            path = out / name
            if how == "gone":
                path.unlink()
            elif how == "another run's":
                path.write_bytes((other / name).read_bytes())
            else:
                path.write_bytes(damaged(content, how, rng))
            same = path.is_file() and path.read_bytes() == content  # class names do not depend on the run
            if name == "manifest.json" and how == "gone":
                same = True  # without it the folder is another tool's, which is read as such
            code, text = in_child(lambda: load_artifacts(out))
            wrong = error_names(code, text, str(out))
            yield wrong and (None if same and code == 0 else f"{name}, {how}: {wrong}")
            path.write_bytes(content)


def tampered_progress(work: Path, task: Task, **options: Any) -> Iterator[str | None]:
    """Each file that a killed pass leaves; the next call must give the same bytes."""
    whole, killed = work / "whole" / "out", work / "killed"
    collect(toy(), task, whole, batch_size=16, **options)

    def die() -> None:
        import aape.collecting.passing

        aape.collecting.passing.merge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        collect(toy(), task, killed / "out", batch_size=16, **options)

    in_child(die)
    rng = random.Random(0)
    for name in bytes_of(killed / "out"):
        for how in ("flip", "flip", "flip", "cut", "empty", "junk"):
            place = work / "trial"
            shutil.copytree(killed, place)
            path = place / "out" / name
            path.write_bytes(damaged(path.read_bytes(), how, rng))
            code, text = in_child(lambda place=place: collect(toy(), task, place / "out", batch_size=16, **options))
            good = code == 0 and bytes_of(place / "out") == bytes_of(whole)
            yield None if good else f"{name}, {how}: {code} {text}"
            shutil.rmtree(place)


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def hidden_code(work: Path, task: Task) -> Iterator[str | None]:
    """Pickles and YAML tags that would run code when they are read."""
    proof = work / "proof"
    out = collect(toy(), task, work / "out").path
    bare = work / "bare"
    bare.mkdir()
    (bare / "classes.txt").write_text("a\n")
    for save in (lambda p: torch.save(Bomb(proof), p), lambda p: p.write_bytes(pickle.dumps(Bomb(proof)))):
        save(bare / "over_zero.pt")
        code, text = in_child(lambda: load_artifacts(bare))
        yield error_names(code, text, "over_zero.pt") or ("it ran" if proof.exists() else None)
    array = np.empty(3, object)
    array[:] = Bomb(proof)
    np.save(out / "clip_counts.npy", array, allow_pickle=True)
    code, text = in_child(lambda: load_artifacts(out))
    yield error_names(code, text, "clip_counts.npy") or ("it ran" if proof.exists() else None)
    study = work / "bomb.yaml"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"):
        study.write_text(f"name: {tag} [{str(proof)!r}]\n")
        code, text = in_child(lambda: load_study(study))
        yield error_names(code, text, "bomb.yaml") or ("it ran" if proof.exists() else None)


# --- wrong results ----------------------------------------------------------------------------------------------------


def other_things(work: Path, task: Task) -> Iterator[str | None]:
    """A folder, whole or unfinished, that another model, another front end or other audio comes back to."""
    data = task.audio_dir.parent
    for half in (False, True):
        for number, (again, words) in enumerate(
            [
                (lambda out: collect(toy(1), task, out), ("identity", "there", "here")),
                (lambda out: collect(toy(scale=1.01), task, out), ("same weights embed", "there", "here")),
                (lambda out: collect(toy(), task, out, layers=["act.0", "act.1"]), ("layers", "there", "here")),
                (lambda out: collect(from_double(), task, out), ("identity", "dtype", "there", "here")),
            ]
        ):
            out = work / f"{half}-{number}" / "out"

            def first(out: Path = out, half: bool = half) -> None:
                import aape.collecting.passing

                if half:
                    aape.collecting.passing.merge = lambda *_: os._exit(0)
                collect(toy(), task, out)

            in_child(first)
            before = bytes_of(out)
            code, text = in_child(lambda out=out, again=again: again(out))
            yield error_names(code, text, *words) or (None if bytes_of(out) == before else "something was written")
    out = work / "audio" / "out"
    collect(toy(), task, out)
    path = task.audio_dir / task.files[5]
    content = path.read_bytes()
    for at in (len(content) - 1, len(content) // 2, 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        os.utime(path, (1, 1))
        code, text = in_child(lambda: collect(toy(), task_of(str(data)), out))
        yield error_names(code, text, "clip", "sha256", "there", "here")
    path.write_bytes(content)
    code, text = in_child(lambda: collect(toy(), task_of(str(data)), out))
    yield None if code == 0 else text


def from_double() -> Encoder:
    """The toy in float64."""
    encoder = toy()
    encoder.module.double()
    double = lambda wave: encoder.module(wave.double())  # noqa: E731
    return dataclasses.replace(
        encoder, embed=double, padding_masks=None, token_grid=None
    )  # these run the first `embed`


# --- bad input --------------------------------------------------------------------------------------------------------


def bad_audio(work: Path, task: Task) -> Iterator[str | None]:
    """Files that are none, or no more: the pass stops and names the file; `skip` leaves it out."""
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, 80_000)
    bad: dict[str, bytes] = {
        "empty.wav": b"",
        "text.wav": b"hello",
        "pointer.wav": b"version https://git-lfs.github.com/",
    }
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au"):
        path = work / f"whole.{suffix}"
        soundfile.write(path, sound, 16_000)
        content = path.read_bytes()
        bad |= {f"cut-{share}.{suffix}": content[: int(len(content) * share)] for share in (0.1, 0.5, 0.9)}
    soundfile.write(work / "nan.wav", np.where(np.arange(900) == 300, np.nan, 0.1), RATE, subtype="FLOAT")
    soundfile.write(work / "none.wav", np.zeros(0), RATE)
    bad |= {name: (work / name).read_bytes() for name in ("nan.wav", "none.wav")}
    for name, content in bad.items():
        place = work / name.replace(".", "-")
        noise(place, 12)
        (place / "audio" / name).write_bytes(content)
        csv = place / "noise.csv"
        csv.write_text(csv.read_text() + f"{name},class0,train,g99\n")
        code, text = in_child(lambda place=place: collect(toy(), task_of(str(place)), place / "a" / "out"))
        wrong = error_names(code, text, name)
        out = place / "b" / "out"
        code, text = in_child(lambda p=place, out=out: collect(toy(), task_of(str(p)), out, on_bad_clip="skip"))
        if not wrong and code == 0:
            skipped = [s["file"] for s in load_artifacts(out).manifest["skipped"]]
            wrong = None if skipped == [name] else f"skipped {skipped}"
        yield wrong or (None if code == 0 else text)


HEAD = "file_name,label,split\n"
GOOD = "000.wav,a,train\n001.wav,b,train\n002.wav,a,test\n003.wav,b,test\n"


def bad_lists(work: Path, task: Task) -> Iterator[str | None]:
    """CSV files that would be misread: refused with the file's name."""
    lists: dict[str, bytes | str] = {
        "no columns": GOOD,
        "empty": "",
        "no rows": HEAD,
        "a column twice": HEAD.replace("split", "split,label")
        + GOOD.replace("train", "train,c").replace("test", "test,c"),
        "trailing comma": HEAD + GOOD.replace("000.wav,a,train", "000.wav,a,train,"),
        "a field too few": HEAD + GOOD.replace("000.wav,a,train", "000.wav,a"),
        "an open quote": HEAD + GOOD.replace("000.wav", '"000.wav'),
        "UTF-16": (HEAD + GOOD).encode("utf-16"),
        "Latin-1": (HEAD + GOOD.replace(",a,", ",\xe9,")).encode("latin-1"),
        "a file twice": HEAD + GOOD + "000.wav,a,train\n",
        "a file twice by ./": HEAD + GOOD + "./000.wav,a,train\n",
        "outside": HEAD + GOOD + "../noise.csv,a,train\n",
        "absolute": HEAD + GOOD + f"{task.audio_dir}/004.wav,a,train\n",
        "missing": HEAD + GOOD + "nowhere.wav,a,train\n",
        "no label": HEAD + GOOD + "004.wav,,train\n",
        "two labels": HEAD + GOOD + '004.wav,"a,b",train\n',
        "a split of no kind": HEAD + GOOD + "004.wav,a,holdout\n",
        "a broken fold": (HEAD + GOOD).replace("split", "fold").replace("train", "1.5").replace("test", "2"),
        "NUL": HEAD + GOOD + "00\0.wav,a,train\n",
        "a folder": HEAD + GOOD + ".,a,train\n",
    }
    for name, content in lists.items():
        path = work / f"{name.replace(' ', '-').replace('/', '')}.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        code, text = in_child(lambda path=path: from_metadata(path, task.audio_dir, clip_seconds=1.0, name="bad"))
        wrong = error_names(code, text, path.name)
        yield wrong and f"{name}: {wrong}"
    path = work / "close.csv"
    path.write_text(HEAD + GOOD.replace("000.wav,a", "000.wav,01").replace("001.wav,b", "001.wav,1.0"))
    classes = from_metadata(path, task.audio_dir, clip_seconds=1.0, name="close").classes
    yield None if {"01", "1.0"} <= set(classes) else f"labels 01 and 1.0 became {classes}"


def bad_folders(work: Path, task: Task) -> Iterator[str | None]:
    """Files of another hand under our names: named, and not touched."""
    names = ["over_zero.pt", "classes.txt", "features.pt", "gts.pt", "clip_counts.npy", "clip_means.npy"]
    for name in [*names, "padding_counts.npy", "manifest.json", ".partial", ".partial/x", ".partial/settings.json"]:
        out = work / name.replace("/", "-") / "out"
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text('{"theirs": 1}')
        code, text = in_child(lambda out=out: collect(toy(), task, out))
        untouched = bytes_of(out) == {name: b'{"theirs": 1}'}
        yield error_names(code, text, name.split("/")[0]) or (None if untouched else "it was touched")
    for text in ("{}", "[1]", "", '{"task": "x"}', '{"settings": {}, "clips": {}}'):
        place = work / f"beside-{len(text)}"
        (place / "theirs").mkdir(parents=True)
        (place / "theirs" / "manifest.json").write_text(text)
        code, error = in_child(lambda place=place: collect(toy(), task, place / "out"))
        yield None if code == 0 else error


def bad_settings(work: Path, task: Task) -> Iterator[str | None]:
    """Arguments and settings of a study that make no sense: refused before anything is computed."""
    for number, bad in enumerate(
        [
            {"batch_size": 0},
            {"batch_size": -3},
            {"keep_clips": -1},
            {"splits": ["nope"]},
            {"splits": "train"},
            {"layers": ["nope"]},
            {"layers": ["act.0", "act.0"]},
            {"layers": []},
            {"on_bad_clip": "maybe"},
            {"device": "cuda:99"},
        ]
    ):
        out = work / f"{number}" / "out"
        code, text = in_child(lambda out=out, bad=bad: collect(toy(), task, out, **bad))
        if "device" in bad and code == 1:
            text = "ValueError" + text  # torch's own error, where there is a GPU
        yield error_names(code, text) or (None if not (out / ".partial").exists() else "something was computed")
    for names in (
        ("a", "b\n", "c"),
        ("a", "b\u2028", "c"),
        ("a", "b\x85c", "c"),
        ("\xe9", "e\u0301", "c"),
        ("a", "", "c"),
    ):
        code, text = in_child(lambda n=names: collect(toy(), dataclasses.replace(task, classes=n), work / "names"))
        yield error_names(code, text, "class")
    good = yaml.safe_load(study_file(work, task.audio_dir.parent).read_text())
    for section, changes in {
        "selection": [{"rate": 5}, {"rate": 0}, {"quantile": 3}, {"weak_filter": "strong"}],
        "chance": [{"q": 7}, {"permutations": -5}, {"resamples": 0}],
        "collect": [{"batch_size": 0}, {"keep_clips": 0}, {"batch": 3}],
        "output": ["../elsewhere", "/tmp/elsewhere"],
        "models": [{"../up": {"loader": "x:y"}}, {}, {"a": {"loader": "x:y", "folder": "../up"}}],
        "tasks": [{"../up": {"loader": "x:y"}}, {}, {"a": {"loader": "x:y"}, "b": 3}],
    }.items():
        for change in changes:
            (work / "bad.yaml").write_text(yaml.safe_dump(good | {section: change}))
            code, text = in_child(lambda: load_study(work / "bad.yaml"))
            wrong = error_names(code, text, "bad.yaml")
            yield wrong and f"{section} {change}: {wrong}"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
    )
    for text in (bomb, "name: x\nname: y\n", "- 1\n", "\x00", ": :"):
        (work / "bad.yaml").write_text(text)
        code, error = in_child(lambda: load_study(work / "bad.yaml"))
        yield error_names(code, error, "bad.yaml")


ROWS: list[tuple[str, str, Callable[..., Iterator[str | None]], dict[str, Any], str]] = [
    ("kill", "a pass, at every rename, fsync, unlink and folder", kills_while_collecting, {}, "next call: same bytes"),
    ("kill", "the same with `keep_clips`", kills_while_collecting, {"keep_clips": 11}, "next call: same bytes"),
    ("kill", "a pass that takes another's over", kills_while_taking_over, {}, "next call: same bytes"),
    ("kill", "torchrun of two processes", kills_of_torchrun, {}, "workers end; next call: same bytes"),
    ("kill", "the analysis, at random moments", kills_of_an_experiment, {"run": analyze}, "next call: same tables"),
    ("kill", "the ablation, at random moments", kills_of_an_experiment, {"run": ablate}, "next call: same tables"),
    ("two writers", "two passes at once into one folder", two_writers, {}, "one refused with the other's pid, or finds it whole"),
    ("two writers", "locks of the killed, of other hosts, of analysis and ablation", locks, {}, "taken over; refused by name"),
    ("full disk", "a pass on 16 KiB and more, then space", full_disk_outside, {}, "OSError names the need; then same bytes"),
    ("tampering", "artifacts: bits, ends, swaps, removals", tampered_artifacts, {}, "refused, the file named"),
    ("tampering", "progress of a killed pass", tampered_progress, {}, "next call: same bytes"),
    ("tampering", "the same with `keep_clips`", tampered_progress, {"keep_clips": 11}, "next call: same bytes"),
    ("tampering", "pickles and YAML tags that run code", hidden_code, {}, "refused, nothing ran"),
    ("other things", "other weights, pooling, layers, type or audio in the same folder", other_things, {}, "refused, both named"),
    ("bad input", "audio: cut, empty, no audio, NaN", bad_audio, {}, "named; `skip` leaves it out"),
    ("bad input", "lists of clips", bad_lists, {}, "refused, the file named"),
    ("bad input", "other tools' files in and beside the folder", bad_folders, {}, "named, untouched; ignored beside it"),
    ("bad input", "arguments, class names, study files", bad_settings, {}, "refused before anything is computed"),
]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("-o", "--output", type=Path, help="write the page here")
    parser.add_argument("--full-disk", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.full_disk:
        for complaint in full_disk(*options.full_disk):
            print(json.dumps(complaint))
        return
    start = time.monotonic()
    table = Table(options.only)
    with tempfile.TemporaryDirectory() as name:
        os.environ["AAPE_CACHE"] = f"{name}/cache"
        os.environ.pop("AAPE_OUTPUT", None)
        warnings.simplefilter("ignore")
        task = noise(Path(name) / "data")
        shutil.copy(task.metadata, task.metadata.with_name("other.csv"))
        for number, (kind, what, trials, more, how) in enumerate(ROWS):
            work = Path(name) / f"row-{number}"
            work.mkdir()
            third = task.audio_dir.parent if trials is kills_of_an_experiment else task
            table.run(kind, what, lambda t=trials, w=work, x=third, m=more: t(w, x, **m), how)
            shutil.rmtree(work)
    text = table.text(time.monotonic() - start)
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
