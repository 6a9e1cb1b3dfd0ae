# SPDX-License-Identifier: Apache-2.0
"""What an audit is given, taken for what it is: probabilities, one logit, estimators, tokens, labels, whole numbers."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from privguard.audit import Examples, Schedule, draw_inclusion, run, train_references
from privguard.audit.membership import score
from privguard.audit.one_run.bound import gaussian_one_run, steinke
from privguard.audit.one_run.design import Bound, Design, Observed, judge
from privguard.audit.references.reference import Place
from privguard.errors import AuditError


def two_sides(size=60, seed=0):
    random = np.random.default_rng(seed)
    inputs, labels = random.standard_normal((2 * size, 5)).astype(np.float32), random.integers(0, 3, 2 * size)
    both = [
        Examples(torch.from_numpy(inputs[part]), torch.from_numpy(labels[part]))
        for part in (slice(size), slice(size, None))
    ]
    return both[0], both[1]


def test_probabilities_are_told_from_logits():
    """The softmax of logits gives the attack's statistic of the logits themselves."""
    logits = np.random.default_rng(0).standard_normal((50, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels, inputs = np.arange(50) % 4, torch.zeros(50, 1)
    taken = [score.scaled_confidence(score.model_logits(lambda _, out=out: out, inputs), labels) for out in (logits, p)]
    np.testing.assert_allclose(taken[0], taken[1], atol=1e-9)


def test_one_logit_is_that_of_the_second_class_and_a_doubtful_number_is_asked_about():
    z, inputs = np.array([-3.0, 0.5, 4.0]), torch.zeros(3, 1)
    logits = score.model_logits(lambda _: z[:, None], inputs)
    np.testing.assert_allclose(score.scaled_confidence(logits, [1, 1, 1]), z)
    np.testing.assert_allclose(score.model_logits(lambda _: z, inputs), logits)
    with pytest.raises(ValueError, match="one number per record, all in"):
        score.model_logits(lambda _: np.array([0.1, 0.5, 0.9]), inputs)


def test_an_estimator_with_its_own_names_of_classes_is_audited():
    members, others = two_sides()
    forest = RandomForestClassifier(30, random_state=0).fit(members.inputs.numpy(), members.labels.numpy() * 10 + 7)
    named = [Examples(side.inputs, side.labels * 10 + 7) for side in (members, others)]
    record = run(forest, *named).record  # a forest answers 0 for some classes
    assert record.attacks[0].auc.value > 0.8
    with pytest.raises(ValueError, match="model's classes"):
        run(forest, members, others)


def test_labels_that_are_no_classes_are_no_classes():
    assert score.class_numbers(None, np.array([1.0, 0.0])).tolist() == [1, 0]
    assert score.class_numbers(None, np.array([[1], [0]])).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"3\.5"):
        score.class_numbers(None, np.array([1.0, 3.5]))


def test_a_regression_is_scored_by_its_residuals():
    random = np.random.default_rng(1)
    targets = torch.from_numpy(random.standard_normal(200).astype(np.float32))
    members, others = (Examples(targets[part, None], targets[part]) for part in (slice(100), slice(100, None)))
    learnt = set(targets[:100].tolist())
    model = lambda rows: [
        row[0] + (0.05 if row[0] in learnt else 0.8) * random.standard_normal() for row in rows.tolist()
    ]
    assert run(model, members, others).record.attacks[0].auc.value > 0.8


class Tokens(nn.Module):
    def __init__(self, width=8, activation=torch.relu):
        super().__init__()
        self.table, self.drop, self.out = nn.Embedding(30, width), nn.Dropout(0.3), nn.Linear(width, 2)
        self.activation = activation

    def forward(self, ids):
        return self.out(self.drop(self.table(ids).mean(1)))


def references(make, inputs, labels, *, at_once=4, folder=None):
    schedule = Schedule(epochs=2, batch_size=16, learning_rate=0.1, at_once=at_once)
    included = draw_inclusion(np.int64(4), len(labels), seed=0)
    place = Place(folder=folder)
    return train_references(make, inputs, labels, included=included, schedule=schedule, place=place)


def test_token_models_with_dropout_train_the_same_however_many_at_once():
    random = np.random.default_rng(0)
    ids, labels = torch.from_numpy(random.integers(0, 30, (80, 6))), torch.from_numpy(random.integers(0, 2, 80))
    first, again, single = (references(Tokens, ids, labels, at_once=k) for k in (4, 4, 1))
    for k in range(4):
        torch.testing.assert_close(first.states[k], again.states[k], rtol=0, atol=0)
        torch.testing.assert_close(first.states[k], single.states[k], rtol=1e-5, atol=1e-6)
    assert first.logits(ids).shape == (4, 80, 2)


@pytest.mark.parametrize("change", ["inputs", "layers", "width"])
def test_references_of_other_inputs_or_of_another_network_are_not_reused(tmp_path, change):
    random = np.random.default_rng(0)
    inputs, labels = (
        torch.from_numpy(random.standard_normal((40, 5)).astype("f4")),
        torch.from_numpy(random.integers(0, 2, 40)),
    )
    make = lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    first = references(make, inputs, labels, folder=tmp_path)
    torch.testing.assert_close(references(make, inputs, labels, folder=tmp_path).states, first.states)
    others = {
        "inputs": (make, inputs + 1),
        "layers": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), inputs),
        "width": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), inputs),
    }
    with pytest.raises(AuditError, match="other settings"):
        references(others[change][0], others[change][1], labels, folder=tmp_path)


def test_a_pure_claim_is_judged_at_delta_zero_and_no_gaussian_bound_is():
    """All of 100 guesses right refute ln(1 / (20^(1/100) - 1)): randomised response is right with e^ε / (1 + e^ε)."""
    wanted = np.log(1 / (20 ** (1 / 100) - 1))
    assert steinke(100, canaries=100, guesses=100, delta=0.0) == pytest.approx(wanted, abs=1e-5)
    design = Design(canaries=np.int64(100), guesses_in=np.int32(50), guesses_out=50, claimed=2.0, delta=0.0)
    coins = design.flip()
    assert judge(design, Observed(coins.included + np.linspace(0, 0.1, 100), coins)).findings[0].epsilon_low > 1.5
    with pytest.raises(ValueError, match="steinke"):
        gaussian_one_run(50, canaries=100, guesses=100, delta=0.0)
    with pytest.raises(ValueError, match="steinke"):
        Design(canaries=100, guesses_in=50, guesses_out=50, claimed=2.0, delta=0.0, bounds=(Bound.GAUSSIAN_ONE_RUN,))
