# SPDX-License-Identifier: Apache-2.0
"""How a private run begins: ``start`` in a new folder, or ``resume`` from a sealed snapshot.

With several ranks, all of them call these functions. What writes to the folder runs on the leading rank alone, and its
result, or its error, is sent to the others (``privguard.training.ranks.Ranks.from_lead``).
"""

import json
import logging
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from privguard.accounting.ledger import Ledger
from privguard.checkpoint import durable
from privguard.checkpoint.store import Snapshot, load
from privguard.errors import PrivacyError, ResumeError
from privguard.records import Manifest
from privguard.runs import folder as names
from privguard.runs import manifest, resuming
from privguard.runs.data_commitment import commitment
from privguard.runs.options import RunSetup
from privguard.runs.outlook import FaintSignalWarning, faint, outlook_of
from privguard.runs.run import PrivateRun
from privguard.runs.seeds import METHOD, Streams
from privguard.training import shards
from privguard.training.clip import trainable
from privguard.training.noise.mechanism import mechanism
from privguard.training.plan import Plan
from privguard.training.step import Follower, check_optimizer

_log = logging.getLogger(__name__)


def start(plan: Plan, setup: RunSetup) -> PrivateRun:
    """Begin a run in a new folder, with a snapshot of its untrained state, so that it can be resumed from the start on.

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
    expected = outlook_of(plan, setup.model)
    ledgers: list[Ledger] = []  # one on the leading rank, which opens it; none on the others

    def begin() -> tuple[Manifest, dict[str, bytes]]:
        require_no_run(setup.folder)
        setup.signing_key()  # what is missing shows before the folder is made
        streams = Streams.fresh(setup.options.insecure_seed)
        facts = manifest.describe(
            secrets.token_hex(8),
            plan=plan,
            model=setup.model,
            clipper=setup.clipper,
            probed=setup.probed,
            recipients=to,
            insecure=streams.current.insecure,
            commitment=commitment(setup.dataset, streams.salt),
            mechanism=how,
            outlook=expected,
        )
        facts = replace(facts, unchecked=(*facts.unchecked, *manifest.unchecked(setup)))
        if setup.charge is not None:
            facts = replace(facts, data={**facts.data, "book": setup.charge.id})
        ledgers.append(_opened(plan, setup, facts))
        ledgers[0].key(METHOD, streams.current.nonce)
        return facts, streams.secrets()

    facts, keys = setup.ranks.from_lead(begin)
    if expected.faint and setup.ranks.lead:
        warnings.warn(faint(expected), FaintSignalWarning, stacklevel=3)
    setup.ranks.copy_from_lead(setup.model.state_dict().values())
    streams = Streams.of(keys, insecure=facts.insecure)
    run = PrivateRun(plan, setup, facts=facts, ledger=_mine(ledgers, 0), streams=streams)
    run.save_first()
    return run


def resume(plan: Plan, setup: RunSetup, *, snapshot: Path | None = None) -> PrivateRun:
    """Go on with the run in the folder, from ``snapshot`` or else from its newest one.

    Samples and noise are keyed afresh: where the folder is a copy or was put back from a backup, an old key would add
    one noise to two releases. What the ledger holds beyond the snapshot stays spent. ``continue_exactly`` keeps the
    key, where a head of the ledger that was kept outside the folder shows that this is the only newest one; a run with
    an insecure seed keeps it always. A run with nothing left to take is resumed all the same, for its state.

    Raises:
        ResumeError: no run or no snapshot is there, the plan is another one, a seed is given to a run that has a
            claim, the budget book or the data set is another one, or the ledger does not extend the snapshot.
        BudgetExceededError: what the run gave back when it stopped was given to others since.
        LedgerError: the ledger is missing, not what was written, or without the head that ``trust`` or the budget book
            expects.
        TamperedError: the key does not open the snapshot, it was changed, or the run's own signer did not seal it.
        RollbackError: the snapshot is older than ``trust`` demands.
    """
    check_optimizer(setup.optimizer, trainable(setup.model).values())
    facts = read_manifest(setup.folder)
    resuming.require_same_run(plan, setup, facts)
    resuming.require_same_noise(setup, facts, _mechanism(plan, setup)["noise"])
    state = open_snapshot(snapshot or _newest(setup), setup, min_step=setup.options.trust.min_step)
    ledgers: list[Ledger] = []  # as in start

    def begin() -> tuple[int, dict[str, bytes]]:
        left = Ledger.read(setup.folder / names.LEDGER)
        resuming.require_extends(left, state, facts)
        resuming.require_head(left, setup.options.trust.expect_head)
        keys = Streams.of(state.generators["streams"], insecure=facts.insecure)
        data = resuming.other_data(setup, facts, left, keys.salt)
        setup.signing_key()
        ledger = Ledger.open(setup.folder / names.LEDGER)
        ledgers.append(ledger)
        exact = resuming.exactly(setup, state, left, ledger)
        if setup.charge is not None:
            setup.charge.resume(facts.run, plan, left=left, ledger=ledger, exact=exact)
        streams = keys if exact or facts.insecure else keys.renewed()
        if streams is not keys:
            ledger.key(METHOD, streams.current.nonce)
        if data is not None:
            ledger.data(*data)
        _log.log(*resuming.said(plan, state, ledger.position))
        return ledger.position, streams.secrets()

    try:
        position, secrets_ = setup.ranks.from_lead(begin)
        _restore(state, setup)
        streams = Streams.of(secrets_, insecure=facts.insecure)
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
    if plan.bands > 1:
        setup.options.refuse_with_bands()
    parameters = trainable(setup.model)
    noise, shape = setup.options.performance.noise, setup.clipper.shape_term
    return mechanism(plan, parameters, processes=setup.ranks.size, noise=noise, shape_term=shape)


def _opened(plan: Plan, setup: RunSetup, facts: Manifest) -> Ledger:
    """The run's new ledger; the whole run is reserved in the budget book first, and given back if no ledger is made."""
    if setup.charge is None:
        return write_public_files(setup.folder, facts)
    if facts.insecure:
        raise PrivacyError("insecure_seed: such a run has no guarantee, so no budget can hold it; leave book= out")
    setup.charge.begin(facts.run, plan)
    try:
        ledger = write_public_files(setup.folder, facts)
        setup.charge.keep_key(setup.folder)
    except BaseException:
        setup.charge.cancel()
        raise
    return ledger


def open_snapshot(snapshot: Path, setup: RunSetup, *, min_step: int = 0) -> Snapshot:
    """The content of a sealed snapshot that the run's own signer sealed. With several ranks all of them call this."""
    return load(snapshot, setup.opening_key(), signer=setup.signers(), min_step=min_step)


def require_no_run(folder: Path) -> None:
    """Raise ResumeError where the folder holds a run."""
    if (folder / names.MANIFEST).exists():
        raise ResumeError(
            f"run={folder}: holds a run already; resume it (resume=True, resume_from_checkpoint=True), or name a new "
            "folder"
        )


def write_public_files(folder: Path, facts: Manifest) -> Ledger:
    """Write the manifest and a ledger that opens with its digest, and return the ledger."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    about = {"run": facts.run, "manifest": facts.digest(), "plan": facts.plan}
    ledger = Ledger.create(folder / names.LEDGER, about)
    durable.create(folder / names.MANIFEST, text.encode(), mode=0o644)
    return ledger


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in ``folder``.

    Raises:
        ResumeError: there is no run.
    """
    try:
        return Manifest.from_json(json.loads((folder / names.MANIFEST).read_text()))
    except FileNotFoundError:
        raise ResumeError(
            f"run={folder}: there is no {names.MANIFEST}, so no run to go on with; start one without resume=True"
        ) from None


def _mine(ledgers: list[Ledger], position: int) -> Ledger | Follower:
    """The ledger on the rank that opened it; on the others, where the list is empty, a follower at ``position``."""
    return ledgers[0] if ledgers else Follower(position)


def _newest(setup: RunSetup) -> Path:
    """The run folder's newest snapshot."""
    snapshots = names.snapshots(setup.folder)
    if not snapshots:
        raise ResumeError(
            f"run={setup.folder}: there is no snapshot; what the ledger reserved is spent, start a new run"
        )
    return snapshots[-1]


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
