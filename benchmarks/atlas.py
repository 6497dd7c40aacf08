"""What the atlas costs: python -m benchmarks.atlas miniature | browser | vit [ESC50]

miniature   the whole atlas of outputs/miniature built anew into a temporary folder: seconds, bytes
browser     a neuron of it opened from disk, and a search over 36,864 neurons x 50 classes: seconds, memory
vit ESC50   ViT-Base (random weights) on clips of ESC-50, pages for 737 neurons: building over one bare pass
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aape.artifacts.folder import load_artifacts, save_tensors
from aape.atlas import Titles, build_atlas, build_study
from aape.collecting.passing import collect
from aape.encoders import m2d
from aape.encoders.encoder import full_precision
from aape.neurons.selection import select
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task
from aape.study.study import load_study


def timed(what: Callable[[], Any]) -> tuple[Any, float, float]:
    """Its result, wall seconds, and CPU seconds of this process."""
    start, cpu = time.monotonic(), time.process_time()
    result = what()
    return result, time.monotonic() - start, time.process_time() - cpu


def sizes(folder: Path) -> str:
    """Bytes of a folder, by kind of file."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    kinds = {
        kind: [p.stat().st_size for p in files if p.suffix == kind]
        for kind in (".mp3", ".png", ".js")
    }
    parts = ", ".join(f"{len(b):,} {kind} of {sum(b) / 1e6:.1f} MB" for kind, b in kinds.items())
    return f"{sum(p.stat().st_size for p in files) / 1e6:.1f} MB: {parts}"


def miniature() -> None:
    """Build the atlas of the miniature from its artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        page, wall, cpu = timed(lambda: build_study("miniature", out_dir=Path(folder) / "atlas"))
        print(
            f"whole atlas of the miniature: {wall:.0f} s, {cpu:.0f} CPU seconds, {sizes(page.parent)}"
        )


def browser() -> None:
    """Open a neuron of the miniature, and search a large atlas."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        large = synthetic(Path(folder))
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        window = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        study = load_study("miniature").directory / "atlas" / "index.html"
        for name, path, address in (
            ("a neuron's page, with clips (miniature)", study, "m=ssl&t=esc50&l=5&n=587"),
            ("search page of 36,864 x 50", large, "m=large&t=synthetic&find=1&only=all"),
        ):
            page = window.new_context(offline=True).new_page()
            start = time.monotonic()
            page.goto(f"file://{path.resolve()}#{address}")
            page.wait_for_selector("main[data-ready] :is(figure img, tbody tr)")
            seconds = time.monotonic() - start
            processes = window.new_browser_cdp_session().send("SystemInfo.getProcessInfo")[
                "processInfo"
            ]
            tabs = [
                Path(f"/proc/{p['id']}/status").read_text()
                for p in processes
                if p["type"] == "renderer"
            ]
            memory = max(int(text.split("VmRSS:")[1].split()[0]) for text in tabs) / 1024
            print(
                f"{name}: shown after {seconds:.2f} s, resident memory of the tab {memory:.0f} MiB"
            )
        for query in (
            "only=all&s=p",
            "only=all&s=aape&desc=1",
            "only=all&s=q",
            "q=class 1&only=all",
            "c=class 7&only=all",
        ):
            found, took = page.evaluate(
                """async (query) => { const pair = await pairOf(index.pairs[0]), params = new URLSearchParams(query);
                   const times = []; let found;
                   for (let i = 0; i < 7; i++) { const t = performance.now(); found = search(pair, params).length; times.push(performance.now() - t); }
                   return [found, times.sort((a, b) => a - b)[3]]; }""",
                query,
            )
            print(f"  search {query!r}: {found:,} found in {took:.0f} ms (median of 7)")
        window.close()


def synthetic(folder: Path) -> Path:
    """An atlas of 12 x 3,072 neurons and 50 classes, without clips."""
    p = np.random.default_rng(0).beta(1, 6, (12, 3072, 50)).astype(np.float32)
    path = folder / "large" / "synthetic_large"
    path.mkdir(parents=True)
    save_tensors(path / "over_zero.pt", torch.from_numpy(p))
    (path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(50)))
    encoder = m2d.load("random", input_size=(80, 64), width=64, depth=1)
    task = Task("synthetic", 1.0, folder, folder, (), np.zeros(0, np.int64), (), (), (), None)
    titles = Titles("large", "large", "synthetic", "large", "synthetic")
    return build_atlas(load_artifacts(path), encoder, task, folder / "atlas", titles=titles)


def vit(esc50: Path, clips: int) -> None:
    """Build pages of 737 neurons of a ViT-Base over some of ESC-50's clips, against one bare pass over those shown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (esc50 / "meta" / "esc50.csv").read_text().splitlines()
        header, rows = (
            rows[0],
            [row for row in rows[1:] if Path(esc50 / "audio" / row.split(",")[0]).is_file()],
        )
        (folder / "few.csv").write_text(
            "\n".join([header, *rows[:: max(1, len(rows) // clips)][:clips]]) + "\n"
        )
        task = from_metadata(folder / "few.csv", esc50 / "audio", clip_seconds=5.0, name="esc50")
        encoder = m2d.load("random", name="ViT-Base")
        artifacts = collect(encoder, task, folder / "study" / "esc50_vit", batch_size=32)
        selection = select(
            artifacts, rate=0.02
        )  # of random weights it may be empty, so neurons are drawn
        drawn = np.random.default_rng(0).choice(selection.selected.size, 737, replace=False)
        neurons = np.stack(np.unravel_index(np.sort(drawn), selection.selected.shape), axis=1)
        waves = [
            torch.from_numpy(task.read(i, encoder.sample_rate)[0]) for i in range(len(task.files))
        ]

        def bare() -> None:
            with full_precision(), torch.inference_mode():
                for i in range(0, len(waves), 32):
                    encoder.embed(torch.stack(waves[i : i + 32]))

        before = timed(bare)
        page, *built = timed(
            lambda: build_atlas(
                artifacts, encoder, task, folder / "atlas", neurons=neurons, selection=selection
            )
        )
        after = timed(bare)
        shown = len({p.name for p in (page.parent / "clips").glob("*.png")})
        once = (before[1] + after[1]) / 2 * shown / len(waves)
        cpu = (before[2] + after[2]) / 2 * shown / len(waves)
        print(
            f"{len(neurons)} neurons, {shown} of {len(waves)} clips shown: built in {built[0]:.0f} s, ",
            end="",
        )
        print(
            f"{built[0] / once:.2f} x one bare pass over these ({once:.0f} s, mean of before and after)"
        )
        print(
            f"  CPU seconds {built[1]:.1f}, {built[1] / cpu:.2f} x those of the bare pass ({cpu:.1f})"
        )
        print(f"  {sizes(page.parent)}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("miniature", "browser", "vit"))
    parser.add_argument("esc50", nargs="?", type=Path, default=Path("../shared/data/esc50"))
    parser.add_argument("--clips", type=int, default=200)
    options = parser.parse_args()
    if options.what == "vit":
        vit(options.esc50, options.clips)
    else:
        {"miniature": miniature, "browser": browser}[options.what]()


if __name__ == "__main__":
    main()
