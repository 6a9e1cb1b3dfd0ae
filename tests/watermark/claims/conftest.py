# SPDX-License-Identifier: Apache-2.0
"""A local notary, an owner with a claim, and suspects that answer as a table of labels says: no training needed."""

import numpy as np
import pytest

from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.records import Digest
from privguard.watermark.claims import commitment, offline
from privguard.watermark.model import triggers, weights
from privguard.watermark.secret import Secret

OWNER, VERIFIER = SigningKey.generate(), SigningKey.generate_p256()
NOTARY = LocalNotary.generate(bits=2048).to_json()
SHAPES = {"a": (40, 50), "b": (30, 40)}
UNMARKED = {name: np.random.default_rng(0).standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
MARKS = (
    triggers.plan(triggers.Domain(shape=(1, 8, 8)), classes=10, leaves=40),
    weights.plan(SHAPES, leaves=16, strength=0.3),
)
SUSPECT = Digest(name="suspect", sha256="ab" * 32)


def new_notary():
    return LocalNotary.from_json(NOTARY)


def new_table(*, at=None, marks=MARKS, notary=None):
    notary, secret = notary or new_notary(), Secret.generate()
    model = offline.tensors_digest("owner's model", UNMARKED)
    made = commitment.commit(secret, model=model, marks=marks, by=OWNER)
    done = offline.notarise(made, notary, at=at)
    return offline.Table(commitment=done, secret=secret, notary=notary, verifier=VERIFIER)


@pytest.fixture
def table():
    return new_table()


@pytest.fixture
def marked(table):
    """The suspect's tensors and its answers, when it is the marked model itself."""
    settings, pulse = MARKS[1].settings, table.standing.pulse.output
    tensors = weights.embed(UNMARKED, table.tree.leaves["weights"], pulse=pulse, settings=settings)
    return tensors, Perfect(table)


class Perfect:
    """Answers every trigger of a claim with its label, and 0 to everything else."""

    def __init__(self, table, wrong=()):
        settings, pulse = MARKS[0].settings, table.standing.pulse.output
        leaves = table.tree.leaves["triggers"]
        asked, said = triggers.inputs(leaves, pulse, settings), triggers.labels(leaves, pulse, settings)
        self.known = {query.tobytes(): int(label) for query, label in zip(asked, said, strict=True)}
        self.calls = 0

    def __call__(self, queries):
        self.calls += 1
        return [self.known.get(query.tobytes(), 0) for query in queries]


class Innocent:
    """Answers by a hash of the query: fixed, and made without any secret."""

    def __call__(self, queries):
        return [sum(query.tobytes()) % 10 for query in queries]


@pytest.fixture
def innocent():
    return Innocent()


@pytest.fixture
def natural():
    return np.random.default_rng(1).random((30, 1, 8, 8), np.float32)


@pytest.fixture
def tables():
    """Makes tables: ``tables.new(at=...)``."""

    class Tables:
        new = staticmethod(new_table)
        notary = staticmethod(new_notary)
        perfect = Perfect
        unmarked = UNMARKED
        suspect = SUSPECT
        owner = OWNER

    return Tables
