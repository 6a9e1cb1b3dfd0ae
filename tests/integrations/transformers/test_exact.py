# SPDX-License-Identifier: Apache-2.0
"""One private step without noise and clipping is one step of ``Trainer``, for every head and model."""

import contextlib

import pytest
import torch
from drive import both, distance
from zoo import ZOO

pytestmark = pytest.mark.usefixtures("fine_grid")

ONE_BY_ONE = {"deberta-sequence"}  # relative positions are a table that all examples share


@pytest.mark.parametrize("name", ZOO)
def test_one_step_is_trainers_with_a_mean_over_examples(name, tmp_path):
    make, data = ZOO[name]
    torch.manual_seed(0)
    announced = pytest.warns(UserWarning, match="one backward pass for each example, which is exact and slow")
    with announced if name in ONE_BY_ONE else contextlib.nullcontext():
        ours, theirs = both(make(), data(), tmp_path)
    assert all(value.isfinite().all() for value in theirs.values())
    assert distance(ours, theirs) < 1e-5
