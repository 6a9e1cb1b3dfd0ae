# SPDX-License-Identifier: Apache-2.0
"""The fixture around ``small.py``."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small import SmallRun


@pytest.fixture
def small(tmp_path):
    return SmallRun(tmp_path / "run")
