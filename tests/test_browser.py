"""JupyterLab in a real browser: all cells of two notebooks, what they show, and all of them once more."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
NOTEBOOKS = {
    "M2D_ESC50": (1, 1),
    "Analyze_ClassSpecificNeurons": (5, 4),
}  # least pictures and tables


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a JupyterLab on copies of the notebooks, with one task and one model of the miniature."""
    folder = tmp_path_factory.mktemp("lab")
    study = yaml.safe_load((REPOSITORY / "studies" / "miniature.yaml").read_text())
    study |= {
        "models": {"ssl": study["models"]["ssl"]},
        "tasks": {"esc50": study["tasks"]["esc50"]},
        "sharing": [],
    }
    study |= {"chance": {"permutations": 20}, "ablation": {}}
    (folder / "small.yaml").write_text(yaml.safe_dump(study))
    for name in NOTEBOOKS:
        text = (REPOSITORY / f"{name}.ipynb").read_text()
        assert 'study = \\"miniature\\"' in text
        (folder / f"{name}.ipynb").write_text(text.replace('\\"miniature\\"', '\\"small.yaml\\"'))
    for name, content in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "AAPE_OUTPUT": str(folder / "outputs"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    environment.pop("MPLBACKEND", None)
    options = ("--no-browser", "--allow-root", "--ServerApp.port=0", "--ip=127.0.0.1")
    command = [sys.executable, "-m", "jupyter", "lab", *options]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(300):
                found = list((folder / "runtime").glob("jpserver-*.json"))
                if found or server.poll() is not None:
                    break
                time.sleep(0.2)
            assert found, (folder / "log.txt").read_text()
            time.sleep(0.5)  # the note is written in place
            note = json.loads(found[0].read_text())
            # A workspace each: another page's notebook, restored beside this one, would be taken for it.
            yield f"{note['url']}lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={note['token']}"
        finally:
            server.terminate()
            server.wait(30)


def run_all(page: Any, expected: int) -> None:
    """Run all cells and wait until the last of them has the number `expected` and the kernel is idle."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(
        """expected => {
            const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
            if (document.querySelector("[data-mime-type='application/vnd.jupyter.error']")) return true;
            return cells.at(-1).querySelector('.jp-InputPrompt').textContent.includes(`[${expected}]`);
        }""",
        arg=expected,
        timeout=300_000,
    )
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.first.inner_text()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_all_cells_run_in_jupyterlab_twice_and_show_tables_and_pictures(
    browser: Any, lab: str, name: str
):
    least_pictures, least_tables = NOTEBOOKS[name]
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(lab.format(name))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.get_by_text(re.compile(r"ipykernel\) \| Idle")).wait_for(timeout=120_000)
    cells = (
        (REPOSITORY / f"{name}.ipynb").read_text().count('"cell_type": "code"')
    )  # the page fills only by and by
    for turn in (1, 2):
        run_all(page, turn * cells)
        images = page.evaluate(
            "[...document.querySelectorAll('.jp-RenderedImage img')].map(i => i.naturalWidth)"
        )
        assert len(images) >= least_pictures and min(images) > 100
        tables = page.evaluate(
            """[...document.querySelectorAll('.jp-RenderedHTMLCommon table')].map(t =>
                [t.rows.length, t.offsetWidth, t.closest('.jp-OutputArea-output').clientWidth])"""
        )
        assert len(tables) >= least_tables
        assert not [t for t in tables if t[0] < 2 or t[1] > t[2]]  # empty, or wider than the page
    page.close()
