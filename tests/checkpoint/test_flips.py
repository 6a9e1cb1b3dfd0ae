# SPDX-License-Identifier: Apache-2.0
"""One bit flipped anywhere: refused, and nothing written; in the idle slot, told and without effect."""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator

import pytest

from privguard.checkpoint import Key, Sealed, envelope, inspect, open_into, seal
from privguard.checkpoint.content.payload import MalformedError
from privguard.checkpoint.envelope import PREAMBLE_BYTES, Preamble
from privguard.checkpoint.opened import LeftoverWarning
from privguard.errors import SealError, TamperedError


@pytest.fixture(scope="module")
def auditor():
    return Key.generate_symmetric()


@pytest.fixture
def sealed(tmp_path, key, auditor):
    (tmp_path / "content").write_bytes(os.urandom(60_000))
    seal(tmp_path / "content", tmp_path / "sealed", to=[key, Key.generate_x25519()], auditors=[auditor])
    (tmp_path / "content").unlink()
    return tmp_path / "sealed"


class Flips:
    """A file whose bits are flipped and put back one at a time, in place."""

    def __init__(self, path) -> None:
        self.content, self.descriptor = path.read_bytes(), os.open(path, os.O_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.descriptor)

    def flip(self, bit: int) -> None:
        os.pwrite(self.descriptor, bytes([self.content[bit // 8] ^ 1 << bit % 8]), bit // 8)

    def mend(self, bit: int) -> None:
        os.pwrite(self.descriptor, self.content[bit // 8 : bit // 8 + 1], bit // 8)


def read_all(path, key) -> None:
    with Sealed(path, key) as opened:
        assert opened.ledger == b""
        for name in opened.names():
            opened.read(name)


def header_flips(sealed, key, other_key, bits) -> None:
    preamble = Preamble.unpack(sealed.read_bytes())
    idle = 8 * (PREAMBLE_BYTES + preamble.slot_bytes)
    with Flips(sealed) as file:
        for bit in bits:
            file.flip(bit)
            if bit < idle:
                with pytest.raises((TamperedError, SealError)):
                    Sealed(sealed, key)
            else:
                with pytest.warns(LeftoverWarning, match="rewrap` clears it"):
                    Sealed(sealed, key).close()
                assert inspect(sealed).leftover
                with pytest.raises(TamperedError):
                    Sealed(sealed, other_key)
            file.mend(bit)
    read_all(sealed, key)


def test_flips_in_the_header(sealed, key, other_key):
    preamble = Preamble.unpack(sealed.read_bytes())
    header_flips(
        sealed,
        key,
        other_key,
        [*range(8 * PREAMBLE_BYTES), *random.Random(1).sample(range(8 * preamble.head_bytes), 1_500)],
    )


def each_flip(data: bytearray, bits: Iterable[int]) -> Iterator[int]:
    """Flip one bit of ``data`` in place, and put it back before the next."""
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        yield bit
        data[bit // 8] ^= 1 << bit % 8


def the_slots(sealed) -> tuple[Preamble, bytearray, bytearray]:
    content = sealed.read_bytes()
    preamble = Preamble.unpack(content)
    first, second, end = (PREAMBLE_BYTES + number * preamble.slot_bytes for number in range(3))
    return preamble, bytearray(content[first:second]), bytearray(content[second:end])


def test_every_flip_in_the_slots(sealed):
    """Each of 262,144 bits, through the parser: the used slot is refused, the idle one stays idle."""
    preamble, used, idle = the_slots(sealed)
    every = range(8 * preamble.slot_bytes)
    assert all(envelope.unpack_slot(used) is None for _ in each_flip(used, every))
    assert all(envelope.unpack_slot(idle) is None for _ in each_flip(idle, every))
    found = envelope.active([used, idle])
    assert found[0] == 0
    some = random.Random(3).sample(every, 2_000)
    assert all(envelope.active([used, idle]) == found for _ in each_flip(idle, some))
    for _ in each_flip(used, some):
        with pytest.raises(MalformedError):
            envelope.active([used, idle])


def test_every_flip_behind_a_checksum_that_was_made_to_fit(sealed, key, auditor):
    """The checksum finds crashes; against somebody who computes it anew stand the MACs, one for each role."""
    preamble, used, _ = the_slots(sealed)
    sealed_bytes = len(used) - 32
    packed = len(bytes(used[: sealed_bytes - 64]).rstrip(b"\0"))
    resume, audit = (
        range(8 * (sealed_bytes - 64), 8 * (sealed_bytes - 32)),
        range(8 * (sealed_bytes - 32), 8 * sealed_bytes),
    )
    padding = range(8 * packed, resume.start, 131)
    outcomes: dict[tuple[bool, bool], list[int]] = {}
    for bit in each_flip(used, [*range(8 * packed), *padding, *resume, *audit]):
        used[-32:] = hashlib.sha256(used[:-32]).digest()
        try:
            _, slot = envelope.active([used])
            opened = tuple(slot.opened_by(each, preamble) is not None for each in (key, auditor))
        except MalformedError:
            opened = (False, False)
        outcomes.setdefault(opened, []).append(bit)
    assert (True, False) not in outcomes  # who may resume has both keys and checks both MACs
    assert outcomes.pop((False, True)) == [*resume]
    assert list(outcomes) == [(False, False)]


def test_two_thousand_flips_in_the_payload(sealed, key):
    content = sealed.read_bytes()
    begin = 8 * Preamble.unpack(content).head_bytes
    flips = random.Random(2).sample(range(begin, 8 * len(content)), 2_000)
    target = sealed.with_name("out")
    with Flips(sealed) as file:
        for number, bit in enumerate(flips):
            file.flip(bit)
            with pytest.raises(TamperedError, match="nothing was released"):
                read_all(sealed, key)
            if number % 100 == 0:
                with pytest.raises(TamperedError):
                    open_into(sealed, target, key=key)
                assert [path.name for path in sealed.parent.iterdir()] == ["sealed"]
            file.mend(bit)
    read_all(sealed, key)


@pytest.mark.slow
def test_segments_of_the_real_size_do_not_change_places(tmp_path, key):
    """Three segments of 64 MiB: each pair swapped, one repeated, one dropped."""
    from privguard.checkpoint.content.payload import SEGMENT, message_size

    with (tmp_path / "content").open("wb") as file:
        file.truncate(3 * SEGMENT)
    seal(tmp_path / "content", tmp_path / "sealed", to=key)
    content = (tmp_path / "sealed").read_bytes()
    start, size = Preamble.unpack(content).head_bytes, message_size(SEGMENT)
    first, second, third = (content[start + n * size : start + (n + 1) * size] for n in range(3))
    head, tail = content[:start], content[start + 3 * size :]
    read_all(tmp_path / "sealed", key)
    for order in (
        (second, first, third),
        (first, third, second),
        (third, second, first),
        (first, first, third),
        (first, second),
    ):
        (tmp_path / "sealed").write_bytes(head + b"".join(order) + tail)
        with pytest.raises(TamperedError):
            read_all(tmp_path / "sealed", key)
