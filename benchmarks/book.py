# SPDX-License-Identifier: Apache-2.0
"""Random kills of eight competing processes on the budget book: does it balance, always, and how fast is it?

    python -m benchmarks.book                      # 1,000 kills on SQLite
    python -m benchmarks.book --kills 200 --url postgresql+psycopg://…

Workers are forked from this warm process. Each reserves blocks on one data set, writes every position that takes effect
to a journal of its own, settles now and then, and dies by SIGKILL at a random moment. Afterwards, for each run:
reserved = spent + open + returned; no position took effect twice or without a reservation; the limit holds.
"""

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dp_accounting as dp

from privguard.accounting.budget.book import Book, Standing
from privguard.accounting.budget.grants import DataSet
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.errors import BudgetExceededError

RESULTS = Path(__file__).parent / "results"
STEP = dp.GaussianDpEvent(30.0)
DATA = "a" * 64
WORKERS = 8


def drill(place: str, journal: Path, *, kills: int, epsilon: float = 3.0) -> dict[str, int | float]:
    """Make a book at ``place``, kill so many workers on it, and assert that it balances; returns what was counted."""
    officer = SigningKey.generate()
    book = Book.create(place, officers=[officer.identity])
    book.add(DataSet(sha256=DATA, name="drill"))
    book.grant(DATA, Budget(epsilon=epsilon, delta=1e-5), by=officer, reason="drill")
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ended = killed_at_work(lambda run: spend(place, run, descriptor), kills, begun=lambda: journal.stat().st_size > 0)
    os.close(descriptor)
    standing = balanced(place, journal)
    still_open = sum(balance.open for balance in standing.runs.values())
    for (
        run,
        balance,
    ) in standing.runs.items():  # a killed run's reservation ends as spent, since its ledger is not asked
        if balance.open:
            book.settle(run, balance.spent + balance.open)
    assert all(balance.open == 0 for balance in balanced(place, journal).runs.values())
    return {
        "kills": kills,
        "killed_while_working": ended[-signal.SIGKILL],
        "stopped_by_the_limit_first": ended[0],
        "runs": len(standing.runs),
        "events_reserved": sum(balance.reserved for balance in standing.runs.values()),
        "events_open_at_the_end": still_open,
        "epsilon": standing.epsilon,
        "limit": epsilon,
    }


def killed_at_work(work: Callable[[str], None], kills: int, *, begun: Callable[[], bool]) -> Counter[int]:
    """Keep eight workers going and, once they have begun, kill one at a random moment, so many times.

    The exit codes, counted.
    """
    rng, ended, workers = random.Random(2), Counter[int](), list[int]()
    try:
        for turn in range(kills):
            while len(workers) < WORKERS:
                name = f"run-{turn}-{len(workers)}"
                workers.append(forked(partial(work, name)))
            while not begun():
                time.sleep(0.001)
            time.sleep(rng.random() * 0.05)
            victim = workers.pop(rng.randrange(len(workers)))
            os.kill(victim, signal.SIGKILL)
            ended[os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])] += 1
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
    assert set(ended) <= {-signal.SIGKILL, 0}, ended
    return ended


def forked(work: Callable[[], None]) -> int:
    """The process id of a child that does ``work`` in this warm interpreter and never returns from here."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"child: {error!r}\n".encode())
        os._exit(1)


def spend(place: str, run: str, journal: int) -> None:
    """Reserve in the book and begin there, take effect, now and then settle; until the limit or a kill ends it."""
    book, chance, key = Book(place), random.Random(), SigningKey.generate()
    with tempfile.TemporaryDirectory() as folder, Ledger.create(Path(folder) / "ledger.jsonl", {"run": run}) as ledger:
        while True:
            try:
                positions = book.reserve(run, DATA, STEP, chance.randint(1, 3), by=Writer(key=key))
            except BudgetExceededError:
                return
            used = positions[: chance.randint(0, len(positions))]
            book.begin(run, used.stop, by=key, ledger=ledger.history)
            for position in used:
                ledger.reserve(STEP)
                os.write(journal, b"%s %d\n" % (run.encode(), position))
            if used.stop < positions.stop:
                book.settle(run, used.stop, by=key, ledger=ledger.history)


def balanced(place: str, journal: Path) -> Standing:
    """What was granted is spent, open or returned; what took effect was granted, once; the limit holds."""
    standing = Book.open(place).standing(DATA)
    for balance in standing.runs.values():
        assert balance.reserved == balance.spent + balance.open + balance.returned
    assert standing.limit is not None
    assert standing.epsilon <= standing.limit.epsilon
    effects = Counter(journal.read_bytes().splitlines())
    assert max(effects.values()) == 1
    for line in effects:
        run, position = line.decode().split()
        assert int(position) < standing.runs[run].spent + standing.runs[run].open
    return standing


def reservation_times(place: str, count: int = 40) -> list[float]:
    """CPU seconds of single reservations, priced and durable, in a book with one run."""
    officer = SigningKey.generate()
    book = Book.create(place, officers=[officer.identity])
    book.add(DataSet(sha256=DATA, name="times"))
    book.grant(DATA, Budget(epsilon=100.0, delta=1e-5), by=officer, reason="times")
    times = list[float]()
    for _ in range(count):
        begun = time.process_time()
        book.reserve("run", DATA, STEP)
        times.append(time.process_time() - begun)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--url", default="")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = chosen.url or f"sqlite:///{folder}/book.db"
        counted = drill(place, Path(folder) / "effects", kills=chosen.kills, epsilon=10.0)
        times = reservation_times(f"sqlite:///{folder}/times.db")
    counted["reservation_cpu_seconds_median"] = statistics.median(times)
    rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in counted.items()]
    table = "\n".join(["| random kills on the budget book | |", "|---|---:|", *rows, ""])
    RESULTS.mkdir(exist_ok=True)
    name = "book_" + place.split(":", maxsplit=1)[0].split("+")[0]
    (RESULTS / f"{name}.json").write_text(json.dumps(counted, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
