# SPDX-License-Identifier: Apache-2.0
"""What time and memory mean: on the host, process CPU time of one thread; on a GPU, CUDA events.

A clock makes *marks* and tells the seconds between two of them. On a GPU a mark is an event in the queue: making it
does not wait, and the time between two is the device's own, host work included where the device had to wait for it.
"""

import shutil
import subprocess
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import torch

from benchmarks.page import ON_GPU

T = TypeVar("T")


class Clock(Protocol):
    """Attributes:
    device: where the model is trained.
    steps: how many steps are taken between two marks, so that a queue can fill as it does in training.
    fetching: whether fetching a batch counts; on a GPU loader processes do it meanwhile, for every way alike.
    suffix: of the result files' names.
    """

    device: torch.device
    steps: int
    fetching: bool
    suffix: str

    def mark(self) -> Any:
        """Now."""
        ...

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark to another."""
        ...

    def settle(self) -> None:
        """Let all that was asked for be done, so that the next mark stands at the beginning of what follows."""
        ...

    def peak(self) -> float:
        """Most MiB held at once by this process so far."""
        ...

    def machine(self) -> dict[str, str]:
        """What the figures depend on besides the code."""
        ...


@final
class HostClock:
    """CPU seconds of this process; its peak is all of its resident memory, interpreter and libraries included."""

    device = torch.device("cpu")
    steps, fetching, suffix = 1, True, ""

    def mark(self) -> float:
        return time.process_time()

    def between(self, start: float, end: float) -> float:
        return end - start

    def settle(self) -> None:
        pass

    def peak(self) -> float:
        status = Path("/proc/self/status").read_text()  # not ru_maxrss, which a child inherits from its parent
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024

    def machine(self) -> dict[str, str]:
        return {"torch": torch.__version__}


@final
class DeviceClock:
    """CUDA events on the current device; its peak is what torch's allocator had handed out."""

    device = torch.device("cuda")
    steps, fetching, suffix = 4, False, ON_GPU

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def settle(self) -> None:
        torch.cuda.synchronize()

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**20

    def machine(self) -> dict[str, str]:
        found = torch.cuda.get_device_properties(self.device)
        return {
            "device": found.name,
            "memory": f"{found.total_memory / 2**30:.0f} GiB",
            "driver": _driver(),
            "cuda": str(torch.version.cuda),
            "torch": torch.__version__,
        }


def timed(clock: Clock, action: Callable[[], T]) -> float:
    """Seconds of one of the clock's number of calls of ``action``, from rest."""
    clock.settle()
    start = clock.mark()
    for _ in range(clock.steps):
        action()
    return clock.between(start, clock.mark()) / clock.steps


def add_option(parser: ArgumentParser) -> None:
    """Let a benchmark be told where to run."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default, help=f"default here: {default}")


def chosen(parser: ArgumentParser, device: str) -> Clock:
    """The clock of the device that was asked for; the parser's error where there is none."""
    if device == "cpu":
        return HostClock()
    if not torch.cuda.is_available():
        parser.error(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; run where one is, with a torch that was "
            "built for it, or take --device cpu"
        )
    return DeviceClock()


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return "not known"
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return said[0] if said else "not known"
