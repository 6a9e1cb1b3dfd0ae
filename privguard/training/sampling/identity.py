# SPDX-License-Identifier: Apache-2.0
"""Which record each index of a data set is: so that a record twice, or one that is also evaluated on, is found.

Data sets are views of each other: subsets, concatenations, selections. Each index is followed down to the record under
it, a pair (what it lies in, which row of it): for tensors and Arrow columns the memory itself, so that two data sets
over one table are one. Equal content in two places is two records; no code can tell a copy from a twin.
"""

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from privguard.errors import PrivacyError

Places: TypeAlias = NDArray[np.int64]
"""Two columns for each index of a data set: what the record lies in, and its row there."""

_CONTAINERS = (dict, list, set, np.ndarray, Tensor)


def places(dataset: Any) -> Places:
    """Where the record of each index lies, shape (len(dataset), 2); equal rows are one record."""
    if isinstance(dataset, Subset):
        inner = cast("Any", dataset)
        return _chosen(places(inner.dataset), np.asarray(inner.indices, np.int64))
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([places(part) for part in cast("Any", dataset).datasets])
    return _base(dataset)


def _base(dataset: Any) -> Places:
    """The places of a data set that is no view of others."""
    if isinstance(dataset, TensorDataset):
        return _tensor(max(dataset.tensors, key=lambda tensor: tensor.nbytes), dataset)
    if hasattr(dataset, "_indices") and hasattr(dataset, "_data"):  # datasets.Dataset
        rows = _table(dataset)
        chosen = dataset._indices  # noqa: SLF001 — where a selection is kept
        return rows if chosen is None else _chosen(rows, chosen.column(0).to_numpy().astype(np.int64))
    if isinstance(dataset, list) and all(isinstance(record, _CONTAINERS) for record in cast("list[Any]", dataset)):
        return _rows(np.array([id(record) for record in cast("list[Any]", dataset)], np.int64), 0)
    return _rows(np.full(len(dataset), id(dataset), np.int64), np.arange(len(dataset)))


def require_once(dataset: Any, *, owners: Sequence[Hashable] | None = None) -> None:
    """Refuse a data set that holds a record more than once, since each copy moves the sum by a clipping norm.

    ``owners`` names the user of each record, where users are the unit: a user's own record twice is one contribution.

    Raises:
        PrivacyError: a record is in twice, or stands under two users.
    """
    unique, first, inverse = np.unique(_numbers(places(dataset)), return_index=True, return_inverse=True)
    if len(unique) == len(inverse):
        return
    twice = np.flatnonzero(first[inverse] != np.arange(len(inverse)))  # every index but the first of its record
    for index in twice.tolist():
        other = int(first[inverse[index]])
        if owners is None:
            raise PrivacyError(
                f"{type(dataset).__name__}: the record at index {index} is the one at index {other}; {len(twice)} "
                "records are in more than once, and each copy moves the sum by another clipping norm: leave each in "
                "once, and weigh it in the loss"
            )
        if owners[index] != owners[other]:
            raise PrivacyError(
                f"{type(dataset).__name__}: the record at index {index} is the one at index {other}, of another user; "
                "two users who own it move the sum by two clipping norms: give each record one owner"
            )


def require_apart(train: Any, evaluation: Any) -> None:
    """Refuse to evaluate on records of the training set: their metrics carry no noise.

    ``evaluation`` may be a mapping of data sets, or None.

    Raises:
        PrivacyError: they have a record in common.
    """
    if train is None or evaluation is None or not hasattr(train, "__len__"):
        return
    for dataset in evaluation.values() if isinstance(evaluation, dict) else [evaluation]:
        if not hasattr(dataset, "__len__"):
            continue
        trained = places(train)
        numbers = _numbers(np.concatenate([trained, places(dataset)]))
        if shared := len(np.intersect1d(numbers[: len(trained)], numbers[len(trained) :])):
            raise PrivacyError(
                f"evaluation data: {shared} of its records are in the training set; metrics of private examples carry "
                "no noise, and selecting by them is not covered by the claim: evaluate on other people's data"
            )


def _numbers(where: Places) -> Places:
    """One number for each record, the same for the same record."""
    bases, base = np.unique(where[:, 0], return_inverse=True)
    rows, row = np.unique(where[:, 1], return_inverse=True) if len(bases) > 1 else ((), where[:, 1])
    return base * len(rows) + row


def _rows(base: "Places | int", index: "Places | int") -> Places:
    return np.stack(np.broadcast_arrays(np.asarray(base, np.int64), np.asarray(index, np.int64)), axis=1)


def _chosen(rows: Places, indices: Places) -> Places:
    return rows[np.where(indices < 0, indices + len(rows), indices)]


def _tensor(tensor: Tensor, dataset: Any) -> Places:
    """Each row of a tensor by its address, which views of one tensor share."""
    step = tensor.stride(0) * tensor.element_size()
    if step == 0 or tensor.device.type == "meta":  # one value for all: not what tells records apart
        return _rows(np.full(len(dataset), id(dataset), np.int64), np.arange(len(dataset)))
    start = tensor.untyped_storage().data_ptr()
    return _rows(np.full(len(dataset), start, np.int64), tensor.data_ptr() - start + step * np.arange(len(dataset)))


def _table(dataset: Any) -> Places:
    """Each row of an Arrow table by its place in the memory of the widest column."""
    table = dataset._data.table  # noqa: SLF001 — the rows before any selection
    columns = [column for column in table.columns if column.num_chunks and any(map(_address, column.chunks))]
    if not columns:
        return _rows(np.full(table.num_rows, id(table), np.int64), np.arange(table.num_rows))
    widest = max(columns, key=lambda column: column.nbytes)
    pieces = [
        _rows(np.full(len(chunk), _address(chunk)), chunk.offset + np.arange(len(chunk))) for chunk in widest.chunks
    ]
    return np.concatenate(pieces)


def _address(chunk: Any) -> int:
    """Where a chunk's first buffer of values or offsets lies; 0 where it has none."""
    return next((buffer.address for buffer in chunk.buffers()[1:] if buffer is not None), 0)
