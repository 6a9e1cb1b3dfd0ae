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
