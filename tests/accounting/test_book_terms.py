# SPDX-License-Identifier: Apache-2.0
"""Terms of a grant: last day, window, teams, quorum; a person's total; and who did what, when and what for."""

import json

import dp_accounting as dp
import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from privguard import cli
from privguard.accounting.accountant import epsilon
from privguard.accounting.budget import limits, signed_rows
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet, Terms
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.attest.statement import SigningKey, countersign
from privguard.errors import BudgetExceededError, TamperedError, UnrecognisedError

OFFICER, SECOND = SigningKey.generate(), SigningKey.generate()
STEP, DATA, OTHER = dp.GaussianDpEvent(10.0), "a" * 64, "b" * 64
BUDGET = Budget(epsilon=2.0, delta=1e-5)
FOUR = epsilon([(STEP, 4)], delta=1e-5)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "book.db"


@pytest.fixture
def book(place):
    book = Book.create(place, officers=[OFFICER.identity])
    book.add(DataSet(sha256=DATA, name="patients", population="the town"))
    return book


def granted(book, **terms):
    book.grant(DATA, BUDGET, by=OFFICER, reason="study 7", terms=Terms(**terms))
    return book


class Clock:
    """Sets what day it is, for writers and for limits."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch

    def __call__(self, day):
        from datetime import UTC, datetime

        class Then(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=tz or UTC)

        for module in (signed_rows, limits):
            self._patch.setattr(module, "datetime", Then)


@pytest.fixture
def on(monkeypatch):
    return Clock(monkeypatch)


def test_after_the_last_day_nothing_new_is_reserved_and_nothing_is_forgotten(on, place):
    on("2026-03-01")
    book = Book.create(place, officers=[OFFICER.identity])
    book.add(DataSet(sha256=DATA, name="patients"))
    granted(book, until="2026-03-31")
    book.reserve("run", DATA, STEP, 4)
    on("2026-03-31")
    book.reserve("run", DATA, STEP, 1)
    on("2026-04-01")
    with pytest.raises(BudgetExceededError, match="until 2026-03-31"):
        book.reserve("run", DATA, STEP, 1)
    book.require_within(DATA)  # what is reserved may still be used
    assert book.standing(DATA).epsilon == epsilon([(STEP, 5)], delta=1e-5)


def test_a_window_limits_the_rate_and_the_lifetime_still_adds_up(on, place):
    on("2026-03-01")
    book = Book.create(place, officers=[OFFICER.identity])
    book.add(DataSet(sha256=DATA, name="patients"))
    granted(book, window_days=30, window_epsilon=FOUR)
    book.reserve("run", DATA, STEP, 4)
    with pytest.raises(BudgetExceededError, match="within 30 days"):
        book.reserve("run", DATA, STEP, 1)
    on("2026-04-01")
    book.reserve("run", DATA, STEP, 4)
    standing = book.standing(DATA)
    assert standing.recent == pytest.approx(FOUR)
    assert standing.epsilon == epsilon([(STEP, 8)], delta=1e-5) > FOUR
    on("2026-05-05")
    with pytest.raises(BudgetExceededError, match="over all runs"):
        book.reserve("run", DATA, STEP, 30)


def test_teams_share_a_data_set_out(book):
    granted(book)
    granted(book, team="red")
    book.grant(DATA, Budget(epsilon=FOUR, delta=1e-5), by=OFFICER, reason="share", terms=Terms(team="blue"))
    book.reserve("b", DATA, STEP, 4, by=Writer(key=SigningKey.generate(), team="blue"))
    with pytest.raises(BudgetExceededError, match=r"team blue: .*the limit is"):
        book.reserve("b2", DATA, STEP, 1, by=Writer(team="blue"))
    book.reserve("r", DATA, STEP, 4, by=Writer(team="red"))
    with pytest.raises(BudgetExceededError, match=r"team='': .*name one of blue, red"):
        book.reserve("nobody's", DATA, STEP, 1)
    standing = book.standing(DATA)
    assert standing.teams == {"red": pytest.approx(FOUR), "blue": pytest.approx(FOUR)}
    assert standing.epsilon == epsilon([(STEP, 8)], delta=1e-5)


def test_a_person_in_two_data_sets_of_one_population_has_one_total(book):
    granted(book)
    book.add(DataSet(sha256=OTHER, name="shoppers", population="the town"))
    book.add(DataSet(sha256="c" * 64, name="plants"))
    for data_set in (OTHER, "c" * 64):
        book.grant(data_set, BUDGET, by=OFFICER, reason="test")
    for data_set in (DATA, OTHER, "c" * 64):
        book.reserve(data_set[:1], data_set, STEP, 4)
    assert book.standing(DATA).person == book.standing(OTHER).person == epsilon([(STEP, 8)], delta=1e-5)
    assert book.standing(DATA).epsilon == pytest.approx(FOUR)
    assert book.standing("c" * 64).person is None


def test_two_officers_have_to_agree(tmp_path):
    book = Book.create(tmp_path / "two.db", officers=[OFFICER.identity, SECOND.identity], quorum=2)
    book.add(DataSet(sha256=DATA, name="patients"))
    drafted = book.draft(DATA, BUDGET, reason="study 7")
    one = drafted.sign(OFFICER)
    for envelope in (one, countersign(one, by=OFFICER), countersign(one, by=SigningKey.generate())):
        with pytest.raises(TamperedError, match="signed by 1 of this book's 2 officers; expected 2"):
            book.enter(envelope)
    book.enter(countersign(one, by=SECOND))
    assert book.standing(DATA).limit == BUDGET
    with pytest.raises(ValueError, match="at most the 1 officers"):
        Book.create(tmp_path / "three.db", officers=[OFFICER.identity], quorum=2)
    with pytest.raises(ValueError, match="each key once"):
        Book.create(tmp_path / "four.db", officers=[OFFICER.identity, OFFICER.identity], quorum=2)


def test_every_row_says_when_who_and_what_for(book, place):
    granted(book)
    book.reserve("run", DATA, STEP, 1, by=Writer(key=SigningKey.generate(), purpose="study 7, model b"))
    engine = create_engine(f"sqlite:///{place}")
    with engine.connect() as connection:
        rows = [json.loads(body) for (body,) in connection.execute(text("select body from privguard_book"))]
    engine.dispose()
    assert all(row["time"].endswith("Z") and "@" in row["actor"] for row in rows)
    assert rows[-1]["purpose"] == "study 7, model b"
    assert "signature" in rows[-1]


def test_a_book_of_the_old_format_says_what_to_do(place):
    engine = create_engine(f"sqlite:///{place}")
    with engine.begin() as connection:
        connection.exec_driver_sql("create table privguard_book (seq integer primary key, body text, head text)")
        connection.exec_driver_sql(
            """insert into privguard_book values (0, '{"format":"privguard book v1","kind":"open"}', 'x')"""
        )
    engine.dispose()
    with pytest.raises(UnrecognisedError, match="open a new book and bring each run in"):
        Book.open(place)


def test_the_commands_of_two_officers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, key in {"anna": OFFICER, "ben": SECOND}.items():
        key.write(tmp_path / f"{name}.pem")
        key.identity.write(tmp_path / f"{name}.pub")

    def budget(line):
        result = CliRunner().invoke(cli.app, ["ledger", "budget", *line.split()], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    budget("open team.db --officer anna.pub --officer ben.pub --quorum 2")
    budget(f"add team.db {DATA} --name patients --population town")
    budget(
        f"draft team.db {DATA} --epsilon 2 --delta 1e-5 --key anna.pem --until 2099-12-31 --window 30 1.9 --out g.json"
    )
    assert "signed by 2" in budget("sign g.json --key ben.pem")
    shown = budget("enter team.db g.json")
    assert "of 2 at" in shown
    assert "until 2099-12-31" in shown
    assert "within 30 days: ε=0.0000 of 1.9" in shown
    book = Book.open("team.db")
    book.reserve("lost", DATA, STEP, 20, by=Writer(key=SigningKey.generate()))
    budget("release team.db lost --used 5 --key anna.pem --reason lost --out r.json")
    budget("sign r.json --key ben.pem")
    assert "5 events spent, 15 returned" in budget("enter team.db r.json")
    kept = json.loads(budget("verify team.db --json"))
    budget(f"verify team.db --head {kept['head']} --size {kept['size']}")


def test_what_a_run_begins_prices_nothing_again(book, tmp_path, monkeypatch):
    """A running book is asked once a second: only what changes a spend or a limit is worth a composition."""
    from privguard.accounting import accountant
    from privguard.accounting.ledger import Ledger

    granted(book)
    key = SigningKey.generate()
    book.reserve("run", DATA, STEP, 4, by=Writer(key=key))
    fine = book.require_within(DATA)
    with Ledger.create(tmp_path / "ledger.jsonl", {"run": "run"}) as ledger:
        book.begin("run", 2, by=key, ledger=ledger.history)
    priced = []
    monkeypatch.setattr(accountant, "epsilon", lambda *_, **__: priced.append(1) or 0.0)
    book.require_within(DATA, unless=fine)
    assert not priced
    book.cap(DATA, 0.1, reason="lower")
    book.require_within(DATA, unless=fine)
    assert priced
