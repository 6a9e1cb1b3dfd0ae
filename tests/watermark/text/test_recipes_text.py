# SPDX-License-Identifier: Apache-2.0
"""The recipes run as they stand, and detection over a data set in two processes gives what one process gives."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[3] / "recipes"


def run(recipe, *arguments, folder):
    command = [sys.executable, str(RECIPES / recipe), "--tiny", *arguments]
    environment = {
        "PYTHONPATH": str(RECIPES.parent),
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=folder, env=environment, timeout=600
    ).stdout


def test_writing_and_reading_leaves_a_report(tmp_path):
    output = run("mark_text.py", "--tokens", "120", "--out", "page.html", folder=tmp_path)
    assert "The mark was found" in output
    assert "The mark was found" in (tmp_path / "page.html").read_text()


def test_detection_over_a_dataset_in_two_processes(tmp_path):
    pytest.importorskip("datasets")
    assert "20 of 40 documents carry the mark" in run("detect_over_a_dataset.py", folder=tmp_path)
