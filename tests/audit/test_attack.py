# SPDX-License-Identifier: Apache-2.0
"""Attacks on references whose law is known, and the choices that must not see the target."""

import numpy as np
import pytest
from scipy import stats

from privguard.audit.membership import attack, roc, score
from privguard.audit.membership.attack import (
    RMIA,
    Bayesian,
    Evidence,
    LabelOnly,
    LiRA,
    Loss,
    OfflineLiRA,
    PerExample,
    Pooled,
    tune_rmia,
)
from privguard.errors import AuditError


def logits_of(confidence, labels, classes=4):
    """Logits whose scaled confidence is exactly ``confidence``: the other classes share what is left."""
    logits = np.zeros((*confidence.shape, classes))
    np.put_along_axis(
        logits,
        np.broadcast_to(labels[..., None], (*confidence.shape, 1)),
        (confidence + np.log(classes - 1))[..., None],
        -1,
    )
    return logits


def world(references, *, records=2_000, gap=2.0, seed=0):
    """Confidences that are normal around a mean of each record, ``gap`` higher in models that saw it."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, records)
    mean, deviation = random.normal(2, 2, records), random.gamma(4, 0.25, records)
    included = random.random((references + 1, records)) < 0.5
    confidence = mean + gap * included + deviation * random.standard_normal((references + 1, records))
    logits = logits_of(confidence, labels)
    evidence = Evidence(logits=logits[0], labels=labels, reference_logits=logits[1:], included=included[1:])
    return evidence, included[0], (mean, deviation, gap, confidence)


def area(attacker, evidence, members):
    return roc.auc(attacker.statistic(evidence), members).value


def test_scaled_confidence_is_log_p_over_the_rest_and_does_not_saturate():
    logits, labels = np.array([[3.0, 1.0, 0.0], [400.0, 0.0, 0.0]]), np.array([0, 0])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    found = score.scaled_confidence(logits, labels)
    assert found[0] == pytest.approx(np.log(p[0] / (1 - p[0])))
    assert found[1] == pytest.approx(400 - np.log(2))
    assert score.loss(logits, labels)[0] == pytest.approx(-np.log(p[0]))


@pytest.mark.parametrize("references", [2, 4, 16, 64])
def test_lira_beats_the_loss_and_approaches_the_best_test_there_is(references):
    evidence, members, (mean, deviation, gap, confidence) = world(references)
    best = roc.auc(
        (stats.norm.logpdf(confidence[0], mean + gap, deviation) - stats.norm.logpdf(confidence[0], mean, deviation)),
        members,
    ).value
    found = area(LiRA(), evidence, members)
    assert area(Loss(), evidence, members) + 0.05 < found <= best + 0.01
    if references == 64:
        assert found > best - 0.015


@pytest.mark.parametrize("references", [2, 4, 8, 16, 64])
def test_the_bayesian_variance_is_never_far_below_the_better_of_the_two_rules(references):
    for seed in range(3):
        evidence, members, _ = world(references, seed=seed)
        either = max(area(LiRA(Pooled()), evidence, members), area(LiRA(PerExample()), evidence, members))
        assert area(LiRA(Bayesian()), evidence, members) > either - 0.005


def test_the_bayesian_density_is_the_student_t_of_its_conjugate_prior():
    side = attack.Side(np.array([1.0]), np.array([3.0]), np.array([5]), 2.0)
    found = Bayesian(strength=4.0).log_density(np.array([2.5]), side)
    width = np.sqrt((4 * 2.0 + 3.0) / 8 * (1 + 1 / 5))
    assert found[0] + 0.5 * np.log(1 / np.pi) * 1 == pytest.approx(stats.t.logpdf(2.5, 8, 1.0, width), abs=1e-9)


def test_offline_lira_needs_no_reference_that_saw_the_record():
    evidence, members, _ = world(32)
    outside = Evidence(
        logits=evidence.logits,
        labels=evidence.labels,
        reference_logits=evidence.reference_logits,
        included=np.zeros_like(evidence.included),
    )
    assert area(OfflineLiRA(), outside, members) > area(Loss(), evidence, members) + 0.05


def test_a_record_without_one_side_borrows_it():
    evidence, _, _ = world(8)
    included = evidence.included.copy()
    included[:, :100], included[:, 100:200] = True, False
    lopsided = Evidence(
        logits=evidence.logits, labels=evidence.labels, reference_logits=evidence.reference_logits, included=included
    )
    for attacker in (LiRA(), LiRA(Pooled()), LiRA(PerExample()), RMIA()):
        assert np.isfinite(attacker.statistic(lopsided)).all()


def test_rmia_ranks_ties_of_the_share_by_the_raw_ratio():
    evidence, _, _ = world(4)
    population = (evidence.logits[:5], evidence.labels[:5], evidence.reference_logits[:, :5])
    few = Evidence(**{**vars(evidence), "population": population})
    attacker = RMIA()
    ratios = attacker.log_ratio(evidence.logits, evidence.labels, evidence.reference_logits, evidence.included)
    statistic = attacker.statistic(few)
    assert len(np.unique(statistic)) == len(np.unique(ratios))
    assert np.array_equal(np.argsort(statistic, kind="stable"), np.argsort(ratios, kind="stable"))
    assert (statistic >= 0).all()
    assert (statistic < 1).all()
    assert len(np.unique((statistic * 6).astype(int))) <= 6


def test_rmia_share_is_counted_as_the_paper_says():
    evidence, _, _ = world(4, records=50)
    population = (evidence.logits[30:], evidence.labels[30:], evidence.reference_logits[:, 30:])
    attacker = RMIA(temperature=1.0, offline_a=0.3, gamma=2.0)
    found = attacker.statistic(Evidence(**{**vars(evidence), "population": population}))
    p = lambda logits: np.take_along_axis(
        np.exp(logits - np.logaddexp.reduce(logits, -1)[..., None]),
        np.broadcast_to(evidence.labels[..., None], (*logits.shape[:-1], 1)),
        -1,
    )[..., 0]
    target, references = p(evidence.logits), p(evidence.reference_logits)
    for x in range(30):
        inside, outside = references[evidence.included[:, x], x], references[~evidence.included[:, x], x]
        if not len(inside) or not len(outside):
            continue
        ratio = target[x] / ((inside.mean() + outside.mean()) / 2)
        beaten = 0
        for z in range(30, 50):
            base = references[:, z].mean()
            beaten += ratio / (target[z] / (0.5 * (1.3 * base + 0.7))) >= 2.0
        assert int(found[x] * 21 + 1e-9) == beaten


def test_tuning_never_looks_at_the_target():
    evidence, _, _ = world(4)
    noise = np.random.default_rng(0).standard_normal(evidence.logits.shape)
    assert tune_rmia(evidence) == tune_rmia(Evidence(**{**vars(evidence), "logits": noise}))


def test_labels_alone_are_a_floor():
    labels = np.array([0, 1, 2])
    evidence = Evidence(logits=np.zeros((3, 4)), labels=labels)
    answers = np.array([[0, 0], [1, 0], [0, 0]])
    assert LabelOnly(answers).statistic(evidence).tolist() == [1.0, 0.5, 0.0]


def test_reference_attacks_without_references_are_refused():
    evidence = Evidence(logits=np.zeros((3, 4)), labels=np.zeros(3, int))
    for attacker in (LiRA(), OfflineLiRA(), RMIA()):
        with pytest.raises(AuditError, match="references=None"):
            attacker.statistic(evidence)


@pytest.mark.parametrize("labels", [np.zeros(2, int), np.zeros((3, 1), int)])
def test_shapes_that_disagree_are_refused(labels):
    with pytest.raises(ValueError, match="expected"):
        Evidence(logits=np.zeros((3, 4)), labels=labels)


def test_duplicates_are_found_exactly_and_nearly():
    random = np.random.default_rng(0)
    members, others = random.standard_normal((50, 6)), random.standard_normal((40, 6))
    others[3], others[9] = members[7], members[8] + 1e-3
    assert score.near_duplicates(members, others).tolist() == [3]
    assert score.near_duplicates(members, others, tolerance=0.01).tolist() == [3, 9]


def test_scores_of_a_user_are_summed():
    users, sums = score.by_user([1.0, 2.0, 4.0, 8.0], ["b", "a", "b", "a"])
    assert (users.tolist(), sums.tolist()) == (["a", "b"], [10.0, 5.0])


def test_the_model_is_left_in_its_mode_and_bad_outputs_are_refused():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5)).train()
    inputs = torch.zeros(5, 3)
    assert np.array_equal(score.model_logits(model, inputs), score.model_logits(model, inputs, batch=2))
    assert model.training
    with pytest.raises(ValueError, match="NaN or inf"):
        score.model_logits(lambda batch: np.full((len(batch), 2), np.nan), inputs)
    with pytest.raises(ValueError, match=r"outputs\.shape"):
        score.model_logits(lambda batch: np.zeros((len(batch), 2, 2)), inputs)
