# SPDX-License-Identifier: Apache-2.0
"""Run folders to report on: a small private run with an audit, a journal and a signature."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

from chromium import Chromium
from reported import finding, keep, sign_report
from small import SmallRun, small_plan

from privguard.attest.journal import Journal, recorded_in
from privguard.attest.statement import SigningKey
from privguard.checkpoint.keys.key import Key
from privguard.report.assemble import assemble


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
def report(trained):
    """The report on the run as it was trained."""
    return assemble(trained / "run")


@pytest.fixture(scope="session")
def officer():
    return SigningKey.generate()


@pytest.fixture(scope="session")
def signed_once(trained, officer, tmp_path_factory):
    return sign_report(Path(shutil.copytree(trained / "run", tmp_path_factory.mktemp("signed") / "run")), officer)


@pytest.fixture
def signed(signed_once, tmp_path):
    """A copy of the run, reported and signed, to take apart."""
    return Path(shutil.copytree(signed_once, tmp_path / "signed"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None and os.environ.get("CI"):
        pytest.fail("no Chromium: CI opens the page in one (.ci/run installs it)")
    if program is None:
        pytest.skip("no Chromium to open the page in")
    with_tab = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield with_tab
    with_tab.close()
