# SPDX-License-Identifier: Apache-2.0
"""A salted digest of the records of a run: it tells whether a resumed run reads the same ones, and nothing else.

The salt stays in the sealed snapshots: a plain digest would let whoever knows all records but one test a guess at it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from privguard.training import rng_state

_LOOKED_AT = 256  # records of a data set that is read record by record, evenly spaced
_TWICE = 16  # of them read a second time: a record that comes out differently each time commits to nothing


def commitment(dataset: Any, salt: bytes) -> str | None:
    """SHA-256 over the salt and the records of ``dataset``, in hexadecimal; None where there is no data set.

    All of a ``TensorDataset``; of other data sets their number and up to 256 records, evenly spaced, as they are read.
    Where reading is random (augmentation), or gives what has no bytes, their number alone. Random generators are left
    as they were.
    """
    if dataset is None:
        return None
    state = hashlib.sha256(b"privguard data commitment v2\0" + salt)
    state.update(f"{len(dataset)}\0".encode())
    if isinstance(dataset, TensorDataset):
        _take(state, list(dataset.tensors))
    elif (records := _records(dataset)) is not None:
        state.update(records)
    return state.hexdigest()


def _records(dataset: Any) -> bytes | None:
    """A digest of some records; None where they have no bytes of their own, or other ones each time."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT)).astype(int)).tolist()
    before = rng_state.states()
    try:
        once, again = (_digest(dataset, chosen[:_TWICE]) for _ in range(2))
        return _digest(dataset, chosen) if once == again else None
    except TypeError:
        return None
    finally:
        rng_state.restore(before)


def _digest(dataset: Any, chosen: Sequence[int]) -> bytes:
    state = hashlib.sha256()
    for index in chosen:
        _take(state, dataset[index])
    return state.digest()


def _take(state: Any, value: Any) -> None:
    """Take a record in, each part with its type, so that no two records give the same bytes.

    Raises:
        TypeError: a part that has no bytes of its own.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        state.update(f"tensor {value.dtype} {tuple(value.shape)}\0".encode())
        state.update(value.flatten().view(torch.uint8).numpy() if value.numel() else b"")
    elif isinstance(value, np.ndarray) and cast("Any", value).dtype != object:
        array = np.ascontiguousarray(cast("Any", value))
        state.update(f"array {array.dtype} {array.shape}\0".encode() + array.tobytes())
    elif value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        text = repr(value).encode()
        state.update(f"{type(value).__name__} {len(text)}\0".encode() + text)
    elif isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value)
        state.update(f"mapping {len(items)}\0".encode())
        for key in items:
            _take(state, str(key))
            _take(state, items[key])
    elif isinstance(value, list | tuple):
        parts = cast("Sequence[Any]", value)
        state.update(f"list {len(parts)}\0".encode())
        for part in parts:
            _take(state, part)
    elif hasattr(value, "tobytes"):  # a picture
        state.update(f"{type(value).__name__} {getattr(value, 'size', '')}\0".encode() + value.tobytes())
    else:
        raise TypeError(type(value).__name__)
