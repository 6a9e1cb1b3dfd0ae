# SPDX-License-Identifier: Apache-2.0
"""One table of what commands exit with: a wrong name is 2, a refusal 1, and only what was changed is 3."""

from pathlib import Path

import pytest

PLAN = {"epsilon": "3", "delta": "1e-5", "examples": "1000", "batch-size": "100", "epochs": "1"}

ANOTHER_FILE = [
    "ledger show notes.txt",
    "ledger verify notes.txt",
    "ledger budget show nowhere.db",
    "inspect notes.txt",
    "inspect nowhere",
    "open notes.txt --key team.key -o out",
    "open notes.txt --key notes.txt -o out",
    "seal notes.txt --to notes.txt -o out",
    "rewrap notes.txt --key team.key --add team.pub",
    "key recipient notes.txt",
    "report verify notes.txt",
    "report nowhere",
    "report compare notes.txt notes.txt",
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, privguard):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("my own notes, and no file of privguard")
    privguard("key", "new", "team.key")
    privguard("key", "recipient", "team.key", "-o", "team.pub")


@pytest.mark.parametrize("command", ANOTHER_FILE)
def test_a_file_of_another_kind_is_a_wrong_name_and_stays_as_it_is(command, privguard):
    told = privguard(*command.split())
    assert told.code == 2, told.err
    assert "remove" not in told.err
    assert "delete" not in told.err
    assert Path("notes.txt").read_text() == "my own notes, and no file of privguard"


def test_only_what_was_changed_is_called_tampered_with(privguard):
    privguard("seal", "notes.txt", "--to", "team.key", "-o", "notes.sealed")
    sealed = bytearray(Path("notes.sealed").read_bytes())
    sealed[-1] ^= 1
    Path("notes.sealed").write_bytes(sealed)
    assert privguard("open", "notes.sealed", "--key", "team.key", "-o", "out").code == 3
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changed", "code", "name"),
    [
        ({"epsilon": "1e-300"}, 2, "epsilon=1e-300"),
        ({"epsilon": "1e9"}, 2, "epsilon=1000000000.0"),
        ({"delta": "1e-300"}, 1, "delta=1e-300"),
        ({"examples": "1000000000000"}, 2, "steps="),
        ({"epochs": "1e9"}, 2, "steps="),
        ({"epsilon": "nan"}, 2, "epsilon=nan"),
        ({"delta": "1"}, 2, "delta=1"),
    ],
)
def test_a_plan_out_of_reach_is_refused_at_once_and_by_its_name(changed, code, name, privguard):
    arguments = [word for option, value in {**PLAN, **changed}.items() for word in (f"--{option}", value)]
    told = privguard("plan", *arguments)
    assert (told.code, name in told.err) == (code, True), told.err
