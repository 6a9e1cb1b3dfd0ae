# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes" / "seal_a_checkpoint.py"


def test_the_recipe_runs_and_tells_what_it_promises(tmp_path):
    command = [sys.executable, str(RECIPE), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(RECIPE.parents[1])}
    )
    assert done.returncode == 0, done.stderr
    for words in ("resumed at step 3", "no weights", "nothing was released", "lines in the journal hold"):
        assert words in done.stdout
    assert (tmp_path / "team.key").stat().st_mode & 0o777 == 0o600
