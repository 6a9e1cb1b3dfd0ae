# SPDX-License-Identifier: Apache-2.0
"""Killed at any moment: what took effect was reserved, nothing is handed out twice, and the books balance."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dp_accounting as dp
import pytest

from benchmarks.book import STEP, drill, forked
from privguard.accounting.ledger import Ledger


def train(path, journal):
    """Reserve, then take effect: each used position is on disk in a journal of its own before the next."""
    with Ledger.open(path) as ledger:
        while True:
            positions = ledger.reserve(STEP, random.randint(1, 5))
            for position in positions:
                os.write(journal, b"%d\n" % position)
            if random.random() < 0.2:
                ledger.reserve(STEP, 3)
                ledger.settle(positions.stop)


def test_a_killed_writer_loses_nothing_and_repeats_nothing(tmp_path):
    path, effects = tmp_path / "ledger.jsonl", tmp_path / "effects"
    Ledger.create(path, {"run": "r"}).close()
    journal = os.open(effects, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    rng = random.Random(1)
    for _ in range(30):
        before = len(effects.read_bytes())
        child = forked(lambda: train(path, journal))
        while len(effects.read_bytes()) == before:  # it has begun
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        used = list(map(int, effects.read_bytes().splitlines()))
        history = Ledger.read(path)
        assert max(Counter(used).values()) == 1
        assert max(used) < history.position == sum(times for _, times in history.spent())
    os.close(journal)


def test_a_full_disk_reserves_nothing_and_leaves_the_ledger_readable(tmp_path):
    """A real limit of the operating system on the file's size, met in the middle of a line."""
    path = tmp_path / "ledger.jsonl"
    code = """
import resource, sys
import dp_accounting as dp
from privguard.accounting.ledger import Ledger
ledger = Ledger.create(sys.argv[1], {"run": "r"})
ledger.reserve(dp.GaussianDpEvent(1.0), 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size + 50,) * 2)
try:
    ledger.reserve(dp.GaussianDpEvent(1.0), 3)
except OSError as error:
    print(error.strerror, ledger.position)
try:
    ledger.reserve(dp.GaussianDpEvent(1.0), 3)
except ValueError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert "nothing was reserved" in said
    assert said.splitlines()[0].endswith(" 2")
    assert "closed; open it again" in said
    assert Ledger.read(path).spent() == [(dp.GaussianDpEvent(1.0), 2)]
    with Ledger.open(path) as ledger:
        assert ledger.reserve(STEP) == range(2, 3)


def test_a_failed_fsync_reserves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.create(path, {"run": "r"})
    ledger.reserve(STEP, 2)

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("privguard._os.sync", fail)
    with pytest.raises(OSError, match="nothing was reserved"):
        ledger.reserve(STEP, 3)
    monkeypatch.undo()
    assert Ledger.read(path).spent() == [(STEP, 2)]


def test_a_reservation_is_synced_before_it_returns(tmp_path, monkeypatch):
    path, synced = tmp_path / "ledger.jsonl", []
    monkeypatch.setattr("privguard._os.sync", lambda _: synced.append(path.stat().st_size))
    with Ledger.create(path, {"run": "r"}) as ledger:
        for _ in range(3):
            ledger.reserve(STEP)
            assert synced[-1] == path.stat().st_size
    assert len(synced) == 4


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path / 'book.db'}"


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_competing_processes_are_killed_and_the_book_balances(backend, request, tmp_path):
    counted = drill(request.getfixturevalue(backend), tmp_path / "effects", kills=50)
    assert counted["killed_while_working"] + counted["stopped_by_the_limit_first"] == 50
    assert counted["killed_while_working"] > 0
    assert counted["events_reserved"] > 0
