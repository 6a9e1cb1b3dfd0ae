# SPDX-License-Identifier: Apache-2.0
"""``privguard audit model``: a sound model moves by C at most, and the report says so; an unsound one is refused."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from privguard.cli import app
from privguard.errors import SensitivityError
from privguard.report.findings import read
from privguard.runs.audits import model as audited_model
from privguard.runs.audits.model import audit_model

BATCH = (torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2)


def net():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def losses_of(model):
    return lambda batch: functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("public", [False, True])
def test_a_sound_model_moves_by_at_most_the_clipping_norm(public):
    model = net()
    sensitivity = audit_model(model, losses_of(model), BATCH, pairs=40, largest=6, public=public)
    assert 0.99 <= sensitivity.moved <= 1 + 1e-5  # most records are clipped, so the bound is reached
    assert "at most 1.000" in str(sensitivity)
    assert sensitivity.records in str(sensitivity)
    assert "forward" not in vars(model[0])  # given back


def test_a_clip_that_clips_too_little_is_caught(monkeypatch):
    """A planted bug in the slow way: factors are a fortieth too large, less than the sum's own invariant sees."""
    from privguard.training import clip, one_by_one

    model, true = net(), clip.clip_factors
    monkeypatch.setattr(one_by_one, "clip_factors", lambda norms, *, max_norm: 1.025 * true(norms, max_norm=max_norm))
    monkeypatch.setattr(
        audited_model,
        "choose",
        lambda model, *_, max_grad_norm: (one_by_one.OneByOne(model, max_grad_norm=max_grad_norm), None),
    )
    assert audit_model(model, losses_of(model), BATCH, pairs=20).moved > 1.02


def test_a_loss_that_divides_by_the_batch_is_refused():
    model = net()
    with pytest.raises(SensitivityError, match="divide by no batch size"):
        audit_model(model, lambda batch: losses_of(model)(batch) / len(batch[0]), BATCH, pairs=4)


def test_the_command_prints_and_keeps_what_the_report_reads(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(
        "import torch\n"
        "def setup():\n"
        "    model = torch.nn.Linear(5, 2)\n"
        "    losses = lambda b: torch.nn.functional.cross_entropy(model(b[0]), b[1], reduction='none')\n"
        "    return model, losses, (torch.randn(4, 5), torch.zeros(4, dtype=torch.long))\n"
    )
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_model", raising=False)  # another test's
    shown = CliRunner().invoke(app, ["audit", "model", "my_model:setup", "--pairs", "16", "--run", ".", "--json"])
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.stdout)
    assert record["record"] == "Sensitivity"
    assert record["moved"] <= 1 + 1e-5
    (kept,) = (tmp_path / "evidence").iterdir()
    (sensitivity,) = read(tmp_path, [f"evidence/{kept.name}"]).sensitivities
    assert sensitivity.to_json() == record
