# SPDX-License-Identifier: Apache-2.0
"""Puts the zoo beside the tests, and keeps transformers quiet."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()


@pytest.fixture
def fine_grid(monkeypatch):
    """Rounds sums 1,000 times finer than a run does, for comparisons with sums that nobody has rounded."""
    monkeypatch.setattr("privguard.training.noise.grid._SHARE", 1e-7)
