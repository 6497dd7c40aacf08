"""Loading the models and tasks that a study names: finding their functions, resolving paths, calling them."""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aape.study.short_forms import with_variables

if TYPE_CHECKING:
    from aape.encoders.encoder import Encoder
    from aape.sounds.task import Task
    from aape.study.study import Loader, Study

_PATHS = ("_path", "_dir", "folder")  # options whose names end like this are paths


def load_encoder(study: Study, model: str) -> Encoder:
    """Load one of the study's encoders, by a name of `study.encoders`.

    Raises:
        ValueError: the study has no such model, its loader cannot be called, or the loader returned no Encoder.
    """
    from aape.encoders.encoder import Encoder

    return _loaded(study, model, study.encoder(model), Encoder)


def load_task(study: Study, task: str) -> Task:
    """Load one of the study's tasks.

    Raises:
        ValueError: the study has no such task, its loader cannot be called, or the loader returned no Task.
    """
    from aape.sounds.regrouping import drawn, octaves, regrouped
    from aape.sounds.task import Task

    spec = study.task(task)
    loaded = _loaded(study, task, spec, Task)
    if spec.draw is not None:
        loaded = drawn(loaded, seed=study.seed, **spec.draw)
    if spec.unite is not None:
        classes = octaves(loaded.classes) if spec.unite == "octave" else spec.unite
        loaded = regrouped(loaded, classes, task)
    return loaded


def prepare(study: Study, name: str, spec: Loader) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function that an entry of the study names, and its keyword arguments with paths resolved.

    Raises:
        ValueError: there is no such module or function, another module of that name was imported before, the function
            does not take an option, or a path needs a variable that is not set.
    """
    function = _function(study, spec.loader)
    options = {key: resolve(key, value, study.base) for key, value in spec.options.items()}
    signature = inspect.signature(function)
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise ValueError(f"{name}: {spec.loader} has {error}; it takes {takes}") from None
    return function, options


def resolve(key: str, value: Any, base: Path) -> Any:
    """An option's value. Paths (keys that end in `_path`, `_dir` or `folder`) are expanded and made relative to `base`.

    "random" stays as it is, and so does a `name_or_folder` that is not a folder.

    Raises:
        ValueError: an environment variable is not set, or a number has a decimal comma, which YAML reads as text.
    """
    if isinstance(value, str) and re.fullmatch(r"-?\d+,\d+", value):
        raise ValueError(
            f"{key}: expected a number with a decimal point, found {value!r}; write {value.replace(',', '.')}"
        )
    if not isinstance(value, str) or value == "random" or not key.endswith(_PATHS):
        return value
    expanded = os.path.expanduser(with_variables(value))
    if "$" in expanded:
        raise ValueError(
            f"{key}: {value!r} needs an environment variable that is not set; set it or write the path"
        )
    path = base / expanded  # an absolute path stays absolute
    if key == "name_or_folder" and not path.is_dir():
        return expanded
    return path


def _loaded(study: Study, name: str, spec: Loader, expected: type) -> Any:
    function, options = prepare(study, name, spec)
    loaded = function(**options)
    if not isinstance(loaded, expected):
        raise ValueError(
            f"{spec.loader} returned a {type(loaded).__name__}, expected {expected.__name__}"
        )
    return loaded


def _function(study: Study, loader: str) -> Callable[..., Any]:
    """The function called `package.module:function`, which can also be in a module next to the study file."""
    folder = str(study.base)
    if folder not in sys.path:  # it stays there: the module may import its neighbours later
        sys.path.append(folder)
    try:
        function = pkgutil.resolve_name(loader)
        inspect.signature(function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"loader {loader!r}: expected package.module:function ({error})"
        ) from error
    top = re.split(r"[.:]", loader)[0]
    expected = study.base / f"{top}.py"
    imported = getattr(sys.modules.get(top), "__file__", None)
    if expected.is_file() and imported and Path(imported).resolve() != expected.resolve():
        raise ValueError(
            f"loader {loader!r}: expected {expected}, but a module {top!r} was imported from {imported}. Give yours "
            "another name."
        )
    return function
