"""How a private run begins: :func:`start` in a new folder, or :func:`resume` from a sealed snapshot.

With several ranks, all of them call these functions. What writes to the folder runs on the leading rank alone, and its
result, or its error, is sent to the others (:meth:`privguard.training.ranks.Ranks.from_lead`).
"""

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.utils.data import DataLoader

from privguard._random import Stream
from privguard.accounting.ledger import Ledger
from privguard.checkpoint import durable
from privguard.checkpoint.store import Snapshot, load
from privguard.errors import LedgerError, PrivacyError, ResumeError
from privguard.records import Manifest
from privguard.runs import manifest
from privguard.runs.options import RunSetup
from privguard.runs.run import PrivateRun
from privguard.training import shards
from privguard.training.clip import trainable
from privguard.training.mechanism import mechanism
from privguard.training.plan import Plan
from privguard.training.step import Follower, check_optimizer

_log = logging.getLogger(__name__)


def start(plan: Plan, setup: RunSetup, *, loader: DataLoader[Any] | None = None) -> PrivateRun:
    """Begin a run in a new folder.

    Raises:
        ResumeError: the folder holds a run already.
        NoRecipientError: nobody could open the checkpoints.
        SealError: there is no key to sign them with; the message says what to pass.
        PrivacyError: the optimizer's parameters are not the model's, or a run without a claim is charged to a book.
            Or sums and noise would leave the range of the numbers that hold them.
        BudgetExceededError: the whole run does not fit the data set's budget; nothing was reserved or written.
    """
    to = setup.audience().to
    check_optimizer(setup.optimizer, trainable(setup.model).values())
    how = _mechanism(plan, setup)
    ledgers: list[Ledger] = []  # one on the leading rank, which opens it; none on the others

    def begin() -> tuple[Manifest, bytes]:
        require_no_run(setup.folder)
        setup.signing_key()  # what is missing shows before the folder is made
        streams = _fresh(setup)
        facts = manifest.describe(
            secrets.token_hex(8),
            plan=plan,
            model=setup.model,
            clipper=setup.clipper,
            probed=setup.probed,
            recipients=to,
            streams=streams,
            commitment=_commitment(loader, streams),
            mechanism=how,
        )
        if setup.charge is not None:
            facts = replace(facts, data={**facts.data, "book": setup.charge.id})
        ledgers.append(_opened(plan, setup, facts))
        return facts, streams.secret()

    facts, secret = setup.ranks.from_lead(begin)
    setup.ranks.copy_from_lead(setup.model.state_dict().values())
    return PrivateRun(plan, setup, facts=facts, ledger=_mine(ledgers, 0), streams=_stream(secret, setup))


def resume(plan: Plan, setup: RunSetup, *, snapshot: Path | None = None) -> PrivateRun:
    """Go on with the run in the folder, from ``snapshot`` or else from its newest one.

    After a clean stop the streams go on as if nothing had happened: same samples, same noise. After a crash the
    ledger is ahead of the snapshot; what it reserved stays spent, and sampler and noise are keyed afresh. So are they
    in a copy of the folder: two runs that go on from one state with the same noise would show what lies under it.

    Raises:
        ResumeError: no run or no snapshot is there, the plan is another one, a seed is given to a run that has a
            claim, the budget book is another one, or the ledger does not extend the snapshot.
        BudgetExceededError: what the run gave back when it stopped was given to others since.
        LedgerError: the ledger is missing, not what was written, or without the head that ``trust`` expects.
        TamperedError: the key does not open the snapshot, it was changed, or the run's own signer did not seal it.
        RollbackError: the snapshot is older than ``trust`` demands.
    """
    check_optimizer(setup.optimizer, trainable(setup.model).values())
    facts = read_manifest(setup.folder)
    if facts.plan != plan.facts():
        changed = sorted(name for name, value in plan.facts().items() if facts.plan.get(name) != value)
        raise ResumeError(f"plan: {', '.join(changed)} differ from the run's own; a budget is planned once")
    if setup.options.insecure_seed is not None and not facts.insecure:
        raise ResumeError(
            f"insecure_seed={setup.options.insecure_seed}: this run was started without one and has a claim, which "
            "anybody who can repeat its noise would break; resume it without a seed"
        )
    if (began := facts.mechanism.get("noise")) != _mechanism(plan, setup)["noise"]:
        raise ResumeError(
            f"noise={setup.options.performance.noise!r}: this run began with {began!r} noise, which its claim and "
            "report speak of; resume it with the same"
        )
    _require_same_book(setup, facts)
    state = open_snapshot(snapshot or _newest(setup), setup, min_step=setup.options.trust.min_step)
    ledgers: list[Ledger] = []  # as in start

    def begin() -> tuple[int, bytes]:
        ledger = Ledger.open(setup.folder / "ledger.jsonl")
        ledgers.append(ledger)
        _check_extends(ledger, state, facts)
        _check_head(ledger, setup.options.trust.expect_head)
        setup.signing_key()
        if setup.charge is not None:
            setup.charge.begin(facts.run, plan)
        crashed = ledger.position != state.step
        if crashed:
            _log.warning(
                "the last process ended without a clean stop: %d steps that it had reserved after the checkpoint of "
                "step %d stay spent, so %d of the plan's %d are left to take",
                *(ledger.position - state.step, state.step, max(0, plan.steps - ledger.position), plan.steps),
            )
        clean = not crashed and tuple(state.generators.get("place", ())) == ledger.place
        return ledger.position, state.generators["streams"] if clean else _fresh(setup).secret()

    try:
        position, secret = setup.ranks.from_lead(begin)
        _restore(state, setup)
        streams = _stream(secret, setup)
        mine = _mine(ledgers, position)
        run = PrivateRun(plan, setup, facts=facts, ledger=mine, streams=streams, came_from=state)
        run.rewind_generators()
    except BaseException:
        for ledger in ledgers:
            ledger.close()
        raise
    return run


def _mechanism(plan: Plan, setup: RunSetup) -> dict[str, Any]:
    """The facts of sum and noise; PrivacyError where they do not fit the numbers that hold them."""
    parameters = trainable(setup.model)
    noise, shape = setup.options.performance.noise, setup.clipper.shape_term
    return mechanism(plan, parameters, processes=setup.ranks.size, noise=noise, shape_term=shape)


def _commitment(loader: DataLoader[Any] | None, streams: Stream) -> str | None:
    """The salted digest of the loader's records; the salt is a child of the run's own randomness, and as secret."""
    return None if loader is None else manifest.commitment(loader, streams.child("data commitment").secret())


def _opened(plan: Plan, setup: RunSetup, facts: Manifest) -> Ledger:
    """The run's new ledger; the whole run is reserved in the budget book first, and given back if no ledger is made."""
    if setup.charge is None:
        return write_public_files(setup.folder, facts)
    if facts.insecure:
        raise PrivacyError("insecure_seed: such a run has no guarantee, so no budget can hold it; leave book= out")
    setup.charge.begin(facts.run, plan)
    try:
        return write_public_files(setup.folder, facts)
    except BaseException:
        setup.charge.cancel()
        raise


def _require_same_book(setup: RunSetup, facts: Manifest) -> None:
    """A run that was charged to a book goes on being charged to it, and no other."""
    own, given = facts.data.get("book"), setup.charge.id if setup.charge is not None else None
    if own != given:
        raise ResumeError(
            f"book={given}: this run is charged to {own or 'no book'}; give the book= and data_set= that it began with"
        )


def open_snapshot(snapshot: Path, setup: RunSetup, *, min_step: int = 0) -> Snapshot:
    """The content of a sealed snapshot that the run's own signer sealed. With several ranks all of them call this."""
    return load(snapshot, setup.opening_key(), signer=setup.signers(), min_step=min_step)


def require_no_run(folder: Path) -> None:
    """Raise ResumeError where the folder holds a run."""
    if (folder / "run.json").exists():
        raise ResumeError(
            f"run={folder}: holds a run already; resume it (resume=True, resume_from_checkpoint=True), or name a new "
            "folder"
        )


def write_public_files(folder: Path, facts: Manifest) -> Ledger:
    """Write ``run.json`` and a ledger that opens with its digest, and return the ledger."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    about = {"run": facts.run, "manifest": facts.digest(), "plan": facts.plan}
    ledger = Ledger.create(folder / "ledger.jsonl", about)
    durable.create(folder / "run.json", text.encode(), mode=0o644)
    return ledger


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in ``folder``.

    Raises:
        ResumeError: there is no run.
    """
    try:
        return Manifest.from_json(json.loads((folder / "run.json").read_text()))
    except FileNotFoundError:
        raise ResumeError(
            f"run={folder}: there is no run.json, so no run to go on with; start one without resume=True"
        ) from None


def _mine(ledgers: list[Ledger], position: int) -> Ledger | Follower:
    """The ledger on the rank that opened it; on the others, where the list is empty, a follower at ``position``."""
    return ledgers[0] if ledgers else Follower(position)


def _fresh(setup: RunSetup) -> Stream:
    """New randomness for sampler and noise, from the operating system unless the run has an insecure seed."""
    if setup.options.insecure_seed is None:
        return Stream.from_entropy("run")
    return Stream.from_insecure_seed(setup.options.insecure_seed, "run")


def _newest(setup: RunSetup) -> Path:
    """The run folder's newest snapshot."""
    found = sorted((setup.folder / "checkpoints").glob("step-*.sealed"))
    if not found:
        raise ResumeError(
            f"run={setup.folder}: there is no snapshot; what the ledger reserved is spent, start a new run"
        )
    return found[-1]


def _check_extends(ledger: Ledger, snapshot: Snapshot, facts: Manifest) -> None:
    """Refuse a ledger that is another run's, or older than the snapshot."""
    if snapshot.run != facts.run or ledger.facts.get("manifest") != facts.digest():
        raise ResumeError(
            f"run={facts.run}: manifest, ledger and snapshot belong to different runs; put back the run's own files"
        )
    if not ledger.extends(snapshot.ledger_head, snapshot.ledger_size):
        raise ResumeError(
            f"ledger={ledger.path}: does not extend the one that the snapshot of step {snapshot.step} was taken with; "
            "it was replaced by an older or another one, put back the run's own"
        )


def _check_head(ledger: Ledger, head: str | None) -> None:
    """Refuse a ledger that never had a head that was noted elsewhere."""
    if head is not None and head not in ledger.history.heads:
        raise LedgerError(
            f"ledger={ledger.path}: never had the expected head {head}; it was cut, rewritten or put back from an "
            "older copy with its snapshots, and what it no longer counts was spent: find the run's newest one"
        )


def _restore(snapshot: Snapshot, setup: RunSetup) -> None:
    """Load weights, optimizer and further state; a snapshot holds them whole, and each rank takes its own part."""
    here = setup.model.state_dict()
    weights = {name: shards.cut_like(value, here.get(name)) for name, value in snapshot.weights.items()}
    setup.model.load_state_dict(weights)
    _require_same_settings(snapshot.optimizer, setup.optimizer)
    setup.optimizer.load_state_dict(shards.cut_state(snapshot.optimizer, setup.optimizer.param_groups))
    for name, thing in setup.also.items():
        thing.load_state_dict(snapshot.extra[name])


def _require_same_settings(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse an optimizer of another kind than the one whose state was saved, as its settings tell."""
    here = [set(group) for group in optimizer.param_groups]
    there = [set(group) for group in saved["param_groups"]]
    if [names - {"initial_lr", "param_names"} for names in here] != [
        names - {"initial_lr", "param_names"} for names in there
    ]:
        other = sorted(set().union(*here) ^ set().union(*there)) or [f"{len(here)} groups for {len(there)}"]
        raise ResumeError(
            f"optimizer={type(optimizer).__name__}: the run was begun with another kind of optimizer or other groups "
            f"({', '.join(other)}), whose state it cannot go on from; give the one that it began with"
        )


def _stream(secret: bytes, setup: RunSetup) -> Stream:
    """The run's stream of randomness from its key, which the leading rank drew or the snapshot held."""
    return Stream(secret, "run", insecure=setup.options.insecure_seed is not None)
