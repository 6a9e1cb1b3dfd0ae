# SPDX-License-Identifier: Apache-2.0
"""A mark spends nothing: events, sampling and noise are the same, bit for bit, with and without it."""

import hashlib
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard import _random
from privguard.watermark.model import embed, triggers

PULSE = bytes(64)
SETTINGS = triggers.plan(triggers.Domain(shape=(64,)), classes=10, leaves=20).settings


def private_run(folder, digits, monkeypatch, *, mark):
    """Four private steps on digits; returns the events, the sampled inputs, every draw of chance, and the model."""
    drawn, sampled = [], []
    reader = _random.Stream.reader

    def recorded(self, start=0):
        fill = reader(self, start)

        def filled(target):
            fill(target)
            drawn.append((self.label, start, hashlib.sha256(memoryview(target).cast("B")).hexdigest()))

        return filled

    model = digits.network(3)
    folder.mkdir()
    pg.Key.generate().write(folder / "team.key")
    plan = pg.Plan.for_budget(epsilon=8.0, delta=1e-5, examples=700, batch_size=70, epochs=0.4, max_grad_norm=1.0)
    beside = embed.Alongside(model, mark) if mark else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(TensorDataset(*digits.own), batch_size=70)
    with monkeypatch.context() as patch:
        patch.setattr(_random.Stream, "reader", recorded)
        private = pg.privatize(
            model,
            optimizer,
            loader,
            plan,
            run=folder,
            seal_to=[folder / "team.key"],
            options=pg.RunOptions(insecure_seed=5),
        )
        for inputs, targets in private.batches():
            sampled.append(hashlib.sha256(inputs.numpy().tobytes()).hexdigest())
            private.backward(nn.functional.cross_entropy(private.model(inputs), targets, reduction="none"))
            if private.step() and beside:
                beside.step()
        private.close()
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return events(lines), sampled, drawn, model


def events(lines):
    """The ledger without what differs between any two runs: identities, times and hashes."""
    text = json.dumps(lines)
    found = []
    for line in json.loads(text):
        entry = line.get("entry", line)
        found.append(
            {key: entry[key] for key in sorted(entry) if key in {"kind", "event", "step", "seq", "times", "what"}}
        )
    return found


@pytest.mark.filterwarnings("ignore")
def test_events_sampling_and_noise_are_the_same_with_and_without_a_mark(tmp_path, digits, monkeypatch, leaves):
    own = leaves("triggers", 20)
    asked = torch.from_numpy(triggers.inputs(own, PULSE, SETTINGS))
    labels = torch.from_numpy(triggers.labels(own, PULSE, SETTINGS))
    mark = lambda model: embed.margin_loss(model(asked), labels, margin=2.0)
    plain = private_run(tmp_path / "plain", digits, monkeypatch, mark=None)
    marked = private_run(tmp_path / "marked", digits, monkeypatch, mark=mark)
    assert plain[0] == marked[0]
    assert sum(line.get("times", 1) for line in plain[0] if line["kind"] == "reserve") == 4
    assert sorted(set(plain[1])) == sorted(set(marked[1]))
    assert sorted(set(plain[2])) == sorted(set(marked[2]))
    assert any("noise" in label for label, *_ in plain[2]), sorted({label for label, *_ in plain[2]})
    assert not torch.equal(plain[3][0].weight, marked[3][0].weight)


def test_steps_beside_training_teach_the_mark_and_keep_gradients(digits, leaves):
    own = leaves("triggers", 20)
    asked = torch.from_numpy(triggers.inputs(own, PULSE, SETTINGS))
    labels = torch.from_numpy(triggers.labels(own, PULSE, SETTINGS))
    model = digits.network(3)
    beside = embed.Alongside(model, lambda m: embed.margin_loss(m(asked), labels, margin=2.0))
    model(asked).sum().backward()
    before = [item.grad.clone() for item in model.parameters()]
    losses = [beside.step() for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    assert all(torch.equal(item.grad, old) for item, old in zip(model.parameters(), before, strict=True))
    assert float((model(asked).argmax(1) == labels).float().mean()) > 0.9
    with pytest.raises(ValueError, match="learning_rate"):
        embed.Alongside(model, lambda m: m(asked).sum(), learning_rate=0)
