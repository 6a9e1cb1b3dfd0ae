"""Killed at any moment: what took effect was reserved, nothing is handed out twice, and the books balance."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import dp_accounting as dp
import pytest

from privguard.accounting.account import DataSet
from privguard.accounting.book import Book
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.errors import BudgetExceededError

STEP = dp.GaussianDpEvent(30.0)
DATA = "a" * 64
POSTGRES = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


def forked(work):
    """Run ``work`` in a child that shares this warm interpreter and never returns into the test."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:  # a child that fails must say so, and must not run the parent's tests
        os.write(2, f"child: {error!r}\n".encode())
        os._exit(1)


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

    monkeypatch.setattr("privguard.accounting.ledger._sync", fail)
    with pytest.raises(OSError, match="nothing was reserved"):
        ledger.reserve(STEP, 3)
    monkeypatch.undo()
    assert Ledger.read(path).spent() == [(STEP, 2)]


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path / 'book.db'}"


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server of our own, as a user of its own; skipped where none is installed."""
    if POSTGRES is None:
        assert not os.environ.get("CI"), "PostgreSQL is not installed"
        pytest.skip("PostgreSQL is not installed")
    programs, home = Path(POSTGRES).resolve().parent, Path(tempfile.mkdtemp(prefix="pg"))
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(home, "postgres", "postgres")
    data, quiet = home / "data", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": home, **user}
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "book"], check=True, **quiet)
    server = subprocess.Popen([programs / "postgres", "-D", data, "-k", home, "-h", ""], **quiet)
    url = f"postgresql+psycopg://book@/postgres?host={home}"
    try:
        wait_for(url)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def wait_for(url):
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    for _ in range(600):
        try:
            create_engine(url).connect().close()
        except OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("PostgreSQL did not start")


@pytest.fixture
def postgres(postgres_server):
    yield postgres_server
    from sqlalchemy import create_engine

    with create_engine(postgres_server).begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS privguard_book")


def spend(place, run, journal):
    """Reserve in the book, then take effect, then now and then settle; until the budget or a kill ends it."""
    book = Book(place)
    generation = random.Random()
    while True:
        try:
            positions = book.reserve(run, DATA, STEP, generation.randint(1, 3))
        except BudgetExceededError:
            return
        for position in positions[: generation.randint(0, len(positions))]:
            os.write(journal, b"%s %d\n" % (run.encode(), position))
            used = position + 1
            if generation.random() < 0.3:
                book.settle(run, used)
                break


def balanced(place, journal):
    """What was granted is spent, open or returned; what took effect was granted; the limit holds."""
    book = Book.open(place)
    standing = book.standing(DATA)
    for balance in standing.runs.values():
        assert balance.reserved == balance.spent + balance.open + balance.returned
    assert standing.epsilon <= standing.limit.epsilon
    effects = Counter(journal.read_bytes().splitlines())
    assert not effects or max(effects.values()) == 1
    for line in effects:
        run, position = line.decode().split()
        assert int(position) < standing.runs[run].spent + standing.runs[run].open
    return standing


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_competing_processes_are_killed_and_the_book_balances(backend, request, tmp_path):
    place = request.getfixturevalue(backend)
    officer = SigningKey.generate()
    book = Book.create(place, officers=[officer.identity])
    book.add(DataSet(sha256=DATA, name="d"))
    book.grant(DATA, Budget(epsilon=20.0, delta=1e-5), by=officer, reason="drill")
    journal = tmp_path / "effects"
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    rng, killed, workers = random.Random(2), 0, {}
    try:
        while killed < 50:
            while len(workers) < 8:
                run = f"run-{killed}-{len(workers)}-{rng.random()}"
                workers[forked(lambda run=run: spend(place, run, descriptor))] = run
            time.sleep(rng.random() * 0.05)
            victim = rng.choice(list(workers))
            os.kill(victim, signal.SIGKILL)
            ended = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
            assert ended in {-signal.SIGKILL, 0}
            workers.pop(victim)
            killed += 1
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        os.close(descriptor)
    standing = balanced(place, journal)
    for run, balance in standing.runs.items():  # what a killed run left open is settled by what is known of it
        Book.open(place).settle(run, balance.spent + balance.open)
    assert all(balance.open == 0 for balance in balanced(place, journal).runs.values())
