# SPDX-License-Identifier: Apache-2.0
"""The recipes of the model marks run, in their small form, and say what they should."""

import importlib.util
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[3] / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_theft_is_proven_and_its_forgeries_are_not(tmp_path):
    reports = recipe("prove_theft").main(tmp_path, tiny=True)
    said = {name: report.outcome.value for name, report in reports.items()}
    assert said == {
        "stolen": "proven",
        "honest": "not proven",
        "replayed": "protocol invalid",
        "edited": "protocol invalid",
    }


@pytest.mark.slow
def test_a_marked_model_survives_in_the_weights_at_least():
    rows = recipe("mark_a_model").main(tiny=True)
    assert all(row.together <= -6 for row in rows if "distil" not in row.attack)


@pytest.mark.slow
def test_the_language_recipe_runs(data):
    if not (data / "tinyshakespeare").exists():
        pytest.skip("no tinyshakespeare")
    found = recipe("mark_a_language_model").main(data, tiny=True)
    assert found["unmarked"] > -6  # by chance once in a million runs
