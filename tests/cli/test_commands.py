# SPDX-License-Identifier: Apache-2.0
"""One rule for all commands: help that teaches, ``--json``, exit codes, and no traceback unless it was asked for."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from privguard import cli
from privguard.cli import _output
from privguard.cli.examples import USES
from privguard.errors import LedgerError, ProtocolInvalidError, SealError


def leaves(command, path=()):
    children = getattr(command, "commands", None)
    if children is None:
        return {path: command}
    return {name: leaf for word, child in children.items() for name, leaf in leaves(child, (*path, word)).items()}


APP = typer.main.get_command(cli.app)
COMMANDS = leaves(APP)
ALL = pytest.mark.parametrize("path", COMMANDS, ids=" ".join)


@ALL
def test_help_teaches(path):
    command = COMMANDS[path]
    assert command.help
    assert command.help[0].isupper()
    assert "privguard " + " ".join(path) in command.epilog
    undocumented = [each.name for each in command.params if not getattr(each, "help", "")]
    assert not undocumented


@ALL
def test_every_command_speaks_json(path):
    assert any("--json" in each.opts for each in COMMANDS[path].params)


@ALL
def test_a_wrong_argument_is_a_sentence_and_no_traceback(path, privguard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("getpass.getpass", lambda *_args, **_more: "a passphrase")
    if path == ("demo",):
        assert privguard("demo", "--config", "nowhere.toml").code == 2
        return
    assert privguard(*path, "--no-such-option").code == 2
    said = privguard(*path, *_made_up(COMMANDS[path]))
    assert said.code in (0, 1, 2, 3), said.err
    assert "Traceback" not in said.err
    assert said.code == 0 or said.err.strip()


def _made_up(command):
    """Something of the right kind for whatever a command cannot do without: files that are not there, ones, letters."""
    words = []
    for each in command.params:
        if not each.required:
            continue
        value = {int: "1", float: "0.5"}.get(each.type_descriptor.annotation, "nowhere")
        words += [value] if each.param_type_name == "argument" else [each.opts[0], value]
    return words


@pytest.mark.parametrize("use", USES)
def test_examples_name_commands_and_options_that_exist(use):
    words = shlex.split(use)
    path = next(path for path in COMMANDS if tuple(words[: len(path)]) == path)
    known = {option for each in COMMANDS[path].params for option in each.opts}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known


def test_a_tampered_ledger_exits_with_3_and_one_line(demonstration, tmp_path, privguard):
    run = shutil.copytree(demonstration[0], tmp_path / "run")
    ledger = run / "ledger.jsonl"
    text = ledger.read_text()
    ledger.write_text(re.sub(r'"times":(\d+)', lambda times: f'"times":{int(times[1]) + 1}', text, count=1))
    assert ledger.read_text() != text
    refused = privguard("report", run)
    assert refused.code == 3
    assert refused.err.startswith(LedgerError.__name__)
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SealError("no"), 1),
        (ValueError("no"), 2),
        (FileNotFoundError("no"), 2),
        (LedgerError("no"), 3),
        (ProtocolInvalidError("no"), 3),
        (KeyError("no"), 70),
        (RuntimeError("no"), 70),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else str(each),
)
def test_the_kind_of_an_error_decides_the_exit_code(error, code, privguard, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("privguard.report.assemble.assemble", fail)
    said = privguard("report", ".")
    assert said.code == code
    assert "Traceback" not in said.err
    shown = privguard("-v", "report", ".")
    assert shown.code == code
    assert "Traceback" in shown.err
    assert "in fail" in shown.err
    os.environ.pop(_output.DEBUG)


def test_the_variable_shows_the_traceback_too():
    command = [sys.executable, "-m", "privguard", "key", "inspect", "nowhere"]
    for value in ("", "1"):
        said = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {_output.DEBUG: value}, check=False
        )
        assert said.returncode == 2
        assert ("Traceback" in said.stderr) == bool(value)


def test_json_goes_to_stdout_and_talk_to_stderr(privguard, tmp_path):
    said = privguard("key", "new", tmp_path / "team.key", "--json")
    assert json.loads(said.out)["id"]
    assert "safe place" in said.err
    shown = privguard("key", "recipient", tmp_path / "team.key", "--json")
    assert json.loads(shown.out)["recipient"] == privguard("key", "recipient", tmp_path / "team.key").out.strip()


def test_the_shell_completes_commands():
    said = subprocess.run(
        [Path(sys.executable).with_name("privguard")],
        capture_output=True, text=True, check=False,
        env=os.environ | {"_PRIVGUARD_COMPLETE": "complete_bash", "COMP_WORDS": "privguard re", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert sorted(said.stdout.split()) == ["report", "rewrap"]


def test_help_and_the_module_say_the_same_exit_codes(privguard):
    said = privguard("--help").out
    assert all(f"{code} " in said and f"{code} " in cli.__doc__ for code in (0, 1, 2, 3, 70, 130))
