# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server for the tests of budget books."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

POSTGRES = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server of our own, as a user of its own; skipped where none is installed."""
    if POSTGRES is None:
        assert not os.environ.get("CI"), "PostgreSQL is not installed"
        pytest.skip("PostgreSQL is not installed")
    programs, home = Path(POSTGRES).resolve().parent, Path(tempfile.mkdtemp(prefix="pg"))
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(home, "postgres", "postgres")
    data, quiet = home / "data", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": home, **user}
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "book"], check=True, **quiet)
    server = subprocess.Popen([programs / "postgres", "-D", data, "-k", home, "-h", ""], **quiet)
    url = f"postgresql+psycopg://book@/postgres?host={home}"
    try:
        wait_for(url)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(300)
        shutil.rmtree(home, ignore_errors=True)


def plain_engine(url):
    return create_engine(url, poolclass=NullPool)


def wait_for(url):
    for _ in range(3_000):
        try:
            plain_engine(url).connect().close()
        except OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("PostgreSQL did not start")


@pytest.fixture
def postgres(postgres_server):
    yield postgres_server
    with plain_engine(postgres_server).begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS privguard_book")
