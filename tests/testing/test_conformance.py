# SPDX-License-Identifier: Apache-2.0
"""The conformance suites pass what privguard brings, and fail a planted bug in each kind of extension."""

import hashlib
import hmac
import os
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from privguard import testing
from privguard.audit.membership.attack import RMIA, LiRA, Loss, OfflineLiRA
from privguard.errors import MarkError, ProfileMismatchError, UnsupportedModelError
from privguard.training.bookkeeping.factors import Full
from privguard.training.bookkeeping.registry import RULES, register_rule
from privguard.watermark.claims import kinds
from privguard.watermark.claims.commitment import MarkPlan
from privguard.watermark.model import fingerprints, triggers
from privguard.watermark.secret import Secret
from privguard.watermark.statistics.null import BinomialCount, ExponentialSum
from privguard.watermark.text.prf.streams import words_of
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import SCHEMES, Gumbel, Tournament, exponential
from privguard.watermark.text.writing import host
from privguard.watermark.text.writing.choose import choosers_of


class Gain(nn.Module):
    """y = x · gain + shift, which no rule of privguard knows."""

    def __init__(self):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.linspace(0.5, 1.5, 6)), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return x * self.gain + self.shift


def gain_rule(call):
    if "gain" in call.wanted:
        yield "gain", Full((call.g * call.x).float())
    if "shift" in call.wanted:
        yield "shift", Full(call.g.float())


def forgets_shift(call):
    yield "gain", Full((call.g * call.x).float())


def yields_nothing(call):
    return iter(())


def of_another_shape(call):
    yield "gain", Full((call.g * call.x).float().sum(1))
    yield "shift", Full(call.g.float())


def of_another_name(call):
    yield "scale", Full((call.g * call.x).float())


def twice_too_small(call):
    for name, factor in gain_rule(call):
        yield name, Full(factor.values / 2)


POINTS = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.Linear(6, 3), POINTS),
        (lambda: nn.LayerNorm(6), POINTS),
        (lambda: nn.Conv1d(2, 3, 2), POINTS.reshape(5, 2, 3)),
        (lambda: nn.EmbeddingBag(7, 4), torch.arange(15).reshape(5, 3) % 7),
    ],
    ids=["linear", "layer norm", "convolution", "bag"],
)
def test_rules_of_ours_pass(make, inputs):
    testing.check_layer_rule(make, inputs)


def test_a_rule_from_outside_is_registered_once_and_passes(monkeypatch):
    monkeypatch.delitem(RULES, Gain, raising=False)
    with pytest.raises(AssertionError, match="has a rule of its own"):
        testing.check_layer_rule(Gain, POINTS)
    assert register_rule(Gain)(gain_rule) is gain_rule
    testing.check_layer_rule(Gain, POINTS)
    with pytest.raises(ValueError, match="it has one already"):
        register_rule(Gain)(gain_rule)
    with pytest.raises(ValueError, match="subclass of torch"):
        register_rule(dict)(gain_rule)
    monkeypatch.delitem(RULES, Gain)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (yields_nothing, "gives nothing for gain, shift"),
        (forgets_shift, "gives nothing for shift"),
        (of_another_shape, r"Full\(values \(5,\)\) for 'gain'"),
        (of_another_name, "'scale'.*expected factors of gain, shift"),
    ],
)
def test_a_rule_that_leaves_something_out_is_refused_at_the_first_batch(monkeypatch, rule, message):
    monkeypatch.setitem(RULES, Gain, rule)
    with pytest.raises(UnsupportedModelError, match=message):
        testing.check_layer_rule(Gain, POINTS)


def test_a_rule_with_wrong_numbers_fails_the_suite(monkeypatch):
    monkeypatch.setitem(RULES, Gain, twice_too_small)
    with pytest.raises(AssertionError, match="of the exact sum"):
        testing.check_layer_rule(Gain, POINTS)


@dataclass(frozen=True)
class Halved:
    """Gumbel-max of which only half of the score is counted: less evidence, and still valid."""

    name: ClassVar[str] = "test-halved"
    statistic: ClassVar[str] = "half-exponential-v1"
    samples: ClassVar[bool] = True

    @property
    def null(self):
        return ExponentialSum()

    def lookup(self, contexts, tokens, *, block_bytes):
        return words_of(contexts, tokens, block_bytes=block_bytes)

    def scores(self, words):
        return exponential(words)


class Boastful(Halved):
    """Scores above its null."""

    name: ClassVar[str] = "test-boastful"

    def scores(self, words):
        return 1.3 * exponential(words)


class Dull(Halved):
    """A null under which nothing can be found."""

    name: ClassVar[str] = "test-dull"

    def scores(self, words):
        return 0 * exponential(words)


class Biased(Halved):
    name: ClassVar[str] = "test-biased"


def biased(row, stream, context, *, chance):
    return host.PickGumbel()((row * np.float32(0.5)).astype(np.float32), stream, context, chance=chance)


@pytest.fixture
def registered(monkeypatch):
    """Register for one test."""

    def register(kind, chooser):
        monkeypatch.setattr(host, "CHOOSERS", dict(host.CHOOSERS))
        for name in SCHEMES.keys() - {"gumbel", "green-list", "tournament", "gumbel-payload"}:
            monkeypatch.delitem(SCHEMES, name)
        host.register_scheme(kind, chooser=lambda _: chooser)
        return kind()

    yield register
    for name in SCHEMES.keys() - {"gumbel", "green-list", "tournament", "gumbel-payload"}:
        del SCHEMES[name]


@pytest.mark.parametrize("scheme", [Gumbel(), Tournament(depth=12, top_k=64)])
def test_schemes_of_ours_pass(scheme):
    testing.check_text_scheme(scheme)


def test_a_scheme_from_outside_is_written_and_read(registered):
    testing.check_text_scheme(registered(Halved, host.PickGumbel()))


@pytest.mark.parametrize(
    ("kind", "chooser", "message"),
    [
        (Boastful, host.PickGumbel(), "pass the level"),
        (Dull, host.PickGumbel(), "marked tokens are found"),
        (Biased, biased, "softmax probability"),
    ],
)
def test_a_planted_bug_in_a_scheme_fails_the_suite(registered, kind, chooser, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_text_scheme(registered(kind, chooser))


def test_an_unknown_scheme_is_an_error_and_never_gumbel():
    secret = Secret(bytes(32))
    profile = Profile(scheme=Halved(), key_id=secret.key_id, vocabulary="v", logits_width=64)
    with pytest.raises(MarkError, match="test-halved: has no chooser"):
        choosers_of(profile, ())
    with pytest.raises(ProfileMismatchError):
        Profile.from_json(profile.to_json())
    with pytest.raises(ValueError, match="no scheme has yet"):
        host.register_scheme(Gumbel, chooser=lambda _: host.PickGumbel())


DOMAIN = triggers.plan(triggers.Domain(shape=(3, 3)), classes=10, leaves=32).settings
PROMPTS = fingerprints.plan(range(50), range(100, 110), leaves=32, length=6).settings


class Lucky:
    """A kind whose null is too kind to the accuser: it counts over an alphabet that is too large."""

    name, readings = "test-lucky", 2

    def queries(self, leaves, *, pulse, settings):
        return triggers.inputs(leaves, pulse, settings)

    def verdict(self, answers, leaves, *, pulse, settings):
        right = triggers.labels(leaves, pulse, settings).tolist()
        return triggers.verdict(answers, right, classes=2 * settings["classes"])


def right_labels(leaves, pulse):
    return triggers.labels(leaves, pulse, DOMAIN).tolist()


def test_marks_of_ours_pass():
    testing.check_answered_mark(kinds.ANSWERED["triggers"], settings=DOMAIN, right=right_labels)
    testing.check_answered_mark(
        kinds.ANSWERED["fingerprints"],
        settings=PROMPTS,
        right=lambda leaves, pulse: fingerprints.answers(leaves, pulse, PROMPTS).tolist(),
    )


def test_a_kind_of_mark_whose_null_is_wrong_fails_the_suite(monkeypatch):
    with pytest.raises(ValueError, match="one of triggers"):
        MarkPlan(name="mine", kind="test-lucky", leaves=1)
    monkeypatch.setitem(kinds.ANSWERED, "test-lucky", lucky := Lucky())
    assert MarkPlan(name="mine", kind="test-lucky", leaves=1).kind == "test-lucky"
    with pytest.raises(AssertionError, match="pass the level"):
        testing.check_answered_mark(lucky, settings=DOMAIN, right=right_labels)


@pytest.mark.parametrize("name", ["triggers", "weights"])
def test_a_kind_of_mark_cannot_take_a_name_that_is_there(name):
    impostor = Lucky()
    impostor.name = name
    with pytest.raises(ValueError, match="no kind of mark has yet"):
        kinds.register_mark(impostor)


@pytest.mark.parametrize("attack", [Loss(), LiRA(), OfflineLiRA(), RMIA()], ids=lambda attack: attack.name)
def test_attacks_of_ours_pass(attack):
    testing.check_attack(attack)


@dataclass(frozen=True)
class Positional:
    """Earlier records first, whatever they are."""

    name: str = "positional"

    def statistic(self, evidence):
        return -np.arange(len(evidence.labels), dtype=float)


@dataclass(frozen=True)
class Backwards:
    name: str = "backwards"

    def statistic(self, evidence):
        return -Loss().statistic(evidence)


@pytest.mark.parametrize(("attack", "message"), [(Positional(), "order of the records"), (Backwards(), "stand out")])
def test_an_attack_that_is_wrong_fails_the_suite(attack, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_attack(attack)


class Vault:
    """A key service of a few lines: HMAC-SHA256 as stream and as tag."""

    def __init__(self, name, *, bind=True):
        self.name, self._key, self._bind = name, hashlib.sha256(name.encode()).digest(), bind

    def wrap(self, secret, context):
        salt = os.urandom(16)
        body = bytes(a ^ b for a, b in zip(secret, self._mac(b"stream" + salt), strict=True))
        return salt + body + self._mac(salt + body + (context if self._bind else b""))

    def unwrap(self, blob, context):
        salt, body, tag = blob[:16], blob[16:48], blob[48:]
        if not hmac.compare_digest(tag, self._mac(salt + body + (context if self._bind else b""))):
            raise ValueError("not wrapped here under this context")
        return bytes(a ^ b for a, b in zip(body, self._mac(b"stream" + salt), strict=True))

    def _mac(self, message):
        return hmac.digest(self._key, message, "sha256")


def test_a_key_service_that_binds_the_context_passes_and_one_that_does_not_fails():
    testing.check_key_service(Vault("one"), other=Vault("two"))
    with pytest.raises(AssertionError, match="under another context"):
        testing.check_key_service(Vault("one", bind=False), other=Vault("two", bind=False))


def test_the_null_of_a_binomial_is_held_at_every_level():
    random = np.random.default_rng(5)
    null, counts = BinomialCount(chance=Fraction(1, 4)), random.binomial(64, 0.25, 1000)
    testing.promise.law_holds(null.log10_tail(counts, 64), null.log10_e(counts, 64), "right")
    with pytest.raises(AssertionError, match="p-values"):
        testing.promise.law_holds(null.log10_tail(counts + 4, 64), null.log10_e(counts, 64), "wrong")
