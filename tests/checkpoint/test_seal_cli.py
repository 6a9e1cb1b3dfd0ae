# SPDX-License-Identifier: Apache-2.0
"""The commands, run as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from privguard.checkpoint import Key, Snapshot, save


def privguard(*arguments, cwd, expect=0, given="") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "privguard", *map(str, arguments)],
        cwd=cwd, input=given, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "COLUMNS": "300"}, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture
def place(tmp_path):
    (tmp_path / "model.bin").write_bytes(os.urandom(100_000))
    privguard("key", "new", "team.key", cwd=tmp_path)
    privguard("key", "recipient", "team.key", "-o", "team.pub", cwd=tmp_path)
    return tmp_path


def test_seal_inspect_rewrap_open(place):
    shown = privguard("seal", "model.bin", "--to", "team.pub", "--json", cwd=place)
    assert json.loads(shown.stdout)["form"] == "file"
    assert "still there in clear" in shown.stderr
    privguard("key", "new", "other.key", "--symmetric", cwd=place)
    assert (
        "resume  symmetric"
        in privguard("rewrap", "model.bin.sealed", "--key", "team.key", "--add", "other.key", cwd=place).stdout
    )
    done = privguard("rewrap", "model.bin.sealed", "--key", "other.key", "--remove", "team.pub", "--json", cwd=place)
    assert "Not revoked" in done.stderr
    assert len(json.loads(done.stdout)["resume"]) == 1
    privguard("open", "model.bin.sealed", "--key", "team.key", "-o", "again.bin", cwd=place, expect=3)
    assert not (place / "again.bin").exists()
    privguard("open", "model.bin.sealed", "--key", "other.key", "-o", "again.bin", cwd=place)
    assert (place / "again.bin").read_bytes() == (place / "model.bin").read_bytes()


def test_an_auditor_is_let_in_to_manifest_and_ledger_alone(place):
    ledger = b'{"kind":"opened"}\n'
    officer, team = Key.generate_x25519(), Key.read(place / "team.key")
    officer.write(place / "officer.key")
    state = Snapshot(weights={"w": torch.ones(2)}, run="r", step=3, ledger=ledger)
    save(state, place / "run.sealed", to=team, auditors=officer)
    refused = privguard("open", "run.sealed", "--key", "officer.key", cwd=place, expect=1)
    assert "may audit" in refused.stderr
    done = privguard("open", "run.sealed", "--audit", "--key", "officer.key", "--json", cwd=place)
    assert json.loads(done.stdout) == {"paths": ["run.audit/manifest.json", "run.audit/ledger.jsonl"]}
    assert (place / "run.audit" / "ledger.jsonl").read_bytes() == ledger
    assert json.loads((place / "run.audit" / "manifest.json").read_text())["step"] == 3
    privguard("open", "run.sealed", "--audit", "--key", "officer.key", cwd=place, expect=2)
    privguard("seal", "model.bin", "--to", "team.pub", cwd=place)
    privguard("open", "model.bin.sealed", "--audit", "--key", "officer.key", "-o", "no", cwd=place, expect=3)
    assert not (place / "no").exists()


def test_passphrases_come_from_a_prompt_or_a_file(place):
    (place / "words").write_text("five random words are enough\n")
    privguard("seal", "model.bin", "--passphrase-file", "words", cwd=place)
    done = privguard("open", "model.bin.sealed", "-o", "out", cwd=place, given="five random words are enough\n")
    assert "five" not in done.stdout + done.stderr
    privguard("open", "model.bin.sealed", "-o", "out2", cwd=place, given="wrong\n", expect=3)


def test_refusals_have_their_exit_codes_and_show_no_secret(place):
    assert "at least one recipient" in privguard("seal", "model.bin", cwd=place, expect=1).stderr
    assert "model.bin.sealed" not in os.listdir(place)  # noqa: PTH208
    privguard("inspect", "absent", cwd=place, expect=2)
    privguard("key", "new", "team.key", cwd=place, expect=2)
    secret = (place / "team.key").read_text().split()[-1]
    for command in (
        ("key", "inspect", "team.key"),
        ("key", "recipient", "team.key"),
        ("key", "inspect", "team.key", "--json"),
    ):
        done = privguard(*command, cwd=place)
        assert secret not in done.stdout + done.stderr
    assert json.loads(privguard("key", "inspect", "team.pub", "--json", cwd=place).stdout)["opens"] is False
