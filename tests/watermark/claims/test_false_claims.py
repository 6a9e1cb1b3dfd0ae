# SPDX-License-Identifier: Apache-2.0
"""The dishonest accuser: nothing passes, and everything would pass with the one defence missing."""

import numpy as np
import pytest

from privguard.attest.statement import SigningKey
from privguard.watermark.claims import false_claims
from privguard.watermark.claims.false_claims import Court


@pytest.fixture
def court(tables):
    """A suspect that is a fixed random linear classifier; the accuser knows it exactly."""
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((16, 10))
    answer = lambda queries: (queries.reshape(len(queries), -1) @ matrix).argmax(1).tolist()
    natural = rng.random((200, 16)).astype(np.float32)

    def adversarial(inputs, targets):
        found = inputs.copy()
        for place, target in enumerate(targets):
            for _ in range(200):
                found[place] = np.clip(found[place] + 0.05 * np.sign(matrix[:, target] - matrix.mean(1)), 0, 1)
        return found.astype(np.float32)

    innocent = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in tables.unmarked.items()}
    return Court(
        suspect=answer,
        natural=natural,
        truth=np.array(answer(natural)),
        adversarial=adversarial,
        notary=tables.notary(),
        accuser=tables.notary(),
        verifier=SigningKey.generate(),
        random=rng,
        unmarked={name: 0.3 * value for name, value in tables.unmarked.items()},
        innocent=innocent,
    )


@pytest.mark.parametrize("name", false_claims.DRILLS)
def test_a_false_claim_is_stopped_by_exactly_its_defence(court, name, tables):
    if name == "back-dated commitment":
        from dataclasses import replace

        from privguard.attest.notary import LocalNotary

        court = replace(court, accuser=LocalNotary.generate(bits=2048))
    by_chance = name == "alignment to the marked copy"  # on tables as small as these it succeeds in 25 of 40 attempts
    outcomes = [false_claims.DRILLS[name](court) for _ in range(3)]
    while by_chance and len(outcomes) < 40 and not any(without for _, without in outcomes):
        outcomes.append(false_claims.DRILLS[name](court))
    assert not any(accepted for accepted, _ in outcomes)
    succeeded = [without for _, without in outcomes]
    assert any(succeeded) if by_chance else all(succeeded)  # forty fail once in 10¹⁷ runs; in 10¹² were it 20 of 40


def test_an_honest_claim_by_the_same_court_is_accepted(court):
    def stolen(dossier):
        from privguard.watermark.model import triggers

        leaves, pulse = dossier.tree.leaves["triggers"], dossier.standing.pulse.output
        labels = triggers.labels(leaves, pulse, court.mark.settings).tolist()
        return lambda queries: [*labels[:40], *[-1] * (len(queries) - 40)]

    assert all(false_claims.honest(court, stolen) for _ in range(3))


def test_the_best_of_many_keys_is_drawn_from_the_law_of_the_maximum(court):
    # P(Bin(100, 1/10) ≥ 20) = 0.198 %: the best of 500 reaches 20 with chance 1 − (1 − 0.00198)⁵⁰⁰ = 0.629.
    # 400 draws: the count lies in 252 ± 5·9.7 but for one time in a million.
    reached = sum(court.best_of(500) >= 20 for _ in range(400))
    assert abs(reached - 400 * (1 - (1 - 0.001979) ** 500)) < 49
    assert 10 <= court.best_of(1 << 10) <= 40
