"""The command line as a person uses it: records on stdout, talk on stderr, exit codes, no traceback."""

import json
import shutil
import subprocess
import sys

import pytest

from privguard.errors import LedgerError


def privguard(*words, cwd=None):
    command = [sys.executable, "-m", "privguard", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, privguard("demo", "--out", out, "--json")


def test_the_demonstration_trains_seals_and_reports(demonstration):
    out, done = demonstration
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert 2.98 < said["claim"]["epsilon"] <= 3.0
    assert said["private_accuracy"] > 0.88  # 94 % in the median; a third of that by chance would be 10 %
    assert {"run.json", "ledger.jsonl", "report.html", "report.json", "report.md"} <= {p.name for p in out.iterdir()}
    assert list((out / "checkpoints").glob("*.sealed"))


def test_a_second_demonstration_replaces_the_first_but_nothing_else(demonstration, tmp_path):
    (tmp_path / "precious").write_text("mine")
    refused = privguard("demo", "--out", tmp_path)
    assert refused.returncode == 2
    assert "not a demonstration" in refused.stderr
    assert (tmp_path / "precious").read_text() == "mine"


def test_report_prices_the_run_again(demonstration):
    out, done = demonstration
    again = privguard("report", out, "--json", "--html", out / "page.html")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["claim"] == json.loads(done.stdout)["claim"]
    assert (out / "page.html").read_text().startswith("<!doctype html>")


def test_a_tampered_ledger_exits_with_3_and_one_line(demonstration, tmp_path):

    run = shutil.copytree(demonstration[0], tmp_path / "run")
    ledger = run / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"times":8', '"times":1', 1))
    refused = privguard("report", run)
    assert refused.returncode == 3
    assert refused.stderr.startswith(LedgerError.__name__)
    assert "Traceback" not in refused.stderr


def test_a_missing_run_is_a_usage_error():
    missing = privguard("report", "nowhere")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr


def test_help_names_every_group():
    said = privguard("--help")
    assert said.returncode == 0
    for group in ("demo", "plan", "key", "seal", "open", "inspect", "rewrap", "mark", "audit", "ledger", "report"):
        assert group in said.stdout
