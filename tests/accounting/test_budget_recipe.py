# SPDX-License-Identifier: Apache-2.0
"""The recipe for a team: the third run would pass the limit, and is stopped before it starts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_third_run_is_refused(tmp_path):
    command = [sys.executable, ROOT / "recipes" / "team_budget.py", "--tiny", "--out", tmp_path / "team"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert [float(found) for found in re.findall(r"spent ε=([\d.]+) of 3", said)] == pytest.approx(
        [1.8, 2.484], rel=5e-3
    )
    assert "chris: refused. data set=digits" in said
    assert not (tmp_path / "team" / "chris").exists()
