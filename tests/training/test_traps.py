# SPDX-License-Identifier: Apache-2.0
"""The traps that private trainers are known to fall into, one test a row: refused by name, or harmless.

Most are silent in the tools where they were found: the run goes on and its ε is wrong.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from privguard._random import Stream
from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.attach import attach
from privguard.training.one_by_one import OneByOne
from privguard.training.plan import Plan
from privguard.training.probes.examples import probe
from privguard.training.probes.fields import Field
from privguard.training.sampling.batches import PoissonLoader
from privguard.training.sampling.sample import Poisson

BOUND = 1.0


def gradient_sum(way, model: nn.Module, batches: list[Tensor], *, max_norm: float = BOUND) -> dict[str, Tensor]:
    """The clipped sum of ``model(x)``, one loss a row, over physical batches."""
    clipper = way(model, max_grad_norm=max_norm)
    for x in batches:
        for rows in x.split(clipper.rows or len(x)):
            clipper.begin(torch.ones(len(rows), dtype=torch.bool))
            clipper.backward(model(rows))
    total = clipper.take().gradients
    clipper.close()
    return total


def assert_exact(model: nn.Module, batches: list[Tensor], *, max_norm: float = BOUND) -> None:
    """Book-keeping against one example at a time."""
    found = gradient_sum(attach, copy.deepcopy(model), batches, max_norm=max_norm)
    for name, wanted in gradient_sum(OneByOne, model, batches, max_norm=max_norm).items():
        assert torch.allclose(found[name], wanted, rtol=1e-4, atol=1e-6), name


def norm(gradients: dict[str, Tensor]) -> float:
    return torch.cat([g.flatten() for g in gradients.values()]).norm().item()


class PerExample(nn.Module):
    """A model whose output is one loss for each row."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).flatten(1).square().mean(1)


def mlp() -> PerExample:
    torch.manual_seed(0)
    return PerExample(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))


def test_a_loss_that_divides_by_the_tokens_of_the_whole_batch_is_refused():
    """Row A: with the default loss of causal models, one record moves the clipped sum by 2.02 C."""
    table = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))

    def token_mean(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        each = functional.cross_entropy(model(batch["ids"]).transpose(1, 2), batch["ids"], reduction="none")
        return (each * batch["mask"]).sum(1) / batch["mask"].sum()

    fields = {"ids": Field((5,), torch.int64, top=7), "mask": Field((5,), torch.int64, top=2)}
    with pytest.raises(SensitivityError, match="exchanging example"):
        probe(table, attach(table, max_grad_norm=BOUND), lambda batch: token_mean(table, batch), fields)


def test_a_second_physical_batch_adds_to_the_first():
    """Row B: two backward passes before the step; the second overwrote the first."""
    first, second = torch.randn(5, 4), torch.randn(3, 4)
    whole = gradient_sum(attach, mlp(), [torch.cat([first, second])])
    parts = gradient_sum(attach, mlp(), [first, second])
    assert all(torch.allclose(whole[n], parts[n], atol=1e-6) for n in whole)


def test_a_shuffled_loader_is_sampled_as_the_event_says():
    """Row C: fixed shuffled batches under a Poisson ε; ours vary in size and repeat records between steps."""
    data = TensorDataset(torch.arange(200))
    loader = PoissonLoader(
        DataLoader(data, batch_size=20, shuffle=True),
        sampler=Poisson(0.1),
        source=Stream.from_insecure_seed(1, "s"),
        limit=200,
    )
    drawn = [batch[0].tolist() for _, batch in loader(0, 40)]
    assert len({len(records) for records in drawn}) > 5
    assert set(drawn[0]) & set(drawn[1]) or set(drawn[1]) & set(drawn[2])


class Sometimes(nn.Module):
    """Its second layer takes part only while it is switched on, as with stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.on = nn.Linear(4, 4), nn.Linear(4, 4), True

    def forward(self, x: Tensor) -> Tensor:
        y = self.always(x)
        return (self.sometimes(y) * 50 if self.on else y).square().mean(1)


@pytest.mark.parametrize("before", [False, True])
def test_a_layer_that_a_batch_skips_keeps_no_norm_of_the_batch_before(before):
    """Row D: an example's norm was 1.99 or 211.8, depending on the previous batch."""
    torch.manual_seed(0)
    model, x = Sometimes(), torch.randn(6, 4)
    clipper = attach(model, max_grad_norm=BOUND)
    for model.on in (True, before, False):  # the first reaches every parameter
        clipper.begin(torch.ones(6, dtype=torch.bool))
        clipper.backward(model(x))
        last = clipper.take().gradients
    clipper.close()
    wanted = gradient_sum(OneByOne, model, [x])
    assert all(torch.allclose(last[n], wanted[n], atol=1e-6) for n in wanted)


def test_a_linear_layer_on_four_dimensions_is_exact():
    """Row E: an attribute error elsewhere."""
    torch.manual_seed(0)
    assert_exact(PerExample(nn.Linear(4, 3)), [torch.randn(5, 2, 3, 4)])


class Positioned(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, 4), nn.Embedding(6, 4)
        self.register_buffer("ids", torch.arange(6).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (self.tokens(x) + self.places(self.ids)).square().mean((1, 2))


@pytest.mark.parametrize("shape", [(1, 6), (6,)])
def test_position_ids_that_the_whole_batch_shares_are_exact(shape):
    """Row F: a stack of unequal shapes elsewhere."""
    torch.manual_seed(0)
    assert_exact(Positioned(shape), [torch.randint(9, (4, 6))])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_record_whose_gradient_is_not_finite_counts_as_zero(bad):
    """Row K: one record turned the whole model into NaN, which tells that it was there."""
    x = torch.randn(6, 4)
    x[2, 1] = bad
    model = PerExample(nn.Linear(4, 3))
    found = gradient_sum(attach, model, [x])
    wanted = gradient_sum(attach, model, [x[[0, 1, 3, 4, 5]]])
    assert all(torch.allclose(found[n], wanted[n], atol=1e-6) for n in wanted)


@pytest.mark.parametrize("running", [False, True])
def test_batch_normalisation_without_parameters_is_refused_too(running):
    """Row L: accepted elsewhere, since it has no parameters to look at."""
    norm_layer = nn.BatchNorm1d(8, affine=False, track_running_stats=running)
    with pytest.raises(UnsupportedModelError, match="see each other"):
        attach(nn.Sequential(nn.Linear(4, 8), norm_layer, nn.Linear(8, 3)), max_grad_norm=BOUND)


def test_a_mean_over_the_batch_written_by_hand_is_refused():
    """Row L, second half: no class to refuse by; the probe sees what it does."""

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    model = nn.Sequential(nn.Linear(4, 8), Centred(), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(SensitivityError, match="exchanging example"):
        probe(
            model,
            attach(model, max_grad_norm=BOUND),
            lambda batch: model(batch[0]).square().mean(1),
            (Field((4,), torch.float32),),
        )


def test_tied_weights_are_exact_and_their_norm_is_that_of_the_sum():
    """GPT-2 with its tied head could not be trained at all with ghost norms elsewhere."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return functional.cross_entropy(self.head(self.table(x)).transpose(1, 2), x, reduction="none").mean(1)

    torch.manual_seed(0)
    model = Tied()
    assert_exact(model, [torch.randint(9, (4, 6))], max_norm=0.01)
    assert norm(gradient_sum(attach, model, [torch.randint(9, (1, 6))], max_norm=0.01)) <= 0.01 * (1 + 1e-4)


def test_an_empty_draw_is_a_sum_of_zeros():
    """Not a trap elsewhere; it must not become one here."""
    model = mlp()
    clipper = attach(model, max_grad_norm=BOUND)
    clipper.begin(torch.zeros(1, dtype=torch.bool))
    clipper.backward(model(torch.full((1, 4), float("nan"))))
    assert all((g == 0).all() for g in clipper.take().gradients.values())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's own, about what its tracer deprecates
def test_a_model_compiled_after_it_was_tapped_is_exact_and_one_compiled_before_is_refused(backend, whole):
    """What the compiler captures is the tapped forward; compiled first, it would run past the taps."""
    model = mlp()
    batches = [torch.randn(n, 4) for n in (5, 5, 3)]
    if whole:
        with pytest.raises(UnsupportedModelError, match="compiled before"):
            attach(torch.compile(model, backend=backend), max_grad_norm=BOUND)
    wanted = gradient_sum(OneByOne, copy.deepcopy(model), batches)
    clipper = attach(model, max_grad_norm=BOUND)
    compiled = torch.compile(model, backend=backend) if whole else model
    if not whole:
        model.compile(backend=backend)
    for x in batches:
        clipper.begin(torch.ones(len(x), dtype=torch.bool))
        clipper.backward(compiled(x))
    found = clipper.take().gradients
    assert all(torch.allclose(found[n], wanted[n], atol=1e-6) for n in wanted)


@pytest.mark.parametrize("batches", [93, 99, 105, 117, 123])
def test_an_epoch_has_as_many_steps_as_it_says(batches):
    """int(1/(1/n)) is n − 1 for these: a 93-batch loader became 92 steps, and its ε that of a shorter run."""
    plan = Plan.for_budget(epsilon=8.0, delta=1e-5, examples=32 * batches, batch_size=32, epochs=1, max_grad_norm=1.0)
    assert plan.steps == batches
