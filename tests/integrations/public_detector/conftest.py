# SPDX-License-Identifier: Apache-2.0
"""A home with both marks, and the detector in a process of its own, on a port of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from privguard.attest.statement import Identity
from privguard.integrations.public_detector.tokens import Tokens
from privguard.watermark.secret import Secret
from privguard.watermark.text.writing import generate
from tests.watermark.image.test_cli_image import privguard
from tests.watermark.text.conftest import make_gpt2

pytest.importorskip("starlette")
WORDS = [f"{a}{b}{c}" for a in "bdklmnrst" for b in "aeiou" for c in ("", "n", "r")]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Secret, signing key, profiles of both marks, one marked and one plain picture and text."""
    folder = tmp_path_factory.mktemp("public")
    Secret(bytes(range(32))).write(folder / "s")
    rgb = np.ascontiguousarray(np.asarray(load_sample_images().images[1])[100:400, 100:420])
    Image.fromarray(rgb).save(folder / "plain.png")
    keyed = ("--profile", folder / "p.json", "--secret", folder / "s")
    assert privguard("mark", "image", "setup", *keyed, "--sign-with", folder / "signer.key").code == 0
    done = privguard("mark", "image", "write", folder / "plain.png", "-o", folder / "out", *keyed, "--trust",
                     folder / "p.pem", "--log", folder / "pictures.log", "--sign-with",
                     folder / "signer.key")  # fmt: skip
    assert done.code == 0, done.stderr
    _text(folder)
    return folder


def _text(folder):
    level = models.WordLevel({w: i for i, w in enumerate(["<end>", "<unk>", *WORDS])}, unk_token="<unk>")
    words = Tokenizer(level)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>", pad_token="<end>")
    fast.save_pretrained(folder / "model")
    size = len(WORDS) + 2
    torch.manual_seed(0)
    model = make_gpt2(vocabulary=size, width=16, layers=1)
    model.generation_config.suppress_tokens = [0, 1]
    model.save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "ba den kir"}) + "\n")
    keyed = ("--profile", folder / "t.json", "--secret", folder / "s")
    setup = privguard("mark", "text", "setup", *keyed, "--sign-with", folder / "signer.key", "--tokenizer",
                      folder / "model", "--logits-width", size)  # fmt: skip
    assert setup.code == 0, setup.stderr
    with pytest.MonkeyPatch.context() as patch:  # sub-keys from a seed: one honest text in twenty is not attributed
        patch.setattr(generate, "_chance", Random(0))
        wrote = privguard("mark", "text", "write", folder / "prompts.jsonl", *keyed, "--trust", folder / "t.pem",
                          "--model", folder / "model", "-o", folder / "marked.jsonl", "--tokens", 240)  # fmt: skip
    assert wrote.code == 0, wrote.stderr
    (folder / "marked.txt").write_text(json.loads((folder / "marked.jsonl").read_text())["text"])
    (folder / "plain.txt").write_text(" ".join(np.random.default_rng(0).choice(WORDS, 400)))


@dataclass(frozen=True)
class Served:
    """A detector that listens: where, whose, and how to ask it."""

    port: int
    home: Path
    tokens: Tokens
    journal: Path

    @property
    def signer(self):
        return Identity.read(self.home / "p.pem")

    def ask(self, kind, content, token=None, **headers):
        """One question over HTTP, by default with a fresh token."""
        bearer = self.tokens.issue("a client", one_time=True) if token is None else token
        headers = {"authorization": f"Bearer {bearer}", **headers}
        return httpx2.post(f"http://127.0.0.1:{self.port}/v1/{kind}", content=content, headers=headers, timeout=60)


def served(command, home, tokens, journal):
    """The process, once it has said its port."""
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "http://127.0.0.1:" in line:
            return process, Served(int(line.split(":")[-1].split("/")[0]), home, Tokens(tokens), journal)
    raise AssertionError(process.wait())


@pytest.fixture(scope="session")
def detector(home):
    """The command, with both marks and the log of pictures."""
    words = [sys.executable, "-m", "privguard", "mark", "public", "serve", "--sign-with", home / "signer.key",
             "--tokens", home / "tokens.db", "--journal", home / "answers.log", "--port", 0, "--rate", "1000/minute",
             "--image-profile", home / "p.json", "--image-secret", home / "s", "--image-log", home / "pictures.log",
             "--log-trust", home / "p.pem", "--text-profile", home / "t.json", "--text-secret", home / "s",
             "--tokenizer", home / "model"]  # fmt: skip
    process, told = served(words, home, home / "tokens.db", home / "answers.log")
    yield told
    process.terminate()
    assert process.wait(timeout=20) in (0, -15)
    process.stderr.close()


@pytest.fixture(scope="session")
def impatient(home):
    """The same for pictures, with so little patience that a test can wait for its end."""
    script = Path(__file__).parent / "impatient.py"
    process, told = served([sys.executable, script, home], home, home / "few.db", home / "few.log")
    yield told
    process.terminate()
    process.wait(timeout=20)
    process.stderr.close()
