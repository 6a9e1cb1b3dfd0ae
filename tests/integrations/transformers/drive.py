# SPDX-License-Identifier: Apache-2.0
"""Private trainers and their non-private references, made short."""

import copy

import torch
import transformers as hf
from small import with_options
from zoo import pad

from privguard.checkpoint.keys.key import Key
from privguard.integrations.transformers.trainer import PrivateTrainer
from privguard.training.plan import Plan

KEY = Key.generate_symmetric()


def make_plan(batch, **changes):
    facts = {
        "sample_rate": 1.0,
        "noise_multiplier": 0.0,
        "max_grad_norm": 100.0,  # more than any example has here
        "steps": 1,
        "delta": 1e-5,
        "expected_batch_size": batch,
    }
    return Plan(**{**facts, **changes})


def arguments(folder, batch, *, kind=hf.TrainingArguments, **changes):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": batch // 4,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": False,
    }
    return kind(**{**settings, **changes})


def private_trainer(model, data, folder, *, kind=PrivateTrainer, plan=None, args=None, **more):
    plan = plan or make_plan(len(data))
    args = args or arguments(folder, int(plan.expected_batch_size))
    settings = {"seal_to": [KEY], "insecure_seed": 1, "data_collator": pad, **more}
    return kind(model, args, train_dataset=data, plan=plan, **with_options(settings))


def per_example_reference(model, data, folder):
    """``Trainer`` itself with a mean over examples of transformers' own loss: batches of one, accumulated."""
    args = arguments(
        folder,
        len(data),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(data),
        max_grad_norm=0.0,
        max_steps=1,
    )
    trainer = hf.Trainer(model, args, train_dataset=data, data_collator=pad)
    trainer.model_accepts_loss_kwargs = False  # a mean for each batch, which is one example
    trainer.train()


def moved(model, before):
    return {name: p.detach() - before[name] for name, p in model.named_parameters() if p.requires_grad}


def both(model, data, folder, **more):
    """How far one step moves each parameter: privately without noise or clipping, and in the reference."""
    before = copy.deepcopy({name: p.detach() for name, p in model.named_parameters()})
    reference = copy.deepcopy(model)
    private_trainer(model, data, folder / "private", **more).train()
    per_example_reference(reference, data, folder / "reference")
    return moved(model, before), moved(reference, before)


def distance(ours, theirs):
    """Relative L2 distance over all parameters."""
    difference = torch.stack([(ours[n] - theirs[n]).norm() for n in theirs]).norm()
    return (difference / torch.stack([v.norm() for v in theirs.values()]).norm()).item()
