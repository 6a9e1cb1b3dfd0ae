# SPDX-License-Identifier: Apache-2.0
"""Who may do what on PostgreSQL: the table of roles and actions in docs/budget.md, cell by cell, on a real server."""

import re
import threading
import time
from pathlib import Path

import dp_accounting as dp
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.errors import BookUnavailableError, LedgerError, PrivguardError
from privguard.runs import budget as run_budget
from privguard.runs.budget import Charge
from privguard.training.plan import Plan

STEP, DATA = dp.GaussianDpEvent(10.0), "a" * 64
OFFICER, STRANGER, RUN_KEY = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
LIMIT = Budget(epsilon=3.0, delta=1e-5)
PAGE = Path(__file__).parents[2] / "docs" / "budget.md"
RECIPE = re.search(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
CUTS = 20
ROLES = ("engineer", "officer", "reader", "dba")


def execute(url, *statements):
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture
def team(postgres):
    """A book with a run of 20 events, 8 of them begun, and the page's own grants."""
    book = Book.create(postgres, officers=[OFFICER.identity])
    book.add(DataSet(sha256=DATA, name="patients"))
    book.grant(DATA, LIMIT, by=OFFICER, reason="test")
    book.reserve("run", DATA, STEP, 8)
    book.reserve("keyed", DATA, STEP, 12, by=Writer(key=RUN_KEY))
    logins = [f"CREATE ROLE {role} LOGIN" for role in ROLES]
    execute(postgres, *logins, *filter(str.strip, RECIPE.split(";")), "ALTER TABLE privguard_book OWNER TO dba")
    yield postgres
    execute(postgres, "ALTER TABLE privguard_book OWNER TO book", *(f"DROP OWNED BY {role}" for role in ROLES))
    execute(postgres, *(f"DROP ROLE {role}" for role in ROLES))


def as_role(url, role):
    return make_url(url).set(username=role).render_as_string(hide_password=False)


ACTIONS = {
    "read": lambda url: Book.open(url).standing(DATA),
    "reserve": lambda url: Book.open(url).reserve("new", DATA, STEP, 1),
    "settle own run": lambda url: Book.open(url).settle("keyed", 0, by=RUN_KEY),
    "settle another's": lambda url: Book.open(url).settle("keyed", 0, by=STRANGER),
    "grant, with an officer's key": lambda url: Book.open(url).grant(DATA, LIMIT, by=OFFICER, reason="more"),
    "grant, with another key": lambda url: Book.open(url).grant(DATA, LIMIT, by=STRANGER, reason="more"),
    "change a row": lambda url: execute(url, "UPDATE privguard_book SET body = replace(body, '12', '11')"),
    "delete a row": lambda url: execute(url, "DELETE FROM privguard_book WHERE seq = 4"),
    "truncate": lambda url: execute(url, "TRUNCATE privguard_book"),
    "drop": lambda url: execute(url, "DROP TABLE privguard_book"),
}


def outcome(url, role, action, kept):
    """yes, no (refused), or found (done, and found by a reader with a head that was kept)."""
    from sqlalchemy.exc import DBAPIError

    try:
        ACTIONS[action](as_role(url, role))
    except (PrivguardError, DBAPIError):
        assert Book.open(url).verify(head=kept.head, size=kept.size).head == kept.head  # a refusal changes nothing
        return "no"
    try:
        Book.open(url).verify(head=kept.head, size=kept.size)
    except LedgerError:
        return "found"
    return "yes"


def table():
    """The rows of the page's table: action → the outcome for each role."""
    rows = re.findall(
        r"^\| (.+?) \| (\w+) \| (\w+) \| (\w+) \| (\w+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {action: dict(zip(ROLES, cells, strict=True)) for action, *cells in rows if action in ACTIONS}


@pytest.mark.parametrize("role", ROLES)
def test_every_cell_behaves_as_the_table_says(team, role):
    expected, kept = {action: row[role] for action, row in table().items()}, Book.open(team).verify()
    assert set(expected) == set(ACTIONS)
    engine = create_engine(team, poolclass=NullPool)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT seq, body, head FROM privguard_book ORDER BY seq").all()
    for action, wanted in expected.items():
        assert outcome(team, role, action, kept) == wanted, (role, action)
        execute(team, "CREATE TABLE IF NOT EXISTS privguard_book (seq int primary key, body text, head text)")
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM privguard_book")
            for row in rows:
                connection.exec_driver_sql("INSERT INTO privguard_book VALUES (%s, %s, %s)", tuple(row))
    engine.dispose()


def test_connections_that_are_cut_end_no_run_and_count_nothing_twice(team, tmp_path, monkeypatch):
    """Every 150 ms the server cuts all connections, while a run begins steps, notes and settles."""
    monkeypatch.setattr(run_budget, "_PAUSE", 0.0)
    url, over = as_role(team, "engineer"), threading.Event()
    cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'engineer'"
    counted = []

    def cutter():
        engine = create_engine(team, poolclass=NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not over.is_set():
                counted.append(connection.exec_driver_sql(cut).scalar())
                time.sleep(0.15)
        engine.dispose()

    steps = 1000
    plan = Plan(
        steps=steps, sample_rate=0.01, noise_multiplier=4.0, max_grad_norm=1.0, delta=1e-5, expected_batch_size=10
    )
    thread = threading.Thread(target=cutter)
    charge = run_budget._patiently(lambda: Charge.to(url, DATA))
    charge.begin("cut", plan)
    thread.start()
    try:
        with Ledger.create(tmp_path / "ledger.jsonl", {"run": "cut"}) as ledger:
            while sum(counted) < CUTS and ledger.position < steps:
                charge.permit(ledger, ledger.position + 1)
                charge.note(ledger)
                ledger.reserve(plan.event())
            used = ledger.position
            ledger.settle(used)
        charge.settle(tmp_path / "ledger.jsonl")
    finally:
        over.set()
        thread.join()
    assert sum(counted) > 0
    balance = Book.open(team).balance("cut")
    assert used <= balance.spent <= used + steps // run_budget._SHARE
    assert (balance.open, balance.reserved) == (0, steps)


def test_a_wrong_password_is_no_tampering(team):
    with pytest.raises(BookUnavailableError):
        Book.open(make_url(team).set(username="nobody").render_as_string(hide_password=False))
