# SPDX-License-Identifier: Apache-2.0
"""A signed report stays until a newer one is signed, and is kept even then."""

import json

import pytest
from reported import finding, keep
from typer.testing import CliRunner

from privguard.attest.statement import SigningKey
from privguard.cli import app
from privguard.errors import TamperedError
from privguard.report.signed import sign
from privguard.report.signed.verify import verify


def report(*words):
    made = CliRunner().invoke(app, ["report", *map(str, words)])
    assert made.exit_code == 0, made.output
    return made


def test_a_report_made_again_keeps_the_signature_that_still_holds(signed, officer):
    before = {name: (signed / name).read_bytes() for name in (*sign.PAGES, sign.SIGNED)}
    assert "signed: " in report(signed).stdout
    report(signed, "--json")
    assert {name: (signed / name).read_bytes() for name in before} == before
    assert verify(signed, signers=[officer.identity]).named


def test_a_newer_report_sets_the_signed_one_aside_and_says_where(signed, officer):
    before = {name: (signed / name).read_bytes() for name in (*sign.PAGES, sign.SIGNED)}
    head = sign.check(sign.read(signed / sign.SIGNED))[1].ledger_head
    keep(signed, finding(0.11))
    made = report(signed, "--json")
    place = signed / "signed" / head[:16]
    assert str(place) in made.stderr
    assert {name: (place / name).read_bytes() for name in before} == before
    assert not (signed / sign.SIGNED).exists()
    with pytest.raises(TamperedError, match=r"audit\.json: was changed") as changed:
        verify(place, signers=[officer.identity])
    assert len(str(changed.value).splitlines()) == 1  # nothing else differs
    assert json.loads(made.stdout)["findings"]


def test_a_second_officer_does_not_take_the_place_of_the_first(signed, tmp_path):
    first = (signed / sign.SIGNED).read_bytes()
    SigningKey.generate().write(tmp_path / "second.pem")
    report(signed, "--sign", tmp_path / "second.pem")
    report(signed, "--sign", tmp_path / "second.pem")
    kept = sorted((signed / "signed").glob("*/" + sign.SIGNED))
    assert len(kept) == 2
    assert first in [path.read_bytes() for path in kept]


def test_what_calls_itself_a_signature_is_kept_even_where_it_cannot_be_read(signed):
    (signed / sign.SIGNED).write_text("not a signature")
    report(signed)
    assert (signed / "signed" / "unreadable" / sign.SIGNED).read_text() == "not a signature"
