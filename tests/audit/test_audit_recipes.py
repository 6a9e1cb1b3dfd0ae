# SPDX-License-Identifier: Apache-2.0
"""The audit recipes run as they are written, in their tiny form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def told(recipe, *arguments):
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / recipe), "--tiny", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout


def test_an_audit_in_one_run_ends_in_a_verdict_with_its_control(tmp_path):
    said = told("audit_in_one_run.py", "--run", tmp_path / "run")
    assert "commitment, to be published now" in said
    assert "control refuted" in said


@pytest.mark.slow
def test_whole_users_are_audited_against_a_claim_for_users(tmp_path):
    said = told("audit_users_in_one_run.py", "--run", tmp_path / "run")
    assert "add-or-remove one user)" in said
    assert "ε ≥ 0.00 for one user" not in said
    assert "control refuted" in said


@pytest.mark.slow
def test_a_classifier_is_audited_with_and_without_privacy(tmp_path):
    said = told("audit_a_classifier.py", "--out", tmp_path / "out")
    assert "plain: members stand out beyond the blind baseline" in said
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"roc-plain.svg", "roc-private.svg", "inversion-plain.svg", "audit-private.json"} <= written


@pytest.mark.slow
def test_a_language_model_is_audited():
    said = told("audit_a_language_model.py")
    assert "windows (WBC)" in said
    assert "secret never inserted" in said
