# SPDX-License-Identifier: Apache-2.0
"""The one claim of a run: what its ledger costs, with all that the figure rests on.

Everything that shows a run's ε asks here (the run itself, Trainer's result and log, the report), so that a run that
stopped early, raised or crashed has one figure.
"""

from dataclasses import replace

from privguard.accounting.accountant import Spending, epsilon, spent
from privguard.accounting.history import History
from privguard.records import Claim, Manifest, Relation, Unit


def claim_of(manifest: Manifest, history: History) -> Claim:
    """ε of all events in ``history``, under the relation and for the unit that the run was planned with.

    What was not checked is said by the manifest, and by the ledger where a resumed run reads other data.
    """
    plan = manifest.plan
    claim = spent(history, delta=plan["delta"], relation=Relation(plan["relation"]), unit=Unit(plan["unit"]))
    return replace(claim, unchecked=(*manifest.unchecked, *history.unchecked))


def epsilon_of(manifest: Manifest, history: Spending) -> float:
    """The ε of ``claim_of`` alone, which is quicker."""
    plan = manifest.plan
    return epsilon(history, delta=plan["delta"], relation=Relation(plan["relation"]))
