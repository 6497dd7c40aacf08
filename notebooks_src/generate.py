"""Write the committed notebooks from their sources in this folder: python -m notebooks_src.generate

A source is a script in jupytext's percent format. `Collect.py` is also the template of the paper's twenty collecting
notebooks, which differ from it in the names of model and task alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat

from aape.files import write_text

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parent
OTHERS = (
    "Collect",
    "Analyze_ClassSpecificNeurons",
    "Ablations",
    "Explore_Neurons",
    "Dissect_Your_Own",
    "Tuning",
)
MODELS = {"ssl": "M2D", "sl": "ViT"}  # model of a study -> how the paper's notebooks call it
MODEL_TITLES = {"ssl": "the self-supervised ViT (M2D)", "sl": "the supervised ViT"}
TASKS = {
    "esc50": "ESC50",
    "gise51": "GISE51",
    "voxforge": "VoxForge",
    "vc1_gender": "VC1_gender",
    "vc1_country": "VC1_country",
    "cremad": "CREMAD",
    "cremad_gender": "CREMAD_gender",
    "gtzan": "GTZAN",
    "nspitch": "NSPitch",
    "surge": "Surge",
}
TASK_TITLES = {
    "esc50": "ESC-50",
    "gise51": "GISE-51",
    "voxforge": "VoxForge (language)",
    "vc1_gender": "VoxCeleb1 (gender)",
    "vc1_country": "VoxCeleb1 (nationality)",
    "cremad": "CREMA-D (emotion)",
    "cremad_gender": "CREMA-D (gender)",
    "gtzan": "GTZAN (genre)",
    "nspitch": "NSynth (pitch)",
    "surge": "Surge (pitch)",
}


def collecting_notebook(model: str, task: str) -> str:
    """File name of the notebook that collects a model on a task: the paper's where it has one, else the general one."""
    known = model in MODELS and task in TASKS
    return f"{MODELS[model]}_{TASKS[task]}.ipynb" if known else "Collect.ipynb"


def notebook(script: str) -> str:
    """A percent script as the text of a notebook without outputs."""
    built = jupytext.reads(script, fmt="py:percent")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    built.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    built.nbformat, built.nbformat_minor = 4, 5
    for number, cell in enumerate(built.cells):
        cell.id = f"cell-{number}"
    nbformat.validate(built)
    return nbformat.writes(built) + "\n"


def all_notebooks() -> dict[str, str]:
    """File name -> content, for every committed notebook."""
    scripts = {name: (SOURCES / f"{name}.py").read_text() for name in OTHERS}
    built = {f"{name}.ipynb": notebook(script) for name, script in scripts.items()}
    for model in MODELS:
        for task in TASKS:
            title = f"{MODEL_TITLES[model]} on {TASK_TITLES[task]}"
            script = scripts["Collect"].replace("any model on any task", title)
            script = script.replace('= "ssl"', f'= "{model}"').replace('= "esc50"', f'= "{task}"')
            built[collecting_notebook(model, task)] = notebook(script)
    return built


def main() -> int:
    """Write every notebook whose content differs."""
    for name, content in all_notebooks().items():
        path = ROOT / name
        if not path.is_file() or path.read_text() != content:
            write_text(path, content)
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
