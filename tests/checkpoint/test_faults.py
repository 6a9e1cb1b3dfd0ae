# SPDX-License-Identifier: Apache-2.0
"""Every system call of every command fails once, and whole capabilities are absent: old or new content, one clear
error, nothing in clear."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return library


def test_no_fault_of_any_call_loses_or_shows_anything(shim):
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.faulted"],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],
        env=os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE.parents[1])},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["cells"] > 300
