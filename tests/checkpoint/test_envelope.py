# SPDX-License-Identifier: Apache-2.0
"""The head of a sealed file, field by field: who may open, what the MACs cover, and which slot counts."""

import hashlib
import hmac
import struct
from dataclasses import fields, replace

import pytest

from privguard.checkpoint import envelope
from privguard.checkpoint.content.payload import MalformedError
from privguard.checkpoint.envelope import Form, Preamble, Secrets, Slot, active, pack_slot, slot_bytes_for, unpack_slot
from privguard.checkpoint.keys.key import Key, Kind
from privguard.checkpoint.keys.stanza import Role, Stanza
from privguard.errors import SealError

KEY, AUDITOR, STRANGER = Key.generate_symmetric(), Key.generate_symmetric(), Key.generate_symmetric()
FIELDS = {
    "form": Form.FILE,
    "slot_bytes": 16 << 10,
    "file_id": bytes(range(16)),
    "data_bytes": 11,
    "index_bytes": 22,
    "ledger_bytes": 33,
    "manifest_bytes": 44,
    "ledger_digest": b"l" * 32,
    "manifest_digest": b"m" * 32,
}
PREAMBLE = Preamble(**FIELDS)
SECRETS = Secrets(Role.RESUME, PREAMBLE.file_id, b"k" * 32)
STANZAS = envelope.wrap(SECRETS, [KEY.recipient()], [AUDITOR.recipient()])


def packed(sequence=5, stanzas=STANZAS, preamble=PREAMBLE):
    return pack_slot(preamble, SECRETS, stanzas, sequence=sequence)


def resealed(body, *, secrets=SECRETS):
    """A slot around any body, with MACs and checksum that hold: what somebody who may resume can write."""
    head = PREAMBLE.pack()
    sealed = body + secrets.mac(head, body) + secrets.audit().mac(head, body)
    return sealed + hashlib.sha256(sealed).digest()


def body_of(stanzas, *, sequence=1, padding=b"\0"):
    content = struct.pack(">QH", sequence, len(stanzas)) + b"".join(stanza.pack() for stanza in stanzas)
    return content.ljust(PREAMBLE.slot_bytes - 96, padding)


def test_a_preamble_is_the_specifications_bytes_and_comes_back():
    expected = b"privguard sealed" + struct.pack(">HHI", 1, 1, 16 << 10) + bytes(range(16))
    expected += struct.pack(">QQQQ", 11, 22, 33, 44) + b"l" * 32 + b"m" * 32
    assert PREAMBLE.pack() == expected
    assert len(expected) == envelope.PREAMBLE_BYTES == 136
    assert Preamble.unpack(expected + b"whatever follows") == PREAMBLE
    assert PREAMBLE.digest() == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("field", [field.name for field in fields(Preamble)])
def test_each_field_of_the_preamble_is_under_both_macs(field):
    """The MACs are made over what was packed, so a field that is not packed would be free to move."""
    value = FIELDS[field]
    other = Form.FOLDER if field == "form" else value * 2 if isinstance(value, int) else value[::-1] + b"x"
    changed = replace(PREAMBLE, **{field: other[: len(value)] if isinstance(value, bytes) else other})
    if isinstance(value, bytes) and len(set(value)) == 1:
        changed = replace(PREAMBLE, **{field: b"y" * len(value)})
    slot = unpack_slot(packed())
    assert slot.opened_by(KEY, PREAMBLE) == SECRETS
    assert slot.opened_by(AUDITOR, PREAMBLE) == SECRETS.audit()
    assert slot.opened_by(KEY, changed) is None
    assert slot.opened_by(AUDITOR, changed) is None


def test_a_file_has_two_slots_and_a_folder_one():
    folder = replace(PREAMBLE, form=Form.FOLDER)
    assert (PREAMBLE.slots, PREAMBLE.head_bytes) == (2, 136 + 2 * (16 << 10))
    assert (folder.slots, folder.head_bytes) == (1, 136 + (16 << 10))


@pytest.mark.parametrize("data", [b"", PREAMBLE.pack()[:-1], b"P" + PREAMBLE.pack()[1:]])
def test_what_is_no_preamble_is_malformed(data):
    with pytest.raises(MalformedError, match=r"^no preamble$"):
        Preamble.unpack(data)


def test_another_version_is_named_and_not_called_damaged():
    data = bytearray(PREAMBLE.pack())
    data[16:18] = struct.pack(">H", 2)
    with pytest.raises(SealError, match=r"^version=2: expected 1, which this privguard reads; upgrade to open this"):
        Preamble.unpack(bytes(data))


@pytest.mark.parametrize("size", [16 << 10, 32 << 10, 1 << 20])
def test_slot_sizes_between_the_limits_are_read(size):
    assert Preamble.unpack(replace(PREAMBLE, slot_bytes=size).pack()).slot_bytes == size


@pytest.mark.parametrize("size", [0, 8 << 10, (16 << 10) - 1, (16 << 10) + 1, 24 << 10, 2 << 20, (1 << 20) + 1])
def test_slot_sizes_that_are_no_power_of_two_or_outside_the_limits_are_malformed(size):
    with pytest.raises(MalformedError, match=r"^form or slot size$"):
        Preamble.unpack(replace(PREAMBLE, slot_bytes=size).pack())


def test_an_unknown_form_is_malformed():
    data = bytearray(PREAMBLE.pack())
    data[18:20] = struct.pack(">H", 3)
    with pytest.raises(MalformedError, match=r"^form or slot size$"):
        Preamble.unpack(bytes(data))


def expanded(root, label, length=32):
    """HKDF-Expand of RFC 5869 for one block, by the standard library."""
    info = b"privguard/v1 " + label + b"\0" + PREAMBLE.file_id
    return hmac.digest(root, info + b"\x01", hashlib.sha512)[:length]


def test_keys_are_derived_as_specified_and_the_auditors_one_way():
    assert SECRETS.derive("data") == expanded(SECRETS.root, b"data")
    auditor = SECRETS.audit()
    assert auditor == Secrets(Role.AUDIT, PREAMBLE.file_id, expanded(SECRETS.root, b"audit"))
    assert auditor.audit() is auditor
    mac = hmac.digest(expanded(SECRETS.root, b"mac"), b"head" + b"body", hashlib.sha256)
    assert SECRETS.mac(b"head", b"body") == mac


def test_fresh_keys_are_whole_random_and_never_shown():
    first, second = Secrets.fresh(), Secrets.fresh()
    assert (first.role, len(first.file_id), len(first.root)) == (Role.RESUME, 16, 32)
    assert first.file_id != second.file_id
    assert first.root != second.root
    assert "root" not in repr(SECRETS)
    assert repr(SECRETS.root) not in repr(SECRETS)


def test_a_key_opens_in_its_role_and_a_stranger_not_at_all():
    slot = unpack_slot(packed())
    assert slot.opened_by(KEY, PREAMBLE) == SECRETS
    assert slot.opened_by(AUDITOR, PREAMBLE) == SECRETS.audit()
    assert slot.opened_by(STRANGER, PREAMBLE) is None
    assert slot.names(Role.RESUME) == (f"symmetric {KEY.recipient().id}",)
    assert slot.names(Role.AUDIT) == (f"symmetric {AUDITOR.recipient().id}",)


def test_a_key_with_both_roles_resumes_in_whatever_order_its_stanzas_stand():
    stanzas = envelope.wrap(SECRETS, [KEY.recipient()], [KEY.recipient()])
    for order in (stanzas, stanzas[::-1]):
        assert unpack_slot(packed(stanzas=order)).opened_by(KEY, PREAMBLE) == SECRETS


def test_a_recipient_named_twice_has_one_stanza_for_each_role():
    stanzas = envelope.wrap(SECRETS, [KEY.recipient(), KEY.recipient()], [KEY.recipient(), AUDITOR.recipient()])
    resume, audit = KEY.recipient().id, AUDITOR.recipient().id
    assert [(each.role, each.key_id.hex()) for each in stanzas] == [
        (Role.RESUME, resume),
        (Role.AUDIT, resume),
        (Role.AUDIT, audit),
    ]


@pytest.mark.parametrize("role", list(Role))
def test_each_mac_is_checked_by_whoever_holds_its_key(role):
    """An auditor can make the auditors' MAC and no other: with a wrong MAC for resume only auditors open."""
    slot = unpack_slot(packed())
    macs = slot.macs | {role: bytes(32)}
    forged = Slot(slot.sequence, slot.stanzas, slot.body, macs)
    assert forged.opened_by(KEY, PREAMBLE) is None
    assert forged.opened_by(AUDITOR, PREAMBLE) == (None if role is Role.AUDIT else SECRETS.audit())
    assert slot.macs[Role.RESUME] == SECRETS.mac(PREAMBLE.pack(), slot.body)
    assert slot.macs[Role.AUDIT] == SECRETS.audit().mac(PREAMBLE.pack(), slot.body)


def test_a_slot_is_laid_down_as_specified():
    assert packed(sequence=7) == resealed(body_of(STANZAS, sequence=7))
    assert len(packed()) == PREAMBLE.slot_bytes
    slot = unpack_slot(packed(sequence=7))
    assert (slot.sequence, slot.stanzas) == (7, tuple(STANZAS))


def wide(count, bytes_each):
    return [Stanza(Kind.SYMMETRIC, Role.RESUME, bytes([at]) * 16, bytes(bytes_each)) for at in range(count)]


def test_a_slot_is_filled_to_its_last_byte_and_no_further():
    room = PREAMBLE.slot_bytes - 96
    fits = room - 10 - 24
    assert unpack_slot(packed(stanzas=wide(1, fits))).stanzas == tuple(wide(1, fits))
    message = (
        f"recipients=1: expected at most {room} bytes of them in this file's head, and they take {room + 1}; "
        "remove some, or seal the content again for all of them"
    )
    with pytest.raises(SealError) as error:
        packed(stanzas=wide(1, fits + 1))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("stanza_bytes", "expected"),
    [(0, 16 << 10), ((8 << 10) - 53 - 24, 16 << 10), ((8 << 10) - 53 - 23, 32 << 10), (3 * (16 << 10), 128 << 10)],
)
def test_a_slot_has_room_for_as_many_stanzas_again(stanza_bytes, expected):
    """106 bytes beside the stanzas: 10 of sequence and count, three times 32 of MACs and checksum."""
    assert slot_bytes_for(wide(1, stanza_bytes)) == expected


def test_a_second_passphrase_is_refused_when_written_and_malformed_when_read():
    passphrase = Stanza(Kind.PASSPHRASE, Role.RESUME, bytes(16), b"a")
    second = replace(passphrase, role=Role.AUDIT)
    assert unpack_slot(packed(stanzas=[passphrase])).stanzas == (passphrase,)
    with pytest.raises(SealError) as error:
        packed(stanzas=[passphrase, second])
    wanted = "recipients: expected at most one passphrase, so that opening tries one derivation; remove one"
    assert str(error.value) == wanted
    with pytest.raises(MalformedError, match=r"^padding, sequence, a key named twice or a second passphrase$"):
        unpack_slot(resealed(body_of([passphrase, second])))


@pytest.mark.parametrize(
    "body",
    [
        body_of(STANZAS, sequence=0),
        body_of(STANZAS, padding=b"X"),
        body_of(STANZAS)[:-1] + b"\1",
        body_of([STANZAS[0], STANZAS[0]]),
    ],
    ids=["no sequence", "padding", "last byte", "key twice"],
)
def test_a_slot_with_a_true_checksum_and_wrong_content_is_malformed(body):
    with pytest.raises(MalformedError, match=r"^padding, sequence, a key named twice or a second passphrase$"):
        unpack_slot(resealed(body))


def test_stanzas_that_end_outside_are_malformed_and_say_so():
    body = bytearray(body_of([]))
    body[8:10] = struct.pack(">H", 1)
    body[10:34] = struct.pack(">HH16sI", Kind.SYMMETRIC, Role.RESUME, bytes(16), 1 << 30)
    with pytest.raises(MalformedError, match=r"^stanza cut short$"):
        unpack_slot(resealed(bytes(body)))


@pytest.mark.parametrize("at", [0, 9, 200, -97, -96, -64, -33, -32, -1])
def test_a_torn_slot_counts_as_none(at):
    data = bytearray(packed())
    data[at] ^= 1
    assert unpack_slot(bytes(data)) is None


def test_the_newest_whole_slot_counts():
    old, new, torn = packed(4), packed(9), bytes(PREAMBLE.slot_bytes)
    assert active([old, new]) == (1, unpack_slot(new))
    assert active([new, old]) == (0, unpack_slot(new))
    assert active([torn, old]) == (1, unpack_slot(old))
    assert active([old]) == (0, unpack_slot(old))


@pytest.mark.parametrize("slots", [[], [bytes(200)], [bytes(200), bytes(200)], [packed(4), packed(4)]])
def test_no_whole_slot_or_two_newest_is_malformed(slots):
    with pytest.raises(MalformedError, match=r"^no slot$"):
        active(slots)
