# SPDX-License-Identifier: Apache-2.0
"""Commands act on the record: an entry for each seal, open, re-wrap and grant, or nothing is done."""

import json
import os
from pathlib import Path

import pytest

from privguard.attest import journal
from tests.cli.command import privguard


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """A folder with keys, something to seal, and an environment that names a journal."""
    monkeypatch.chdir(tmp_path)
    Path("model.bin").write_bytes(os.urandom(5_000))
    for arguments in (("new", "team.key", "--symmetric"), ("new", "other.key", "--x25519"), ("new", "--signing", "j")):
        privguard("key", *arguments)
    privguard("key", "recipient", "other.key", "-o", "other.pub")
    monkeypatch.setenv("PRIVGUARD_JOURNAL", "access.jsonl")
    monkeypatch.setenv("PRIVGUARD_JOURNAL_KEY", "j")
    capsys.readouterr()
    return tmp_path


def told() -> list[tuple[str, str, str]]:
    return [(one.action, one.role, one.result) for one in journal.read("access.jsonl") if one.result != "begun"]


SEAL = ("seal", "model.bin", "--to", "team.key")


def test_every_command_writes_its_entries(place, capsys):
    privguard(*SEAL)
    privguard("open", "model.bin.sealed", "--key", "team.key", "-o", "out")
    privguard("open", "model.bin.sealed", "--key", "other.key", "-o", "out2", code=3)
    privguard("rewrap", "model.bin.sealed", "--key", "team.key", "--add-auditor", "other.pub")
    privguard("rewrap", "model.bin.sealed", "--key", "other.key", "--add", "other.pub", code=1)
    assert told() == [
        ("seal", "", "done"),
        ("open", "resume", "done"),
        ("open", "", "refused: TamperedError"),
        ("grant", "", "done"),
        ("rewrap", "resume", "done"),
        ("grant", "", "refused: SealError"),
        ("rewrap", "", "refused: SealError"),
    ]
    assert len({one.sha256 for one in journal.read("access.jsonl") if one.result == "done" and one.sha256}) == 1
    capsys.readouterr()
    privguard("journal", "verify", "access.jsonl", "--trust", "j.pub", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["entries"], found["unfinished"]) == (14, [])
    privguard("journal", "show", "access.jsonl")
    assert capsys.readouterr().out.count("other.pub") == 0  # the key id stands there, not where its file lay
    privguard("journal", "show", "access.jsonl", "--json")
    assert len(json.loads(capsys.readouterr().out)) == 14


def test_inspecting_opens_nothing_and_leaves_no_entry(place):
    privguard(*SEAL)
    privguard("inspect", "model.bin.sealed")
    assert told() == [("seal", "", "done")]


@pytest.fixture(params=["a folder in its place", "damaged", "no signing key", "an empty name", "a key that is none"])
def unwritable(request, place, monkeypatch) -> int:
    """A journal that takes no entry, and the exit code that says so."""
    if request.param == "a folder in its place":
        Path("access.jsonl").unlink(missing_ok=True)
        Path("access.jsonl").mkdir()
    elif request.param == "damaged":
        Path("access.jsonl").write_text("no entry\n")
        return 3
    elif request.param == "an empty name":
        monkeypatch.setenv("PRIVGUARD_JOURNAL_KEY", "")
    elif request.param == "no signing key":
        Path("j").unlink()
    else:
        monkeypatch.setenv("PRIVGUARD_JOURNAL_KEY", "team.key")
    return 2


def test_what_cannot_be_recorded_does_not_happen(place, unwritable, monkeypatch, capsys):
    with monkeypatch.context() as without:
        without.delenv("PRIVGUARD_JOURNAL")
        privguard(*SEAL)
    before = Path("model.bin.sealed").read_bytes()
    for arguments in (
        (*SEAL, "-o", "again.sealed"),
        ("open", "model.bin.sealed", "--key", "team.key", "-o", "again"),
        ("rewrap", "model.bin.sealed", "--key", "team.key", "--add", "other.pub"),
    ):
        capsys.readouterr()
        privguard(*arguments, code=unwritable)
        said = capsys.readouterr().err
        assert any(
            word in said for word in ("access.jsonl", "PRIVGUARD_JOURNAL_KEY", "j:", "'j'", "team.key", "journal")
        )
    assert not Path("again").exists()
    assert not Path("again.sealed").exists()
    assert Path("model.bin.sealed").read_bytes() == before


def test_a_cut_tail_is_found_against_a_size_and_head_noted_elsewhere(place, capsys):
    privguard(*SEAL)
    privguard("open", "model.bin.sealed", "--key", "team.key", "-o", "out")
    capsys.readouterr()
    verify = ("journal", "verify", "access.jsonl", "--trust", "j.pub")
    privguard(*verify, "--json")
    noted = json.loads(capsys.readouterr().out)
    anchor = ("--size", str(noted["entries"]), "--head", noted["head"])
    lines = Path("access.jsonl").read_bytes().splitlines(keepends=True)
    Path("access.jsonl").write_bytes(b"".join(lines[:2]))
    privguard(*verify)
    privguard(*verify, *anchor, code=3)
    assert "cut or written anew" in capsys.readouterr().err
    Path("access.jsonl").write_bytes(b"".join([lines[0], *lines[2:]]))
    privguard(*verify, code=3)
    assert "line 2" in capsys.readouterr().err
