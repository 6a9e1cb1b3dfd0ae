# SPDX-License-Identifier: Apache-2.0
"""A run that will learn nothing says so before its first step; one that can learn says nothing."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.accounting.outlook import Start
from privguard.report import facts
from privguard.report.assemble import assemble
from privguard.runs.outlook import FaintSignalWarning, start_of
from tests.integrations.small import small_plan


def test_a_faint_run_warns_before_its_first_step_and_its_record_and_report_say_so(small):
    with pytest.warns(FaintSignalWarning, match=r"expected to learn little.*at least 1 times.*privguard plan"):
        private = small.start(small_plan(noise_multiplier=10.0))
    said = json.loads((small.folder / "run.json").read_text())["outlook"]
    d = sum(parameter.numel() for parameter in small.model.parameters())
    assert said["trained"] == d
    assert said["noise_over_signal"] == pytest.approx(10 * d**0.5 / (20 * 20**0.5))
    assert said["faint"]
    small.go(private, steps=1)
    private.close()
    report = assemble(small.folder)
    assert dict(facts.mechanism(report))["Expected to learn"].startswith("little or nothing")
    hopeful = replace(report, manifest=replace(report.manifest, outlook={**said, "faint": False}))
    assert dict(facts.mechanism(hopeful))["Expected to learn"].startswith("yes")


def test_a_run_that_can_learn_warns_of_nothing(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaintSignalWarning)
        small.start().close()
    assert not json.loads((small.folder / "run.json").read_text())["outlook"]["faint"]


def test_the_logged_ratio_is_the_predicted_least_where_all_records_pull_one_way(tmp_path):
    """8,000 weights of which the noise's norm is within 5 % of its mean but for less than one run in a million."""
    pg.Key.generate().write(tmp_path / "key")
    model, data = nn.Linear(4000, 2), TensorDataset(torch.ones(50, 4000), torch.zeros(50, dtype=torch.long))
    plan = small_plan(sample_rate=1.0, noise_multiplier=0.5, steps=3, expected_batch_size=50, max_grad_norm=0.01)
    private = pg.privatize(
        model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data, batch_size=50), plan,
        run=tmp_path / "run", seal_to=[tmp_path / "key"], options=pg.RunOptions(quiet=True, rehearsal=False),
    )  # fmt: skip
    for inputs, labels in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), labels, reduction="none"))
        private.step()
        step = plan.outlook(8002).step_noise_over_signal
        assert private._run.noise_to_signal == pytest.approx(step / (1 + step**2) ** 0.5, rel=0.05)


def test_what_a_training_begins_with_is_read_off_the_model(tmp_path):
    config = hf.BertConfig(
        vocab_size=1200, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    fresh = hf.BertForSequenceClassification(config)
    assert start_of(fresh) is Start.TABLE
    fresh.save_pretrained(tmp_path)
    assert start_of(hf.BertForSequenceClassification.from_pretrained(tmp_path)) is Start.TUNED
    assert start_of(nn.Sequential(nn.Embedding(256, 4), nn.Linear(4, 2))) is Start.SCRATCH
    half = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    half[0].requires_grad_(False)
    assert start_of(half) is Start.TUNED
