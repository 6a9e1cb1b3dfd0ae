"""What a step costs: PrivateTrainer over Trainer, and the private step by hand over the plain step by hand.

python -m benchmarks.trainer [--rounds N] [--tiny]

Process CPU time per example, the four variants interleaved in one process, medians over rounds; noise included. The
first ratio has to stay within 0.05 of the second: what the wrapper adds beyond the clipper, the noise and the ledger.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers as hf
from torch.utils.data import Dataset

from privguard._random import Stream
from privguard.checkpoint.key import Key
from privguard.integrations.heads import head_of, inputs_for
from privguard.integrations.transformers import PrivateTrainer
from privguard.training.clip import attach, trainable
from privguard.training.noise import add_noise
from privguard.training.plan import Plan
from privguard.training.step import hand_over

RESULTS = Path(__file__).parent / "results"


class Texts(Dataset):
    """Random texts of one length."""

    def __init__(self, count, length, labels):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, 900, (count, length), generator=generator)
        self.labels = self.ids if labels is None else torch.randint(0, labels, (count,), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def bert(scale):
    config = hf.BertConfig(
        vocab_size=1000, hidden_size=256 // scale, num_hidden_layers=4 // scale, num_attention_heads=4,
        intermediate_size=1024 // scale, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return hf.BertForSequenceClassification(config), Texts(32, 64, 2)


def gpt2(scale):
    config = hf.GPT2Config(
        vocab_size=1000, n_embd=384 // scale, n_layer=6 // scale, n_head=6, n_positions=128, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config), Texts(16, 128, None)


def arguments(folder, batch, steps):
    return hf.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=batch, max_steps=steps, save_strategy="no", report_to="none",
        use_cpu=True, disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False, optim="adamw_torch",
    )  # fmt: skip


class Clock(hf.TrainerCallback):
    """CPU seconds of each step of a trainer, the first one left out."""

    def __init__(self):
        self.marks = []

    def on_step_end(self, *_, **__):
        self.marks.append(time.process_time())

    def seconds(self):
        return [b - a for a, b in itertools.pairwise(self.marks)]


def trainer_steps(make, scale, kind, steps):
    model, data = make(scale)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, len(data), steps)
        if kind is hf.Trainer:
            hf.Trainer(model, args, train_dataset=data, callbacks=[clock]).train()
        else:
            plan = Plan(
                sample_rate=1.0, noise_multiplier=0.8, max_grad_norm=1.0, steps=steps, delta=1e-5,
                expected_batch_size=len(data),
            )  # fmt: skip
            PrivateTrainer(
                model, args, train_dataset=data, callbacks=[clock], plan=plan, seal_to=[Key.generate_symmetric()]
            ).train()
    return clock.seconds()


def by_hand(make, scale, private, steps):
    model, data = make(scale)
    batch = {"input_ids": data.ids, "labels": data.labels}
    optimizer, head, marks = torch.optim.AdamW(model.parameters(), lr=5e-5), head_of(model), []
    clipper = attach(model, max_grad_norm=1.0) if private else None
    mask, noise, parameters = torch.ones(len(data), dtype=torch.bool), Stream.from_entropy("noise"), trainable(model)
    for step in range(steps):
        if clipper is None:
            model(**batch).loss.backward()
        else:
            clipper.begin(mask)
            clipper.backward(head.losses(model(**inputs_for(model, batch, labels=["labels"])), batch))
            noisy = add_noise(clipper.take(), multiplier=0.8, source=noise.child(step))
            hand_over(parameters, noisy, denominator=float(len(data)))
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.process_time())
    if clipper is not None:
        clipper.close()
    return [b - a for a, b in itertools.pairwise(marks)]


def measure(make, scale, rounds, steps):
    variants = {
        "Trainer": lambda: trainer_steps(make, scale, hf.Trainer, steps),
        "PrivateTrainer": lambda: trainer_steps(make, scale, PrivateTrainer, steps),
        "plain by hand": lambda: by_hand(make, scale, private=False, steps=steps),
        "private by hand": lambda: by_hand(make, scale, private=True, steps=steps),
    }
    seconds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            seconds[name].append(statistics.median(run()))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name}, CPU s": round(value, 4) for name, value in middle.items()},
        "wrapper ratio": round(middle["PrivateTrainer"] / middle["Trainer"], 3),
        "engine ratio": round(middle["private by hand"] / middle["plain by hand"], 3),
    }


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tiny", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    found = {
        name: measure(make, 2 if given.tiny else 1, given.rounds, 4)
        for name, make in (("BERT 4 × 256, T 64, B 32", bert), ("GPT-2 6 × 384, T 128, B 16", gpt2))
    }
    print(json.dumps(found, indent=2))
    if not given.tiny:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "trainer.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
