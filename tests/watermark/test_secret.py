# SPDX-License-Identifier: Apache-2.0
"""The secret: children apart, files that notice damage, AES and HKDF as the standards say."""

import pickle
import stat

import numpy as np
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privguard.errors import TamperedError
from privguard.watermark.secret import Prf, Secret


def test_aes_256_known_answers():
    """NIST SP 800-38A, F.1.5: ECB-AES256."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    cipher = bytes.fromhex("f3eed1bdb5d2a03c064b5a7e3db181f8591ccb10d410ed26dc5ba74a31362870")
    assert Prf(key).blocks(np.frombuffer(plain, "<u4").reshape(2, 4)).tobytes() == cipher


def test_hkdf_known_answer():
    """RFC 5869, test case 1, through the library that derives our children."""
    okm = HKDF(SHA256(), 42, bytes(range(13)), bytes(range(0xF0, 0xFA))).derive(b"\x0b" * 22)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def test_children_are_repeatable_and_apart():
    secret = Secret(bytes(range(32)))
    labels = [("a", 1), ("a", "1"), ("a1",), ("a",), ("a", 1, ""), ('a", 1',)]
    keys = [secret.derive(*label) for label in labels] + [secret.child(*label).derive("x") for label in labels]
    assert len(set(keys)) == len(keys)
    assert secret.derive("a", 1) == keys[0]
    assert Secret.generate() != Secret.generate()


def test_a_written_secret_is_read_back_and_only_its_owner_may(tmp_path):
    secret, path = Secret.generate(), tmp_path / "mark.secret"
    secret.write(path)
    assert Secret.read(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        Secret.generate().write(path)


DAMAGE = {
    "a character changed": lambda text: text[:30] + ("A" if text[30] != "A" else "B") + text[31:],
    "cut": lambda text: text[:40],
    "empty": lambda text: "",
    "another version": lambda text: text.replace("v1", "v9"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_secret_is_noticed(tmp_path, damage):
    path = tmp_path / "mark.secret"
    Secret.generate().write(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(TamperedError):
        Secret.read(path)


def test_the_secret_does_not_show():
    secret = Secret(bytes(range(32)))
    assert bytes(range(32)).hex() not in repr(secret)
    for value in (secret, secret.prf("x")):
        with pytest.raises(TypeError, match="not picklable"):
            pickle.dumps(value)
    with pytest.raises(ValueError, match="expected 32"):
        Secret(b"short")


def test_a_commitment_binds_and_needs_a_real_salt():
    secret = Secret.generate()
    assert secret.commitment(b"s" * 16) == secret.commitment(b"s" * 16)
    assert len({secret.commitment(bytes([i]) * 16) for i in range(9)} | {Secret.generate().commitment(b"s" * 16)}) == 10
    with pytest.raises(ValueError, match="salt"):
        secret.commitment(b"short")


def test_numbers_below_a_bound_are_the_high_word_of_the_product():
    prf = Secret(bytes(32)).prf("numbers")
    index = np.arange(500)
    inputs = np.zeros((500, 4), np.uint32)
    inputs[:, 0] = index
    words = prf.blocks(inputs)
    for bound in (1, 2, 10, 1000, 50_257, 1 << 32):
        expected = [((int(w[1]) << 32 | int(w[0])) * bound) >> 64 for w in words]
        assert prf.below(bound, index).tolist() == expected
    with pytest.raises(ValueError, match="bound"):
        prf.below(0, index)


@pytest.mark.stat
def test_numbers_below_a_bound_are_uniform():
    """χ² over 10 cells, seeded by a fixed key; false alarm 1e-4."""
    counts = np.bincount(Secret(bytes(32)).prf("χ²").below(10, np.arange(50_000)), minlength=10)
    assert ((counts - 5000) ** 2 / 5000).sum() < 33.7
