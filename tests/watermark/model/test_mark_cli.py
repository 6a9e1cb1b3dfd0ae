# SPDX-License-Identifier: Apache-2.0
"""``privguard mark`` from a plain model to a verdict, every command by its exit code."""

import json

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn
from typer.testing import CliRunner

from privguard.attest import journal, timestamp
from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.cli import app
from privguard.cli.mark import _files as files
from privguard.cli.mark import _models as models
from privguard.errors import PrivguardError, ProtocolInvalidError
from privguard.watermark.model import removals, theft
from privguard.watermark.model.embed import Lesson, embed
from privguard.watermark.model.lay.structure import of_model


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
        "--steps", 30, "--least", 0, "--recipient", 3, "-o", here / "marked.safetensors")  # fmt: skip
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
             "--notary", folder / "notary.json", "--steps", 1, "--least", 0, "--recipient", 2, "-o",
             folder / "again")  # fmt: skip
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
    with pytest.raises(ValueError, match="--weights, --identity: expected both"):
        run("commit", tmp_path / "another")


def test_only_the_committed_model_can_be_marked(folder, tmp_path):
    with pytest.raises(ProtocolInvalidError, match="not the unmarked model"):
        run("embed", folder / "claim", "--weights", folder / "innocent.safetensors", "--public", folder / "own.npz",
            "--notary", folder / "notary.json", "-o", tmp_path / "x")  # fmt: skip


def test_evidence_is_never_replaced_and_no_leaf_is_burned_for_a_file_that_cannot_be_written(folder, tmp_path):
    log = (folder / "notary.json").read_bytes()
    (tmp_path / "there").write_text("the only copy")
    for place, refused in (("there", FileExistsError), (".", IsADirectoryError), ("no/folder", NotADirectoryError)):
        with pytest.raises(refused, match=r"name (another|a file)"):
            challenge(folder, "innocent", "-o", tmp_path / place)
    assert (folder / "notary.json").read_bytes() == log
    assert (tmp_path / "there").read_text() == "the only copy"


def test_the_marked_model_never_replaces_the_unmarked_one(folder):
    before = (folder / "plain.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="is the unmarked model"):
        run("embed", folder / "claim", "--weights", folder / "plain.safetensors", "--public", folder / "own.npz",
            "--notary", folder / "notary.json", "-o", folder / "plain.safetensors")  # fmt: skip
    assert (folder / "plain.safetensors").read_bytes() == before


def test_a_claim_is_begun_once_and_whole(folder, tmp_path):
    again = ["commit", folder / "claim", "--weights", folder / "innocent.safetensors", "--shape", "64", "--identity"]
    with pytest.raises(FileExistsError, match="holds a claim already"):
        run(*again, folder / "owner.key")
    new = ["commit", tmp_path / "claim", *again[2:], folder / "owner.key"]
    (tmp_path / "text").write_text("no notary")
    with pytest.raises(ValueError, match="expected a local notary's file"):
        run(*new, "--notary", tmp_path / "text")
    with pytest.raises(ValueError, match="shape='8 by 8': expected whole numbers such as 1,28,28"):
        run(*new[:5], "8 by 8", *new[6:])
    assert not (tmp_path / "claim").exists()
    run(*new, "--notary", folder / "notary.json")


def test_what_is_no_answer_of_an_authority_does_not_replace_one(folder, tmp_path):
    claim, server = tmp_path / "claim", LocalNotary.generate()
    run("commit", claim, "--weights", folder / "plain.safetensors", "--shape", "64", "--identity", tmp_path / "me.key")
    (tmp_path / "answer.tsr").write_bytes(server.stamp((claim / "request.tsq").read_bytes()))
    said = CliRunner().invoke(app, ["mark", "commit", str(claim), "--timestamp", str(tmp_path / "answer.tsr")])
    assert said.exit_code == 0
    assert "Timestamped" in said.stderr
    assert "Not finished" in said.stderr
    before = (claim / "commitment.json").read_bytes()
    (tmp_path / "page.tsr").write_text("<html>503")
    (tmp_path / "other.tsr").write_bytes(server.stamp(timestamp.request(b"something else")))
    for wrong, said in (("page", "expected an authority's granted answer"), ("other", "over other bytes")):
        with pytest.raises(ValueError, match=said):
            run("commit", claim, "--timestamp", tmp_path / f"{wrong}.tsr")
    with pytest.raises(ValueError, match=r"page\.tsr: expected JSON"):
        run("commit", claim, "--pulse", tmp_path / "page.tsr")
    (tmp_path / "pulse.json").write_text('{"pulse": {}}')
    with pytest.raises(ValueError, match="expected a beacon's JSON of one pulse"):
        run("commit", claim, "--pulse", tmp_path / "pulse.json")
    assert (claim / "commitment.json").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--suspect", "expected a model in safetensors"),
        ("--unmarked", "expected a model in safetensors"),
        ("--natural", "expected an .npz file of plain arrays"),
        ("--notary", "expected a local notary's file"),
        ("--verifier", "expected an unencrypted PEM key"),
    ],
)
def test_a_wrong_file_is_named(folder, tmp_path, option, said):
    (tmp_path / "wrong").write_text("nothing of the kind")
    with pytest.raises(ValueError, match=f"wrong.*{said}"):
        challenge(folder, "innocent", option, tmp_path / "wrong", "-o", tmp_path / "evidence")


def test_arrays_and_architectures_that_do_not_fit_are_named(folder, tmp_path, digits):
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz: arrays=\['pictures'\]: expected one called 'inputs'"):
        challenge(folder, "innocent", "--natural", tmp_path / "other.npz", "-o", tmp_path / "evidence")
    small = {"0.weight": np.zeros((4, 64), np.float32), "2.weight": np.zeros((10, 4), np.float32)}
    safetensors.numpy.save_file(small, tmp_path / "small.safetensors")
    trace = ("trace", folder / "claim", "--suspect", tmp_path / "small.safetensors", "--unmarked")
    assert "nobody" in run(*trace, folder / "plain.safetensors", "--notary", folder / "notary.json", code=1)


def test_a_mistyped_notary_is_not_made_up(folder, tmp_path):
    trace = ("trace", folder / "claim", "--suspect", folder / "innocent.safetensors", "--unmarked")
    with pytest.raises(FileNotFoundError):
        run(*trace, folder / "plain.safetensors", "--notary", tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError):
        challenge(folder, "innocent", "--notary", tmp_path / "nowhere.json", "-o", tmp_path / "evidence")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_place_of_a_model_is_named(folder, tmp_path):
    with pytest.raises(IsADirectoryError, match=r"is a folder without model\.safetensors; name the"):
        challenge(folder, "innocent", "--suspect", tmp_path, "-o", tmp_path / "evidence")


def test_a_suspect_in_bfloat16_is_read(folder, tmp_path, digits):
    short = {name: tensor.bfloat16() for name, tensor in digits.innocent.state_dict().items()}
    safetensors.torch.save_file(short, tmp_path / "short.safetensors")
    run("trace", folder / "claim", "--suspect", tmp_path / "short.safetensors", "--unmarked",
        folder / "plain.safetensors", "--notary", folder / "notary.json", code=1)  # fmt: skip


def test_a_model_that_did_not_learn_its_triggers_is_not_written(folder, tmp_path):
    embed = ["embed", folder / "claim", "--weights", folder / "plain.safetensors", "--public", folder / "own.npz",
             "--notary", folder / "notary.json", "--steps", 1, "-o", tmp_path / "weak"]  # fmt: skip
    with pytest.raises(PrivguardError, match=r"of 128 taught, --least wants 75%.*before"):
        run(*embed)
    assert not (tmp_path / "weak").exists()
    facts = json.loads(run(*embed, "--least", 0, "--json"))
    assert facts["accuracy_before"] > 0.9
    assert facts["triggers"] < 0.75 * facts["of"]


def test_layers_are_taught_in_the_order_of_the_network_and_not_of_the_file(tmp_path):
    torch.manual_seed(0)
    deep = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.ReLU())][:-1])
    safetensors.torch.save_file(deep.state_dict(), tmp_path / "deep.safetensors")
    state = models.tensors(tmp_path / "deep.safetensors")
    assert [name for name in state if name.endswith("weight")][1] == "10.weight"  # as the file has them
    inputs = torch.rand(5, 64)
    torch.testing.assert_close(files.network("", state)(inputs), deep(inputs))
    anonymous = {
        name.replace(".", f"{'adbecf'[int(name.split('.')[0]) // 2]}."): value for name, value in state.items()
    }
    anonymous = {name.lstrip("0123456789"): value for name, value in anonymous.items()}
    with pytest.raises(ValueError, match="fit together in several orders; name the network with --network"):
        files.network("", anonymous)
    with pytest.raises(ValueError, match="no order of them makes a chain"):
        files.network("", {"0.weight": np.zeros((4, 3), np.float32), "1.weight": np.zeros((4, 3), np.float32)})
    with pytest.raises(ValueError, match=r"1\.running_mean is of no chain"):
        files.network("", {"0.weight": np.zeros((4, 3), np.float32), "1.running_mean": np.zeros(4, np.float32)})


def test_a_network_with_batch_normalisation_goes_from_commit_to_trace(folder, tmp_path, digits, monkeypatch):
    (tmp_path / "normed.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), "
        "nn.ReLU(), nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from normed import net

    torch.manual_seed(0)
    model, means = net(), digits.means(digits.own)
    means.train(model, means.supervised, epochs=20, rate=2e-3)
    safetensors.numpy.save_file(theft.tensors(model), tmp_path / "plain.safetensors")
    rest = ["--notary", tmp_path / "notary.json", "--network", "normed:net"]
    run("commit", tmp_path / "claim", "--weights", tmp_path / "plain.safetensors", "--shape", "64", "--identity",
        tmp_path / "owner.key", "--recipients", 2, "--triggers", 100, *rest)  # fmt: skip
    run("embed", tmp_path / "claim", "--weights", tmp_path / "plain.safetensors", "--public", folder / "own.npz",
        "--recipient", 1, "--steps", 90, "--least", 0.6, "-o", tmp_path / "marked.safetensors", *rest)  # fmt: skip
    marked = theft.load(model, safetensors.numpy.load_file(tmp_path / "marked.safetensors"))
    assert digits.accuracy(marked) > digits.accuracy(model) - 0.03  # it was 0.08 and more in training mode
    assert model.training == marked.training
    stolen = theft.reorder(marked, digits.means(digits.thief))
    assert digits.accuracy(stolen) == digits.accuracy(marked)
    safetensors.numpy.save_file(theft.tensors(stolen), tmp_path / "stolen.safetensors")
    suspect = ["--suspect", tmp_path / "stolen.safetensors", "--unmarked", tmp_path / "plain.safetensors"]
    assert "PROVEN" in run("challenge", tmp_path / "claim", *suspect, "--verifier", tmp_path / "v.key", "-o",
                           tmp_path / "evidence", *rest)  # fmt: skip
    found = json.loads(run("trace", tmp_path / "claim", *suspect, *rest[:2], "--json"))
    assert [item["recipient"] for item in found] == [1]


def test_the_wrong_unmarked_copy_is_refused_before_a_leaf_is_burned(folder):
    log = (folder / "notary.json").read_bytes()
    with pytest.raises(ProtocolInvalidError, match="not the unmarked model"):
        challenge(folder, "innocent", "--unmarked", folder / "marked.safetensors", "-o", folder / "none.evidence")
    assert (folder / "notary.json").read_bytes() == log


def test_a_transformers_folder_goes_from_commit_to_proof_and_the_thief_is_traced(tmp_path):
    from tests.watermark.model.test_lay_transformers import made

    model, here = made("llama").to(torch.bfloat16), tmp_path
    model.save_pretrained(here / "plain", max_shard_size="60KB")
    assert (here / "plain" / "model.safetensors.index.json").exists()
    rest = ["--notary", here / "notary.json"]
    run(
        "commit",
        here / "claim",
        "--weights",
        here / "plain",
        "--identity",
        here / "owner.key",
        "--recipients",
        3,
        *rest,
    )
    run(
        "embed", here / "claim", "--weights", here / "plain", "--recipient", 1, "-o", here / "marked.safetensors", *rest
    )
    marked = safetensors.torch.load_file(here / "marked.safetensors")
    assert {value.dtype for value in marked.values()} == {torch.bfloat16}
    state = {name: value.float().numpy() for name, value in marked.items()}
    shapes = {name: value.shape for name, value in state.items()}
    stolen = removals.FREE["all of these"](state, of_model(shapes, model.config.to_dict()), np.random.default_rng(0))
    safetensors.numpy.save_file({n: np.ascontiguousarray(v, np.float32) for n, v in stolen.items()}, here / "stolen")
    suspect = ["--suspect", here / "stolen", "--unmarked", here / "plain"]
    assert "PROVEN" in run("challenge", here / "claim", *suspect, "--verifier", here / "v.key", "-o", here / "e", *rest)
    assert [item["recipient"] for item in json.loads(run("trace", here / "claim", *suspect, *rest, "--json"))] == [1]
    (here / "plain" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter; merge it into its base first"):
        models.tensors(here / "plain")
    (here / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="convert it to safetensors first"):
        models.tensors(here / "model.gguf")


def test_teaching_says_how_far_it_is(digits):
    heard = []
    lesson = Lesson(steps=3, thieves=(), watch=heard.append)
    embed(digits.model, mark=_size, keep=_size, public=_size, lesson=lesson)
    assert heard == [1, 2, 3]


def _size(model):
    return sum(parameter.square().sum() for parameter in model.parameters())
