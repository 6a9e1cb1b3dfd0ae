# SPDX-License-Identifier: Apache-2.0
"""Models of every kind, in every way that a person can hand them over: an audit, or one clear line."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from torch import nn
from typer.testing import CliRunner

from privguard.audit.targets.http import Client, Pace
from privguard.cli import app
from privguard.cli._output import exit_code
from privguard.errors import AuditError

SIDE = 12


@pytest.fixture
def serve():
    """Start a server on this machine that answers by a function from (status, headers, body) turns or questions."""
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, reply = answer(body, self.headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/predict"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Clock:
    def __init__(self):
        self.now, self.slept = 0.0, []

    def both(self):
        return (lambda: self.now), self.sleep

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_a_busy_server_is_asked_again_when_it_says_and_not_before(serve):
    turns = iter([(503, {"Retry-After": "7"}, {}), (429, {}, {}), (200, {}, {"predictions": [1]})])
    clock = Clock()
    client = Client(serve(lambda *_: next(turns)), clock=clock.both())
    assert client.ask({"inputs": [0]}) == {"predictions": [1]}
    assert clock.slept == [7.0, 0.5]
    assert client.sent == 3


def test_questions_are_paced(serve):
    clock = Clock()
    client = Client(serve(lambda body, _: (200, {}, body["inputs"])), pace=Pace(rate=4), clock=clock.both())
    for number in range(9):
        client.ask({"inputs": [number]})
    assert clock.now == pytest.approx(2.0)  # eight waits of a quarter second


def test_a_budget_ends_the_questions_and_answers_that_were_kept_are_free(serve, tmp_path):
    heard, kept = [], tmp_path / "answers.jsonl"
    url = serve(lambda body, headers: (heard.append(headers["Authorization"]), (200, {}, body["inputs"]))[1])
    first = Client(url, pace=Pace(budget=2), kept=kept, token="s3cret")
    assert [first.ask({"inputs": [n]}) for n in (1, 2, 1)] == [[1], [2], [1]]
    with pytest.raises(AuditError, match="budget=2"):
        first.ask({"inputs": [3]})
    with kept.open("a") as file:
        file.write('{"question": "cut')  # a killed run's last line
    again = Client(url, pace=Pace(budget=1), kept=kept, token="s3cret")
    assert [again.ask({"inputs": [n]}) for n in (1, 2, 3)] == [[1], [2], [3]]
    assert heard == ["Bearer s3cret"] * 3
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "s3cret" not in kept.read_text()
    assert len(kept.read_text().splitlines()) == 3


def test_what_a_server_does_wrong_is_said_in_a_line_without_its_words(serve):
    url = serve(lambda *_: (404, {}, {"echo": "records"}))
    with pytest.raises(ConnectionError, match="status 404") as caught:
        Client(url).ask({})
    assert "records" not in str(caught.value)
    with pytest.raises(ValueError, match="expected JSON"):
        Client(serve(lambda *_: (200, {"Content-Type": "text/html"}, b"<html>"))).ask({})
    with pytest.raises(ConnectionError, match="no answer after 2 attempts"):
        Client("http://127.0.0.1:9/", pace=Pace(attempts=2), clock=Clock().both()).ask({})
    with pytest.raises(ValueError, match="a token would travel in clear"):
        Client("http://example.org/", token="s")
    with pytest.raises(ValueError, match="without a password"):
        Client("https://me:secret@example.org/")


def rows(kind, random):
    """Inputs and labels of both sides."""
    labels = random.integers(0, 3, 2 * SIDE)
    if kind in {"tokens", "text classifier", "adapter", "text regression"}:
        inputs = random.integers(1, 20, (2 * SIDE, 6))
    elif kind in {"images", "image classifier"}:
        inputs = random.random((2 * SIDE, 3, 8, 8)).astype(np.float32)
    else:
        inputs = random.standard_normal((2 * SIDE, 4)).astype(np.float32)
    if kind in {"one logit", "one probability"}:
        labels = labels % 2
    if "regression" in kind:
        labels = random.standard_normal(2 * SIDE)
    return inputs, labels


def transformer(kind):
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    if kind == "image classifier":
        return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **small))
    count = 1 if kind == "text regression" else 3
    return BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=count, pad_token_id=0, **small))


def made(kind, inputs, labels):
    """A small model of this kind, and its outputs on (n, ...) as an array."""
    if kind in {"linear", "forest", "forest regression"}:
        model = {"linear": LogisticRegression(), "forest": RandomForestClassifier(3, random_state=0)}.get(
            kind, RandomForestRegressor(3, random_state=0)
        )
        model.fit(inputs[:SIDE], labels[:SIDE])
        return model, getattr(model, "predict_proba", model.predict)
    if kind in {"text classifier", "adapter", "text regression", "image classifier"}:
        from privguard.audit.targets.pretrained import Pretrained

        model = Pretrained(transformer(kind).eval())
    elif kind == "tokens":
        model = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(24, 3))
    elif kind == "images":
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    elif kind in {"one logit", "one probability"}:
        model = nn.Sequential(nn.Linear(4, 1), *([nn.Sigmoid()] if kind == "one probability" else []))
    else:
        model = nn.Linear(4, 3)

    def outputs(batch):
        with torch.no_grad():
            answer = model(torch.as_tensor(batch))
        return getattr(answer, "logits", answer).numpy()

    if kind == "labels":
        return (lambda batch: outputs(batch).argmax(1)), lambda batch: outputs(batch).argmax(1)
    return model, outputs


QUICK = ("linear", "tokens", "one probability", "labels", "text regression")
SLOW = ("forest", "forest regression", "tabular", "images", "one logit", "text classifier", "image classifier")
KINDS = (*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW))
SAID = {"one probability": ("--outputs", "probabilities"), "labels": ("--outputs", "labels")}
FOLDERS = {"text classifier", "image classifier", "text regression"}


@pytest.fixture
def handed(tmp_path, monkeypatch, serve):
    """A model of a kind, with its records on disk: the four ways to name it."""
    monkeypatch.chdir(tmp_path)

    def make(kind):
        inputs, labels = rows(kind, np.random.default_rng(0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, outputs = made(kind, inputs, labels)
        np.savez("in.npz", inputs=inputs[:SIDE], labels=labels[:SIDE])
        np.savez("out.npz", inputs=inputs[SIDE:], labels=labels[SIDE:])
        kept = {"losses": np.arange(24.0)} if kind == "labels" else {"outputs": outputs(inputs), "labels": labels}
        np.savez("scores.npz", **kept, members=np.arange(2 * SIDE) < SIDE)
        module = type(sys)("handed_model")
        module.model = model
        monkeypatch.setitem(sys.modules, "handed_model", module)
        if kind in FOLDERS:
            model.network.save_pretrained("folder")
        else:
            (tmp_path / "folder").mkdir()
        url = serve(
            lambda body, _: (200, {}, {"predictions": outputs(np.asarray(body["inputs"], inputs.dtype)).tolist()})
        )
        return {"name": "handed_model:model", "folder": "folder", "address": url, "scores": "scores.npz"}

    return make


def call(*arguments):
    result = CliRunner().invoke(app, ["audit", "membership", *map(str, arguments)])
    own = result.exception is None or isinstance(result.exception, SystemExit)
    return (result.exit_code if own else exit_code(result.exception)), f"{result.output} {result.exception}"


def record(*arguments):
    return json.loads(CliRunner().invoke(app, ["audit", "membership", *map(str, arguments), "--json"]).stdout)


SIDES = ("--members", "in.npz", "--non-members", "out.npz")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_audited_in_every_way_that_it_has(handed, kind):
    ways = handed(kind)
    if kind == "one probability":
        assert "whether it is a logit, a probability or a label" in call(ways["name"], *SIDES)[1]
    for way, target in ways.items():
        if way == "scores" and kind == "one probability":
            continue  # one number in [0, 1] is asked about, and a file cannot answer
        code, said = call(target, *SIDES, *SAID.get(kind, ()))
        wanted = 2 if way == "folder" and kind not in FOLDERS else 0
        assert code == wanted, f"{way}: {said}"
        assert "config.json" in said if wanted else "not claimed" in said


def test_an_address_gives_the_audit_of_the_model_behind_it_and_goes_on_where_it_stopped(handed, tmp_path):
    ways = handed("tabular")
    here = record(ways["name"], *SIDES)
    far = (ways["address"], *SIDES, "--records", 5, "--out", "audit")
    code, said = call(*far, "--budget", 2)
    assert code == 1
    assert "budget=2" in said
    assert call(*far, "--budget", 3)[0] == 0
    there = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert there["attacks"][0]["auc"] == here["attacks"][0]["auc"]
    assert there["target"].startswith("address http://127.0.0.1")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft's, about transformers
def test_an_adapter_is_put_on_its_base_and_a_sealed_folder_opened(handed, tmp_path):
    from peft import LoraConfig, get_peft_model

    from privguard.checkpoint.files import seal
    from privguard.checkpoint.keys.key import Key

    ways = handed("text classifier")
    base = transformer("text classifier")
    base.save_pretrained("base")
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    adapted.save_pretrained("adapter")
    assert call("adapter", *SIDES, "--base", "base")[0] == 0
    assert "adapter's base folder" in call("adapter", *SIDES, "--base", "nowhere")[1]
    key = Key.generate()
    key.write("team.key")
    seal("folder", "folder.sealed", to=[key])
    assert record("folder.sealed", *SIDES, "--key", "team.key") == record(ways["folder"], *SIDES)


def test_what_cannot_be_audited_is_said_in_a_line(handed, tmp_path):
    ways = handed("tabular")
    (tmp_path / "model.pkl").write_bytes(b"")
    for arguments, wanted in (
        (("model.pkl", *SIDES), "run code when it is read"),
        ((ways["name"],), "--members and --non-members"),
        ((ways["name"], *SIDES, "--outputs", "guess"), "none of detect, logits"),
        ((ways["address"], *SIDES, "--token-env", "NOT_SET_HERE"), "NOT_SET_HERE is not set"),
        ((ways["name"], *SIDES, "--outputs", "labels"), "one label for each record"),
        (("folder", *SIDES, "--key", "nowhere.key"), "nowhere.key"),
    ):
        code, said = call(*arguments)
        assert code == 2, said
        assert wanted in said


def test_labels_of_altered_copies_rank_as_the_share_of_right_answers(handed):
    ways = handed("labels")
    code, said = call(ways["name"], *SIDES, "--outputs", "labels", "--copies", 5, "--noise", 0.3, "--json")
    assert code == 0, said
    assert '"access": "labels"' in said
    assert '"attack": "label-only"' in said
    assert call(ways["name"], *SIDES, "--outputs", "labels", "--copies", 5)[0] == 2
