"""A notary on one machine: timestamp server, beacon, log and witness together, for tests and offline teams.

Everything runs through the same formats and checks as with outside authorities, and everything is labelled as local:
whoever holds this folder could have made up any order of events.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from privguard import _canon
from privguard.attest import merkle
from privguard.attest.local import LocalBeacon, TimestampServer
from privguard.attest.log import Entry, Extract, Log, Trusted, Witness
from privguard.attest.statement import SigningKey

ORIGIN = "local log"


@final
@dataclass(frozen=True, kw_only=True)
class LocalNotary:
    """All local authorities of one team. Its folder is private (mode 0600); what others need is its public side."""

    server: TimestampServer
    beacon: LocalBeacon
    log: Log
    witness: Witness
    operator: SigningKey
    trusted: Trusted

    @classmethod
    def generate(cls, *, bits: int = 3072) -> "LocalNotary":
        """Fresh keys and an empty log; ``bits`` is the size of the beacon's RSA key."""
        keys = (SigningKey.generate(), SigningKey.generate())
        return cls._build(TimestampServer.generate(), LocalBeacon.generate(bits=bits), keys, ())

    @classmethod
    def _build(
        cls,
        server: TimestampServer,
        beacon: LocalBeacon,
        keys: tuple[SigningKey, SigningKey],
        entries: tuple[Entry, ...],
    ) -> "LocalNotary":
        operator, second = keys
        log = Log(ORIGIN, operator, entries)
        root = merkle.root([entry.leaf() for entry in entries])
        witness = Witness(second, operator=operator.identity, size=len(entries), root=root)
        trusted = Trusted(
            origin=ORIGIN, operator=operator.identity, witnesses=(second.identity,), quorum=1, external=False
        )
        return cls(server=server, beacon=beacon, log=log, witness=witness, operator=operator, trusted=trusted)

    def record(self, entry: Entry, *, at: datetime | None = None) -> Extract:
        """Append one entry and return the whole log under a fresh witnessed head."""
        self.log.append(entry)
        return self.log.extract(self.witness, at=at)

    def pulse_after(self, moment: datetime) -> Mapping[str, Any]:
        """The local beacon's first pulse after ``moment``, at once, even when it lies ahead."""
        return self.beacon.pulse_after(moment)

    def stamp(self, request: bytes, *, at: datetime | None = None) -> bytes:
        """The local server's answer to a timestamp request."""
        return self.server.answer(request, at=at or datetime.now(UTC))

    def write(self, folder: Path) -> None:
        """Write everything below ``folder``: public parts as JSON, keys with mode 0600; the log is replaced at once."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _private(folder / "server.json", _canon.canonical(self.server.to_json()))
        _private(folder / "beacon.json", _canon.canonical(self.beacon.to_json()))
        for name, key in (("operator.key", self.operator), ("witness.key", self.witness.key)):
            if not (folder / name).exists():
                key.write(folder / name)
        _private(folder / "log.json", _canon.canonical(self.log.entries))

    @classmethod
    def read(cls, folder: Path) -> "LocalNotary":
        """The inverse of :meth:`write`."""
        server = TimestampServer.from_json(json.loads((folder / "server.json").read_bytes()))
        beacon = LocalBeacon.from_json(json.loads((folder / "beacon.json").read_bytes()))
        keys = (SigningKey.read(folder / "operator.key"), SigningKey.read(folder / "witness.key"))
        entries = tuple(Entry.from_json(item) for item in json.loads((folder / "log.json").read_bytes()))
        return cls._build(server, beacon, keys, entries)


def _private(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
