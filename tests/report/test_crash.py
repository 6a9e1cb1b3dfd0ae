# SPDX-License-Identifier: Apache-2.0
"""A run that crashed, went on and stopped cleanly: the report does not say that every step took effect."""

from privguard.accounting.calibrate import dp_sgd
from privguard.accounting.ledger import Ledger
from privguard.report import facts
from privguard.report.assemble import assemble


def test_a_crash_before_a_clean_stop_is_told(folder):
    said = dict(facts.guarantee(assemble(folder)))["Steps spent"]
    assert said.endswith("(all took effect)")
    for _ in range(2):  # the first of these writers ends without settling
        with Ledger.open(folder / "ledger.jsonl") as ledger:
            ledger.reserve(dp_sgd(sample_rate=0.1, noise_multiplier=4.0))
    with Ledger.open(folder / "ledger.jsonl") as ledger:
        ledger.reserve(dp_sgd(sample_rate=0.1, noise_multiplier=4.0))
        ledger.settle(ledger.position)
    assert Ledger.read(folder / "ledger.jsonl").settled
    said = dict(facts.guarantee(assemble(folder)))["Steps spent"]
    assert said.endswith("(after a crash; some of them may not have taken effect)")
