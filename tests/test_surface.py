# SPDX-License-Identifier: Apache-2.0
"""What the package shows, and what importing it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import privguard

SURFACE = Path(__file__).parent / "surface.txt"


def test_public_names_are_exactly_these():
    assert sorted(privguard.__all__) == SURFACE.read_text().split()
    assert sorted(privguard._HOMES) == sorted(privguard.__all__)


def test_every_public_name_is_documented_and_found():
    assert all(getattr(privguard, name).__doc__ for name in privguard.__all__)


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_privguard_brings_in_nothing_heavy():
    heavy = {"torch", "dp_accounting", "transformers", "opacus", "matplotlib", "scipy"}
    assert not heavy & modules_after("import privguard")
    assert not heavy & modules_after("import privguard.cli")


def test_importing_privguard_does_not_open_the_unsafe_door():
    assert "privguard.checkpoint.keys.unsafe" not in modules_after("import privguard, privguard.cli")


def test_an_unknown_name_says_which_names_there_are():
    with pytest.raises(AttributeError, match=r"'nothing'; the public names are .*Claim"):
        privguard.nothing  # noqa: B018
