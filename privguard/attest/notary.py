# SPDX-License-Identifier: Apache-2.0
"""A notary on one machine: timestamp server, beacon, log and witness together, for tests and offline teams.

Everything runs through the same formats and checks as with outside authorities, and everything is labelled as local:
whoever holds this file could have made up any order of events.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from privguard import _canon, _os
from privguard.attest import merkle
from privguard.attest.local import LocalBeacon, TimestampServer
from privguard.attest.log import Entry, Extract, Log, Trusted, Witness
from privguard.attest.statement import SigningKey

ORIGIN = "local log"


@final
@dataclass(frozen=True, kw_only=True)
class LocalNotary:
    """All local authorities of one team. Its file is private (mode 0600); what others need is its public side."""

    server: TimestampServer
    beacon: LocalBeacon
    log: Log
    witness: Witness
    operator: SigningKey
    trusted: Trusted

    @classmethod
    def generate(cls, *, bits: int = 3072) -> "LocalNotary":
        """Fresh keys and an empty log; ``bits`` is the size of the beacon's RSA key.

        Args:
            bits: size of the beacon's RSA key.
        """
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
        """Append one entry and return the whole log under a fresh witnessed head.

        Args:
            entry: the line to be added.
            at: the time; None for now.
        """
        self.log.append(entry)
        return self.log.extract(self.witness, at=at)

    def pulse_after(self, moment: datetime) -> Mapping[str, Any]:
        """The local beacon's first pulse after ``moment``, at once, even when it lies ahead.

        Args:
            moment: a time.
        """
        return self.beacon.pulse_after(moment)

    def stamp(self, request: bytes, *, at: datetime | None = None) -> bytes:
        """The local server's answer to a timestamp request.

        Args:
            request: a timestamp request, DER.
            at: the time; None for now.
        """
        return self.server.answer(request, at=at or datetime.now(UTC))

    def to_json(self) -> dict[str, Any]:
        """Everything needed to go on, **all private keys included**."""
        return {
            "server": self.server.to_json(),
            "beacon": self.beacon.to_json(),
            "operator": self.operator.to_pem(),
            "witness": self.witness.key.to_pem(),
            "log": [_canon.to_json(entry) for entry in self.log.entries],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LocalNotary":
        """The inverse of ``to_json``; the witness remembers the log as it stands there.

        Args:
            value: JSON values, as they were read.
        """
        keys = (SigningKey.from_pem(value["operator"]), SigningKey.from_pem(value["witness"]))
        entries = tuple(Entry.from_json(item) for item in value["log"])
        return cls._build(
            TimestampServer.from_json(value["server"]), LocalBeacon.from_json(value["beacon"]), keys, entries
        )

    def write(self, path: Path) -> None:
        """Write everything to one private file (mode 0600), replacing it at once.

        Args:
            path: the notary's file.
        """
        _private(path, _canon.canonical(self.to_json()))

    @classmethod
    def read(cls, path: Path) -> "LocalNotary":
        """Read what ``write`` wrote.

        Args:
            path: the notary's file.

        Raises:
            ValueError: the file is no notary's.
        """
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"path={str(path)!r}: expected a local notary's file") from None


def _private(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        _os.sync(file.fileno())
    draft.replace(path)
