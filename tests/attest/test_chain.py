# SPDX-License-Identifier: Apache-2.0
"""The file behind ledger and journal: whole lines or none, whatever the disk does."""

import resource

import dp_accounting as dp
import pytest

from privguard.accounting.ledger import Ledger
from privguard.attest import journal
from privguard.attest.chain import ChainFile, ChangedError
from privguard.attest.journal import Journal, recorded_in
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, open_sealed, seal

SIGNER = SigningKey.generate()


@pytest.fixture
def room():
    """Limit how far files of this process may grow: a disk that fills in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_does_not_fit_is_taken_back_and_said(tmp_path, room):
    with ChainFile.create(tmp_path / "x", mode=0o600) as file:
        file.append(b"first")
        room(10)
        with pytest.raises(OSError, match="File too large"):
            file.append(b"second")
        assert (tmp_path / "x").read_bytes() == b"first\n"
        room(100)
        file.append(b"third")
    assert (tmp_path / "x").read_bytes() == b"first\nthird\n"


def test_a_strict_journal_with_no_room_for_a_line_stops_the_opening(tmp_path, room):
    key, (source) = Key.generate_symmetric(), tmp_path / "a"
    source.write_text("x")
    seal(source, tmp_path / "s", to=key)
    book = Journal(tmp_path / "journal", by=SIGNER)
    book.record("seal", "first")
    size = (tmp_path / "journal").stat().st_size
    room(size + 100)
    with recorded_in(book), pytest.raises(OSError, match="File too large"):
        open_sealed(tmp_path / "s", key)
    assert (tmp_path / "journal").stat().st_size == size
    room(1 << 20)
    with recorded_in(book):
        open_sealed(tmp_path / "s", key).close()
    assert journal.verify(tmp_path / "journal", trusted=[SIGNER.identity]).entries == 3


def test_every_cut_of_the_last_line_is_mended_by_the_next(tmp_path):
    path = tmp_path / "journal"
    Journal(path, by=SIGNER).record("seal", "one")
    first = path.read_bytes()
    Journal(path, by=SIGNER).record("seal", "two")
    whole = path.read_bytes()
    for end in (*range(len(first), len(whole) - 1, 29), len(whole) - 1):
        path.write_bytes(whole[:end])
        Journal(path, by=SIGNER).record("open", "three")
        assert [entry.subject for entry in journal.read(path)] == ["one", "three"]
        assert journal.verify(path, trusted=[SIGNER.identity]).entries == 2


@pytest.mark.parametrize("harm", ["replace", "remove", "grow", "cut"])
def test_a_file_that_changed_under_its_writer_is_found_before_the_next_line(tmp_path, harm):
    path = tmp_path / "x"
    with ChainFile.create(path, mode=0o600) as file:
        file.append(b"first")
        if harm == "replace":
            (tmp_path / "y").write_bytes(b"first\n")
            (tmp_path / "y").replace(path)
        elif harm == "remove":
            path.unlink()
        else:
            path.write_bytes(b"first\nmore\n" if harm == "grow" else b"fir")
        with pytest.raises(ChangedError):
            file.append(b"second")


def test_a_planted_link_is_not_followed_to_a_new_file(tmp_path):
    (tmp_path / "journal").symlink_to(tmp_path / "stranger")
    with pytest.raises(FileExistsError):
        Journal(tmp_path / "journal", by=SIGNER).record("open", "x")
    assert not (tmp_path / "stranger").exists()


def test_a_file_without_the_end_of_a_line_is_no_journal(tmp_path):
    (tmp_path / "journal").write_bytes(b"x" * 200_000)
    with pytest.raises(journal.TamperedError, match="no journal"):
        Journal(tmp_path / "journal", by=SIGNER).record("open", "x")
    assert (tmp_path / "journal").stat().st_size == 200_000


def test_a_ledger_with_no_room_reserves_nothing_and_goes_on_after_it_was_opened_again(tmp_path, room):
    event = dp.GaussianDpEvent(1.0)
    ledger = Ledger.create(tmp_path / "ledger", {"run": "r"})
    ledger.reserve(event, 2)
    room((tmp_path / "ledger").stat().st_size + 20)
    with pytest.raises(OSError, match="nothing was reserved"):
        ledger.reserve(event, 3)
    room(1 << 20)
    with Ledger.open(tmp_path / "ledger") as again:
        assert again.reserve(event, 1) == range(2, 3)
