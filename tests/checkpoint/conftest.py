# SPDX-License-Identifier: Apache-2.0
"""What the tests of sealed files share."""

import pytest

from privguard.checkpoint import Key


@pytest.fixture(scope="session")
def key() -> Key:
    return Key.generate_symmetric()


@pytest.fixture(scope="session")
def other_key() -> Key:
    return Key.generate_symmetric()
