# SPDX-License-Identifier: Apache-2.0
"""``lay``: what changes no answer changes no reading, what is missing is left out, and innocents stay innocent."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from privguard.watermark.model import weights
from privguard.watermark.model.lay import beside, chains, order

PULSE = bytes(64)
MLP = {"0.weight": (128, 64), "2.weight": (96, 128), "4.weight": (10, 96)}
CNN = {"0.weight": (8, 1, 3, 3), "3.weight": (16, 8, 3, 3), "7.weight": (64, 16 * 9), "9.weight": (10, 64)}


class Case:
    """An unmarked chain, its marked copy, and what a thief can do with its tensors."""

    def __init__(self, shapes, leaves):
        self.rng = np.random.default_rng(1)
        self.unmarked = {name: self.drawn(shape) for name, shape in shapes.items()}
        self.plan, self.leaves = weights.plan(shapes, leaves=16), leaves
        self.marked = weights.embed(self.unmarked, leaves, pulse=PULSE, settings=self.plan.settings)
        self.pairs = list(zip(list(shapes), list(shapes)[1:], strict=False))

    def drawn(self, shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def z(self, suspect):
        laid = beside.lay(suspect, unmarked=self.unmarked, settings=self.plan.settings)
        return weights.read(laid.tensors, self.leaves, unmarked=self.unmarked, pulse=PULSE, plan=self.plan).z

    def each(self, state, change):
        """``change(rows (n, -1), columns (m, n, pixels))`` for every hidden layer."""
        state = dict(state)
        for name, following in self.pairs:
            rows, old = state[name], state[following]
            units = len(rows)
            flat, columns = change(rows.reshape(units, -1), old.reshape(len(old), units, -1))
            state[name] = flat.reshape(-1, *rows.shape[1:])
            kernel = old.shape[2:] or (-1,)
            shape = (len(old), -1) if old.ndim == 2 else (len(old), columns.shape[1], *kernel)
            state[following] = columns.reshape(shape)
        return state

    def shuffled(self, state, *, signs=False):
        def change(rows, columns):
            order, scale = self.rng.permutation(len(rows)), np.exp(self.rng.uniform(-1, 1, len(rows)))
            scale *= self.rng.choice([-1, 1], len(rows)) if signs else 1
            return rows[order] * scale[:, None], columns[:, order] / scale[None, :, None]

        return self.each(state, change)

    def added(self, state, rows_of, columns_of):
        def change(rows, columns):
            more = rows_of(rows)
            extra = np.broadcast_to(columns_of(rows, columns), (len(columns), len(more), columns.shape[2]))
            return np.concatenate([rows, more]), np.concatenate([columns, extra], 1)

        return self.each(state, change)


def renamed(state):
    return {f"layer{7 - place}": value for place, value in enumerate(reversed(list(state.values())))}


def split(case):
    return case.each(case.marked, lambda rows, columns: (
        np.concatenate([rows, 2 * rows]), np.concatenate([0.3 * columns, 0.35 * columns], 1)))  # fmt: skip


def baited(case):
    def blurred(rows):
        copies = rows + 0.2 * rows.std() * case.drawn(rows.shape)
        return np.concatenate([copies, copies])

    signs = lambda rows, columns: np.repeat([1.0, -1.0], len(rows))[None, :, None] * columns.std()
    return case.added(case.marked, blurred, signs)


def idle(case):
    names = list(case.marked)
    units = len(case.marked[names[-2]])
    order = case.rng.permutation(units)
    layer = 3 * np.eye(units)[order]
    last = {names[-1]: case.marked[names[-1]][:, order] / 3}
    return {**{name: case.marked[name] for name in names[:-1]}, "idle": layer, **last}


def guard(case):
    grown = case.added(case.marked, lambda rows: np.ones((1, rows.shape[1])), lambda *_: 0.0)
    last = list(grown)[-1]
    grown[last] = grown[last].copy()
    grown[last][0, -1] = 1000
    return grown


FREE = {
    "renamed and reordered": lambda case: renamed(case.marked),
    "permuted and rescaled": lambda case: case.shuffled(case.marked),
    "rescaled with signs": lambda case: case.shuffled(case.marked, signs=True),
    "dead units": lambda case: case.shuffled(
        case.added(case.marked, lambda rows: case.drawn(rows[:3].shape), lambda *_: 0.0)),
    "every unit split": split,
    "baited": baited,
    "guard unit": guard,
    "a layer that does nothing": idle,
    "normalisation folded away": lambda case: case.each(case.marked, lambda rows, columns: (
        rows * np.exp(case.rng.normal(0, 0.5, (len(rows), 1))), columns)),
    "all at once": lambda case: renamed(case.shuffled(guard(case))),
}  # fmt: skip


@pytest.mark.parametrize("shapes", [MLP, CNN], ids=["linear", "convolutional"])
@pytest.mark.parametrize("name", FREE)
def test_what_changes_no_answer_costs_no_hundredth_of_z(name, shapes, leaves):
    case = Case(shapes, leaves("weights", 16))
    plain = case.z(case.marked)
    assert plain > 100
    assert case.z(FREE[name](case)) == pytest.approx(plain, rel=0.01)


def test_units_that_were_cut_are_missing_and_the_rest_is_read(leaves):
    case = Case(MLP, leaves("weights", 16))

    def cut(rows, columns):
        kept = case.rng.permutation(len(rows))[: 3 * len(rows) // 4]
        return rows[kept], columns[:, kept]

    stolen = case.shuffled(case.each(case.marked, cut))
    laid = beside.lay(stolen, unmarked=case.unmarked, settings=case.plan.settings)
    assert [layer.matched for layer in laid.layers] == [96, 72, 10]
    assert np.isnan(laid.tensors["2.weight"]).mean() == pytest.approx(1 - 0.75**2, abs=1e-6)
    assert case.z(stolen) > 0.7 * case.z(case.marked)


def test_a_report_names_guards_and_layers_without_counterpart(leaves):
    case = Case(MLP, leaves("weights", 16))
    laid = beside.lay(guard(case), unmarked=case.unmarked, settings=case.plan.settings)
    assert [layer.strangers for layer in laid.layers] == [(128,), (96,), ()]
    assert str(laid.layers[0]) == "0.weight: 0.weight, 128 of 128 units, 1 of theirs without counterpart (128)"
    gone = beside.lay({"0.weight": case.marked["0.weight"]}, unmarked=case.unmarked, settings=case.plan.settings)
    assert str(gone.layers[2]) == "4.weight: no counterpart"
    assert gone.summary == "lay-1: counterparts for 1 of 3 layers"
    with pytest.raises(ValueError, match="reading='lay-9'"):
        beside.lay(case.marked, unmarked=case.unmarked, settings={**case.plan.settings, "reading": "lay-9"})


@pytest.mark.stat
def test_innocents_keep_the_bound_over_many_keys_however_much_is_searched(leaves):
    # 4 innocents, two of them near the unmarked copy, × 80 keys: each count exceeds its limit with chance below 1e-6.
    case = Case(MLP, leaves("weights", 16))
    near = {name: value + case.drawn(value.shape, 0.2) for name, value in case.unmarked.items()}
    innocents = [near, case.shuffled(near), {name: case.drawn(shape) for name, shape in MLP.items()}, guard(case)]
    innocents[3] = {name: case.unmarked[name] + case.drawn(shape, 0.1) for name, shape in MLP.items()}
    for innocent in innocents:
        laid = beside.lay(innocent, unmarked=case.unmarked, settings=case.plan.settings).tensors
        found = np.array([
            weights.read(laid, case.leaves, unmarked=case.unmarked, pulse=case.rng.bytes(64), plan=case.plan).z
            for _ in range(80)
        ])  # fmt: skip
        read = any(np.isfinite(value).any() for value in laid.values())
        assert (found.std() > 0.5) == read  # not degenerate; a stranger of whom no unit matches reads nothing at all
        for t in (1.0, 2.0, 3.0):
            assert (found >= t).sum() <= binom.isf(1e-7, len(found), math.exp(-t * t / 2))


def test_beside_the_marked_copy_an_innocent_would_carry_the_key(leaves):
    # Why evidence names the unmarked copy by its digest: this is what a wrong reference does.
    case = Case({"0.weight": (300, 16), "2.weight": (10, 300)}, leaves("weights", 16))
    innocent = {name: case.drawn(value.shape) for name, value in case.unmarked.items()}
    wrong = chains.lay(innocent, unmarked=case.marked, order=case.plan.settings["order"]).tensors
    read = weights.read(wrong, case.leaves, unmarked=case.unmarked, pulse=PULSE, plan=case.plan)
    assert read.z > 5
    assert abs(case.z(innocent)) < 5


def test_the_order_is_that_of_the_network_where_it_is_at_hand():
    import torch
    from torch import nn

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.middle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.middle(self.first(x)).relu())

    model = Odd()
    assert order.order_of(model, torch.zeros(1, 4)) == ("first.weight", "middle.weight", "last.weight")
    assert model.training
    shapes = {name: tuple(item.shape) for name, item in model.state_dict().items()}
    with pytest.raises(ValueError, match="several orders"):
        order.order(shapes)
    assert order.order({"c": (9, 4), "a": (4, 7), "b": (2, 9)}) == ("a", "c", "b")
