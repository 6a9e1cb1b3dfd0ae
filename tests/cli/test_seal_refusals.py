# SPDX-License-Identifier: Apache-2.0
"""What the commands around sealed files refuse, in words that say what to do, and without leaving anything behind."""

import errno
import json
import os
from pathlib import Path

import pytest

from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, durable
from tests.cli.command import privguard


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.bin").write_bytes(os.urandom(5_000))
    Path("run").mkdir()
    Path("run/a").write_bytes(b"in clear")
    Key.generate_symmetric().write("team.key")
    return tmp_path


def refused(capsys, *arguments: str, code: int) -> str:
    before = sorted(str(path) for path in Path().rglob("*"))
    capsys.readouterr()
    privguard(*arguments, code=code)
    assert sorted(str(path) for path in Path().rglob("*")) == before
    return " ".join(capsys.readouterr().err.split())


def test_something_in_clear_is_never_overwritten_by_a_seal_and_an_older_seal_is(capsys):
    Path("notes.txt").write_text("the only copy")
    said = refused(capsys, "seal", "model.bin", "--to", "team.key", "-o", "notes.txt", code=2)
    assert "notes.txt: is there already and not sealed; choose another name" in said
    assert Path("notes.txt").read_text() == "the only copy"
    assert "is there already" in refused(capsys, "seal", "model.bin", "--to", "team.key", "-o", "model.bin", code=2)
    assert "is a folder" in refused(capsys, "seal", "model.bin", "--to", "team.key", "-o", "run", code=2)
    assert "is a file" in refused(capsys, "seal", "run", "--to", "team.key", "-o", "notes.txt", code=2)
    for source in ("model.bin", "run"):
        privguard("seal", source, "--to", "team.key")
        privguard("seal", source, "--to", "team.key")


def test_what_is_not_sealed_is_said_to_be_not_sealed(capsys):
    assert "model.bin: does not begin as a sealed file does" in refused(capsys, "inspect", "model.bin", code=2)
    for command in (("inspect", "run"), ("open", "run", "--key", "team.key", "-o", "out")):
        assert "one without privguard.seal; seal it with" in refused(capsys, *command, code=1)


def test_a_rewrap_that_changes_nothing_is_a_mistake(capsys):
    privguard("seal", "model.bin", "--to", "team.key")
    said = refused(capsys, "rewrap", "model.bin.sealed", "--key", "team.key", code=2)
    assert "--add, --add-auditor, --remove: expected at least one" in said


def test_a_key_file_is_never_overwritten(capsys):
    before = Path("team.key").read_bytes()
    for kind in ((), ("--signing",)):
        said = refused(capsys, "key", "new", "team.key", *kind, code=2)
        assert "team.key: is there already; choose another name" in said
    assert Path("team.key").read_bytes() == before


@pytest.mark.parametrize("source", ["model.bin", "run"])
def test_a_full_disk_names_the_file_and_leaves_nothing(source, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "pwrite_all", full)
    said = refused(capsys, "seal", source, "--to", "team.key", code=2)
    assert f"{source}.sealed:Nospaceleftondevice" in said.replace(" ", "")  # a long path is broken over lines


def test_key_inspect_knows_signing_keys_and_what_a_key_signs_as(capsys):
    signer = SigningKey.generate()
    signer.write(Path("run.pem"))
    signer.identity.write(Path("run.pub"))
    derived = Key.read("team.key").signer()
    assert derived is not None
    for path, wanted in (
        ("run.pem", {"id": signer.identity.key_id, "signs": True}),
        ("run.pub", {"id": signer.identity.key_id, "signs": False}),
        ("team.key", {"signer": derived.identity.key_id, "opens": True}),
    ):
        capsys.readouterr()
        privguard("key", "inspect", path, "--json")
        told = capsys.readouterr().out
        assert wanted.items() <= json.loads(told).items()
        assert signer.to_pem().splitlines()[1] not in told
