# SPDX-License-Identifier: Apache-2.0
"""Everything of a training state that is not a tensor, as canonical JSON that comes back exactly as it was.

JSON has no whole-number keys, tuples, bytes, exact floats or tensors, so each of them is written as an object with one
member that names its kind: ``{"tuple": [...]}``, ``{"float": "0x1.8p+1"}``, ``{"tensor": "state.optimizer.0"}``. Every
dictionary is ``{"dict": [[key, value], ...]}``, which keeps its order and the types of its keys. There is no code in
the file and no name of a class to look up: what is not in the table below is refused when it is written.
"""

import base64
import json
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privguard.errors import TamperedError

_STRANGE = "the state inside the file is not what privguard writes"
_SAFE_INTEGER = 2**53 - 1  # what every JSON reader keeps exactly (RFC 8785, appendix D)


def pack(value: object, *, prefix: str) -> tuple[Any, dict[str, Tensor]]:
    """``value`` as JSON, and its tensors under names that begin with ``prefix``.

    Law: ``unpack(*pack(value, prefix=p))`` equals ``value`` in every value, type, order and key; tensors come back on
    the processor and contiguous, and one tensor that stands in two places comes back as one.

    Raises:
        TypeError: a value of a kind that is not stored, with the place where it stands.
    """
    tensors = dict[str, Tensor]()
    return _pack(value, prefix, tensors), tensors


def loads(text: bytes | bytearray, tensors: Mapping[str, Tensor]) -> Any:
    """The value whose packed form is this JSON text.

    Raises:
        TamperedError: not the output of ``pack``.
    """
    try:
        packed = json.loads(text)
    except (ValueError, RecursionError):
        raise TamperedError(_STRANGE) from None
    return unpack(packed, tensors)


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that was packed.

    Raises:
        TamperedError: not the output of ``pack``.
    """
    try:
        return _unpack(packed, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
        raise TamperedError(_STRANGE) from None


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) <= _SAFE_INTEGER else {"int": str(value)}
    if isinstance(value, Tensor):
        while place in tensors:  # the keys "a.b" and "a", then "b", lead to one place
            place += "'"
        tensors[place] = value
        return {"tensor": place}
    kind = next((kind for kind, (type_, _, _) in _KINDS.items() if type(value) is type_), None)
    if kind is not None:
        return {kind: _KINDS[kind][1](value, lambda part, name: _pack(part, f"{place}.{name}", tensors))}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"numpy": [value.dtype.str, value.tobytes().hex()]}
    raise TypeError(
        f"{place}={type(value).__name__}: expected numbers, text, bytes, tensors, arrays, and lists, tuples and "
        "dictionaries of them; convert it before it is saved"
    )


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        if isinstance(packed, list):
            raise TypeError("list")
        return packed
    ((kind, content),) = packed.items()
    if kind == "int":
        return int(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "numpy":
        return np.frombuffer(bytes.fromhex(content[1]), _simple(content[0]))[0]
    return _KINDS[kind][2](content, lambda part: _unpack(part, tensors))


def _simple(dtype: str) -> np.dtype[Any]:
    found = np.dtype(dtype)
    if found.kind not in "biuf":
        raise ValueError(dtype)
    return found


def _pairs(value: Mapping[Any, Any], pack_: Callable[[Any, Any], Any]) -> Any:
    return [[pack_(key, "key"), pack_(item, key)] for key, item in value.items()]


def _items(value: Any, pack_: Callable[[Any, Any], Any]) -> Any:
    return [pack_(item, number) for number, item in enumerate(value)]


def _array(value: np.ndarray[Any, Any], _: Any) -> Any:
    if value.dtype.kind not in "biuf":
        raise TypeError(f"array of {value.dtype}: expected numbers; convert it before it is saved")
    return [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]


def _from_array(content: Any, _: Any) -> np.ndarray[Any, Any]:
    dtype, shape, encoded = content
    return np.frombuffer(bytearray(base64.b64decode(encoded)), _simple(dtype)).reshape(shape)


def _from_pairs(content: Any, unpack_: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    return [(unpack_(key), unpack_(item)) for key, item in content]


# kind → the exact type, how it is written (value, packer), how it is read (content, unpacker)
_KINDS: dict[str, tuple[type, Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "float": (float, lambda v, _: v.hex(), lambda c, _: float.fromhex(c)),
    "complex": (complex, lambda v, _: [v.real.hex(), v.imag.hex()], lambda c, _: complex(*map(float.fromhex, c))),
    "bytes": (bytes, lambda v, _: base64.b64encode(v).decode(), lambda c, _: base64.b64decode(c)),
    "list": (list, _items, lambda c, u: [u(one) for one in c]),
    "tuple": (tuple, _items, lambda c, u: tuple(u(one) for one in c)),
    "set": (set, lambda v, p: _items(sorted(v, key=repr), p), lambda c, u: {u(one) for one in c}),
    "deque": (deque, lambda v, p: [v.maxlen, _items(v, p)], lambda c, u: deque((u(one) for one in c[1]), c[0])),
    "dict": (dict, _pairs, lambda c, u: dict(_from_pairs(c, u))),
    "ordered": (OrderedDict, _pairs, lambda c, u: OrderedDict(_from_pairs(c, u))),
    "counter": (Counter, _pairs, lambda c, u: Counter(dict(_from_pairs(c, u)))),
    "size": (torch.Size, lambda v, _: list(v), lambda c, _: torch.Size(c)),
    "dtype": (torch.dtype, lambda v, _: str(v).removeprefix("torch."), lambda c, _: DTYPES[c]),
    "device": (torch.device, lambda v, _: str(v), lambda c, _: torch.device(c)),
    "array": (np.ndarray, _array, _from_array),
}
DTYPES = {str(each).removeprefix("torch."): each for each in vars(torch).values() if isinstance(each, torch.dtype)}
