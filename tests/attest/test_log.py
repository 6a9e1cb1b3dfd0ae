# SPDX-License-Identifier: Apache-2.0
"""The witnessed log: entries are counted, history cannot be rewritten, and a head needs its witnesses."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from privguard.attest import log as logs
from privguard.attest.log import Entry, Extract, Log, Trusted, Witness
from privguard.attest.statement import SigningKey
from privguard.errors import TamperedError

OPERATOR, FIRST, SECOND = SigningKey.generate(), SigningKey.generate(), SigningKey.generate_p256()


def entry(number, identity="me"):
    return Entry(identity=identity, kind="commitment", digest=f"{number:064x}", details={"n": number})


def trusted(*witnesses, quorum=None):
    keys = tuple(witness.identity for witness in witnesses)
    return Trusted(
        origin="test", operator=OPERATOR.identity, witnesses=keys, quorum=len(keys) if quorum is None else quorum
    )


def a_log(entries=5):
    return Log("test", OPERATOR, [entry(number) for number in range(entries)])


def a_witness(key=FIRST):
    return Witness(key, operator=OPERATOR.identity)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_every_entry_under_a_witnessed_head_comes_back(size):
    witness, other = a_witness(), a_witness(SECOND)
    extract = Extract.from_json(json.loads(json.dumps(a_log(size).extract(witness, other).to_json())))
    assert logs.verify(extract, log=trusted(witness, other)) == tuple(entry(n) for n in range(size))


def test_a_witness_follows_a_growing_log_and_refuses_a_rewritten_one():
    witness, log = a_witness(), a_log(3)
    log.extract(witness)
    for number in range(3, 9):
        log.append(entry(number))
        logs.verify(log.extract(witness), log=trusted(witness))
    forked = Log("test", OPERATOR, [*log.entries[:2], entry(99), *log.entries[3:], entry(100)])
    with pytest.raises(TamperedError, match="history was rewritten"):
        forked.extract(witness)
    with pytest.raises(TamperedError, match="history was rewritten"):
        witness.cosign(Log("test", OPERATOR, [entry(n) for n in range(20, 40)]).head(), proof=[])
    assert witness.size == 9


def test_a_witness_signs_each_size_once_and_only_at_the_right_time():
    witness, log = a_witness(), a_log(3)
    now = datetime(2026, 3, 1, tzinfo=UTC)
    log.extract(witness, at=now)
    with pytest.raises(TamperedError, match="each size is signed once"):
        log.extract(witness, at=now + timedelta(minutes=1))
    log.append(entry(3))
    for wrong in (timedelta(minutes=6), timedelta(minutes=-6)):
        with pytest.raises(TamperedError, match="not the present"):
            witness.cosign(log.head(at=now + wrong), proof=log.consistency(3), at=now)
    signed = witness.cosign(log.head(at=now), proof=log.consistency(3), at=now)
    assert logs.verify_head(signed, log=trusted(witness))[1:] == (4, now)


def test_dropped_added_reordered_and_edited_entries_are_refused():
    witness = a_witness()
    extract = a_log().extract(witness)
    whole = extract.entries
    for entries in (whole[:-1], (*whole, entry(5)), whole[::-1], (entry(7), *whole[1:]), ()):
        with pytest.raises(TamperedError, match="not the ones under its head"):
            logs.verify(replace(extract, entries=entries), log=trusted(witness))


def test_a_head_needs_its_operator_its_witnesses_and_its_origin():
    witness = a_witness()
    extract = a_log().extract(witness)
    with pytest.raises(TamperedError, match="expected 2"):
        logs.verify(extract, log=trusted(witness, a_witness(SECOND)))
    logs.verify(extract, log=trusted(witness, a_witness(SECOND), quorum=1))
    with pytest.raises(TamperedError, match="not signed by"):
        logs.verify(extract, log=replace(trusted(witness), operator=SECOND.identity))
    with pytest.raises(TamperedError, match="expected 'other'"):
        logs.verify(extract, log=replace(trusted(witness), origin="other"))
    with pytest.raises(TamperedError, match="not signed by"):
        Witness(FIRST, operator=SECOND.identity).cosign(extract.head, proof=[])


def test_one_witness_named_twice_counts_once():
    witness = a_witness()
    extract = a_log().extract(witness)
    doubled = replace(trusted(witness), witnesses=(witness.identity, witness.identity), quorum=2)
    with pytest.raises(TamperedError, match="expected 2"):
        logs.verify(extract, log=doubled)


def test_trust_survives_its_file_and_its_quorum_is_checked():
    assert Trusted.from_json(json.loads(json.dumps(trusted(a_witness()).to_json()))) == trusted(a_witness())
    with pytest.raises(ValueError, match="quorum=1"):
        trusted(quorum=1)
    for broken in ({}, {"entries": [{}], "head": {}}, {"entries": None, "head": {}}):
        with pytest.raises(TamperedError):
            Extract.from_json(broken)
