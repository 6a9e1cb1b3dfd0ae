# SPDX-License-Identifier: Apache-2.0
"""Tokens of the public detector: spent once over all processes, kept as digests, refused by name."""

import os
import signal
import sqlite3

import pytest

from privguard.integrations.public_detector.tokens import Tokens


def test_a_one_time_token_is_spent_once_over_processes_that_are_killed(tmp_path):
    store = Tokens(tmp_path / "tokens.db")
    clients = [store.client(store.issue("one", one_time=True)) for _ in range(60)]
    children = []
    for number in range(4):
        if (child := os.fork()) == 0:
            for place, client in enumerate(clients):
                if Tokens(tmp_path / "tokens.db").spend(client):
                    with (tmp_path / "spent").open("a") as file:
                        file.write(f"{place}\n")
                if number == 0 and place == 20:
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [signal.SIGKILL, 0, 0, 0]
    spent = (tmp_path / "spent").read_text().split()
    assert len(spent) == len(set(spent)) == 60
    assert all(store.client("pgd_x") is None and not store.spend(client) for client in clients)


def test_client_tokens_are_not_used_up_and_end_when_they_are_revoked(tmp_path):
    store = Tokens(tmp_path / "tokens.db")
    client = store.client(store.issue("press"))
    assert client.limited_as == "press"
    assert all(store.spend(client) for _ in range(3))
    assert (store.revoke("press"), store.revoke("press")) == (1, 0)
    assert not store.spend(client)


def test_what_is_no_client_or_no_database_is_refused(tmp_path):
    with pytest.raises(ValueError, match="client"):
        Tokens(tmp_path / "tokens.db").issue("  ")
    with pytest.raises(ValueError, match="days"):
        Tokens(tmp_path / "tokens.db").issue("a", days=0)
    (tmp_path / "other").write_text("no database" * 99)
    with pytest.raises(OSError, match="does not answer"):
        Tokens(tmp_path / "other")
    kept = sqlite3.connect(tmp_path / "tokens.db")
    assert kept.execute("select count(*) from tokens").fetchone() == (0,)
    kept.close()
