# SPDX-License-Identifier: Apache-2.0
"""The few forms of DER (X.690) that a timestamp answer is made of: each function gives one encoded value."""

from collections.abc import Sequence
from datetime import datetime


def sequence(*items: bytes) -> bytes:
    """SEQUENCE of encoded values."""
    return _tagged(0x30, b"".join(items))


def set_of(items: Sequence[bytes]) -> bytes:
    """SET OF encoded values, which DER sorts by their encoding (X.690, 11.6)."""
    return _tagged(0x31, b"".join(sorted(items)))


def implicit(encoded: bytes) -> bytes:
    """An encoded value under the tag [0] IMPLICIT, in the place of its own tag."""
    return b"\xa0" + encoded[1:]


def explicit(encoded: bytes) -> bytes:
    """An encoded value inside the tag [0] EXPLICIT."""
    return _tagged(0xA0, encoded)


def octets(data: bytes) -> bytes:
    """OCTET STRING."""
    return _tagged(0x04, data)


def integer(value: int) -> bytes:
    """INTEGER, 0 or above; a leading zero byte keeps the sign bit clear."""
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def time(moment: datetime) -> bytes:
    """GeneralizedTime of a moment in UTC, in whole seconds."""
    return _tagged(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from its dotted form."""
    first, second, *parts = (int(part) for part in dotted.split("."))
    return _tagged(0x06, bytes([40 * first + second]) + b"".join(_base128(part) for part in parts))


def attribute(kind: str, value: bytes) -> bytes:
    """A CMS attribute with one value (RFC 5652, 5.3)."""
    return sequence(oid(kind), set_of([value]))


def _tagged(tag: int, body: bytes) -> bytes:
    if len(body) < 0x80:  # noqa: PLR2004 — the short form of a length ends here
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def _base128(value: int) -> bytes:
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(0x80 | value & 0x7F)
    return bytes(reversed(digits))
