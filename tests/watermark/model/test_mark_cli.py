"""``privguard mark`` from a plain model to a verdict, every command by its exit code."""

import json

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from privguard.attest import journal
from privguard.attest.statement import SigningKey
from privguard.cli import app
from privguard.errors import ProtocolInvalidError
from privguard.watermark import theft


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["mark", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """A folder in which the owner committed and embedded, and a thief fine-tuned."""
    here = tmp_path_factory.mktemp("mark")
    safetensors.numpy.save_file(theft.tensors(digits.model), here / "plain.safetensors")
    for name, (inputs, labels) in {"own": digits.own, "thief": digits.thief, "test": digits.test}.items():
        np.savez(here / f"{name}.npz", inputs=inputs.numpy(), labels=labels.numpy())
    notary = ["--notary", here / "notary.json"]
    run("commit", here / "claim", "--weights", here / "plain.safetensors", "--shape", "64", "--recipients", 5,
        "--identity", here / "owner.key", *notary)  # fmt: skip
    run("embed", here / "claim", "--weights", here / "plain.safetensors", "--public", here / "own.npz", *notary,
        "--steps", 30, "--recipient", 3, "-o", here / "marked.safetensors")  # fmt: skip
    marked = theft.load(digits.model, safetensors.numpy.load_file(here / "marked.safetensors"))
    stolen = theft.fine_tune(rate=1e-3, epochs=5)(marked, digits.means(digits.thief))
    safetensors.numpy.save_file(
        theft.tensors(theft.reorder(stolen, digits.means(digits.thief))), here / "stolen.safetensors"
    )
    safetensors.numpy.save_file(theft.tensors(digits.innocent), here / "innocent.safetensors")
    return here


def test_embedding_is_recorded_or_does_not_happen(folder, monkeypatch):
    SigningKey.generate().write(folder / "journal.pem")
    monkeypatch.setenv("PRIVGUARD_JOURNAL", str(folder / "access.jsonl"))
    monkeypatch.setenv("PRIVGUARD_JOURNAL_KEY", str(folder / "journal.pem"))
    embed = ("embed", folder / "claim", "--weights", folder / "plain.safetensors", "--public", folder / "own.npz",
             "--notary", folder / "notary.json", "--steps", 1, "--recipient", 2, "-o", folder / "again")  # fmt: skip
    run(*embed)
    done = [one for one in journal.read(folder / "access.jsonl") if one.result == "done"]
    assert [one.action for one in done] == ["mark", "mark"]
    assert [one.subject.split(",")[0] for one in done] == ["marked copy", "copy for recipient 2"]
    assert all(one.sha256 in one.subject for one in done)
    (folder / "again").unlink()
    monkeypatch.setenv("PRIVGUARD_JOURNAL", str(folder))
    with pytest.raises(OSError, match="directory"):
        run(*embed)
    assert not (folder / "again").exists()


def challenge(folder, suspect, *more, code=0):
    return run("challenge", folder / "claim", "--suspect", folder / f"{suspect}.safetensors", "--notary",
               folder / "notary.json", "--verifier", folder / "verifier.key", "--natural", folder / "test.npz", "-o",
               folder / f"{suspect}.evidence", *more, code=code)  # fmt: skip


def test_a_stolen_model_is_proven_and_an_innocent_one_is_not(folder):
    white = ["--unmarked", folder / "plain.safetensors", "--triggers", 40, "--leaves", 10]
    assert "PROVEN" in challenge(folder, "stolen", *white)
    assert "NOT PROVEN" in challenge(folder, "innocent", "--triggers", 40, code=1)
    run("trust", folder / "trust.json", "--notary", folder / "notary.json", "--verifier", folder / "verifier.pub")
    verify = ["verify", folder / "stolen.evidence", "--trust", folder / "trust.json"]
    report = json.loads(run(*verify, "--suspect", folder / "stolen.safetensors", "--json"))
    assert report["outcome"] == "proven"
    assert report["verdicts"][1]["log10_p"] < -6
    searched = json.loads(run(*verify, "--candidates", 1000, "--json"))
    assert searched["multiplicity"] == 1000 * report["multiplicity"]
    assert "INVALID" in run(*verify, "--suspect", folder / "innocent.safetensors", code=3)
    (folder / "nobody.json").write_text('{"authorities": [], "beacons": [], "verifiers": [], "log": null}')
    assert "INVALID" in run("verify", folder / "stolen.evidence", "--trust", folder / "nobody.json", code=3)


def test_the_leaking_recipient_is_named_and_nobody_else(folder):
    notary = ["--notary", folder / "notary.json", "--unmarked", folder / "plain.safetensors", "--level", 1e-6]
    found = json.loads(run("trace", folder / "claim", "--suspect", folder / "stolen.safetensors", *notary, "--json"))
    assert [item["recipient"] for item in found] == [3]
    assert "nobody" in run("trace", folder / "claim", "--suspect", folder / "innocent.safetensors", *notary, code=1)


@pytest.mark.slow
def test_a_drill_writes_its_table_and_picture(folder):
    out = run("drill", folder / "claim", "--weights", folder / "marked.safetensors", "--unmarked",
              folder / "plain.safetensors", "--thief", folder / "thief.npz", "--test", folder / "test.npz", "--notary",
              folder / "notary.json", "--epochs", 1, "-o", folder / "drill")  # fmt: skip
    assert "prune 80 % + fine-tune" in out
    assert (folder / "drill" / "survival.md").read_text().startswith("| attack |")
    assert "<svg" in (folder / "drill" / "survival.svg").read_text()


def test_outside_authorities_are_asked_by_file(folder, tmp_path):
    new = ["commit", tmp_path / "claim", "--weights", folder / "plain.safetensors", "--shape", "64"]
    run(*new, "--identity", tmp_path / "me.key")
    assert (tmp_path / "claim" / "request.tsq").exists()
    with pytest.raises(ProtocolInvalidError, match="without timestamp"):
        run("embed", tmp_path / "claim", "--weights", folder / "plain.safetensors", "--public", folder / "own.npz",
            "--notary", folder / "notary.json", "-o", tmp_path / "x")  # fmt: skip
    with pytest.raises(ValueError, match="--weights, --identity, --shape"):
        run("commit", tmp_path / "another")


def test_only_the_committed_model_can_be_marked(folder, tmp_path):
    with pytest.raises(ProtocolInvalidError, match="not the unmarked model"):
        run("embed", folder / "claim", "--weights", folder / "innocent.safetensors", "--public", folder / "own.npz",
            "--notary", folder / "notary.json", "-o", tmp_path / "x")  # fmt: skip
