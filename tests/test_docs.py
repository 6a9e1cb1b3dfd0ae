"""The README does what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks(ROOT / "README.md"))
def test_the_readme_example_runs_and_says_its_claim(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})  # the project's own page
    promised = re.search(r"# (ε=\S+ at δ=\S+ \(.*\))", block).group(1)
    assert promised in capsys.readouterr().out


def test_the_readme_names_the_commands_that_ci_runs():
    said = (ROOT / "README.md").read_text()
    assert all(f"make {target}" in said for target in ("demo", "test", "check", "bench"))
    assert "make check" in (ROOT / ".ci" / "run").read_text()
