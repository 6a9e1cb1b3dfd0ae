# SPDX-License-Identifier: Apache-2.0
"""Bugs that privacy code really has, planted one by one in the real step, and each caught by its own check.

Every bug is run with six seeds and caught in all of them; the correct step is examined with the same seeds and passes
every time, at a family-wise false-alarm rate of 1e-3 (a false failure of this file: about 6 in 1,000 for fresh seeds,
none for these).
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from privguard._random import Stream
from privguard.audit.steps import checks
from privguard.audit.steps.audit import StepDesign, Trace, observe, step_finding
from privguard.audit.steps.checks import FALSE_ALARM, examine
from privguard.errors import AuditError
from privguard.records import Outcome
from privguard.runs.audits.step import AuditedStep
from privguard.training.clip import ClippedSum
from privguard.training.noise.exact import NoisySum
from privguard.training.plan import Plan
from privguard.training.sampling.sample import Poisson

SIGMA = 1.13
SEEDS = range(6)
DESIGN = StepDesign(canaries=100, trials=150, noise_multiplier=SIGMA, sample_rate=0.1, steps=200, delta=1e-5)

pytestmark = pytest.mark.stat


def plan(noise=SIGMA):
    return Plan(
        sample_rate=0.1, noise_multiplier=noise, max_grad_norm=0.7, steps=400, delta=1e-5, expected_batch_size=100
    )


@contextmanager
def stepper(folder, seed, *, noise=SIGMA):
    folder.mkdir(parents=True)
    step = AuditedStep(
        plan(noise), canaries=DESIGN.canaries, folder=folder, source=Stream.from_insecure_seed(seed, "noise")
    )
    try:
        yield step
    finally:
        step.close()


def traced(folder, seed, *, noise=SIGMA, plant=lambda step: step, trials=DESIGN.trials):
    with stepper(folder, seed, noise=noise) as step:
        design = replace(DESIGN, trials=trials)
        return observe(plant(step), design, source=Stream.from_insecure_seed(seed, "coins"))


def caught(tmp_path, check, *, noise=SIGMA, plant=lambda step: step, trials=DESIGN.trials):
    """The named check refuses the planted step with every seed."""
    bad = [traced(tmp_path / f"bad{seed}", seed, noise=noise, plant=plant, trials=trials) for seed in SEEDS]
    found = [check in examine(trace, noise_multiplier=SIGMA, giant=0).failed for trace in bad]
    assert found == [True] * len(SEEDS)


class Wrapped:
    """A stepper with one thing changed around it."""

    canaries = DESIGN.canaries

    def __init__(self, step, change):
        self._step, self._change = step, change

    def step(self, records):
        return self._change(self._step, records)


class Clipping:
    """A clipper whose sum is replaced by another one."""

    def __init__(self, inner, rows, rule):
        self._inner, self._rows, self._rule, self._present = inner, rows, rule, []

    @property
    def checks(self):
        return self._inner.checks

    def begin(self, mask):
        self._inner.begin(mask)

    def backward(self, losses):
        self._inner.backward(losses)

    def take(self):
        clipped = self._inner.take()
        whole = self._rule(torch.cat(list(clipped.gradients.values()), 1), self._rows)
        parts = whole.split([gradient.shape[1] for gradient in clipped.gradients.values()], 1)
        return ClippedSum(dict(zip(clipped.gradients, parts, strict=True)), clipped.l2_bound)


def clip_by(rule):
    def plant(step):
        step.private._clipper = Clipping(step.clipper, step._rows, rule)
        return step

    return plant


def unclipped(gradient, rows):
    return torch.where(gradient != 0, rows, 0.0)  # each canary's coordinate is its own, so the raw sum can be restored


def clipped_as_a_whole(gradient, rows):
    raw = torch.where(gradient != 0, torch.clamp(rows, max=0.7), 0.0)
    raw[0, 0] = rows[0] * (gradient[0, 0] != 0)
    bound = 0.7 * float((gradient != 0).sum())
    return raw * min(1.0, bound / float(raw.norm()))


def test_the_correct_step_passes_every_check(tmp_path):
    traces = [traced(tmp_path / str(seed), seed) for seed in SEEDS]
    failures = [examine(trace, noise_multiplier=SIGMA, giant=0).failed for trace in traces]
    assert failures == [()] * len(SEEDS)


def test_no_noise_is_caught(tmp_path):
    caught(tmp_path, "noise level", noise=0.0)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_noise_of_another_size_is_caught(tmp_path, factor):
    caught(tmp_path, "noise level", noise=SIGMA * factor)


def test_the_level_decides_and_one_in_a_million_still_finds_a_twentieth(tmp_path):
    little, more = (traced(tmp_path / str(factor), 0, noise=SIGMA * factor) for factor in (0.985, 0.95))
    assert examine(little, noise_multiplier=SIGMA).failed == ("noise level",)
    assert examine(little, noise_multiplier=SIGMA, level=1e-6).failed == ()
    assert examine(more, noise_multiplier=SIGMA, level=1e-6).failed == ("noise level",)
    with pytest.raises(ValueError, match="level=0"):
        examine(more, noise_multiplier=SIGMA, level=0.0)


def test_no_clipping_is_caught(tmp_path):
    caught(tmp_path, "contribution", plant=clip_by(unclipped))


def test_a_batch_clipped_as_a_whole_is_caught(tmp_path):
    caught(tmp_path, "influence of a giant", plant=clip_by(clipped_as_a_whole))


@pytest.mark.parametrize("period", [1, 37])
def test_noise_reused_across_steps_is_caught(tmp_path, period):
    class Repeating:
        def __init__(self, stream):
            self._stream = stream

        def child(self, position):
            return self._stream.child(position % period)

    def plant(step):
        step.private._noise = Repeating(step.private._noise)
        return step

    caught(tmp_path, "noise across steps", plant=plant)


def test_noise_reused_across_coordinates_is_caught(tmp_path):
    def shifted(step, records):
        scores = step.step(records)
        noise = scores - np.isin(np.arange(100), records)
        return scores - noise + np.tile(noise[:50], 2)

    caught(tmp_path, "noise across coordinates", plant=lambda step: Wrapped(step, shifted))


def test_noise_reused_across_ranks_is_caught(tmp_path):
    for seed in SEEDS:
        one, same = (traced(tmp_path / f"{seed}-{rank}", seed) for rank in (0, 1))
        other = traced(tmp_path / f"{seed}-2", seed + 1_000)
        assert checks.noise_across_ranks(one, same, SIGMA) <= FALSE_ALARM
        assert checks.noise_across_ranks(one, other, SIGMA) > FALSE_ALARM / len(SEEDS)


def test_division_by_the_realised_batch_size_is_caught(tmp_path):
    caught(tmp_path, "public denominator", plant=lambda step: Wrapped(step, lambda s, r: s.step(r) * 100 / len(r)))


def test_a_record_counted_twice_is_caught(tmp_path):
    def doubled(step, records):
        return step.step(np.concatenate([records, records[records == 17]]))

    def doubling_one(step, records):
        return step.step(records) + np.isin(np.arange(100), records[records == 17])

    for name, change in (
        ("row", doubled),
        ("sum", doubling_one),
    ):  # one canary of a hundred: it takes more steps to see
        caught(tmp_path / name, "contribution of each", plant=lambda step, c=change: Wrapped(step, c), trials=300)


def test_an_unrecorded_step_is_caught(tmp_path):
    class Forgetful:
        """Claims a position for every step and writes none of them down."""

        def __init__(self, ledger):
            self._ledger, self.position = ledger, ledger.position

        def reserve(self, event, times):
            self.position += times

        def settle(self, position):
            pass

        def note_checks(self, checked):
            pass

    for seed in SEEDS:
        with stepper(tmp_path / f"bad{seed}", seed) as step:
            step.private._ledger = Forgetful(step.ledger)
            observe(step, DESIGN, source=Stream.from_insecure_seed(seed, "coins"))
            assert checks.every_step_recorded(taken=step.private.taken, recorded=step.ledger.position) == 0.0
        with stepper(tmp_path / f"good{seed}", seed) as step:
            observe(step, DESIGN, source=Stream.from_insecure_seed(seed, "coins"))
            assert checks.every_step_recorded(taken=step.private.taken, recorded=step.ledger.position) == 1.0


def shuffled_draws(seed, records, steps, size):
    random = np.random.default_rng(seed)
    epoch = records // size
    return [part for _ in range(steps // epoch) for part in np.split(random.permutation(records), epoch)]


def test_shuffling_sold_as_poisson_is_caught():
    for seed in SEEDS:
        source = Stream.from_insecure_seed(seed, "sampler")
        poisson = [Poisson(0.1).draw(examples=500, source=source.child(step)) for step in range(50)]
        shuffled = shuffled_draws(seed, 500, 50, 50)
        assert checks.poisson_inclusion(shuffled, records=500, rate=0.1) <= FALSE_ALARM
        assert checks.poisson_inclusion(poisson, records=500, rate=0.1) > FALSE_ALARM / len(SEEDS)


def test_a_rate_that_is_ten_percent_too_high_is_caught():
    source = Stream.from_insecure_seed(1, "sampler")
    draws = [Poisson(0.11).draw(examples=2_000, source=source.child(step)) for step in range(50)]
    assert checks.poisson_inclusion(draws, records=2_000, rate=0.1) <= FALSE_ALARM


@pytest.mark.parametrize(
    "pair", [lambda i: i ^ 1, lambda i: (i + 250) % 500, lambda i: (i // 20) * 20], ids=["neighbours", "halves", "runs"]
)
def test_records_that_share_a_coin_are_caught_at_a_rate_of_one_in_a_hundred(pair):
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        coins = random.random((200, 500)) < 0.01
        first = np.minimum(np.arange(500), pair(np.arange(500)))
        shared = [np.flatnonzero(row[first]) for row in coins]
        alone = [np.flatnonzero(row) for row in coins]
        assert checks.poisson_inclusion(shared, records=500, rate=0.01) <= FALSE_ALARM
        assert checks.poisson_inclusion(alone, records=500, rate=0.01) > FALSE_ALARM / len(SEEDS)


def with_noise(clipped, multiplier, source, *, tensors, fresh):
    """The sum with noise in the first ``tensors`` tensors, each from a stream of its own or all from the same one."""
    deviation, released, seed = multiplier * clipped.l2_bound, {}, int(source.words(1)[0])
    for number, (name, gradient) in enumerate(clipped.gradients.items()):
        random = np.random.default_rng([seed, number if fresh else 0])
        noise = torch.from_numpy(random.standard_normal(gradient.shape)) * (deviation * (number < tensors))
        released[name] = (gradient + noise).float()
    return NoisySum(released, deviation)


def some_tensors_alone(clipped, *, multiplier, source, **_):
    return with_noise(clipped, multiplier, source, tensors=len(clipped.gradients) // 2, fresh=True)


def one_stream_for_all(clipped, *, multiplier, source, **_):
    return with_noise(clipped, multiplier, source, tensors=len(clipped.gradients), fresh=False)


@pytest.mark.parametrize(
    ("bug", "check"),
    [(some_tensors_alone, "noise level"), (one_stream_for_all, "noise across coordinates")],
    ids=["half", "one stream"],
)
def test_noise_that_is_right_for_one_tensor_and_wrong_for_the_next_is_caught(tmp_path, monkeypatch, bug, check):
    monkeypatch.setattr("privguard.training.step.add_noise", bug)
    caught(tmp_path, check, trials=75)


def product_across_steps(trace, sigma):
    """The reuse check as one would write it first, by the product of both noises: what the meter below has to catch."""
    noise = trace.residuals / sigma
    steps, canaries = noise.shape
    z = [(noise[lag:] * noise[:-lag]).sum() / np.sqrt(canaries * (steps - lag)) for lag in range(1, steps)]
    return min(1.0, len(z) * 2 * float(ndtr(-np.abs(z).max())))


def false_alarms(check, *, level=0.01, traces=4_000):
    """How often a check fails an ideal step of 8 canaries and 12 trials: few, so that nothing asymptotic holds."""
    random = np.random.default_rng(5)
    alarms = 0
    for _ in range(traces):
        included = random.random((12, 8)) < 0.5
        scores = included + SIGMA * random.standard_normal((12, 8))
        trace = Trace(scores, included, included.sum(1) + random.integers(0, 8, 12))
        alarms += check(trace, SIGMA) <= level
    return alarms / traces


LIMIT = 0.01 + 3 * (0.01 * 0.99 / 4_000) ** 0.5


def ranks_apart(trace, sigma):
    return checks.noise_across_ranks(
        Trace(trace.scores[:6], trace.included[:6], trace.sizes[:6]),
        Trace(trace.scores[6:], trace.included[6:], trace.sizes[6:]),
        sigma,
    )


@pytest.mark.parametrize(
    "check",
    [
        checks.noise_level,
        checks.contribution,
        checks.contribution_of_each,
        checks.noise_across_steps,
        checks.noise_across_coordinates,
        checks.public_denominator,
        partial(checks.influence, giant=0),
        ranks_apart,
        lambda trace, sigma: min(examine(trace, noise_multiplier=sigma, giant=0).p_values.values()),
    ],
    ids=["level", "contribution", "each", "steps", "coordinates", "denominator", "giant", "ranks", "family"],
)
def test_a_correct_step_fails_no_more_often_than_stated(check):
    assert false_alarms(check) <= LIMIT


def test_the_product_of_two_noises_would_fail_a_correct_step_too_often():
    assert false_alarms(product_across_steps) > LIMIT


@pytest.mark.parametrize(("records", "rate", "steps"), [(30, 0.1, 20), (60, 0.02, 100)])
def test_a_correct_sampler_fails_no_more_often_than_stated(records, rate, steps):
    random = np.random.default_rng(6)
    alarms = 0
    for _ in range(500):
        draws = [np.flatnonzero(row) for row in random.random((steps, records)) < rate]
        alarms += checks.poisson_inclusion(draws, records=records, rate=rate) <= 0.05
    assert alarms <= 500 * 0.05 + 3 * (500 * 0.05 * 0.95) ** 0.5


def test_one_step_that_repeats_another_is_caught_though_no_lag_is_repeated():
    """As after a crash whose last step is taken again: one pair of steps among 11,175."""
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        noise, included = random.standard_normal((150, 100)), random.random((150, 100)) < 0.5
        sizes = included.sum(1) + random.integers(0, 100, 150)
        good = Trace(included + SIGMA * noise, included, sizes)
        noise[97] = noise[40]
        bad = Trace(included + SIGMA * noise, included, sizes)
        assert examine(good, noise_multiplier=SIGMA, giant=0).failed == ()
        assert "noise across steps" in examine(bad, noise_multiplier=SIGMA, giant=0).failed


def test_too_little_noise_is_refuted_and_the_right_noise_is_not(tmp_path):
    design = StepDesign(canaries=100, trials=400, noise_multiplier=SIGMA, sample_rate=0.1, steps=200, delta=1e-5)

    def run(name, noise):
        with stepper(tmp_path / name, 3, noise=noise) as step:
            return observe(step, design, source=Stream.from_insecure_seed(3, "coins"))

    bare = run("bare", 0.0)
    right = step_finding(run("right", SIGMA), design, control=bare)
    assert right.outcome is Outcome.CONSISTENT
    assert right.epsilon_low < right.claimed < right.cap
    assert right.settings["noise_multiplier_high"] > SIGMA
    assert step_finding(run("less", 0.9 * SIGMA), design, control=bare).outcome is Outcome.REFUTED
    assert step_finding(run("again", SIGMA), design).outcome is Outcome.UNINFORMATIVE


def test_a_movement_that_is_not_finite_is_refused(tmp_path):
    trace = traced(tmp_path / "nan", 0)
    trace.scores[0, 0] = np.nan
    with pytest.raises(AuditError, match="finite"):
        step_finding(trace, DESIGN)
