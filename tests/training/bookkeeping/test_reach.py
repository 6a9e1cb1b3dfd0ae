# SPDX-License-Identifier: Apache-2.0
"""What the losses of a loop reach is looked at in their graph, whether or not the loop was shown to the probe."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.errors import SensitivityError
from privguard.training.bookkeeping import BookKeeper
from privguard.training.clip import ClippedSum

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def clipped(losses: Callable[[nn.Module], Tensor], *, batches: int = 1, rows: int = 6) -> ClippedSum:
    model = net()
    keeper = BookKeeper(model, max_grad_norm=1.0)
    try:
        for _ in range(batches):
            keeper.begin(torch.ones(rows, dtype=torch.bool))
            keeper.backward(losses(model))
        return keeper.take()
    finally:
        keeper.close()


def each(logits: Tensor, y: Tensor = Y) -> Tensor:
    return functional.cross_entropy(logits, y, reduction="none")


def views_one_after_the_other(model: nn.Module) -> Tensor:
    one, two = model(torch.cat([X, X.flip(1)])).chunk(2)
    return each(one) + each(two)


def negatives_from_the_batch(model: nn.Module) -> Tensor:
    found = model(X)
    return each(found @ found.t(), torch.arange(6))


def a_mean_over_the_batch(model: nn.Module) -> Tensor:
    return each(model(X)).mean().expand(6)


@pytest.mark.parametrize("losses", [views_one_after_the_other, negatives_from_the_batch, a_mean_over_the_batch])
def test_a_loss_that_reaches_rows_of_other_examples_is_refused(losses: Callable[[nn.Module], Tensor]) -> None:
    with pytest.raises(SensitivityError, match=r"module='2'.*reach rows of other examples"):
        clipped(losses)


def test_views_side_by_side_are_one_example() -> None:
    def losses(model: nn.Module) -> Tensor:
        found = model(torch.stack([X, X.flip(1)], 1).flatten(0, 1)).unflatten(0, (6, 2))
        return each(found[:, 0]) + each(found[:, 1])

    found = clipped(losses).gradients
    model, total = net(), {}
    for i in range(6):
        loss = (each(model(X[i : i + 1]), Y[i : i + 1]) + each(model(X.flip(1)[i : i + 1]), Y[i : i + 1])).sum()
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([g.norm() for g in gradient]).norm()
        for (name, _), g in zip(model.named_parameters(), gradient, strict=True):
            total[name] = total.get(name, 0) + g / norm.clamp(min=1)
    assert all(torch.allclose(found[name].float(), total[name], atol=1e-5) for name in total)


@pytest.mark.parametrize("broken", [0, 3])
def test_a_record_that_is_not_finite_raises_no_alarm_and_hides_nothing_for_long(broken: int) -> None:
    x, seen = X.clone(), []
    x[broken] = torch.nan
    assert all(value.isfinite().all() for value in clipped(lambda model: each(model(x))).gradients.values())

    def later(model: nn.Module) -> Tensor:
        seen.append(1)
        found = model(x if len(seen) == 1 else X)
        return each(found @ found.t(), torch.arange(6))

    with pytest.raises(SensitivityError, match="reach rows"):
        clipped(later, batches=3)


@pytest.mark.parametrize("make", [nn.Parameter, lambda value: value.requires_grad_()])
def test_a_tensor_of_the_loss_that_somebody_else_would_train_is_refused(make: Callable[[Tensor], Tensor]) -> None:
    temperature = make(torch.ones(()))
    with pytest.raises(SensitivityError, match=r"shape \(\) that is no parameter"):
        clipped(lambda model: each(model(X) * temperature))
    assert temperature.grad is None


def test_it_is_found_in_a_later_batch_too() -> None:
    head, seen = nn.Linear(3, 3), []

    def losses(model: nn.Module) -> Tensor:
        seen.append(1)
        return each(head(model(X)) if len(seen) > 2 else model(X))

    with pytest.raises(SensitivityError, match=r"shape \(3, 3\)|shape \(3,\)"):
        clipped(losses, batches=4)
    assert len(seen) == 3
    assert head.weight.grad is None


def test_a_parameter_unfrozen_inside_a_batch_is_refused_before_its_gradient_is_there() -> None:
    model = net()
    model[0].requires_grad_(False)
    keeper = BookKeeper(model, max_grad_norm=1.0)
    keeper.begin(torch.ones(6, dtype=torch.bool))
    model[0].requires_grad_()
    with pytest.raises(SensitivityError, match="no parameter of the model, with neither clip"):
        keeper.backward(each(model(X)))
    assert model[0].weight.grad is None


def test_inputs_of_the_batch_may_want_gradients() -> None:
    x = X.clone().requires_grad_()
    wanted = clipped(lambda model: each(model(X))).gradients
    found = clipped(lambda model: each(model(x))).gradients
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
