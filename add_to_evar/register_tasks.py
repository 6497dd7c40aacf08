"""Make EVAR know gise51, vc1_gender and vc1_country: entries for its task table, added once and removable.

    python add_to_evar/register_tasks.py            # the clone that the environment variable EVAR points to
    python add_to_evar/register_tasks.py ~/evar
    python add_to_evar/register_tasks.py ~/evar --remove

EVAR keeps its tasks in a dict in evar/ds_tasks.py and has no other place for them. The entries go to the end of that
file between two marking lines; running this again changes nothing, and --remove gives the file back as it was.
Needs nothing but Python.
"""

import argparse
import ast
import os
import sys
from pathlib import Path

BEGIN = "# >>> tasks added by register_tasks.py"
END = "# <<< tasks added by register_tasks.py"
# folds (1: train, valid, test), clip length in s, folder under work/16k (None: the task's name), balanced sampling.
# The two tasks of VoxCeleb1 share the audio and the length of EVAR's vc1; 5.0 s for gise51 is this project's choice.
TASKS = {
    "gise51": [1, 5.0, None, False],
    "vc1_gender": [1, 8.2, "vc1", False],
    "vc1_country": [1, 8.2, "vc1", False],
}


def without_block(text: str) -> str:
    """The file without what this program added."""
    if BEGIN not in text:
        return text
    head, _, rest = text.partition(f"\n{BEGIN}\n")
    _, end, tail = rest.partition(f"{END}\n")
    if not end or BEGIN in head + tail:
        raise ValueError(
            f"expected one block from {BEGIN!r} to {END!r}; take it out by hand and run this again"
        )
    return head + tail


def with_block(text: str) -> str:
    """The file with TASKS at its end."""
    entries = "".join(f"    {name!r}: {entry!r},\n" for name, entry in TASKS.items())
    return f"{text}\n{BEGIN}\n_defs.update({{\n{entries}}})\n{END}\n"


def own_tasks(text: str) -> dict:
    """EVAR's own task table."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == [
            "_defs"
        ]:
            return ast.literal_eval(node.value)
    raise ValueError(
        "expected a task table `_defs = {...}`, found none: EVAR has changed, add the tasks by hand"
    )


def register(root: Path, remove: bool = False) -> str:
    """Add TASKS to (or remove them from) the clone's evar/ds_tasks.py; returns what was done."""
    path = Path(root).expanduser() / "evar" / "ds_tasks.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found. Give the folder of an EVAR clone, or set EVAR to it."
        )
    with path.open(encoding="utf-8", newline="") as file:  # keeps the file's own line ends
        before = file.read()
    original = without_block(before)
    known = own_tasks(original)
    for name, entry in TASKS.items():
        if not remove and name in known and known[name] != entry:
            raise ValueError(
                f"{path} has a task {name!r} of its own, {known[name]}, other than {entry}. Rename one."
            )
    after = original if remove else with_block(original)
    if after == before:
        return f"{path}: nothing to do"
    ast.parse(after)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(after)
    os.replace(partial, path)
    return f"{path}: {'removed' if remove else 'added'} {', '.join(TASKS)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "clone",
        nargs="?",
        default=os.environ.get("EVAR"),
        help="default: environment variable EVAR",
    )
    parser.add_argument("--remove", action="store_true", help="give the file back as it was")
    options = parser.parse_args(arguments)
    if not options.clone:
        parser.error("give the folder of an EVAR clone, or set the environment variable EVAR to it")
    try:
        print(register(Path(options.clone), options.remove))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
