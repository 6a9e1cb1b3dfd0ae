# SPDX-License-Identifier: Apache-2.0
"""What transformers' own tests promise of callbacks, checkpoints and evaluation, of Trainer and PrivateTrainer alike.

Both are run on the same data with the same arguments and compared; ``docs/trainer-tests.md`` names the tests of
transformers that each of these stands for.
"""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from drive import arguments, make_plan, private_trainer
from torch import nn
from transformers.trainer_callback import ExportableState
from zoo import Rows

EPOCHS, BATCH, RECORDS = 2, 8, 32
STEPS = EPOCHS * RECORDS // BATCH


class Line(nn.Module):
    """y = a x + b, with the squared error as its loss."""

    main_input_name = "x"

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)
        with torch.no_grad():
            self.line.weight.fill_(1.5)
            self.line.bias.fill_(2.5)

    def forward(self, x, labels=None):
        y = self.line(x[:, None])[:, 0]
        return {"y": y} if labels is None else {"loss": ((y - labels) ** 2).mean(), "y": y}


def points(count):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, generator=generator)
    y = 2 * x + 3 + torch.randn(count, generator=generator) / 10
    return Rows([{"x": a, "labels": b} for a, b in zip(x, y, strict=True)])


def settings(folder, changes):
    more = {"num_train_epochs": EPOCHS, "learning_rate": 0.01, "save_strategy": "steps", "logging_steps": 500}
    return arguments(folder, BATCH, **{**more, "per_device_train_batch_size": BATCH, **changes})


def plain(folder, *, trainer=None, **changes):
    args = settings(folder / "plain", {**changes, "gradient_accumulation_steps": 1})
    data = {"train_dataset": points(RECORDS), "eval_dataset": points(20), **(trainer or {})}
    return hf.Trainer(Line(), args, **data)


def private(folder, *, trainer=None, **changes):
    args = settings(folder / "private", {**changes, "gradient_accumulation_steps": 1})
    plan = make_plan(BATCH, sample_rate=BATCH / RECORDS, steps=STEPS, max_grad_norm=1.0, examples=RECORDS)
    more = {"eval_dataset": points(20), "data_collator": None, **(trainer or {})}
    return private_trainer(
        Line(), points(RECORDS), folder / "private", plan=plan, args=args,
        per_example_loss=lambda outputs, batch: (outputs["y"] - batch["labels"]) ** 2, **more,
    )  # fmt: skip


BOTH = pytest.mark.parametrize("make", [plain, private])


class Recorder(hf.TrainerCallback):
    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if name.startswith("on_") and name != "on_init_end":
            return lambda *_, **__: self.events.append(name)
        return super().__getattribute__(name)


class Kept(hf.TrainerCallback, ExportableState):
    def __init__(self, value="default"):
        self.value = value

    def state(self):
        return {"args": {"value": self.value}, "attributes": {}}


class Flags(hf.TrainerCallback):
    def __init__(self, *, stop=None):
        self.stop, self.saves, self.steps = stop, 0, 0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        self.saves += control.should_save
        control.should_training_stop |= state.global_step == self.stop

    def on_epoch_end(self, args, state, control, **_):
        self.saves += control.should_save


def names(trainer):
    return sorted(type(callback).__name__ for callback in trainer.callback_handler.callbacks)


# Callbacks.


@pytest.mark.parametrize(
    "changes",
    [
        {"save_strategy": "no"},
        {"logging_steps": 3},
        {"save_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 3},
        {"eval_strategy": "epoch"},
        {"logging_steps": 3, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 5},
        {"max_steps": 1, "logging_first_step": True},
    ],
    ids=json.dumps,
)
def test_the_same_events_come_in_the_same_order(tmp_path, changes):
    recorders = {}
    for make in (plain, private):
        recorders[make] = Recorder()
        make(tmp_path, trainer={"callbacks": [recorders[make]]}, **changes).train()
    assert len(recorders[plain].events) > 8
    ours, theirs = ([name for name in recorders[make].events if name != "on_save"] for make in (private, plain))
    assert ours == theirs
    assert recorders[private].events.count("on_save") >= recorders[plain].events.count("on_save")  # a rolling one more


@pytest.mark.parametrize("quiet", [True, False])
def test_the_same_callbacks_are_there(tmp_path, quiet):
    given = {"trainer": {"callbacks": [Recorder]}, "disable_tqdm": quiet}
    assert names(private(tmp_path, **given)) == sorted([*names(plain(tmp_path, **given)), "Rolling"])
    assert "Recorder" in names(private(tmp_path, **given))


@BOTH
def test_callbacks_are_added_removed_and_popped_by_class_and_by_instance(tmp_path, make):
    trainer, mine = make(tmp_path), Recorder()
    before = names(trainer)
    trainer.add_callback(Kept)
    trainer.add_callback(mine)
    assert names(trainer) == sorted([*before, "Kept", "Recorder"])
    trainer.remove_callback(mine)
    trainer.remove_callback(hf.DefaultFlowCallback)
    assert type(trainer.pop_callback(Kept)) is Kept
    assert names(trainer) == [name for name in before if name != "DefaultFlowCallback"]


@BOTH
def test_a_callback_stops_the_run_and_sees_the_flags(tmp_path, make):
    flags = Flags(stop=3)
    trainer = make(tmp_path, trainer={"callbacks": [flags]}, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == flags.steps == 3


@BOTH
def test_an_epoch_is_saved_once(tmp_path, make):
    flags = Flags()
    make(tmp_path, trainer={"callbacks": [flags]}, max_steps=2, save_strategy="epoch").train()
    assert flags.saves == 1


SAVED = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}


def goes_on(make, folder, *, first, then):
    """Two steps with the first callbacks, then on with others that take their state from the checkpoint."""
    make(folder, trainer={"callbacks": first}, max_steps=2, **SAVED).train()
    again = make(
        folder, trainer={"callbacks": then}, max_steps=4, restore_callback_states_from_checkpoint=True, **SAVED
    )
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-2")
    return again


@BOTH
def test_stateful_callbacks_come_back_beside_others_and_several_of_a_kind(tmp_path, make):
    first = [hf.EarlyStoppingCallback(5, 0.2), Recorder(), Kept("one"), Kept("two")]
    trainer = goes_on(make, tmp_path, first=first, then=[hf.EarlyStoppingCallback(), Recorder(), Kept(), Kept()])
    callbacks = trainer.callback_handler.callbacks
    stopping = next(callback for callback in callbacks if isinstance(callback, hf.EarlyStoppingCallback))
    assert (stopping.early_stopping_patience, stopping.early_stopping_threshold) == (5, 0.2)
    assert [callback.value for callback in callbacks if isinstance(callback, Kept)] == ["one", "two"]


@BOTH
def test_a_stateful_callback_that_is_missing_is_warned_of(tmp_path, make, caplog):
    hf.logging.set_verbosity_warning()
    hf.logging.enable_propagation()
    goes_on(make, tmp_path, first=[hf.EarlyStoppingCallback(5)], then=[])
    hf.logging.disable_propagation()
    assert "EarlyStoppingCallback" in caplog.text


@BOTH
def test_the_control_is_kept(tmp_path, make):
    trainer = make(tmp_path, max_steps=2, save_steps=2)
    trainer.train()
    kept = json.loads((tmp_path / make.__name__ / "checkpoint-2" / "trainer_state.json").read_text())
    assert kept["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"] is True


# Checkpoints.


@pytest.mark.parametrize("limit", [None, 2])
def test_the_same_checkpoints_are_there(tmp_path, limit):
    for make in (plain, private):
        make(tmp_path, save_steps=3, save_total_limit=limit).train()
    ours, theirs = ({p.name for p in (tmp_path / kind).glob("checkpoint-*")} for kind in ("private", "plain"))
    assert ours == theirs
    assert len(theirs) == (3 if limit is None else limit)


@BOTH
def test_there_is_nothing_to_resume_from(tmp_path, make):
    with pytest.raises(ValueError, match="checkpoint"):
        make(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises((ValueError, OSError), match="bogus"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "bogus"))


# Evaluation.


def close(prediction, compute_result=True):
    predictions, labels = (np.asarray(part) for part in prediction)
    return {"close": float((np.abs(predictions - labels) < 1).mean())}


def public(metrics):
    return {name: value for name, value in metrics.items() if "second" not in name and "time" not in name}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_eval_metrics": True, "per_device_eval_batch_size": 64},
        {"eval_use_gather_object": True},
        {"prediction_loss_only": True},
        {"eval_do_concat_batches": False, "per_device_eval_batch_size": 64},
        {"eval_accumulation_steps": 1},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("count", [16, 21])
def test_evaluation_and_prediction_are_trainers(tmp_path, changes, count):
    """Also where the data is no multiple of the batch."""
    given = {"compute_metrics": close, "preprocess_logits_for_metrics": lambda y, _: y + 1}
    ours, theirs = (make(tmp_path, trainer=dict(given), **changes) for make in (private, plain))
    assert public(ours.evaluate(points(count))) == pytest.approx(public(theirs.evaluate(points(count))))
    mine, other = (trainer.predict(points(count)) for trainer in (ours, theirs))
    assert public(mine.metrics) == pytest.approx(public(other.metrics))
    if mine.predictions is not None:
        assert np.array_equal(np.ravel(mine.predictions), np.ravel(other.predictions))
        assert np.array_equal(np.ravel(mine.label_ids), np.ravel(other.label_ids))
