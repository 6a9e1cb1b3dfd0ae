# SPDX-License-Identifier: Apache-2.0
"""The demonstration tells the whole story, and what it leaves can be checked by the other commands."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from privguard.accounting.ledger import Ledger
from privguard.checkpoint import Key, load
from privguard.demo import Settings


def test_every_chapter_is_told(demonstration):
    out, done = demonstration
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr  # an exact run is refuted, or a check of it fails, in 4 of a million
    assert (said["run"]["outcome"], said["step"]["outcome"], said["failed"]) == ("consistent", "consistent", [])
    assert 2.98 < said["claim"]["epsilon"] <= 3.0
    assert said["private_accuracy"] > 0.80  # 92.6 % in the mean of 21, deviation 1.3 %; a guess reads 10 %
    assert said["released_accuracy"] > 0.70  # 91 %, deviation 3 %
    assert {"run.json", "ledger.jsonl", "report.html", "report.json", "report.md"} <= {p.name for p in out.iterdir()}


def test_thefts_are_proven_and_honesty_is_not(demonstration):
    """The weakest proof, of the pruned copy, has z = 10.5 with deviation 1, where 5.7 suffice; honesty errs at 1e-6."""
    thefts = {each["suspect"]: each for each in json.loads(demonstration[1].stdout)["thefts"]}
    assert [name for name, each in thefts.items() if each["outcome"] == "proven"] == [
        "fine-tuned",
        "pruned",
        "quantised",
    ]
    assert thefts["honest"]["outcome"] == "not proven"
    assert thefts["honest"]["log10_p"] > -6


def test_the_audit_had_power(demonstration):
    run = json.loads(demonstration[1].stdout)["run"]
    assert run["control"] == "refuted"  # the same design, without noise
    assert run["findings"][0]["cap"] > run["findings"][0]["claimed"]


def test_the_evidence_convinces_a_stranger(demonstration, privguard):
    out, _ = demonstration
    trust = ("--trust", out / "claim" / "trust.json")
    for name, code in {"pruned": 0, "honest": 1}.items():
        suspect = ("--suspect", out / "suspects" / f"{name}.safetensors")
        assert privguard("mark", "verify", out / "evidence" / f"mark-{name}.json", *trust, *suspect).code == code
    other = ("--suspect", out / "suspects" / "honest.safetensors")
    assert privguard("mark", "verify", out / "evidence" / "mark-pruned.json", *trust, *other).code == 3


def test_what_was_released_lies_sealed_beside_the_unmarked_model(demonstration):
    out, _ = demonstration
    key = Key.read(out / "demo.key")
    marked, unmarked = (load(out / "models" / f"{name}.sealed", key).weights for name in ("released", "unmarked"))
    assert set(marked) == set(unmarked)
    assert any((marked[name] != unmarked[name]).any() for name in marked)


def test_report_prices_the_run_again(demonstration, privguard):
    out, done = demonstration
    again = privguard("report", out, "--json", "--html", out / "page.html")
    assert again.code == 0, again.err
    report = json.loads(again.out)
    assert report["claim"] == json.loads(done.stdout)["claim"]
    assert {finding["method"] for finding in report["findings"]} == {
        "gaussian-threshold",
        "per-step gaussian threshold",
    }
    assert {verdict["details"]["suspect"] for verdict in report["verdicts"]} >= {"pruned", "honest"}
    assert (out / "page.html").read_text().startswith("<!doctype html>")


def test_a_second_demonstration_replaces_the_first_but_nothing_else(tmp_path, privguard):
    (tmp_path / "precious").write_text("mine")
    refused = privguard("demo", "--out", tmp_path)
    assert refused.code == 2
    assert "not a demonstration" in refused.err
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, privguard, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("epsilon = 1.0\nsteps = 10\n")
    said = privguard("demo", "--dry-run", "--config", "mine.toml", "--json")
    assert said.code == 0, said.err
    outline = json.loads(said.out)
    assert (outline["plan"]["epsilon"], outline["plan"]["steps"]) == (1.0, 10)
    assert outline["audit_cap"] > 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epsylon = 1.0", "setting='epsylon': expected one of bits, canaries"),
        ("epsilon = -1", "epsilon=-1: expected a finite number above 0"),
        ("delta = 'small'", "delta='small': expected a number in (0, 1)"),
        ("epsilon", "expected TOML"),
    ],
    ids=["name", "value", "type", "syntax"],
)
def test_a_wrong_setting_is_named(tmp_path, text, said, privguard):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    refused = privguard("demo", "--config", path, "--out", tmp_path / "run")
    assert refused.code == 2
    assert said in refused.err
    assert not (tmp_path / "run").exists()


def test_the_outline_is_the_plan_that_runs(demonstration):
    facts = json.loads((demonstration[0] / "run.json").read_text())["plan"]
    assert Settings().outline().plan.facts() == facts


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_a_run_that_is_priced(tmp_path, privguard):
    (tmp_path / "long.toml").write_text("steps = 4000\n")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "privguard", "demo", "--config", str(tmp_path / "long.toml"), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 600
        while not (out / "ledger.jsonl").exists() or len((out / "ledger.jsonl").read_bytes().splitlines()) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=600)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert re.search(r"privguard\s+report", said)
    history = Ledger.read(out / "ledger.jsonl")
    assert history.settled
    assert 0 < history.position < 4000
    priced = privguard("report", out, "--json")
    assert priced.code == 0, priced.err
    assert 0 < json.loads(priced.out)["claim"]["epsilon"] < 3.0
    assert load(max((out / "checkpoints").iterdir()), Key.read(out / "demo.key")).step == history.position
