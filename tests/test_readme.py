"""The README: its worked example runs as it stands, its links lead somewhere."""

import re
import warnings
from pathlib import Path

import pytest
from conftest import REPOSITORY, tiny_whisper, write_clips


def test_your_model_your_sounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    text = (REPOSITORY / "README.md").read_text()
    block = re.search(
        r"<!-- tested: tests/test_readme.py runs this block -->\n```python\n(.*?)```", text, re.S
    )
    assert block is not None
    code = block.group(1)
    assert len(code.splitlines()) < 20
    tiny_whisper(tmp_path / "whisper")
    write_clips(tmp_path, 30, rate=16000)
    for number, clip in enumerate(sorted((tmp_path / "audio").glob("*.wav"))):
        (tmp_path / "my_sounds" / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        clip.rename(tmp_path / "my_sounds" / f"class{number % 3}" / clip.name)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(
            compile(
                code.replace("openai/whisper-tiny", str(tmp_path / "whisper")), "README", "exec"
            ),
            {},
        )
    assert (tmp_path / "outputs/mine/manifest.json").is_file()
    assert re.search(r"class[012]", capsys.readouterr().out)


PAGES = (
    "README.md",
    "Install.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "gallery/miniature/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    path = REPOSITORY / page
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text())
    lost = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not lost
