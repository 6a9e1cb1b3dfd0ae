# SPDX-License-Identifier: Apache-2.0
"""A private run under Trainer's own loop: what it leaves behind, how it stops, and how it goes on."""

import contextlib
import json
import re
from dataclasses import replace

import pytest
import torch
import transformers as hf
from drive import KEY, arguments, make_plan, private_trainer
from zoo import ZOO, Rows, one_class, pad, sentences

from privguard.accounting.accountant import spent
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Trust
from privguard.errors import PrivacyError, ResumeError, RollbackError, SensitivityError, TamperedError
from privguard.integrations.transformers.trainer import PrivateSeq2SeqTrainer, PrivateTrainer
from privguard.report.assemble import price

STEPS = 6
BERT, SENTENCES = ZOO["bert-sequence"]


def noisy_plan(**changes):
    return make_plan(
        4, **{"sample_rate": 0.34, "noise_multiplier": 1.0, "max_grad_norm": 0.5, "steps": STEPS, **changes}
    )


def model():
    torch.manual_seed(0)
    return BERT()


def trainer(folder, *, plan=None, net=None, data=None, callbacks=None, **changes):
    settings = {"learning_rate": 0.1, "logging_steps": 1, "lr_scheduler_type": "linear", **changes}
    given = {
        name: settings.pop(name)
        for name in ("eval_dataset", "insecure_seed", "compute_metrics", "per_example_loss", "trust")
        if name in settings
    }
    plan = plan or noisy_plan()
    return private_trainer(
        net or model(), data or SENTENCES(), folder, plan=plan, args=arguments(folder, 4, **settings),
        callbacks=callbacks, **given,
    )  # fmt: skip


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


class StopAt(hf.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


def test_a_run_spends_what_its_plan_says(tmp_path):
    private = trainer(tmp_path, insecure_seed=None)
    result = private.train()
    plan = private.plan
    assert replace(private.claim(), unchecked=()) == spent([(plan.event(), STEPS)], delta=plan.delta)
    assert Ledger.read(tmp_path / "ledger.jsonl").position == STEPS == result.global_step
    assert result.training_loss != result.training_loss  # NaN
    assert result.metrics["epsilon"] == pytest.approx(private.claim().epsilon, rel=1e-6)


def test_a_run_with_bands_takes_its_steps_in_blocks(tmp_path):
    """An epoch is counted by the share of all examples in a step, not by the rate in a group."""
    plan = noisy_plan(sample_rate=0.68, strategy=(1.0, 0.5))
    private = trainer(tmp_path, plan=plan, insecure_seed=None)
    assert private.train().global_step == STEPS
    assert private.state.epoch == pytest.approx(STEPS / 3)
    history = Ledger.read(tmp_path / "ledger.jsonl")
    assert (history.position, history.events) == (STEPS, 3)
    assert private.claim().epsilon == spent([(plan.event(), 3)], delta=plan.delta).epsilon


def test_a_budget_and_the_arguments_make_the_plan(tmp_path):
    args = arguments(tmp_path, 8, num_train_epochs=2, max_grad_norm=0.7)
    private = PrivateTrainer(
        model(), args, train_dataset=SENTENCES(), data_collator=pad, seal_to=[KEY],
        budget=Budget(epsilon=4, delta=1e-3), examples=12,
    )  # fmt: skip
    plan = private.plan
    assert (plan.sample_rate, plan.steps, plan.max_grad_norm, plan.expected_batch_size) == (8 / 12, 3, 0.7, 8)
    private.train()
    assert 3.9 < private.claim().epsilon <= 4


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stop_at_any_step_and_resume_is_the_uninterrupted_run(tmp_path, stop):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    one = trainer(whole)
    one.train()
    trainer(parts, callbacks=[StopAt(stop)]).train()
    two = trainer(parts)
    two.train(resume_from_checkpoint=True)
    assert torch.equal(weights(one.model), weights(two.model))
    assert Ledger.read(whole / "ledger.jsonl").position == Ledger.read(parts / "ledger.jsonl").position == STEPS
    assert [line["learning_rate"] for line in one.state.log_history if "learning_rate" in line] == [
        line["learning_rate"] for line in two.state.log_history if "learning_rate" in line
    ]


def test_dropout_and_every_other_generator_resume_exactly(tmp_path):
    def dropping():
        net = model()
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        return net

    one = trainer(tmp_path / "whole", net=dropping())
    one.train()
    trainer(tmp_path / "parts", net=dropping(), callbacks=[StopAt(2)]).train()
    torch.rand(7)
    two = trainer(tmp_path / "parts", net=dropping())
    two.train(resume_from_checkpoint=True)
    assert torch.equal(weights(one.model), weights(two.model))


def test_going_back_to_an_older_checkpoint_spends_afresh_and_ends_within_the_budget(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2, insecure_seed=None, callbacks=[StopAt(5)]).train()
    again = trainer(tmp_path, insecure_seed=None)
    result = again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert result.global_step == 3  # five steps were spent, one is left
    assert Ledger.read(tmp_path / "ledger.jsonl").position == STEPS


def test_a_checkpoint_that_the_runs_signer_did_not_seal_is_refused(tmp_path):
    theirs = Trust(signer=SigningKey.generate())
    trainer(tmp_path, save_strategy="steps", save_steps=2, trust=theirs, callbacks=[StopAt(2)]).train()
    with pytest.raises(TamperedError, match="is signed by"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(RollbackError, match="step 2"):
        trainer(tmp_path, trust=Trust(signer=theirs.signer, min_step=3)).train(resume_from_checkpoint=True)
    assert trainer(tmp_path, trust=theirs).train(resume_from_checkpoint=True).global_step == STEPS


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    trainer(tmp_path).train()
    with pytest.raises(ResumeError, match="resume_from_checkpoint=True"):
        trainer(tmp_path).train()


def test_a_changed_trainer_state_beside_the_seal_is_noticed(tmp_path):
    trainer(tmp_path, callbacks=[StopAt(3)]).train()
    path = tmp_path / "checkpoint-3" / "trainer_state.json"
    path.write_text(path.read_text().replace('"global_step": 3', '"global_step": 1'))
    with pytest.raises(TamperedError, match="was changed"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


# What a run leaves behind.


class Recorder(hf.TrainerCallback):
    """What an integration such as TensorBoard is given."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **_):
        self.seen.append(dict(logs))


UNMISTAKABLE = 54_321.0


def marked_loss(outputs, batch):
    """The usual loss, in training plus a constant: no gradient changes, and a number this large is the loss."""
    losses = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")
    return losses + UNMISTAKABLE * losses.requires_grad


def private_quantities(log, capture):
    """The un-noised losses of every step, caught inside."""
    from privguard.runs.driver import Underway

    original = Underway.backward

    def backward(self, batch, losses):
        log.append(("loss", losses.mean().item()))
        log.append(("loss sum", losses.sum().item()))
        return original(self, batch, losses)

    capture.setattr(Underway, "backward", backward)


def test_no_file_and_no_record_holds_an_unnoised_number(tmp_path, monkeypatch, capsys, caplog):
    """Every number in every file, log record and printed line, against the run's true losses to four digits.

    Plain losses near 0.7 would meet a run time or a noisy norm by chance; the marked ones meet nothing.
    """
    found, recorder = [], Recorder()
    private_quantities(found, monkeypatch)
    hf.logging.set_verbosity_info()
    hf.logging.enable_propagation()
    with caplog.at_level("INFO"):
        private = trainer(
            tmp_path, insecure_seed=None, save_strategy="steps", save_steps=2, callbacks=[recorder], disable_tqdm=False,
            logging_first_step=True, eval_dataset=sentences(one_class, count=4), eval_strategy="steps", eval_steps=3,
            per_example_loss=marked_loss,
        )  # fmt: skip
        result = private.train()
        private.save_metrics("train", result.metrics)
        private.save_state()
    hf.logging.disable_propagation()
    assert len(found) >= 2 * STEPS
    assert all(value == 0 or value > 0.99 * UNMISTAKABLE for _, value in found)
    found = [(name, value) for name, value in found if value]
    printed = capsys.readouterr()
    said = [json.dumps(recorder.seen), json.dumps(result.metrics), printed.out, printed.err, caplog.text]
    said += [p.read_text() for p in tmp_path.rglob("*") if p.suffix in {".json", ".jsonl", ".txt"}]
    numbers = {float(n) for text in said for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)}
    for name, value in found:
        assert not any(abs(value - n) < 1e-4 * abs(value) for n in numbers), name
    names = {name for line in [*recorder.seen, *private.state.log_history] for name in line}
    assert names <= {"learning_rate", "epoch", "step", "epsilon", "noise_to_signal"} | {
        n for n in names if n.startswith("eval_")
    }
    assert {"epsilon", "noise_to_signal"} <= names
    assert private.state.total_flos == 0 == private.state.num_input_tokens_seen


def test_the_search_itself_finds_a_planted_leak(tmp_path, monkeypatch):
    """The same search over a run whose log carries the true loss."""
    found, recorder = [], Recorder()
    private_quantities(found, monkeypatch)
    monkeypatch.setattr(
        PrivateTrainer, "log", lambda self, logs, start_time=None: hf.Trainer.log(self, {**logs, "loss": found[-2][1]})
    )
    trainer(tmp_path, callbacks=[recorder], per_example_loss=marked_loss).train()
    logged = [line["loss"] for line in recorder.seen]
    assert any(abs(value - n) < 1e-4 * abs(value) for _, value in found for n in logged)


def test_checkpoints_are_sealed_and_hold_no_weights_in_clear(tmp_path):
    private = trainer(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2)
    private.train()
    kept = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]
    files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"run.json", "ledger.jsonl", "trainer_state.json", "state.sealed"}
    row = private.model.bert.pooler.dense.weight.detach()[0].numpy().tobytes()
    assert not any(row in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_finished_model_is_saved_at_the_users_call(tmp_path):
    private = trainer(tmp_path / "run")
    private.train()
    private.save_model(str(tmp_path / "model"))
    again = hf.BertForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(weights(again), weights(private.model))
    assert not list((tmp_path / "model").glob("*.bin"))


# Trainer's own behaviour.


def test_evaluation_metrics_best_model_and_early_stopping(tmp_path):
    scores = iter([0.5, 0.9, 0.1, 0.1, 0.1, 0.1])
    kept = []

    class Keep(hf.TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **_):
            kept.append(weights(model).clone())

    private = trainer(
        tmp_path, eval_dataset=sentences(one_class, count=4), compute_metrics=lambda _: {"score": next(scores)},
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="score", callbacks=[hf.EarlyStoppingCallback(2), Keep()],
    )  # fmt: skip
    result = private.train()
    assert result.global_step == 4
    assert private.state.best_global_step == 2
    assert torch.equal(weights(private.model), kept[1])


def test_sequence_to_sequence_evaluates_by_generating(tmp_path):
    """``Seq2SeqTrainer``'s own: metrics and predictions over generated tokens, during and after training."""
    make, data = ZOO["bart-seq2seq"]
    args = arguments(
        tmp_path, 12, kind=hf.Seq2SeqTrainingArguments, max_steps=2, predict_with_generate=True,
        generation_max_length=5, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip

    def metrics(prediction):
        return {"token": float(prediction.predictions[:, 1].mean())}

    others = Rows(data().rows[:4])
    private = private_trainer(
        make(), data(), tmp_path, kind=PrivateSeq2SeqTrainer, args=args, eval_dataset=others, compute_metrics=metrics,
        plan=make_plan(12, steps=2, noise_multiplier=1.0, max_grad_norm=0.5), insecure_seed=None,
    )  # fmt: skip
    result = private.train()
    assert result.global_step == 2
    assert private.claim().events == 2
    assert len([line for line in private.state.log_history if "eval_token" in line]) == 2
    plain = hf.Seq2SeqTrainer(private.model, args, eval_dataset=others, data_collator=pad, compute_metrics=metrics)
    assert private.evaluate()["eval_token"] == plain.evaluate()["eval_token"]
    ours, theirs = (one.predict(others, max_length=25).predictions for one in (private, plain))
    assert ours.shape == (4, 25)
    assert (ours == theirs).all()


def test_epochs_count_in_public_numbers(tmp_path):
    private = trainer(
        tmp_path, eval_dataset=sentences(one_class, count=4), eval_strategy="epoch", logging_strategy="epoch"
    )
    private.train()
    assert [line["epoch"] for line in private.state.log_history if "eval_loss" in line] == [1.0, 2.0]


@pytest.mark.parametrize("setting", [{"bf16": True}, {"activation_checkpointing": True}])
def test_precision_and_checkpointed_activations(tmp_path, setting):
    torch.manual_seed(0)
    net = ZOO["gpt2-causal"][0]()
    exact = ZOO["gpt2-causal"][0]()
    exact.load_state_dict(net.state_dict())
    data = ZOO["gpt2-causal"][1]()
    plan = make_plan(12, max_grad_norm=0.5)
    for number, (one, more) in enumerate([(net, setting), (exact, {})]):
        folder = tmp_path / str(number)
        private_trainer(one, data, folder, plan=plan, args=arguments(folder, 12, **more)).train()
    assert torch.allclose(weights(net), weights(exact), atol=2e-3 if "bf16" in setting else 1e-6)


@pytest.mark.usefixtures("fine_grid")
def test_the_users_own_loss(tmp_path):
    class Net(torch.nn.Module):
        main_input_name = "x"

        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(4, 1)

        def forward(self, x):
            return {"y": self.line(x)[:, 0]}

    rows = Rows([{"x": torch.randn(4), "target": torch.randn(())} for _ in range(8)])
    args = arguments(tmp_path, 8, remove_unused_columns=False, label_names=["target"])
    private = private_trainer(
        Net(), rows, tmp_path, plan=make_plan(8), args=args,
        per_example_loss=lambda outputs, batch: (outputs["y"] - batch["target"]) ** 2,
    )  # fmt: skip
    before = private.model.line.weight.detach().clone()
    x, y = torch.stack([r["x"] for r in rows.rows]), torch.stack([r["target"] for r in rows.rows])
    wanted = torch.autograd.grad(((private.model.line(x)[:, 0] - y) ** 2).mean(), private.model.line.weight)[0]
    private.train()
    assert torch.allclose(before - private.model.line.weight, wanted, atol=1e-5)


# Refusals.


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"include_num_input_tokens_seen": "all"}, "un-noised sum"),
        ({"auto_find_batch_size": True}, "depends on the data"),
        ({"torch_compile": True}, "breaks the graph"),
        ({"neftune_noise_alpha": 5.0}, "padded length"),
        ({"skip_memory_metrics": False}, "largest batch"),
        ({"train_sampling_strategy": "group_by_length"}, "Poisson"),
        ({"push_to_hub": True}, "leave the machine"),
    ],
)
def test_settings_that_cannot_be_private_are_refused(tmp_path, setting, said):
    with pytest.raises(PrivacyError, match=said):
        trainer(tmp_path, **setting)


def test_evaluating_on_the_training_data_is_refused(tmp_path):
    data = SENTENCES()
    with pytest.raises(PrivacyError, match="of its records are in the training set"):
        private_trainer(model(), data, tmp_path, eval_dataset=data)
    for hidden in ({"seen": data, "new": SENTENCES()}, torch.utils.data.Subset(data, [0, 1])):
        with pytest.raises(PrivacyError, match="of its records are in the training set"):
            private_trainer(model(), data, tmp_path, eval_dataset=hidden)
    private = private_trainer(model(), data, tmp_path, eval_dataset={"new": SENTENCES()})
    with pytest.raises(PrivacyError, match="of its records are in the training set"):
        private.evaluate(data)
    assert not private.state.log_history


def test_a_model_that_reads_its_padding_is_refused(tmp_path):
    """GPT-2 counts positions from the left edge, so padding on the left moves a text by what the longest one needs."""

    names = ("input_ids", "attention_mask", "labels")

    def pad_left(rows):
        batch = pad([{name: row[name].flip(0) for name in names} for row in rows])
        return {name: batch[name].flip(1) for name in names}

    make, data = ZOO["gpt2-causal"]
    with pytest.raises(SensitivityError, match="padding that a longer record brings"):
        private_trainer(make(), data(), tmp_path, data_collator=pad_left).train()
    private_trainer(make(), data(), tmp_path).train()


def test_arguments_that_contradict_the_plan_are_refused(tmp_path):
    for changes, said in [
        ({"gradient_accumulation_steps": 2}, r"4 × 2 × 1 = 8: expected the plan's batch of 4"),
        ({"num_train_epochs": 7}, "num_train_epochs=7"),
        ({"max_steps": 99}, "max_steps=99"),
    ]:
        with pytest.raises(ValueError, match=said):
            trainer(tmp_path, **changes)


def test_a_loss_that_couples_the_examples_is_refused(tmp_path):
    def coupled(outputs, batch):
        each = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")
        return each / (1 + outputs.logits.detach().abs().sum())

    private = private_trainer(model(), SENTENCES(), tmp_path, plan=make_plan(12), per_example_loss=coupled)
    with pytest.raises(SensitivityError, match="exchanging example"):
        private.train()
    assert not (tmp_path / "run.json").exists()


class Raises(hf.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            raise RuntimeError("a callback")


@pytest.mark.parametrize("callback", [StopAt(2), Raises()], ids=["stops early", "raises"])
def test_a_run_that_ends_early_has_one_epsilon(tmp_path, callback):
    private = trainer(tmp_path, insecure_seed=None, callbacks=[callback])
    result = None
    with contextlib.suppress(RuntimeError):
        result = private.train()
    claimed = private.claim().epsilon
    history = Ledger.read(tmp_path / "ledger.jsonl")
    assert history.position == 2
    assert spent(history, delta=private.plan.delta).epsilon == claimed == price(tmp_path).claim.epsilon
    if result is not None:
        assert result.metrics["epsilon"] == claimed
        assert [line["epsilon"] for line in private.state.log_history][-1] == claimed


def test_a_finished_run_is_resumed_for_its_state(tmp_path):
    first = trainer(tmp_path, insecure_seed=None)
    first.train()
    again = trainer(tmp_path, insecure_seed=None)
    result = again.train(resume_from_checkpoint=True)
    assert result.global_step == STEPS == Ledger.read(tmp_path / "ledger.jsonl").position
    assert torch.equal(weights(again.model), weights(first.model))
    assert again.claim().epsilon == first.claim().epsilon


def test_evaluation_is_listed_with_the_selection_by_it_unless_it_is_public(tmp_path):
    setting = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "load_best_model_at_end": True,
        "eval_steps": 3,
        "save_steps": 3,
    }
    private = trainer(tmp_path / "a", insecure_seed=None, eval_dataset=SENTENCES(), **setting)
    private.train()
    assert any("the model to keep" in line for line in private.claim().unchecked)
    with pytest.raises(PrivacyError, match="in the training set"):
        private.predict(private.train_dataset)
