# SPDX-License-Identifier: Apache-2.0
"""The journal finds every change of itself, and with a strict one nothing happens unrecorded."""

import json
import threading

import pytest
import torch

from privguard.attest import journal
from privguard.attest.journal import Journal, recorded_in
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, Snapshot, load, rewrap, save
from privguard.errors import TamperedError

SIGNER = SigningKey.generate()


@pytest.fixture
def path(tmp_path):
    book = Journal(tmp_path / "journal", by=SIGNER, who="ada")
    for number in range(5):
        book.record("open", f"file-{number}", role="resume", sha256="ab" * 32)
    return tmp_path / "journal"


def check(path, **more):
    return journal.verify(path, trusted=[SIGNER.identity], **more)


def test_a_journal_holds_and_says_where_it_stands(path):
    found = check(path)
    assert found.entries == 5
    assert found.signers == (str(SIGNER.identity),)
    assert [entry.subject for entry in journal.read(path)] == [f"file-{number}" for number in range(5)]
    Journal(path, by=SIGNER).record("seal", "later")
    assert check(path, anchor=(5, found.head)).entries == 6


@pytest.mark.parametrize("harm", ["drop", "swap", "repeat", "edit", "cut line", "first dropped", "foreign", "not json"])
def test_every_harm_is_found(path, harm, tmp_path):
    lines = path.read_bytes().splitlines(keepends=True)
    if harm == "foreign":
        Journal(tmp_path / "other", by=SigningKey.generate()).record("open", "x")
        lines[-1] = (tmp_path / "other").read_bytes()
    changed = {
        "drop": lines[:2] + lines[3:],
        "swap": [lines[1], lines[0], *lines[2:]],
        "repeat": [*lines, lines[-1]],
        "edit": [*lines[:4], lines[4].replace(b"ada", b"eve")],
        "cut line": [*lines[:4], lines[4][:-9]],
        "first dropped": lines[1:],
        "foreign": lines,
        "not json": [*lines, b"hello\n"],
    }[harm]
    path.write_bytes(b"".join(changed))
    with pytest.raises(TamperedError):
        check(path)


def test_a_cut_tail_is_found_against_an_anchor_only(path):
    head = check(path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert check(path).entries == 3
    with pytest.raises(TamperedError, match="cut or written anew"):
        check(path, anchor=(5, head))


def test_every_flipped_bit_is_found(path):
    content = bytearray(path.read_bytes())
    end = 8 * len(content)
    for bit in (*range(0, end, 97), *range(end - 96, end)):  # base64 leaves bits idle at the end of a signature
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(TamperedError):
            check(path)
        content[bit // 8] ^= 1 << bit % 8


def test_a_line_cut_by_a_crash_is_replaced_by_the_next(path):
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    Journal(path, by=SIGNER).record("seal", "next")
    assert check(path).entries == 6


def test_writers_side_by_side_make_one_chain(tmp_path):
    def write():
        for _ in range(10):
            Journal(tmp_path / "journal", by=SIGNER).record("open", "x")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert check(tmp_path / "journal").entries == 40


def snapshot() -> Snapshot:
    return Snapshot(weights={"w": torch.ones(3)}, run="r", step=1)


def test_doors_are_recorded_with_role_digest_and_result(tmp_path):
    key, new = Key.generate_symmetric(), Key.generate_x25519()
    with recorded_in(Journal(tmp_path / "journal", by=SIGNER)):
        save(snapshot(), tmp_path / "x", to=key)
        load(tmp_path / "x", key)
        rewrap(tmp_path / "x", key, add=[new])
        with pytest.raises(TamperedError):
            load(tmp_path / "x", Key.generate())
    load(tmp_path / "x", key)
    entries = list(journal.read(tmp_path / "journal"))
    told = [(entry.action, entry.result) for entry in entries if entry.result != "begun"]
    assert told == [
        ("seal", "done"),
        ("open", "done"),
        ("grant", "done"),
        ("rewrap", "done"),
        ("open", "refused: TamperedError"),
    ]
    assert {entry.sha256 for entry in entries if entry.result == "done" and entry.action != "grant"} == {
        entries[1].sha256
    }
    assert new.id in next(entry for entry in entries if entry.action == "grant").subject
    assert check(tmp_path / "journal").unfinished == ()


def test_a_strict_journal_that_cannot_be_written_stops_the_act(tmp_path):
    key = Key.generate_symmetric()
    (tmp_path / "journal").mkdir()
    with recorded_in(Journal(tmp_path / "journal", by=SIGNER)), pytest.raises(OSError, match="directory"):
        save(snapshot(), tmp_path / "x", to=key)
    assert not (tmp_path / "x").exists()
    lenient = Journal(tmp_path / "journal", by=SIGNER, strict=False)
    with recorded_in(lenient), pytest.warns(UserWarning, match="is not recorded"):
        save(snapshot(), tmp_path / "x", to=key)
    assert (tmp_path / "x").exists()


def test_what_began_and_did_not_end_is_named(tmp_path):
    book = Journal(tmp_path / "journal", by=SIGNER)
    book.record("open", "a", result="begun")
    book.record("open", "b", result="begun")
    book.record("open", "a")
    assert check(tmp_path / "journal").unfinished == (2,)


def test_the_commands_show_and_verify(path, tmp_path, capsys):
    from privguard.cli import app

    SIGNER.identity.write(tmp_path / "signer.pem")
    app(["journal", "verify", str(path), "--trust", str(tmp_path / "signer.pem"), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["entries"] == 5
    app(["journal", "show", str(path)], standalone_mode=False)
    assert "file-3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="both or neither"):
        app(
            ["journal", "verify", str(path), "--trust", str(tmp_path / "signer.pem"), "--size", "3"],
            standalone_mode=False,
        )


def test_an_unknown_action_is_refused(path):
    with pytest.raises(ValueError, match="action='look'"):
        Journal(path, by=SIGNER).record("look", "x")


@pytest.mark.parametrize(("line", "said"), [(b"hello", "is no entry"), (b'{"entry":{}}', "is no entry")])
def test_a_line_that_cannot_be_read_is_named(path, line, said):
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(TamperedError, match=f"journal: line 6 {said}"):
        check(path)
    with pytest.raises(TamperedError, match="journal: its last line is no entry"):
        Journal(path, by=SIGNER).record("open", "more")


def test_what_a_thread_does_inside_the_block_is_recorded_too(tmp_path):
    key = Key.generate_symmetric()
    with recorded_in(Journal(tmp_path / "journal", by=SIGNER)):
        thread = threading.Thread(target=lambda: save(snapshot(), tmp_path / "x", to=key))
        thread.start()
        thread.join()
        with recorded_in(None):
            save(snapshot(), tmp_path / "y", to=key)
    save(snapshot(), tmp_path / "z", to=key)
    told = [(entry.subject, entry.result) for entry in journal.read(tmp_path / "journal")]
    assert told == [(str(tmp_path / "x"), "begun"), (str(tmp_path / "x"), "done")]


def test_a_killed_opening_stays_unfinished_when_the_same_file_is_opened_again(tmp_path):
    book = Journal(tmp_path / "journal", by=SIGNER)
    book.record("open", "a", result="begun")
    book.record("open", "a", result="begun")
    book.record("open", "a")
    assert check(tmp_path / "journal").unfinished == (1,)
