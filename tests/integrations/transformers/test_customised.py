# SPDX-License-Identifier: Apache-2.0
"""Twenty-eight ways in which people change Trainer: each is honoured, to 1e-5 of one by one, or refused by name."""

import types

import pytest
import torch
import transformers as hf
from drive import arguments, make_plan, moved, private_trainer
from torch.nn import functional
from zoo import BERT, ZOO, Rows, pad

from privguard.errors import PrivguardError
from privguard.integrations.transformers.trainer import PrivateTrainer

WEIGHTS = torch.tensor([5.0, 1.0, 0.3])
EXAMPLES = 6


def model(kind=hf.BertForSequenceClassification, seed=0, **changes):
    torch.manual_seed(seed)
    return kind(hf.BertConfig(**{**BERT, "num_labels": 3, "num_hidden_layers": 1, **changes}))


def data():
    return Rows(ZOO["bert-sequence"][1]().rows[:EXAMPLES])


# What users write. Each takes the trainer's own model and gives a number for the batch.


def weighted(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs.pop("labels")
    outputs = model(**inputs)
    loss = functional.cross_entropy(outputs.logits, labels, weight=WEIGHTS)
    return (loss, outputs) if return_outputs else loss


def focal(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)  # with its labels
    each = functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")
    loss = ((1 - (-each).exp()) ** 2 * each).mean()
    return (loss, outputs) if return_outputs else loss


def models_loss_and_more(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    return outputs.loss + 0.1 * outputs.logits.square().mean()


def by_position(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs, output_hidden_states=True)
    return outputs[0] + outputs.hidden_states[-1][:, 0].square().mean()


def through_super(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    loss, outputs = PrivateTrainer.compute_loss(self, model, inputs, return_outputs=True)
    return 2 * loss + outputs.logits.std(-1).mean()


TEACHER = model(seed=5).eval().requires_grad_(False)


def distilled(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs.pop("labels")
    outputs, wanted = model(**inputs), TEACHER(**inputs).logits.softmax(-1)
    mine = outputs.logits.log_softmax(-1)
    return functional.kl_div(mine, wanted, reduction="batchmean") + functional.cross_entropy(outputs.logits, labels)


def twice(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs.pop("labels")
    one, two = model(**inputs).logits, model(**inputs, token_type_ids=torch.ones_like(inputs["input_ids"])).logits
    return functional.cross_entropy(one, labels) + (one - two).square().mean()


def with_weight_decay(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return model(**inputs).loss + 0.1 * model.classifier.weight.square().sum()


def of_another_name(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return self.model(**inputs).loss * 3


def contrastive(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][:, 0]
    return functional.cross_entropy(hidden @ hidden.T, torch.arange(len(hidden)))


def mixed_up(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels, whole = inputs.pop("labels"), model(**inputs).logits
    return functional.cross_entropy(0.7 * whole + 0.3 * whole.flip(0), labels)


def a_vector(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return model(**inputs).logits.square().mean(1).repeat(2)


def summed(outputs, labels, num_items_in_batch=None):
    each = functional.cross_entropy(outputs.logits, labels, weight=WEIGHTS, reduction="sum")
    return each / num_items_in_batch


def ranking(outputs, labels, num_items_in_batch=None):
    score = outputs.logits[:, 0]
    return functional.softplus(score[None] - score[:, None]).mean()


def overriding(name, method):
    return type("Mine", (PrivateTrainer,), {name: method})


def anything(self, *_, **__):
    raise AssertionError("called")


class Focal(hf.BertForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **more):
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)
        if labels is not None:
            outputs.loss = focal(None, lambda **_: outputs, {"labels": labels})
        return outputs


class FocalBertForSequenceClassification(Focal):
    pass


def layerwise(self, *_):
    head = [p for n, p in self.model.named_parameters() if "classifier" in n]
    rest = [p for n, p in self.model.named_parameters() if "classifier" not in n]
    self.optimizer = torch.optim.SGD([{"params": head, "lr": 1.0}, {"params": rest, "lr": 1.0}])
    return self.optimizer


def same_inputs(self, inputs):
    return hf.Trainer._prepare_inputs(self, {**inputs, "attention_mask": inputs["attention_mask"].bool().long()})


class Behind(hf.Trainer):
    compute_loss = weighted


def patched():
    def make(*given, **named):
        trainer = PrivateTrainer(*given, **named)
        trainer.compute_loss = types.MethodType(weighted, trainer)
        return trainer

    return make


def plain(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return model(**inputs).loss


def smoothed(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs.pop("labels")
    return functional.cross_entropy(model(**inputs).logits, labels, label_smoothing=0.2)


def of_function(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    labels = inputs.pop("labels")
    return summed(model(**inputs), labels, 1)


HONOURED = {  # how the trainer is made, more of its arguments, more of args, and the loss of one example by itself
    "compute_loss: class weights": (overriding("compute_loss", weighted), {}, {}, weighted),
    "compute_loss: focal": (overriding("compute_loss", focal), {}, {}, focal),
    "compute_loss: the model's loss and more": (
        overriding("compute_loss", models_loss_and_more), {}, {}, models_loss_and_more
    ),
    "compute_loss: outputs by position": (overriding("compute_loss", by_position), {}, {}, by_position),
    "compute_loss: super": (overriding("compute_loss", through_super), {}, {}, through_super),
    "compute_loss: distillation": (overriding("compute_loss", distilled), {}, {}, distilled),
    "compute_loss: two passes": (overriding("compute_loss", twice), {}, {}, twice),
    "compute_loss: weights by themselves": (overriding("compute_loss", with_weight_decay), {}, {}, with_weight_decay),
    "compute_loss: self.model": (overriding("compute_loss", of_another_name), {}, {}, of_another_name),
    "compute_loss: behind PrivateTrainer": (type("Mine", (PrivateTrainer, Behind), {}), {}, {}, weighted),
    "compute_loss: before PrivateTrainer": (type("Mine", (Behind, PrivateTrainer), {}), {}, {}, weighted),
    "compute_loss: patched in": (patched(), {}, {}, weighted),
    "compute_loss_func": (PrivateTrainer, {"compute_loss_func": summed}, {}, of_function),
    "label smoothing": (PrivateTrainer, {}, {"label_smoothing_factor": 0.2}, smoothed),
    "create_optimizer": (overriding("create_optimizer", layerwise), {}, {}, plain),
    "_prepare_inputs": (overriding("_prepare_inputs", same_inputs), {}, {}, plain),
}  # fmt: skip

REFUSED = {  # how the trainer is made, more of its arguments, the model, and what is said
    "compute_loss: negatives": (overriding("compute_loss", contrastive), {}, model, "compares the records"),
    "compute_loss: mixed records": (overriding("compute_loss", mixed_up), {}, model, "compares the records"),
    "compute_loss: a vector": (overriding("compute_loss", a_vector), {}, model, "one number"),
    "compute_loss_func: pairs": (PrivateTrainer, {"compute_loss_func": ranking}, model, "compares the records"),
    "two losses": (
        PrivateTrainer,
        {"compute_loss_func": summed, "per_example_loss": lambda outputs, batch: outputs.logits[:, 0]},
        model,
        "two losses",
    ),
    "a loss in forward": (
        PrivateTrainer, {}, lambda: model(FocalBertForSequenceClassification), "its own loss of a synthetic record"
    ),
    **{
        name: (overriding(name, anything), {}, model, f"Mine.{name}: overridden")
        for name in (
            "training_step", "get_train_dataloader", "get_batch_samples", "_get_train_sampler",
            "_get_num_items_in_batch", "_inner_training_loop",
        )
    },
}  # fmt: skip


def one_by_one(net, rows, trainer, loss):
    """One step of gradient descent along the mean of the examples' own gradients."""
    net.eval()
    total = sum(loss(trainer, net, pad([row])) for row in rows) / len(rows)
    parameters = [p for p in net.parameters() if p.requires_grad]
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        if gradient is not None:
            parameter.data -= gradient


@pytest.mark.usefixtures("fine_grid")
@pytest.mark.filterwarnings("ignore:one backward pass for each example")
@pytest.mark.parametrize("name", HONOURED)
def test_it_is_honoured_for_each_example(name, tmp_path):
    kind, more, settings, loss = HONOURED[name]
    rows, net, reference = data(), model(), model()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    args = arguments(tmp_path, EXAMPLES, per_device_train_batch_size=6, gradient_accumulation_steps=1, **settings)
    trainer = private_trainer(net, rows, tmp_path, kind=kind, plan=make_plan(EXAMPLES), args=args, **more)
    trainer.train()
    standin = types.SimpleNamespace(model=reference)
    by_itself = plain_super if loss is through_super else loss
    one_by_one(reference, rows.rows, standin, by_itself)
    ours, theirs = moved(net, before), moved(reference, before)
    off = torch.stack([(ours[n] - theirs[n]).norm() for n in theirs]).norm()
    assert off <= 1e-5 * torch.stack([v.norm() for v in theirs.values()]).norm()


def plain_super(self, model, inputs):
    outputs = model(**inputs)
    return 2 * outputs.loss + outputs.logits.std(-1).mean()


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_before_a_step(name, tmp_path):
    kind, more, make, said = REFUSED[name]
    args = arguments(tmp_path, EXAMPLES, per_device_train_batch_size=6, gradient_accumulation_steps=1)
    with pytest.raises(PrivguardError, match=said):
        private_trainer(make(), data(), tmp_path, kind=kind, plan=make_plan(EXAMPLES), args=args, **more).train()
    assert not (tmp_path / "run.json").exists()
