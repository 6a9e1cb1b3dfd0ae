# SPDX-License-Identifier: Apache-2.0
"""Privacy events as canonical JSON, and the list of those that can be priced.

An event is a ``dp_accounting.DpEvent``, or one of ``privguard.accounting.releases``: what happened to the data,
without what it cost. On disk it is ``{"<class name>": {"<field>": value}}``, and only the classes in the table below
have a place there: each is one that privacy-loss distributions, or Rényi accounting, can price. Anything else is
refused by name, before its step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from privguard import _canon, _check
from privguard.errors import UnknownEventError
from privguard.records import Relation

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Events: TypeAlias = "Sequence[tuple[DpEvent, int]]"
"""What happened, as (event, how many times) pairs."""

_MODULES = {"dp_accounting.dp_event", "privguard.accounting.releases"}


def to_json(event: "DpEvent") -> dict[str, Any]:
    """The event as plain JSON, its fields checked.

    Args:
        event: an event of dp_accounting.

    Raises:
        UnknownEventError: no accountant here can price it; the message names the class.
        ValueError: a field is not a finite number in its range.
    """
    name = type(event).__name__
    if type(event).__module__ not in _MODULES:
        raise UnknownEventError(f"event={name}: expected an event of dp_accounting.dp_event; {_REMEDY}")
    return {name: {field: check(getattr(event, field), to_json) for field, check in _fields(name).items()}}


def check_json(value: object) -> dict[str, Any]:
    """The JSON of an event with its fields checked; needs no dp_accounting.

    Args:
        value: JSON values, as they were read.

    Raises:
        UnknownEventError: the name is not in the table of priced events.
        ValueError: not the JSON of an event, or a field is out of its range.
    """
    if not isinstance(value, Mapping) or len(cast("Mapping[str, Any]", value)) != 1:
        raise ValueError(f"event={value!r}: expected one class name with its fields")
    ((name, given),) = cast("Mapping[str, Any]", value).items()
    fields = _fields(name)
    if not isinstance(given, Mapping) or set(cast("Mapping[str, Any]", given)) != set(fields):
        raise ValueError(f"event={name}: expected the fields {sorted(fields)}")
    return {name: {field: check(cast("Any", given)[field], check_json) for field, check in fields.items()}}


def from_json(value: object) -> "DpEvent":
    """The event that ``to_json`` wrote; raises what ``check_json`` raises.

    Args:
        value: JSON values, as they were read.
    """
    return _build(check_json(value))


def fold(events: Events) -> "list[tuple[DpEvent, int]]":
    """Equal events counted together, in the order of their JSON: one history has one form, whatever its order.

    Privacy loss composes commutatively, so the order of the steps carries no information about ε.

    Args:
        events: pairs of an event and how often it happened.
    """
    counts: dict[bytes, int] = {}
    kept: dict[bytes, DpEvent] = {}
    for event, times in events:
        key = _canon.canonical(to_json(event))
        counts[key] = counts.get(key, 0) + _check.count("times", times, least=0)
        kept[key] = event
    return [(kept[key], counts[key]) for key in sorted(kept) if counts[key] > 0]


def _build(value: Any) -> Any:
    """Checked JSON → event; a dict is an event, everything else stands for itself."""
    from dp_accounting import dp_event

    if isinstance(value, list):
        return [_build(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return math.inf if value == "infinity" else value
    ((name, fields),) = cast("dict[str, dict[str, Any]]", value).items()
    from privguard.accounting.releases import CLASSES

    kind = CLASSES.get(name) or getattr(dp_event, name)
    return kind(**{field: Relation(item) if field == "relation" else _build(item) for field, item in fields.items()})


_Walk: TypeAlias = Callable[[Any], Any]
_REMEDY = "account for it apart, or bound it by one of the known events"


def _fields(name: str) -> "Mapping[str, Callable[[Any, _Walk], Any]]":
    if name not in _TABLE:
        raise UnknownEventError(f"event={name}: no accountant here can price it; {_REMEDY}")
    return _TABLE[name]


def _noise(value: Any, _: _Walk) -> float:
    return _check.non_negative("noise_multiplier", float(value))


def _share(value: Any, _: _Walk) -> float:
    return _check.probability("probability", float(value), zero=True, one=True)


def _whole(value: Any, _: _Walk) -> int:
    return _check.count("count", int(value) if float(value).is_integer() else value, least=0)


def _numbers(value: Any, _: _Walk) -> list[float]:
    numbers = [float(item) for item in value]
    _check.require(all(map(math.isfinite, numbers)), "values", numbers, wanted="finite numbers")
    return numbers


def _shape(value: Any, _: _Walk) -> "float | str":
    """The shape of a number of repetitions; JSON has no infinity, so Poisson's is a word."""
    if value in {"infinity", math.inf}:
        return "infinity"
    return _check.non_negative("shape", float(value))


def _relation(value: Any, _: _Walk) -> str:
    return Relation(value).value


def _event(value: Any, walk: _Walk) -> Any:
    return walk(value)


def _events(value: Any, walk: _Walk) -> list[Any]:
    return [walk(item) for item in value]


def _sampled(value: Any, walk: _Walk) -> Any:
    """The event inside Poisson sampling: only Gaussian and Laplace noise have a known amplified loss."""
    name = next(iter(cast("Mapping[str, Any]", value)), "") if isinstance(value, Mapping) else type(value).__name__
    if name not in {"GaussianDpEvent", "LaplaceDpEvent"}:
        raise UnknownEventError(f"event=PoissonSampledDpEvent of {name}: no accountant here can price it; {_REMEDY}")
    return walk(value)


_TABLE: "dict[str, dict[str, Callable[[Any, _Walk], Any]]]" = {
    "NoOpDpEvent": {},
    "NonPrivateDpEvent": {},
    "GaussianDpEvent": {"noise_multiplier": _noise},
    "LaplaceDpEvent": {"noise_multiplier": _noise},
    "DiscreteLaplaceDpEvent": {"noise_parameter": _noise, "sensitivity": _whole},
    "RandomizedResponseDpEvent": {"noise_parameter": _share, "num_buckets": _whole},
    "PoissonSampledDpEvent": {"sampling_probability": _share, "event": _sampled},
    "TruncatedSubsampledGaussianDpEvent": {
        "dataset_size": _whole,
        "sampling_probability": _share,
        "truncated_batch_size": _whole,
        "noise_multiplier": _noise,
    },
    "MixtureOfGaussiansDpEvent": {"standard_deviation": _noise, "sensitivities": _numbers, "sampling_probs": _numbers},
    "RepeatAndSelectDpEvent": {"event": _event, "mean": _noise, "shape": _shape},
    "ApproximateDp": {"epsilon": _noise, "delta": _share, "relation": _relation},
    "ZeroConcentratedDp": {"rho": _noise, "relation": _relation},
    "DiscreteGaussianDp": {"sigma": _noise, "sensitivity": _whole},
    "ComposedDpEvent": {"events": _events},
    "SelfComposedDpEvent": {"event": _event, "count": _whole},
}
