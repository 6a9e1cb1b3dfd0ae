# SPDX-License-Identifier: Apache-2.0
"""Streams: equal names give equal bytes, different names share nothing, keys stay inside."""

import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privguard._random import Stream


def test_bytes_are_aes_256_in_counter_mode():
    key = bytes(range(32))
    expected = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(1_000_003))
    filled = np.empty(1_000_003, np.uint8)
    Stream(key, "t").fill(filled)
    assert filled.tobytes() == expected


def test_a_reader_begins_at_any_block_of_the_cipher():
    stream = Stream.from_insecure_seed(1, "s")
    late = np.empty(100, np.uint64)
    stream.reader(48)(late)
    assert late.tolist() == stream.words(106)[6:].tolist()
    for wrong in (8, -16):
        with pytest.raises(ValueError, match=f"start={wrong}: expected a multiple of 16"):
            stream.reader(wrong)


def test_children_are_repeatable_and_apart():
    stream = Stream.from_entropy("run")
    labels = [("noise", 1), ("noise", 2), ("noise", "1"), ("noise",), ("sampler", 1), ("noise/int:1",)]
    words = [stream.child(*label).words(4).tobytes() for label in labels]
    assert len(set(words)) == len(words)
    assert stream.child("noise", 1).words(4).tobytes() == words[0]
    assert Stream.from_entropy("run").words(4).tobytes() != stream.words(4).tobytes()


def test_a_seed_is_repeatable_and_called_insecure():
    assert Stream.from_insecure_seed(7, "a").words(2).tolist() == Stream.from_insecure_seed(7, "b").words(2).tolist()
    assert Stream.from_insecure_seed(7, "a").child("x").insecure
    assert not Stream.from_entropy("a").child("x").insecure


def test_the_key_does_not_show():
    stream = Stream(bytes(range(32)), "noise")
    assert repr(stream) == "Stream('noise')"
    with pytest.raises(TypeError, match="not picklable"):
        pickle.dumps(stream)
    with pytest.raises(ValueError, match="expected 32 bytes"):
        Stream(b"short", "noise")
