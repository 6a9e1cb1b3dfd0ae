# SPDX-License-Identifier: Apache-2.0
"""One private run: plan, ledger, clipper, noise and sealed snapshots, kept in step with each other.

Every wrapper (the plain loop, accelerate, transformers) is a thin shell around a ``PrivateRun``, which
``privguard.runs.start`` makes. What lies in a run folder, and under which name: ``privguard.runs.folder``.
"""

import contextlib
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast, final

from torch import Tensor
from torch.optim import Optimizer

from privguard._random import Stream
from privguard.accounting.claim import claim_of, epsilon_of
from privguard.accounting.history import History
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.checkpoint.archive import Audience
from privguard.checkpoint.store import Snapshot, save
from privguard.errors import PrivacyError, PrivguardError
from privguard.records import Claim, Manifest
from privguard.runs import folder
from privguard.runs.budget import Charge
from privguard.runs.options import RunSetup
from privguard.runs.seeds import Streams
from privguard.training import rng_state, shards
from privguard.training.clip import trainable
from privguard.training.plan import Plan
from privguard.training.sampling.sample import Sampler
from privguard.training.step import Follower, PrivateStep, check_optimizer

_KEPT = 2  # snapshots on disk: the newest, and one before it
SNAPSHOTS = 50  # in a run, where nobody says how many: a crash then loses at most 2 % of the budget


@final
class PrivateRun:
    """A run that was started or resumed: a wrapper takes its steps, and ends it with ``close`` or ``end``.

    Of several ranks each holds one. Rank 0 has the ledger and writes the snapshots; the others have a
    ``Follower`` in the ledger's place.

    ``came_from`` is the snapshot that the run was resumed from, None for a new run.
    """

    def __init__(
        self,
        plan: Plan,
        setup: RunSetup,
        *,
        facts: Manifest,
        ledger: Ledger | Follower,
        streams: Streams,
        came_from: Snapshot | None = None,
    ) -> None:
        self.plan = plan
        self.manifest = facts
        self.folder = setup.folder
        self._setup = setup
        self._ledger = ledger
        self._streams = streams
        self._audience = setup.audience()
        self._signer = None if isinstance(ledger, Follower) else setup.signing_key()
        self._parameters = trainable(setup.model)
        self._every = max(1, plan.steps // SNAPSHOTS) if setup.every is None else setup.every
        self._saved = -1 if came_from is None else came_from.step
        self._generators = [] if came_from is None else came_from.generators["ranks"]  # of each rank
        self._held: str | None = None
        if setup.clipper.checks is not None:
            setup.clipper.checks.seed(facts.run)  # public, and the same on all ranks
        self._charge = setup.charge if setup.ranks.lead else None
        self._step = PrivateStep(
            plan,
            clipper=setup.clipper,
            ledger=ledger,
            noise=streams.noise(setup.options.performance.noise),
            exact=setup.options.performance.noise == "exact",
            reserve=setup.options.performance.reserve,
            ranks=setup.ranks,
            permit=_permission(self._charge, ledger),
        )
        self._end = weakref.finalize(self, _end, self._step, ledger, self._charge)

    def rewind_generators(self) -> None:
        """Put the global generators, which dropout and augmentation draw from, where the snapshot found them."""
        rank = self._setup.ranks.rank
        if rank < len(self._generators):
            rng_state.restore(self._generators[rank])

    @property
    def sampler(self) -> Sampler:
        """Who takes part in which step; groups, where there are any, are those that the run began with."""
        return self.plan.sampler(self._streams.groups)

    @property
    def sampler_source(self) -> Stream:
        """The stream whose child number ``i`` draws the batch of ledger position ``i``."""
        return self._streams.samples

    @property
    def taken(self) -> int:
        """Steps of the plan that are spent, also by processes before this one."""
        return self._step.taken

    @property
    def remaining(self) -> int:
        """Steps of the plan that are left."""
        return self._step.remaining

    def reserve(self) -> int:
        """Ledger position of the next step, whose reservation is on its way to the disk; see ``PrivateStep``.

        A snapshot that is due is sealed first: by now the loop's schedule has moved as well.

        Raises:
            BudgetExceededError: the plan is used up, or the data set's limit was lowered below what is spent.
        """
        self._step.require_own_process()
        if self._every and self.remaining and self.taken % self._every == 0 and not self._step.pending:
            self.save()
        return self._step.position()

    def backward(self, losses: Tensor) -> None:
        """Clip and add up the gradients of a physical batch.

        Raises:
            InteractionError: a loss reaches rows of another example; where steps were released, the claim is void.
        """
        with self._step.voiding():
            self._setup.clipper.backward(losses)

    def release(self) -> None:
        """End a logical batch: put the noisy gradient into each parameter's ``grad``; the wrapper's optimizer moves.

        Raises:
            PrivacyError: the optimizer was given other parameters, or moved its settings between two physical batches.
        """
        self._check_optimizer()
        self._held = None
        self._step.release(self._parameters)

    def hold(self) -> None:
        """End a physical batch that is not the last of its step; until then the optimizer's settings stay.

        How many physical batches a step takes is a secret of its sample, which a schedule must not follow.

        Raises:
            PrivacyError: they moved since the physical batch before.
        """
        self._check_optimizer()
        self._held = _settings(self._setup.optimizer)

    def finish_step(self) -> None:
        """End a logical batch: add the noise once and take one optimizer step; raises as ``release``."""
        self.release()
        self._setup.optimizer.step()

    def _check_optimizer(self) -> None:
        check_optimizer(self._setup.optimizer, self._parameters.values())
        if self._held is not None and self._held != _settings(self._setup.optimizer):
            raise PrivacyError(
                "optimizer: its settings moved between two physical batches of one step, whose number only the sample "
                "decides; let the schedule step where private.step() returns True (sync_gradients, with accelerate)"
            )

    @property
    def noise_to_signal(self) -> float:
        """σC√d over the norm of the last noisy sum; see ``PrivateStep.noise_to_signal``."""
        return self._step.noise_to_signal

    @property
    def noise_std(self) -> float:
        """Deviation of the next step's noise in each coordinate of the gradient that the optimizer sees; public.

        It is σ·Δ over the plan's batch size, with Δ the sensitivity that the manifest names, times the step's share
        where noise is correlated. NaN when no step is left.
        """
        scale = self.plan.noise_multiplier * self.manifest.mechanism["sensitivity"] / self.plan.expected_batch_size
        return scale * self._step.gain

    def claim(self) -> Claim:
        """What the ledger costs so far: all reserved events count.

        Raises:
            PrivacyError: the run was started with an insecure seed, examples were found to interact after steps had
                been released, or this rank does not hold the ledger.
        """
        if self.manifest.insecure:
            raise PrivacyError(
                "insecure_seed: this run's noise can be repeated by anybody, so it has no claim; run it without"
            )
        if isinstance(self._ledger, Follower):
            raise PrivacyError("claim: only the leading process holds the ledger; ask for it where rank == 0")
        history = self._history()
        if history.void:
            raise PrivacyError(f"claim: void, since steps were released before this was found: {history.void[0]}")
        return claim_of(self.manifest, history)

    def epsilon(self) -> float:
        """ε of ``claim`` for the log, on every rank; with several, all of them call this."""
        return self._setup.ranks.from_lead(self.spent)

    def spent(self) -> float:
        """ε of ``claim``, on the leading rank; NaN where the claim is void."""
        history = self._history()
        return math.nan if history.void else epsilon_of(self.manifest, history)

    def _history(self) -> History:
        """What the ledger says now; of the leading rank."""
        self._step.wait_for_disk()
        return self._step.history(cast("Ledger", self._ledger))

    def save_first(self) -> None:
        """Seal the state before the first step, unless the wrapper keeps snapshots of its own."""
        if self._every:
            self.save()

    def save(self) -> Path:
        """Seal a snapshot of everything that resuming needs, return its path, and remove all but the newest two."""
        path = folder.snapshot(self.folder, self.taken)
        if self._saved == self.taken and self._setup.ranks.from_lead(path.exists):  # one answer for all ranks
            return path
        self.save_to(path)
        self._saved = self.taken
        if self._setup.ranks.lead:
            for old in folder.snapshots(self.folder)[:-_KEPT]:
                old.unlink()
        return path

    def save_to(self, path: Path) -> None:
        """Seal a snapshot into the file ``path``. With several ranks all of them call this, and the leading one writes.

        Raises:
            OSError: the disk is full, or the folder cannot be made; nothing is left behind.
        """
        setup, ledger = self._setup, self._ledger
        of_ranks = setup.ranks.gather(rng_state.states())
        weights, optimizer = shards.whole(setup.model.state_dict()), shards.whole(setup.optimizer.state_dict())
        if isinstance(ledger, Follower):
            return
        self._step.wait_for_disk()
        path.parent.mkdir(parents=True, exist_ok=True)
        snapshot = Snapshot(
            run=self.manifest.run,
            step=self.taken,
            weights=weights,
            optimizer=optimizer,
            generators={"ranks": of_ranks, "streams": self._streams.secrets(), "place": ledger.place},
            extra={name: thing.state_dict() for name, thing in setup.also.items()},
        )
        write_snapshot(path, snapshot, self._audience, ledger=ledger, signer=self._signer)
        if self._charge is not None:
            self._charge.note(ledger)

    def settle(self) -> None:
        """Give back what the ledger reserved for steps that were not taken; part of a clean stop."""
        self._step.settle()

    def close(self) -> None:
        """A clean stop: settle the ledger, seal the last state, give the model back. Harmless when done twice."""
        if self._end.alive:
            self.settle()
            self.save()
            self.end()

    def end(self) -> None:
        """Settle the ledger and the budget book, and give the model back, without a snapshot. Harmless when done twice.

        Raises:
            OSError: the book cannot be written; what was reserved there stands until it is settled.
        """
        if self._end.alive:
            self._end()
            self._setup.clipper.close()
            if self._charge is not None:
                self._charge.settle(self.folder / folder.LEDGER)


def _permission(charge: Charge | None, ledger: Ledger | Follower) -> Callable[[int], None]:
    """What asks the budget book before steps; it must not hold the run itself, which would then never be collected."""
    if charge is None or isinstance(ledger, Follower):
        return lambda _: None
    return partial(charge.permit, ledger)


def _settings(optimizer: Optimizer) -> str:
    """Learning rates and all else of an optimizer but its parameters, to compare."""
    return repr([{key: _exact(group[key]) for key in group if key != "params"} for group in optimizer.param_groups])


def _exact(value: object) -> object:
    """A setting in full: a tensor shows four digits of itself, of which a small move would leave all as they were."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, list | tuple):
        return [_exact(each) for each in cast("list[object]", value)]
    return value


def _end(step: PrivateStep, ledger: Ledger | Follower, charge: Charge | None) -> None:
    """Settle the ledger with the steps that were taken, and the budget book with the ledger.

    This also runs at garbage collection and at exit, for a run that nobody closed. No error can be raised there; where
    settling fails, the reservation stands, so nothing is spent twice.
    """
    with contextlib.suppress(PrivguardError, OSError, ValueError):
        step.settle()
    ledger.close()
    if charge is not None and isinstance(ledger, Ledger):
        with contextlib.suppress(PrivguardError, OSError, ValueError):
            charge.settle(ledger.path)


def write_snapshot(
    path: Path, snapshot: Snapshot, audience: Audience, *, ledger: Ledger, signer: SigningKey | None
) -> None:
    """Seal the snapshot of a private run into a file, with what ``ledger`` says now.

    Auditors find its lines inside, where whoever holds the run folder cannot change them unnoticed.

    Raises:
        OSError: the disk is full, or the folder is not there; nothing is left behind.
    """
    lines = ledger.path.read_bytes() if audience.auditors else b""
    whole = replace(snapshot, ledger=lines, ledger_head=ledger.head, ledger_size=ledger.size)
    save(whole, path, to=audience.to, auditors=audience.auditors, signer=signer)
