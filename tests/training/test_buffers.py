# SPDX-License-Identifier: Apache-2.0
"""No tensor outside the parameters takes the records in: looked at in the probe, and in the forwards of the run."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privguard.errors import InteractionError, SensitivityError, UnsupportedModelError
from privguard.training.attach import attach
from privguard.training.clip import Clipper
from privguard.training.one_by_one import OneByOne
from privguard.training.probes.examples import choose, probe
from privguard.training.probes.fields import Field

POINTS = Field((4,), torch.float32)


class Keeps(nn.Module):
    """Writes what ``of`` makes of a batch into a buffer, from forward number ``first`` on."""

    def __init__(self, of: Any, *, first: int = 0, persistent: bool = True) -> None:
        super().__init__()
        self.layer, self.of, self.first, self.forwards = nn.Linear(4, 3), of, first, 0
        self.register_buffer("kept", torch.zeros(()), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        if self.forwards > self.first:
            self.kept = self.of(self, x.detach())
        return self.layer(x)


def step(clipper: Clipper, model: nn.Module, x: Tensor) -> None:
    for rows in x.split(clipper.rows or len(x)):
        clipper.begin(torch.ones(len(rows), dtype=torch.bool))
        clipper.backward(model(rows).sum(1))
    clipper.take()


def mean(_: nn.Module, x: Tensor) -> Tensor:
    return x.mean(0)


@pytest.mark.parametrize("way", [attach, OneByOne])
def test_a_buffer_that_a_forward_writes_is_refused_by_name(way: Any) -> None:
    model = Keeps(mean)
    clipper = way(model, max_grad_norm=1.0)
    with pytest.raises(InteractionError, match="buffer='kept'"):
        step(clipper, model, torch.randn(3, 4))
    clipper.close()


def test_a_buffer_in_place_is_seen_as_well() -> None:
    model = Keeps(lambda self, x: self.kept.add_(x.mean()))
    clipper = attach(model, max_grad_norm=1.0)
    with pytest.raises(InteractionError, match="buffer='kept'"):
        step(clipper, model, torch.randn(3, 4))
    clipper.close()


def test_one_that_is_written_late_is_refused_at_a_random_later_step() -> None:
    """One step in 32 is looked at: that none of 640 is has probability (31/32)^640 = 1.5e-9."""
    model = Keeps(mean, first=10)
    clipper = attach(model, max_grad_norm=1.0)
    with pytest.raises(InteractionError, match="buffer='kept'"):
        for _ in range(650):
            step(clipper, model, torch.randn(2, 4))
    assert model.forwards > 10
    clipper.close()


@pytest.mark.parametrize(
    ("of", "persistent"),
    [
        (lambda self, x: self.kept, True),
        (mean, False),  # in no checkpoint: tables that grow with the longest input are kept so
        (lambda self, x: torch.tensor(self.forwards), True),
    ],
    ids=["unchanged", "not saved", "a count of batches"],
)
def test_other_buffers_raise_no_alarm(of: Any, persistent: bool) -> None:
    model = Keeps(of, persistent=persistent)
    clipper = attach(model, max_grad_norm=1.0)
    for _ in range(3):
        step(clipper, model, torch.randn(3, 4))
    clipper.close()


@pytest.mark.parametrize("way", [attach, OneByOne])
def test_an_average_of_the_weights_passes_after_the_probe_has_seen_it_move(way: Any) -> None:
    model = Keeps(lambda self, x: 0.9 * self.kept + 0.1 * self.layer.weight.detach())
    clipper = way(model, max_grad_norm=1.0)
    probe(model, clipper, lambda x: model(x).square().sum(1), POINTS)
    for _ in range(3):
        step(clipper, model, torch.randn(3, 4))
    clipper.close()


NORMS = [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]


@pytest.mark.parametrize("norm", NORMS, ids=["parametrization", "hook"])
def test_spectral_norms_train_though_no_probe_saw_them_move(norm: Any) -> None:
    """Its power iteration has converged when it is probed, and goes on when the weights have moved."""
    model = nn.Sequential(norm(nn.Linear(4, 3)))
    clipper = OneByOne(model, max_grad_norm=1.0)
    for _ in range(200):
        model(torch.randn(1, 4))
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        step(clipper, model, torch.randn(3, 4))
    clipper.close()


@pytest.mark.parametrize("norm", NORMS, ids=["parametrization", "hook"])
def test_only_its_own_two_vectors_pass(norm: Any) -> None:
    model = nn.Sequential(norm(nn.Linear(4, 4)), Keeps(mean))
    clipper = OneByOne(model, max_grad_norm=1.0)
    with pytest.raises(InteractionError, match=r"buffer='1.kept'"):
        step(clipper, model, torch.randn(3, 4))
    clipper.close()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))), "0.parametrizations.weight.0._u, "),
        (nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3))), "0.weight_u, 0.weight_v"),
        (Keeps(lambda self, x: self.kept + 1), "kept"),
        (Keeps(lambda self, x: 0.9 * self.kept + 0.1 * self.layer.weight.detach()), "kept"),
    ],
    ids=["spectral norm", "the older one", "a count", "an average"],
)
def test_what_counts_forwards_is_named_in_the_claim(model: nn.Module, names: str) -> None:
    """A clipper that takes one record at a time has as many forwards as records: a checkpoint would tell the draws."""
    clipper, _ = choose(model, lambda x: model(x).square().sum(1), POINTS, max_grad_norm=1.0)
    (sentence,) = clipper.unchecked
    assert names in sentence
    assert "how many physical batches were drawn" in sentence
    clipper.close()


def test_a_model_whose_buffers_stand_still_has_nothing_to_say() -> None:
    model = Keeps(lambda self, x: self.kept)
    clipper, _ = choose(model, lambda x: model(x).square().sum(1), POINTS, max_grad_norm=1.0)
    assert clipper.unchecked == ()
    clipper.close()


class Remembers(nn.Module):
    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        self.layer, self.detached = nn.Linear(4, 3), detached

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.features = [y.detach()] if self.detached else [self.layer.weight.detach()]
        return y


@pytest.mark.parametrize("detached", [True, False])
def test_a_plain_attribute_that_depends_on_the_records_is_said_by_the_claim(detached: bool) -> None:
    model = Remembers(detached=detached)
    clipper, _ = choose(model, lambda x: model(x).square().sum(1), POINTS, max_grad_norm=1.0)
    assert ["features" in line for line in clipper.unchecked] == [True] * detached
    clipper.close()


class Queue(nn.Module):
    """Keeps the mean of each batch whose size is one of ``sizes``; a share of it is added to the next batch."""

    def __init__(self, sizes: set[int], *, share: float, persistent: bool = True) -> None:
        super().__init__()
        self.layer, self.sizes, self.share = nn.Linear(4, 3), sizes, share
        self.register_buffer("kept", torch.zeros(4), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x + self.share * self.kept)
        if len(x) in self.sizes:
            with torch.no_grad():
                self.kept.copy_(x.mean(0))
        return y


SIZES = [{5}, {3}, {2, 3}, {5, 6, 7}, {1, 2, 3, 5, 6, 7}]


@pytest.mark.parametrize("share", [0.0, 0.1], ids=["unread", "read"])
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_buffer_written_in_batches_of_some_sizes_takes_no_records_in(
    sizes: set[int], persistent: bool, share: float
) -> None:
    """Unread it goes into checkpoints without noise, and read it lets records meet those of earlier steps.

    One record at a time is fair where batches of that size are what writes it.
    """
    model = Queue(sizes, share=share, persistent=persistent)

    def losses(x: Tensor) -> Tensor:
        return model(x).square().sum(1)

    if 1 in sizes:
        with pytest.raises(UnsupportedModelError, match="buffer='kept': takes the data in"):
            choose(model, losses, POINTS, max_grad_norm=1.0)
        return
    clipper, reason = choose(model, losses, POINTS, max_grad_norm=1.0)
    assert "buffer='kept': takes the data in" in (reason or "")
    step(clipper, model, torch.randn(7, 4))
    assert not model.kept.any()
    clipper.close()


@pytest.mark.parametrize("times", [1, 2])
def test_what_one_batch_leaves_for_the_next_is_seen_where_buffers_hide_it(times: int) -> None:
    """Only buffers that follow the weights alone are put back between the forwards that are compared."""

    class Late(Queue):
        """Writes from forward number ``first`` on, so that the look at single forwards sees nothing."""

        def forward(self, x: Tensor) -> Tensor:
            self.forwards = getattr(self, "forwards", 0) + 1
            self.sizes = {len(x)} if self.forwards > 8 * times else set()
            return super().forward(x)

    model = Late(set(), share=0.1)
    with pytest.raises(SensitivityError, match="probe: "):
        choose(model, lambda x: model(x).square().sum(1), POINTS, max_grad_norm=1.0)
