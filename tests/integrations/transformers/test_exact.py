"""One private step without noise and clipping is one step of ``Trainer``, for every head and model."""

import pytest
import torch
from drive import both, distance
from zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_one_step_is_trainers_with_a_mean_over_examples(name, tmp_path):
    make, data = ZOO[name]
    torch.manual_seed(0)
    ours, theirs = both(make(), data(), tmp_path)
    assert all(value.isfinite().all() for value in theirs.values())
    assert distance(ours, theirs) < 1e-5
