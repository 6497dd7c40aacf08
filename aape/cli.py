"""The command line: `aape`, `python -m aape`, or `python common.py` in a clone.

aape collect STUDY MODEL TASK          one model on one task of a study (or torchrun ... -m aape collect ...)
aape atlas STUDY                       web pages with audio: what the study's neurons respond to
aape doctor [STUDY]                    what is installed, found and missing, and the next step
aape download [NAME ...]               checkpoints and datasets that can be downloaded freely; --help NAME describes one
aape metadata TASK FOLDER OUT.csv      EVAR-format metadata of a dataset as it is distributed
aape table FOLDER -o OUT.csv           the same for a folder of your own, to look at and to edit
aape tune MODEL                        the tuning of a model's neurons to test sounds; no data is needed
aape dissect MODEL FOLDER              the class-specific neurons of a model, by name or folder, on a folder of sounds
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aape.suggest import nearest

# Only the standard library is imported here, so that `doctor` also runs where packages are missing.

Parser = argparse.ArgumentParser
INTERRUPTED = "What was computed is kept; run the same command again to resume."


def main(words: list[str] | None = None) -> int:
    """Command line: the first word names the command, the rest are its arguments.

    Returns:
        0: done; 1: something is missing; 2: the command could not be carried out; 130: interrupted.
    """
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        print(f"aape: no command {name!r}; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    parser = Parser(prog=f"aape {name}", description=command.__doc__)
    return guarded(f"aape {name}", lambda: command(parser, rest))


def guarded(program: str, run: Callable[[], int | None]) -> int:
    """Run a command. Errors that its user can mend are reported in two lines: what is wrong, and what to do.

    Ctrl-C and SIGTERM end it cleanly, so that locks are released. $AAPE_TRACEBACK shows the whole traceback.

    Returns:
        The status for the shell, see `main`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(
                f"warning: {message}", file=sys.stderr
            )
            status = run()
        sys.stdout.flush()
        return status or 0
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # the reader has ended, as `head` does; Python must not write when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, MemoryError) as error:
        if os.environ.get("AAPE_TRACEBACK"):
            traceback.print_exc()
        print(f"{program}: {str(error) or type(error).__name__}\n{_advice(error)}", file=sys.stderr)
        return 2


def _advice(error: Exception) -> str:
    """What to do about an error."""
    if isinstance(error, ImportError):
        return "`aape doctor` says what to install."
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "Run the same command again with a smaller --batch-size. What was computed is kept."
    return "Correct this and run the same command again; AAPE_TRACEBACK=1 shows where it happened."


def _collect(parser: Parser, words: list[str]) -> None:
    """Collect one model on one task of a study."""
    for name in ("study", "model", "task"):
        parser.add_argument(name)
    _add_pass(parser)
    options = parser.parse_args(words)
    from aape.study.collecting import collect_study

    print(collect_study(**vars(options)))


def _doctor(parser: Parser, words: list[str]) -> int:
    """What is installed, found and missing for a study, and the next step."""
    parser.add_argument(
        "study", nargs="?", help="name in studies/, or a YAML file (default: paper, in a clone)"
    )
    options = parser.parse_args(words)
    from aape.doctor import doctor

    return doctor(options.study)


def _download(parser: Parser, words: list[str]) -> None:
    """Download checkpoints and datasets that are free; without a name, list them."""
    from aape.datasets import DATASETS
    from aape.datasets.base import find, listing

    parser.add_argument(
        "names", nargs="*", metavar="name", help="what to download; with --help, its page"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("data"), help="where to put it (default: %(default)s)"
    )
    names = [word for word in words if not word.startswith("-")]
    if names and ("-h" in words or "--help" in words):
        print("\n\n".join(find(name, DATASETS).page() for name in names))
        return
    options = parser.parse_args(words)
    if not options.names:
        print(listing(DATASETS))
        return
    from aape.datasets.download import download

    for name, place in download(**vars(options)).items():
        print(f"{name}: {place}")


def _metadata(parser: Parser, words: list[str]) -> int:
    """Write EVAR-format metadata of a dataset; status 1 where files are missing or invalid."""
    from aape.datasets import TASKS

    parser.add_argument("task", choices=TASKS)
    parser.add_argument("root", help="folder that the dataset was unpacked to")
    parser.add_argument("out_csv", help="metadata to write; the report goes next to it as .json")
    parser.add_argument("--evar", help="clone of EVAR (default: the environment variable EVAR)")
    parser.add_argument("--seed", type=int, default=0, help="of our split, where no other exists")
    options = parser.parse_args(words)
    from aape.datasets.check import build_metadata, shown

    report = build_metadata(**vars(options))
    print(shown(report))
    return 1 if report["missing"] or report["invalid"] else 0


def _table(parser: Parser, words: list[str]) -> None:
    """Write the clips of a folder of sounds as a CSV: file, label, split, group."""
    _add_folder(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="CSV to write")
    options = vars(parser.parse_args(words))
    from aape.files import write_text
    from aape.sounds.loading import from_folder

    folder, output = options.pop("folder"), options.pop("output")
    if output.is_dir():
        parser.error(f"--output: expected a file, {output} is a folder")
    task = from_folder(folder, **options)
    write_text(output, task.csv())
    print(f"{task}\nwritten to {output}; in Python:")
    print(
        f"  from_metadata({str(output)!r}, {folder!r}, clip_seconds={task.clip_seconds:g}, name={task.name!r})"
    )


def _dissect(parser: Parser, words: list[str]) -> None:
    """Find the neurons of a model that are specific to the classes of a folder of sounds."""
    parser.add_argument(
        "model", help="name on the Hugging Face Hub, or a folder that save_pretrained wrote"
    )
    _add_folder(parser)
    parser.add_argument(
        "--table", help="CSV of `aape table`, edited: labels, splits and groups are taken from it"
    )
    parser.add_argument("-o", "--out", "--output", dest="out_dir", metavar="FOLDER", help=_OUT)
    parser.add_argument(
        "--name",
        help="of this labelling of the sounds, and of its folder (default: from the pattern)",
    )
    parser.add_argument(
        "--rate", type=_share, default=0.01, help="share of neurons that are kept (default: 0.01)"
    )
    parser.add_argument("--criterion", default="aape", help=_CRITERION)
    parser.add_argument(
        "--permutations", type=_count(20), default=1000, help="of the labels (default: 1000)"
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="CLASS",
        help="whose neurons are silenced (default: two classes)",
    )
    parser.add_argument(
        "--controls", type=_count(0), default=99, help="random sets to compare with (default: 99)"
    )
    _add_pass(parser)
    options = vars(parser.parse_args(words))
    table = options.pop("table")
    folder = options.pop("folder")
    seconds = options["clip_seconds"]
    if table and (seconds is None or options["pattern"]):
        parser.error(
            "--table needs --seconds, the length that every clip is cut or padded to, and takes no --pattern"
        )
    from aape.dissecting import dissect
    from aape.sounds.loading import from_metadata

    task: Any = folder
    if table:
        task = from_metadata(table, folder, clip_seconds=seconds, name=Path(table).stem)
    dissect(task=task, **options)


_OUT = (
    "default: outputs/<sounds>_<model>; every labelling of the sounds has a folder of its own in it"
)
_CRITERION = "what neurons are ranked by: aape (default), attribution, or another of aape.criteria"


def _atlas(parser: Parser, words: list[str]) -> None:
    """Build the atlas of a study: web pages with audio that open from disk."""
    parser.add_argument(
        "study", help="name in studies/, or a YAML file; what has been collected is shown"
    )
    parser.add_argument("--models", nargs="+", help="of the study (default: all)")
    parser.add_argument("--tasks", nargs="+", help="of the study (default: all)")
    parser.add_argument(
        "--strongest",
        type=_count(1),
        default=20,
        help="neurons of each class with a page (default: 20)",
    )
    parser.add_argument(
        "--attribute",
        action="store_true",
        help="also attribution: a backward pass over training clips",
    )
    parser.add_argument(
        "-o", "--output", dest="out_dir", help="folder (default: outputs/<study>/atlas)"
    )
    options = parser.parse_args(words)
    from aape.atlas import build_study

    print(f"open {build_study(**vars(options)).resolve().as_uri()}")


def _tune(parser: Parser, words: list[str]) -> None:
    """What each neuron of a model responds to, from test sounds; no data is needed."""
    parser.add_argument(
        "model", help="name on the Hugging Face Hub, or a folder that save_pretrained wrote"
    )
    parser.add_argument(
        "--seed", type=int, help="draw the weights at random: the untrained model of the same shape"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="default: outputs/tuning/<model>")
    _add_pass(parser)
    options = parser.parse_args(words)
    from aape.encoders.hub import from_hub
    from aape.tuning.tuning import tune

    encoder = from_hub(options.model, seed=options.seed)
    folder = options.output or f"outputs/tuning/{encoder.name}"
    print(tune(encoder, out_dir=folder, device=options.device, batch_size=options.batch_size))
    print(f"written to {folder}: neurons.csv has one row per neuron")


def _add_pass(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        type=_device,
        help="cpu, cuda, cuda:1 or mps (default: CUDA if available, else CPU)",
    )
    parser.add_argument("--batch-size", type=_count(1), help="clips at a time")


def _add_folder(parser: Parser) -> None:
    parser.add_argument(
        "folder", help="class folders, split/class folders, or what --pattern describes"
    )
    parser.add_argument(
        "--pattern", help="of the paths below the folder, e.g. '{label}_{group}_{take}.wav'"
    )
    length = "length of every clip (default: the median)"
    parser.add_argument(
        "--seconds", type=_seconds, dest="clip_seconds", metavar="SECONDS", help=length
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of our split, where the folder has none"
    )


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda, cuda:1 or mps, found {text!r}")
    return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        point = f"; write {text.replace(',', '.')}" if re.fullmatch(r"\d+,\d+", text) else ""
        raise argparse.ArgumentTypeError(
            f"expected a number such as 2.5, found {text!r}{point}"
        ) from None


def _share(text: str) -> float:
    share = _number(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a share above 0 and up to 1, such as 0.01, found {text}"
        )
    return share


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds above 0 and up to 3600, found {text}")
    return seconds


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, found {text!r}"
            )
        return int(text)

    return parse


COMMANDS: dict[str, Callable[[Parser, list[str]], int | None]] = {
    "atlas": _atlas,
    "collect": _collect,
    "doctor": _doctor,
    "download": _download,
    "metadata": _metadata,
    "table": _table,
    "dissect": _dissect,
    "tune": _tune,
}
