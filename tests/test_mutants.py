# SPDX-License-Identifier: Apache-2.0
"""What ``make mutants`` measures is the right thing: each core module against a test file of its own."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules of the core that still lack one test file of their own; a new one belongs into ``mutants.MIRRORS``.
WITHOUT_A_MIRROR = {
    "privguard/training/clip.py",  # held by tests/training/bookkeeping
    "privguard/training/step.py",  # held by tests/integrations
    "privguard/checkpoint/opened.py",  # held by tests/checkpoint/test_store.py, test_vectors.py and test_flips.py
}
NOISE = {f"privguard/training/noise/{name}.py" for name in ("exact", "gaussian", "grid")}
CORE = NOISE | {
    "privguard/training/clip.py",
    "privguard/training/step.py",
    "privguard/training/sampling/sample.py",
    "privguard/accounting/ledger.py",
    "privguard/accounting/accountant.py",
    "privguard/accounting/claim.py",
    "privguard/checkpoint/envelope.py",
    "privguard/checkpoint/opened.py",
    "privguard/audit/one_run/bound.py",
}


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tests" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_core_module_has_a_test_file_of_its_own_or_is_named_as_lacking_one(mutants):
    assert set(mutants.MIRRORS) == CORE - WITHOUT_A_MIRROR
    assert len(set(mutants.MIRRORS.values())) == len(mutants.MIRRORS)
    assert [path for pair in mutants.MIRRORS.items() for path in pair if not (ROOT / path).is_file()] == []
    assert [path for path in WITHOUT_A_MIRROR if not (ROOT / path).is_file()] == []


def test_every_change_that_is_called_equivalent_is_of_a_line_that_stands_and_has_its_proof(mutants):
    for entry in tomllib.loads(mutants.EQUIVALENT.read_text())["equivalent"]:
        lines = {line.strip() for line in (ROOT / entry["source"]).read_text().splitlines()}
        changed = [line[2:] for line in entry["change"].splitlines() if line.startswith("- ")]
        assert changed, entry
        assert set(changed) <= lines, entry
        assert len(entry["reason"]) > 20, entry


def test_a_change_is_read_from_a_difference_without_file_names_and_indentation(mutants):
    shown = "# m: survived\n--- a.py\n+++ a.py\n@@ -1,2 +1,2 @@\n def f():\n-    return -1\n+    return +1\n"
    assert mutants.change_of(shown) == "- return -1\n+ return +1"
