# SPDX-License-Identifier: Apache-2.0
"""What a private run is given besides plan and data: ``RunOptions``, the same value for every entry point."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, final

from torch import nn
from torch.optim import Optimizer

from privguard.attest.statement import SigningKey
from privguard.checkpoint.archive import Audience
from privguard.checkpoint.keys.key import Key, Recipient, To, key_among
from privguard.checkpoint.keys.trust import Trust
from privguard.errors import ResumeError
from privguard.runs.budget import BookOrPlace, Charge
from privguard.training.clip import Clipper
from privguard.training.plan import Performance
from privguard.training.ranks import Ranks


class Stateful(Protocol):
    """Anything with torch's pair of state methods: a schedule, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...  # noqa: D102


@final
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What few runs need to say, with defaults that suit the others.

    ``privatize``, ``PrivateTrainer``, ``PrivateSFTTrainer``, ``PrivateAccelerator`` and ``take_over`` all take one as
    ``options=``. An option that an entry point cannot honour is refused by name, never ignored.

    Attributes:
        auditors: who may read the ledger and the manifest in the checkpoints, and nothing else of them; as ``seal_to``.
        key: opens the checkpoints to resume from; by default the first key file among ``seal_to``.
        trust: who signs checkpoints, and the least step and ledger head to resume from; by default the run's own
            signer signs, and only its checkpoints are resumed from.
        also: further state to keep in the checkpoints, by name, such as ``{"schedule": scheduler}``.
        checkpoint_every: steps between sealed snapshots; None takes a fiftieth of the run, so that a crash loses at
            most 2 % of the budget.
        performance: settings that cannot change a claim.
        book: the team's budget book, or its place: the whole run is reserved there before it starts, and what was not
            used is given back when it ends. Give it again when resuming.
        data_set: with a book, the SHA-256 under which the data set stands in it.
        team: with a book in which the data set is shared out, whose share the run spends.
        purpose: with a book, what the run is for; it stays there, for people to read.
        continue_exactly: resume with the samples and the noise that the stopped run would have drawn. Refused without a
            head of the ledger that was kept outside the folder: ``trust``'s ``expect_head``, or the budget book.
        public_evaluation: the evaluation data is public, so what is measured on it needs no protection; otherwise the
            claim lists it, and the selection made by it, as unchecked.
        other_data: why a resumed run may read another data set than the one it began with; the report repeats it.
        insecure_seed: makes sampler and noise repeatable by anybody, for tests and figures; such a run has no claim.
        show_private_loss: show the un-noised loss on the terminal; the guarantee does not cover it.
        quiet: no progress bar.
        rehearsal: where the loop's loss is not shown (``losses=``), hand it synthetic batches in its first turns, which
            count nothing, and compare gradients; without, the claim says that nothing looked at the loss.
    """

    auditors: To = ()
    key: Key | str | os.PathLike[str] | None = field(default=None, repr=False)
    trust: Trust = field(default_factory=Trust)
    also: Mapping[str, Stateful] = field(default_factory=dict[str, Stateful])
    checkpoint_every: int | None = None
    performance: Performance = field(default_factory=Performance)
    book: BookOrPlace = None
    data_set: str | None = None
    team: str = ""
    purpose: str = ""
    continue_exactly: bool = False
    public_evaluation: bool = False
    other_data: str | None = None
    insecure_seed: int | None = None
    show_private_loss: bool = False
    quiet: bool = False
    rehearsal: bool = True

    def charge(self) -> Charge | None:
        """What the run owes the budget book; see ``privguard.runs.budget.Charge.to``."""
        return Charge.to(self.book, self.data_set, team=self.team, purpose=self.purpose)

    def refuse_with_bands(self) -> None:
        """Refuse what a plan with bands cannot honour.

        Raises:
            ValueError: one of them was asked for.
        """
        no_rows = "with bands, the rows of earlier noise are in the memory of one process, and no resumed run has them"
        no_groups = "with bands, a record's group is its place in the data set; go on with the same records"
        self.refuse({"continue_exactly": no_rows, "other_data": no_groups})
        for setting, remedy in {"noise": "'exact'", "reserve": "1"}.items():
            if getattr(self.performance, setting) != getattr(Performance(), setting):
                raise ValueError(f"options.performance.{setting}: cannot be honoured with bands; leave it at {remedy}")

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Refuse options that an entry point cannot honour.

        Args:
            reasons: what to use instead, by the name of the option.

        Raises:
            ValueError: one of them differs from its default.
        """
        defaults = RunOptions()
        for option in fields(self):
            if option.name in reasons and getattr(self, option.name) != getattr(defaults, option.name):
                raise ValueError(f"options.{option.name}: cannot be honoured here; {reasons[option.name]}")


@final
@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """Everything that a run needs besides its plan; each entry point fills it in from its own arguments.

    Attributes:
        model: the module to train.
        optimizer: any optimizer over exactly the model's trainable parameters.
        clipper: its per-example clipper.
        folder: the run folder.
        seal_to: who can open the checkpoints: recipients, keys or paths of their files.
        options: what the user said besides.
        also: all further state to keep in the snapshots: the user's, and the entry point's own.
        every: steps between snapshots; None takes a fiftieth of the run, 0 leaves saving to the wrapper.
        rows: most rows that go forward at once, where neither the clipper nor the user's options limit them.
        ranks: the processes that share the run.
        probed: what was probed for cross-example leaks, as a phrase for the report; ``nothing: WHY`` where nothing was.
        charge: the budget book that the run is charged to.
        dataset: the records, to commit to and to compare on resume; None where there is nothing to compare.
        unchecked: what the entry point could not look at, for the claim.
    """

    model: nn.Module
    optimizer: Optimizer
    clipper: Clipper
    folder: Path
    seal_to: To
    options: RunOptions = field(default_factory=RunOptions)
    also: Mapping[str, Stateful] = field(default_factory=dict[str, Stateful])
    every: int | None = None
    rows: int | None = None
    ranks: Ranks = field(default_factory=Ranks)
    probed: str = "nothing"
    charge: Charge | None = None
    dataset: Any = None
    unchecked: tuple[str, ...] = ()

    @property
    def physical_batch(self) -> int:
        """Most rows that go forward at once."""
        return self.clipper.rows or self.options.performance.physical_batch or self.rows or 1

    def audience(self) -> Audience:
        """Who may open the run's snapshots, and for what."""
        return audience_of(self.seal_to, self.options)

    def opening_key(self) -> Key:
        """The key that opens the run's snapshots; see ``key_for``."""
        return key_for(as_list(self.seal_to), self.options.key)

    def signing_key(self) -> SigningKey:
        """What signs the run's snapshots; only the leading process needs it."""
        holder = None if self.options.key is None else self.opening_key()
        return self.options.trust.signing_key(as_list(self.seal_to), holder)

    def signers(self) -> tuple[str, ...]:
        """Key ids of those whose snapshots the run goes on from, as the leading process knows them."""
        return self.ranks.from_lead(lambda: self.options.trust.signers(self.opening_key()))


def audience_of(seal_to: To, options: RunOptions) -> Audience:
    """Who may open a run's snapshots, and for what; asked early too, so that a missing file shows before any work.

    Raises:
        NoRecipientError: nobody could open them, or a file of a recipient is not there.
    """
    return Audience.of(as_list(seal_to), as_list(options.auditors))


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
    first = key_among(seal_to)
    if first is None:
        raise ResumeError(
            "key=None: seal_to holds only public keys; pass the key that opens the run's snapshots as "
            "options=RunOptions(key=...)"
        )
    return first
