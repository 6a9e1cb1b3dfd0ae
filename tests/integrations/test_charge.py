# SPDX-License-Identifier: Apache-2.0
"""Runs that are charged to a budget book: nothing leaks, nothing is spent twice, whatever ends a run."""

import os
import time
from multiprocessing import get_context

import pytest
import torch
from small import Scored, SmallRun, small_data, small_plan
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from privguard.accounting.accountant import epsilon
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.checkpoint.keys.key import Key
from privguard.errors import BookUnavailableError, BudgetExceededError, LedgerError, PrivacyError, ResumeError
from privguard.integrations.accelerate import PrivateAccelerator
from privguard.integrations.transformers.trainer import PrivateTrainer
from privguard.runs.budget import Charge
from privguard.runs.options import RunOptions

DATA, DELTA = "5e" * 32, 1e-3
STEPS = small_plan().steps
ENOUGH = epsilon([(small_plan().event(), 2 * STEPS)], delta=DELTA) + 1e-3  # for two whole runs, and not for three


@pytest.fixture
def place(tmp_path):
    return tmp_path / "team.db"


@pytest.fixture
def book(place):
    officer = SigningKey.generate()
    made = Book.create(place, officers=[officer.identity])
    made.add(DataSet(sha256=DATA, name="patients"))
    made.grant(DATA, Budget(epsilon=ENOUGH, delta=DELTA), by=officer, reason="test")
    return made


def balance(book):
    """(spent, open, returned) of each run, in the order of their beginning."""
    return [(run.spent, run.open, run.returned) for run in book.standing(DATA).runs.values()]


def test_a_whole_run_is_reserved_before_its_first_step_and_settled_after_its_last(small, book, place):
    private = small.start(book=place, data_set=DATA)
    assert balance(book) == [(0, STEPS, 0)]
    small.go(private)
    assert balance(book) == [(STEPS, 0, 0)]
    assert book.standing(DATA).epsilon == pytest.approx(private.claim().epsilon)


def test_the_run_that_does_not_fit_leaves_no_trace(tmp_path, book, place):
    for name in ("first", "second"):
        SmallRun(tmp_path / name).start(book=book, data_set=DATA).close()  # settled at 0 steps
    for name in ("a", "b"):
        SmallRun.go(SmallRun(tmp_path / name).start(book=book, data_set=DATA))
    with pytest.raises(BudgetExceededError, match="over all runs"):
        SmallRun(tmp_path / "c").start(book=place, data_set=DATA)
    assert not (tmp_path / "c").exists()
    assert balance(book) == [(0, 0, STEPS)] * 2 + [(STEPS, 0, 0)] * 2


def test_a_run_that_stops_gives_the_rest_back_and_takes_it_again_when_it_goes_on(small, book, place):
    small.go(small.start(book=book, data_set=DATA), steps=7)
    assert balance(book) == [(7, 0, STEPS - 7)]
    small.renew()
    private = small.start(book=place, data_set=DATA, resume=True)
    assert balance(book) == [(7, STEPS - 7, STEPS - 7)]
    small.go(private)
    assert balance(book) == [(STEPS, 0, STEPS - 7)]


def test_what_was_given_back_and_taken_by_others_is_gone(small, book):
    small.go(small.start(book=book, data_set=DATA), steps=7)
    book.reserve("others", DATA, small_plan().event(), 2 * STEPS - 7)
    small.renew()
    with pytest.raises(BudgetExceededError, match="over all runs"):
        small.start(book=book, data_set=DATA, resume=True)
    assert Ledger.read(small.folder / "ledger.jsonl").position == 7


def train_until_killed(folder, place, taken, key):
    """Nine steps of a run in a process of its own, which then stays where it is until it is killed."""
    torch.set_num_threads(1)
    run = SmallRun(folder)
    run.key = Key.read(key)
    private = run.start(book=place, data_set=DATA, checkpoint_every=2)
    for inputs, targets in private.batches():
        private.backward(torch.nn.functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        if private.step():
            with taken.open("a") as file:
                file.write("step\n")
        while taken.read_text().count("step") == 9:
            time.sleep(0.005)


def test_a_killed_run_keeps_its_reservation_and_spends_it_once(tmp_path, book, place):
    run, taken, key = SmallRun(tmp_path / "run"), tmp_path / "taken", tmp_path / "key"
    taken.touch()
    run.key.write(key)
    child = get_context("spawn").Process(target=train_until_killed, args=(run.folder, place, taken, key))
    child.start()  # a process of its own: after a fork, torch waits for threads that are not there
    while taken.read_text().count("step") < 9:
        assert child.is_alive()
        time.sleep(0.01)
    child.kill()
    child.join()
    assert balance(book) == [(0, STEPS, 0)]  # all of it, though the process is gone
    with pytest.raises(BudgetExceededError):
        book.reserve("others", DATA, small_plan().event(), STEPS + 1)
    assert 0 < run.go(run.start(book=place, data_set=DATA, resume=True)) < STEPS - 8  # what was reserved stays spent
    assert balance(book) == [(STEPS, 0, 0)]
    assert sum(times for _, times in Ledger.read(run.folder / "ledger.jsonl").spent()) == STEPS


@pytest.mark.parametrize("steps", [7, 20])
def test_a_run_with_bands_tells_the_book_of_events_and_not_of_steps(small, book, steps):
    """An event covers four steps: after seven of them two are begun, and neither the book nor the ledger says less."""
    plan = small_plan(strategy=(1.0, 0.5, 0.25, 0.125))
    small.go(small.start(plan=plan, book=book, data_set=DATA), steps=steps)
    spent, still_open, _ = balance(book)[0]
    assert (spent, still_open) == (-(-steps // 4), 0)
    assert spent == Ledger.read(small.folder / "ledger.jsonl").events


def test_a_limit_that_falls_stops_the_run_at_its_next_step(small, book, monkeypatch):
    monkeypatch.setattr("privguard.runs.budget._ASK_EVERY", 0.0)
    private = small.start(book=book, data_set=DATA)
    done = 0
    with pytest.raises(BudgetExceededError, match=r"the limit is 0\.01"):
        for inputs, targets in private.batches():
            private.backward(torch.nn.functional.cross_entropy(private.model(inputs), targets, reduction="none"))
            done += private.step()
            if done == 3:
                book.cap(DATA, 0.01, reason="the study is over")
    assert done == 3
    assert balance(book) == [(3, 0, STEPS - 3)]
    assert Ledger.read(small.folder / "ledger.jsonl").settled


def test_a_book_that_moves_and_still_has_room_stops_nobody(small, book):
    private = small.start(book=book, data_set=DATA)
    book.cap(DATA, ENOUGH - 1e-4, reason="a little")
    assert small.go(private) == STEPS


def test_a_database_that_goes_away_for_a_while_ends_no_run(small, book, place, monkeypatch):
    """It does not answer twenty times after step 3, and twice when the run ends; nothing is lost or counted twice."""
    monkeypatch.setattr("privguard.runs.budget._PAUSE", 0.0)
    private, away = small.start(book=book, data_set=DATA), 0
    really = Engine.connect

    def connect(engine):
        nonlocal away
        if away:
            away -= 1
            raise OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))
        return really(engine)

    monkeypatch.setattr(Engine, "connect", connect)
    done = 0
    for inputs, targets in private.batches():
        private.backward(torch.nn.functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        done += private.step()
        away = 20 if done == 3 else 2 if done == STEPS else away
    assert done == STEPS
    assert balance(book) == [(STEPS, 0, 0)]


def test_an_answer_that_is_lost_counts_nothing_twice(small, book, monkeypatch):
    """Each row is written, and the connection goes before the answer comes: what is tried again is not added again."""
    monkeypatch.setattr("privguard.runs.budget._PAUSE", 0.0)
    really, lost = Book._append, iter([True, False] * 10_000)

    def append(self, *given, **named):
        row = really(self, *given, **named)
        if next(lost):
            raise BookUnavailableError("book: connection lost; nothing is known")
        return row

    monkeypatch.setattr(Book, "_append", append)
    small.go(small.start(book=book, data_set=DATA), steps=4)
    small.renew()
    small.go(small.start(book=book, data_set=DATA, resume=True))
    assert balance(book)[0][:2] == (STEPS, 0)


def test_a_database_that_stays_away_ends_the_run_after_two_minutes(small, book, monkeypatch):
    private, now, asked = small.start(book=book, data_set=DATA), 1e6, []
    monkeypatch.setattr("privguard.runs.budget.time.monotonic", lambda: now)

    def sleep(seconds):
        nonlocal now
        now += seconds

    def gone(*_, **__):
        asked.append(now)
        raise BookUnavailableError("book: gone")

    monkeypatch.setattr("privguard.runs.budget.time.sleep", sleep)
    monkeypatch.setattr(Book, "begin", gone)
    with pytest.raises(BookUnavailableError):
        small.go(private)
    assert asked[-1] - asked[0] == 120
    assert balance(book) == [(0, 0, STEPS)]


def test_whatever_becomes_of_the_ledger_what_was_begun_stays_spent(small, book):
    """An engineer holds the run's key and rewrites the folder: the book heard of each step before it took effect."""
    small.go(small.start(book=book, data_set=DATA), steps=7)
    key, path = SigningKey.read(small.folder / "book.key"), small.folder / "ledger.jsonl"
    path.unlink()
    with Ledger.create(path, {"run": "forged"}) as forged:
        forged.settle(0)
    run = next(iter(book.standing(DATA).runs))
    for attempt in (
        lambda: book.settle(run, 0, by=key, ledger=Ledger.read(path)),
        lambda: book.settle(run, 7, by=key, ledger=Ledger.read(path)),
        lambda: book.settle(run, 0, by=key),
    ):
        with pytest.raises((ValueError, LedgerError)):
            attempt()
    assert balance(book) == [(7, 0, STEPS - 7)]


@pytest.mark.parametrize("required", ["1", "another book"])
def test_a_place_that_requires_a_book_starts_no_run_without_it(tmp_path, book, monkeypatch, required):
    monkeypatch.setenv("PRIVGUARD_REQUIRE_BOOK", required)
    with pytest.raises(BudgetExceededError, match="PRIVGUARD_REQUIRE_BOOK"):
        SmallRun(tmp_path / "free").start()
    if required != "1":
        with pytest.raises(BudgetExceededError, match="asks for the book another book"):
            SmallRun(tmp_path / "charged").start(book=book, data_set=DATA)
        monkeypatch.setenv("PRIVGUARD_REQUIRE_BOOK", book.verify().id)
    SmallRun(tmp_path / "charged").start(book=book, data_set=DATA, purpose="study 7").close()
    assert not (tmp_path / "free").exists()


@pytest.mark.parametrize("given", [{"book": "somewhere"}, {"data_set": DATA}], ids=["book", "data set"])
def test_book_and_data_set_come_together(tmp_path, given):
    with pytest.raises(ValueError, match="expected both"):
        SmallRun(tmp_path / "run").start(**given)


def test_a_data_set_that_the_book_does_not_know_is_refused(tmp_path, book):
    with pytest.raises(ValueError, match="one of this book"):
        SmallRun(tmp_path / "run").start(book=book, data_set="00" * 32)


def test_a_run_keeps_its_book(small, tmp_path, book):
    small.go(small.start(book=book, data_set=DATA), steps=2)
    small.renew()
    with pytest.raises(ResumeError, match=r"book=None: this run is charged to [0-9a-f]{32}"):
        small.start(resume=True)
    free = SmallRun(tmp_path / "free")
    free.go(free.start(), steps=2)
    free.renew()
    with pytest.raises(ResumeError, match="charged to no book"):
        free.start(resume=True, book=book, data_set=DATA)
    assert balance(book) == [(2, 0, STEPS - 2)]


def test_a_run_without_a_guarantee_is_not_charged(tmp_path, book):
    with pytest.raises(PrivacyError, match="no budget can hold it"):
        SmallRun(tmp_path / "run").start(book=book, data_set=DATA, insecure_seed=1)
    assert balance(book) == []


def test_a_run_that_never_began_gives_everything_back(tmp_path, book):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "ledger.jsonl").write_text("somebody's")
    with pytest.raises((OSError, PrivacyError)):
        SmallRun(folder).start(book=book, data_set=DATA)
    assert balance(book) == [(0, 0, STEPS)]


def test_a_forked_worker_settles_nothing(tmp_path, book):
    charge = Charge.to(book, DATA)
    charge.begin("run", small_plan())
    Ledger.create(tmp_path / "ledger.jsonl", {"run": "run"}).close()
    if (child := os.fork()) == 0:
        try:
            charge.settle(tmp_path / "ledger.jsonl")
            charge.cancel()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert balance(book) == [(0, STEPS, 0)]
    charge.settle(tmp_path / "ledger.jsonl")
    assert balance(book) == [(0, 0, STEPS)]


def test_accelerate_charges_the_book(small, book):
    accelerator = PrivateAccelerator(
        plan=small_plan(), run=small.folder, seal_to=[small.key], cpu=True, options=RunOptions(book=book, data_set=DATA)
    )
    loader = torch.utils.data.DataLoader(small_data(), batch_size=16, shuffle=True)
    model, optimizer, loader = accelerator.prepare(small.model, small.optimizer, loader)
    inputs, targets = next(iter(loader))
    with accelerator.accumulate(model):
        accelerator.backward(torch.nn.functional.cross_entropy(model(inputs), targets, reduction="none"))
        optimizer.step()
        optimizer.zero_grad()
    assert balance(book) == [(0, STEPS, 0)]
    accelerator.end_training()
    spent, still_open, returned = balance(book)[0]
    assert (spent + returned, still_open) == (STEPS, 0)
    assert spent == Ledger.read(small.folder / "ledger.jsonl").position


def test_the_trainer_charges_the_book(tmp_path, book):
    import transformers as hf

    def losses(outputs, batch):
        return torch.nn.functional.cross_entropy(outputs["logits"], batch["labels"], reduction="none")

    rows = [{"x": x, "labels": y} for x, y in small_data()]
    args = hf.TrainingArguments(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=20, use_cpu=True, disable_tqdm=True,
        save_strategy="no", report_to="none", max_steps=STEPS, dataloader_pin_memory=False, max_grad_norm=0.5,
    )  # fmt: skip
    trainer = PrivateTrainer(
        Scored(),
        args,
        train_dataset=rows,
        plan=small_plan(),
        seal_to=[Key.generate_symmetric()],
        per_example_loss=losses,
        options=RunOptions(book=book, data_set=DATA),
    )
    trainer.train()
    assert balance(book) == [(STEPS, 0, 0)]
