# SPDX-License-Identifier: Apache-2.0
"""``PrivateSFTTrainer``: one step is SFTTrainer's for each example by itself, and nothing un-noised comes out."""

import copy
import dataclasses
import json
import re

import pytest
import torch
import transformers as hf
from drive import KEY, distance, make_plan, moved
from test_runs import UNMISTAKABLE, Recorder, StopAt, private_quantities, weights
from zoo import GPT2, ZOO

from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.errors import PrivacyError
from privguard.integrations.transformers import losses, sft_arguments
from privguard.records import Unit
from privguard.runs.options import RunOptions
from privguard.runs.privacy_unit import ByUser

datasets, tokenizers, trl = map(pytest.importorskip, ("datasets", "tokenizers", "trl"))
PrivateSFTTrainer = pytest.importorskip("privguard.integrations.transformers.sft").PrivateSFTTrainer

# SFTConfig and peft use what transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "zephyr"]
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


def exact(model, data, folder, *, args, **more):
    return PrivateSFTTrainer(
        model,
        config(folder, gradient_accumulation_steps=len(data) // 4, **args),
        train_dataset=data,
        processing_class=tokenizer(),
        seal_to=[KEY],
        plan=make_plan(len(data)),
        options=RunOptions(insecure_seed=1),
        **more,
    )


def reference(model, data, folder, *, args, **more):
    """``SFTTrainer`` itself with a mean over examples: batches of one, accumulated."""
    args = config(
        folder,
        **{**args, "per_device_train_batch_size": 1, "max_grad_norm": 0.0, "max_steps": 1},
        gradient_accumulation_steps=len(data),
    )
    trainer = trl.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer(), **more)
    trainer.model_accepts_loss_kwargs = False  # a mean for each batch, which is one example
    return trainer


def step_of(trainer):
    before = copy.deepcopy({name: p.detach() for name, p in trainer.model.named_parameters()})
    trainer.train()
    return moved(trainer.model, before)


CASES = {
    "text": (gpt2, texts, {}),
    "completion": (llama, completions, {"max_length": 8}),
    "whole": (gpt2, completions, {"completion_only_loss": False, "activation_checkpointing": False}),
    "assistant": (gpt2, turns, {"assistant_only_loss": True, "pad_to_multiple_of": 8}),
}


@pytest.mark.usefixtures("fine_grid")
@pytest.mark.parametrize("name", CASES)
def test_one_step_is_sft_trainers_with_a_mean_over_examples(name, tmp_path):
    make, data, args = CASES[name]
    theirs = step_of(reference(make(), data(), tmp_path / "reference", args=args))
    assert distance(step_of(exact(make(), data(), tmp_path / "private", args=args)), theirs) < 1e-5


@pytest.mark.usefixtures("fine_grid")
def test_adapters_are_sft_trainers_own(tmp_path):
    peft = pytest.importorskip("peft")

    def adapter():
        return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")

    ours = step_of(exact(llama(), texts(), tmp_path / "private", args={}, peft_config=adapter()))
    theirs = step_of(reference(llama(), texts(), tmp_path / "reference", args={}, peft_config=adapter()))
    assert set(ours) == set(theirs) == {name for name in theirs if "lora" in name}
    assert distance(ours, theirs) < 1e-5


# What a run leaves behind, and how it goes on.


def noisy(folder, *, model=None, data=None, callbacks=None, seed=1, evaluation=None, **changes):
    plan = make_plan(4, sample_rate=0.5, noise_multiplier=1.0, max_grad_norm=0.5, steps=3)
    return PrivateSFTTrainer(
        model or gpt2(),
        config(folder, **{"learning_rate": 0.1, **changes}),
        train_dataset=data or texts(),
        eval_dataset=evaluation,
        processing_class=tokenizer(),
        seal_to=[KEY],
        plan=plan,
        callbacks=callbacks,
        options=RunOptions(insecure_seed=seed),
    )


def test_no_file_and_no_record_holds_an_unnoised_number(tmp_path, monkeypatch, capsys, caplog):
    """As in ``test_runs``: every number that comes out, against the run's true losses plus a constant."""
    found, recorder, own = [], Recorder(), losses._cross_entropy
    monkeypatch.setattr(losses, "_cross_entropy", lambda *a: (each := own(*a)) + UNMISTAKABLE * each.requires_grad)
    private_quantities(found, monkeypatch)
    with caplog.at_level("INFO"):
        private = noisy(
            tmp_path, seed=None, save_strategy="steps", save_steps=2, callbacks=[recorder], disable_tqdm=False,
            evaluation=texts(4, start=20), eval_strategy="steps", eval_steps=2,
        )  # fmt: skip
        result = private.train()
        private.save_state()
    values = [value for _, value in found if value]
    assert len(values) >= 2
    assert min(values) > 0.99 * UNMISTAKABLE
    printed = capsys.readouterr()
    said = [json.dumps(recorder.seen), json.dumps(result.metrics), printed.out, printed.err, caplog.text]
    said += [p.read_text() for p in tmp_path.rglob("*") if p.suffix in {".json", ".jsonl", ".txt", ".md"}]
    numbers = {float(n) for text in said for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)}
    assert not [value for value in values if any(abs(value - n) < 1e-4 * value for n in numbers)]
    names = {name for line in [*recorder.seen, *private.state.log_history] for name in line}
    assert {n for n in names if not n.startswith("eval_")} == {
        "learning_rate", "epoch", "step", "epsilon", "noise_to_signal"
    }  # fmt: skip
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} <= names
    assert "eval_num_tokens" not in names
    assert private.claim().events == 3 == Ledger.read(tmp_path / "ledger.jsonl").position


def test_metrics_of_a_model_in_training_mode_are_not_logged(tmp_path):
    private = noisy(tmp_path)
    private.model.train()
    ids = torch.tensor([[4, 5, 6]])
    private.compute_loss(private.model, {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)})
    assert private._metrics["train"]["mean_token_accuracy"]
    private.log({"step_time": 1.0})
    assert set(private.state.log_history[-1]) == {"step_time", "step", "epoch"}


def test_preparing_the_records_neither_quotes_nor_counts_them(tmp_path, capsys, caplog):
    """A prompt whose end merges with its completion is quoted by SFTTrainer, and its bars count the records."""
    rows = [{"prompt": f"{sentence(i)} zephyr", "completion": "two three"} for i in range(13)]

    def said():
        printed = capsys.readouterr()
        type(trl.trainer.sft_trainer.logger).warning_once.cache_clear()
        return printed.out + printed.err + caplog.text

    noisy(tmp_path, data=datasets.Dataset.from_list(rows), model=llama())
    assert not re.search("zephyr|13", said())
    args = config(tmp_path / "plain")
    trl.SFTTrainer(llama(), args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer())
    assert {"zephyr", "13/13"} <= set(re.findall("zephyr|13/13", said()))


def test_a_stop_and_resume_is_the_uninterrupted_run(tmp_path):
    one = noisy(tmp_path / "whole")
    one.train()
    noisy(tmp_path / "parts", callbacks=[StopAt(1)]).train()
    two = noisy(tmp_path / "parts")
    two.train(resume_from_checkpoint=True)
    assert torch.equal(weights(one.model), weights(two.model))
    assert Ledger.read(tmp_path / "parts" / "ledger.jsonl").position == 3


def test_evaluation_is_sft_trainers_own(tmp_path):
    private = noisy(tmp_path)
    plain = trl.SFTTrainer(gpt2(), config(tmp_path), train_dataset=texts(), processing_class=tokenizer())
    ours, theirs = (one.evaluate(texts(5, start=20)) for one in (private, plain))
    for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert ours[name] == theirs[name]


def test_users_are_a_column(tmp_path):
    data = texts().add_column("author", ["a", "b", "c", "d"] * 2)
    args = config(tmp_path, max_steps=1, per_device_train_batch_size=2)
    facts = {"train_dataset": data, "processing_class": tokenizer(), "seal_to": [KEY]}
    budget = Budget(epsilon=8, delta=1e-3)
    private = PrivateSFTTrainer(gpt2(), args, budget=budget, users=ByUser(ids="author", count=4), **facts)
    private.train()
    assert private.claim().unit == Unit.USER
    with pytest.raises(PrivacyError, match="name the wrong users"):
        PrivateSFTTrainer(gpt2(), args, budget=budget, users=ByUser(ids=list(data["author"]), count=4), **facts)


# Refusals.


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"packing": True}, "packing=True: a row of several examples"),
        ({"padding_free": True, "max_length": None}, "padding_free=True: a whole batch"),
        ({"loss_type": "dft"}, "per_example_loss"),
        ({"router_aux_loss_coef": 0.01}, "couples its examples"),
        ({"activation_offloading": True}, "a step that is not used"),
        ({"dataset_num_proc": 2}, "quotes records"),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"selective": True}}, "'selective'"),
        ({"use_liger_kernel": True}, "couple the examples"),
    ],
)
def test_settings_that_cannot_be_private_are_refused(tmp_path, setting, said):
    with pytest.raises(PrivacyError, match=said):
        noisy(tmp_path, **setting)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"input_ids": [4, 5, 6, 7], "seq_lengths": [2, 2]}, "packs several examples"),
        ({"text": "one", "image": "a"}, "only text"),
        ({"text": "one", "messages": [{"role": "user", "content": "two"}]}, "columns text and messages"),
    ],
)
def test_data_whose_rows_depend_on_each_other_are_refused(tmp_path, row, said):
    with pytest.raises(PrivacyError, match=said):
        noisy(tmp_path, data=datasets.Dataset.from_list([row] * 8))


def test_one_record_would_change_how_all_others_are_read(tmp_path):
    """Why two formats in one data set are refused: SFTTrainer asks the first record which one is meant."""
    talk = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}]
    rows = [{"text": "one one", "messages": talk}] * 3

    def last(rows):
        data = datasets.Dataset.from_list(rows)
        trainer = trl.SFTTrainer(llama(), config(tmp_path), train_dataset=data, processing_class=tokenizer())
        return trainer.train_dataset[-1]["input_ids"]

    assert last(rows) != last([{"text": "one", "messages": None}, *rows])


def test_experts_that_the_model_itself_balances_are_refused(tmp_path):
    small = hf.MixtralConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
        vocab_size=48, num_local_experts=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(PrivacyError, match="balances its experts"):
        noisy(tmp_path, model=hf.MixtralForCausalLM(small))


def test_evaluating_on_the_training_data_is_refused(tmp_path):
    data = texts()
    with pytest.raises(PrivacyError, match="evaluation data: 8 of its records are in the training set"):
        noisy(tmp_path, data=data, evaluation={"held out": texts(4), "seen": data})


def test_arguments_and_data_of_another_kind_are_refused(tmp_path):
    args = {"seal_to": [KEY], "plan": make_plan(4), "processing_class": tokenizer()}
    with pytest.raises(TypeError, match=r"args=TrainingArguments: expected a trl.SFTConfig"):
        PrivateSFTTrainer(gpt2(), hf.TrainingArguments(str(tmp_path)), train_dataset=texts(), **args)
    with pytest.raises(TypeError, match=r"train_dataset=IterableDataset: expected a datasets.Dataset"):
        PrivateSFTTrainer(gpt2(), config(tmp_path), train_dataset=texts().to_iterable_dataset(), **args)


# Every field has been thought about.


def test_every_field_of_sft_config_is_honoured_mapped_or_refused_and_in_one_table_only():
    ours = {field.name for field in dataclasses.fields(trl.SFTConfig)}
    added = ours - {field.name for field in dataclasses.fields(hf.TrainingArguments)}
    tables = [set(sft_arguments.HONOURED), set(sft_arguments.MAPPED), set(sft_arguments.REFUSED)]
    assert added == set.union(*tables)
    assert sum(map(len, tables)) == len(added)
