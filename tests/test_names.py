# SPDX-License-Identifier: Apache-2.0
"""Local names say what a value is: pronouns and participles stay rare where they were rooted out."""

import importlib.util
from pathlib import Path

import pytest

CLEAN = ["attest"]  # packages that were gone through; `python tests/names.py` prints the share of all


@pytest.fixture(scope="module")
def names():
    spec = importlib.util.spec_from_file_location("names", Path(__file__).with_name("names.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", CLEAN)
def test_at_most_one_local_name_in_a_hundred_is_vague(names, package):
    places, count = names.vague(package)
    assert count > 100
    assert len(places) <= count / 100, "\n".join(places)


def test_arguments_and_whatever_is_assigned_count_and_inner_functions_count_by_themselves(names, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "def f(a, *said, k=1, **rest):\n"
        "    b, (c, *d) = [e for e in a]\n"
        "    with open(a) as found:\n"
        "        n = (lambda one: one)(c)\n"
        "    def g(held):\n"
        "        inner = held\n"
    )
    counted = list(names.names_of(path))
    outer = {"a", "said", "k", "rest", "b", "c", "d", "e", "found", "n", "one"}
    assert counted == [(1, name) for name in sorted(outer)] + [(5, "held"), (5, "inner")]
