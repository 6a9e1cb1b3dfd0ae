# SPDX-License-Identifier: Apache-2.0
"""Keys: what opens what, what prints, and what a file of a key looks like."""

import pickle
import stat

import pytest

from privguard.checkpoint import Key, Recipient
from privguard.checkpoint.keys.key import Kind, recipients
from privguard.checkpoint.keys.stanza import Role, unpack, unwrap, wrap
from privguard.errors import NoRecipientError, SealError

FILE, SECRET = bytes(range(16)), bytes(range(100, 132))
MAKERS = [Key.generate, Key.generate_x25519, Key.generate_symmetric]


class Vault:
    """A key service in this process: the reference for the protocol."""

    def __init__(self, name: str = "vault/1") -> None:
        self.name = name
        self._wrapped: dict[bytes, tuple[bytes, bytes]] = {}

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        blob = len(self._wrapped).to_bytes(4, "big")
        self._wrapped[blob] = (secret, context)
        return blob

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        secret, expected = self._wrapped[blob]
        if context != expected:
            raise ValueError("context")
        return secret


@pytest.fixture(
    params=[*MAKERS, lambda: Key.from_passphrase("five random words are enough"), lambda: Key.from_service(Vault())],
    ids=[kind.label for kind in (Kind.X25519_MLKEM768, Kind.X25519, Kind.SYMMETRIC, Kind.PASSPHRASE, Kind.SERVICE)],
)
def any_key(request) -> Key:
    return request.param()


def test_what_is_wrapped_for_a_key_opens_with_it_alone(any_key):
    stanza = wrap(SECRET, any_key.recipient(), role=Role.RESUME, file_id=FILE)
    again, rest = unpack(stanza.pack())
    assert again == stanza
    assert not rest
    assert unwrap(stanza, any_key, file_id=FILE) == SECRET
    for stranger in (Key.generate(), Key.generate_x25519(), Key.generate_symmetric(), Key.from_passphrase("another")):
        assert unwrap(stanza, stranger, file_id=FILE) is None


def test_a_stanza_belongs_to_one_file_and_one_role(any_key):
    stanza = wrap(SECRET, any_key.recipient(), role=Role.AUDIT, file_id=FILE)
    assert unwrap(stanza, any_key, file_id=bytes(16)) is None
    relabelled = type(stanza)(stanza.kind, Role.RESUME, stanza.key_id, stanza.body)
    assert unwrap(relabelled, any_key, file_id=FILE) is None


def test_every_flipped_bit_of_a_stanza_body_is_noticed():
    for maker in MAKERS:
        key = maker()
        stanza = wrap(SECRET, key.recipient(), role=Role.RESUME, file_id=FILE)
        step = 1 if len(stanza.body) < 200 else 37
        for bit in range(0, 8 * len(stanza.body), step):
            body = bytearray(stanza.body)
            body[bit // 8] ^= 1 << bit % 8
            assert unwrap(type(stanza)(stanza.kind, stanza.role, stanza.key_id, bytes(body)), key, file_id=FILE) is None


@pytest.mark.parametrize("maker", MAKERS)
def test_a_key_file_gives_the_key_back_and_is_for_its_owner_alone(maker, tmp_path):
    key = maker()
    key.write(tmp_path / "team.key")
    assert stat.S_IMODE((tmp_path / "team.key").stat().st_mode) == 0o600
    assert Key.read(tmp_path / "team.key").id == key.id
    stanza = wrap(SECRET, Recipient.read(tmp_path / "team.key"), role=Role.RESUME, file_id=FILE)
    assert unwrap(stanza, Key.read(tmp_path / "team.key"), file_id=FILE) == SECRET
    with pytest.raises(FileExistsError):
        key.write(tmp_path / "team.key")


@pytest.mark.parametrize("maker", MAKERS[:2])
def test_a_recipient_file_can_be_sealed_to_and_opens_nothing(maker, tmp_path):
    key = maker()
    key.recipient().write(tmp_path / "team.pub")
    stanza = wrap(SECRET, Recipient.read(tmp_path / "team.pub"), role=Role.RESUME, file_id=FILE)
    assert unwrap(stanza, key, file_id=FILE) == SECRET
    with pytest.raises(SealError, match="opens nothing"):
        Key.read(tmp_path / "team.pub")


def test_a_symmetric_key_has_no_public_half():
    with pytest.raises(SealError, match="no public half"):
        Key.generate_symmetric().recipient().text()


def test_a_changed_character_in_a_key_file_is_noticed(tmp_path):
    path = tmp_path / "team.key"
    key, noticed = Key.generate(), 0
    key.write(path)
    text = path.read_text()
    for at in range(text.index("privguard-key"), len(text) - 1, 5):
        path.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
        try:
            assert (
                Key.read(path).id == key.id
            )  # RFC 7748 ignores five bits of an X25519 secret: the key is the same one
        except SealError:
            noticed += 1
    assert noticed > 30


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"privguard-key-1 passphrase " + b"0" * 32 + b" AAAA", b"x" * 9999]
)
def test_what_is_no_key_file_is_refused(content, tmp_path):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SealError, match="expected"):
        Key.read(tmp_path / "key")


def test_secrets_do_not_print_and_do_not_pickle(any_key):
    material = any_key._material
    for shown in (repr(any_key), str(any_key), repr(any_key.recipient())):
        assert str(material) not in shown
        assert not isinstance(material, bytes) or material.hex()[:16] not in shown
    for each in (any_key, any_key.recipient()):
        with pytest.raises(TypeError, match="not picklable"):
            pickle.dumps(each)


def test_raw_bytes_are_refused_at_the_front_door():
    with pytest.raises(TypeError, match=r"privguard\.checkpoint\.keys\.unsafe"):
        Key(b"0" * 32)
    with pytest.raises(ValueError, match="at least one character"):
        Key.from_passphrase("")


def test_the_unsafe_door_moves_keys_in_and_out():
    from privguard.checkpoint.keys import unsafe

    for maker in MAKERS:
        key = maker()
        assert unsafe.key_of(key.kind, unsafe.raw_bytes(key)).id == key.id
    with pytest.raises(ValueError, match="32 bytes"):
        unsafe.symmetric_key(b"short")


def test_sealing_for_nobody_is_refused():
    with pytest.raises(NoRecipientError):
        recipients([])


def test_passphrase_costs_out_of_bounds_are_refused_before_they_are_paid():
    key = Key.from_passphrase("words")
    stanza = wrap(SECRET, key.recipient(), role=Role.RESUME, file_id=FILE)
    for at, value in ((0, 1 << 30), (0, 0), (4, 0), (4, 1 << 20), (8, 0), (8, 255)):
        body = stanza.body[:at] + value.to_bytes(4, "big") + stanza.body[at + 4 :]
        assert unwrap(type(stanza)(stanza.kind, stanza.role, stanza.key_id, body), key, file_id=FILE) is None
