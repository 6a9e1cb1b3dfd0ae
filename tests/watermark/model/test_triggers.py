# SPDX-License-Identifier: Apache-2.0
"""Triggers and altered answers: taught, kept through theft, and never read into an innocent model."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from privguard.errors import TamperedError
from privguard.watermark.model import classifier, embed, responses, survival, theft, triggers
from privguard.watermark.model.classifier import Public, Suspect

PULSE = bytes(64)
SETTINGS = triggers.plan(triggers.Domain(shape=(64,)), classes=10, leaves=60).settings


@pytest.fixture(scope="module")
def taught(digits):
    """A model taught 60 triggers, quickly, and the triggers."""
    from privguard.watermark.claims.leaf import Leaf

    own = [Leaf(mark="triggers", index=i, seed=bytes([i]) * 32) for i in range(60)]
    asked, labels = triggers.inputs(own, PULSE, SETTINGS), triggers.labels(own, PULSE, SETTINGS)
    public = Public(inputs=digits.own[0], labels=digits.own[1], generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(digits.model.state_dict())
    marked = classifier.embed(
        digits.model, triggers=asked, labels=labels, public=public, lesson=embed.Lesson(steps=150, rehearse_every=50)
    )
    assert all(torch.equal(before[name], value) for name, value in digits.model.state_dict().items())
    return marked, asked, labels


def log10_p(suspect, asked, labels):
    return triggers.verdict(Suspect(suspect)(asked), labels.tolist(), classes=10).log10_p


def test_triggers_are_learned_and_the_rest_is_kept(digits, taught):
    marked, asked, labels = taught
    assert log10_p(marked, asked, labels) <= -40
    assert digits.accuracy(marked) >= digits.accuracy(digits.model) - 0.04
    assert log10_p(digits.model, asked, labels) > -4
    assert log10_p(digits.innocent, asked, labels) > -4


@pytest.mark.parametrize(
    "attack",
    [
        theft.fine_tune(rate=1e-3, epochs=15),
        theft.prune(0.5, epochs=15),
        theft.quantise(4),
        theft.quantise(8),
        theft.reorder,
    ],
    ids=["fine-tune", "prune", "int4", "int8", "reorder"],
)
def test_triggers_survive_theft(digits, taught, attack):
    marked, asked, labels = taught
    stolen = attack(marked, digits.means(digits.thief))
    assert log10_p(stolen, asked, labels) <= -6
    assert digits.accuracy(stolen) > 0.8


@pytest.mark.parametrize(
    "attack",
    [theft.low_rank(epochs=1), theft.new_head(epochs=1), theft.task_vector(epochs=1)],
    ids=["lora", "head", "vector"],
)
def test_every_attack_gives_a_whole_model_back_and_leaves_the_stolen_one_alone(digits, taught, attack):
    marked, asked, _ = taught
    before = copy.deepcopy(marked.state_dict())
    means = digits.means(digits.thief)
    stolen = attack(marked, means)
    assert stolen.state_dict().keys() == before.keys()
    assert any(not torch.equal(stolen.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(marked.state_dict()[name], value) for name, value in before.items())
    assert means.examples_trained >= 700
    assert all(item.requires_grad for item in stolen.parameters())
    assert len(Suspect(stolen)(asked)) == 60


def test_distillation_and_merging_give_working_models(digits, taught):
    marked, _, _ = taught
    for attack in (
        theft.distil(digits.network, queries=theft.in_domain, hard=True, epochs=15),
        theft.distil(digits.network, queries=theft.with_noise, epochs=15),
        theft.merge(digits.network, epochs=10),
        theft.then(theft.reorder, theft.quantise(8)),
    ):
        assert digits.accuracy(attack(marked, digits.means(digits.thief))) > 0.8


def test_masked_answers_are_noisy_or_filtered(digits, taught):
    marked, asked, labels = taught
    noisy = theft.Masked(marked, noise=0.2)(asked)
    filtered = theft.Masked(marked, filter_below=0.02)(asked)
    assert triggers.verdict(noisy, labels.tolist(), classes=10).matches > 30
    assert triggers.verdict(filtered, labels.tolist(), classes=10).matches < 20
    natural = digits.test[0].numpy()
    assert (
        np.mean(np.array(theft.Masked(marked, filter_below=0.02)(natural)) == np.array(Suspect(marked)(natural))) > 0.98
    )


@pytest.mark.stat
def test_a_temperature_draws_answers_by_their_probability(digits, taught):
    """Matches are Σ of the labels' probabilities on average; 200 draws each, five deviations: once in two million."""
    marked, asked, labels = taught
    logits = torch.from_numpy(Suspect(marked).logits(asked))
    for temperature in (1.0, 4.0):
        chance = (logits / temperature).softmax(1)[torch.arange(len(labels)), torch.from_numpy(labels)].numpy()
        front = theft.Masked(marked, temperature=temperature)
        hits = sum(int(np.sum(np.array(front(asked)) == labels)) for _ in range(200))
        deviation = np.sqrt(200 * (chance * (1 - chance)).sum())
        assert abs(hits - 200 * chance.sum()) < 5 * deviation
    assert theft.Masked(marked)(asked) == Suspect(marked)(asked)


def test_pruning_and_quantising_do_what_they_say(digits):
    pruned = theft.prune(0.8, epochs=2)(digits.model, digits.means(digits.thief))
    for item in pruned.parameters():
        if item.dim() > 1:
            assert (item == 0).float().mean() >= 0.79
    for bits in (3, 4, 8):
        rough = theft.quantise(bits)(digits.model, digits.means(digits.thief))
        for item in rough.parameters():
            if item.dim() > 1:
                assert max(len(torch.unique(row)) for row in item) <= 2**bits - 1


def test_rehearsed_thieves_are_worth_their_steps(digits):
    public = Public(inputs=digits.own[0], labels=digits.own[1], generator=torch.Generator().manual_seed(0))
    train = lambda model: torch.nn.functional.cross_entropy(model(public.inputs), public.labels)
    moved = embed.rehearse(digits.model, embed.Thief(learning_rate=1e-3, steps=3, prune=0.5), train)
    assert [move.shape for move in moved] == [item.shape for item in digits.model.parameters()]
    assert all(torch.isfinite(move).all() for move in moved)
    assert any(move.abs().max() > 0 for move in moved)


def test_contents_are_uniform_and_labels_independent_of_inputs(leaves):
    own = leaves("triggers", 4000)
    labels = triggers.labels(own, PULSE, SETTINGS)
    assert chisquare(np.bincount(labels, minlength=10)).pvalue > 1e-4  # false alarm 1 in 10,000, seed fixed
    asked = triggers.inputs(own[:500], PULSE, SETTINGS)
    assert set(np.unique(asked)) == {0.0, 1.0}
    assert abs(asked.mean() - 0.5) < 5 * 0.5 / np.sqrt(asked.size)
    assert len(np.unique(asked, axis=0)) == 500
    other = triggers.inputs(own[:500], b"\1" * 64, SETTINGS)
    assert abs((asked == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(asked.size)


def test_domains_and_plans_are_checked():
    scaled = triggers.Domain(shape=(2, 3), low=-1.0, high=2.0)
    settings = triggers.plan(scaled, classes=3, leaves=1).settings
    from privguard.watermark.claims.leaf import Leaf

    found = triggers.inputs([Leaf(mark="t", index=0, seed=bytes(32))], PULSE, settings)
    assert found.shape == (1, 2, 3)
    assert set(np.unique(found)) <= {-1.0, 2.0}
    with pytest.raises(ValueError, match="low"):
        triggers.Domain(shape=(2,), low=1.0)
    with pytest.raises(ValueError, match="shape"):
        triggers.Domain(shape=(0,))
    with pytest.raises(ValueError, match="classes"):
        triggers.plan(scaled, classes=1, leaves=3)
    with pytest.raises(ValueError, match="one each"):
        triggers.verdict([1], [1, 2], classes=3)


def test_a_survival_table_names_every_attack(digits):
    suite = survival.attacks(digits.network, digits.network, epochs=1)
    assert {"LoRA rank 4", "overwrite", "merge 50/50", "distil, hard labels", "int3"} <= set(suite)


@pytest.fixture
def response_mark(leaves):
    settings = replace(responses.plan(classes=10), name="responses").settings
    return responses.ResponseMark(leaves("responses", 1)[0], pulse=PULSE, settings=settings)


def test_few_answers_are_altered_always_in_the_same_way_and_logged(response_mark):
    queries = np.random.default_rng(0).random((20_000, 8)).astype(np.float32)
    honest = np.random.default_rng(1).integers(0, 10, 20_000)
    given = np.array(response_mark.answer(queries, honest))
    changed = np.flatnonzero(given != honest)
    assert len(changed) == len(response_mark.log)
    assert 60 <= len(changed) <= 140  # Bin(20000, 0.005) is inside but for 1 in 10,000
    assert (given[changed] != honest[changed]).all()
    assert ((given >= 0) & (given < 10)).all()
    again = response_mark.answer(queries[::-1] + 1e-6, honest[::-1])
    assert again == given[::-1].tolist()
    shifts = (given[changed] - honest[changed]) % 10
    assert set(shifts) <= set(range(1, 10))


def test_a_student_that_learned_the_altered_answers_is_recognised(digits, leaves):
    settings = responses.plan(classes=10).settings
    mark = responses.ResponseMark(leaves("responses", 1)[0], pulse=PULSE, settings={**settings, "share": 0.05})
    asked, honest = digits.thief[0], Suspect(digits.model)(digits.thief[0].numpy())
    given = torch.tensor(mark.answer(asked.numpy(), honest))
    altered = list(mark.log.values())
    student = digits.trained((asked, given), 9, epochs=120)
    queries = np.stack([line.query for line in altered])
    assert responses.verdict(Suspect(student)(queries), altered, classes=10).log10_p <= -4
    assert responses.verdict(Suspect(digits.innocent)(queries), altered, classes=10).log10_p > -2


def test_a_log_with_a_line_of_another_key_is_refused(response_mark, tmp_path, leaves):
    queries = np.random.default_rng(0).random((2_000, 8)).astype(np.float32)
    response_mark.answer(queries, [0] * 2_000)
    response_mark.write(tmp_path / "log.jsonl")
    lines = response_mark.read(tmp_path / "log.jsonl")
    assert [line.given for line in lines] == [line.given for line in response_mark.log.values()]
    assert len(response_mark.root()) == 32
    settings = responses.plan(classes=10).settings
    stranger = responses.ResponseMark(leaves("responses", 1, seed=8)[0], pulse=PULSE, settings=settings)
    with pytest.raises(TamperedError, match="would not have altered"):
        stranger.read(tmp_path / "log.jsonl")


def test_more_than_half_a_percent_cannot_be_altered():
    with pytest.raises(ValueError, match="share"):
        responses.plan(classes=10, share=0.006)
    with pytest.raises(ValueError, match="classes"):
        responses.plan(classes=2)
    found = responses.verdict([], (), classes=10)
    assert found.log10_p == 0
    assert any("neither chose" in note for note in found.notes)
