# SPDX-License-Identifier: Apache-2.0
"""Scripts in processes of their own, alone or as the ranks of one run.

Each is forked from a server that has imported, once for all tests, what the scripts need: Trainer alone takes nine
seconds. Nothing else is shared; it can be killed, interrupted and waited for like any process.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

WAIT = 600  # seconds for a process that needs some: a machine may be busy
PORTS = count(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) * 1_000 + os.getpid() % 1_000)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "accelerate", "datasets", "transformers.trainer", "privguard.integrations"])


class Script:
    """A process that runs a script, with its output in pipes; by the names of :class:`subprocess.Popen`."""

    def __init__(self, script: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        pipes = [SERVER.Pipe(duplex=False) for _ in range(2)]
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno())) for reader, _ in pipes)
        work = (str(script), arguments, dict(environment), str(Path.cwd()), *(writer for _, writer in pipes))
        self._process = SERVER.Process(target=_run, args=work)
        self._process.start()
        for end in (end for pipe in pipes for end in pipe):
            end.close()
        self.kill = self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of its output, and of its errors, once it has ended."""
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            said = list(pool.map(lambda pipe: pipe.read(), (self.stdout, self.stderr)))
        self._process.join(timeout)
        assert self._process.exitcode is not None, said
        return said[0], said[1]


def _run(
    script: str, arguments: tuple[str, ...], environment: dict[str, str], folder: str, out: Connection, err: Connection
) -> None:
    """In the new process: be ``python -W ignore script arguments…``."""
    for number, pipe in ((1, out), (2, err)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.path[0:0] = [script, *arguments], [str(Path(script).parent)]
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    warnings.simplefilter("ignore")
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def free_port():
    """A port of 127.0.0.1 that nobody holds, and that nobody is given before its server is up.

    The system hands out ports from 32768 on (Linux), so one that it named here and took back could be gone by then.
    """
    for number in PORTS:
        port = 10_000 + number % 20_000
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port")


def launch(script, ranks, *arguments):
    """The exit codes of that many processes of a script, and what they said on stderr."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    processes = [
        spawn(script, *arguments, **({**place, "RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}))
        for r in range(ranks)
    ]
    said = [process.communicate(timeout=WAIT)[1] for process in processes]
    return [process.returncode for process in processes], said


def spawn(script, *arguments, **environment):
    """One process of a script, with its output in pipes."""
    return Script(script, tuple(map(str, arguments)), {**os.environ, "OMP_NUM_THREADS": "1", **environment})


def until(process, line):
    """Read what a process prints up to this line."""
    said = []
    for got in process.stdout:
        said.append(got.strip())
        if said[-1] == line:
            return said
    raise AssertionError(f"never said {line!r}: {process.stderr.read()}")
