# SPDX-License-Identifier: Apache-2.0
"""The notebooks are their recipes, and run from top to bottom with smaller arguments."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from make_notebooks import HERE, STORIES, notebook, text

SMALLER = {
    "plain_loop": "run, epochs, quiet = Path('digits'), 2, True",
    "audit_in_one_run": "run, canaries, epochs, epsilon = Path('audited'), 100, 4, 8.0",
    "mark_a_model": "tiny = True",
}


@pytest.mark.parametrize("recipe", STORIES)
def test_a_notebook_is_what_its_recipe_makes(recipe):
    kept = (HERE / f"{recipe}.ipynb").read_text(encoding="utf-8")
    assert kept == text(notebook(recipe)), "make it again: python recipes/make_notebooks.py"


@pytest.mark.parametrize("recipe", STORIES)
def test_a_notebook_runs_from_top_to_bottom(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    names = {"__name__": "__main__"}
    for cell in json.loads((HERE / f"{recipe}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tagged = "parameters" in cell["metadata"].get("tags", [])
            exec(SMALLER[recipe] if tagged else "".join(cell["source"]), names)  # the project's own
    assert capsys.readouterr().out
