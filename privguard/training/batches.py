"""From a data set to physical batches: Poisson draws fetched by torch's DataLoader, masks kept beside them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, TensorDataset
from torch.utils.data.dataloader import default_collate

from privguard._random import Stream
from privguard.errors import PrivacyError
from privguard.training.sample import PhysicalBatch, Poisson, cut


@final
class PoissonLoader:
    """Yields (physical batch, its data) for the ledger positions from ``start`` to ``stop``.

    Workers may fetch ahead: a draw is a function of its position alone, so what was fetched and never used was never
    drawn as far as anybody can see.
    """

    def __init__(self, data: DataLoader[Any], *, sampler: Poisson, source: Stream, limit: int) -> None:
        self._loader = data
        self._sampler = sampler
        self._source = source
        self._limit = limit
        self._examples = examples_of(data)

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
        for position in range(start, stop):
            drawn = self._sampler.draw(examples=self._examples, source=self._source.child(position))
            yield from cut(drawn, position=position, limit=self._limit)


def fetch(loader: DataLoader[Any], records: Iterator[Sequence[int]]) -> Iterator[Any]:
    """Collated data for each list of records, by the loader's own data set, collate function and workers.

    A ``TensorDataset`` with the default collate function is indexed at once, which gives the same tensors without a
    Python call for each record.
    """
    if isinstance(loader.dataset, TensorDataset) and loader.collate_fn is default_collate and loader.num_workers == 0:
        return _index(loader.dataset.tensors, records)
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


def _index(tensors: Sequence[Tensor], records: Iterator[Sequence[int]]) -> Iterator[list[Tensor]]:
    for chosen in records:
        index = torch.as_tensor(chosen)
        yield [tensor[index] for tensor in tensors]


def examples_of(loader: DataLoader[Any]) -> int:
    """Number of records in the loader's data set.

    Raises:
        PrivacyError: the data set cannot be Poisson-sampled, or the loader samples in a way that would silently be
        replaced.
    """
    dataset: Dataset[Any] = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise PrivacyError(
            f"dataset={type(dataset).__name__}: its length is unknown, so no record can be in a batch with a known "
            "probability; use a data set with __len__ and __getitem__"
        )
    sampler = loader.sampler
    shuffled = isinstance(sampler, RandomSampler) and not sampler.replacement
    if not (shuffled or isinstance(sampler, SequentialSampler)) or not _plain_batches(loader):
        raise PrivacyError(
            f"sampler={type(sampler).__name__}: the accountant prices Poisson sampling alone, and replacing "
            "your sampler would "
            "change what you train on; give a loader with shuffle=True and weigh or group records in the data set"
        )
    return len(dataset)  # type: ignore[arg-type] — checked above


def _plain_batches(loader: DataLoader[Any]) -> bool:
    from torch.utils.data import BatchSampler

    return type(loader.batch_sampler) is BatchSampler or loader.batch_sampler is None


def rows_of(fetched: Any) -> int | None:
    """Size of dimension 0 of the first tensor found in nested data, None where there is none."""
    if isinstance(fetched, Tensor):
        return fetched.shape[0] if fetched.ndim else None
    values: Sequence[Any] = []
    if isinstance(fetched, dict):
        values = list(fetched.values())
    elif isinstance(fetched, list | tuple):
        values = list(fetched)
    return next((rows for value in values if (rows := rows_of(value)) is not None), None)


Move = Callable[[Any], Any]


def to_device(device: torch.device) -> Move:
    """A function that moves nested data to ``device``."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(move(item) for item in value)
        return value

    return move
