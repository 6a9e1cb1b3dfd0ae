"""Scripts in processes of their own, alone or as the ranks of one run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(script, ranks, *arguments):
    """The exit codes of that many processes of a script, and what they said on stderr."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = [
        spawn(script, *arguments, **({**place, "RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}))
        for r in range(ranks)
    ]
    said = [process.communicate(timeout=280)[1] for process in processes]
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
