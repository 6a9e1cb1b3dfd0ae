# SPDX-License-Identifier: Apache-2.0
"""From a data set to physical batches: Poisson draws fetched by torch's DataLoader, masks kept beside them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data.dataloader import default_collate

from privguard import _check
from privguard._random import Stream
from privguard.errors import PrivacyError
from privguard.training import structure
from privguard.training.ranks import Ranks
from privguard.training.sampling.identity import require_once
from privguard.training.sampling.sample import PhysicalBatch, Sampler, cut
from privguard.training.sampling.users import Users


@final
class PoissonLoader:
    """Yields (physical batch, its data) for the ledger positions from ``start`` to ``stop``.

    Workers may fetch ahead: a draw is a function of its position alone, so what was fetched and never used is drawn
    again, and the same, when its position is taken after all.

    ``source`` is the stream whose child number ``i`` draws the batch of position ``i``; ``limit`` is the most records
    of a physical batch. With ``users``, users are drawn instead of records, and ``limit`` still counts records; each of
    several ``ranks`` fetches its own share of the same draw.
    """

    def __init__(
        self,
        data: DataLoader[Any],
        *,
        sampler: Sampler,
        source: Stream,
        limit: int,
        users: Users | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._loader = data
        self._sampler = sampler
        self._source = source
        self._users = users
        self._ranks = ranks or Ranks()
        self._limit = limit if users is None else max(1, limit // users.most)
        self._units = examples_of(data) if users is None else len(users)

    def __call__(self, start: int, stop: int) -> Iterator[tuple[PhysicalBatch, Any]]:
        """Fetch the positions ``start`` … ``stop - 1`` in order."""
        ahead: deque[PhysicalBatch] = deque()

        def records() -> Iterator[Sequence[int]]:
            for batch in self._draw(start, stop):
                ahead.append(batch)
                yield batch.records

        for fetched in fetch(self._loader, records()):
            yield ahead.popleft(), fetched

    def _draw(self, start: int, stop: int) -> Iterator[PhysicalBatch]:
        ranks = self._ranks
        for position in range(start, stop):
            source = self._source.child(position)
            drawn = self._sampler.draw(examples=self._units, source=source, position=position)
            pieces = cut(drawn, position=position, limit=self._limit, rank=ranks.rank, ranks=ranks.size)
            yield from pieces if self._users is None else (self._users.expand(piece, source) for piece in pieces)


def fetch(loader: DataLoader[Any], records: Iterator[Sequence[int]]) -> Iterator[Any]:
    """Collated data for each list of records, by the loader's own data set, collate function and workers.

    A ``TensorDataset`` with the default collate function is indexed at once, which gives the same tensors without a
    Python call for each record.
    """
    if type(loader.dataset) is TensorDataset and loader.collate_fn is default_collate and loader.num_workers == 0:
        return _index(loader.dataset.tensors, records, pin=loader.pin_memory and torch.cuda.is_available())
    return iter(
        DataLoader(
            loader.dataset,
            batch_sampler=records,  # type: ignore[arg-type] — any iterable of index lists does; the stub wants a Sampler
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            generator=torch.Generator(),  # the worker's base seed; leaves the global generator alone
        )
    )


def refuse_stream(dataset: object) -> None:
    """Raise PrivacyError for a data set whose records cannot be chosen by number."""
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise PrivacyError(
            f"dataset={type(dataset).__name__}: its length is unknown or its records come in an order of their own, so "
            "no record can be in a batch with a known probability; use a data set with __len__ and __getitem__ "
            "(datasets.Dataset.from_generator makes one of a stream)"
        )


def _index(tensors: Sequence[Tensor], records: Iterator[Sequence[int]], *, pin: bool) -> Iterator[list[Tensor]]:
    for chosen in records:
        index = torch.as_tensor(chosen)
        rows = [tensor[index] for tensor in tensors]
        yield [row.pin_memory() if pin and not row.is_cuda else row for row in rows]


def examples_of(loader: DataLoader[Any]) -> int:
    """Number of records in the loader's data set.

    Raises:
        PrivacyError: the data set cannot be Poisson-sampled, or the loader samples in a way that would silently be
        replaced.
    """
    dataset: Dataset[Any] = loader.dataset
    refuse_stream(dataset)
    sampler = loader.sampler
    shuffled = isinstance(sampler, RandomSampler) and not sampler.replacement
    if not (shuffled or isinstance(sampler, SequentialSampler)) or not _plain_batches(loader):
        raise PrivacyError(
            f"sampler={type(sampler).__name__}: the accountant prices Poisson sampling alone, and replacing your "
            "sampler would change what you train on; give a loader with shuffle=True, and weigh records in the loss"
        )
    require_once(dataset)
    return len(dataset)  # type: ignore[arg-type] — checked above


def rows_at_once(loader: DataLoader[Any]) -> int | None:
    """The batch size of a loader, also where it is that of the ``batch_sampler`` which it was given."""
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)


def _plain_batches(loader: DataLoader[Any]) -> bool:
    """Whether the loader cuts batches as torch's own sampler does, so that replacing it loses nothing."""
    return type(loader.batch_sampler) is BatchSampler or loader.batch_sampler is None


def rows_of(fetched: Any) -> int | None:
    """Size of dimension 0 of the first tensor in a batch that has dimensions, None where there is none."""
    return next((len(tensor) for tensor in structure.tensors(fetched) if tensor.ndim), None)


def shapes_of(fetched: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of the tensors in a batch, without dimension 0; public, as the shapes of records are."""
    return tuple(tuple(tensor.shape[1:]) for tensor in structure.tensors(fetched))


def check_rows(fetched: Any, batch: PhysicalBatch) -> None:
    """Refuse data that does not have one row for each record that was drawn."""
    rows = rows_of(fetched)
    _check.require(
        rows == len(batch.records),
        "rows",
        rows,
        wanted=f"{len(batch.records)}, one for each record that was drawn",
        remedy="the collate function has to keep one row for each record, in dimension 0",
    )


def unit_losses(losses: Tensor, batch: PhysicalBatch) -> Tensor:
    """Losses (rows,) to one for each unit, (units,): a row's own, or the mean over the true rows of a user."""
    if batch.kept is None or losses.shape != (len(batch.records),):
        return losses  # a wrong shape is refused where the losses go backward
    kept = torch.from_numpy(batch.kept).to(losses.device).view(len(batch.mask), -1)
    rows = losses.view(len(batch.mask), -1)
    return torch.where(kept, rows, 0).sum(1) / kept.sum(1)


Move = Callable[[Any], Any]


def to_device(device: torch.device) -> Move:
    """A function that moves the tensors of a batch to ``device`` and leaves all else as it is."""
    return lambda batch: structure.tensors_mapped(lambda tensor: tensor.to(device, non_blocking=True), batch)
