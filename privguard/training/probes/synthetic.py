# SPDX-License-Identifier: Apache-2.0
"""Synthetic records: of a real record's shapes and types, with none of its numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Pattern:
    """What synthetic records look like.

    Attributes:
        record: a record as the data set gives it; only shapes and types of its numbers are used.
        top: one more than the largest whole number that may be made up in ``input_ids``; it has to be public.
    """

    record: Any
    top: int = 2

    @property
    def length(self) -> int:
        """How long the main sequence is: ``input_ids``, or the first one that there is; 0 where there is none."""
        ids = self.record.get("input_ids") if isinstance(self.record, Mapping) else None
        arrays = (_array(part) for part in _parts(self.record if ids is None else ids))
        return next((array.shape[_along(array)] for array in arrays if array is not None and array.ndim), 0)

    def made_up(self, number: int, *, longer: int = 0) -> Any:
        """A record; equal numbers give equal records, and its main sequence is ``longer`` than the pattern's.

        What is as long as the main sequence, such as a mask or labels of its tokens, is as much longer.
        """
        source = np.random.default_rng(number)

        def like(value: Any, name: str) -> Any:
            if (array := _array(value)) is not None:
                shape = list(array.shape)
                if shape and shape[_along(array)] == self.length:
                    shape[_along(array)] += longer
                return _as(value, self._numbers(tuple(shape), array.dtype, name, source))
            if isinstance(value, Mapping):
                return {key: like(one, str(key)) for key, one in cast("Mapping[Any, Any]", value).items()}
            if isinstance(value, list | tuple):
                values = [like(one, name) for one in cast("list[Any]", value)]
                return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
            return value

        return like(self.record, "")

    def _numbers(self, shape: tuple[int, ...], kind: Any, name: str, source: np.random.Generator) -> Any:
        if kind.kind == "f":
            return np.asarray(source.standard_normal(shape), kind)
        if name.endswith("mask"):
            return np.ones(shape, kind)
        if name == "token_type_ids":
            return np.zeros(shape, kind)
        words = name == "input_ids" and self.top > 8  # noqa: PLR2004 — from the middle: special ones stand at the ends
        return np.asarray(source.integers(*((self.top // 4, self.top // 2) if words else (0, 2)), shape), kind)


def _parts(value: Any) -> Iterator[Any]:
    """The value, or what it is made of, down to arrays and lists of numbers."""
    if _array(value) is None and isinstance(value, Mapping):
        for one in cast("Mapping[Any, Any]", value).values():
            yield from _parts(one)
    elif _array(value) is None and isinstance(value, list | tuple):
        for one in cast("list[Any]", value):
            yield from _parts(one)
    else:
        yield value


def _array(value: Any) -> Any:
    """The value as an array of numbers; None where it is none."""
    if isinstance(value, Tensor):
        return None if value.dtype == torch.bfloat16 else value.numpy(force=True)
    numbers = isinstance(value, list) and value and all(isinstance(one, int | float) for one in cast("Any", value))
    if not (numbers or isinstance(value, int | float | np.ndarray | np.number)):
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "fiub" else None


def _along(array: Any) -> int:
    """The dimension of a sequence: the first of (places, features), and the last of (choices, tokens)."""
    return array.ndim - 1 if array.dtype.kind in "iub" else 0


def _as(value: Any, array: Any) -> Any:
    """The array in the type of ``value``."""
    if isinstance(value, Tensor):
        return torch.from_numpy(array)
    if isinstance(value, np.ndarray):
        return array
    return array.tolist() if isinstance(value, list) else type(value)(array)
