# SPDX-License-Identifier: Apache-2.0
"""The user's own loop as the probe, where the loop's loss is not shown: its first turns get synthetic batches.

Nothing is counted, no weight moves and no event is reserved meanwhile. The gradient of one record is taken beside four
others, two and none, and beside another one, and is compared with what the clipper finds; see
``privguard.training.probes.examples`` for why on float32 copies. Dropout is off; a loop that switches it on again in
each turn is compared in batches of the same shape alone.
"""

import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from privguard import _check
from privguard.errors import PrivacyError, SensitivityError, UnsupportedModelError
from privguard.training import structure as trees
from privguard.training.clip import Clipper, gradients_of, trainable
from privguard.training.probes.examples import EXACT, IGNORED, SAME, SIZES
from privguard.training.probes.fields import (
    Field,
    Structure,
    companies,
    exchanged,
    first_rows,
    in_float32,
    is_field,
    make,
    repeated,
    swapped,
)
from privguard.training.probes.gradients import (
    Gradients,
    float32_copies,
    is_finite,
    largest_change,
    only,
    untouched,
    without_dropout,
)

_RECORD = 0  # whose gradient is followed
_REMEDY = "pass losses= where the run begins, or RunOptions(rehearsal=False), which claim and report then say"


@final
class Rehearsal:
    """Hands out synthetic batches by ``turns``, takes their losses by ``backward``, and refuses or returns.

    ``structure`` is of a batch as the loop gets it.
    """

    def __init__(self, model: nn.Module, clipper: Clipper, structure: Structure) -> None:
        self._model, self._clipper = model, clipper
        self._device = next(model.parameters()).device
        self._structure = trees.named(_with_ignored, structure, whole=is_field)
        self._size = 0
        self._by_clipper = self._answered = self._dropout = False
        self._gradients: Gradients = {}
        self._losses = torch.zeros(0)

    def turns(self) -> Iterator[Any]:
        """The synthetic batches, one for each turn of the loop.

        Raises:
            SensitivityError: the record's gradient depends on the others, or on their number.
            UnsupportedModelError: the clipper does not find the record's gradient, or a buffer takes data in.
            PrivacyError: the loop did not send the losses backward.
        """
        with untouched(self._model), without_dropout(self._model), float32_copies(self._model):
            whole, other = (in_float32(make(self._structure, SIZES[0], seed=n, device=self._device)) for n in (4, 5))
            before = self._buffers()
            yield from self._turn(whole, SIZES[0], watched=True)
            moving = self._changed(before)  # after the next turns, not because of the records
            self._restore(before)
            whole = swapped(whole, _RECORD, int(self._losses.argsort()[SIZES[0] // 2]))
            yield from self._turn(whole, SIZES[0])
            beside, losses, kept = self._gradients, self._losses, self._buffers()
            self._restore(before)
            yield from self._turn(exchanged(whole, other, SIZES[0] - 1), SIZES[0])
            self._compare(beside, "another record stands in the batch")
            self._refuse_buffers(self._changed(kept))
            for company in self._others(whole, losses):
                yield from self._turn(exchanged(company, whole, _RECORD), SIZES[0])
                self._compare(beside, "all other records are exchanged")
            for size in SIZES[1:]:
                before = self._buffers()
                yield from self._turn(first_rows(whole, size, of=SIZES[0]), size, watched=size > 1)
                self._refuse_buffers(self._changed(before) - moving)
                if not self._dropout:
                    self._compare(beside, f"the batch has {size} records instead of {SIZES[0]}")
            self._by_clipper = True
            with self._clipper.unclipped():
                self._clipper.begin(only(SIZES[0], _RECORD))
                yield from self._turn(whole, SIZES[0])
            self._check_exact(beside)

    def backward(self, losses: Tensor) -> None:
        """Take the losses of the open turn, (B,)."""
        _check.require(
            tuple(losses.shape) == (self._size,),
            "losses.shape",
            tuple(losses.shape),
            wanted=f"({self._size},), one loss per example",
            remedy="pass reduction='none' and reduce over everything but the examples",
        )
        self._answered, self._losses = True, losses.detach()
        self._dropout |= any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training for m in self._model.modules())  # noqa: SLF001
        self._dropout |= self._model.training
        if self._by_clipper:
            self._clipper.backward(losses)
            self._gradients = self._clipper.take().gradients
            return
        parameters = trainable(self._model)
        gradients = gradients_of(losses[_RECORD], parameters)
        self._gradients = {
            name: gradients[name] if name in gradients else torch.zeros_like(parameter).float()
            for name, parameter in parameters.items()
        }

    def _others(self, whole: Any, losses: Tensor) -> Iterator[Any]:
        """Batches of other records: far from zero, and then each the one with the largest or the smallest loss so far.

        So the record, whose loss is in the middle, is once the easiest of its batch, and once the hardest.
        """
        far = in_float32(next(companies(self._structure, SIZES[0], device=self._device)))
        yield far
        seen = [*losses[1:], *self._losses[1:]]
        for place in (max(range(len(seen)), key=seen.__getitem__), min(range(len(seen)), key=seen.__getitem__)):
            source, row = (whole, place + 1) if place < len(losses) - 1 else (far, place + 2 - len(losses))
            yield repeated(source, row)

    def _turn(self, batch: Any, size: int, *, watched: bool = False) -> Iterator[Any]:
        self._size, self._answered = size, False
        torch.default_generator.manual_seed(0)
        np.random.set_state(np.random.RandomState(0).get_state())  # noqa: NPY002 — `untouched` puts it back
        random.setstate(random.Random(0).getstate())  # noqa: S311 — synthetic data
        if self._device.type == "cuda":
            torch.cuda.manual_seed(0)
        with self._clipper.rehearsal(size) if watched else nullcontext():
            yield batch
        if not self._answered:
            raise PrivacyError(f"rehearsal: private.backward was not called for a synthetic batch; {_REMEDY}")

    def _compare(self, beside: Gradients, when: str) -> None:
        name, change = largest_change(beside, self._gradients)
        if is_finite(beside) and is_finite(self._gradients) and not change <= SAME:
            raise SensitivityError(
                f"rehearsal: an example's gradient of {name!r} changed by {change:.2g} of its norm when {when}; take "
                "the mean of each example's own loss, divide by no batch size, and use no negatives, no statistics and "
                f"no state from other examples; where it is synthetic data that misleads, {_REMEDY}"
            )

    def _check_exact(self, beside: Gradients) -> None:
        name, change = largest_change(beside, self._gradients)
        if is_finite(beside) and not self._dropout and not change <= EXACT:
            raise UnsupportedModelError(
                f"rehearsal: the gradient found for parameter {name!r} is off by {change:.2g} of the norm, or depends "
                "on the batch before; pass losses= where the run begins, so that the probe can choose a slower way"
            )

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self._model.named_buffers()}

    def _restore(self, buffers: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                if name in buffers and buffers[name].shape == buffer.shape:
                    buffer.copy_(buffers[name])

    def _changed(self, before: dict[str, Tensor]) -> set[str]:
        now = self._buffers().items()
        return {n for n, v in now if n in before and not torch.equal(v.nan_to_num(), before[n].nan_to_num())}

    @staticmethod
    def _refuse_buffers(names: set[str]) -> None:
        if names:
            raise UnsupportedModelError(
                f"buffer={min(names)!r}: takes the data in during the forward, where no noise protects it; freeze or "
                "remove it"
            )


def _with_ignored(leaf: Any, name: str) -> Any:
    """−100 among the labels of several places; elsewhere a loop may not take it, and nothing can be tried out here."""
    labels = isinstance(leaf, Field) and leaf.whole_numbers and leaf.shape and "label" in name
    return replace(leaf, ignore=IGNORED) if labels else leaf
