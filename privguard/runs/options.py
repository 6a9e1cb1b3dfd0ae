"""The settings of a private run besides its plan: the user's objects, and who may open and sign its snapshots."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

from torch import nn
from torch.optim import Optimizer

from privguard.attest.statement import SigningKey
from privguard.checkpoint.archive import Audience
from privguard.checkpoint.key import Key, Recipient, To, key_among
from privguard.checkpoint.trust import Trust
from privguard.errors import ResumeError
from privguard.runs.budget import Charge
from privguard.training.clip import Clipper
from privguard.training.plan import Speed
from privguard.training.ranks import Ranks


class Stateful(Protocol):
    """Anything with torch's pair of state methods: a schedule, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...  # noqa: D102


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that a run needs besides its plan; each wrapper fills it in from its own arguments.

    Attributes:
        model: the module to train.
        optimizer: any optimizer over exactly the model's trainable parameters.
        clipper: its per-example clipper.
        folder: the run folder.
        seal_to: who can open the checkpoints: recipients, keys or paths of their files.
        auditors: who may read the ledger and the manifest in the checkpoints, and nothing else of them.
        also: further state to keep in the snapshots, by name, such as ``{"schedule": scheduler}``.
        key: opens the snapshot to resume from; where None, the key files among ``seal_to`` are tried.
        trust: who signs the snapshots, and what one has to show to be resumed from; by default the run's own signer.
        every: steps between snapshots; None takes a tenth of the run, 0 leaves saving to the wrapper.
        insecure_seed: makes sampler and noise repeatable by anybody; such a run has no claim.
        speed: settings without influence on privacy.
        ranks: the processes that share the run.
        probed: what was probed for cross-example leaks, as a phrase for the report; ``nothing: WHY`` where nothing was.
        charge: the budget book that the run is charged to.
    """

    model: nn.Module
    optimizer: Optimizer
    clipper: Clipper
    folder: Path
    seal_to: To
    auditors: To = ()
    also: Mapping[str, Stateful] = field(default_factory=dict[str, Stateful])
    key: Key | str | os.PathLike[str] | None = None
    trust: Trust = field(default_factory=Trust)
    every: int | None = None
    insecure_seed: int | None = None
    speed: Speed = field(default_factory=Speed)
    ranks: Ranks = field(default_factory=Ranks)
    probed: str = "nothing"
    charge: Charge | None = None

    def audience(self) -> Audience:
        """Who may open the run's snapshots, and for what."""
        return Audience.of(self.seal_to, self.auditors)

    def opening_key(self) -> Key:
        """The key that opens the run's snapshots; see :func:`key_for`."""
        return key_for(self.seal_to, self.key)

    def signing_key(self) -> SigningKey:
        """What signs the run's snapshots; only the leading process needs it."""
        holder = None if self.key is None else self.opening_key()
        return self.trust.signing_key(self.seal_to, holder)

    def signers(self) -> tuple[str, ...]:
        """Key ids of those whose snapshots the run goes on from, as the leading process knows them."""
        return self.ranks.from_lead(lambda: self.trust.signers(self.opening_key()))


def as_list(to: To) -> list[Any]:
    """Recipients as a list, also where a single one was given."""
    return [to] if isinstance(to, str | os.PathLike | Key | Recipient) else list(to)


def key_for(seal_to: To, key: Any) -> Key:
    """The key that opens a run's snapshots: ``key``, or the first one among ``seal_to``.

    Raises:
        ResumeError: there is none.
    """
    if key is not None:
        return key if isinstance(key, Key) else Key.read(key)
    found = key_among(seal_to)
    if found is None:
        raise ResumeError("key=None: the recipients can only seal; give the key that opens the run's snapshots")
    return found
