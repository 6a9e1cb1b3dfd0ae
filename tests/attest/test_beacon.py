# SPDX-License-Identifier: Apache-2.0
"""Beacon pulses: two real ones of NIST's chain 1, and local ones with one field changed."""

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from privguard.attest import beacon
from privguard.attest.beacon import Beacon
from privguard.attest.local import LocalBeacon
from privguard.errors import TamperedError

LOCAL = LocalBeacon.generate(bits=2048)
NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
REAL = json.loads((Path(__file__).parent / "vectors" / "nist-chain-1-pulse-54610.json").read_text())


def test_a_real_pulse_of_nist_has_the_output_value_that_its_fields_give():
    fields = REAL["pulse"]
    output = beacon.output_value(beacon.signed_bytes(fields), bytes.fromhex(fields["signatureValue"]))
    assert output.hex().upper() == fields["outputValue"]
    moved = {**fields, "pulseIndex": 54611}
    assert beacon.output_value(beacon.signed_bytes(moved), bytes.fromhex(fields["signatureValue"])) != output


def test_a_real_pulse_is_not_believed_under_another_certificate():
    with pytest.raises(TamperedError, match="expected that beacon's certificate"):
        beacon.verify(REAL, beacon=LOCAL.beacon)


def test_the_first_pulse_after_a_moment_is_verified_and_says_its_time():
    pulse = beacon.verify(LOCAL.pulse_after(NOW), beacon=LOCAL.beacon)
    assert NOW < pulse.time <= NOW + timedelta(minutes=1)
    assert len(pulse.output) == 64
    assert LOCAL.pulse_after(NOW) == LOCAL.pulse_after(NOW + timedelta(seconds=29))
    assert LOCAL.pulse_after(NOW) != LOCAL.pulse_after(NOW + timedelta(minutes=1))
    assert LOCAL.pulse_after(pulse.time)["pulse"]["pulseIndex"] == pulse.index + 1


FIELDS = [name for name in REAL["pulse"] if name not in {"external", "listValues"}]


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_can_be_changed(field):
    published = copy.deepcopy(LOCAL.pulse_after(NOW))
    value = published["pulse"][field]
    published["pulse"][field] = value + 1 if isinstance(value, int) else ("f" if value[0] != "f" else "0") + value[1:]
    with pytest.raises(TamperedError):
        beacon.verify(published, beacon=LOCAL.beacon)


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_can_be_left_out(field):
    published = copy.deepcopy(LOCAL.pulse_after(NOW))
    del published["pulse"][field]
    with pytest.raises(TamperedError):
        beacon.verify(published, beacon=LOCAL.beacon)


@pytest.mark.parametrize("broken", [{}, {"pulse": None}, {"pulse": []}, {"pulse": {"listValues": [], "external": {}}}])
def test_what_is_no_pulse_is_refused(broken):
    with pytest.raises(TamperedError):
        beacon.verify(broken, beacon=LOCAL.beacon)


def test_links_and_external_values_are_signed_too():
    for change in (
        lambda p: p["external"].update(value="11" * 64),
        lambda p: p["listValues"][4].update(value="11" * 64),
        lambda p: p["listValues"].reverse(),
        lambda p: p["listValues"].pop(),
    ):
        published = copy.deepcopy(LOCAL.pulse_after(NOW))
        change(published["pulse"])
        with pytest.raises(TamperedError):
            beacon.verify(published, beacon=LOCAL.beacon)


def test_a_local_beacon_says_so_and_survives_its_file():
    assert not LOCAL.beacon.external
    again = LocalBeacon.from_json(json.loads(json.dumps(LOCAL.to_json())))
    assert again.pulse_after(NOW) == LOCAL.pulse_after(NOW)
    assert Beacon.from_json(LOCAL.beacon.to_json()) == LOCAL.beacon
