# SPDX-License-Identifier: Apache-2.0
"""What a step costs: PrivateTrainer over Trainer, and the private step by hand over the plain step by hand.

python -m benchmarks.trainer [--device cpu|cuda] [--mode MODE] [--rounds N] [--tiny]

Seconds of a step, the four variants interleaved in one process, medians over rounds; noise included. The first ratio
has to stay within 0.05 of the second: what the wrapper adds beyond the clipper, the noise and the ledger. On a CPU time
is process CPU time; on a GPU that between two CUDA events, one at the end of each step, in a queue that is not waited
for. There the models are BERT base and GPT-2 small, since those for a CPU would measure how fast the host names their
kernels, and bfloat16 is measured as well as float32. A compiled Trainer is refused by the private one, and what it says
stands in the result.
"""

import argparse
import functools
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import torch
import transformers as hf
from torch.utils.data import Dataset

from benchmarks import clock as clocks
from benchmarks.ways import MODES
from privguard._random import Stream
from privguard.checkpoint.keys.key import Key
from privguard.errors import PrivacyError
from privguard.integrations.transformers.losses import head_of, inputs_for
from privguard.integrations.transformers.trainer import PrivateTrainer
from privguard.training.attach import attach
from privguard.training.clip import trainable
from privguard.training.noise.exact import add_noise
from privguard.training.plan import Plan
from privguard.training.step import hand_over

RESULTS = Path(__file__).parent / "results"


MEASURED = ("float32", "bf16", "compile")


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


class Bert:
    """Sizes are (layers, width, heads, length, batch, words)."""

    small, tiny, large = (4, 256, 4, 64, 32, 1000), (2, 128, 4, 64, 32, 1000), (12, 768, 12, 128, 128, 30522)
    name = "BERT"

    def __call__(self, layers, width, heads, length, batch, words):
        config = hf.BertConfig(
            vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width, max_position_embeddings=length, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return hf.BertForSequenceClassification(config), Texts(batch, length, 2)


class Gpt2:
    """Sizes as for BERT."""

    small, tiny, large = (6, 384, 6, 128, 16, 1000), (3, 192, 6, 128, 16, 1000), (12, 768, 12, 512, 16, 50257)
    name = "GPT-2"

    def __call__(self, layers, width, heads, length, batch, words):
        config = hf.GPT2Config(
            vocab_size=words, n_embd=width, n_layer=layers, n_head=heads, n_positions=length, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return hf.GPT2LMHeadModel(config), Texts(batch, length, None)


def arguments(folder, batch, steps, mode, clock):
    return hf.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=batch, max_steps=steps, save_strategy="no", report_to="none",
        use_cpu=clock.device.type == "cpu", disable_tqdm=True, logging_strategy="no", optim="adamw_torch",
        dataloader_pin_memory=clock.device.type == "cuda", bf16=mode.bf16, torch_compile=mode.compiled,
    )  # fmt: skip


class Marks(hf.TrainerCallback):
    """Seconds of each step of a trainer, the first one left out."""

    def __init__(self, clock):
        self.clock, self.marks = clock, []

    def on_step_end(self, *_, **__):
        self.marks.append(self.clock.mark())

    def seconds(self):
        return [self.clock.between(a, b) for a, b in itertools.pairwise(self.marks)]


def trainer_steps(make, kind, steps, mode, clock):
    model, data = make()
    marks = Marks(clock)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, len(data), steps, mode, clock)
        if kind is hf.Trainer:
            hf.Trainer(model, args, train_dataset=data, callbacks=[marks]).train()
        else:
            plan = Plan(
                sample_rate=1.0, noise_multiplier=0.8, max_grad_norm=1.0, steps=steps, delta=1e-5,
                expected_batch_size=len(data),
            )  # fmt: skip
            PrivateTrainer(
                model, args, train_dataset=data, callbacks=[marks], plan=plan, seal_to=[Key.generate_symmetric()]
            ).train()
    return marks.seconds()


def by_hand(make, private, steps, mode, clock):
    model, data = make()
    model.to(clock.device)
    if mode.compiled:
        model.compile()
    batch = {"input_ids": data.ids.to(clock.device), "labels": data.labels.to(clock.device)}
    optimizer, head, marks = torch.optim.AdamW(model.parameters(), lr=5e-5), head_of(model), []
    clipper = attach(model, max_grad_norm=1.0) if private else None
    mask, noise, parameters = torch.ones(len(data), dtype=torch.bool), Stream.from_entropy("noise"), trainable(model)
    for step in range(steps):
        if clipper is None:
            with mode.autocast(clock.device):
                loss = model(**batch).loss
            loss.backward()
        else:
            clipper.begin(mask)
            with mode.autocast(clock.device):
                losses = head.losses(model(**inputs_for(model, batch, labels=["labels"])), batch)
            clipper.backward(losses)
            noisy = add_noise(clipper.take(), multiplier=0.8, source=noise.child(step))
            hand_over(parameters, noisy, denominator=float(len(data)))
        optimizer.step()
        optimizer.zero_grad()
        marks.append(clock.mark())
    if clipper is not None:
        clipper.close()
    return [clock.between(a, b) for a, b in itertools.pairwise(marks)]


def measure(make, rounds, steps, mode, clock):
    variants = {
        "Trainer": lambda: trainer_steps(make, hf.Trainer, steps, mode, clock),
        "PrivateTrainer": lambda: trainer_steps(make, PrivateTrainer, steps, mode, clock),
        "plain by hand": lambda: by_hand(make, False, steps, mode, clock),
        "private by hand": lambda: by_hand(make, True, steps, mode, clock),
    }
    seconds, refused = {name: [] for name in variants}, {}
    for _ in range(rounds):
        for name in [name for name in variants if name not in refused]:
            try:
                seconds[name].append(statistics.median(variants[name]()))
            except PrivacyError as refusal:
                refused[f"{name}, refused"] = refused[name] = str(refusal)
    what = "CPU s" if clock.fetching else "s"
    middle = {name: statistics.median(values) for name, values in seconds.items() if values}
    found = {f"{name}, {what}": round(value, 5) for name, value in middle.items()}
    for ratio, above, below in (
        ("wrapper ratio", "PrivateTrainer", "Trainer"),
        ("engine ratio", "private by hand", "plain by hand"),
    ):
        if above in middle and below in middle:
            found[ratio] = round(middle[above] / middle[below], 3)
    return found | {name: said for name, said in refused.items() if name not in variants}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    clocks.add_option(parser)
    parser.add_argument("--mode", choices=MEASURED, action="append", help="default: all on a GPU, float32 on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small models; no result is replaced")
    given = parser.parse_args()
    clock = clocks.chosen(parser, given.device)
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    on_gpu, found = clock.device.type == "cuda", {}
    for mode in given.mode or (MEASURED if on_gpu else ["float32"]):
        for kind in (Bert(), Gpt2()):
            sizes = kind.tiny if given.tiny else kind.large if on_gpu else kind.small
            layers, width, _, length, batch, _ = sizes
            name = f"{kind.name} {layers} × {width}, T {length}, B {batch}"
            torch.compiler.reset()
            found[name if mode == "float32" else f"{name}, {mode}"] = measure(
                functools.partial(kind, *sizes), given.rounds, 4, MODES[mode], clock
            )
    print(json.dumps(found, indent=2, ensure_ascii=False))
    if not given.tiny:
        RESULTS.mkdir(exist_ok=True)
        result = {**clock.machine(), "results": found} if on_gpu else found
        path = RESULTS / f"trainer{clock.suffix}.json"
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
