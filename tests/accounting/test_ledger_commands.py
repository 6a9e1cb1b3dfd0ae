# SPDX-License-Identifier: Apache-2.0
"""The commands: one library call each, JSON for programs, sentences for people, exit codes that mean something."""

import json
import re

import dp_accounting as dp
import pytest
from typer.testing import CliRunner

from privguard import cli
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.errors import BudgetExceededError, LedgerError

STEP = dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(4.0))


def privguard(*arguments, fails=None):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if fails is not None:
        assert isinstance(result.exception, fails), result
    else:
        assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def run(tmp_path):
    with Ledger.create(tmp_path / "ledger.jsonl", {"run": "r", "plan": {"delta": 1e-5}}) as ledger:
        ledger.reserve(STEP, 10)
        ledger.settle(7)
    return tmp_path


def test_a_ledger_is_shown_and_priced(run):
    said = json.loads(privguard("ledger", "show", run, "--json"))
    assert said["events"] == [
        {"first": 0, "times": 7, "event": {"PoissonSampledDpEvent": {
            "sampling_probability": 0.1, "event": {"GaussianDpEvent": {"noise_multiplier": 4}}}}}
    ]  # fmt: skip
    assert 0 < said["claim"]["epsilon"] <= said["claim"]["cross_check"]
    text = privguard("ledger", "show", run / "ledger.jsonl", "--delta", "1e-4")
    assert re.search(r"ε=0\.\d+ at δ=0.0001 \(PLD", text)
    assert "stopped cleanly" in text


def test_a_ledger_is_priced_for_the_relation_and_unit_of_its_plan(tmp_path):
    facts = {"run": "r", "plan": {"delta": 1e-5, "relation": "replace-one", "unit": "user"}}
    with Ledger.create(tmp_path / "ledger.jsonl", facts) as ledger:
        ledger.reserve(STEP, 10)
        ledger.settle(10)
    claim = json.loads(privguard("ledger", "show", tmp_path, "--json"))["claim"]
    assert (claim["relation"], claim["unit"]) == ("replace-one", "user")
    assert claim["epsilon"] == claim["replace_one"]


def test_a_ledger_is_verified_against_a_kept_head(run):
    kept = json.loads(privguard("ledger", "verify", run, "--json"))
    head, size = kept["head"], kept["size"]
    privguard("ledger", "verify", run, "--head", head, "--size", size)
    privguard("ledger", "verify", run, "--head", head, fails=ValueError)
    path = run / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "give --head and --size" in privguard("ledger", "verify", run)
    privguard("ledger", "verify", run, "--head", head, "--size", size, fails=LedgerError)
    path.write_bytes(path.read_bytes().replace(b'"times":10', b'"times":1'))
    privguard("ledger", "verify", run, fails=LedgerError)


def test_a_budget_is_opened_granted_lowered_and_shown(tmp_path):
    officer, stranger, book, data = SigningKey.generate(), SigningKey.generate(), tmp_path / "b.db", tmp_path / "data"
    officer.write(tmp_path / "officer.pem")
    stranger.write(tmp_path / "stranger.pem")
    officer.identity.write(tmp_path / "officer.pub")
    data.write_bytes(b"records")
    privguard("ledger", "budget", "open", book, "--officer", tmp_path / "officer.pub")
    privguard("ledger", "budget", "add", book, data, "--name", "patients", "--version", "dvc:1")
    assert "nothing was granted" in privguard("ledger", "budget", "show", book)
    grant = ("ledger", "budget", "grant", book, data, "--epsilon", 3, "--delta", 1e-5, "--reason", "study", "--key")
    privguard(*grant, tmp_path / "stranger.pem", fails=Exception)
    assert "of 3 at δ=1e-05" in privguard(*grant, tmp_path / "officer.pem")
    privguard("ledger", "budget", "set", book, data, "--epsilon", 4, fails=BudgetExceededError)
    assert "of 2 at δ=1e-05" in privguard("ledger", "budget", "set", book, data, "--epsilon", 2)
    (said,) = json.loads(privguard("ledger", "budget", "show", book, data, "--json"))
    assert (said["data_set"]["version"], said["limit"]["epsilon"], said["epsilon"]) == ("dvc:1", 2, 0)


def test_a_plan_states_noise_steps_and_what_is_spent():
    asked = ("plan", "--epsilon", 3, "--delta", 1e-5, "--examples", 6000, "--batch-size", 600, "--epochs", 5)
    said = json.loads(privguard(*asked, "--json"))
    assert (said["steps"], said["sample_rate"]) == (50, 0.1)
    assert 0.995 * 3 <= said["claim"]["epsilon"] <= 3
    text = privguard(*asked)
    assert "noise multiplier" in text
    assert "replace one example" in text
    assert "RDP cross-check" in text
    assert "is not below 1/N" in privguard(*asked[:4], 1e-3, *asked[5:])
    privguard(*asked[:8], 9000, *asked[9:], fails=ValueError)
