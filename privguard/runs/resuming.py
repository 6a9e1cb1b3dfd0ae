# SPDX-License-Identifier: Apache-2.0
"""What a run that goes on must be: the same plan, book, data and ledger; its newest copy, where that matters."""

import logging
from typing import Any

from privguard.accounting.history import History
from privguard.accounting.ledger import Ledger
from privguard.checkpoint.store import Snapshot
from privguard.errors import LedgerError, ResumeError
from privguard.records import Manifest
from privguard.runs.data_commitment import commitment
from privguard.runs.options import RunSetup
from privguard.training.plan import Plan


def require_same_run(plan: Plan, setup: RunSetup, facts: Manifest) -> None:
    """Raise ResumeError where plan, seed or budget book are not those that the run began with."""
    if facts.plan != plan.facts():
        changed = sorted(name for name, value in plan.facts().items() if facts.plan.get(name) != value)
        raise ResumeError(f"plan: {', '.join(changed)} differ from the run's own; a budget is planned once")
    if setup.options.insecure_seed is not None and not facts.insecure:
        raise ResumeError(
            f"insecure_seed={setup.options.insecure_seed}: this run was started without one and has a claim, which "
            "anybody who can repeat its noise would break; resume it without a seed"
        )
    own, given = facts.data.get("book"), setup.charge.id if setup.charge is not None else None
    if own != given:
        raise ResumeError(
            f"book={given}: this run is charged to {own or 'no book'}; give the book= and data_set= that it began with"
        )


def require_same_noise(setup: RunSetup, facts: Manifest, noise: str) -> None:
    """Raise ResumeError where the run would add another kind of noise than its claim and report speak of."""
    if (began := facts.mechanism.get("noise")) != noise:
        raise ResumeError(
            f"noise={setup.options.performance.noise!r}: this run began with {began!r} noise, which its claim and "
            "report speak of; resume it with the same"
        )


def require_extends(ledger: History, snapshot: Snapshot, facts: Manifest) -> None:
    """Raise ResumeError for a ledger that is another run's, or older than the snapshot."""
    if snapshot.run != facts.run or ledger.facts.get("manifest") != facts.digest():
        raise ResumeError(
            f"run={facts.run}: manifest, ledger and snapshot belong to different runs; put back the run's own files"
        )
    if not ledger.extends(snapshot.ledger_head, snapshot.ledger_size):
        raise ResumeError(
            f"ledger of run {facts.run}: does not extend the one that the snapshot of step {snapshot.step} was taken "
            "with; it was replaced by an older or another one, put back the run's own"
        )


def require_head(ledger: History, head: str | None) -> None:
    """Raise LedgerError for a ledger that never had a head that was noted elsewhere."""
    if head is not None and head not in ledger.heads:
        raise LedgerError(
            f"ledger: never had the expected head {head}; it was cut, rewritten or put back from an older copy with "
            "its snapshots, and what it no longer counts was spent: find the run's newest one"
        )


def other_data(setup: RunSetup, facts: Manifest, ledger: History, salt: bytes) -> tuple[str, str] | None:
    """The commitment to the data where it is not the run's own, and why that is meant; None where it is the run's own.

    Raises:
        ResumeError: the data set is another one, and nobody said that this is meant.
    """
    last = ledger.other_data[-1].commitment if ledger.other_data else facts.data.get("commitment")
    here = commitment(setup.dataset, salt)
    if here is None or last is None or here == last:
        return None
    if setup.options.other_data is None:
        raise ResumeError(
            "data: not the records that this run has read so far (their salted digest differs); resume with the same "
            'data set in the same order, or say why another one is meant: options=RunOptions(other_data="..."), which '
            "the report repeats"
        )
    return here, setup.options.other_data


def exactly(setup: RunSetup, snapshot: Snapshot, left: History, ledger: Ledger) -> bool:
    """Whether the run goes on with its old key, which only a head kept outside the folder can allow.

    Raises:
        ResumeError: it was asked for, and nothing outside the folder shows that this is the newest state of the run and
            the only one; or the last process ended without a clean stop.
    """
    if not setup.options.continue_exactly:
        return False
    why = ""
    if setup.charge is None and setup.options.trust.expect_head != left.head:
        why = (
            "needs a head that was kept outside the folder, the newest one: options=RunOptions(trust=Trust(expect_head="
            "...)), or the run's budget book; a copy of the folder brings back everything in it"
        )
    elif tuple(snapshot.generators["place"]) != ledger.place:
        why = "the folder is a copy, and another one may go on as well"
    elif not left.settled or left.position != snapshot.step:
        why = "the last process ended without a clean stop, so positions may have been used"
    if why:
        raise ResumeError(f"continue_exactly: {why}; omit it, and samples and noise are drawn afresh")
    return True


def said(plan: Plan, snapshot: Snapshot, position: int) -> tuple[Any, ...]:
    """Level, message and values of what the user reads about a run that goes on."""
    lost = position - snapshot.step
    if lost == 0:
        return logging.INFO, "going on after step %d of %d", position, plan.steps
    return (
        logging.WARNING,
        (
            "the last process ended without a clean stop: %d steps that it took or reserved after the checkpoint of "
            "step %d stay spent, %.1f %% of the plan, so %d of the plan's %d are left to take"
        ),
        lost,
        snapshot.step,
        100 * lost / plan.steps,
        max(0, plan.steps - position),
        plan.steps,
    )
