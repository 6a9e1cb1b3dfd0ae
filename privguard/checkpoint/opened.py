# SPDX-License-Identifier: Apache-2.0
"""Opening a sealed file or folder: the head first, then only what is asked for."""

import contextlib
import errno
import itertools
import json
import os
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from cryptography.exceptions import InvalidTag

from privguard import _os
from privguard.attest import journal
from privguard.attest.statement import Envelope, Identity, verify
from privguard.checkpoint import archive, envelope
from privguard.checkpoint.archive import HEAD, SMALL, Advance, Places
from privguard.checkpoint.content.payload import MalformedError, Place, Reader, one_failure, plain_size, sealed_size
from privguard.checkpoint.durable import Directory
from privguard.checkpoint.envelope import MAGIC, PREAMBLE_BYTES, Form, Preamble
from privguard.checkpoint.keys.key import Key
from privguard.checkpoint.keys.stanza import Role
from privguard.errors import PlainCheckpointError, SealError, TamperedError, UnrecognisedError

if TYPE_CHECKING:
    from torch import Tensor

    from privguard.checkpoint.content.tensors import TensorFile

_HELD = 256  # descriptors that one opened folder keeps; parts beyond them are opened for each read
_PATIENCE, _MOMENT = 100, 0.02  # how often, and after how many seconds, to look again beside a busy writer
_PLAIN_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip (torch.save) and pickle


class LeftoverWarning(UserWarning):
    """A sealed file whose content is whole, with something in the part of its head that does not count."""


@final
class Head:
    """What can be known of a sealed file without any key: its preamble, and the slot that counts.

    ``at`` is the place of that slot among ``slots``, ``size`` the bytes of the file.
    """

    def __init__(self, preamble: Preamble, slots: list[bytes], size: int) -> None:
        self.preamble = preamble
        self.size = size
        self.slots = slots
        self.at, self.slot = envelope.active(slots)

    @property
    def leftover(self) -> bool:
        """Whether the slot that does not count holds anything: a re-wrap cut short, or bytes of somebody's."""
        return any(any(slot) for at, slot in enumerate(self.slots) if at != self.at)

    @classmethod
    def read(cls, descriptor: int) -> "Head":
        """Read preamble and slots; a file that is longer or shorter than its preamble says is malformed.

        Args:
            descriptor: an open file descriptor.
        """
        preamble = Preamble.unpack(_os.read_all_at(descriptor, PREAMBLE_BYTES, 0))
        data = _os.read_all_at(descriptor, preamble.head_bytes, 0)
        cuts = [PREAMBLE_BYTES + number * preamble.slot_bytes for number in range(preamble.slots + 1)]
        if len(data) < cuts[-1]:
            raise MalformedError("the head is cut short")
        size = os.fstat(descriptor).st_size
        small = preamble.index_bytes + preamble.ledger_bytes + preamble.manifest_bytes
        wanted = preamble.head_bytes + (preamble.data_bytes + small if preamble.form is Form.FILE else 0)
        if size != wanted:
            raise MalformedError("size")
        return cls(preamble, [data[start:stop] for start, stop in itertools.pairwise(cuts)], size)


@final
class Sealed:
    """An opened file: manifest and ledger for who may audit, the members too for who may resume.

    Use it as a context manager. Nothing is handed out before its tags were checked; every way in which a file can be
    other than it was written ends in ``TamperedError`` with the same words.
    """

    def __init__(self, path: str | os.PathLike[str], key: Key) -> None:
        """Open ``path``, a file or a folder, and unlock it with ``key``.

        Raises:
            TamperedError: the key opens nothing here, or the file is not what was written.
            PlainCheckpointError: the file holds a checkpoint in clear.
            SealError: a later version of privguard wrote it.
        """
        self.path = Path(path)
        self._descriptors: list[int] = []
        self._folder: Directory | None = None
        self._tensors: TensorFile | None = None
        try:
            with journal.acting("open", self.path) as act, one_failure(self.path):
                self._open_settled(key)
                act.role, act.sha256 = self.role.name.lower(), self.preamble.digest()
        except BaseException:
            self.close()
            raise
        if self.leftover:
            warnings.warn(leftover_text(self.path), LeftoverWarning, stacklevel=3)

    def _open_settled(self, key: Key) -> None:
        """Open what is there now: who saves or re-wraps beside this can replace the head while it is read."""
        for _ in range(_PATIENCE):
            head = None
            try:
                head = self._read_head()
                self._open(head, key)
            except (InvalidTag, MalformedError, FileNotFoundError):
                if head is None or not self._head_moved(head):
                    raise
                self.close()
            else:
                self.leftover = head.leftover and left_over(self.path)
                return
        raise SealError(f"{self.path}: is replaced faster than it can be read; open it when fewer processes write it")

    def _read_head(self) -> Head:
        if self.path.is_dir():
            self._folder = Directory(self.path)
        descriptor = self._descriptor(head_path(self.path))
        refuse_other(descriptor, self.path)
        try:
            return Head.read(descriptor)
        except MalformedError:  # a re-wrap may have been seen half way; what is damaged stays so
            wait_for_writer(self.path)
            return Head.read(descriptor)

    def _head_moved(self, head: Head) -> bool:
        """Whether the head is another one than that which was read."""
        try:
            now = head_of(self.path)
        except TamperedError:
            return False
        return (now.preamble, now.slots) != (head.preamble, head.slots)

    def _open(self, head: Head, key: Key) -> None:
        if (head.preamble.form is Form.FOLDER) is not (self._folder is not None):
            raise MalformedError("form")
        secrets = head.slot.opened_by(key, head.preamble)
        if secrets is None:
            raise InvalidTag
        self.preamble, self.slot, self._secrets = head.preamble, head.slot, secrets
        self._places: Places = archive.places_in_file(self.path, self._descriptors[-1], head.preamble, [])
        if head.preamble.form is Form.FOLDER:
            self._places = {name: self._part(name, self._places[name].size) for name in SMALL}
        for name, wanted in (("ledger", head.preamble.ledger_digest), ("manifest", head.preamble.manifest_digest)):
            if archive.digest(self._places[name]) != wanted:
                raise InvalidTag
        self.manifest: dict[str, Any] = _json_object(self._small("manifest"))
        self._members = self._index() if self.role is Role.RESUME else {}

    @property
    def role(self) -> Role:
        """What the key may do here."""
        return self._secrets.role

    @property
    def ledger(self) -> bytes:
        """The ledger's lines as they were when the file was sealed."""
        return bytes(self._small("ledger"))

    def signer(self) -> Identity | None:
        """Who signed this file, or None; a signature says who sealed it and not whether they may be believed.

        Raises:
            TamperedError: the signature does not hold, or belongs to another file.
        """
        manifest = dict(self.manifest)
        signature = manifest.pop("signature", None)
        if signature is None:
            return None
        try:
            signer = Identity.from_json(manifest["signer"])
        except (KeyError, TypeError, ValueError):
            raise TamperedError(f"{self.path}: carries a signature without a signer") from None
        said = verify(Envelope.from_json(signature), by=signer)
        if said.to_json() != archive.statement(self._secrets, manifest).to_json():
            raise TamperedError(f"{self.path}: carries the signature of another file")
        return signer

    def verify_signer(self, *expected: Identity | str) -> None:
        """Return when one of ``expected`` sealed this file; anybody can seal to a public key, so resume from no others.

        Each is an identity or its key id, 64 hexadecimal characters.

        Raises:
            TamperedError: it is not signed, or by somebody else, or what is signed is another file.
        """
        wanted = [one if isinstance(one, str) else one.key_id for one in expected]
        signer = self.signer()
        if signer is None:
            raise TamperedError(
                f"{self.path}: is not signed, and anybody who knows a recipient could have sealed it; expected "
                f"{_signers(wanted)}. Where you know whose it is, load it by itself and save it again with your signer"
            )
        if signer.key_id not in wanted:
            raise TamperedError(
                f"{self.path}: is signed by {signer.key_id}; expected {_signers(wanted)}. Where you know this signer "
                "as the run's own, pass trust=Trust(sealed_by=...) with that name or the signer's public file"
            )

    def names(self) -> list[str]:
        """The members' names, in the order they were written; refused to an auditor."""
        self._for_resume()
        return list(self._members)

    def size(self, name: str) -> int:
        """Bytes of plaintext of a member.

        Args:
            name: the member's name.
        """
        self._for_resume()
        return self._members[name][1]

    def read(self, name: str) -> bytearray:
        """A whole member.

        Args:
            name: the member's name.
        """
        into = bytearray(self.size(name))
        self.read_into(name, memoryview(into))
        return into

    def read_into(self, name: str, into: memoryview, *, advance: Advance | None = None) -> None:
        """Decrypt a whole member into ``into``; when this raises, what is in there is worthless.

        Args:
            name: the member's name.
            into: memory of the member's size.
            advance: called with each number of bytes done; None for nobody.
        """
        self._for_resume()
        number, _ = self._members[name]
        archive.member(self._secrets, number).open(self._place(number), into, advance=advance)

    def decrypt(self, name: str, descriptor: int, *, advance: Advance | None = None) -> None:
        """Decrypt a whole member into an open file; when this raises, what is in there is worthless.

        Args:
            name: the member's name.
            descriptor: an open file descriptor.
            advance: called with each number of bytes done; None for nobody.
        """
        self._for_resume()
        number, size = self._members[name]
        archive.member(self._secrets, number).open_file(self._place(number), descriptor, size, advance=advance)

    def check(self, name: str) -> None:
        """Return when every byte of a member was authenticated; nothing is kept of it.

        Args:
            name: the member's name.
        """
        self._for_resume()
        number, size = self._members[name]
        archive.member(self._secrets, number).check(self._place(number), size)

    def reader(self, name: str) -> Reader:
        """Random access to a member.

        Args:
            name: the member's name.
        """
        self._for_resume()
        number, size = self._members[name]
        return archive.member(self._secrets, number).reader(self._place(number), size)

    def tensors(self) -> "TensorFile":
        """The tensors of the ``*.safetensors`` members by name, each read when it is asked for.

        In a snapshot these are the weights; the optimizer's tensors come with ``privguard.checkpoint.load`` only.
        In a model's folder they are what transformers loads without a ``variant``: the members that
        ``model.safetensors.index.json`` names where there is one, else ``model.safetensors``.

        Raises:
            SealError: several members hold a tensor of one name, and nothing says which of them counts.
        """
        from privguard.checkpoint.content import model_files
        from privguard.checkpoint.content.tensors import TensorFile

        readers = {name: self.reader(name) for name in model_files.tensor_members(self)}
        files = {name: TensorFile(reader) for name, reader in readers.items()}
        model_files.require_one_home(self.path, files)
        return TensorFile(*readers.values())

    def __getitem__(self, name: str) -> "Tensor":
        if self._tensors is None:
            self._tensors = self.tensors()
        return self._tensors[name]

    def close(self) -> None:
        """Close the files behind this."""
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._folder is not None:
            with self._folder:
                self._folder = None

    def __enter__(self) -> "Sealed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Sealed({str(self.path)!r}, {self.role.name.lower()})"

    def _for_resume(self) -> None:
        if self.role is not Role.RESUME:
            raise SealError(
                f"{self.path}: this key may audit (ledger and manifest), not resume; ask a recipient to re-wrap"
            )

    def _descriptor(self, path: Path) -> int:
        descriptor = _os.open_regular(path)
        self._descriptors.append(descriptor)
        return descriptor

    def _part(self, name: int | str, size: int) -> Place:
        """A part of a folder, of the size that the head or the index says, before anything is read or allocated."""
        folder, file = self._folder or Directory(self.path), archive.part_name(self.preamble, name)
        try:
            descriptor = folder.open(file)
        except FileNotFoundError:
            raise MalformedError("a part is missing") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EINVAL, errno.EISDIR):
                raise MalformedError("a part is a link or no file") from None
            raise
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            raise MalformedError("size of a part")
        if len(self._descriptors) < _HELD:
            self._descriptors.append(descriptor)
            return Place(self.path, descriptor, 0, size)
        os.close(descriptor)
        return Place(self.path, -1, 0, size, partial(_open_again, folder, file))

    def _place(self, number: int) -> Place:
        return self._places[number]

    def _small(self, name: str) -> bytearray:
        place = self._places[name]
        with one_failure(self.path):
            into = bytearray(plain_size(place.size))
            archive.small_part(self._secrets, name).open(place, memoryview(into))
        return into

    def _index(self) -> dict[str, tuple[int, int]]:
        """Names and sizes of the members, each found in its place."""
        try:
            listed = [(str(one["name"]), int(one["size"])) for one in json.loads(self._small("index"))]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise MalformedError("index") from None
        sizes = [size for _, size in listed]
        if (
            min(sizes, default=0) < 0
            or sum(map(sealed_size, sizes)) != self.preamble.data_bytes
            or len(dict(listed)) != len(listed)
        ):
            raise MalformedError("index")
        if self.preamble.form is Form.FOLDER:
            self._places |= {number: self._part(number, sealed_size(size)) for number, size in enumerate(sizes)}
        else:
            descriptor = self._places["index"].descriptor
            self._places |= archive.places_in_file(self.path, descriptor, self.preamble, sizes)
        return {name: (number, size) for number, (name, size) in enumerate(listed)}


def _open_again(folder: Directory, name: str) -> int:
    try:
        return folder.open(name)
    except FileNotFoundError:
        raise SealError(f"{folder.path}: was saved anew or removed while it was read; open it again") from None


def left_over(path: Path) -> bool:
    """Whether something stays in the slot that does not count, once whoever re-wraps the file has ended.

    Args:
        path: the sealed file or folder.
    """
    wait_for_writer(path)
    return head_of(path).leftover


def wait_for_writer(path: Path) -> None:
    """Return when nobody re-wraps the file, after two seconds at the latest; at once where nobody did.

    Args:
        path: the sealed file or folder.
    """
    for _ in range(_PATIENCE):
        try:
            with _os.locked_path(path, flags=os.O_RDONLY, wait=False):
                return
        except BlockingIOError:
            time.sleep(_MOMENT)
        except OSError:
            return


def leftover_text(path: Path) -> str:
    """What to tell of a slot that holds something and does not count.

    Args:
        path: the sealed file or folder.
    """
    return (
        f"{path}: holds bytes in the slot of its head that does not count: a re-wrap was cut short, or somebody wrote "
        "there; the content is whole. Envelopes of removed recipients may be among them; `privguard rewrap` clears it"
    )


def _signers(key_ids: list[str]) -> str:
    return " or ".join(key_ids) or "the run's own signer, of which this user has no key"


def _json_object(text: bytearray) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise MalformedError("manifest") from None


def open_sealed(path: str | os.PathLike[str], key: Key) -> Sealed:
    """Open a sealed file or folder: ``open_sealed(path, key)["layer.weight"]`` reads that tensor and no other.

    Args:
        path: the sealed file or folder.
        key: what opens it.

    Raises:
        TamperedError: the key opens nothing here, or the file is not what was written.
        PlainCheckpointError: the file holds a checkpoint in clear.
    """
    return Sealed(path, key)


def head_of(path: Path) -> Head:
    """The head of a sealed file or folder; without a key nothing of it is authenticated.

    Args:
        path: the sealed file or folder.

    Raises:
        TamperedError: no sealed file of privguard, or a damaged one.
        PlainCheckpointError: a checkpoint in clear.
    """
    descriptor = _os.open_regular(head_path(path))
    try:
        refuse_other(descriptor, path)
        with contextlib.suppress(MalformedError):
            return Head.read(descriptor)
        wait_for_writer(path)  # a re-wrap may have been seen half way; what is damaged stays so
        return Head.read(descriptor)
    except MalformedError:
        raise TamperedError(f"{path}: the head of this sealed file is damaged or truncated") from None
    finally:
        os.close(descriptor)


def head_path(path: Path) -> Path:
    """The file with the head: the file itself, or ``privguard.seal`` in a folder.

    Args:
        path: the sealed file or folder.

    Raises:
        PlainCheckpointError: a folder without one.
    """
    if not path.is_dir():
        return path
    if not (path / HEAD).exists():
        raise PlainCheckpointError(
            f"{path}: expected a sealed folder and found one without {HEAD}; seal it with `privguard seal`"
        )
    return path / HEAD


def refuse_other(descriptor: int, path: Path) -> None:
    """Refuse a file that does not begin as a sealed one does.

    Args:
        descriptor: an open file descriptor.
        path: the sealed file or folder.

    Raises:
        PlainCheckpointError: a checkpoint in clear.
        UnrecognisedError: another file, or one whose first bytes were destroyed.
    """
    start = _os.read_all_at(descriptor, len(MAGIC), 0)
    if start.startswith(_PLAIN_STARTS) or start[8:9] == b"{":
        raise PlainCheckpointError(
            f"{path}: expected a sealed file and found one in clear (zip, pickle or safetensors); "
            "seal it with `privguard seal`, or pass allow_plain=True where you trust it"
        )
    if start != MAGIC:
        raise UnrecognisedError(
            f"{path}: does not begin as a sealed file does, so it is another file (or its first bytes were destroyed); "
            "name a sealed file or folder"
        )
