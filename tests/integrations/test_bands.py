# SPDX-License-Identifier: Apache-2.0
"""A private run with bands: what it costs, who takes part when, and what becomes of rows when it ends or crashes."""

import numpy as np
import pytest
import torch
from small import SmallRun, small_plan

from privguard.accounting.accountant import epsilon, spent
from privguard.accounting.bands import coefficients
from privguard.accounting.ledger import Ledger
from privguard.errors import PrivacyError
from privguard.runs.audits.step import audit_step
from privguard.runs.folder import LEDGER
from privguard.runs.seeds import Streams
from privguard.training.noise.correlation import Correlation
from privguard.training.plan import Performance, Plan
from privguard.training.sampling.sample import Poisson

BANDED = {"strategy": coefficients(4, steps=22), "sample_rate": 0.8, "steps": 22}


def banded(**changes):
    return small_plan(**{**BANDED, **changes})


def test_a_run_is_priced_by_its_begun_blocks_and_says_what_it_did(small):
    plan = banded()
    private = small.start(plan)
    assert SmallRun.go(private) == 22
    history = Ledger.read(private.folder / LEDGER)
    assert (history.position, history.events, history.settled) == (22, 6, True)
    assert {entry.span for entry in history.entries} == {4}
    assert private.claim().epsilon == spent([(plan.event(), 6)], delta=plan.delta).epsilon


def test_stopping_in_a_block_costs_the_block_and_going_on_costs_nothing_more(small):
    plan = banded()
    private = small.start(plan)
    SmallRun.go(private, steps=6)
    stopped = Ledger.read(private.folder / LEDGER)
    assert (stopped.position, stopped.events) == (6, 2)
    small.renew()
    SmallRun.go(small.start(plan, resume=True))
    ended = Ledger.read(private.folder / LEDGER)
    assert (ended.position, ended.events) == (22, 6)
    assert epsilon(ended, delta=plan.delta) == epsilon(plan.events(), delta=plan.delta)


def test_a_resumed_run_forgets_rows_and_keeps_groups(small, monkeypatch):
    """The first step of the process that resumes takes nothing back; the sampler asks for the same groups."""
    firsts, groups = [], set()
    draw, sampler = Correlation.draw, Plan.sampler

    def watched(correlation, position, **arguments):
        firsts.append((position, len(correlation._positions)))
        return draw(correlation, position, **arguments)

    def asked(plan, stream):
        groups.add(stream.secret())
        return sampler(plan, stream)

    monkeypatch.setattr(Correlation, "draw", watched)
    monkeypatch.setattr(Plan, "sampler", asked)
    private = small.start(banded())
    SmallRun.go(private, steps=6)
    small.renew()
    SmallRun.go(small.start(banded(), resume=True), steps=3)
    assert firsts == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 0), (7, 1), (8, 2)]
    assert len(groups) == 1


def test_the_group_key_outlives_the_keys_of_samples_and_noise():
    first = Streams.fresh(None)
    second = first.renewed()
    assert first.groups.secret() == second.groups.secret()
    assert first.samples.secret() != second.samples.secret()
    again = Streams.of(second.secrets(), insecure=False)
    assert again.groups.secret() == first.groups.secret()


def test_the_noise_of_a_run_is_white_once_uncorrelated_and_reaches_the_weights(small):
    """Zero gradients, so what moves the weights is the noise: M times it, over its deviation, against a Gaussian."""
    plan = banded(noise_multiplier=2.0)
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.5)
    private = small.start(plan, insecure_seed=7)
    weights, before = [], torch.cat([p.detach().flatten() for p in small.model.parameters()]).clone()
    for x, _ in private.batches():
        private.backward(small.model(x).sum(1) * 0)
        if private.step():
            weights.append(torch.cat([p.detach().flatten() for p in small.model.parameters()]).clone())
    moved = torch.diff(torch.stack([before, *weights]), dim=0).double().numpy()
    scale = moved * plan.expected_batch_size / (plan.noise_multiplier * plan.max_grad_norm)
    whole = np.zeros((22, 22))
    for i in range(22):
        width = min(4, 22 - i)
        whole[i : i + width, i] = np.array(plan.strategy[:width]) / np.linalg.norm(plan.strategy[:width])
    white = whole @ (scale / -0.5)
    assert abs(white.std() - 1) < 4.9 / np.sqrt(2 * white.size)
    for lag in (1, 2, 3):
        products = (white[lag:] * white[:-lag]).ravel()
        assert abs(products.mean()) < 4.9 / np.sqrt(products.size)
    assert (scale[1:] * scale[:-1]).mean() / scale.var() < -0.2  # each step takes back part of the one before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"performance": Performance(noise="float32")}, "performance.noise"),
        ({"performance": Performance(reserve=8)}, "performance.reserve"),
        ({"continue_exactly": True}, "continue_exactly"),
        ({"other_data": "more of it"}, "other_data"),
    ],
)
def test_what_bands_cannot_honour_is_refused_by_name(small, options, said):
    with pytest.raises(ValueError, match=said):
        small.start(banded(), **options)


def test_an_audit_that_knows_independent_noise_alone_refuses_bands():
    with pytest.raises(PrivacyError, match="bands=4"):
        audit_step(banded(), canaries=8, trials=8)


def test_without_noise_nothing_is_correlated_and_the_claim_is_infinite(small):
    private = small.start(banded(noise_multiplier=0.0))
    assert SmallRun.go(private) == 22
    assert private.claim().epsilon == float("inf")


def groups_of(small, plan):
    """At which positions, modulo the bands, each record of the data set takes part."""
    private, places, position = small.start(plan, batch_size=100), {}, 0
    for x, _ in private.batches():
        for row in x:
            places.setdefault(tuple(row.tolist()), set()).add(position % plan.bands)
        private.backward(small.model(x).sum(1))
        position += private.step()
    return [place for row, place in places.items() if row != tuple(small.data[0][0].tolist())]  # a masked row's


def test_a_record_takes_part_in_the_steps_of_one_group_and_plain_poisson_shows(small, monkeypatch):
    assert all(len(place) == 1 for place in groups_of(small, banded()))
    monkeypatch.setattr(Plan, "sampler", lambda plan, _: Poisson(plan.sample_rate))
    small.renew()
    small.folder = small.folder / "plain"
    assert any(len(place) > 1 for place in groups_of(small, banded()))
