# SPDX-License-Identifier: Apache-2.0
"""Several processes train as one: one sample, one sum, one noise, one ledger."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loop import network, weights
from processes import launch
from scipy.linalg import toeplitz
from scipy.stats import kstest, norm

from privguard.accounting.bands import coefficients
from privguard.accounting.ledger import Ledger
from privguard.checkpoint.keys.key import Key

SCRIPT = Path(__file__).parent / "loop.py"


def train(folder, ranks, *flags, steps=8, taken=None, noise=0.0, rate=0.3):
    """Train on that many ranks in a folder of the ranks' own; the lead's first weights, and what they moved by."""
    out, run = (folder / "-".join([kind, str(ranks), *flags[:1]]) for kind in ("out", "run"))
    if not out.exists():
        out.mkdir()
        Key.generate().write(out / "key")
    codes, said = launch(SCRIPT, ranks, run, out, steps, noise, rate, *flags)
    assert codes == [0] * ranks, said
    assert Ledger.read(run / "ledger.jsonl").position == (taken or steps)
    found = [torch.load(out / f"rank{r}.pt") for r in range(ranks)]
    assert all(torch.equal(one["after"], found[0]["after"]) for one in found)  # to the last bit on every rank
    return found[0]


@pytest.mark.slow
def test_four_ranks_are_one_process(tmp_path):
    alone, four = (train(tmp_path, ranks)["after"] for ranks in (1, 4))
    assert torch.allclose(four, alone, atol=1e-5)


def test_two_ranks_are_one_process(tmp_path):
    alone, two = (train(tmp_path, ranks)["after"] for ranks in (1, 2))
    train(tmp_path, 2, "cut", "stop", 5, taken=5)  # FSDP2: every parameter, and its momentum, is cut in two
    parts = train(tmp_path, 2, "cut", "resume", tmp_path / "out-2-cut" / "state")["after"]
    assert not torch.allclose(alone, weights(network()), atol=1e-2)
    for several in (two, parts):
        assert torch.allclose(several, alone, atol=1e-5)


@pytest.mark.stat
@pytest.mark.parametrize("ranks", [[1], [2], pytest.param([4], marks=pytest.mark.slow), [2, "cut"]], ids=str)
def test_there_is_one_noise_of_the_stated_deviation(tmp_path, ranks):
    """30,003 coordinates of an empty step, KS against N(0, σC/B): false-alarm rate 1e-3, the seed is fixed."""
    moved = train(tmp_path, *ranks, steps=1, noise=2.0, rate=1e-9)["moved"].double().numpy()
    deviation = 2.0 * 0.5 / 18
    assert len(moved) == 30_003
    assert len(np.unique(moved)) > 30_000 * 0.99  # no two parts have the same noise
    assert kstest(moved, norm(scale=deviation).cdf).pvalue > 1e-3
    for wrong in (deviation * 2**0.5, deviation / 2**0.5, deviation * 2):
        assert kstest(moved, norm(scale=wrong).cdf).pvalue < 1e-6


@pytest.mark.stat
@pytest.mark.parametrize("flags", [pytest.param(["bands"], marks=pytest.mark.slow), ["cut", "bands"]], ids=str)
def test_two_ranks_add_one_correlated_noise(tmp_path, flags):
    """What 8 steps of it move 30,003 weights by, KS: 1e-6 for false alarms, and independent noise has 1e-12."""
    steps, strategy = 8, np.pad(coefficients(4, steps=8), (0, 4))
    whole = toeplitz(strategy, np.zeros(steps))
    noise = np.diag(np.linalg.norm(whole, axis=0)) @ np.linalg.inv(whole)
    taken = [sum(0.9**t * 0.9 ** (t - s) for t in range(s, steps)) for s in range(steps)]  # schedule and momentum
    moved = train(tmp_path, 2, *flags, noise=2.0, rate=1e-9)["moved"].double().numpy()
    correlated, independent = (
        np.linalg.norm(np.array(taken) @ rows) * 2.0 * 0.5 / 18 for rows in (noise, np.eye(steps))
    )
    assert kstest(moved, norm(scale=correlated).cdf).pvalue > 1e-6
    assert kstest(moved, norm(scale=independent).cdf).pvalue < 1e-12


def test_losing_a_rank_ends_the_run_and_leaves_a_state_to_go_on_from(tmp_path):
    Key.generate().write(tmp_path / "key")
    codes, said = launch(SCRIPT, 2, tmp_path / "run", tmp_path, 8, 0.0, 0.3, "die", 1, 3)
    assert codes[1] == -9, said
    assert codes[0] not in {0, -9}
    assert Ledger.read(tmp_path / "run" / "ledger.jsonl").position >= 3
    codes, said = launch(SCRIPT, 2, tmp_path / "run", tmp_path, 8, 0.0, 0.3, "resume", tmp_path / "state")
    assert codes == [0, 0], said
    assert Ledger.read(tmp_path / "run" / "ledger.jsonl").position == 8
