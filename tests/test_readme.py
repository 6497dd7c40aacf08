"""The README's worked example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, write_clips


def test_your_model_your_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    text = (REPOSITORY / "README.md").read_text()
    block = re.search(r"<!-- tested: tests/test_readme.py runs this block -->\n```python\n(.*?)```", text, re.S)
    assert block is not None
    code = [line for line in block.group(1).splitlines() if line.strip()]
    assert len(code) < 20
    csv = write_clips(tmp_path, 15, rate=16000)
    csv.rename(tmp_path / "my_clips.csv")
    (tmp_path / "audio").rename(tmp_path / "my_sounds")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(code), "README", "exec"), {})
    assert (tmp_path / "outputs/mine/mine_analysis/manifest.json").is_file()
    assert re.search(r"class[012]", capsys.readouterr().out)


@pytest.mark.parametrize("page", ["README.md", "Install.md", "benchmarks/README.md", "gallery/miniature/README.md"])
def test_links_lead_somewhere(page: str):
    path = REPOSITORY / page
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text())
    lost = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not lost
