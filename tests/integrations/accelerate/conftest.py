# SPDX-License-Identifier: Apache-2.0
"""Puts the loop beside the tests, and clears accelerate's shared state between them."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _fresh_state():
    torch.set_num_threads(1)
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
