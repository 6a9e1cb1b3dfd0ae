"""The recipes of the wrappers, tiny, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=True
    ).stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text_classifier", "test accuracy"),
        ("language_model", "held-out loss"),
        ("accelerate_loop", "ε="),
        ("from_opacus", "gone on"),
    ],
)
def test_a_recipe_ends_with_its_claim(name, said, tmp_path):
    out = start(sys.executable, "-W", "ignore", f"recipes/{name}.py", "--tiny", "--run", str(tmp_path / "run" / "a"))
    assert said in out
    assert "ε=" in out
