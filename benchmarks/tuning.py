"""What neurons respond to: tuning and receptive fields of whisper-tiny, the miniature's models and untrained models.

    python -m benchmarks.tuning WHISPER ESC50 --work FOLDER        # gallery/tuning and benchmarks/tuning.md

WHISPER is the folder of whisper-tiny's encoder (or openai/whisper-tiny), ESC50 the folder of ESC-50. Everything slow is kept in
FOLDER, so that a second call only draws. Times are CPU seconds of this process, with one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aape import calibrate, collect, from_hub, from_metadata, receptive_fields, select, tune
from aape.causal.attribution import attribute
from aape.encoders.encoder import Encoder
from aape.figures import tuning as figures
from aape.figures.style import save
from aape.files import write_text
from aape.sounds.task import Task
from aape.tuning.receptive_fields import ReceptiveFields, tone_agreement
from aape.tuning.relevance import relevance
from aape.tuning.tuning import Tuning
from benchmarks.planted import FREQUENCIES, MODULATIONS, RANDOM, SPARSE, planted, section
from miniature import encoders as miniature

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CLIPS, CLIP_SECONDS = 500, 2.0
PAGE = """# Tuning: planted neurons and cost

Made by `python -m benchmarks.tuning WHISPER ESC50`; results on real models are in [gallery/tuning](../gallery/tuning/README.md).

An encoder of known filters (benchmarks/planted.py) is given to `tune`:

{planted}
CPU seconds of one process with one thread, for `tune` (944 sounds of 1 s) and `receptive_fields` (500 clips of 2 s):

{seconds}"""
PAIRS = {  # trained model -> untrained model of the same shape
    "whisper-tiny": "whisper-tiny, untrained",
    "MSM-MAE (miniature)": "untrained ViT (miniature)",
    "supervised ViT (miniature)": "untrained ViT (miniature)",
}


def loaders(whisper: str) -> dict[str, Callable[[], Encoder]]:
    """Name of each model -> how to load it."""
    return {
        "whisper-tiny": lambda: from_hub(whisper),
        "whisper-tiny, untrained": lambda: from_hub(whisper, seed=0),
        "MSM-MAE (miniature)": miniature.load_ssl,
        "supervised ViT (miniature)": miniature.load_sl,
        "untrained ViT (miniature)": miniature.load_untrained,
    }


def folder_of(work: Path, model: str) -> Path:
    """Where results of a model are kept."""
    return work / "".join(c if c.isalnum() else "-" for c in model)


def sounds(esc50: Path) -> Task:
    """500 random clips of ESC-50, cut to their first 2 s."""
    task = from_metadata(
        esc50 / "meta" / "esc50.csv", esc50 / "audio", clip_seconds=CLIP_SECONDS, name="esc50"
    )
    chosen = np.sort(np.random.default_rng(0).permutation(len(task))[:CLIPS])
    columns = {
        name: tuple(np.array(getattr(task, name))[chosen]) for name in ("files", "splits", "groups")
    }
    return replace(task, labels=task.labels[chosen], **columns)


def measured(
    encoder: Encoder, task: Task, folder: Path
) -> tuple[Tuning, ReceptiveFields, dict[str, float]]:
    """Tuning and receptive fields of a model, and the CPU seconds they took; kept in a folder."""
    times = folder / "seconds.csv"
    if times.is_file():
        seconds = pd.read_csv(times, index_col=0).iloc[:, 0].to_dict()
        return Tuning.load(folder), ReceptiveFields.load(folder / "fields.npz"), seconds
    start = time.process_time()
    tuning = tune(
        encoder, out_dir=folder, measure="mean"
    )  # of all models, so that they can be compared
    middle = time.process_time()
    fields = receptive_fields(encoder, task)
    fields.save(folder / "fields.npz")
    seconds = {"tune": middle - start, "receptive fields": time.process_time() - middle}
    pd.Series(seconds, name="seconds").to_csv(times)
    return tuning, fields, seconds


def does_it_matter(encoder: Encoder, task: Task, tuning: Tuning, folder: Path) -> pd.DataFrame:
    """Are class-specific neurons, and neurons found by attribution, tuned more or less often than others of their layers?"""
    path = folder / "relevance.csv"
    if path.is_file():
        return pd.read_csv(path)
    artifacts = collect(encoder, task, folder / "esc50")
    selection = select(artifacts, rate=0.02)
    calibrated = calibrate(artifacts, selection, permutations=200)
    effects = attribute(encoder, task, artifacts, replace_by="mean")
    strongest = np.abs(np.asarray(effects)).max(axis=2)
    by_attribution = strongest >= np.quantile(strongest, 0.98)
    chosen = {
        "class-specific": np.asarray(selection.members).any(axis=2),
        "calibrated": np.asarray(calibrated.members).any(axis=2),
        "attribution, strongest 2 %": by_attribution,
    }
    table = relevance(tuning.table(), chosen)
    table.to_csv(path, index=False)
    return table


def planted_table() -> pd.DataFrame:
    """What `tune` finds of neurons whose tuning is known."""
    tuning = tune(planted())
    band, modulation, level = (section(tuning, name) for name in ("band", "modulation", "level"))
    up, down, onset = (section(tuning, name).iloc[0] for name in ("up", "down", "onset"))
    octaves = np.abs(np.log2(band.best_frequency_hz / FREQUENCIES))
    rates = np.abs(np.log2(modulation.best_modulation_hz / MODULATIONS))
    false = section(tuning, "random").filter(like="_tuned").mean().max()
    rows = [
        (f"{len(band)} band-pass neurons", f"{band.frequency_tuned.sum()} tuned", f"at most {octaves.max():.2f} octaves off"),
        (f"{len(modulation)} modulation filters", f"{modulation.modulation_tuned.sum()} tuned", f"at most {rates.max():.2f} octaves off"),
        ("upward and downward sweep detector", f"{int(up.sweep_tuned) + int(down.sweep_tuned)} tuned", f"indices {up.sweep_index:.2f} and {down.sweep_index:.2f}"),
        (f"{len(level)} level detectors", f"{level.level_tuned.sum()} tuned", f"thresholds {', '.join(f'{t:.0f}' for t in level.threshold_db)} dB"),
        ("onset detector", f"{int(onset.onset_tuned)} tuned", f"index {onset.onset_index:.2f}"),
        (f"{RANDOM + SPARSE} random neurons", f"at most {false:.1%} tuned", "largest share over all properties"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["planted", "found", "how well"])


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; numbers with three digits."""
    cells = table.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
    lines = [cells.columns, ["---"] * len(cells.columns), *cells.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def tuned_shares(tunings: dict[str, Tuning]) -> pd.DataFrame:
    """Share of tuned neurons in each model and layer, percent."""
    columns = ["frequency", "modulation", "sweep", "tone", "periodicity", "onset"]
    rows = []
    for model, tuning in tunings.items():
        shares = 100 * tuning.tuned_by_layer()[columns]
        rows += [
            {"model": model, "layer": layer, **shares.loc[layer].round(1)} for layer in shares.index
        ]
    return pd.DataFrame(rows)


def by_measure(tunings: dict[str, Tuning]) -> pd.DataFrame:
    """Both measures of response: correlation on held-out realisations, and share of neurons tuned to frequency, percent."""
    rows = []
    for model, tuning in tunings.items():
        better = tuning.evidence.groupby("measure").correlation.mean().idxmax()
        for measure, evidence in tuning.evidence.groupby("measure"):
            correlation = evidence.groupby("curve").correlation.mean()
            shares = (
                100
                * tuning.shares[tuning.shares.measure == measure][
                    ["frequency", "modulation"]
                ].mean()
            )
            row = {
                "model": model,
                "measure": measure,
                "repeats better": "yes" if measure == better else "",
            }
            row |= {f"held-out correlation, {curve}": value for curve, value in correlation.items()}
            rows.append(row | {f"tuned to {curve} (%)": value for curve, value in shares.items()})
    return pd.DataFrame(rows)


def field_table(tunings: dict[str, Tuning], fields: dict[str, ReceptiveFields]) -> pd.DataFrame:
    """Predictability of each model and layer, and how well tuning to tones predicts the field."""
    rows = []
    for model, found in fields.items():
        tuning = tunings[model]
        agreement = tone_agreement(found, tuning.curves["frequency"], tuning.axes["frequency"])
        for layer in np.unique(found.layer):
            inside = found.layer == layer
            tuned = agreement[inside & tuning.neurons.frequency_tuned.to_numpy()]
            row = {
                "model": model,
                "layer": layer,
                "held-out correlation": float(np.median(found.correlation[inside])),
            }
            row |= {"tuned neurons": len(tuned), "tones and field": tuned.correlation.median()}
            rows.append(row | {"shuffled neurons": tuned.shuffled.median()})
    return pd.DataFrame(rows)


def write(
    gallery: Path,
    tunings: dict[str, Tuning],
    fields: dict[str, ReceptiveFields],
    seconds: dict[str, dict[str, float]],
    matters: pd.DataFrame,
) -> None:
    """Draw the figures and write both pages."""
    gallery.mkdir(parents=True, exist_ok=True)
    whisper = [model for model in tunings if model.startswith("whisper")]
    small = [model for model in tunings if model not in whisper]
    pictures = []
    for group, models in {"whisper": whisper, "miniature": small}.items():
        chosen = {model: tunings[model] for model in models}
        save(figures.tuned_figure(chosen, "modulation"), gallery, f"{group}-modulation")
        save(figures.frequency_figure(chosen), gallery, f"{group}-frequency")
        save(figures.reliability_figure(chosen), gallery, f"{group}-reliability")
        save(
            figures.predictability_figure({model: fields[model] for model in models}),
            gallery,
            f"{group}-fields",
        )
        pictures += [
            f"![{group} {name}]({group}-{name}.png)"
            for name in ("modulation", "frequency", "reliability", "fields")
        ]
    for model in tunings:
        if model in PAIRS:
            best = fields[model].table().nlargest(1, "correlation").iloc[0]
            name = f"{folder_of(Path(), model)}-neuron"
            place = int(best.layer), int(best.neuron)
            save(figures.neuron_figure(tunings[model], *place, fields[model]), gallery, name)
            pictures.append(f"![{model}, one neuron]({name}.png)")
    for path in gallery.glob("*.pdf"):
        path.unlink()
    shown = matters[matters.property.isin(["frequency", "modulation", "sweep", "tone", "onset"])]
    shown = shown[["model", "chosen", "property", "neurons", "share", "expected", "q"]]
    text = (HERE / "tuning_page.txt").read_text(encoding="utf-8")
    parts = {
        "PICTURES": "\n\n".join(pictures) + "\n",
        "SHARES": markdown(tuned_shares(tunings)),
        "MEASURES": markdown(by_measure(tunings)),
        "FIELDS": markdown(field_table(tunings, fields)),
        "MATTERS": markdown(shown),
    }
    for name, part in parts.items():
        text = text.replace(f"{name}\n", part)
    write_text(gallery / "README.md", text)
    times = pd.DataFrame([{"model": model, **known} for model, known in seconds.items()])
    page = PAGE.format(planted=markdown(planted_table()), seconds=markdown(times))
    write_text(HERE / "tuning.md", page)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("whisper")
    parser.add_argument("esc50", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "tuning")
    parser.add_argument("--gallery", type=Path, default=ROOT / "gallery" / "tuning")
    parser.add_argument(
        "--only", help="measure the models whose name contains this, and draw nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = sounds(options.esc50)
    tunings: dict[str, Tuning] = {}
    fields: dict[str, ReceptiveFields] = {}
    seconds: dict[str, dict[str, float]] = {}
    matters = []
    for model, load in loaders(options.whisper).items():
        if options.only and options.only not in model:
            continue
        folder = folder_of(options.work, model)
        encoder = load()
        tunings[model], fields[model], seconds[model] = measured(encoder, task, folder)
        if model in PAIRS:
            table = does_it_matter(encoder, task, tunings[model], folder)
            matters.append(table.assign(model=model))
        print(model, seconds[model], flush=True)
    if options.only:
        return
    write(options.gallery, tunings, fields, seconds, pd.concat(matters))


if __name__ == "__main__":
    main()
