# SPDX-License-Identifier: Apache-2.0
"""The weight mark: what is added is found, what is not is bounded, and nothing is read into an innocent model."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from privguard.watermark.model import align, theft, weights

SHAPES = {"a": (60, 50), "b": (33, 7)}


def random_tensors(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def z_of(suspect, leaves, plan, unmarked, pulse=bytes(64)):
    return weights.read(suspect, leaves, unmarked=unmarked, pulse=pulse, plan=plan).z


def test_what_is_embedded_is_read_and_its_size_is_as_stated(leaves):
    unmarked, plan, own = random_tensors(0), weights.plan(SHAPES, leaves=16, strength=0.1), leaves("weights", 16)
    marked = weights.embed(unmarked, own, pulse=bytes(64), settings=plan.settings)
    count = sum(value.size for value in unmarked.values())
    assert z_of(marked, own, plan, unmarked) == pytest.approx(math.sqrt(count), rel=1e-5)
    for name, value in unmarked.items():
        change = np.abs(marked[name] - value)
        assert change == pytest.approx(np.full_like(value, 0.1 * np.sqrt(np.mean(value**2))), rel=1e-3)
    assert z_of(unmarked, own, plan, unmarked) == 0.0


def test_the_block_reading_equals_a_slow_one(leaves):
    unmarked, plan, own = random_tensors(0), weights.plan(SHAPES, leaves=16, strength=0.1), leaves("weights", 16)
    suspect = random_tensors(5)
    reading = weights.read(suspect, own, unmarked=unmarked, pulse=bytes(64), plan=plan)
    ones = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    pure = weights.embed({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, own, pulse=bytes(64),
                         settings=replace(plan, settings={**plan.settings, "strength": 1.0}).settings)  # fmt: skip
    signs = {name: pure[name] - 1 for name in ones}
    dot = square = 0.0
    for name in SHAPES:
        difference = (suspect[name] - unmarked[name]).astype(np.float64)
        typical = np.median(np.abs(difference))
        g = np.clip(difference / typical, -3, 3) * np.sqrt(np.mean(unmarked[name].astype(np.float64) ** 2)) / typical
        dot, square = dot + np.sum(signs[name] * g), square + np.sum(g * g)
    assert reading.z == pytest.approx(dot / math.sqrt(square), rel=1e-4)
    assert set(np.unique(np.concatenate([value.ravel() for value in signs.values()]))) == {-1.0, 1.0}


def test_a_subset_of_leaves_reads_its_share(leaves):
    unmarked, plan, own = random_tensors(0), weights.plan(SHAPES, leaves=16, strength=0.1), leaves("weights", 16)
    marked = weights.embed(unmarked, own, pulse=bytes(64), settings=plan.settings)
    whole, half = z_of(marked, own, plan, unmarked), z_of(marked, own[::2], plan, unmarked)
    assert half == pytest.approx(whole / math.sqrt(2), rel=0.01)
    stranger = leaves("weights", 16, seed=9)
    assert abs(z_of(marked, stranger, plan, unmarked)) < 5
    assert abs(z_of(marked, own, plan, unmarked, pulse=b"\1" * 64)) < 5  # another pulse is another mark


@pytest.mark.stat
def test_the_bound_holds_for_innocent_models_under_random_keys(leaves):
    # 800 keys: P(Z ≥ t) ≤ e^(−t²/2); the count at each t exceeds this limit with a chance below 1e-4. And z is not
    # degenerate: its deviation is 1 to within five standard errors.
    unmarked, suspect, plan = random_tensors(0), random_tensors(1), weights.plan(SHAPES, leaves=16)
    rng = np.random.default_rng(2)
    found = np.array([z_of(suspect, leaves("weights", 16, seed=3), plan, unmarked, rng.bytes(64)) for _ in range(800)])
    for t in (1.0, 1.5, 2.0, 2.5, 3.0):
        assert (found >= t).sum() <= binom.isf(1e-4, len(found), math.exp(-t * t / 2))
    assert abs(found.std() - 1) < 0.125
    assert abs(found.mean()) < 5 / math.sqrt(len(found))


def test_values_that_are_no_numbers_and_pruned_weights_do_not_drown_the_mark(leaves):
    unmarked, plan, own = random_tensors(0), weights.plan(SHAPES, leaves=16, strength=0.1), leaves("weights", 16)
    marked = weights.embed(unmarked, own, pulse=bytes(64), settings=plan.settings)
    broken = {name: value.copy() for name, value in marked.items()}
    broken["a"][0, :10] = [np.nan, np.inf, -np.inf, 1e30, -1e30, 0, 0, 0, 0, 0]
    assert z_of(broken, own, plan, unmarked) > 40
    pruned = {
        name: np.where(np.abs(value) < np.quantile(np.abs(value), 0.3), 0, value) for name, value in marked.items()
    }
    assert z_of(pruned, own, plan, unmarked) > 8


def test_wrong_shapes_names_and_plans_are_refused(leaves):
    unmarked, plan, own = random_tensors(0), weights.plan(SHAPES, leaves=16), leaves("weights", 16)
    with pytest.raises(ValueError, match="present in the model"):
        weights.embed({"a": unmarked["a"]}, own, pulse=b"", settings=plan.settings)
    with pytest.raises(ValueError, match="shape"):
        z_of({**unmarked, "a": unmarked["a"].T}, own, plan, unmarked)
    with pytest.raises(ValueError, match="leaves=15"):
        weights.plan(SHAPES, leaves=15)
    for strength in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            weights.plan(SHAPES, strength=strength)


def test_a_leaking_recipient_is_found_alone_averaged_and_among_innocents(leaves):
    unmarked = random_tensors(0)
    plan, own = weights.recipients_plan(SHAPES, recipients=30), leaves("recipients", 30)

    def copy_of(index):
        return weights.embed_recipient(unmarked, own[index], unmarked=unmarked, pulse=bytes(64), settings=plan.settings)

    def accused(suspect):
        return weights.trace(suspect, own, unmarked=unmarked, pulse=bytes(64), plan=plan)[0]

    noise = random_tensors(7, scale=0.1)
    first = {name: value + noise[name] for name, value in copy_of(4).items()}
    both = {name: (value + copy_of(11)[name]) / 2 for name, value in copy_of(4).items()}
    assert accused(first) == (4,)
    assert accused(both) == (4, 11)
    assert accused({name: value + noise[name] for name, value in unmarked.items()}) == ()
    with pytest.raises(ValueError, match="family_level"):
        weights.trace(first, own, unmarked=unmarked, pulse=bytes(64), plan=plan, family_level=0)


def test_reading_needs_no_memory_beyond_a_tensor(leaves):
    shapes = {"a": (1024, 2048)}
    unmarked, plan, own = random_tensors(0, shapes), weights.plan(shapes, leaves=16), leaves("weights", 16)
    suspect = random_tensors(1, shapes)
    tracemalloc.start()
    z_of(suspect, own, plan, unmarked)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < unmarked["a"].nbytes


def test_alignment_undoes_order_and_scale_exactly(digits):
    shuffled = theft.reorder(digits.model, digits.means(digits.thief))
    ours, theirs = theft.tensors(digits.model), theft.tensors(shuffled)
    layers = align.chain({name: value.shape for name, value in ours.items()})
    back = align.align(theirs, unmarked=ours, layers=layers)
    assert digits.accuracy(shuffled) == digits.accuracy(digits.model)
    assert max(np.abs(theirs[name] - value).max() for name, value in ours.items()) > 0.1
    for name, value in ours.items():
        assert back[name] == pytest.approx(value, abs=1e-4)


def test_alignment_of_a_convolution_into_a_linear_layer_moves_blocks():
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    means = theft.Means(
        inputs=torch.rand(4, 1, 8, 8),
        labels=torch.zeros(4, dtype=torch.long),
        generator=torch.Generator().manual_seed(3),
    )
    shuffled = theft.reorder(model, means)
    torch.testing.assert_close(shuffled(means.inputs), model(means.inputs), atol=1e-5, rtol=0)
    ours = theft.tensors(model)
    layers = align.chain({name: value.shape for name, value in ours.items()})
    back = align.align(theft.tensors(shuffled), unmarked=ours, layers=layers)
    for name, value in ours.items():
        assert back[name] == pytest.approx(value, abs=1e-5)


def test_alignment_keeps_an_innocent_model_innocent_and_its_answers_the_same(digits, leaves):
    ours, theirs = theft.tensors(digits.model), theft.tensors(digits.innocent)
    shapes = {name: value.shape for name, value in ours.items()}
    aligned = align.align(theirs, unmarked=ours, layers=align.chain(shapes))
    assert digits.accuracy(theft.load(digits.model, aligned)) == pytest.approx(
        digits.accuracy(digits.innocent), abs=0.005
    )
    plan = weights.plan({name: shape for name, shape in shapes.items() if len(shape) > 1}, leaves=16)
    rng = np.random.default_rng(4)
    found = np.array([z_of(aligned, leaves("weights", 16), plan, ours, rng.bytes(64)) for _ in range(200)])
    assert found.max() < 4.5  # e^(−4.5²/2)·200 < 1e-2
    assert 0.8 < found.std() < 1.2


def test_a_vector_that_belongs_to_no_layer_is_refused():
    with pytest.raises(ValueError, match="weights, biases and normalisation in order"):
        align.chain({"0.weight": (4, 3), "0.bias": (4,), "1.running_mean": (5,)})


def test_what_is_missing_counts_for_nothing_and_not_as_unchanged(leaves):
    # A tensor of which 60 % is at zero residual has a median residual of 0, so that its noise would outweigh the rest.
    shapes = {"a": (60, 50), "b": (60, 50)}
    unmarked, plan, own = random_tensors(0, shapes), weights.plan(shapes, leaves=16), leaves("weights", 16)
    noise = random_tensors(3, shapes, scale=0.02)
    marked = weights.embed(unmarked, own, pulse=bytes(64), settings=plan.settings)
    marked = {name: value + noise[name] for name, value in marked.items()}
    whole = z_of(marked, own, plan, unmarked)
    part, zeros = ({**marked, "b": np.array(marked["b"])} for _ in range(2))
    part["b"][:36], zeros["b"][:36] = np.nan, unmarked["b"][:36]
    zeros["b"][36:] = unmarked["b"][36:] + 1e-3 * random_tensors(4, shapes)["b"][36:]
    assert z_of(part, own, plan, unmarked) == pytest.approx(whole * math.sqrt(0.7), rel=0.02)
    assert z_of(zeros, own, plan, unmarked) < 0.1 * whole
    assert z_of({"a": marked["a"]}, own, plan, unmarked) == pytest.approx(whole * math.sqrt(0.5), rel=0.02)
