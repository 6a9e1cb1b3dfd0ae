"""``PrivateSFTTrainer``: one step is SFTTrainer's for each example by itself, and nothing un-noised comes out."""

import copy
import dataclasses
import json
import logging
import re

import pytest
import torch
import transformers as hf
from drive import KEY, distance, make_plan, moved
from test_runs import Recorder, StopAt, private_quantities, weights
from zoo import GPT2, ZOO

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")

import tokenizers

from privguard.accounting.ledger import Ledger
from privguard.errors import PrivacyError
from privguard.integrations import sft_arguments
from privguard.integrations.trl import PrivateSFTTrainer

# SFTConfig sets what transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")

WORDS = "one two three four five six seven eight nine ten".split()
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + ' <eos>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    return fast


def sentence(i, *, least=2):
    return " ".join(WORDS[(i * 7 + 3 * j) % len(WORDS)] for j in range(least + i % 6))


def texts(count=8, start=0):
    return datasets.Dataset.from_list([{"text": sentence(i)} for i in range(start, start + count)])


def completions(count=8):
    return datasets.Dataset.from_list(
        [{"prompt": sentence(i), "completion": " " + sentence(i + 3)} for i in range(count)]
    )


def turns(count=8):
    def said(i):
        roles = ["user", "assistant"] * (1 + i % 2)
        return [{"role": role, "content": sentence(i + n)} for n, role in enumerate(roles)]

    return datasets.Dataset.from_list([{"messages": said(i)} for i in range(count)])


def gpt2():
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2))


def llama():
    torch.manual_seed(0)
    return ZOO["llama-causal"][0]()


def config(folder, **changes):
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 1.0,
        "lr_scheduler_type": "constant", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no",
        "report_to": "none", "dataloader_pin_memory": False, "max_length": 16, "logging_steps": 1,
    }  # fmt: skip
    return trl.SFTConfig(**{**settings, **changes})


def exact(model, data, folder, *, args=None, **more):
    args = {"gradient_accumulation_steps": len(data) // 4, **(args or {})}
    return PrivateSFTTrainer(
        model, config(folder, **args), train_dataset=data, processing_class=tokenizer(), seal_to=[KEY],
        plan=make_plan(len(data)), insecure_seed=1, **more,
    )  # fmt: skip


def reference(model, data, folder, *, args=None, **more):
    """``SFTTrainer`` itself with a mean over examples: batches of one, accumulated."""
    changes = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": len(data), "max_grad_norm": 0.0, "max_steps": 1,
    }  # fmt: skip
    trainer = trl.SFTTrainer(
        model, config(folder, **{**(args or {}), **changes}), train_dataset=data, processing_class=tokenizer(), **more
    )
    trainer.model_accepts_loss_kwargs = False  # a mean for each batch, which is one example
    return trainer


CASES = {
    "text": (gpt2, texts, {}),
    "llama": (llama, texts, {}),
    "completion": (gpt2, completions, {}),
    "whole": (gpt2, completions, {"completion_only_loss": False}),
    "assistant": (gpt2, turns, {"assistant_only_loss": True}),
    "cut": (gpt2, texts, {"max_length": 4, "activation_checkpointing": False, "pad_to_multiple_of": 8}),
}


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_sft_trainers_with_a_mean_over_examples(name, tmp_path):
    make, data, args = CASES[name]
    ours, theirs = make(), make()
    before = copy.deepcopy({n: p.detach() for n, p in ours.named_parameters()})
    exact(ours, data(), tmp_path / "private", args=args).train()
    reference(theirs, data(), tmp_path / "reference", args=args).train()
    assert distance(moved(ours, before), moved(theirs, before)) < 1e-5
