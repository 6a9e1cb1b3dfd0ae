# SPDX-License-Identifier: Apache-2.0
"""The probe finds every way in which examples meet, says so by name, and leaves no trace."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.attach import attach
from privguard.training.one_by_one import OneByOne
from privguard.training.probes.examples import choose, probe
from privguard.training.probes.fields import Field, make, structure_of

IMAGES = (Field((5,), torch.float32), Field((), torch.int64, top=3))
TOKENS = {"ids": Field((6,), torch.int64, top=9), "mask": Field((6,), torch.int64)}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def each(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def check(model: nn.Module, losses, structure=IMAGES) -> None:
    clipper = attach(model, max_grad_norm=0.1)
    try:
        probe(model, clipper, lambda batch: losses(model, batch), structure)
    finally:
        clipper.close()


def test_a_model_that_keeps_examples_apart_passes() -> None:
    check(net(), each)


def test_the_probe_leaves_no_trace() -> None:
    model = net()
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_hook(lambda module, *_: setattr(module, "calls", module.calls.add_(1)))
    model[1].eval()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(7)
    before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    clipper = attach(model, max_grad_norm=0.1)
    probe(model, clipper, lambda batch: each(model, batch), IMAGES)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.calls == 0
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(g.any() for g in clipper.take().gradients.values())
    clipper.begin(torch.ones(2, dtype=torch.bool))  # and the clipping norm is back
    clipper.backward(1e3 * each(model, make(IMAGES, 2, seed=0, device=torch.device("cpu"))))
    assert sum(float(g.square().sum()) for g in clipper.take().gradients.values()) ** 0.5 <= 0.2 * (1 + 1e-4)


class InBatchMean(nn.Module):
    """What no class list finds: a plain module that subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_a_mean_over_the_batch_is_refused() -> None:
    with pytest.raises(SensitivityError, match="exchanging example 0"):
        check(nn.Sequential(nn.Linear(5, 4), InBatchMean(), nn.Linear(4, 3)), each)


def test_a_mean_over_the_batch_in_a_linear_model_is_refused() -> None:
    with pytest.raises(SensitivityError):
        check(nn.Sequential(nn.Linear(5, 3), InBatchMean()), lambda model, batch: model(batch[0]).sum(1))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.cross_entropy(self.head(self.table(ids)).transpose(1, 2), ids, reduction="none")


def test_a_mean_over_the_tokens_of_the_batch_is_refused() -> None:
    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["ids"]) * batch["mask"]).sum(1) / batch["mask"].sum()

    with pytest.raises(SensitivityError, match="own loss"):
        check(Tagger(), losses, TOKENS)


def test_a_mean_over_each_examples_own_tokens_passes() -> None:
    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["ids"]) * batch["mask"]).sum(1) / batch["mask"].sum(1).clamp(min=1)

    check(Tagger(), losses, TOKENS)


def test_ignored_labels_are_made_up_too() -> None:
    field = Field((6,), torch.int64, top=9, ignore=-100)
    drawn = field.draw(50, source=torch.Generator().manual_seed(0))
    assert 0.2 < float((drawn == -100).float().mean()) < 0.5

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        logits = model.head(model.table(batch["ids"])).transpose(1, 2)
        return functional.cross_entropy(logits, labels, reduction="none").sum(1) / (labels != -100).sum()

    with pytest.raises(SensitivityError):
        check(Tagger(), losses, TOKENS | {"labels": field})


def test_negatives_from_the_batch_are_refused() -> None:
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        h = functional.normalize(model(batch[0]), dim=1)
        return functional.cross_entropy(h @ h.t(), torch.arange(len(h)), reduction="none")

    with pytest.raises(SensitivityError):
        check(net(), losses)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_scalar_loss_is_refused_with_the_remedy(reduction: str) -> None:
    with pytest.raises(ValueError, match="reduction='none'"):
        check(net(), lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1], reduction=reduction))


class TimeFirst(nn.Module):
    """Keeps examples apart, but not in dimension 0 of what its layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.t()[..., None]).tanh().sum(0)


def test_examples_in_another_dimension_are_found() -> None:
    check(TimeFirst(), each)


class HalfByHalf(nn.Module):
    """Both halves of an example go through one layer, in rows that do not follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.layer(torch.cat([x[:, :2], x[:, 2:4]])).chunk(2)
        return one.tanh() * two


def test_rows_that_do_not_follow_each_other_are_refused_and_trained_one_by_one() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layer\.weight"):
        check(HalfByHalf(), each)
    model = HalfByHalf()
    clipper, reason = choose(model, lambda batch: each(model, batch), IMAGES, max_grad_norm=1.0)
    assert isinstance(clipper, OneByOne)
    assert reason is not None


class Masked(nn.Module):
    """Hides parts of its input by numpy, as wav2vec 2.0 does while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        shown = torch.tensor(np.random.rand(*x.shape) > 0.3) if self.training else 1  # noqa: NPY002
        return self.layer(x * shown * random.random())


def test_masks_drawn_outside_of_torch_are_drawn_alike_and_leave_no_trace() -> None:
    before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    check(Masked(), each)
    assert before == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


class FirstRow(nn.Module):
    """Looks positions up once, as row 0 of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 9)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.table(torch.arange(6)[None])[0]
        return self.head(positions.expand(len(ids), 6, 4)).sin().sum((1, 2)) * ids.sum(1)


def test_a_lookup_taken_out_of_its_row_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"table\.weight"):
        check(FirstRow(), lambda model, batch: model(batch["ids"]), TOKENS)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen += x.sum(0)
        return self.layer(x)


def test_a_buffer_that_takes_the_data_in_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="buffer='seen'"):
        check(Remembers(), each)


def test_choosing_takes_book_keeping_where_it_is_exact() -> None:
    model = net()
    clipper, reason = choose(model, lambda batch: each(model, batch), IMAGES, max_grad_norm=1.0)
    assert not isinstance(clipper, OneByOne)
    assert reason is None


def test_choosing_never_hides_that_examples_meet() -> None:
    model = nn.Sequential(nn.Linear(5, 4), InBatchMean(), nn.Linear(4, 3))
    with pytest.raises(SensitivityError):
        choose(model, lambda batch: each(model, batch), IMAGES, max_grad_norm=1.0)
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    with pytest.raises(UnsupportedModelError, match="BatchNorm1d"):
        choose(nn.Sequential(nn.BatchNorm1d(5), net()), lambda batch: each(model, batch), IMAGES, max_grad_norm=1.0)


def test_positions_are_learnt_from_two_batch_sizes() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions, self.head = nn.Embedding(9, 4), nn.Embedding(6, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head((self.tokens(ids) + self.positions(torch.arange(6))).tanh()).sum((1, 2))

    model = Positioned()
    clipper = attach(model, max_grad_norm=1.0)
    probe(model, clipper, lambda batch: model(batch["ids"]), TOKENS)
    clipper.begin(torch.ones(6, dtype=torch.bool))  # as many examples as positions
    clipper.backward(model(torch.randint(9, (6, 6))))


def test_a_structure_is_shapes_and_types_alone() -> None:
    batch = {"ids": torch.full((4, 6), 8), "pair": [torch.zeros(4), (torch.zeros(4, 2, dtype=torch.bfloat16),)], "n": 3}
    structure = structure_of(batch, tops={"ids": 9})
    expected = {
        "ids": Field((6,), torch.int64, 9),
        "pair": [Field((), torch.float32), (Field((2,), torch.bfloat16),)],
        "n": 3,
    }
    assert structure == expected
    made = make(structure, 5, seed=1, device=torch.device("cpu"))
    assert made["ids"].shape == (5, 6)
    assert made["pair"][1][0].dtype == torch.bfloat16
    assert made["n"] == 3


def test_a_recurrent_model_with_dropout_passes() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = nn.LSTM(5, 4, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.reader(x[:, None].expand(-1, 3, -1))[0].sum((1, 2))

    with warnings.catch_warnings():
        check(Reader(), lambda model, batch: model(batch[0]))


class Evened(nn.Module):
    """The gradient on its way back is divided by its norm over the whole batch, which no forward shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient / gradient.norm())
        return self.second(hidden)


def test_examples_that_meet_on_the_way_back_are_trained_one_by_one() -> None:
    with pytest.raises(UnsupportedModelError, match=r"all examples together.*'first"):
        check(Evened(), each)
    model = Evened()
    clipper, why = choose(model, lambda batch: each(model, batch), IMAGES, max_grad_norm=0.1)
    assert isinstance(clipper, OneByOne)
    assert why is not None


def test_losses_of_another_model_are_refused_before_the_first_step():
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    with pytest.raises(ValueError, match="uses no trainable parameter of this model"):
        choose(model, lambda x: other(x).square().sum(1), Field((4,), torch.float32), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="uses no trainable parameter of this model"):
        choose(model, lambda x: x.sum(1), Field((4,), torch.float32), max_grad_norm=1.0)


def test_a_record_that_no_parameter_sees_counts_as_zero():
    """Its loss has a graph that ends in a tensor outside the model."""
    model, outside = nn.Linear(4, 3), torch.zeros((), requires_grad=True)
    clipper = OneByOne(model, max_grad_norm=1.0)
    for sees in (True, False):
        clipper.begin(torch.ones(1, dtype=torch.bool))
        x = torch.ones(1, 4)
        clipper.backward(model(x).sum(1) if sees else x.sum(1) * outside)
    clipped = clipper.take()
    assert clipped.records == 2
    assert torch.cat([g.flatten() for g in clipped.gradients.values()]).norm() <= 1.001
    clipper.close()
