# SPDX-License-Identifier: Apache-2.0
"""Each planted bug makes the tests of its own module fail, and each still fits the source."""

import pytest

from tests.training.planted import BUGS, ROOT, Bug, is_caught


@pytest.mark.parametrize("name", BUGS)
def test_what_is_exchanged_stands_in_the_source_once(name):
    bug = BUGS[name]
    assert (ROOT / "privguard" / "training" / bug.file).read_text().count(bug.right) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name):
    assert is_caught(BUGS[name])


@pytest.mark.slow
def test_a_copy_without_a_bug_passes():
    """Else a bug could seem to be caught by what the copy lacks."""
    files = sorted({test.partition("::")[0] for bug in BUGS.values() for test in bug.tests.split()})
    assert not is_caught(Bug("clip.py", "NO_BOUND = 1e18", "NO_BOUND = 1e18", " ".join(files)))


def test_there_are_as_many_as_are_promised():
    assert len(BUGS) == 24 + 8  # those of bands
