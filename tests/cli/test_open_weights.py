# SPDX-License-Identifier: Apache-2.0
"""What leaves a seal to be handed on: a snapshot's weights, and none of the keys that its noise came from."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from privguard.checkpoint import Key, Snapshot, save
from tests.cli.command import privguard


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Key.generate_symmetric().write("team.key")
    Path("text").write_text("in clear")
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.bfloat16)}
    generators = {"streams": b"the key of the noise"}
    save(Snapshot(weights=weights, run="r", step=3, generators=generators), "step.sealed", to=["team.key"])
    return weights


def test_the_weights_alone_are_written_and_any_tool_reads_them(place, capsys):
    privguard("open", "step.sealed", "--key", "team.key", "--weights")
    found = safetensors.torch.load_file("step.safetensors")
    assert found.keys() == place.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in place.items())
    assert "noise" not in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["step.safetensors", "step.sealed", "team.key", "text"]


def test_who_opens_it_all_is_told_what_not_to_hand_on(capsys):
    privguard("open", "step.sealed", "--key", "team.key", "-o", "all")
    assert "take a private run's noise off" in " ".join(capsys.readouterr().err.split())
    privguard("seal", "text", "--to", "team.key")
    privguard("open", "text.sealed", "--key", "team.key", "-o", "again")
    assert "noise" not in capsys.readouterr().err


def test_what_holds_no_weights_or_would_be_overwritten_is_refused(capsys):
    privguard("seal", "text", "--to", "team.key")
    privguard("open", "text.sealed", "--key", "team.key", "--weights", "-o", "new", code=1)
    assert "expected a snapshot" in capsys.readouterr().err
    privguard("open", "step.sealed", "--key", "team.key", "--weights", "-o", "text", code=2)
    assert "nothing is overwritten in clear" in capsys.readouterr().err
    privguard("open", "step.sealed", "--key", "team.key", "--weights", "--audit", code=2)
    assert not Path("new").exists()
    assert Path("text").read_text() == "in clear"
