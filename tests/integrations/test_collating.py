# SPDX-License-Identifier: Apache-2.0
"""Records that meet in the collate function, or in the padding that it makes, are refused before step 1."""

import random

import numpy as np
import pytest
import torch
from small import SmallRun, small_plan
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, default_collate

from privguard.errors import SensitivityError


class Texts(Dataset):
    """Token ids of many lengths, none of them 0, and a label."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.arange(1, 3 + index % 7), index % 3


def pad(records, *, left=False):
    longest = max(len(ids) for ids, _ in records)
    rows = [functional.pad(ids, (longest - len(ids), 0) if left else (0, longest - len(ids))) for ids, _ in records]
    return [torch.stack(rows), torch.tensor([label for _, label in records])]


def pad_left(records):
    return pad(records, left=True)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)


class Last(Reader):
    """The last output of a recurrent layer, padding or not."""

    def forward(self, ids):
        return self.head(self.layer(self.table(ids))[0][:, -1])


class OwnLast(Reader):
    """The last output at a position that is no padding."""

    def forward(self, ids):
        found = self.layer(self.table(ids))[0]
        last = ((ids != 0) * torch.arange(1, 1 + ids.shape[1])).argmax(1)
        return self.head(found[torch.arange(len(ids)), last])


class Mean(Reader):
    """A mean over all positions."""

    def forward(self, ids):
        return self.head(self.layer(self.table(ids))[0].mean(1))


class Tokens(Reader):
    """An output for each position."""

    def forward(self, ids):
        return self.head(self.layer(self.table(ids))[0])


def start(small, model, data, collate, **more):
    small.model = model
    small.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
    return small.start(small_plan(steps=2), loader=loader, **more)


@pytest.mark.parametrize(("kind", "collate"), [(Last, pad), (Mean, pad), (Mean, pad_left)])
@pytest.mark.parametrize("shown", [False, True])
def test_a_model_that_reads_its_padding_is_refused(small, kind, collate, shown):
    model = kind()

    def losses(batch):
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    with pytest.raises(SensitivityError, match="padding that a longer record brings"):
        start(small, model, Texts(), collate, losses=losses if shown else None)
    assert not small.folder.exists()
    assert "forward" not in vars(model.head)


@pytest.mark.parametrize("collate", [pad, pad_left])
def test_a_model_that_keeps_its_padding_out_trains(small, collate):
    if collate is pad_left:  # the state before the text is read from padding
        with pytest.raises(SensitivityError, match="padding"):
            start(small, OwnLast(), Texts(), collate)
        return
    assert SmallRun.go(start(small, OwnLast(), Texts(), collate)) == 2


def test_a_made_up_loss_over_all_positions_tells_nothing(small):
    """Its outputs grow with the padding; only the loop's own loss can say whether it leaves them out."""
    start(small, Tokens(), Texts(), pad).close()


def mixup(records):
    x, y = default_collate(records)
    y = functional.one_hot(y, 3).float()
    return [0.7 * x + 0.3 * x.roll(1, 0), 0.7 * y + 0.3 * y.roll(1, 0)]


def seldom(records):
    return mixup(records) if torch.rand(()) < 0.5 else default_collate(records)


def centred(records):
    x, y = default_collate(records)
    return [x - x.mean(0), y]


def counted(records):
    x, y = default_collate(records)
    return [x, y, int((x > 0).sum())]


@pytest.mark.parametrize("collate", [mixup, seldom, centred, counted])
def test_a_collate_function_that_mixes_records_is_refused(small, collate):
    """Of 8 tries, one that mixes every other time escapes all in 1 of 256; the generator's place is fixed here."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        with pytest.raises(SensitivityError, match=f"collate_fn={collate.__name__}: exchanging the last record"):
            start(small, small.model, small.data, collate)
    assert not small.folder.exists()


def noisy(records):
    x, y = default_collate(records)
    return [x + torch.randn_like(x) + random.random() + np.random.rand(), y]  # noqa: NPY002 — as users write it


OWN = torch.Generator().manual_seed(0)


def own_chance(records):
    x, y = default_collate(records)
    return [x + torch.randn(x.shape, generator=OWN), y]


@pytest.mark.parametrize("collate", [noisy, own_chance])
def test_a_collate_function_that_augments_trains_and_every_generator_stays_where_it_was(small, collate):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    private = start(small, small.model, small.data, collate)
    if collate is own_chance:
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    assert SmallRun.go(private) == 2


def strict(records):
    if any(label not in (0, 1, 2) or float(x.abs().max()) > 0.5 for x, label in records):
        raise ValueError(f"{records[0]}: no record of ours")
    return default_collate(records)


class Bounded(Dataset):
    """Features that synthetic ones, standard normal, exceed."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((6,), index / 100), index % 3


@pytest.mark.parametrize(
    ("collate", "reason"),
    [(own_chance, "it draws from a generator of its own"), (strict, "ValueError on synthetic records")],
)
def test_what_could_not_be_checked_is_in_the_manifest_without_a_record(small, collate, reason):
    data = small.data if collate is own_chance else Bounded()
    private = start(small, nn.Linear(6, 3) if collate is strict else small.model, data, collate, rehearsal=False)
    unchecked = private._run.manifest.unchecked
    assert any(
        line.startswith(f"Whether the collate function mixes records could not be checked: {reason}")
        for line in unchecked
    )
    assert set(unchecked) <= set(private.claim().unchecked)
    assert not any("no record of ours" in line for line in unchecked)


def test_a_collate_function_that_cannot_pad_leaves_nothing_open(small):
    small.rehearsal = True
    unchecked = small.start()._run.manifest.unchecked
    assert not [line for line in unchecked if "collate" in line or "padding" in line]
