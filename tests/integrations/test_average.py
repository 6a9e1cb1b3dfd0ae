# SPDX-License-Identifier: Apache-2.0
"""An average of the weights: its definition, sealed and resumed; and the deviation of noise that optimizers ask for."""

import numpy as np
import pytest
import torch
from small import SmallRun, small_plan
from torch import nn
from torch.utils.data import TensorDataset

from privguard import WeightAverage
from privguard.accounting.bands import coefficients


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def test_the_average_is_its_definition_and_gives_the_last_weights_back(small):
    average, seen = WeightAverage(small.model, small.optimizer, decay=0.75), [weights(small.model)]
    private = small.start(small_plan())
    for x, _ in private.batches():
        private.backward(private.model(x).square().sum(1))
        if private.step():
            seen.append(weights(small.model))
    wanted = seen[0].double()
    for each in seen[1:]:
        wanted = 0.75 * wanted + 0.25 * each.double()
    with average.swapped():
        assert torch.allclose(weights(small.model).double(), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(weights(small.model), seen[-1])
    assert not torch.allclose(wanted.float(), seen[-1], atol=1e-3)


def test_the_average_is_sealed_with_the_run_and_goes_on(small):
    average = WeightAverage(small.model, small.optimizer, decay=0.9)
    private = small.start(small_plan(), also={"average": average})
    SmallRun.go(private, steps=3)
    kept = {name: value.clone() for name, value in average.state_dict().items()}
    small.renew()
    again = WeightAverage(small.model, small.optimizer, decay=0.9)
    assert any((again.state_dict()[name] != value).any() for name, value in kept.items())
    small.start(small_plan(), resume=True, also={"average": again})
    assert all(torch.equal(again.state_dict()[name], value) for name, value in kept.items())


def test_what_is_no_decay_and_no_average_of_this_model_is_refused():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for decay in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="decay="):
            WeightAverage(model, optimizer, decay=decay)
    with pytest.raises(ValueError, match="average="):
        WeightAverage(model, optimizer, decay=0.5).load_state_dict({"weight": torch.zeros(2, 1)})


@pytest.mark.parametrize("bands", [1, 4])
def test_the_deviation_that_is_told_is_that_of_the_next_gradient(small, bands):
    """Zero gradients, 60,000 coordinates: relative error below 5.2 standard errors, at seeds that are fixed."""
    small.model = nn.Sequential(nn.Linear(3, 300), nn.Linear(300, 200))
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    plan = small_plan(strategy=coefficients(bands, steps=12, momentum=0.9), sample_rate=0.4, steps=12)
    small.data = TensorDataset(small.data.tensors[0][:, :3], small.data.tensors[1])
    private, told = small.start(plan, insecure_seed=3), []
    for x, _ in private.batches():
        told.append(private.noise_std)
        private.backward(private.model(x).sum(1) * 0)
        if private.step():
            noise = torch.cat([p.grad.flatten() for p in small.model.parameters()]).double()
            assert abs(noise.std().item() / told[-1] - 1) < 5.2 / np.sqrt(2 * len(noise))
    assert (len(set(told)) > 1) == (bands > 1)
    assert np.isnan(private.noise_std)
