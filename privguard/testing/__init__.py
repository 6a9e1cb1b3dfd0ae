# SPDX-License-Identifier: Apache-2.0
"""Conformance suites: what an extension has to keep, as functions that any test runner can call.

Each raises ``AssertionError`` with the promise that does not hold. They use the real engine, detector, verifier and
envelope, need no network, and take seconds. Statistical checks fix their seeds; the chance that a right extension fails
one of them is at most 10⁻⁶, over the choice of that seed.
"""

from privguard.testing.attacks import check_attack as check_attack
from privguard.testing.marks import check_answered_mark as check_answered_mark
from privguard.testing.recipients import check_key_service as check_key_service
from privguard.testing.rules import check_layer_rule as check_layer_rule
from privguard.testing.schemes import check_text_scheme as check_text_scheme
