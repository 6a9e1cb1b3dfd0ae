# SPDX-License-Identifier: Apache-2.0
"""The profile: signed, immutable, and every mismatch between writer and detector is refused."""

import dataclasses
import json

import numpy as np
import pytest

from privguard.attest.statement import SigningKey
from privguard.errors import MarkError, ProfileMismatchError, TamperedError
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile, vocabulary_digest
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.scheme import GreenList, Gumbel, Payload, Tournament


class Words:
    """A tokenizer with the least that a profile asks."""

    def __init__(self, *words, special=(0,)):
        self.words, self.all_special_ids = list(words), list(special)

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [self.words.index(word) for word in text.split()]


@pytest.mark.parametrize(
    "scheme", [Gumbel(), GreenList(green=128, bias=1.0), Tournament(depth=9), Payload(bits=20)], ids=lambda s: s.name
)
def test_a_profile_survives_its_file_and_its_signature_is_checked(tmp_path, secret, profile_for, scheme):
    profile, key, path = profile_for(secret, scheme), SigningKey.generate(), tmp_path / "profile.json"
    profile.write(path, by=key)
    told = Profile.read(path, by=key.identity)
    assert told == profile
    words = [p.stream(secret, subkey=1).vocabulary(np.array([[1, 2, 3, 4]]), 64).tolist() for p in (told, profile)]
    assert words[0] == words[1]  # whole numbers come back from canonical JSON without their decimal point
    with pytest.raises(TamperedError):
        Profile.read(path, by=SigningKey.generate().identity)
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"payload":"ey', b'"payload":"fy'))
    with pytest.raises(TamperedError):
        Profile.read(path, by=key.identity)


def test_a_profile_of_another_kind_or_version_is_refused(secret, profile_for):
    value = profile_for(secret).to_json()
    assert Profile.from_json(json.loads(json.dumps(value))) == profile_for(secret)
    for change in (
        {"version": "text-mark-v9"},
        {"prf": "philox"},
        {"deduplication": "none"},
        {"new": 1},
        {"record": "Other"},
    ):
        with pytest.raises(ProfileMismatchError):
            Profile.from_json({**value, **change})
    for scheme in ({**value["scheme"], "name": "unigram"}, {**value["scheme"], "statistic": "z-score"}):
        with pytest.raises(ProfileMismatchError):
            Profile.from_json({**value, "scheme": scheme})


def test_a_profile_cannot_be_changed(secret, profile_for):
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile_for(secret).context_width = 1
    for bad in ({"context_width": 5}, {"subkeys": 0}, {"prf": "md5"}, {"logits_width": 1 << 24}):
        with pytest.raises(ValueError, match="expected"):
            profile_for(secret, **bad)


def test_another_tokenizer_is_refused(secret):
    tokenizer = Words("<pad>", "a", "b", "c")
    profile = Profile.for_tokenizer(tokenizer, secret, logits_width=4)
    detector = Detector(profile, secret)
    assert detector.detect_text(["a b c a b c b"], tokenizer).scored.tolist() == [3]
    assert vocabulary_digest(tokenizer) == profile.vocabulary
    for other in (Words("<pad>", "a", "c", "b"), Words("<pad>", "a", "b", "c", special=(1,)), Words("<pad>", "a", "b")):
        with pytest.raises(ProfileMismatchError, match="tokenizer"):
            detector.detect_text(["a b c"], other)


def test_another_secret_is_refused(secret, profile_for):
    with pytest.raises(ProfileMismatchError, match="secret"):
        Detector(profile_for(secret), Secret(bytes(32)))
    with pytest.raises(MarkError, match="payload"):
        Detector(profile_for(secret, Payload()), secret)


def test_no_two_profiles_read_the_same_words(secret, profile_for):
    """Scheme, PRF, context width, sub-key and user each give a key of their own."""
    profiles = [profile_for(secret, **c) for c in ({}, {"context_width": 3}, {"prf": "aes256-chacha8-v1"})]
    profiles += [profile_for(secret, GreenList()), profile_for(secret, Tournament())]
    streams = [p.stream(secret, subkey=j, user=u) for p in profiles for j in (0, 1) for u in (None, "ann", "bob")]
    first = {s.vocabulary(np.array([[1, 2, 3]]), 16).tobytes() for s in streams}
    assert len(first) == len(streams)
