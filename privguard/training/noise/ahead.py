# SPDX-License-Identifier: Apache-2.0
"""Noise made before it is asked for: it depends on a ledger position and public numbers alone, not on the gradient.

While the model goes forward and backward for one position, a thread makes the integers of that position's noise on a
core that torch does not use. NumPy, torch and the cipher let go of the interpreter while they work.
"""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import numpy as np
import torch

from privguard._random import Stream
from privguard.training.noise.exact import Integers, Label, Row, draw


@final
class Ahead:
    """The integers of one position, in the making or ready; eight bytes for each coordinate with noise."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="privguard-noise")
        self._memory: dict[Label, Integers] = {}
        self._ready: tuple[int, dict[Label, Future[Integers]]] | None = None

    def begin(self, position: int, *, rows: list[Row], deviation: float, source: Stream) -> None:
        """Start to make the noise of a position from its ``source``, for the rows that take any on the host."""
        made: dict[Label, Future[Integers]] = {}
        for row in rows:
            if row.noisy and row.device.type == "cpu" and deviation > 0:
                if (memory := self._memory.get(row.label)) is None or len(memory) != row.count:
                    memory = self._memory[row.label] = np.empty(row.count, np.int64)
                child = source.child(*row.label)
                made[row.label] = self._pool.submit(draw, memory, deviation=deviation, source=child)
        self._ready = position, made

    def take(self, position: int) -> Mapping[Label, Integers]:
        """What was made for a position, as soon as it is done; nothing for any other position."""
        ready, self._ready = self._ready, None
        if ready is None:
            return {}
        made = {label: future.result() for label, future in ready[1].items()}  # also to leave no memory in use
        return made if ready[0] == position else {}


def has_idle_core() -> bool:
    """Whether this process may use more cores than torch does."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores > torch.get_num_threads()
