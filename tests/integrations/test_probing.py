"""Before step 1: leaks between examples are refused, slow models are announced, and the report says what was probed."""

import pytest
import torch
from small import SmallRun, small_plan
from torch import nn
from torch.nn import functional

from privguard.errors import SensitivityError, UnsupportedModelError


def cross_entropy(private_model):
    return lambda batch: functional.cross_entropy(private_model(batch[0]), batch[1], reduction="none")


def test_model_and_loss_are_probed_where_the_loss_is_given(small):
    private = small.start(losses=cross_entropy(small.model))
    assert private._run.manifest.probe == "model and loss"


def test_the_model_alone_is_probed_otherwise(small):
    assert small.start()._run.manifest.probe == "the model, with a made-up loss"


def test_a_model_called_in_another_way_is_said_not_to_be_probed(small):
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x, scale):
            return self.linear(x) * scale

    small.model = TwoInputs()
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    assert small.start()._run.manifest.probe.startswith("nothing")


def test_a_loss_that_divides_by_the_batch_is_refused_before_step_1(small):
    def normalised(batch):
        losses = functional.cross_entropy(small.model(batch[0]), batch[1], reduction="none")
        return losses / losses.detach().sum()

    with pytest.raises(SensitivityError, match="exchanging example"):
        small.start(losses=normalised)
    assert not small.folder.exists()


def test_a_model_that_centres_on_the_batch_is_refused_before_step_1(small):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return self.linear(x - x.mean(0))

    small.model = Centred()
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    with pytest.raises(SensitivityError, match="exchanging example"):
        small.start()


def test_batch_normalisation_is_refused_by_name(small):
    small.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedModelError, match=r"'1'.*BatchNorm1d|BatchNorm1d.*'1'"):
        small.start()


def test_a_parameter_used_behind_its_modules_back_is_trained_one_example_at_a_time_and_announced(small):
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return functional.linear(x, self.linear.weight, self.linear.bias)

    small.model = Behind()
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="one backward pass for each example"):
        private = small.start(small_plan(steps=2))
    assert SmallRun.go(private) == 2


def test_probing_leaves_model_and_generators_as_they_were(small):
    weights = [parameter.detach().clone() for parameter in small.model.parameters()]
    state = torch.get_rng_state()
    small.start(losses=cross_entropy(small.model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, small.model.parameters(), strict=True))
