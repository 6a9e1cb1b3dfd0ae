# SPDX-License-Identifier: Apache-2.0
"""One record's gradient depends on no other record and not on their number, in every type of number."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.one_by_one import OneByOne
from privguard.training.probes.examples import choose
from privguard.training.probes.fields import Field

POINTS = (Field((2,), torch.float32), Field((), torch.int64, top=3))


def chosen(model: nn.Module, losses: Callable[[Any], Tensor], structure: Any = POINTS) -> Any:
    clipper, _ = choose(model, losses, structure, max_grad_norm=1.0)
    clipper.close()
    return clipper


def zeros(inputs: int = 2, outputs: int = 3) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class ByBatchSize(nn.Module):
    """Divides by the number of examples on the way forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = zeros()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / len(x)


class Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / len(gradients[0])


class ByBatchSizeOnTheWayBack(ByBatchSize):
    def forward(self, x: Tensor) -> Tensor:
        return Divided.apply(self.layer(x))


class BehindAFreshHead(nn.Module):
    """The body divides its gradient by the batch; a head of zeros would hide it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), zeros(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Divided.apply(self.body(x)))


class Temperature(ByBatchSize):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * len(x) ** 0.5


def each(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("kind", [ByBatchSize, ByBatchSizeOnTheWayBack, BehindAFreshHead, Temperature])
def test_a_model_that_scales_by_the_number_of_examples_is_refused(kind: type[nn.Module]) -> None:
    model = kind()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(SensitivityError, match=r"when the batch had \d examples instead of 5"):
        chosen(model, lambda batch: each(model, batch))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loss_that_divides_by_the_batch_size_is_refused() -> None:
    model = zeros()
    with pytest.raises(SensitivityError, match="divide by no batch size"):
        chosen(model, lambda batch: each(model, batch) / len(batch[0]))


class Packed(nn.Module):
    """A prediction head for the labelled tokens alone, all of them in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, batch: Any) -> Tensor:
        labelled = batch["labels"] != -100
        logits = self.head(torch.tanh(self.table(batch["ids"]))[labelled])
        losses = functional.cross_entropy(logits, batch["labels"][labelled], reduction="none")
        rows = labelled.nonzero()[:, 0]
        return torch.zeros(len(labelled)).index_add(0, rows, losses) / labelled.sum(1).clamp(min=1)


def test_packed_rows_are_found_by_labels_that_are_missing() -> None:
    """Book-keeping cannot tell whose a packed row is; one example at a time it can."""
    model = Packed()
    structure = {"ids": Field((6,), torch.int64, top=9), "labels": Field((6,), torch.int64, top=9)}
    assert isinstance(chosen(model, model, structure), OneByOne)


class Mixed(nn.Module):
    """A thousandth of the neighbour's hidden state is added to each example's."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.table, self.body, self.head = nn.Embedding(64, 32), nn.Linear(32, 32), nn.Linear(32, 64)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(self.table(ids)))
        return self.head(hidden + self.share * hidden.roll(1, 0) if self.share else hidden)


TOKENS = {"ids": Field((8,), torch.int64, top=64)}


@pytest.mark.parametrize("kind", ["float32", "bfloat16 autocast", "bfloat16 weights", "float16 weights", "float64"])
@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_a_mix_of_a_thousandth_is_refused_in_every_type(kind: str, share: float) -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = Mixed(share)
    name, _, where = kind.partition(" ")
    if where != "autocast":
        model = model.to(getattr(torch, name))
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def losses(batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where == "autocast"):
            logits = model(batch["ids"])
        return functional.cross_entropy(logits.float().transpose(1, 2), batch["ids"], reduction="none").mean(1)

    if share:
        with pytest.raises(SensitivityError, match="exchanging example"):
            chosen(model, losses, TOKENS)
    else:
        assert not isinstance(chosen(model, losses, TOKENS), OneByOne)  # 16 bits are no reason for the slow way
    after = model.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in before.items())
    assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # works again
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_re_entrant_checkpoints_are_refused_by_name() -> None:

    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))

    def losses(batch: Any) -> Tensor:
        hidden = checkpoint(model[1], torch.relu(model[0](batch[0])), use_reentrant=True)
        return functional.cross_entropy(hidden, batch[1], reduction="none")

    with pytest.raises(UnsupportedModelError, match="use_reentrant=False"):
        chosen(model, losses)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_parameter_without_elements_is_no_crash() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    model.register_module("empty", nn.Linear(2, 0))
    chosen(model, lambda batch: each(model[0], batch) + model.empty(batch[0]).sum(1))


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_probed_like_others(layer: type[nn.Module]) -> None:
    """The probe's own comparison failed on them with torch's error."""
    model = nn.Sequential(layer(9, 4, sparse=True), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 5, dtype=torch.int64))
    structure = (Field((5,), torch.int64, top=9), Field((), torch.int64, top=3))
    assert not isinstance(chosen(model, lambda batch: each(model, batch), structure), OneByOne)


def test_an_activation_in_place_may_follow_a_layer_without_a_rule() -> None:
    """What the tap kept was a view of the output, so torch refused to go backward."""
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(100, 3))
    structure = (Field((3, 3, 3), torch.float32), Field((), torch.int64, top=3))
    assert not isinstance(chosen(model, lambda batch: each(model, batch), structure), OneByOne)


def hardest(model: nn.Module, batch: Any) -> Tensor:
    losses = each(model, batch)
    return losses * (losses.detach() >= losses.detach().median())


def top_half(model: nn.Module, batch: Any) -> Tensor:
    losses = each(model, batch)
    chosen = torch.zeros_like(losses)
    chosen[losses.detach().topk((len(losses) + 1) // 2).indices] = 1
    return losses * chosen


def above_a_constant(model: nn.Module, batch: Any) -> Tensor:
    losses = each(model, batch)
    return losses * (losses.detach() > 1)


@pytest.mark.parametrize("losses", [hardest, top_half, above_a_constant])
@pytest.mark.parametrize("seed", range(5))
def test_hard_examples_of_the_batch_are_refused_and_those_above_a_constant_train(losses: Any, seed: int) -> None:
    """Whether an example is among the hardest follows from the others; one record moved the sum by 2 C."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    if losses is above_a_constant:
        assert not isinstance(chosen(model, lambda batch: losses(model, batch)), OneByOne)
    else:
        with pytest.raises(SensitivityError, match=r"exchanging|instead of 5"):
            chosen(model, lambda batch: losses(model, batch))


def test_torchs_gradient_of_one_example_in_channels_last_is_named() -> None:
    """Wrong in torch 2.13 for this model; a release that has it right makes the model a sound one."""
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 5, 3, stride=2))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(45, 3))
    structure = (Field((3, 8, 8), torch.float32), Field((), torch.int64, top=3))
    assert not isinstance(chosen(model, lambda batch: each(model, batch), structure), OneByOne)
    model = model.to(memory_format=torch.channels_last)
    with pytest.raises(SensitivityError, match=r"memory_format=torch\.contiguous_format"):
        chosen(model, lambda batch: each(model, batch), structure)
