# SPDX-License-Identifier: Apache-2.0
"""``PrivateDPOTrainer`` and ``PrivateRewardTrainer``: a pair is one record, and its loss is TRL's for it alone."""

import copy
import dataclasses

import pytest
import torch
import transformers as hf
from drive import KEY, distance, make_plan, moved
from test_sft import WORDS, gpt2, llama, tokenizer
from zoo import GPT2

from privguard.errors import PrivacyError
from privguard.integrations.transformers import preference_arguments
from privguard.integrations.transformers.pair_losses import LOSSES, Settings, pairs_of, preference_losses
from privguard.runs.options import RunOptions

datasets, tokenizers, trl = map(pytest.importorskip, ("datasets", "tokenizers", "trl"))
preference = pytest.importorskip("privguard.integrations.transformers.preference")
PrivateDPOTrainer, PrivateRewardTrainer = preference.PrivateDPOTrainer, preference.PrivateRewardTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*trl.*:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def words(start, count):
    return " ".join(WORDS[(start + 3 * j) % len(WORDS)] for j in range(count))


def pairs(count=8, **more):
    return datasets.Dataset.from_list(
        [
            {
                "prompt": words(i, 1 + i % 3) + " ",
                "chosen": words(i + 1, 1 + i % 4),
                "rejected": words(i + 5, 1 + (i + 2) % 3),
                **{name: value(i) for name, value in more.items()},
            }
            for i in range(count)
        ]
    )


def config(kind, folder, **changes):
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 1.0,
        "lr_scheduler_type": "constant", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no",
        "report_to": "none", "dataloader_pin_memory": False, "max_length": 16, "logging_steps": 1,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return kind(**{**settings, **changes})


def private(kind, model, data, folder, *, plan=None, evaluation=None, args=None, **more):
    plan = plan or make_plan(len(data))
    accumulated = {"gradient_accumulation_steps": int(plan.expected_batch_size) // 4}
    rules = trl.DPOConfig if issubclass(kind, PrivateDPOTrainer) else trl.RewardConfig
    return kind(
        model, config(rules, folder, **accumulated, **(args or {})), train_dataset=data, eval_dataset=evaluation,
        processing_class=tokenizer(), seal_to=[KEY], plan=plan, options=RunOptions(insecure_seed=1), **more,
    )  # fmt: skip


def alone(kind, rules, model, data, folder, *, args=None, **more):
    """TRL's own trainer with a mean over pairs: batches of one, accumulated."""
    settings = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": len(data), "max_grad_norm": 0.0,
        "max_steps": 1, **(args or {}),
    }  # fmt: skip
    return kind(model, args=config(rules, folder, **settings), train_dataset=data, processing_class=tokenizer(), **more)


def step_of(trainer):
    before = copy.deepcopy({name: p.detach() for name, p in trainer.model.named_parameters()})
    trainer.train()
    return moved(trainer.model, before)


def scorer():
    torch.manual_seed(0)
    return hf.GPT2ForSequenceClassification(hf.GPT2Config(**{**GPT2, "num_labels": 1, "pad_token_id": 0}))


@pytest.mark.usefixtures("fine_grid")
def test_one_step_of_dpo_is_trls_with_a_mean_over_pairs(tmp_path):
    args = {"beta": 0.5, "precompute_ref_log_probs": True}
    theirs = step_of(alone(trl.DPOTrainer, trl.DPOConfig, gpt2(), pairs(), tmp_path / "theirs", args=args))
    assert distance(step_of(private(PrivateDPOTrainer, gpt2(), pairs(), tmp_path / "ours", args=args)), theirs) < 1e-5


@pytest.mark.usefixtures("fine_grid")
def test_with_adapters_the_reference_is_the_model_without_them(tmp_path):
    peft = pytest.importorskip("peft")

    def adapter():
        return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")

    args = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}
    theirs = step_of(
        alone(trl.DPOTrainer, trl.DPOConfig, llama(), pairs(), tmp_path / "theirs", args=args, peft_config=adapter())
    )
    ours = step_of(private(PrivateDPOTrainer, llama(), pairs(), tmp_path / "ours", args=args, peft_config=adapter()))
    assert set(ours) == set(theirs) == {name for name in theirs if "lora" in name}
    assert distance(ours, theirs) < 1e-5


@pytest.mark.usefixtures("fine_grid")
def test_one_step_of_a_reward_model_is_trls_with_a_mean_over_pairs(tmp_path):
    args, data = {"center_rewards_coefficient": 0.1}, pairs(margin=lambda i: 0.1 * i)
    theirs = step_of(alone(trl.RewardTrainer, trl.RewardConfig, scorer(), data, tmp_path / "theirs", args=args))
    assert distance(step_of(private(PrivateRewardTrainer, scorer(), data, tmp_path / "ours", args=args)), theirs) < 1e-5


@pytest.mark.usefixtures("fine_grid")
def test_each_pair_is_clipped_whole(tmp_path):
    """The sum of the pairs' own gradients by ordinary autograd, each cut to C: both of a pair's texts share one C."""
    model, bound = gpt2(), 0.05
    trainer = private(PrivateDPOTrainer, gpt2(), pairs(), tmp_path / "ours", plan=make_plan(8, max_grad_norm=bound))
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    norms = []
    for row in trainer.train_dataset:
        batch = preference.SideBySide(trainer.data_collator)([row])
        model.zero_grad()
        logits = model(input_ids=batch["input_ids"][0], attention_mask=batch["attention_mask"][0]).logits
        preference_losses(pairs_of(logits, batch), Settings.of(trainer.args)).sum().backward()
        norms.append(float(sum(p.grad.square().sum() for p in model.parameters()) ** 0.5))
        for name, parameter in model.named_parameters():
            total[name] -= min(1.0, bound / norms[-1]) * parameter.grad / 8
    assert min(norms) > bound
    assert distance(step_of(trainer), total) < 1e-4  # the engine's norms have a guard of about as much


def test_the_loss_of_each_kind_is_trls_for_a_batch_of_one_pair(tmp_path):
    args = {"precompute_ref_log_probs": True, "beta": 0.3, "label_smoothing": 0.1}
    theirs = alone(trl.DPOTrainer, trl.DPOConfig, gpt2(), pairs(3), tmp_path, args=args)
    for kind in LOSSES:
        settings = dataclasses.replace(Settings.of(theirs.args), types=(kind,), weights=(1.0,))
        theirs.loss_types, theirs.loss_weights = [kind], [1.0]
        for row in theirs.train_dataset:
            moved_reference = {name: row[name] + 0.5 for name in ("ref_chosen_logps",)}
            together, apart = theirs.data_collator([row | moved_reference]), preference.SideBySide(theirs.data_collator)
            batch = apart([row | moved_reference])
            logits = theirs.model(input_ids=batch["input_ids"][0], attention_mask=batch["attention_mask"][0]).logits
            ours = preference_losses(pairs_of(logits, batch), settings)
            assert ours.shape == (1,)
            assert ours.item() == pytest.approx(theirs._compute_loss(theirs.model, together, False).item(), rel=1e-4)


def test_the_reference_of_a_pair_does_not_depend_on_the_pairs_beside_it(tmp_path):
    model = gpt2()
    few = private(PrivateDPOTrainer, model, pairs(2), tmp_path / "few", plan=make_plan(4)).train_dataset
    many = private(PrivateDPOTrainer, model, pairs(8), tmp_path / "many").train_dataset
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert few[name][:] == many[name][:2]


def test_no_log_holds_a_metric_of_the_training_pairs(tmp_path, capsys):
    plan = make_plan(4, sample_rate=0.5, noise_multiplier=1.0, max_grad_norm=0.5, steps=2)
    for kind, model in ((PrivateDPOTrainer, gpt2()), (PrivateRewardTrainer, scorer())):
        trainer = private(
            kind,
            model,
            pairs(),
            tmp_path / kind.__name__,
            plan=plan,
            evaluation=pairs(4),
            args={"eval_strategy": "epoch"},
        )
        assert "/8 [" not in capsys.readouterr().err  # a bar that counts the private pairs
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if not any(name.startswith("eval_") for name in entry)]
        assert logged
        for entry in logged:
            assert set(entry) <= {"learning_rate", "epoch", "step", "epsilon", "noise_to_signal"}
        assert any("eval_loss" in entry for entry in trainer.state.log_history)


def test_what_couples_pairs_is_refused_by_name(tmp_path):
    refused = {
        "loss_type": (["aot"], "aot and aot_unpaired: it sorts the pairs"),
        "use_weighting": (True, "use_weighting"),
        "sync_ref_model": (True, "sync_ref_model"),
        "router_aux_loss_coef": (0.1, "router_aux_loss_coef"),
        "ld_alpha": (0.5, "ld_alpha"),
        "f_divergence_type": ("js_divergence", "f_divergence_type"),
    }
    for name, (value, said) in refused.items():
        with pytest.raises(PrivacyError, match=said):
            private(PrivateDPOTrainer, gpt2(), pairs(), tmp_path, args={name: value})
    with pytest.raises(PrivacyError, match="column image"):
        private(PrivateRewardTrainer, scorer(), pairs(image=str), tmp_path)
    with pytest.raises(PrivacyError, match="per_example_loss"):
        private(PrivateDPOTrainer, gpt2(), pairs(), tmp_path, per_example_loss=lambda *_: None)


def test_an_own_loss_and_trainers_of_groups_are_refused_by_name(tmp_path):
    class Own(PrivateDPOTrainer):
        def _compute_loss(self, model, inputs, return_outputs):
            return super()._compute_loss(model, inputs, return_outputs)

    with pytest.raises(PrivacyError, match=r"Own\._compute_loss: overridden"):
        private(Own, gpt2(), pairs(), tmp_path)
    from privguard.integrations.transformers.trainer import PrivateTrainer

    class Grouped(PrivateTrainer, trl.GRPOTrainer):
        pass

    with pytest.raises(PrivacyError, match=r"trl\.GRPOTrainer, and a prompt's answers are compared"):
        Grouped(gpt2(), hf.TrainingArguments(output_dir=str(tmp_path), use_cpu=True), seal_to=[KEY], plan=make_plan(8))


@pytest.mark.parametrize(("kind", "rules"), [("DPOConfig", "DPO"), ("RewardConfig", "Reward")])
def test_every_field_is_honoured_mapped_or_refused_and_in_one_table_only(kind, rules):
    rules = getattr(preference_arguments, rules)
    fields = set(vars(getattr(trl, kind))["__annotations__"]) - {"_VALID_DICT_FIELDS"}
    fields -= {field.name for field in dataclasses.fields(hf.TrainingArguments)}
    tables = [set(rules.HONOURED), set(rules.MAPPED), set(rules.REFUSED)]
    assert fields == set.union(*tables)
    assert sum(map(len, tables)) == len(fields)
