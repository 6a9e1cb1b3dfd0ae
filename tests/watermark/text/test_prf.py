# SPDX-License-Identifier: Apache-2.0
"""Contexts and words: injective packing, known answers, and vectors that every implementation must match."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from privguard.watermark.text.prf import chacha, streams
from privguard.watermark.text.prf.streams import FILLER, AesStream, ChaChaStream

KEY = bytes(range(32))
VECTORS = Path(__file__).parents[2] / "vectors" / "text-mark-v1"
ids = st.integers(0, FILLER)


@given(st.lists(ids, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_block_is_aes_of_four_ids_of_24_bits_and_the_counter(context, counter):
    """The layout, written again with Python's whole numbers."""
    slots = [FILLER] * (4 - len(context)) + context
    number = sum(slot << (24 * i) for i, slot in enumerate(slots)) | counter << 96
    expected = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(number.to_bytes(16, "little"))
    inputs = np.concatenate([streams.pack(np.array([context])), np.array([[counter]], "<u4")], 1)
    assert AesStream(KEY).blocks(inputs).tobytes() == expected


@given(st.lists(st.tuples(ids, ids, ids, ids), min_size=2, max_size=30, unique=True))
def test_packing_is_injective(contexts):
    packed = streams.pack(np.array(contexts))
    assert len({row.tobytes() for row in packed}) == len(contexts)


@pytest.mark.parametrize("bad", [[[-1]], [[1 << 24]], [[1, 2, 3, 4, 5]]])
def test_what_does_not_fit_is_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        streams.pack(np.array(bad))


@pytest.mark.parametrize("kind", [AesStream, ChaChaStream])
def test_seeking_and_streaming_read_the_same_bytes(kind):
    stream, rng = kind(KEY), np.random.default_rng(0)
    contexts, width = rng.integers(0, 1 << 24, (5, 4)), 1003
    whole = stream.vocabulary(contexts, 4 * width).copy()
    rows, tokens = np.repeat(np.arange(5), 50), rng.integers(0, width, 250)
    words = streams.words_of(contexts[rows], tokens, block_bytes=stream.block_bytes).read(stream)
    assert (words == whole.view(np.uint32)[rows, tokens]).all()
    octets = streams.bytes_of(contexts[rows], tokens, block_bytes=stream.block_bytes).read(stream)
    assert (octets == whole[rows, tokens]).all()


def test_chacha8_known_answers():
    """draft-strombergson-chacha-test-vectors-00, 256-bit keys, 8 rounds, zero IV: TC1 block 0, then block 1."""
    zero = np.zeros(2, np.int32)
    parts = chacha.blocks([zero] * 8, np.array([0, 1], np.int32))
    first, second = np.stack(parts, -1).astype("<i4")
    assert first.tobytes().hex().startswith("3e00ef2f895f40d67f5bb8e81f09a5a12c840ec3ce9a7f3b181be188ef711a1e")
    assert first.tobytes().hex().endswith("984ce172b9216f419f445367456d5619314a42a3da86b001387bfdb80e0cfe42")
    assert second.tobytes().hex().startswith("d2aefa0deaa5c151bf0adb6c01f2a5adc0fd581259f9a2aadcf20f8fd566a26b")


def chacha8_slow(key: list[int], counter: int) -> list[int]:
    """ChaCha8 with Python's whole numbers, from the definition (Bernstein 2008)."""

    def rotate(x, n):
        return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF

    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *key, counter, 0, 0, 0]
    x = list(start)
    for _ in range(4):
        for a, b, c, d in [
            (0, 4, 8, 12),
            (1, 5, 9, 13),
            (2, 6, 10, 14),
            (3, 7, 11, 15),
            (0, 5, 10, 15),
            (1, 6, 11, 12),
            (2, 7, 8, 13),
            (3, 4, 9, 14),
        ]:
            for p, q, r, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[p] = (x[p] + x[q]) & 0xFFFFFFFF
                x[r] = rotate(x[r] ^ x[p], n)
    return [(i + j) & 0xFFFFFFFF for i, j in zip(x, start, strict=True)]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8), st.integers(0, 2**32 - 1))
def test_chacha8_over_arrays_equals_the_definition(key, counter):
    words = [np.array([k], np.uint32).view(np.int32) for k in key]
    parts = chacha.blocks(words, np.array([counter], np.uint32).view(np.int32))
    assert np.concatenate(parts).view(np.uint32).tolist() == chacha8_slow(key, counter)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda p: p.stem)
def test_vectors(path):
    """Words and bytes of some contexts under a published key; they may never change within text-mark-v1."""
    for vector in json.loads(path.read_text()):
        stream = streams.STREAMS[vector["prf"]](bytes.fromhex(vector["key"]))
        contexts, tokens = np.array([vector["context"]] * len(vector["tokens"])), np.array(vector["tokens"])
        words = streams.words_of(contexts, tokens, block_bytes=stream.block_bytes).read(stream)
        octets = streams.bytes_of(contexts, tokens, block_bytes=stream.block_bytes).read(stream)
        assert [f"{w:08x}" for w in words] == vector["words"]
        assert octets.tolist() == vector["bytes"]


def test_there_are_vectors_for_each_prf():
    names = {v["prf"] for path in VECTORS.glob("*.json") for v in json.loads(path.read_text())}
    assert names == set(streams.STREAMS)
