# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: what is left to chance, and where the real data is."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, whatever the machine's speed; --hypothesis-profile=search looks for new ones.
always = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=20, **always)
settings.register_profile("ci", max_examples=100, **always)
settings.register_profile("search", max_examples=1_000, **always | {"derandomize": False})
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fixtures, and then the test, find torch's own generator at one place, in whatever order the tests run.

    pytest-randomly does so for ``random`` and NumPy. What is keyed from the operating system's entropy is none of it.
    """
    _seed_torch()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """See :func:`pytest_runtest_setup`."""
    _seed_torch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test has the same name in every process: two workers with names of their own run nothing at all."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: the name holds an address in memory; give parametrize ids=")


def _seed_torch() -> None:
    if (torch := sys.modules.get("torch")) is not None:  # fresh from its import it has a seed of its own
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A user's own signing key is made on first use; the tests make theirs elsewhere, commands that they run too."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; a test that needs it is skipped where it is not."""
    folder = Path(os.environ.get("PRIVGUARD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set PRIVGUARD_DATA")
    return folder
