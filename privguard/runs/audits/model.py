# SPDX-License-Identifier: Apache-2.0
"""``privguard audit model``: by how much one record moves the clipped sum of a user's own model, loss and collator.

The measure is taken on the clipper that training would use, on synthetic records or on public ones: a batch of each
size, and the same batch without one of its records. It is a test of the bound that every claim rests on, and no proof.
"""

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import nn

from privguard import _check
from privguard.records import Sensitivity
from privguard.training import structure as trees
from privguard.training.clip import ROUNDING, Clipper
from privguard.training.probes.examples import choose
from privguard.training.probes.fields import make, structure_of
from privguard.training.probes.gradients import Losses, untouched
from privguard.training.sampling.batches import rows_of

_SHARE = 0.5  # of the median norm: most records are clipped, and some are not


def audit_model(  # noqa: PLR0913 — the user's three objects, and what a person chooses about the measurement
    model: nn.Module,
    losses: Losses,
    batch: Any,
    *,
    max_grad_norm: float | None = None,
    largest: int = 8,
    pairs: int = 200,
    public: bool = False,
    seed: int = 0,
    on_pair: Callable[[int], None] = lambda _: None,
) -> Sensitivity:
    """Move of the clipped sum when one record is left out, over ``pairs`` pairs of batches.

    Args:
        model: the model as it would be trained; it is given back as it was.
        losses: its forward and loss, batch → (B,).
        batch: a collated batch, for its shapes and types.
        max_grad_norm: the clipping norm; by default half the median norm of single records.
        largest: sizes of the batches go from 1 to this.
        pairs: how many pairs are compared.
        public: take the records from ``batch``, which has to be public, instead of synthetic ones.
        seed: of the records and the pairs.
        on_pair: called with the number of pairs done.

    Raises:
        SensitivityError: the probe found that examples interact, so no claim could be made.
        UnsupportedModelError: a module mixes examples, or the model takes no synthetic records.
    """
    _check.count("largest", largest)
    _check.count("pairs", pairs)
    clipper, slow = choose(model, losses, structure_of(batch), max_grad_norm=max_grad_norm or 1.0)
    source = torch.Generator().manual_seed(seed)
    try:
        with untouched(model):
            sums = _Sums(model, clipper, losses, batch, public=public, source=source)
            scale = 1.0 if max_grad_norm is not None else sums.scale()
            worst, place = 0.0, (0, 0)
            for number, (size, left_out) in enumerate(_pairs(pairs, largest, source), start=1):
                moved = sums.moved(size, left_out, scale)
                if not moved <= worst:
                    worst, place = moved, (size, left_out)
                on_pair(number)
    finally:
        clipper.close()
    return Sensitivity(
        moved=worst,
        pairs=pairs,
        largest=largest,
        worst_size=place[0],
        worst_record=place[1],
        records="public" if public else "synthetic",
        model=type(model).__name__,
        clipping=type(clipper).__name__ if slow is None else f"{type(clipper).__name__}: {slow}",
        max_grad_norm=max_grad_norm if max_grad_norm is not None else 1.0 / scale,
    )


def _pairs(count: int, largest: int, source: torch.Generator) -> Iterator[tuple[int, int]]:
    """The size of a batch, every one in turn, and the record that is left out."""
    for number in range(count):
        size = 1 + number % largest
        yield size, int(torch.randint(size, (), generator=source))


@final
class _Sums:
    """Clipped sums of batches of one source of records."""

    def __init__(
        self,
        model: nn.Module,
        clipper: Clipper,
        losses: Losses,
        batch: Any,
        *,
        public: bool,
        source: torch.Generator,
    ) -> None:
        self._clipper, self._losses, self._source = clipper, losses, source
        self._device = next(model.parameters()).device
        self._batch, self._rows = batch if public else None, rows_of(batch) or 0
        self._structure = structure_of(batch)

    def scale(self) -> float:
        """What losses are multiplied by, so that the clipping norm of 1 is half the median norm of a record."""
        with self._clipper.unclipped():
            norms = [self._norm(self._sum(self._drawn(1), 1, 1.0)) for _ in range(9)]
        median = torch.tensor(norms).median().item()
        return 1.0 / (_SHARE * median) if median > 0 else 1.0

    def moved(self, size: int, left_out: int, scale: float) -> float:
        """The move of the sum, over the clipping norm."""
        batch = self._drawn(size)
        rest = [row for row in range(size) if row != left_out]
        whole = self._sum(batch, size, scale)
        part = self._sum(_rows(batch, rest, size), len(rest), scale) if rest else {}
        difference = {name: value - part[name] if part else value for name, value in whole.items()}
        return self._norm(difference) / self._clipper_norm

    def _drawn(self, size: int) -> Any:
        if self._batch is None:
            seed = int(torch.randint(2**31, (), generator=self._source))
            return make(self._structure, size, seed=seed, device=self._device)
        chosen = torch.randint(self._rows, (size,), generator=self._source).tolist()
        batch = _rows(self._batch, chosen, self._rows)
        return trees.tensors_mapped(lambda tensor: tensor.to(self._device), batch)

    def _sum(self, batch: Any, size: int, scale: float) -> dict[str, torch.Tensor]:
        """Book-keeping takes all rows at once, and the slow way one after the other."""
        groups = [list(range(size))] if self._clipper.rows is None else [[row] for row in range(size)]
        torch.default_generator.manual_seed(0)
        for rows in groups:
            self._clipper.begin(torch.ones(len(rows), dtype=torch.bool))
            with torch.enable_grad():
                self._clipper.backward(scale * self._losses(_rows(batch, rows, size)))
        clipped = self._clipper.take()
        self._clipper_norm = clipped.l2_bound / (1 + ROUNDING)
        return clipped.gradients

    @staticmethod
    def _norm(gradients: dict[str, torch.Tensor]) -> float:
        return float(torch.stack([value.double().norm() for value in gradients.values()]).norm())


def _rows(batch: Any, rows: list[int], of: int) -> Any:
    """The rows of a batch of ``of`` records, in this order."""

    def chosen(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf[rows] if leaf.ndim and len(leaf) == of else leaf
        return [leaf[row] for row in rows] if listed(leaf) else leaf

    def listed(leaf: Any) -> bool:
        return isinstance(leaf, list) and len(leaf) == of and not trees.tensors(leaf)

    return trees.mapped(chosen, batch, whole=listed)
