# SPDX-License-Identifier: Apache-2.0
"""The audit commands: a record on stdout, talk on stderr, and exit codes that a script can rely on."""

import json
import sys
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from privguard._random import Stream
from privguard.audit.loading import read_design
from privguard.audit.one_run.canary import Coins
from privguard.cli import app
from privguard.errors import AuditError, TamperedError


@pytest.fixture
def call():
    return lambda *arguments: CliRunner().invoke(app, ["audit", *map(str, arguments)])


PLAN = ("plan", "--epsilon", 2, "--delta", 1e-5, "--canaries", 200, "--guesses-in", 100, "--guesses-out", 100)


def test_plan_says_the_cap_and_what_would_refute(call):
    shown = json.loads(call(*PLAN, "--json").stdout)
    (row,) = shown["bounds"]
    assert row["cap"] == pytest.approx(4.19, abs=0.02)
    assert row["right_to_refute"] == 184
    assert row["least_canaries_of_a_perfect_attack"] == 24
    assert shown["commitment"] is None
    said = call("plan", "--epsilon", 8, "--delta", 1e-5).stdout
    assert "cannot refute this claim: the verdict can only be uninformative" in said


def test_the_threshold_bound_needs_its_threshold(call):
    result = call(*PLAN, "--bound", "gaussian-threshold")
    assert isinstance(result.exception, ValueError)
    assert "threshold=None" in str(result.exception)


def written(call, folder, plan=PLAN):
    result = call(*plan, "--out", folder, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["commitment"]


def drawn(folder, commitment):
    """The coins: 60 at least of each side but for once in 10⁸ runs, so that a perfect attack makes no wrong guess."""
    included = Coins.read(folder / "coins.json", commitment=commitment).included
    assert 60 <= included.sum() <= 140
    return included


def judged(call, folder, commitment, scores, *more):
    np.savez(folder / "scores.npz", scores=scores)
    files = ("--design", folder / "design.json", "--coins", folder / "coins.json", "--commitment", commitment)
    return call("scores", folder / "scores.npz", *files, "--json", *more)


def test_from_plan_to_verdict(call, tmp_path):
    folder = tmp_path / "audit"
    commitment = written(call, folder, (*PLAN[:-3], 60, "--guesses-out", 60))
    included = drawn(folder, commitment)
    noise = np.random.default_rng(0).standard_normal(200)
    np.savez(folder / "control.npz", scores=included + 0.01 * noise)
    quiet = judged(call, folder, commitment, noise, "--control", folder / "control.npz")
    assert (quiet.exit_code, json.loads(quiet.stdout)["outcome"]) == (0, "consistent")
    alone = judged(call, folder, commitment, noise)
    assert json.loads(alone.stdout)["outcome"] == "uninformative"
    loud = judged(call, folder, commitment, included + 0.01 * noise)
    assert (loud.exit_code, json.loads(loud.stdout)["outcome"]) == (1, "refuted")


def test_a_finding_above_its_claim_heads_the_report_of_its_run(call, tmp_path):
    from recipes.plain_loop import train

    train(tmp_path / "run", epochs=1, quiet=True)
    folder = tmp_path / "audit"
    commitment = written(
        call,
        folder,
        ("plan", "--epsilon", 3, "--delta", 1e-4, "--canaries", 200, "--guesses-in", 60, "--guesses-out", 60),
    )
    included = drawn(folder, commitment)
    loud = included + 0.01 * np.random.default_rng(0).standard_normal(200)
    assert judged(call, folder, commitment, loud, "--run", tmp_path / "run").exit_code == 1
    shown = json.loads(CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--json"]).stdout)
    assert "steinke: an attack showed ε ≥ 3." in shown["contradictions"][0]
    assert judged(call, folder, commitment, loud, "--run", tmp_path).exit_code == 2


@pytest.mark.parametrize(("canaries", "claimed"), [("example", "user"), ("user", "example")])
def test_canaries_of_another_unit_than_the_runs_claim_are_refused(call, tmp_path, canaries, claimed):
    """An example says nothing about a claim for whole users, and the other way round."""
    run, folder = tmp_path / "run", tmp_path / "audit"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"plan": {"unit": claimed}}))
    commitment = written(call, folder, (*PLAN, "--unit", canaries))
    refused = judged(call, folder, commitment, np.random.default_rng(0).standard_normal(200), "--run", run)
    assert isinstance(refused.exception, AuditError)
    assert f"claim speaks of one {claimed}" in str(refused.exception)
    assert not (run / "evidence").exists()


def test_a_second_plan_never_flips_again_in_the_same_folder(call, tmp_path):
    written(call, tmp_path / "audit")
    assert isinstance(call(*PLAN, "--out", tmp_path / "audit").exception, FileExistsError)


def test_coins_without_their_commitment_are_refused(call, tmp_path):
    written(call, tmp_path / "audit")
    result = judged(call, tmp_path / "audit", "0" * 64, np.zeros(200))
    assert isinstance(result.exception, TamperedError)
    assert (
        call("scores", tmp_path / "audit" / "scores.npz", "--design", tmp_path / "audit" / "design.json").exit_code == 2
    )


@pytest.mark.parametrize("text", ["{}", "[]", "x", '{"record": "Coins"}'])
def test_a_file_that_is_no_design_is_said_to_be_none(tmp_path, text):
    (tmp_path / "design.json").write_text(text)
    with pytest.raises(TamperedError, match="not a design"):
        read_design(tmp_path / "design.json")


def test_scores_alone(call, tmp_path):
    members = np.arange(300) < 150
    random = np.random.default_rng(1)
    arrays = {
        "scores_a": members + random.standard_normal(300),
        "scores_b": random.standard_normal(300),
        "members": members,
    }
    np.savez(tmp_path / "s.npz", **arrays)
    said = call("scores", tmp_path / "s.npz")
    assert said.stdout.startswith("no verdict on a leak")
    assert "not measurable  (" in said.stdout
    np.savez(tmp_path / "s.npz", **arrays, records=random.standard_normal((300, 4)))
    assert json.loads(call("scores", tmp_path / "s.npz", "--json").stdout)["leak"].startswith("members stand out")


MODULE = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))

def trained():
    model = network()
    model.load_state_dict(torch.nn.modules.module.Module.state_dict(model) | STATE)
    return model

def scoring(inputs):
    with torch.no_grad():
        return trained()(inputs)
"""


@pytest.fixture
def overfitted(tmp_path, monkeypatch):
    """A module file with a model that learned random labels by heart, and its members and non-members."""
    random = np.random.default_rng(0)
    inputs, labels = random.standard_normal((240, 6)).astype(np.float32), random.integers(0, 3, 240)
    np.savez(tmp_path / "in.npz", inputs=inputs[:120], labels=labels[:120])
    np.savez(tmp_path / "out.npz", inputs=inputs[120:], labels=labels[120:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(250):
        loss = nn.functional.cross_entropy(model(torch.from_numpy(inputs[:120])), torch.from_numpy(labels[:120]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    (tmp_path / "my_model.py").write_text(
        f"STATE = {{k: __import__('torch').tensor(v) for k, v in {state!r}.items()}}\n{MODULE}"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_model", None)


def test_membership_attacks_a_model_by_name_and_goes_on_from_its_folder(call, overfitted):
    files = ("--members", "in.npz", "--non-members", "out.npz")
    trained = ("--architecture", "my_model:network", "--references", 4, "--epochs", 30, "--out", "audit")
    result = call("membership", "my_model:trained", *files, *trained, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["leak"].startswith("members stand out")
    assert [each["attack"] for each in found["attacks"]] == ["loss", "lira", "rmia"]
    assert json.loads((overfitted / "audit" / "audit.json").read_text()) == found
    assert "<svg" in (overfitted / "audit" / "roc.svg").read_text()
    written = (overfitted / "audit" / "references" / "references-00000.safetensors").stat().st_mtime_ns
    again = call("membership", "my_model:trained", *files, *trained)
    assert "not claimed:" in again.stdout
    assert (overfitted / "audit" / "references" / "references-00000.safetensors").stat().st_mtime_ns == written


def test_membership_takes_a_scoring_function_and_says_what_is_missing(call, overfitted):
    files = ("--members", "in.npz", "--non-members", "out.npz")
    assert call("membership", "my_model:scoring", *files).exit_code == 0
    assert call("membership", "my_model:trained", *files, "--references", 2).exit_code == 2
    for name, wanted in (("my_model", "module:name"), ("my_model:nobody", "nobody"), ("nowhere:x", "nowhere")):
        result = call("membership", name, *files)
        assert isinstance(result.exception, ValueError)
        assert wanted in str(result.exception)


def test_steps_audits_the_step_of_this_installation(call, monkeypatch):
    """From seeds: keyed from entropy, a correct step is refuted, or fails a check, once in 200 runs."""
    seeded = classmethod(lambda cls, label: cls.from_insecure_seed(crc32(label.encode()), label))
    monkeypatch.setattr(Stream, "from_entropy", seeded)
    result = call(
        "steps",
        "--noise-multiplier",
        1.13,
        "--sample-rate",
        0.1,
        "--steps",
        100,
        "--canaries",
        200,
        "--trials",
        150,
        "--json",
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["finding"]["outcome"] == "consistent"
    assert found["checks"]["failed"] == []
    assert set(found["checks"]["p_values"]) >= {"noise level", "every step recorded", "Poisson inclusion"}


def test_a_bound_that_is_none_and_a_folder_that_is_there_are_named(call, tmp_path):
    result = call(*PLAN, "--bound", "stienke")
    assert isinstance(result.exception, ValueError)
    assert "bound='stienke': expected steinke, gaussian-one-run, gaussian-threshold, gaussian-rank" in str(
        result.exception
    )
    result = call(*PLAN, "--out", tmp_path)
    assert isinstance(result.exception, FileExistsError)
    assert "a second flip of the coins could be a choice" in str(result.exception)


def test_a_file_without_scores_is_named(call, tmp_path):
    commitment = written(call, tmp_path / "audit")
    np.savez(tmp_path / "wrong.npz", losses=np.zeros(200))
    files = ("--design", tmp_path / "audit/design.json", "--coins", tmp_path / "audit/coins.json")
    result = call("scores", tmp_path / "wrong.npz", *files, "--commitment", commitment)
    assert isinstance(result.exception, ValueError)
    assert "wrong.npz: arrays=['losses']: expected one called 'scores'" in str(result.exception)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "wrong.npz").read_bytes()[:60])
    result = call("scores", tmp_path / "cut.npz")
    assert isinstance(result.exception, ValueError)
    assert "cut.npz: expected an .npz file of plain arrays" in str(result.exception)
