"""Scripts in processes of their own, alone or as the ranks of one run."""

import os
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT = 600  # seconds for a process that needs some: a machine may be busy
PORTS = count(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) * 1_000 + os.getpid() % 1_000)


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
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process, line):
    """Read what a process prints up to this line."""
    said = []
    for got in process.stdout:
        said.append(got.strip())
        if said[-1] == line:
            return said
    raise AssertionError(f"never said {line!r}: {process.stderr.read()}")
