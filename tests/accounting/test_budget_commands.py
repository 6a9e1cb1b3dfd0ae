# SPDX-License-Identifier: Apache-2.0
"""``privguard ledger budget``: what ends a crashed run's reservation, what brings an older run in, and lineage."""

import json

import dp_accounting as dp
import pytest
from typer.testing import CliRunner

from privguard import cli
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet
from privguard.accounting.budget.lineage import Lineage
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.errors import BudgetExceededError, ResumeError

STEP, DATA = dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(4.0)), "5e" * 32


def budget(*words, fails=None):
    result = CliRunner().invoke(cli.app, ["ledger", "budget", *map(str, words)])
    if fails is not None:
        assert isinstance(result.exception, fails), result
    else:
        assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def place(tmp_path):
    return tmp_path / "team.db"


@pytest.fixture
def book(place):
    officer = SigningKey.generate()
    made = Book.create(place, officers=[officer.identity])
    made.add(DataSet(sha256=DATA, name="patients"))
    made.grant(DATA, Budget(epsilon=1.0, delta=1e-5), by=officer, reason="test")
    return made


def a_run(folder, *, reserved, used=None):
    folder.mkdir()
    with Ledger.create(folder / "ledger.jsonl", {"run": folder.name}) as ledger:
        ledger.reserve(STEP, reserved)
        if used is not None:
            ledger.settle(used)
    return folder


def test_a_crashed_run_is_settled_with_its_ledger(tmp_path, place, book):
    run, key = a_run(tmp_path / "crashed", reserved=30), SigningKey.generate()
    key.write(run / "book.key")
    book.reserve("crashed", DATA, STEP, 100, by=Writer(key=key))
    book.begin("crashed", 10, by=key, ledger=Ledger.read(run / "ledger.jsonl"))
    assert "30 events spent, 70 returned" in budget("settle", place, run)
    assert json.loads(budget("settle", place, run, "--json"))["spent"] == 30  # twice is harmless


def test_a_run_whose_ledger_is_lost_has_spent_everything(place, book):
    book.reserve("lost", DATA, STEP, 100)
    assert "100 events spent, 0 returned" in budget("settle", place, "lost", "--lost")
    budget("settle", place, "never heard of", "--lost", fails=ValueError)


def test_a_run_under_way_is_not_settled_behind_its_back(tmp_path, place, book):
    run = a_run(tmp_path / "busy", reserved=30)
    book.reserve("busy", DATA, STEP, 100)
    with Ledger.open(run / "ledger.jsonl"):
        budget("settle", place, run, fails=ResumeError)
        budget("import", place, DATA, run, fails=ResumeError)
    assert book.balance("busy").open == 100


def test_an_older_run_is_brought_in_and_counts_once(tmp_path, place, book):
    run = a_run(tmp_path / "older", reserved=100, used=60)
    for _ in range(2):
        (said,) = [json.loads(budget("import", place, DATA, run, "--json"))]
        assert said["runs"]["older"] == {"reserved": 60, "spent": 60, "open": 0, "returned": 0}
    with Ledger.open(run / "ledger.jsonl") as ledger:
        ledger.reserve(STEP, 5)
        ledger.settle(65)
    budget("import", place, DATA, run)
    assert book.balance("older").spent == 65


def test_what_happened_counts_even_past_the_limit(tmp_path, place, book):
    budget("import", place, DATA, a_run(tmp_path / "greedy", reserved=20_000, used=20_000))
    assert book.standing(DATA).epsilon > 1.0
    with pytest.raises(BudgetExceededError):
        book.reserve("next", DATA, STEP, 1)


def test_a_run_belongs_to_one_data_set(tmp_path, place, book):
    book.add(DataSet(sha256="77" * 32, name="others"))
    run = a_run(tmp_path / "run", reserved=10, used=10)
    budget("import", place, DATA, run)
    with Ledger.open(run / "ledger.jsonl") as ledger:
        ledger.reserve(STEP, 5)
    budget("import", place, "77" * 32, run, fails=ValueError)


def test_versions_that_dvc_and_lakefs_noted_are_taken_over(tmp_path, place, book):
    (tmp_path / "a.csv").write_text("rows")
    (tmp_path / "a.csv.dvc").write_text(
        "deps:\n- md5: 00000000000000000000000000000000\n  path: raw.csv\n"
        "outs:\n- md5: 3f2a6c1d0e9b8a7f6e5d4c3b2a190807\n  size: 4\n  hash: md5\n  path: a.csv\n"
    )
    said = json.loads(budget("add", place, tmp_path / "a.csv", "--name", "a", "--json"))
    assert (said["version"], said["source"]) == ("dvc:3f2a6c1d0e9b8a7f6e5d4c3b2a190807", "a.csv.dvc")
    lake = tmp_path / "lake" / "part"
    lake.mkdir(parents=True)
    (lake.parent / ".lakefs_ref.yaml").write_text(
        'src: lakefs://team/main/data/\nat_head: 9c1d0e\nactive_operation: ""\n'
    )
    (lake / "b.csv").write_text("other rows")
    assert Lineage.beside(lake / "b.csv") == Lineage("lakefs://team/main/data/", "lakefs:9c1d0e")
    said = json.loads(budget("add", place, lake / "b.csv", "--name", "b", "--version", "mine", "--json"))
    assert (said["version"], said["source"]) == ("mine", "lakefs://team/main/data/")
    assert Lineage.beside(tmp_path / "nothing") == Lineage()


def test_a_data_set_is_a_file_or_a_digest(tmp_path, place, book):
    for what, said in ((tmp_path, "a folder"), (tmp_path / "nowhere.csv", "no file of that"), ("5E" * 32, "no file")):
        result = CliRunner().invoke(cli.app, ["ledger", "budget", "show", str(place), str(what)])
        assert isinstance(result.exception, ValueError)
        assert f"DATA_SET={str(what)!r}: {said}" in str(result.exception)
    assert "patients" in budget("show", place, DATA)


def test_a_book_that_is_not_there_is_not_made_by_looking_for_it(tmp_path):
    (tmp_path / "text").write_text("no database")
    for place in (tmp_path / "mistyped.db", tmp_path):
        budget("show", place, fails=OSError)
    SigningKey.generate().identity.write(tmp_path / "officer.pub")
    for place in (tmp_path, tmp_path / "no" / "team.db", tmp_path / "text"):
        budget("open", place, "--officer", tmp_path / "officer.pub", fails=OSError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["officer.pub", "text"]
