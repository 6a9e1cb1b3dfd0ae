# SPDX-License-Identifier: Apache-2.0
"""Where a run's samples and noise come from: one key that lasts, for what a run may not renew, and one key at a time.

Every start and every resume draws 32 new bytes from the operating system. No file in the run folder could do as much: a
folder that is copied, put back from a backup or rolled back with its volume brings each nonce in it back too, and a run
that went on with an old key would add one noise to two releases, whose difference shows the gradients without any. The
ledger names each key in public (``nonce``), so that two ledgers can be compared.
"""

import os
from dataclasses import dataclass
from typing import Any, final

from privguard._random import KEY_BYTES, Stream

METHOD = "privguard samples and noise v1"
"""How samples and noise are made from a key; a change of the method is a change of this name, and of every key."""


@final
@dataclass(frozen=True)
class Streams:
    """The keys of a run.

    ``lasting`` is drawn once and never renewed: what a run may draw only once, such as groups of records, comes from
    it. ``current`` gives the samples and the noise of this process alone.
    """

    lasting: Stream
    current: Stream

    @classmethod
    def fresh(cls, seed: int | None) -> "Streams":
        """The keys of a new run: from the operating system, or from an insecure seed."""
        run = Stream.from_entropy("run") if seed is None else Stream.from_insecure_seed(seed, "run")
        return cls(run, run)

    def renewed(self) -> "Streams":
        """The same lasting key, and a new one for samples and noise.

        It is a child of the old key named by 32 new bytes of the operating system, so whoever lacks either cannot
        compute it. A seeded run keeps its key: anybody can repeat it anyhow, and it has no claim.
        """
        if self.current.insecure:
            return self
        child = self.current.child("resumed", os.urandom(KEY_BYTES).hex())
        return Streams(self.lasting, Stream(child.secret(), "run"))

    def secrets(self) -> dict[str, bytes]:
        """Both keys, for a sealed snapshot and nothing else."""
        return {"lasting": self.lasting.secret(), "current": self.current.secret()}

    @classmethod
    def of(cls, secrets: dict[str, Any], *, insecure: bool) -> "Streams":
        """The keys that ``secrets`` gave."""
        return cls(*(Stream(secrets[name], "run", insecure=insecure) for name in ("lasting", "current")))

    @property
    def samples(self) -> Stream:
        """The stream whose child number ``i`` draws the batch of ledger position ``i``."""
        return self.current.child("sampler")

    @property
    def groups(self) -> Stream:
        """The stream whose word number ``i`` puts unit ``i`` into a group, for the whole run."""
        return self.lasting.child("groups")

    def noise(self, kind: str) -> Stream:
        """The stream whose child number ``i`` gives the noise of ledger position ``i``, exact or float32.

        The number is a new one for each new meaning of its words.
        """
        return self.current.child("noise", 2, kind)

    @property
    def salt(self) -> bytes:
        """Of the commitment to the data, which is compared on resume: as secret as the keys, and the same all along."""
        return self.lasting.child("data commitment").secret()
