# SPDX-License-Identifier: Apache-2.0
"""What a run says of its sum and noise, which noise it takes, and noise that is made ahead."""

import json
import threading

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from privguard._random import Stream
from privguard.accounting.ledger import Ledger
from privguard.errors import PrivacyError, ResumeError
from privguard.report import guarantee
from privguard.runs.start import read_manifest
from privguard.training.attach import attach
from privguard.training.clip import ROUNDING, trainable
from privguard.training.noise import ahead
from privguard.training.noise.ahead import Ahead
from privguard.training.noise.exact import draw
from privguard.training.plan import Performance
from privguard.training.step import PrivateStep
from tests.integrations.small import small_model, small_plan


def test_the_record_states_the_sensitivity_that_noise_is_scaled_to(small):
    private = small.start()
    facts = json.loads((small.folder / "run.json").read_text())["mechanism"]
    d = sum(parameter.numel() for parameter in small.model.parameters())
    assert facts["specification"] == "mechanism-v1"
    assert facts["noise"] == "exact"
    assert facts["coordinates"] == d
    assert 0 <= facts["shape_term"] < 1e-5
    bound, step = 0.5 * (1 + ROUNDING), 2.0 ** facts["grid_exponent"]
    assert facts["sensitivity"] == pytest.approx(bound + d**0.5 * step, rel=1e-12)
    assert d**0.5 * step <= 1e-4 * bound
    small.go(private, steps=2)
    assert not any("float32" in line for line in private.claim().unchecked)
    private.close()
    said = " ".join(guarantee.assumptions(read_manifest(small.folder)))
    assert "1.0010" in said
    assert "mechanism-v1" in said
    assert "float32 by choice" not in said


def test_noise_in_float32_is_said_by_claim_and_report_and_stays_so(small):
    private = small.start(performance=Performance(noise="float32"))
    small.go(private, steps=2)
    assert any("float32, by choice" in line for line in private.claim().unchecked)
    assert any("float32, by choice" in line for line in guarantee.assumptions(read_manifest(small.folder)))
    private.close()
    small.renew()
    with pytest.raises(ResumeError, match="began with 'float32' noise"):
        small.start(resume=True)
    small.renew()
    small.start(resume=True, performance=Performance(noise="float32")).close()
    with pytest.raises(ValueError, match="noise='fast'"):
        Performance(noise="fast")


@pytest.mark.parametrize("change", [{"max_grad_norm": 1e-36}, {"max_grad_norm": 1e36}, {"noise_multiplier": 1e15}])
def test_what_the_numbers_cannot_hold_is_refused_before_anything_is_written(small, change):
    with pytest.raises(PrivacyError, match="noise_multiplier="):
        small.start(small_plan(**change))
    assert not small.folder.exists()


class DependsOnShape(torch.nn.Module):
    """As a kernel that is chosen by the number of rows; far below what counts as a mix of examples."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * (1 + 2e-6 * len(x))


def test_what_a_batchs_shape_does_to_a_records_gradient_is_measured_and_printed(small):
    small.model = DependsOnShape()
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    private = small.start(
        losses=lambda batch: functional.cross_entropy(small.model(batch[0]), batch[1], reduction="none")
    )
    private.close()
    facts = read_manifest(small.folder)
    assert 3e-6 < facts.mechanism["shape_term"] < 3e-5  # 8e-6, and what the loss makes of larger logits
    assert any(f"changed by up to {facts.mechanism['shape_term']:.1e}" in line for line in guarantee.assumptions(facts))


def steps(folder, *, idle, monkeypatch, count=4):
    """Weights after some steps of a seeded private step, with noise made ahead or not."""
    monkeypatch.setattr("privguard.training.step.has_idle_core", lambda: idle)
    model, plan = small_model(), small_plan()
    clipper, parameters = attach(model, max_grad_norm=0.5), trainable(model)
    with Ledger.create(folder / f"ledger-{idle}", {}) as ledger:
        source = Stream.from_insecure_seed(1, "noise")
        step = PrivateStep(plan, clipper=clipper, ledger=ledger, noise=source, reserve=8)
        for number in range(count):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
            clipper.begin(torch.ones(5, dtype=torch.bool))
            clipper.backward(model(x).square().sum(1))
            step.finish(torch.optim.SGD(model.parameters(), lr=0.1), parameters)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_noise_made_ahead_is_the_same_noise(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(ahead, "draw", lambda *a, **k: made.append(threading.current_thread().name) or draw(*a, **k))
    now = steps(tmp_path, idle=False, monkeypatch=monkeypatch)
    assert made == []
    assert torch.equal(now, steps(tmp_path, idle=True, monkeypatch=monkeypatch))
    assert len(made) in {3, 4}  # the last one, for a step that never came, may not have begun
    assert all(name.startswith("privguard-noise") for name in made)


def test_noise_made_for_one_position_is_used_for_no_other():
    made = Ahead()
    made.begin(3, rows=[], deviation=1.0, source=Stream.from_entropy("n"))
    assert made.take(4) == {}
    assert made.take(3) == {}


def test_a_run_on_two_data_loaders_workers_and_noise_ahead_goes_to_its_end(small, monkeypatch):
    """A thread beside forked workers: what is made ahead takes no lock that a worker could inherit."""
    monkeypatch.setattr("privguard.training.step.has_idle_core", lambda: True)
    private = small.start(loader=DataLoader(small.data, batch_size=16, shuffle=True, num_workers=2))
    assert small.go(private) == 20
    private.close()
