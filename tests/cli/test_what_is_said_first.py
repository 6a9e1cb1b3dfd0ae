# SPDX-License-Identifier: Apache-2.0
"""What a command needs is looked at before it writes, and what it could not read is named."""

from pathlib import Path

import pytest

from tests.cli.command import privguard


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("binary").write_bytes(b"\xff\xfe\x00")
    Path("text").write_text("the only copy")


def said(capsys, *arguments, code):
    capsys.readouterr()
    privguard(*arguments, code=code)
    return " ".join(capsys.readouterr().err.split())


def test_a_key_that_cannot_sign_leaves_the_older_report_and_its_signature(capsys, monkeypatch):
    monkeypatch.setattr("privguard.report.assemble.assemble", lambda *_, **__: pytest.fail("went on"))
    Path("run").mkdir()
    Path("run/report.dsse.json").write_text("signed")
    assert "'text': private key" in said(capsys, "report", "run", "--sign", "text", code=2)
    assert "run: is a folder" in said(capsys, "report", "run", "--html", "run", code=2)
    assert Path("run/report.dsse.json").read_text() == "signed"


def test_what_is_no_report_is_named(capsys):
    for name in ("text", "binary"):
        found = said(capsys, "report", "compare", name, "text", code=2)
        assert f"{name}: expected a run folder or its report.json" in found


def test_a_passphrase_file_that_holds_none_is_named(capsys):
    found = said(capsys, "seal", "text", "--passphrase-file", "binary", code=2)
    assert "binary: expected a passphrase in its first line" in found


def test_a_size_below_one_is_named(capsys):
    plan = ("plan", "--epsilon", "3", "--delta", "1e-5", "--batch-size", "10", "--epochs", "1", "--examples")
    assert "examples=-1: expected a whole number, 1 or above" in said(capsys, *plan, "-1", code=2)
