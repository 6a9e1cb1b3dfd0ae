"""Run folders to report on: a small private run with an audit, a journal and a signature."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

from small import SmallRun, small_plan

from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.checkpoint.key import Key
from privguard.checkpoint.watch import recorded_in
from privguard.records import Finding, Outcome
from privguard.report import render, sign
from privguard.report.assemble import Sources, assemble


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of six steps, journalled, with one audit that could not have refuted it; its key is beside it."""
    home = tmp_path_factory.mktemp("report")
    run = SmallRun(home / "run")
    run.key = Key.generate_x25519()
    run.key.write(home / "key")
    with recorded_in(Journal(home / "journal", by=SigningKey.generate(), who="alice@lab")):
        run.go(run.start(small_plan(steps=6, examples=100)))
    keep(run.folder, finding(0.25))
    return home


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run to take apart."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.fixture(scope="session")
def officer():
    return SigningKey.generate()


@pytest.fixture
def signed(folder, officer):
    """The copy, reported and signed."""
    return sign_report(folder, officer)


def sign_report(folder, by, **sources):
    report = assemble(folder, sources=Sources(**sources))
    render.write(report, folder)
    sign.sign(report, folder, by=by).write(folder / sign.SIGNED)
    return folder


def finding(low, **changes):
    facts = {"delta": 1e-3, "confidence": 0.95, "method": "one-run", "outcome": Outcome.UNINFORMATIVE, "cap": 1.5}
    return Finding(epsilon_low=low, **{**facts, **changes})


def keep(folder, record, name="audit.json"):
    (folder / "evidence").mkdir(exist_ok=True)
    (folder / "evidence" / name).write_text(json.dumps(record.to_json()))
