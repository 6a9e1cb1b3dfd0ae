# SPDX-License-Identifier: Apache-2.0
"""The command line in this process: what it prints and exits with, through the same ``main`` that a shell calls."""

import subprocess
import sys
from typing import NamedTuple

import pytest

from privguard import cli


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def privguard(monkeypatch, capfd):
    """Run ``privguard WORDS…``; COLUMNS is wide, so that no message is broken over lines."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["privguard", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "1000")
        monkeypatch.delenv("PRIVGUARD_DEBUG", raising=False)
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Said(int(left.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """The demonstration as a shell runs it: its folder, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "privguard", "demo", "--out", str(out), "--json"]
    return out, subprocess.run(command, capture_output=True, text=True, check=False)
