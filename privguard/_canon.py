# SPDX-License-Identifier: Apache-2.0
"""The one way to hash anything: record → canonical JSON (RFC 8785) → SHA-256.

Canonical JSON is the same bytes in every language, so a digest that privguard prints can be checked without privguard.
"""

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import rfc8785

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
_HEXADECIMAL = frozenset("0123456789abcdef")


def to_json(value: object) -> Any:  # noqa: PLR0911 — one line for each kind of value
    """Turn records, mappings, sequences, enums and bytes (as hex) into plain JSON values; infinity becomes ``"inf"``.

    Raises:
        TypeError: for anything else; a record never holds an object that JSON cannot carry.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # "inf": JSON has no such number, and an infinite ε must still be said
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Sequence):
        return [to_json(item) for item in cast("Sequence[object]", value)]
    raise TypeError(f"{type(value).__name__}: expected a record, mapping, sequence, number, text or bytes")


def canonical(value: object) -> bytes:
    """Canonical JSON of ``value``: sorted keys, no spaces, shortest numbers, UTF-8 (RFC 8785).

    >>> canonical({"b": 1.0, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    return rfc8785.dumps(to_json(value))


def loads(data: bytes | str) -> Any:
    """The JSON value in ``data``, which has one meaning only: no key stands twice in an object, no NaN, no infinity.

    Readers disagree about which of two equal keys counts, so a text with such keys says different things to each.

    Raises:
        ValueError: it is no JSON, or has no single meaning.
    """
    try:
        return json.loads(data, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("JSON: nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"JSON: key {twice!r} stands twice in one object; expected each key once")
    return dict(pairs)


def _no_number(name: str) -> Any:
    raise ValueError(f"JSON: {name} is no number; expected a finite one")


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of ``value``, as 64 hexadecimal characters."""
    return hashlib.sha256(canonical(value)).hexdigest()


def is_digest(value: object) -> bool:
    """Whether this is a SHA-256 as ``digest`` writes it: 64 lower-case hexadecimal characters."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= _HEXADECIMAL  # noqa: PLR2004 — 256 bits
