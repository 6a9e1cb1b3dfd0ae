# SPDX-License-Identifier: Apache-2.0
"""Each record once: through every view of torch's and of datasets', and none that is also evaluated on."""

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset, TensorDataset, random_split

from privguard.errors import PrivacyError
from privguard.runs.data_commitment import commitment
from privguard.training.sampling.batches import examples_of
from privguard.training.sampling.identity import places, require_apart, require_once

BASE = TensorDataset(torch.arange(10.0), torch.arange(10))
TABLE = datasets.Dataset.from_dict({"text": [f"sentence {n}" for n in range(10)], "label": [n % 2 for n in range(10)]})
OTHER = datasets.Dataset.from_dict({"text": [f"other {n}" for n in range(10)], "label": [0] * 10})


def sub(*indices, of=BASE):
    return Subset(of, list(indices))


TWICE = {
    "an index twice": sub(1, 1),
    "a set twice": ConcatDataset([BASE, BASE]),
    "overlapping subsets": ConcatDataset([sub(0, 1, 2), sub(2, 3)]),
    "a set and its own subset": ConcatDataset([BASE, sub(3, 4)]),
    "equal subsets": ConcatDataset([sub(0, 1), sub(0, 1)]),
    "a subset of a concatenation": Subset(ConcatDataset([sub(0, 1), sub(1, 2)]), [1, 2]),
    "a negative index": sub(9, -1),
    "nested concatenations": ConcatDataset([ConcatDataset([BASE]), ConcatDataset([BASE])]),
    "views of one tensor": ConcatDataset([TensorDataset(BASE.tensors[1][:6]), TensorDataset(BASE.tensors[1][4:])]),
    "one record object twice in a list": [record := {"x": 1}, {"x": 2}, record],
    "select with repeats": TABLE.select([1, 2, 1]),
    "concatenate_datasets of one twice": datasets.concatenate_datasets([TABLE, TABLE]),
    "concatenate_datasets of overlapping selections": datasets.concatenate_datasets(
        [TABLE.select(range(6)), TABLE.select(range(4, 9))]
    ),
    "the same without a column": datasets.concatenate_datasets(
        [TABLE.select([1, 3]), TABLE.select([3, 1])]
    ).remove_columns("label"),
    "a table through torch's views": ConcatDataset([Subset(TABLE, [0, 1]), TABLE.select([1])]),
}
ONCE = {
    "a set": BASE,
    "a split put together again": ConcatDataset(random_split(BASE, [0.5, 0.5])),
    "two sets": ConcatDataset([BASE, TensorDataset(torch.arange(10.0), torch.arange(10))]),
    "a shuffled table": TABLE.shuffle(seed=1),
    "two tables": datasets.concatenate_datasets([TABLE, OTHER]),
    "a split table": datasets.concatenate_datasets(list(TABLE.train_test_split(0.3, seed=0).values())),
    "equal rows in a list": [{"x": 1} for _ in range(5)],
    "a set of one's own": StackDataset(BASE, BASE),
    "one constant for all": TensorDataset(torch.zeros(1).expand(10)),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_record_twice_is_refused(name):
    with pytest.raises(PrivacyError, match="is the one at index"):
        require_once(TWICE[name])


@pytest.mark.parametrize("name", ONCE)
def test_records_that_are_in_once_pass(name):
    require_once(ONCE[name])
    assert len(places(ONCE[name])) == len(ONCE[name])


def test_the_loader_asks():
    with pytest.raises(PrivacyError, match="is the one at index"):
        examples_of(DataLoader(TWICE["overlapping subsets"], batch_size=4))


def test_a_users_own_record_may_be_in_twice_and_nobody_elses():
    require_once(TWICE["an index twice"], owners=["a", "a"])
    with pytest.raises(PrivacyError, match="of another user"):
        require_once(TWICE["an index twice"], owners=["a", "b"])


@pytest.mark.parametrize(
    "evaluation",
    [
        TABLE,
        TABLE.select(range(3)),
        {"new": OTHER, "seen": TABLE.select([9])},
        Subset(TABLE, [0]),
        TABLE.shuffle(seed=0),
    ],
    ids=["all", "select", "one of several", "subset", "shuffled"],
)
def test_evaluation_on_training_records_is_refused(evaluation):
    with pytest.raises(PrivacyError, match="of its records are in the training set"):
        require_apart(TABLE, evaluation)


def test_evaluation_on_others_passes():
    halves = TABLE.train_test_split(0.5, seed=0)
    for evaluation in (None, OTHER, {"a": OTHER}):
        require_apart(TABLE, evaluation)
    require_apart(halves["train"], halves["test"])


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.randn(3) + index


def test_a_commitment_tells_same_from_other_and_leaves_the_generators_alone():
    salt, state = b"s" * 32, torch.get_rng_state()
    changed = TensorDataset(BASE.tensors[0].clone(), BASE.tensors[1])
    changed.tensors[0][3] += 1
    assert commitment(BASE, salt) == commitment(TensorDataset(*(t.clone() for t in BASE.tensors)), salt)
    different = [BASE, changed, TABLE, TABLE.select(range(9)), OTHER, Augmented()]
    assert len({commitment(data, salt) for data in different}) == len(different)
    assert commitment(BASE, salt) != commitment(BASE, b"t" * 32)
    assert commitment(Augmented(), salt) == commitment(Augmented(), salt)  # its length is all that it commits to
    assert torch.equal(state, torch.get_rng_state())


def test_a_million_records_take_seconds():
    indices = np.random.default_rng(0).permutation(1_000_000)
    require_once(Subset(TensorDataset(torch.zeros(1_000_000, 2)), indices.tolist()))
