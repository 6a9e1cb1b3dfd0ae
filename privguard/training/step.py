# SPDX-License-Identifier: Apache-2.0
"""One private step: reserve, clip, noise, move.

This is the only writer of the ledger and the only door to the optimizer: a clipped sum becomes a noisy sum on an event
that the ledger has durably reserved, and only the noisy sum moves the weights. The disk is waited for where it matters,
before the noisy sum exists: forward and backward pass run while the reservation is on its way, so it costs no time, and
a process that dies has at most one position (one block of ``reserve``) reserved and not executed.
"""

import math
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privguard._random import Stream
from privguard.accounting.history import History
from privguard.accounting.ledger import Ledger
from privguard.errors import BudgetExceededError, InteractionError, PrivacyError
from privguard.training import shards
from privguard.training.clip import ClippedSum, Clipper
from privguard.training.noise.ahead import Ahead, has_idle_core
from privguard.training.noise.correlation import Correlation
from privguard.training.noise.exact import NoisySum, add_noise, grid_of, rows
from privguard.training.noise.float32 import add_float32_noise
from privguard.training.plan import Plan
from privguard.training.ranks import Ranks


@final
class PrivateStep:
    """Turns what the clipper gathered into one optimizer step.

    Guarantee: step number ``i`` of the ledger applies noise drawn for position ``i`` alone, after that event was
    reserved on disk. Exactly one noise per logical batch, whatever was gathered, also for an empty draw.

    ``noise`` is the stream whose child number ``i`` gives the noise of position ``i``. ``reserve`` is how many events
    share one line of the ledger, and so one fsync. ``permit`` is called before each reservation, with the position that
    it ends before; it raises where the run must stop, as a budget book's limit may ask. ``exact`` says which noise:
    integers on a grid, or float32.
    """

    def __init__(  # noqa: PLR0913 — one argument for each part that a step is made of
        self,
        plan: Plan,
        *,
        clipper: Clipper,
        ledger: "Ledger | Follower",
        noise: Stream,
        reserve: int,
        ranks: Ranks | None = None,
        permit: Callable[[int], None] = lambda _: None,
        exact: bool = True,
    ) -> None:
        self._plan = plan
        self._clipper = clipper
        self._ledger = ledger
        self._noise = noise
        self._block = reserve
        self._ranks = ranks or Ranks()
        self._permit = permit
        self._exact = exact
        if plan.bands > 1 and not (exact and reserve == 1):
            raise PrivacyError(
                f"bands={plan.bands}: correlated noise is exact, and each step begins by a line of its own; leave "
                "noise and reserve as they are"
            )
        correlated = plan.bands > 1 and plan.noise_multiplier > 0
        self._correlation = Correlation(plan.strategy, steps=plan.steps) if correlated else None
        self._ahead = Ahead() if exact and plan.bands == 1 and has_idle_core() else None
        self._signal: Tensor | None = None  # norm of the last noisy sum
        self._floor = 0.0  # expected norm of the noise in it, σC√d
        self._next = ledger.position
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._writing: Future[None] | None = None  # the reservation that is on its way to the disk
        self._process = os.getpid()
        self._unsettled = False
        self._noted = 0  # checked steps that the ledger knows

    @property
    def taken(self) -> int:
        """Ledger positions that are spent, by this process and by those before it, result kept or not."""
        return self._next

    @property
    def remaining(self) -> int:
        """Steps that the plan still allows."""
        return max(0, self._plan.steps - self._next)

    def position(self) -> int:
        """Ledger position of the step in the making; its reservation is on its way to the disk when this returns.

        ``release`` waits for it. What fails on the disk is raised there, or by the next call.

        Raises:
            PrivacyError: this is not the process that began the run.
            BudgetExceededError: the plan's steps are spent, or ``permit``, asked before each reservation, refuses.
        """
        if self.remaining == 0:
            raise BudgetExceededError(
                f"steps={self._plan.steps}: all are spent; stop here, or plan a new run and account for both"
            )
        self.require_own_process()
        if self._writing is None and self._next == self._ledger.position:
            times = min(self._block, self.remaining)
            self._permit(self._next + times)
            self._unsettled = True
            self._writing = self._disk.submit(self._write, times)
        return self._next

    def require_own_process(self) -> None:
        """Raise PrivacyError in a forked process, whose parent draws the same samples and noise."""
        if os.getpid() != self._process:
            raise PrivacyError(
                "step: taken in a forked process, whose parent draws the same samples and noise; train in the process "
                "that began the run"
            )

    def _write(self, times: int) -> None:
        if self._plan.bands == 1:
            self._ledger.reserve(self._plan.event(), times=times)
        else:
            self._ledger.advance(self._plan.event(), span=self._plan.bands)

    @property
    def pending(self) -> bool:
        """Whether a step is in the making: its position is reserved, and its noise not drawn."""
        return self._writing is not None

    def wait_for_disk(self) -> None:
        """Return when all that was reserved is on disk.

        Raises:
            PrivacyError: this is not the process that began the run.
            OSError: the disk is full or failed; nothing was reserved.
            LedgerError: the ledger changed under this run.
        """
        if self._writing is not None:
            self.require_own_process()  # no thread writes in a fork: to wait for one would be for ever
            self._writing.result()
            self._writing = None

    @property
    def gain(self) -> float:
        """The deviation of the next step's noise over that of independent noise; NaN when no step is left."""
        if self.remaining == 0:
            return math.nan
        return 1.0 if self._correlation is None else self._correlation.gain(self._next)

    @property
    def noise_to_signal(self) -> float:
        """σC√d over the norm of the noisy sum of the last step: 1 where all is noise, near 0 where little is.

        It is made from the noisy sum and public constants alone. NaN before the first step.
        """
        if self._signal is None:
            return math.nan
        norm = self._signal.item()
        return self._floor / norm if norm > 0 else 0.0

    @torch.no_grad()
    def release(self, parameters: dict[str, nn.Parameter]) -> None:
        """End the logical batch: write the noisy sum, divided by the public batch size, into each parameter's ``grad``.

        With several ranks, each has clipped a share of the batch. The leading one adds the noise to its own partial
        sum, and then the partial sums are added up once. Of a parameter that is cut over ranks the clipper has added
        up the parts already, and each rank's part gets noise of its own.

        Args:
            parameters: the trainable parameters by name.
        """
        position = self.position()
        clipped = self._clipper.take()
        self.wait_for_disk()
        noisy = self._noised(clipped, position)
        gradients = noisy.gradients.values()
        self._next += 1
        self._signal = shards.norm(gradients)  # in float32: it is shown, and nothing rests on it
        self._floor = noisy.deviation * math.sqrt(sum(gradient.numel() for gradient in gradients))
        hand_over(parameters, noisy, denominator=self._plan.expected_batch_size)

    def _noised(self, clipped: ClippedSum, position: int) -> NoisySum:
        """The clipped sum with the noise of this position; that of the next one is begun where a core is idle."""
        multiplier, source = self._plan.noise_multiplier, self._noise.child(position)
        if not self._exact:
            return add_float32_noise(clipped, multiplier=multiplier, source=source, ranks=self._ranks)
        if self._correlation is not None:
            return self._correlated(clipped, position, self._correlation)
        drawn = self._ahead.take(position) if self._ahead is not None else {}
        noisy = add_noise(clipped, multiplier=multiplier, source=source, ranks=self._ranks, drawn=drawn)
        if self._ahead is not None and self.remaining > 1:
            self._ahead.begin(
                position + 1,
                rows=rows(clipped.gradients, lead=self._ranks.lead),
                deviation=grid_of(clipped, self._ranks).deviation(multiplier),
                source=self._noise.child(position + 1),
            )
        return noisy

    def _correlated(self, clipped: ClippedSum, position: int, correlation: Correlation) -> NoisySum:
        """The clipped sum with correlated noise."""
        multiplier, source = self._plan.noise_multiplier, self._noise.child(position)
        made = correlation.draw(
            position,
            rows=rows(clipped.gradients, lead=self._ranks.lead),
            deviation=grid_of(clipped, self._ranks).deviation(multiplier),
            source=source,
        )
        return add_noise(
            clipped, multiplier=multiplier, source=source, ranks=self._ranks, drawn=made.rows, gain=made.gain
        )

    def finish(self, optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> None:
        """End the logical batch and let the optimizer move along the noisy sum, which stays until the next begins.

        Args:
            optimizer: the user's optimizer.
            parameters: the trainable parameters by name.
        """
        self.release(parameters)
        optimizer.step()

    @contextmanager
    def voiding(self) -> Generator[None]:
        """Inside, an interaction between examples that is found after a step was released voids the ledger's claim.

        Raises:
            InteractionError: the one that was found, after the ledger has it.
        """
        try:
            yield
        except InteractionError as found:
            self.wait_for_disk()
            if self._next > 0:
                self._ledger.void(str(found))
            raise

    def settle(self) -> None:
        """A clean stop: the ledger learns how many of the reserved events took effect, and gives the others back."""
        self.wait_for_disk()
        if self._unsettled:
            self._note_checks()
            self._ledger.settle(self._next)
            self._unsettled = False

    def history(self, ledger: Ledger) -> History:
        """What the ledger says, with the checks that it will be told of when the run stops.

        Args:
            ledger: the run's ledger file.
        """
        history, checks = ledger.history, self._clipper.checks
        if checks is None:
            return history
        return replace(history, checked=(history.checked or 0) + checks.checked - self._noted)

    def _note_checks(self) -> None:
        checks = self._clipper.checks
        if checks is not None:
            self._ledger.note_checks(checks.checked - self._noted)
            self._noted = checks.checked


def hand_over(parameters: dict[str, nn.Parameter], noisy: NoisySum, *, denominator: float) -> None:
    """Put ``noisy / denominator`` into each parameter's ``grad``, in the parameter's type; the noisy sum is used up.

    Args:
        parameters: the trainable parameters by name.
        noisy: the noisy sum by parameter.
        denominator: the public batch size, in examples.
    """
    for name, gradient in noisy.gradients.items():
        parameter = parameters[name]
        parameter.grad = gradient.div_(denominator).to(parameter.dtype)


@final
class Follower:
    """In the ledger's place on a rank that does not lead: it counts the leader's positions, and writes nothing."""

    def __init__(self, position: int) -> None:
        self.position = position

    def reserve(self, _event: object, *, times: int) -> None:
        """Count what the leading rank reserves on disk before it releases anything.

        Args:
            _event: not read: the leading rank prices it.
            times: how many events are reserved.
        """
        self.position += times

    def advance(self, _event: object, *, span: int) -> None:  # noqa: ARG002 — the leader's ledger prices it
        """Count the position that the leading rank begins.

        Args:
            _event: not read: the leading rank prices it.
            span: positions of one event.
        """
        self.position += 1

    def void(self, reason: str) -> None:
        """Nothing: the leading rank finds the same and records it.

        Args:
            reason: as the leading rank writes it.
        """

    def note_checks(self, checked: int) -> None:
        """Nothing: the leading rank checks the same steps.

        Args:
            checked: how many steps were checked.
        """

    def settle(self, position: int) -> None:
        """Count what the leading rank gives back.

        Args:
            position: the first position that is free again.
        """
        self.position = position

    def close(self) -> None:
        """Nothing to close."""


def check_optimizer(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Refuse an optimizer that moves other tensors than the model's trainable parameters.

    Args:
        optimizer: the user's optimizer.
        parameters: the trainable parameters by name.

    Raises:
        PrivacyError: the optimizer holds a tensor that the model does not, or lacks one of the model's. The usual
            cause is an optimizer made before the model was moved to a device, or before adapters were added.
    """
    ours = {id(parameter) for parameter in parameters}
    theirs = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
    strangers = sum(id(parameter) not in ours for parameter in theirs)
    missing = len(ours - {id(parameter) for parameter in theirs})
    if strangers or missing:
        raise PrivacyError(
            f"optimizer={type(optimizer).__name__}: {strangers} of its tensors are not the model's and {missing} of "
            "the model's are not in it; make the optimizer after the model has its final parameters and device"
        )
