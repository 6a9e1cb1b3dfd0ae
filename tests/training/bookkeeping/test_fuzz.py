# SPDX-License-Identifier: Apache-2.0
"""The fuzzer of the book-keeper finds nothing in the product, and what it should find where a bug is planted."""

import pytest
import torch
from torch import nn

from privguard.training.bookkeeping import factors, rules
from tests.training.bookkeeping import fuzz

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_few_random_models_and_cells_are_exact():
    tally, failures = fuzz.fuzz_models(12, seed=1)
    more, failed = fuzz.fuzz_cells(range(0, 865, 29), seed=1)
    assert not [*failures, *failed]
    assert (tally + more)["exact"] >= 40  # refusals and what torch cannot do are no evidence


@pytest.mark.slow
def test_two_thousand_random_models_are_exact():
    tally, failures = fuzz.fuzz_models(2000, seed=0)
    assert not failures, "\n".join(failures)
    assert tally["exact"] > 1900


@pytest.mark.slow
def test_the_whole_grid_is_exact():
    tally, failures = fuzz.fuzz_cells(None, seed=0)
    assert not failures, "\n".join(failures)
    assert tally["exact"] > 850


def test_a_planted_bug_is_found_and_its_smallest_program_printed(monkeypatch):
    """The rule of a layer norm that forgets the bias."""
    whole = rules.RULES[nn.LayerNorm]

    def without_bias(call):
        for name, factor in whole(call):
            yield name, factors.Full(torch.zeros(call.batch, *call.module.bias.shape)) if name == "bias" else factor

    monkeypatch.setitem(rules.RULES, nn.LayerNorm, without_bias)
    programs = [(("points", "linear", "layer norm", "tanh", "gru"), 7), (("table", "linear"), 8)]
    monkeypatch.setattr(fuzz, "programs", lambda count, seed: iter(programs[:count]))
    tally, failures = fuzz.fuzz_models(2, seed=0)
    assert tally["exact"] == len(failures) == 1
    assert "build(('points', 'layer norm'), 7)" in failures[0]
