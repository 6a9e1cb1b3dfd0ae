"""One private step: reserve, clip, noise, move.

This is the only writer of the ledger and the only door to the optimizer: a clipped sum becomes a noisy sum on an event
that the ledger has durably reserved, and only the noisy sum moves the weights.
"""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privguard._random import Stream
from privguard.accounting.ledger import Ledger
from privguard.errors import BudgetExceededError, PrivacyError
from privguard.training.clip import Clipper
from privguard.training.noise import NoisySum, add_noise
from privguard.training.plan import Plan


@final
class PrivateStep:
    """Turns what the clipper gathered into one optimizer step.

    Guarantee: step number ``i`` of the ledger applies noise drawn for position ``i`` alone, after that event was
    reserved on disk. Exactly one noise per logical batch, whatever was gathered, also for an empty draw.
    """

    def __init__(self, plan: Plan, *, clipper: Clipper, ledger: Ledger, noise: Stream, reserve: int) -> None:
        self._plan = plan
        self._clipper = clipper
        self._ledger = ledger
        self._noise = noise
        self._block = reserve
        self._next = ledger.position
        self._unsettled = False

    @property
    def taken(self) -> int:
        """Ledger positions that are spent, by this process and by those before it, result kept or not."""
        return self._next

    @property
    def remaining(self) -> int:
        """Steps that the plan still allows."""
        return max(0, self._plan.steps - self._next)

    def position(self) -> int:
        """Ledger position of the step in the making, reserved on disk before this returns.

        Raises:
            BudgetExceededError: the plan's steps are spent.
        """
        if self.remaining == 0:
            raise BudgetExceededError(
                f"steps={self._plan.steps}: all are spent; stop here, or plan a new run and account for both"
            )
        if self._next == self._ledger.position:
            self._ledger.reserve(self._plan.event(), times=min(self._block, self.remaining))
            self._unsettled = True
        return self._next

    def finish(self, optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> NoisySum:
        """End the logical batch: noise the clipped sum, divide by the public batch size, let the optimizer move."""
        source = self._noise.child(self.position())
        noisy = add_noise(self._clipper.take(), multiplier=self._plan.noise_multiplier, source=source)
        self._next += 1
        move(optimizer, parameters, noisy, denominator=self._plan.expected_batch_size)
        return noisy

    def settle(self) -> None:
        """A clean stop: the ledger learns how many of the reserved events took effect, and gives the others back."""
        if self._unsettled:
            self._ledger.settle(self._next)
            self._unsettled = False


@torch.no_grad()
def move(optimizer: Optimizer, parameters: dict[str, nn.Parameter], noisy: NoisySum, *, denominator: float) -> None:
    """One optimizer step along ``noisy / denominator``; the gradient fields are cleared afterwards."""
    for name, gradient in noisy.gradients.items():
        parameter = parameters[name]
        parameter.grad = gradient.div_(denominator).to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check_optimizer(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Refuse an optimizer that moves other tensors than the model's trainable parameters.

    Raises:
        PrivacyError: the optimizer holds a tensor that the model does not, or lacks one of the model's. The usual cause
        is
            an optimizer made before the model was moved to a device, or before adapters were added.
    """
    ours = {id(parameter) for parameter in parameters}
    theirs = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
    strangers = sum(id(parameter) not in ours for parameter in theirs)
    missing = len(ours - {id(parameter) for parameter in theirs})
    if strangers or missing:
        raise PrivacyError(
            f"optimizer={type(optimizer).__name__}: {strangers} of its tensors are not the model's and "
            f"{missing} of the model's "
            "are not in it; make the optimizer after the model has its final parameters and device"
        )
