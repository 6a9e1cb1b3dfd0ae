# SPDX-License-Identifier: Apache-2.0
"""Whole audits: what is said, what is withheld, and that a random split is not called a leak."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from privguard import audit
from privguard.audit import inversion
from privguard.audit.membership import roc_plot, scores
from privguard.audit.membership.attack import Loss
from privguard.audit.membership.audit import Assignment, Examples, run, target_digest
from privguard.audit.membership.blind import _auc_within, blind_baseline
from privguard.audit.membership.verdict import Leak
from privguard.audit.references.reference import Schedule, draw_inclusion, train_references


def mlp():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))


SCHEDULE = Schedule(epochs=60, batch_size=20, learning_rate=0.1, at_once=4)


def records(count, seed, *, shift=0.0):
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((count, 20)).astype(np.float32) + np.float32(shift)
    labels = (inputs[:, :4] + 2.0 * random.standard_normal((count, 4))).argmax(1)
    return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))


def trained_on(examples, seed=7):
    included = np.ones((1, len(examples)), bool)
    schedule = Schedule(**{**vars(SCHEDULE), "seed": seed})
    references = train_references(mlp, examples.inputs, examples.labels, included=included, schedule=schedule)
    model = mlp()
    model.load_state_dict(references.states[0])
    return model


def references_for(members, others, count):
    inputs, labels = torch.cat([members.inputs, others.inputs]), torch.cat([members.labels, others.labels])
    included = draw_inclusion(count, len(labels), seed=3)
    return train_references(mlp, inputs, labels, included=included, schedule=SCHEDULE)


@pytest.fixture(scope="module")
def overfitted():
    members, others = records(200, 0), records(200, 1)
    return trained_on(members), members, others, references_for(members, others, 8)


def test_an_overfitted_model_leaks_and_the_report_says_how_it_knows(overfitted):
    model, members, others, references = overfitted
    attacked = run(model, members, others, references=references, assignment=Assignment.RANDOMISED)
    found = attacked.record
    assert found.leak is Leak.FOUND
    assert [result.attack for result in found.attacks] == ["loss", "lira", "rmia"]
    assert not found.blind.flagged
    lira = found.attacks[1]
    assert lira.auc.low > 0.6
    assert lira.rates[0].non_members == 200
    assert [rate.measurable for rate in lira.rates] == [True, False, False]
    assert found.exposed.low >= 1
    assert sorted(attacked.ranking) == list(range(200))
    assert not any("ranking" in name or "vulnerable" in name for name in found.to_json())
    assert 0 < found.stability <= 1
    assert found.target == target_digest(model)
    assert json.loads(json.dumps(found.to_json()))["leak"] == Leak.FOUND.value
    assert any("200 non-members" in note for note in found.notes)
    assert any("one target" in note for note in found.notes)


def test_a_model_that_never_saw_either_side_leaks_nothing():
    members, others = records(200, 0), records(200, 1)
    found = run(trained_on(records(200, 2)), members, others, references=references_for(members, others, 4)).record
    assert found.leak is Leak.NOT_FOUND
    assert any("unknown" in note for note in found.notes)


def test_a_split_that_shows_by_itself_is_not_called_a_leak():
    members, others = records(150, 0, shift=0.8), records(150, 1)
    model = nn.Linear(20, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    model.weight.data[0] = 1.0  # a model that was trained on nobody, and likes what is shifted
    members, others = (Examples(e.inputs, torch.zeros_like(e.labels)) for e in (members, others))
    found = run(model, members, others).record
    assert found.blind.flagged
    assert found.leak is Leak.INSEPARABLE
    assert "cannot be separated from the split" in found.leak.value
    assert any("records alone" in note for note in found.notes)


def test_non_members_that_are_members_are_left_out(overfitted):
    model, members, others, _ = overfitted
    twice = Examples(torch.cat([others.inputs, members.inputs[:7]]), torch.cat([others.labels, members.labels[:7]]))
    found = run(model, members, twice).record
    assert (found.duplicates, found.non_members) == (7, 200)


def test_a_scoring_function_is_audited_like_a_module(overfitted):
    model, members, others, _ = overfitted

    def remote(batch):
        with torch.no_grad():
            return model(batch).tolist()

    ours, theirs = run(model, members, others).record, run(remote, members, others).record
    assert theirs.attacks == ours.attacks
    assert theirs.target.startswith("function ")


def test_every_attack_that_was_run_is_listed_and_paid_for(overfitted):
    model, members, others, _ = overfitted

    class Noise:
        def __init__(self, number):
            self.name = f"noise-{number}"
            self._number = number

        def statistic(self, evidence):
            return np.random.default_rng(self._number).standard_normal(len(evidence.labels))

    one, many = (
        run(model, members, others).record,
        run(model, members, others, attacks=[Noise(i) for i in range(9)]).record,
    )
    assert [each.attack for each in many.attacks] == ["loss", *(f"noise-{i}" for i in range(9))]
    assert many.attacks[0].p_adjusted >= one.attacks[0].p_adjusted


def test_two_attacks_of_one_name_are_refused(overfitted):
    model, members, others = overfitted[:3]
    with pytest.raises(ValueError, match="a name of its own for each"):
        run(model, members, others, attacks=[Loss()])


def test_references_of_other_records_are_refused(overfitted):
    model, members, _, references = overfitted
    with pytest.raises(ValueError, match=r"references\.included"):
        run(model, members, records(190, 1), references=references)


@pytest.mark.stat
@pytest.mark.parametrize(("records", "width"), [(40, 60), (120, 5)])
def test_a_random_split_is_flagged_at_most_once_in_a_hundred(records, width):
    flagged = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        members = np.arange(records) < records // 2
        flagged += blind_baseline(random.standard_normal((records, width)), members).record.flagged
    assert flagged <= stats.binom.isf(1e-6, 20, 0.01)


def test_the_blind_lower_end_is_a_test_at_one_percent():
    """Ranks that no member is told from, in blocks of 8 and 40: above one half at most as often as stated, and often
    enough to be worth something."""
    random = np.random.default_rng(0)
    for size in (8, 40):
        above = 0
        for _ in range(4_000):
            blocks = [(np.arange(size) / size, random.random(size) < 0.5) for _ in range(4)]
            above += _auc_within(blocks)[0].low99 > 0.5
        assert 0.002 <= above / 4_000 <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 4_000)


def test_the_blind_baseline_tells_head_from_tail_and_passes_random_chunks(data):
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="ascii")
    chunks = [text[i : i + 400] for i in range(0, len(text) - 400, 400)]
    members = np.arange(800) < 400
    head_and_tail = blind_baseline(chunks[:400] + chunks[-400:], members).record
    assert head_and_tail.flagged
    assert head_and_tail.auc.value > 0.9
    mixed = [str(chunk) for chunk in np.random.default_rng(0).permutation(chunks)[:800]]
    assert not blind_baseline(mixed, members).record.flagged


def test_scores_alone_are_never_called_a_leak_without_records(tmp_path):
    path = tmp_path / "scores.npz"
    members = np.arange(200) < 100
    np.savez(path, scores=members + np.random.default_rng(0).standard_normal(200), members=members)
    found = scores.audit_scores(scores.read_scores(path))
    assert found.leak is None
    assert scores.significant(found) == ["scores"]
    assert "no blind baseline" in found.notes[0]


@pytest.mark.parametrize("arrays", [{}, {"scores": np.zeros(4)}, {"members": np.ones(4, bool)}])
def test_a_scores_file_without_its_arrays_is_refused(arrays):
    with pytest.raises(ValueError, match="arrays="):
        scores.audit_scores(arrays)


def test_objects_in_a_scores_file_are_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", scores=np.array([{}], object), members=np.ones(1, bool))
    (tmp_path / "noise.npz").write_bytes(b"not a zip file")
    for name in ("bad.npz", "noise.npz"):
        with pytest.raises(ValueError, match="plain arrays"):
            scores.read_scores(tmp_path / name)


def test_the_picture_is_svg_on_log_axes_and_the_same_each_time(overfitted):
    model, members, others, references = overfitted
    attacked = run(model, members, others, references=references)
    first, second = (roc_plot.roc_svg(attacked.statistics, attacked.members, blind=attacked.blind) for _ in range(2))
    assert first.startswith("<?xml")
    assert "lira (AUC" in first
    assert "blind, no model" in first
    assert len(first) == len(second)


def test_inversion_finds_what_the_model_likes_and_compares_evenly(overfitted):
    model, members, others, _ = overfitted
    found = inversion.reconstruct(model, 2, shape=(20,), starts=4, steps=50)
    assert found.shape == (4, 20)
    assert (model(torch.from_numpy(found)).argmax(1) == 2).all()
    of_class = lambda e: e.inputs[e.labels == 2].numpy()
    compared = inversion.nearness(found, members=of_class(members), non_members=of_class(others))
    assert compared.gap == pytest.approx(compared.to_member - compared.to_non_member)
    copy = inversion.nearness(of_class(members)[:5], members=of_class(members), non_members=of_class(others))
    assert (copy.to_member, copy.members_nearer) == (pytest.approx(1.0), 5)


def test_the_names_of_the_part_are_there_and_documented():
    for name in ("run", "judge", "Design", "Coins", "train_references", "Schedule", "Place"):
        assert getattr(audit, name).__doc__
