"""Front door of the collecting notebooks: load a study, a model and a task, run the pass, save the artifacts.

From a shell, `python common.py` is the command line `aape`, also where nothing is installed.
"""

# ruff: noqa: F401, the names are here for others
from __future__ import annotations

import sys

from aape.cli import main

if __name__ == "__main__":
    sys.exit(main())
else:
    from aape import (
        Artifacts,
        collect,
        collect_study,
        from_metadata,
        from_module,
        load_artifacts,
        load_encoder,
        load_study,
        load_task,
    )
    from aape.figures import activity as figures
