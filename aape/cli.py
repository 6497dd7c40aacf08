"""The command line: `aape`, `python -m aape`, or `python common.py` in a clone.

aape collect STUDY MODEL TASK          one model on one task of a study (or torchrun ... -m aape collect ...)
aape atlas STUDY                       pages that open from disk, to hear what the study's neurons listen to
aape doctor [STUDY]                    what is installed, found, missing, and the next step
aape download [NAME ...]               checkpoints and datasets that may be fetched freely; --help NAME tells of one
aape metadata TASK FOLDER OUT.csv      EVAR-format metadata of a dataset as it is distributed
aape table FOLDER -o OUT.csv           the same of a folder of your own, to look at and to edit
aape tune MODEL                        the tuning of a model's neurons to test sounds; no data is needed
aape dissect MODEL FOLDER              the neurons of a model, by name or folder, on a folder of sounds
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from aape.suggest import nearest

# Nothing but the standard library up here: `doctor` must run on a Python without any package.


def _collect(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """One model on one task of a study."""
    for name in ("study", "model", "task"):
        parser.add_argument(name)
    _add_pass(parser)
    options = parser.parse_args(words)
    from aape.collecting.passing import collect_study

    print(collect_study(**vars(options)))


def _add_pass(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or mps (default: CUDA if there, else the CPU)")
    parser.add_argument("--batch-size", type=int, help="clips at a time")


def _doctor(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """What is installed, found and missing for a study, and the next step."""
    parser.add_argument("study", nargs="?", help="name in studies/, or a YAML file (default: paper, in a clone)")
    options = parser.parse_args(words)
    from aape.doctor import doctor

    return doctor(options.study)


def _download(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Checkpoints and datasets that may be fetched freely; without a name, a list of them."""
    from aape.datasets import DATASETS
    from aape.datasets.base import find, listing

    parser.add_argument("names", nargs="*", metavar="name", help="what to fetch; with --help, its page")
    parser.add_argument("--folder", type=Path, default=Path("data"), help="where to (default: %(default)s)")
    names = [word for word in words if not word.startswith("-")]
    if names and {"-h", "--help"} & set(words):
        print("\n\n".join(find(name, DATASETS).page() for name in names))
    elif not (options := parser.parse_args(words)).names:
        print(listing(DATASETS))
    else:
        from aape.datasets.download import download

        for name, place in download(**vars(options)).items():
            print(f"{name}: {place}")


def _metadata(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """EVAR-format metadata of a dataset; status 1 where files are missing or invalid."""
    from aape.datasets import TASKS

    parser.add_argument("task", choices=TASKS)
    parser.add_argument("root", help="folder that the dataset was unpacked to")
    parser.add_argument("out_csv", help="metadata to write; the report goes beside it as .json")
    parser.add_argument("--evar", help="clone of EVAR (default: the environment variable EVAR)")
    parser.add_argument("--seed", type=int, default=0, help="of a split of ours, where no other exists")
    options = parser.parse_args(words)
    from aape.datasets.check import build_metadata, shown

    report = build_metadata(**vars(options))
    print(shown(report))
    return 1 if report["missing"] or report["invalid"] else 0


def _table(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """The clips of a folder of sounds as a CSV: file, label, split, group."""
    _add_folder(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="CSV to write")
    options = vars(parser.parse_args(words))
    from aape.files import write_text
    from aape.sounds.task import from_folder

    folder, output = options.pop("folder"), options.pop("output")
    if output.is_dir():
        parser.error(f"--output: expected a file, {output} is a folder")
    task = from_folder(folder, **options)
    write_text(output, task.csv())
    print(f"{task}\nwritten to {output}; in Python:")
    print(f"  from_metadata({str(output)!r}, {folder!r}, clip_seconds={task.clip_seconds:g}, name={task.name!r})")


def _dissect(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """The neurons of a model that are specific to the classes of a folder of sounds."""
    parser.add_argument("model", help="name on the Hugging Face Hub, or a folder that save_pretrained wrote")
    _add_folder(parser)
    parser.add_argument("--table", help="CSV of `aape table`, edited: labels, splits and groups are taken from it")
    parser.add_argument("-o", "--output", dest="out_dir", metavar="OUTPUT", help="default: outputs/<task>_<model>")
    parser.add_argument("--rate", type=float, default=0.01, help="share of neurons that are kept (default: 0.01)")
    parser.add_argument("--permutations", type=int, default=1000, help="of the labels (default: 1000)")
    parser.add_argument("--controls", type=int, default=99, help="random sets that are silenced (default: 99)")
    _add_pass(parser)
    options = vars(parser.parse_args(words))
    table, task, seconds = options.pop("table"), options.pop("folder"), options["clip_seconds"]
    if table and (seconds is None or options["pattern"]):
        parser.error("--table needs --seconds, the length that every clip is cut or padded to, and takes no --pattern")
    from aape.dissecting import dissect
    from aape.sounds.task import from_metadata

    if table:
        task = from_metadata(table, task, clip_seconds=seconds, name=Path(table).stem)
    dissect(task=task, **options)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="class folders, split/class folders, or what --pattern describes")
    parser.add_argument("--pattern", help="of the paths below the folder, e.g. '{label}_{group}_{take}.wav'")
    length = "length of every clip (default: the median)"
    parser.add_argument("--seconds", type=float, dest="clip_seconds", metavar="SECONDS", help=length)
    parser.add_argument("--seed", type=int, default=0, help="of a split of ours, where the folder has none")


def _atlas(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """The atlas of a study: pages that open from disk, to hear what its neurons listen to."""
    parser.add_argument("study", help="name in studies/, or a YAML file; what has been collected is shown")
    parser.add_argument("--models", nargs="+", help="of the study (default: all)")
    parser.add_argument("--tasks", nargs="+", help="of the study (default: all)")
    parser.add_argument("--strongest", type=int, default=20, help="neurons of each class with a page (default: 20)")
    parser.add_argument("--attribute", action="store_true", help="attribution too: a backward pass over training clips")
    parser.add_argument("-o", "--output", dest="out_dir", help="folder (default: outputs/<study>/atlas)")
    from aape.atlas import build_study

    print(f"open {build_study(**vars(parser.parse_args(words))).resolve().as_uri()}")


def _tune(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """What each neuron of a model responds to, from test sounds; no data is needed."""
    parser.add_argument("model", help="name on the Hugging Face Hub, or a folder that save_pretrained wrote")
    parser.add_argument("--seed", type=int, help="draw the weights at random: the untrained model of the same shape")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="default: outputs/tuning/<model>")
    _add_pass(parser)
    options = parser.parse_args(words)
    from aape.encoders.hub import from_hub
    from aape.tuning.tuning import tune

    encoder = from_hub(options.model, seed=options.seed)
    folder = options.output or f"outputs/tuning/{encoder.name}"
    print(tune(encoder, out_dir=folder, device=options.device, batch_size=options.batch_size))
    print(f"written to {folder}: neurons.csv has one row per neuron")


_ALL = (_atlas, _collect, _doctor, _download, _metadata, _table, _dissect, _tune)
COMMANDS: dict[str, Callable[[argparse.ArgumentParser, list[str]], int | None]] = {
    command.__name__[1:]: command for command in _ALL
}


def main(words: list[str] | None = None) -> int:
    """Command line: the first word names the command, the rest is its own.

    Returns:
        0 where all is well, 1 where something is missing, 2 where the command could not be done.
    """
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        print(f"aape: no command {name!r}; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog=f"aape {name}", description=COMMANDS[name].__doc__)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            status = COMMANDS[name](parser, rest)
        sys.stdout.flush()
    except BrokenPipeError:  # `aape ... | head` has read enough; nothing may be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as error:
        hint = "; `aape doctor` says what to install" if isinstance(error, ModuleNotFoundError) else ""
        print(f"aape {name}: {error}{hint}", file=sys.stderr)
        return 2
    return status or 0
