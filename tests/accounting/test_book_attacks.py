# SPDX-License-Identifier: Apache-2.0
"""Ways to lower what a run has spent: by a stranger who can write the book, and by whoever holds the run's key.

Every way is refused, or found by the next reader, or against a head that was kept; none lowers what is shown.
"""

import contextlib
import shutil

import dp_accounting as dp
import pytest
from sqlalchemy import create_engine, text

from privguard import _canon
from privguard.accounting.budget import signed_rows
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet, Release
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey, countersign
from privguard.errors import LedgerError, PrivacyError, PrivguardError

STEP, DATA, OTHER = dp.GaussianDpEvent(10.0), "a" * 64, "b" * 64


class Scene:
    """A book of two officers in which a run has reserved 20 events and begun 8; 5 are in its ledger."""

    def __init__(self, folder):
        self.folder, self.place, self.path = folder, folder / "book.db", folder / "ledger.jsonl"
        self.officers = [SigningKey.generate(), SigningKey.generate()]
        self.key, self.stranger = SigningKey.generate(), SigningKey.generate()
        self.book = Book.create(self.place, officers=[key.identity for key in self.officers], quorum=2)
        for data_set in (DATA, OTHER):
            self.book.add(DataSet(sha256=data_set, name=data_set[:3]))
            drafted = self.book.draft(data_set, Budget(epsilon=3.0, delta=1e-5), reason="test")
            self.book.enter(countersign(drafted.sign(self.officers[0]), by=self.officers[1]))
        self.book.reserve("run", DATA, STEP, 20, by=Writer(key=self.key))
        with Ledger.create(self.path, {"run": "run"}) as ledger:
            ledger.reserve(STEP, 3)
            self.book.begin("run", 8, by=self.key, ledger=ledger.history)
            ledger.reserve(STEP, 2)
        self.kept = self.book.verify()
        shutil.copy(self.place, folder / "backup.db")

    def row(self, change, *, by=None):
        """Put a row into the table as SQL does, with the right hash and, if asked, a signature."""
        account = Book.open(self.place).verify()
        row = {**change, "time": signed_rows.now(account.time), "actor": "somebody"}
        row = row if by is None else signed_rows.signed(row, account.head, by)
        body = _canon.canonical(row)
        self.sql(
            "insert into privguard_book values (:seq, :body, :head)",
            {"seq": account.size, "body": body.decode(), "head": account.next_head(body)},
        )

    def sql(self, statement, values=None):
        engine = create_engine(f"sqlite:///{self.place}")
        with engine.begin() as connection:
            connection.execute(text(statement), values or {})
        engine.dispose()

    def forged(self, *, events, beginning=0):
        """Another ledger: as many lines of the true one, then a clean stop."""
        lines = self.path.read_bytes().splitlines(keepends=True)[:beginning]
        path = self.folder / "forged.jsonl"
        if lines:
            path.write_bytes(b"".join(lines))
            with Ledger.open(path):
                pass
        else:
            with Ledger.create(path, {"run": "run"}) as ledger:
                if events:
                    ledger.reserve(STEP, events)
                ledger.settle(events)
        return Ledger.read(path)

    def settled(self, used, *, ledger=None, release=None):
        noted = self.kept.runs["run"].ledger[1]
        grown = ledger.growth(noted) if ledger is not None and ledger.size >= noted else []
        evidence = {"head": ledger.head, "size": ledger.size, "proof": grown} if ledger is not None else None
        return {"kind": "settle", "run": "run", "used": used, "ledger": evidence, "release": release}


BY_A_STRANGER = {
    "settles without a word": lambda s: s.book.settle("run", 0),
    "settles with a key of their own": lambda s: s.book.settle("run", 8, by=s.stranger, ledger=Ledger.read(s.path)),
    "settles at what was begun, unsigned": lambda s: s.book.settle("run", 8, ledger=Ledger.read(s.path)),
    "inserts a settlement by SQL": lambda s: s.row(s.settled(0)),
    "inserts a settlement signed by another key": lambda s: s.row(s.settled(8), by=s.stranger),
    "signs a release as if an officer": lambda s: s.book.release(
        s.book.draft_release("run", 8, reason="mine").sign(s.stranger)
    ),
    "is one officer of two": lambda s: s.book.release(s.book.draft_release("run", 8, reason="m").sign(s.officers[0])),
    "signs twice as one officer": lambda s: s.book.release(
        countersign(s.book.draft_release("run", 8, reason="mine").sign(s.officers[0]), by=s.officers[0])
    ),
    "reserves under the run's name on another data set": lambda s: s.book.reserve("run", OTHER, dp.NoOpDpEvent(), 1),
    "makes the run's events smaller": lambda s: s.sql(
        "update privguard_book set body = replace(body, '10', '99') where body like '%reserve%'"
    ),
    "deletes the reservation": lambda s: s.sql("delete from privguard_book where body like '%reserve%'"),
    "cuts the book": lambda s: s.sql("delete from privguard_book where seq >= 5"),
    "empties the book": lambda s: s.sql("delete from privguard_book"),
    "dates a row into the future": lambda s: s.row({"kind": "cap", "data_set": DATA, "epsilon": 1.0, "time": "2999"}),
}

BY_THE_HOLDER_OF_THE_KEY = {
    "deletes the ledger": lambda s: s.book.settle("run", 0, by=s.key),
    "deletes the ledger, at what was begun": lambda s: s.book.settle("run", 5, by=s.key),
    "shows a new, empty ledger": lambda s: s.book.settle("run", 0, by=s.key, ledger=s.forged(events=0)),
    "shows a new, shorter ledger": lambda s: s.book.settle("run", 8, by=s.key, ledger=s.forged(events=1)),
    "cuts the ledger to one line": lambda s: s.book.settle("run", 8, by=s.key, ledger=s.forged(events=0, beginning=1)),
    "cuts the ledger to what was noted": lambda s: s.book.settle(
        "run", 3, by=s.key, ledger=s.forged(events=0, beginning=2)
    ),
    "shows less than what was begun": lambda s: s.book.settle("run", 5, by=s.key, ledger=Ledger.read(s.path)),
    "inserts that by SQL, signed": lambda s: s.row(s.settled(5, ledger=Ledger.read(s.path)), by=s.key),
    "inserts a forged ledger by SQL, signed": lambda s: s.row(s.settled(8, ledger=s.forged(events=9)), by=s.key),
    "takes back what was begun": lambda s: s.book.begin("run", 2, by=s.key, ledger=Ledger.read(s.path)),
    "has officers release what was begun": lambda s: s.book.release(
        countersign(s.book.draft_release("run", 2, reason="a favour").sign(s.officers[0]), by=s.officers[1])
    ),
    "brings an old release back": lambda s: s.book.release(
        countersign(
            Release(book=s.kept.id, run="run", serial=1, used=8, reason="old").sign(s.officers[0]), by=s.officers[1]
        )
    ),
}


@pytest.mark.parametrize("way", [*BY_A_STRANGER, *BY_THE_HOLDER_OF_THE_KEY])
def test_no_way_lowers_what_was_spent(tmp_path, way):
    scene = Scene(tmp_path)
    before = scene.book.standing(DATA).epsilon
    with contextlib.suppress(PrivguardError, ValueError):
        (BY_A_STRANGER | BY_THE_HOLDER_OF_THE_KEY)[way](scene)
    try:
        after = Book.open(scene.place)
        after.verify(head=scene.kept.head, size=scene.kept.size)
    except LedgerError:
        return  # the next reader sees that the book was changed, and reads nothing from it
    assert after.standing(DATA).epsilon == before


def test_the_run_itself_gives_back_what_it_did_not_begin(tmp_path):
    """The same scene, the right way: the attacks above are not refused because everything is."""
    scene = Scene(tmp_path)
    balance = scene.book.settle("run", 8, by=scene.key, ledger=Ledger.read(scene.path))
    assert (balance.spent, balance.open, balance.returned) == (8, 0, 12)


def test_two_officers_give_back_what_was_not_begun_once(tmp_path):
    scene = Scene(tmp_path)
    drafted = scene.book.draft_release("run", 8, reason="its disk is lost")
    envelope = countersign(drafted.sign(scene.officers[0]), by=scene.officers[1])
    assert scene.book.release(envelope).returned == 12
    scene.book.reserve("run", DATA, STEP, 12, by=Writer(key=scene.key))
    with pytest.raises(LedgerError, match="release: signed for"):
        scene.book.release(envelope)


def test_a_book_that_was_cut_under_an_open_reader_is_found_at_the_next_look(tmp_path):
    scene = Scene(tmp_path)
    scene.sql("delete from privguard_book where seq >= 6")
    with pytest.raises(LedgerError, match="gone or another"):
        scene.book.standing(DATA)
    with pytest.raises(LedgerError):
        Book.open(scene.place).verify(head=scene.kept.head, size=scene.kept.size)


def test_a_signed_row_is_worth_nothing_elsewhere(tmp_path):
    """A settlement that the run signed is carried to another place of the same book."""
    scene = Scene(tmp_path)
    account = scene.book.verify()
    change = {**scene.settled(8, ledger=Ledger.read(scene.path)), "time": account.time, "actor": "anna"}
    row = signed_rows.signed(change, account.head, scene.key)
    scene.book.cap(OTHER, 1.0, reason="something comes between")
    body, account = _canon.canonical(row), scene.book.verify()
    scene.sql(
        "insert into privguard_book values (:seq, :body, :head)",
        {"seq": account.size, "body": body.decode(), "head": account.next_head(body)},
    )
    with pytest.raises(LedgerError, match="signature: not made by"):
        Book.open(scene.place)


def test_a_run_that_began_nothing_is_given_back_by_its_own_key_only(tmp_path):
    """Here neither what was begun nor a ledger stands in the way: the signature alone decides."""
    scene = Scene(tmp_path)
    scene.book.reserve("waiting", DATA, STEP, 4, by=Writer(key=scene.key))
    for by in (None, scene.stranger, scene.officers[0]):
        with pytest.raises(PrivacyError, match="only the run's own key"):
            scene.book.settle("waiting", 0, by=by)
    assert scene.book.settle("waiting", 0, by=scene.key).returned == 4
