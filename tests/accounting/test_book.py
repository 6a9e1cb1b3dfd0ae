# SPDX-License-Identifier: Apache-2.0
"""The budget book: limits hold over all runs and people, only a signature raises them, and a changed row is found."""

import hashlib
import json

import dp_accounting as dp
import pytest
from sqlalchemy import create_engine, text

from privguard.accounting.accountant import epsilon
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet, Grant
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.accounting.sweep import RandomStopping
from privguard.attest.statement import Envelope, SigningKey
from privguard.errors import BudgetExceededError, LedgerError, TamperedError, UnknownEventError

OFFICER = SigningKey.generate()
STEP = dp.GaussianDpEvent(10.0)
ROOT, CHILD, OTHER = (letter * 64 for letter in "abc")
BUDGET = Budget(epsilon=1.0, delta=1e-5)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "book.db"


@pytest.fixture
def book(place):
    book = Book.create(place, officers=[OFFICER.identity])
    book.add(DataSet(sha256=ROOT, name="patients", source="registry", version="dvc:3f"))
    return book


def granted(book, budget=BUDGET, sha256=ROOT):
    book.grant(sha256, budget, by=OFFICER, reason="study 7")
    return book


def test_nothing_is_spent_without_a_grant(book):
    with pytest.raises(BudgetExceededError, match="nothing was granted"):
        book.reserve("run", ROOT, STEP)
    with pytest.raises(ValueError, match="add it to the book"):
        book.reserve("run", OTHER, STEP)


def test_all_runs_of_all_people_are_composed(book, place):
    granted(book)
    book.reserve("anna/1", ROOT, STEP, 2)
    other = Book.open(place)
    other.reserve("ben/1", ROOT, STEP, 2)
    standing = book.standing(ROOT)
    assert standing.epsilon == epsilon([(STEP, 4)], delta=1e-5)
    assert set(standing.runs) == {"anna/1", "ben/1"}
    with pytest.raises(BudgetExceededError, match=r"patients .*epsilon would be .* over all runs, the limit is 1"):
        for _ in range(20):
            other.reserve("ben/1", ROOT, STEP)
    left = book.standing(ROOT)
    assert left.epsilon <= 1.0 < epsilon([(STEP, sum(run.reserved for run in left.runs.values()) + 1)], delta=1e-5)


def test_only_a_signature_raises_a_limit(book):
    granted(book)
    book.cap(ROOT, 0.5, reason="half is enough")
    assert book.standing(ROOT).limit.epsilon == 0.5
    with pytest.raises(BudgetExceededError, match="only an officer's grant raises it"):
        book.cap(ROOT, 0.8, reason="more")
    before = book.standing(ROOT)
    draft = book.draft(ROOT, Budget(epsilon=9.0, delta=1e-5), reason="more")
    stranger = draft.sign(SigningKey.generate())
    edited = Envelope(
        payload=draft.sign(OFFICER).payload.replace(b'"epsilon":9', b'"epsilon":90'),
        signatures=draft.sign(OFFICER).signatures,
    )
    for forged in (stranger, edited, Envelope(payload=draft.sign(OFFICER).payload)):
        with pytest.raises(TamperedError):
            book.enter(forged)
    assert book.standing(ROOT) == before
    granted(book, Budget(epsilon=2.0, delta=1e-5))
    assert book.standing(ROOT).limit.epsilon == 2.0


def test_an_old_grant_cannot_come_back(book, tmp_path):
    generous = book.draft(ROOT, Budget(epsilon=9.0, delta=1e-5), reason="first").sign(OFFICER)
    book.enter(generous)
    granted(book)
    with pytest.raises(LedgerError, match="as number 1"):
        book.enter(generous)
    other = Book.create(tmp_path / "other.db", officers=[OFFICER.identity])
    other.add(DataSet(sha256=ROOT, name="patients"))
    with pytest.raises(LedgerError, match="signed for book"):
        other.enter(generous)


def test_a_family_shares_what_was_spent(book):
    granted(book)
    book.add(DataSet(sha256=CHILD, name="adults", parent=ROOT, transformations=("age >= 18",)))
    book.add(DataSet(sha256=OTHER, name="plants"))
    book.reserve("parent", ROOT, STEP, 3)
    assert book.standing(CHILD).epsilon == book.standing(ROOT).epsilon > 0
    with pytest.raises(BudgetExceededError, match="patients"):
        book.reserve("child", CHILD, STEP, 50)
    granted(book, Budget(epsilon=0.8, delta=1e-5), CHILD)
    with pytest.raises(BudgetExceededError, match="adults"):  # the child's limit holds for its parent's runs too
        book.reserve("parent", ROOT, STEP, 3)
    granted(book, sha256=OTHER)
    assert book.standing(OTHER).epsilon == 0
    with pytest.raises(ValueError, match="one of this book"):
        book.add(DataSet(sha256="d" * 64, name="orphan", parent="e" * 64))


def test_a_run_gives_back_what_its_ledger_did_not_use(book, tmp_path):
    granted(book)
    key = SigningKey.generate()
    book.reserve("run", ROOT, STEP, 5, by=Writer(key=key))
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, {}) as ledger:
        book.begin("run", 3, by=key, ledger=ledger.history)
        ledger.reserve(STEP, 4)
        ledger.settle(2)
        ledger.reserve(STEP, 1)  # then the run is killed
    history = Ledger.read(path)
    with pytest.raises(ValueError, match="its ledger's 3 or above"):
        book.settle("run", 2, by=key, ledger=history)
    balance = book.settle("run", history.position, by=key, ledger=history)
    assert (balance.reserved, balance.spent, balance.open, balance.returned) == (5, 3, 0, 2)
    assert book.standing(ROOT).epsilon == epsilon(history, delta=1e-5)
    assert book.reserve("run", ROOT, STEP, 1, by=Writer(key=key)) == range(3, 4)
    for wrong in (2, 5):
        with pytest.raises(ValueError, match="between 3 and 4"):
            book.settle("run", wrong, by=key)


def test_every_changed_row_is_found(book, place):
    granted(book)
    book.reserve("run", ROOT, STEP, 2)
    book.reserve("run", ROOT, STEP, 1)
    engine = create_engine(f"sqlite:///{place}")
    kept = book.standing(ROOT)
    with engine.connect() as connection:
        rows = connection.execute(text("select seq, body, head from privguard_book order by seq")).all()
    changes = [
        "update privguard_book set body = replace(body, '\"times\":2', '\"times\":1') where seq = 3",
        "delete from privguard_book where seq = 3",
        "delete from privguard_book where seq = 0",
        "update privguard_book set seq = 9 where seq = 4",
        "update privguard_book set head = '' where seq = 2",
        "update privguard_book set body = body || ' ' where seq = 1",
    ]
    for change in changes:
        with engine.begin() as connection:
            connection.exec_driver_sql(change)
        with pytest.raises(LedgerError, match=r"book, row|its first"):
            Book.open(place).verify(head=kept.head, size=kept.size)
        with engine.begin() as connection:
            connection.execute(text("delete from privguard_book"))
            for seq, body, head in rows:
                connection.execute(
                    text("insert into privguard_book values (:seq, :body, :head)"),
                    {"seq": seq, "body": body, "head": head},
                )
    Book.open(place).verify(head=kept.head, size=kept.size)
    with engine.begin() as connection:
        connection.execute(text("delete from privguard_book where seq = 4"))
    Book.open(place)  # a cut at the end shows only against a head that was kept
    with pytest.raises(LedgerError, match="its first 5 rows"):
        Book.open(place).verify(head=kept.head, size=kept.size)
    engine.dispose()


def test_a_rewritten_chain_cannot_raise_a_limit(book, place):
    """Who can write to the database can compute every hash, but not an officer's signature."""
    granted(book)
    engine = create_engine(f"sqlite:///{place}")
    account = Book.open(place).verify()
    envelope = Grant(
        book=account.id, sha256=ROOT, serial=2, budget=Budget(epsilon=99.0, delta=1e-5), reason="mine"
    ).sign(SigningKey.generate())
    from privguard import _canon

    body = _canon.canonical({"kind": "grant", "envelope": envelope.to_json(), "time": account.time, "actor": "me"})
    with engine.begin() as connection:
        connection.execute(
            text("insert into privguard_book values (:seq, :body, :head)"),
            {"seq": account.size, "body": body.decode(), "head": account.next_head(body)},
        )
    engine.dispose()
    with pytest.raises(LedgerError, match="row 3: envelope"):
        Book.open(place)


def test_a_refused_change_leaves_nothing_behind(book, place):
    granted(book)
    before = book.standing(ROOT)
    for refused in (
        lambda: book.reserve("run", ROOT, STEP, 10**6),
        lambda: book.reserve("run", ROOT, dp.ZCDpEvent(1.0)),
        lambda: book.settle("nobody", 0),
        lambda: book.add(DataSet(sha256=ROOT, name="again")),
        lambda: book.cap(OTHER, 0.1, reason=""),
    ):
        with pytest.raises((BudgetExceededError, UnknownEventError, ValueError)):
            refused()
        assert book.standing(ROOT) == before
    assert Book.open(place).standing(ROOT) == before


def test_a_row_rewritten_with_its_own_hash_breaks_the_next(book, place):
    granted(book)
    book.cap(ROOT, 0.9, reason="mistaken")
    book.reserve("run", ROOT, STEP, 1)
    engine = create_engine(f"sqlite:///{place}")
    with engine.begin() as connection:
        rows = connection.execute(text("select body, head from privguard_book order by seq")).all()
        body = rows[3][0].replace("mistaken", "ordered by")
        head = hashlib.sha256(bytes.fromhex(rows[2][1]) + hashlib.sha256(body.encode()).digest()).hexdigest()
        connection.execute(
            text("update privguard_book set body = :body, head = :head where seq = 3"), {"body": body, "head": head}
        )
    engine.dispose()
    with pytest.raises(LedgerError, match="row 4"):
        Book.open(place)


def test_a_write_that_the_database_refuses_never_happened(book, place):
    granted(book)
    before = book.standing(ROOT)
    engine = create_engine(f"sqlite:///{place}")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "create trigger full before insert on privguard_book begin select raise(abort, 'disk full'); end"
        )
    with pytest.raises(OSError, match="disk full; nothing was written"):
        book.reserve("run", ROOT, STEP)
    with engine.begin() as connection:
        connection.exec_driver_sql("drop trigger full")
    engine.dispose()
    assert book.standing(ROOT) == before
    assert book.reserve("run", ROOT, STEP) == range(1)


def test_no_book_is_said_so(place):
    with pytest.raises((LedgerError, FileNotFoundError), match="create it"):
        Book.open(place)
    Book.create(place, officers=[OFFICER.identity])
    with pytest.raises(ValueError, match="opens once"):
        Book.create(place, officers=[OFFICER.identity])
    with pytest.raises(ValueError, match="at least one public key"):
        Book.create(place.with_suffix(".2"), officers=[])


def test_a_sweep_by_random_stopping_costs_less_than_its_runs_composed(book):
    run = dp.SelfComposedDpEvent(dp.GaussianDpEvent(50.0), 100)
    granted(book, Budget(epsilon=3.0, delta=1e-5))
    with pytest.raises(BudgetExceededError):
        book.reserve("composed", ROOT, run, 20)
    book.reserve("sweep", ROOT, RandomStopping(mean=20).event(run))
    assert epsilon([(run, 1)], delta=1e-5) < book.standing(ROOT).epsilon <= 3.0


def test_rows_are_public_json(book, place):
    granted(book)
    with create_engine(f"sqlite:///{place}").connect() as connection:
        bodies = [json.loads(body) for (body,) in connection.execute(text("select body from privguard_book"))]
    assert [row["kind"] for row in bodies] == ["open", "data set", "grant"]
    connection.engine.dispose()
