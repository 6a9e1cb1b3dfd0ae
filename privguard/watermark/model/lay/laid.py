# SPDX-License-Identifier: Apache-2.0
"""What laying gives: the suspect's tensors in the unmarked copy's frame, and a report on what was laid."""

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_SHOWN = 5  # strangers that a line names


@final
@dataclass(frozen=True, kw_only=True)
class Layer:
    """What was found of one of our layers: the suspect's tensor, units matched of all, and units that nobody needs."""

    name: str
    theirs: str | None = None
    units: int = 0
    matched: int = 0
    strangers: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.theirs is None:
            return f"{self.name}: no counterpart"
        extra = f", {len(self.strangers)} of theirs without counterpart" if self.strangers else ""
        places = f" ({', '.join(map(str, self.strangers[:_SHOWN]))}{', …' if len(self.strangers) > _SHOWN else ''})"
        notes = "".join(f"; {note}" for note in self.notes[:_SHOWN])
        return (
            f"{self.name}: {self.theirs}, {self.matched} of {self.units} units{extra}{places if extra else ''}{notes}"
        )


@final
@dataclass(frozen=True, kw_only=True)
class Laid:
    """The suspect in the unmarked copy's names, order and scale, NaN where something is missing, and a report."""

    tensors: dict[str, NDArray[np.float32]]
    layers: tuple[Layer, ...] = field(default=())
    program: str = "lay-1"

    @property
    def summary(self) -> str:
        """How much could be laid, in one line."""
        laid = sum(layer.theirs is not None for layer in self.layers)
        return f"{self.program}: counterparts for {laid} of {len(self.layers)} layers"


def missing(like: NDArray[Any]) -> NDArray[np.float32]:
    """A tensor of the same shape of which nothing was found."""
    return np.full(like.shape, np.nan, np.float32)
