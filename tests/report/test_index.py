# SPDX-License-Identifier: Apache-2.0
"""The index: what it believes of a run, and its page in a real browser: sorted, filtered, saved, on a phone, by ear."""

import csv
import io
import json
import shutil

import dp_accounting as dp
import pytest
from chromium import CONTRAST
from reported import finding, keep, sign_report
from typer.testing import CliRunner

from privguard import cli
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet, Terms
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.records import Outcome
from privguard.report.index import page
from privguard.report.index.entry import STALE, STRANGER, folders, read
from privguard.report.index.overview import overview

DATA = "a" * 64


@pytest.fixture(scope="module")
def runs(trained, signed_once, tmp_path_factory):
    """A signed run, an unsigned copy with a loud audit, a damaged one, and a weight in clear."""
    home = tmp_path_factory.mktemp("index")
    shutil.copytree(signed_once, home / "signed")
    loud = shutil.copytree(trained / "run", home / "loud")
    keep(loud, finding(50.0, outcome=Outcome.REFUTED, cap=60.0), "loud.json")
    (loud / "checkpoints" / "weights.bin").write_bytes(b"in clear")
    damaged = shutil.copytree(trained / "run", home / "=damaged")
    lines = (damaged / "ledger.jsonl").read_bytes()
    (damaged / "ledger.jsonl").write_bytes(lines.replace(b'"times":', b'"times": ', 1))
    return home


@pytest.fixture(scope="module")
def book(runs, tmp_path_factory):
    officer = SigningKey.generate()
    book = Book.create(tmp_path_factory.mktemp("book") / "team.db", officers=[officer.identity])
    book.add(DataSet(sha256=DATA, name="patients <b>"))
    book.grant(DATA, Budget(epsilon=3.0, delta=1e-5), by=officer, reason="test", terms=Terms(team="blue"))
    book.grant(DATA, Budget(epsilon=3.0, delta=1e-5), by=officer, reason="test")
    name = read(runs / "signed").run
    book.reserve(name, DATA, dp.GaussianDpEvent(8.0), 6, by=Writer(team="blue"))
    book.spend("census", DATA, [(dp.LaplaceDpEvent(4.0), 1)], by=Writer(team="blue"))
    return book


@pytest.fixture(scope="module")
def made(runs, book, officer):
    return overview(folders([runs]), book=book, signers=[officer.identity])


@pytest.fixture(scope="module")
def index(made, runs):
    path = runs / "index.html"
    path.write_text(page.to_html(made, beside=runs), encoding="utf-8")
    return path


def test_a_signed_figure_is_believed_only_from_a_named_signer_at_this_head(runs, officer, report, tmp_path):
    believed = read(runs / "signed", signers=[officer.identity])
    assert (believed.basis, believed.epsilon) == ("signed report", report.claim.epsilon)
    stranger = read(runs / "signed", signers=[SigningKey.generate().identity])
    assert (stranger.basis, stranger.epsilon) == ("ledger", report.claim.epsilon)
    assert stranger.signature.startswith(STRANGER)
    gone_on = shutil.copytree(runs / "signed", tmp_path / "run")
    with Ledger.open(gone_on / "ledger.jsonl") as ledger:
        ledger.reserve(dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(1.0)), 9)
    later = read(gone_on, signers=[officer.identity])
    assert (later.basis, later.signature) == ("ledger", STALE)
    assert later.epsilon > believed.epsilon


def test_an_edited_report_is_never_believed(runs, officer, report, tmp_path):
    run = shutil.copytree(runs / "signed", tmp_path / "run")
    text = (run / "report.json").read_text()
    (run / "report.json").write_text(text.replace(str(report.claim.epsilon), "0.001"))
    (run / "report.dsse.json").unlink()
    assert read(run, signers=[officer.identity]).epsilon == report.claim.epsilon
    signed = sign_report(run, SigningKey.generate())
    envelope = json.loads((signed / "report.dsse.json").read_bytes())
    envelope["signatures"][0]["sig"] = envelope["signatures"][0]["sig"][::-1]
    (signed / "report.dsse.json").write_text(json.dumps(envelope))
    assert "could not be read" in read(signed, signers=[officer.identity]).alarm


def test_an_audit_after_the_signature_still_shows(runs, officer, tmp_path):
    run = shutil.copytree(runs / "signed", tmp_path / "run")
    keep(run, finding(50.0, outcome=Outcome.REFUTED, cap=60.0), "late.json")
    assert "an attack showed ε ≥ 50.000" in read(run, signers=[officer.identity]).alarm


def test_nothing_is_left_out(made, runs):
    by_place = {entry.place.rsplit("/", 1)[-1]: entry for entry in made.entries if entry.place}
    assert set(by_place) == {"signed", "loud", "=damaged"}
    assert by_place["=damaged"].epsilon is None
    assert "could not be read" in by_place["=damaged"].alarm
    assert "an attack showed" in by_place["loud"].alarm
    assert by_place["loud"].in_clear == 1
    assert by_place["signed"].sealed > 0
    assert all("folders hold this run" in entry.alarm for entry in by_place.values())
    (census,) = [entry for entry in made.entries if entry.run == "census"]
    assert (census.data_set, census.team, census.basis) == ("patients <b>", "blue", "book only")
    assert census.epsilon == pytest.approx(0.25, rel=1e-3)
    (balance,) = made.balances
    assert balance.course[-1][1] == balance.epsilon <= 3
    assert balance.teams == (("blue", pytest.approx(balance.epsilon)),)
    with pytest.raises(FileNotFoundError, match="no run there"):
        folders([runs / "signed" / "checkpoints"])


def test_the_csv_holds_every_run_and_no_formula(made, runs):
    lines = list(csv.DictReader(io.StringIO(page.to_csv(made))))
    assert len(lines) == len(made.entries)
    assert not any(cell.startswith(("=", "+", "-", "@")) for line in lines for cell in line.values())


def test_the_command_writes_page_and_csv(runs, book, officer, tmp_path):
    officer.identity.write(tmp_path / "officer.pub")
    words = ["report", "index", str(runs), "-o", str(tmp_path / "i.html"), "--csv", str(tmp_path / "i.csv")]
    result = CliRunner().invoke(
        cli.app, [*words, "--book", str(book._database._place), "--signer", str(tmp_path / "officer.pub")]
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "3 runs, 1 by a signed report" in result.stdout or "4 runs, 1 by a signed report" in result.stdout
    assert (tmp_path / "i.html").read_text().count("<tr") > 4


def rows(browser, column=0):
    return browser.run(
        f"[...document.querySelectorAll('.runs tbody tr:not([hidden])')].map(r => r.cells[{column}].innerText)"
    )


def test_the_page_sorts_filters_and_saves(browser, index, made):
    browser.open(index)
    assert len(rows(browser)) == len(made.entries)
    browser.run("document.querySelectorAll('.runs th button')[4].click()")
    figures = [float(text) for text in rows(browser, 4) if text != "none"]
    assert figures == sorted(figures)
    assert rows(browser, 4)[-1] == "none"
    browser.run("document.querySelectorAll('.runs th button')[4].click()")
    assert browser.run("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    browser.run(
        "{ const f = document.getElementById('find'); f.value = 'CENSUS'; f.dispatchEvent(new Event('input')); }"
    )
    assert rows(browser) == ["census"]
    assert browser.run("document.getElementById('shown').textContent") == f"1 of {len(made.entries)} runs"
    assert browser.run("csv().split('\\r\\n').length") == 3
    assert json.loads(browser.run("json()"))[0]["Run"] == "census"
    assert browser.run("quoted('=1+1')") == '"\'=1+1"'
    browser.run("{ const f = document.getElementById('find'); f.value = ''; document.getElementById('look').click(); }")
    assert len(rows(browser)) == len(made.entries)  # all of them have something: copies of one run


def test_the_page_works_offline_and_runs_only_its_own_script(browser, index, tmp_path):
    browser.open(index)
    assert browser.requests() == []
    assert browser.complaints() == []
    bad = tmp_path / "bad.html"
    injected = '<body><img src="https://example.com/x.png"><script>document.title = "ran"</script>'
    bad.write_text(index.read_text(encoding="utf-8").replace("<body>", injected, 1), encoding="utf-8")
    browser.open(bad)
    assert browser.run("document.title") != "ran"
    assert len(browser.complaints()) == 2


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_reads_well_on_a_phone_in_light_and_dark(browser, index, dark):
    browser.open(index, width=320, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= 320
    assert browser.run(CONTRAST)[0] >= 4.5
    roles = browser.tree()
    assert all(
        name
        for role, name in roles
        if role in {"heading", "table", "region", "image", "link", "button", "textbox", "combobox"}
    )
    assert browser.run("[...document.querySelectorAll('th:not([scope])')].length") == 0
    assert "patients <b>" in browser.run("document.body.innerText")
