"""Write the committed notebooks from their source: python -m notebooks_src.generate"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebooks_src import ablations, analyze, collecting
from notebooks_src.collecting import Cell

ROOT = Path(__file__).resolve().parent.parent


def notebook(cells: list[Cell]) -> str:
    """Cells as the text of a notebook without outputs; the first code cell is tagged `parameters` (papermill)."""
    built = []
    for number, (kind, source) in enumerate(cells):
        make = new_code_cell if kind == "code" else new_markdown_cell
        cell = make(source)
        cell["id"] = f"cell-{number}"
        if kind == "code" and not any(c["cell_type"] == "code" for c in built):
            cell["metadata"]["tags"] = ["parameters"]
        built.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = new_notebook(cells=built, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.validate(whole)
    return nbformat.writes(whole) + "\n"


def all_notebooks() -> dict[str, str]:
    """File name -> content, for every committed notebook."""
    built = {
        f"{model}_{dataset.notebook}.ipynb": notebook(collecting.cells(model, dataset))
        for model in collecting.MODELS
        for dataset in collecting.DATASETS
    }
    built["Analyze_ClassSpecificNeurons.ipynb"] = notebook(analyze.cells())
    built["Ablations.ipynb"] = notebook(ablations.cells())
    return built


def main() -> int:
    """Write every notebook whose content differs."""
    for name, content in all_notebooks().items():
        path = ROOT / name
        if not path.is_file() or path.read_text() != content:
            path.write_text(content)
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
