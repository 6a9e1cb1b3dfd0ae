# SPDX-License-Identifier: Apache-2.0
"""Batches of every structure keep their classes and their order."""

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

from privguard.training import structure
from privguard.training.probes.fields import Field, Listed, exchanged, first_rows, make, structure_of
from privguard.training.sampling.batches import rows_of, to_device

Pair = namedtuple("Pair", "x y")  # noqa: PYI024 — as users write it


@dataclasses.dataclass(frozen=True)
class Record:
    x: Tensor
    name: str = "a"


X = torch.arange(6.0).view(3, 2)
TREES = [
    X,
    (X, X),
    (X, (X, "name")),
    [X, None, 3],
    {"x": {"y": X}, "z": X},
    Pair(X, X),
    (Pair(X, X), X),
    OrderedDict(x=X, y=X),
    defaultdict(list, x=X),
    UserDict(x=X, y=X),
    BatchEncoding({"input_ids": X, "labels": X}),
    Record(X),
    BaseModelOutput(last_hidden_state=X),
    ("name", X),
]


@pytest.mark.parametrize("tree", TREES, ids=map(str, range(len(TREES))))
def test_tensors_are_replaced_and_all_else_stays(tree) -> None:
    count = len(structure.tensors(tree))
    doubled = structure.tensors_mapped(lambda tensor: tensor * 2, tree)
    assert type(doubled) is type(tree)
    assert count > 0
    assert [torch.equal(t, X * 2) for t in structure.tensors(doubled)] == [True] * count
    assert [torch.equal(t, X) for t in structure.tensors(tree)] == [True] * count
    others = [leaf for leaf in structure.leaves(tree) if not isinstance(leaf, Tensor)]
    assert others == [leaf for leaf in structure.leaves(doubled) if not isinstance(leaf, Tensor)]


@pytest.mark.parametrize("tree", TREES, ids=map(str, range(len(TREES))))
def test_batches_are_counted_moved_described_and_cut(tree) -> None:
    assert rows_of(tree) == 3
    assert type(to_device(torch.device("cpu"))(tree)) is type(tree)
    drawn = make(structure_of(tree), 5, seed=0, device=torch.device("cpu"))
    assert type(drawn) is type(tree)
    assert {tuple(t.shape) for t in structure.tensors(drawn)} == {(5, 2)}
    assert {tuple(t.shape) for t in structure.tensors(first_rows(drawn, 2, of=5))} == {(2, 2)}
    other = make(structure_of(tree), 5, seed=1, device=torch.device("cpu"))
    for mixed, ours, theirs in zip(*map(structure.tensors, (exchanged(drawn, other, 1), drawn, other)), strict=True):
        assert torch.equal(mixed[1], theirs[1])
        assert torch.equal(mixed[[0, 2, 3, 4]], ours[[0, 2, 3, 4]])


def test_names_reach_through_sequences() -> None:
    names = []
    structure.named(lambda _, name: names.append(name), {"labels": [X, (X, X)], "other": Pair(X, X)})
    assert names == ["labels", "labels", "labels", "x", "y"]


def test_a_list_with_a_name_for_each_example_follows_their_number() -> None:
    described = structure_of({"names": ["a", "b"], "pair": [X[:2], X[:2]]}, rows=2)
    assert described == {"names": Listed("a"), "pair": [Field((2,), torch.float32)] * 2}
    drawn = make(described, 4, seed=0, device=torch.device("cpu"))
    assert drawn["names"] == ["a"] * 4
    assert first_rows(drawn, 3, of=4)["names"] == ["a"] * 3


def test_trees_that_differ_are_not_paired() -> None:
    with pytest.raises(ValueError, match="leaves=1"):
        structure.paired(lambda a, b: a, (X, X), X)
