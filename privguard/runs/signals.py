# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM, kept until the step under way is done."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self, final

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nStopping after this step, with a checkpoint to resume from. Once more stops at once.\n"


@final
class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a stop at the end of the step, and the second into an immediate one."""

    def __init__(self) -> None:
        self.wanted = False
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._note) for number in _SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(_SIGNALS, self._before, strict=False):
            signal.signal(number, before)

    def stop_here(self) -> None:
        """Raise the interrupt that was noted meanwhile, if any.

        Raises:
            KeyboardInterrupt: a stop was asked for.
        """
        if self.wanted:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        os.write(2, _SAID)  # not print: the signal may have come in the middle of one
