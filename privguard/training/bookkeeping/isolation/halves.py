# SPDX-License-Identifier: Apache-2.0
"""While training: do the losses of some examples reach rows of others? Asked of what is really sent backward.

The examples of a batch are cut into two random halves. The losses of one half alone go backward, and at every tap the
gradient has to be exactly zero in the rows of the other half; then the halves are exchanged. Rows that do not influence
each other get sums of products with an exact zero, so a sound program never fails, in whatever types it computes. An
interaction of example i with example j is seen if the two fall into different halves: one time in two for each pair.

A step is checked by a draw that is public: the first two, and then one of 32 at random, the same on all ranks. So the
draw tells nothing of the data or of how many records a step has. What fails is a fault of the program that some batch
shows; the message names the place and no row.
"""

import random
from typing import final

import torch
from torch import Tensor, distributed

from privguard.errors import InteractionError
from privguard.training.bookkeeping.batch import Batch

_FIRST = 2  # steps that are checked whatever the draw says
_FIRST_OF_MANY_ROWS = 8  # the same where a tap sees other than one row for each example: that is where packing lives
_ONE_OF = 32


@final
class HalfChecks:
    """Which steps are checked, how many were, and the check itself.

    ``steps`` counts those that were begun since the model was attached, ``checked`` those of them that were checked.
    """

    def __init__(self, seed: str = "") -> None:
        self.steps = self.checked = 0
        self.seed(seed)
        self._due = self._counted = False
        self._rows: dict[object, float] = {}
        self.many_rows = False
        self.impossible = ""

    def seed(self, seed: str) -> None:
        """Draw by a public word, such as the name of the run, which all ranks share."""
        self._when = random.Random(f"privguard half checks {seed}")  # noqa: S311 — public, and no secret's mask
        self._which = torch.Generator().manual_seed(random.Random(f"halves {seed}").getrandbits(63))  # noqa: S311

    def begin_step(self) -> None:
        """The first physical batch of a logical one is about to go forward."""
        first = _FIRST_OF_MANY_ROWS if self.many_rows else _FIRST
        self._due = self._when.random() < 1 / _ONE_OF or self.steps < first
        self._counted = False
        self.steps += 1

    @property
    def due(self) -> bool:
        """Whether the step under way is checked by the draw."""
        return self._due

    def wanted(self, batch: Batch, *, together: bool) -> bool:
        """Whether this batch is to be checked.

        Besides the draw: where a tap sees other than one row for each example, and not so many of them as in an earlier
        batch of the same shapes. Ranks that go backward ``together`` are held to the draw.
        """
        changed = False
        for place, rows in batch.rows_at.items():
            if rows != batch.rows:
                self.many_rows = True
                key, each = (batch.shapes, place), rows / batch.size
                changed |= self._rows.setdefault(key, -1) != each
                self._rows[key] = each
        early = self.many_rows and self.steps <= _FIRST_OF_MANY_ROWS
        return self._due or early or (changed and not together)

    def check(self, losses: Tensor, batch: Batch, *, together: bool) -> None:
        """Send both halves backward, without gradients of weights.

        Raises:
            InteractionError: a loss reaches a row of an example in the other half; on all ranks, if on one.
        """
        if self.impossible or (batch.size == 1 and not together):
            return
        half = self._half(batch.size)
        for mine in (half, ~half):
            batch.half, batch.reaches = mine.to(losses.device), []
            try:
                self._send(losses, (mine & batch.mask).to(losses))
            finally:
                batch.half = None
            place = _first_reached(batch)
            if on_any_rank(place is not None, losses.device, together=together):
                raise InteractionError(
                    f"module={place!r}: the losses of some examples reach rows of other examples; use no negatives "
                    "and no means from the batch, and put several rows of one example side by side "
                    "(x.repeat_interleave(2, 0), not torch.cat([x, x])); or pass losses= where the run begins, so that "
                    "the probe can choose a slower way"
                )
        if self._due and not self._counted and not self.impossible:
            self.checked, self._counted = self.checked + 1, True

    def _half(self, size: int) -> Tensor:
        """A random half, neither empty nor all of them where there are two or more."""
        order = torch.randperm(size, generator=self._which)
        half = torch.rand(size, generator=self._which) < 0.5  # noqa: PLR2004
        half[order[0]], half[order[-1]] = True, size == 1
        return half

    def _send(self, losses: Tensor, weights: Tensor) -> None:
        try:
            torch.autograd.grad(losses, Batch.root, weights, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" in str(error):  # such a graph takes a plain backward alone; no parameter is in it
                torch.autograd.backward(losses, weights, retain_graph=True)
            else:  # what a compiler made gives its buffers away in the first backward
                self.impossible = "the graph of a compiled part can be gone through once"


def _first_reached(batch: Batch) -> str | None:
    """The module at whose tap rows of the other half were reached, if any."""
    if not batch.reaches:
        return None
    flags = torch.stack([reached for _, reached in batch.reaches]).tolist()  # one wait for a GPU
    return next((name for (name, _), flag in zip(batch.reaches, flags, strict=True) if flag), None)


def on_any_rank(here: bool, device: torch.device, *, together: bool) -> bool:  # noqa: FBT001
    """Whether it holds on any rank, where ranks go backward ``together``; all of them have to ask."""
    if not together:
        return here
    flag = torch.tensor(int(here), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)
