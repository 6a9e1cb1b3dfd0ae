# SPDX-License-Identifier: Apache-2.0
"""Several processes, one private step: one sample shared out, clipped sums added up once, one noise.

Rank 0 leads: it alone owns the ledger and draws the noise, which it adds to its own part of the sum before the parts
meet. So the total carries exactly one noise whatever the number of ranks, all ranks hold the same total to the last
bit, and no rank can see a step that the ledger has not reserved.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor, distributed

from privguard.training import shards

T = TypeVar("T")

_BUCKET = 1 << 24  # numbers that travel together: 64 MiB of float32


@final
@dataclass(frozen=True)
class Ranks:
    """The processes of a run: this one is number ``rank`` of ``size``, and number 0 leads."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Those of ``torch.distributed`` where it is initialised, else this process alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def lead(self) -> bool:
        """Whether this process owns the ledger and the noise."""
        return self.rank == 0

    def from_lead(self, action: Callable[[], T]) -> T:
        """What ``action`` returns, or raises, on the leading process; the others do not run it and get the same."""
        if self.size == 1:
            return action()
        said: list[Any] = [None]
        error: Exception | None = None
        if self.lead:
            try:
                said = [(action(), None)]
            except Exception as caught:
                error, said = caught, [(None, caught)]
        distributed.broadcast_object_list(said, src=0)
        value, theirs = said[0]
        if error is not None or theirs is not None:
            raise error or theirs
        return cast("T", value)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in order on the leading process, an empty list on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.gather_object(value, found if self.lead else None, dst=0)
        return found if self.lead else []

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in place; equal to the last bit on every rank."""
        if self.size == 1:
            return
        for bucket in _buckets(list(tensors)):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            distributed.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def copy_from_lead(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor by the leading process's; one that is cut over ranks has no copies to differ."""
        if self.size > 1:
            for tensor in tensors:
                if not shards.is_cut(tensor):
                    distributed.broadcast(tensor.data, src=0)


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    """Neighbours of about a bucket's size; cut in the same places on every rank, since the shapes are."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(one.numel() for one in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
