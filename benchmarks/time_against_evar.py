"""Seconds from audio files to embeddings: EVAR's own pass, which counts nothing, against `collect`, which counts.

    EVAR=~/evar python -m benchmarks.time_against_evar --clips 80 --repeats 3

Both read the same 16 kHz WAV files of ESC-50, made for this in a temporary folder, with the same drawn ViT-Base
weights, on the same device. EVAR: its WavDataset and DataLoader (eight workers) through lineareval.to_embeddings. Ours:
everything that `collect` does, artifacts on disk included. The two alternate; models are built before, and one untimed
clip warms each up. Needs an EVAR clone with M2D in external/m2d, and ESC-50.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

from aape.collecting.passing import collect
from aape.encoders import m2d
from aape.sounds.loading import from_metadata
from add_to_evar import bridge as evar
from benchmarks import numpy_weights

ROOT = Path(__file__).resolve().parents[1]


def prepare(folder: Path, esc50: Path, clips: int) -> None:
    """An EVAR-like tree: work/16k/esc50 with `clips` WAV files, evar/metadata/esc50timing.csv, external/m2d."""
    table = pd.read_csv(esc50 / "meta" / "esc50.csv").sample(clips, random_state=0)
    audio = folder / "work" / "16k" / "esc50"
    audio.mkdir(parents=True)
    for name in table.filename:
        wave, rate = soundfile.read(esc50 / "audio" / name, dtype="float32")
        soundfile.write(audio / f"{Path(name).stem}.wav", wave, rate)
    names = table.filename.map(lambda n: f"{Path(n).stem}.wav")
    rows = pd.DataFrame({"file_name": names, "label": "clip", "split": "test"})
    (folder / "evar" / "metadata").mkdir(parents=True)
    # EVAR makes all three loaders, and pandas 3 stops it at an empty one
    others = [
        {"file_name": rows.file_name.iloc[0], "label": "clip", "split": split}
        for split in ("train", "valid")
    ]
    rows.to_csv(folder / "ours.csv", index=False)
    pd.concat([rows, pd.DataFrame(others)]).to_csv(
        folder / "evar" / "metadata" / "esc50timing.csv", index=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--esc50", type=Path, default=None)
    options = parser.parse_args()
    esc50 = (
        options.esc50 or Path(os.environ.get("AAPE_ESC50", ROOT.parent / "shared/data/esc50"))
    ).resolve()
    root = evar.clone()
    evar.require(root, "ar_m2d", "lineareval.py")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    with tempfile.TemporaryDirectory() as name, evar.importable(root):
        folder = Path(name)
        prepare(folder, esc50, options.clips)
        checkpoint = numpy_weights.save_checkpoint(folder)
        from easydict import EasyDict

        with contextlib.redirect_stdout(io.StringIO()):
            import lineareval  # EVAR's
            from evar.data import create_dataloader

            settings = evar.read_config(root, "config/m2d.yaml", {"weight_file": str(checkpoint)})
            settings |= {
                "task_metadata": str(folder / "evar/metadata/esc50timing.csv"),
                "task_data": str(folder / "work/16k/esc50"),
                "unit_samples": 80000,
                "return_filename": False,
                "batch_size": options.batch_size,
            }
            cfg = EasyDict(settings)
            theirs = lineareval.evar.ar_m2d.AR_M2D(cfg)
            theirs.precompute(device, None)
            theirs = torch.nn.DataParallel(theirs).to(device)
        ours = m2d.load(checkpoint).to(device)
        task = from_metadata(
            folder / "ours.csv", folder / "work/16k/esc50", clip_seconds=5.0, name="esc50"
        )

        def pass_of_evar() -> np.ndarray:
            loader = create_dataloader(cfg, balanced_random=False, pin_memory=False)[2]
            return lineareval.to_embeddings(theirs, loader, device)[0]

        def pass_of_ours(number: int) -> np.ndarray:
            out = (
                folder / f"run{number}" / "out"
            )  # a folder of its own: collect takes over a sibling's pass
            made = collect(ours, task, out, batch_size=options.batch_size, device=str(device))
            return made.features["test"].numpy()

        warm = torch.zeros(1, 80000, device=device)
        with torch.no_grad():
            theirs(warm), ours.embed(warm)
        seconds: dict[str, list[float]] = {"EVAR": [], "ours": []}
        for number in range(options.repeats):
            for who in ("EVAR", "ours") if number % 2 == 0 else ("ours", "EVAR"):
                start = time.perf_counter()
                found = pass_of_evar() if who == "EVAR" else pass_of_ours(number)
                seconds[who].append(time.perf_counter() - start)
                if who == "EVAR":
                    expected = found
                else:
                    embeddings = found
        difference = float(np.abs(expected - embeddings).max())
    for who, values in seconds.items():
        print(
            f"{who}: {', '.join(f'{v:.1f}' for v in values)} s, median {statistics.median(values):.1f} s"
        )
    ratios = [
        ours_s / evar_s for ours_s, evar_s in zip(seconds["ours"], seconds["EVAR"], strict=True)
    ]
    print(
        f"ours / EVAR: {', '.join(f'{r:.3f}' for r in ratios)}, median {statistics.median(ratios):.3f}"
    )
    print(
        f"{options.clips} clips of 5 s, batches of {options.batch_size}, {device}, {torch.get_num_threads()} threads, "
        f"largest difference of the embeddings {difference:.1e}"
    )


if __name__ == "__main__":
    main()
