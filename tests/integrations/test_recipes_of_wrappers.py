# SPDX-License-Identifier: Apache-2.0
"""The recipes of the wrappers, tiny, as a user starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import WAIT, free_port

ROOT = Path(__file__).parents[2]


def start(*command, **more):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT, check=True
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


def test_a_run_goes_on_after_a_clean_stop_and_after_a_crash(tmp_path):
    out = start(sys.executable, "-W", "ignore", "recipes/resume.py", "--tiny", "--run", str(tmp_path / "run" / "a"))
    first, last = (tuple(map(int, said)) for said in re.findall(r"(\d+) steps here, (\d+) of 36 spent", out))
    assert first == (12, 12)
    assert last[1] == 36
    assert last[0] <= 36 - 12 - 9  # the nine steps of the process that died are spent


def test_two_processes_print_one_claim(tmp_path):
    out = start("sh", "recipes/two_processes.sh", str(tmp_path / "two"), "--tiny", PORT=str(free_port()))
    assert out.count("ε=") == 1
