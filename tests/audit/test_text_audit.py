# SPDX-License-Identifier: Apache-2.0
"""A language model audited from files of texts, on disk and behind an address, against what attacks on it give."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from privguard.audit.targets.http import Client
from privguard.audit.text import attacks
from privguard.audit.text.attacks import TokenScores
from privguard.audit.text.audit import audit_texts, exposures, extracted
from privguard.audit.text.sources import Completions, Local
from privguard.cli import app
from privguard.cli._output import exit_code

WORDS = [f"w{i}" for i in range(60)]
COUNT = 60


def texts(seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 12)) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, and a model that was fine-tuned on the members until it has them by heart."""
    folder = tmp_path_factory.mktemp("text")
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *WORDS])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=61, n_positions=16, n_embd=48, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    members, others = texts(1), texts(2)
    for name in ("base", "tuned"):
        if name == "tuned":
            ids = torch.tensor([tokenizer(line)["input_ids"] for line in members])
            optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
            for _ in range(120):
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "in.txt").write_text("\n".join(members) + "\n\n")
    (folder / "out.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in others))
    return folder, model.eval(), tokenizer, members, others


def call(folder, *arguments):
    sides = ("--members", folder / "in.txt", "--non-members", folder / "out.jsonl")
    result = CliRunner().invoke(app, ["audit", "text", *map(str, (*arguments, *sides))])
    own = result.exception is None or isinstance(result.exception, SystemExit)
    return (result.exit_code if own else exit_code(result.exception)), result


def test_the_command_finds_what_was_learnt_by_heart_and_goes_on_from_its_answers(world, tmp_path):
    folder, model, tokenizer, members, others = world
    code, result = call(folder, folder / "tuned", "--base", folder / "base", "--out", tmp_path / "audit", "--json")
    assert code == 0, result.output
    found = json.loads(result.stdout)
    assert found["leak"].startswith("members stand out")
    assert "only recorded coins" in found["limit"]
    areas = {each["attack"]: each["auc"]["value"] for each in found["attacks"]}
    assert set(areas) == {"loss", "zlib", "min-k", "min-k++", "ratio", "windows"}
    assert areas["ratio"] > 0.95
    assert found["extracted"]["verbatim"] >= 0.5 * COUNT
    assert found["extracted_of_others"]["verbatim"] == 0
    (kept, before) = sorted((tmp_path / "audit").glob("answers-*.jsonl"))
    sizes = kept.stat().st_size, before.stat().st_size
    again = call(folder, folder / "tuned", "--base", folder / "base", "--out", tmp_path / "audit", "--json")[1]
    assert json.loads(again.stdout) == found
    assert (kept.stat().st_size, before.stat().st_size) == sizes
    assert members[0] not in kept.read_text()
    direct = attacks.token_scores(model, [tokenizer(line)["input_ids"] for line in [*members, *others]])
    wanted = attacks.mean_log_probability(direct)
    assert areas["loss"] == pytest.approx((wanted[:COUNT, None] > wanted[None, COUNT:]).mean(), abs=1e-9)


def test_verbatim_is_what_greedy_decoding_says(world):
    _, model, tokenizer, members, _ = world
    source = Local(name="tuned", model=model, ids=lambda line: tokenizer(line)["input_ids"])
    said = 0
    for line in members:
        ids = tokenizer(line)["input_ids"]
        half = 1 + (len(ids) - 1) // 2
        prefix = torch.tensor([ids[:half]])
        for _ in ids[half:]:
            prefix = torch.cat([prefix, model(input_ids=prefix).logits[:, -1].argmax(-1, keepdim=True)], 1)
        said += prefix[0].tolist() == ids
    assert extracted(source.scores(members)).verbatim == said


def test_a_text_comes_out_among_the_samples_that_its_chance_needs():
    sure = TokenScores(np.array([0.0, math.log(0.01)]), np.zeros(2), np.ones(2), np.array([True, False]))
    assert extracted([sure]).within == (0, 1, 1, 1)  # ln 2 / 0.01 = 69 samples
    assert extracted([sure]).verbatim == 0


def test_exposure_ranks_a_canary_among_those_left_out():
    (first, second) = exposures(np.array([3.0, 0.0, 1.0, 2.0, 1.5]), np.array([True, False, True, False, False]))
    assert (first.rank, first.candidates, first.bits) == (1, 4, 2.0)
    assert second.rank == 3


class Answers(Client):
    """The model of ``world`` as an address would speak of it."""

    def __init__(self, model, tokenizer):
        super().__init__("http://127.0.0.1:9/v1/completions")
        self.model, self.tokenizer = model, tokenizer

    def ask(self, question):
        ids = self.tokenizer(question["prompt"])["input_ids"]
        with torch.no_grad():
            logs = torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        own = [None, *(float(logs[at, token]) for at, token in enumerate(ids[1:]))]
        top = [None, *({"best": float(row.max())} for row in logs[:-1])]
        return {"choices": [{"logprobs": {"token_logprobs": own, "top_logprobs": top}}]}


def test_an_address_gives_what_the_model_in_memory_gives(world):
    _, model, tokenizer, members, others = world
    local = Local(name="tuned", model=model, ids=lambda line: tokenizer(line)["input_ids"])
    far = Completions(client=Answers(model, tokenizer), model="tuned")
    here, there = (audit_texts(each, members, [*others, members[0]]) for each in (local, far))
    assert there.extracted == here.extracted
    assert there.duplicates == 1
    by_name = {each.attack: each.auc.value for each in there.attacks}
    assert "min-k++" not in by_name
    assert by_name["loss"] == pytest.approx({each.attack: each.auc.value for each in here.attacks}["loss"], abs=1e-3)
    with pytest.raises(ValueError, match="echo must be allowed"):
        far.client.ask = lambda _: {"choices": []}
        far.scores(["w1 w2"])


def test_what_is_missing_is_said_in_a_line(world, tmp_path):
    folder = world[0]
    for arguments, wanted in (
        ((tmp_path,), "config.json"),
        (("https://models.example/v1/completions",), "--model"),
        ((folder / "tuned", "--longest", 1), "longest=1"),
    ):
        code, result = call(folder, *arguments)
        assert code == 2
        assert wanted in f"{result.output} {result.exception}"
