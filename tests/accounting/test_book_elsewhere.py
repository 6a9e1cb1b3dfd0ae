# SPDX-License-Identifier: Apache-2.0
"""What a budget book is told of besides runs: releases of other tools, sweeps, and parts that share no person."""

import json

import dp_accounting as dp
import pytest
from typer.testing import CliRunner

from privguard import cli
from privguard.accounting.accountant import epsilon
from privguard.accounting.budget import parallel
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet, Partition, Terms
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.releases import parse
from privguard.accounting.sweep import RandomStopping
from privguard.attest.statement import SigningKey
from privguard.errors import BudgetExceededError, TamperedError, UnknownEventError
from privguard.records import Relation

OFFICER = SigningKey.generate()
STEP = dp.GaussianDpEvent(10.0)
ROOT, EAST, WEST, COPY = "a" * 64, "b" * 64, "c" * 64, "d" * 64
BUDGET = Budget(epsilon=2.0, delta=1e-5)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "book.db"


@pytest.fixture
def book(place):
    book = Book.create(place, officers=[OFFICER.identity])
    book.add(DataSet(sha256=ROOT, name="patients", population="the land"))
    for part, name in ((EAST, "east"), (WEST, "west"), (COPY, "copy")):
        book.add(DataSet(sha256=part, name=name, parent=ROOT))
    book.grant(ROOT, BUDGET, by=OFFICER, reason="test")
    return book


def command(*words, fails=None):
    result = CliRunner().invoke(cli.app, ["ledger", "budget", *map(str, words)])
    if fails is None:
        assert result.exit_code == 0, (result.output, result.exception)
    else:
        assert isinstance(result.exception, fails), result
    return result.stdout


def of(*pairs):
    return epsilon(list(pairs), delta=1e-5)


def parted(book, *parts):
    book.partition(book.draft_partition(ROOT, parts or (EAST, WEST), reason="postcodes do not overlap").sign(OFFICER))


def test_what_another_tool_released_counts_once_and_whole(place, book):
    book.reserve("run", ROOT, STEP, 4)
    command(
        "spend",
        place,
        ROOT,
        "census",
        "laplace 20 x 5",
        "dp 0.1 1e-8",
        "--relation",
        "add-or-remove-one",
        "--purpose",
        "SQL",
    )
    everything = [(STEP, 4), *parse(["laplace 20 x 5", "dp 0.1 1e-8"], relation=Relation.ADD_OR_REMOVE_ONE)]
    standing = book.standing(ROOT)
    assert standing.epsilon == pytest.approx(of(*everything), rel=1e-3)
    assert standing.runs["census"].to_json() == {
        "record": "Balance",
        "reserved": 1,
        "spent": 1,
        "open": 0,
        "returned": 0,
    }
    command("spend", place, ROOT, "census", "laplace 20", fails=ValueError)
    assert book.standing(ROOT).epsilon == standing.epsilon


def test_what_has_happened_counts_past_the_limit_and_what_is_planned_does_not_begin(place, book):
    command("spend", place, ROOT, "planned", "laplace 0.3", "--planned", fails=BudgetExceededError)
    assert book.held("planned") == 0
    command("spend", place, ROOT, "happened", "laplace 0.3")
    assert book.standing(ROOT).epsilon > 2
    with pytest.raises(BudgetExceededError):
        book.reserve("run", ROOT, STEP, 1)


def test_what_no_limit_can_price_is_not_entered(place, book):
    command("spend", place, ROOT, "survey", "randomised-response 0.5 4", fails=UnknownEventError)
    command("spend", place, ROOT, "tool", "zcdp 0.1", "--relation", "replace-one", fails=UnknownEventError)
    assert book.held("survey") == book.held("tool") == 0
    book.grant(ROOT, Budget(epsilon=9.0, delta=1e-5, relation=Relation.REPLACE_ONE), by=OFFICER, reason="test")
    command("spend", place, ROOT, "survey", "randomised-response 0.5 4")
    assert book.standing(ROOT).epsilon == pytest.approx(1.609438, rel=1e-3)  # log 5


def test_releases_come_from_a_file(tmp_path, place, book):
    (tmp_path / "history.txt").write_text("# March\nlaplace 20 x 5\n\ngaussian 10 sampled 0.1 x 7  # counts\n")
    command("spend", place, ROOT, "march", f"@{tmp_path / 'history.txt'}")
    expected = of((dp.LaplaceDpEvent(20.0), 5), (dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(10.0)), 7))
    assert book.standing(ROOT).epsilon == pytest.approx(expected, rel=1e-3)


def test_a_sweep_is_paid_before_its_trials_are_drawn(place, book):
    words = ("sweep", place, ROOT, "learning rates", "gaussian 4 sampled 0.01 x 500", "--mean", "10", "--json")
    answer = json.loads(command(*words))
    run = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(4.0)), 500)
    assert answer["trials"] >= 1
    assert answer["standing"]["epsilon"] == pytest.approx(of((RandomStopping(10.0).event(run), 1)), rel=1e-6)
    command(*words[:3], "too much", "gaussian 1 x 9", "--mean", "10", fails=BudgetExceededError)
    assert book.held("too much") == 0


def test_parts_add_up_until_officers_say_that_they_share_no_person(place, book):
    for part in (EAST, WEST):
        book.reserve(f"before {part[0]}", part, STEP, 4)
    assert book.standing(ROOT).epsilon == of((STEP, 8))
    with pytest.raises(ValueError, match="a total never falls"):
        parted(book)


def test_of_disjoint_parts_the_worst_counts_beside_what_all_share(book):
    parted(book)
    for name, data_set, times in (("e", EAST, 9), ("w", WEST, 4), ("r", ROOT, 3), ("k", COPY, 2)):
        book.reserve(name, data_set, STEP, times)
    assert book.standing(ROOT).epsilon == book.standing(EAST).epsilon == of((STEP, 9 + 3 + 2))
    assert book.standing(WEST).epsilon == of((STEP, 4 + 3 + 2))
    assert book.standing(ROOT).person == of((STEP, 9 + 3 + 2))


def test_a_limit_of_one_part_does_not_bind_the_other(book):
    parted(book)
    book.grant(EAST, Budget(epsilon=of((STEP, 4)) * 1.001, delta=1e-5), by=OFFICER, reason="test")
    book.reserve("e", EAST, STEP, 4)
    book.reserve("w", WEST, STEP, 9)
    with pytest.raises(BudgetExceededError, match="east"):
        book.reserve("e2", EAST, STEP, 1)
    with pytest.raises(BudgetExceededError, match="east"):
        book.reserve("r", ROOT, STEP, 1)  # people of the east are in it


def test_a_partition_is_an_officers_word_about_this_book(place, book, tmp_path):
    drafted = book.draft_partition(ROOT, [EAST, WEST], reason="postcodes")
    with pytest.raises(TamperedError):
        book.partition(drafted.sign(SigningKey.generate()))
    other = Book.create(tmp_path / "other.db", officers=[OFFICER.identity])
    other.add(DataSet(sha256=ROOT, name="patients"))
    with pytest.raises(Exception, match="signed for book"):
        other.partition(drafted.sign(OFFICER))
    for wrong in ([EAST, ROOT], [EAST, "e" * 64]):
        with pytest.raises(ValueError, match="expected"):
            book.partition(book.draft_partition(ROOT, wrong, reason="x").sign(OFFICER))
    for parts, reason in (((EAST,), "x"), ((EAST, EAST), "x"), ((EAST, WEST), "")):
        with pytest.raises(ValueError, match="expected"):
            Partition(book="b", parent=ROOT, parts=parts, reason=reason)


def test_a_partition_grows_and_loses_no_part(book):
    parted(book)
    book.reserve("e", EAST, STEP, 4)
    with pytest.raises(ValueError, match="all earlier parts"):
        parted(book, EAST, COPY)
    parted(book, EAST, WEST, COPY)
    book.reserve("k", COPY, STEP, 5)
    assert book.standing(ROOT).epsilon == of((STEP, 5))


def test_replaced_records_may_change_parts(book):
    replaced = Budget(epsilon=2.0, delta=1e-5, relation=Relation.REPLACE_ONE)
    parted(book)
    with pytest.raises(ValueError, match="may leave one part and enter another"):
        book.grant(WEST, replaced, by=OFFICER, reason="test")


def test_a_limit_by_replacement_stands_in_the_way_of_parts(book):
    book.grant(WEST, Budget(epsilon=2.0, delta=1e-5, relation=Relation.REPLACE_ONE), by=OFFICER, reason="test")
    with pytest.raises(ValueError, match="may leave one part and enter another"):
        parted(book)


def test_more_combinations_than_can_be_priced_are_refused(book, monkeypatch):
    book.add(DataSet(sha256="e" * 64, name="spring", parent=COPY))
    book.add(DataSet(sha256="f" * 64, name="autumn", parent=COPY))
    parted(book)
    monkeypatch.setattr(parallel, "MOST", 3)
    with pytest.raises(ValueError, match=r"parts=4: expected 3 combinations at most"):
        book.partition(book.draft_partition(COPY, ["e" * 64, "f" * 64], reason="dates").sign(OFFICER))


def test_the_command_declares_and_drafts(tmp_path, place, book):
    OFFICER.write(tmp_path / "officer.pem")
    words = ("disjoint", place, ROOT, "--part", EAST, "--part", WEST, "--key", tmp_path / "officer.pem")
    command(*words, "--reason", "postcodes", "--out", tmp_path / "draft.json")
    assert not book.verify().partitions
    command("enter", place, tmp_path / "draft.json")
    assert Book.open(place).verify().partitions == {ROOT: (EAST, WEST)}


def test_a_team_spends_its_share(book):
    for team in ("red", "blue"):
        book.grant(ROOT, BUDGET, by=OFFICER, reason="share", terms=Terms(team=team))
    book.spend("q", ROOT, parse(["laplace 20"]), by=Writer(team="red"))
    assert book.standing(ROOT).teams == {"red": pytest.approx(0.05, rel=1e-2), "blue": 0.0}
