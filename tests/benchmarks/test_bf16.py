# SPDX-License-Identifier: Apache-2.0
"""bfloat16 through PrivateTrainer: some cells of the benchmark's table, and that the table can say something else."""

import pytest
import torch
import transformers as hf
from torch import nn

from benchmarks import bf16
from benchmarks.bf16 import Cell, counted, measure
from benchmarks.bf16_models import TINY
from privguard.errors import UnsupportedModelError
from privguard.training.probes import examples

KINDS = [
    ("BERT, classes", "bf16 autocast", False),
    ("Llama", "bf16 weights", True),
    ("T5", "bf16 weights", False),
    ("ViT", "bf16 autocast", True),
]


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()


@pytest.mark.parametrize(("name", "precision", "lora"), KINDS)
def test_bfloat16_takes_one_pass_near_float32_and_a_mix_is_refused(name, precision, lora):
    found = measure(Cell(TINY[name], precision, lora), seeds=1)
    assert found["refused"] == []
    assert found["one pass"] == 1
    assert found["distance"] > 1e-4  # it was computed in bfloat16
    assert found["farther"] <= bf16.FARTHER[precision]
    assert all("exchanging example" in said for said in found["mix refused"].values())


def test_the_slow_way_and_a_mix_that_trains_are_counted(monkeypatch):
    """A probe that takes a hundredth for nothing, and no book-keeping."""

    def attach(model, *, max_grad_norm):
        raise UnsupportedModelError("planted")

    monkeypatch.setattr(examples, "SAME", 1e-2)
    monkeypatch.setattr(examples, "_SAME_IN_16_BITS", 1e-2)
    monkeypatch.setattr(examples, "attach", attach)
    monkeypatch.setattr(bf16, "PLACES", ("embedding",))
    with pytest.warns(UserWarning, match="one backward pass for each example"):
        cell = measure(Cell(TINY["BERT, classes"], "bf16 weights", lora=False), seeds=1)
    counts = counted({"BERT": {"bf16 weights": {"full": cell}}}, 1)
    assert counts["runs in one backward pass"] == "0 of 1"
    assert counts["mixes of 0.1 % refused"] == "0 of 1"


def test_a_mix_that_never_ran_is_an_error_and_no_missed_mix(monkeypatch):
    monkeypatch.setattr(bf16, "_place", lambda *_: nn.Identity())
    with pytest.raises(RuntimeError, match="the planted mix never ran"):
        bf16.refusal_of_mix(Cell(TINY["BERT, classes"], "float32", lora=False), "embedding")
