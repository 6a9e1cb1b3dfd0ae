# SPDX-License-Identifier: Apache-2.0
"""Argument checks that say ``name=value: expected …; do this``.

They raise ``ValueError`` and return the value, so that a constructor can check and keep in one line.
"""

import math
from numbers import Integral


def require(ok: bool, name: str, value: object, *, wanted: str, remedy: str = "") -> None:  # noqa: FBT001 — the condition is the sentence's subject
    """Raise ``ValueError("name=value: expected wanted; remedy")`` unless ``ok``.

    >>> require(False, "steps", 0, wanted="at least 1", remedy="train for at least one step")
    Traceback (most recent call last):
    ValueError: steps=0: expected at least 1; train for at least one step
    """
    if not ok:
        raise ValueError(f"{name}={value!r}: expected {wanted}" + (f"; {remedy}" if remedy else ""))


def positive(name: str, value: float, *, remedy: str = "") -> float:
    """Return ``value`` when it is a finite number above zero."""
    require(
        _is_number(value) and math.isfinite(value) and value > 0,
        name,
        value,
        wanted="a finite number above 0",
        remedy=remedy,
    )
    return value


def non_negative(name: str, value: float, *, remedy: str = "") -> float:
    """Return ``value`` when it is a finite number, zero or above."""
    require(
        _is_number(value) and math.isfinite(value) and value >= 0,
        name,
        value,
        wanted="a finite number, 0 or above",
        remedy=remedy,
    )
    return value


def count(name: str, value: int, *, least: int = 1, remedy: str = "") -> int:
    """Return ``value`` when it is a whole number, ``least`` or above."""
    whole = isinstance(value, Integral) and not _is_truth(value)  # NumPy's whole numbers too
    require(whole and value >= least, name, value, wanted=f"a whole number, {least} or above", remedy=remedy)
    return int(value)


def probability(name: str, value: float, *, zero: bool = False, one: bool = False, remedy: str = "") -> float:
    """Return ``value`` when it lies between 0 and 1; the ends count only where ``zero`` or ``one`` say so."""
    span = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    inside = _is_number(value) and ((zero and value == 0) or (one and value == 1) or 0 < value < 1)
    require(inside, name, value, wanted=f"a number in {span}", remedy=remedy)
    return value


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
