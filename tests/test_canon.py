# SPDX-License-Identifier: Apache-2.0
"""One form for every value, whatever it was made of."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privguard import _canon
from privguard.records import Claim, Relation

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), JSON))
def test_order_does_not_matter_and_the_form_is_json(value):
    shuffled = dict(reversed(value.items()))
    assert _canon.canonical(value) == _canon.canonical(shuffled)
    plain = json.dumps(_canon.to_json(value))  # JSON has one kind of number: 2e16 may be written as an integer
    assert json.loads(_canon.canonical(value), parse_int=float) == json.loads(plain, parse_int=float)


def test_records_enums_bytes_and_infinity_have_a_form():
    claim = Claim(epsilon=math.inf, delta=1e-5)
    assert _canon.to_json(claim)["epsilon"] == "inf"
    assert _canon.to_json([Relation.REPLACE_ONE, b"\x01\xff", (1, None)]) == ["replace-one", "01ff", [1, None]]
    assert len(claim.digest()) == 64


def test_what_json_cannot_carry_is_refused():
    with pytest.raises(TypeError, match="object: expected a record"):
        _canon.to_json({"a": object()})
