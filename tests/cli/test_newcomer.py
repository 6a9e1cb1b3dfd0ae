# SPDX-License-Identifier: Apache-2.0
"""The newcomer's hour: a starting script runs as it was written, and the doctor says what is missing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("way", ["loop", "accelerate"])
def test_a_starting_script_trains_to_its_budget_as_it_was_written(way, privguard):
    small = ("--examples", 60, "--features", 3, "--batch-size", 20, "--epochs", 1, "--epsilon", 3)
    assert privguard("init", way, "-o", "train.py", *small).code == 0
    assert privguard("key", "new", "team.key").code == 0
    run = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(("ε=3.000 at δ=1e-05", "ε=2.99"))
    assert Path("runs/first/run.json").exists()


def test_a_script_for_the_trainer_is_python(privguard):
    assert privguard("init", "trainer", "-o", "train.py", "--examples", 500).code == 0
    compile(Path("train.py").read_text(), "train.py", "exec")
    assert "examples=EXAMPLES" in Path("train.py").read_text()


def test_no_file_is_replaced_and_a_name_cannot_become_code(privguard):
    Path("train.py").write_text("mine")
    told = privguard("init", "loop", "-o", "train.py")
    assert (told.code, "is there already" in told.err) == (2, True)
    assert Path("train.py").read_text() == "mine"
    Path("data").write_text("rows")
    hostile = '"); import os #'
    assert privguard("init", "loop", "-o", "new.py", "--book", hostile, "--data", "data").code == 0
    names = [node.value for node in ast.walk(ast.parse(Path("new.py").read_text())) if isinstance(node, ast.Constant)]
    assert hostile in names  # a text, and nothing that runs


def test_the_doctor_names_what_is_missing_and_exits_with_2(privguard):
    healthy = privguard("doctor", "--json")
    assert healthy.code == 0
    checks = {check["name"]: check for check in json.loads(healthy.out)["checks"]}
    assert checks["locks"]["state"] == "ok"
    ill = privguard("doctor", "--book", "nowhere.db", "--key", "nowhere.key")
    assert ill.code == 2
    problems = [line for line in ill.out.splitlines() if line.startswith("problem")]
    assert len(problems) == 2
    assert "no such book" in ill.out
