# SPDX-License-Identifier: Apache-2.0
"""A causal language model with LoRA under ε, on Tiny Shakespeare; the changed lines are marked with #.

python recipes/language_model.py --data ../shared/data/tinyshakespeare --run runs/lm    (a small GPT-2 over bytes)
python recipes/language_model.py --tiny --run runs/tiny                                 (synthetic text, seconds)

The unit of privacy is one block of text. A frozen model learns little through LoRA; start from public weights for more.
"""

import argparse
from pathlib import Path
from typing import Any

import datasets
import peft
import transformers as hf

import privguard as pg
from privguard import Budget, PrivateTrainer  #


def blocks(text: bytes, length: int) -> datasets.Dataset:
    """The bytes of a text, cut into blocks; no tokenizer, so none was made from private text."""
    rows = [list(text[i : i + length]) for i in range(0, len(text) - length, length)]
    return datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


def adapted(width: int, layers: int, length: int) -> Any:
    """A GPT-2 over bytes of which LoRA matrices, embeddings and head are trained."""
    config = hf.GPT2Config(
        vocab_size=256, n_embd=width, n_layer=layers, n_head=4, n_positions=length, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(config)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(model, lora)
    model.base_model.model.transformer.wte.weight.requires_grad_()
    return model


def train(run: Path, *, model: Any, data: datasets.Dataset, **settings: Any) -> float:
    """Train privately into the run folder and return the loss on held-out blocks, nats per byte."""
    run.mkdir(parents=True, exist_ok=True)
    pg.Key.generate().write(run / "team.key")  # keep this file elsewhere: it opens the checkpoints
    parts = data.train_test_split(test_size=0.1, shuffle=False)
    args = hf.TrainingArguments(
        output_dir=str(run / "out"), save_strategy="no", max_grad_norm=0.5, report_to="none", use_cpu=True,
        dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    trainer = PrivateTrainer(  #
        model=model, args=args, train_dataset=parts["train"], eval_dataset=parts["test"],
        data_collator=hf.default_data_collator,
        budget=Budget(epsilon=8.0, delta=1e-4), examples=len(data) * 9 // 10, seal_to=[run / "team.key"],  # public text
    )  # fmt: skip
    trainer.train()
    print(trainer.claim())
    return trainer.evaluate()["eval_loss"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=Path("runs/lm"))
    options.add_argument("--data", type=Path, help="folder with the text in *.txt")
    options.add_argument("--tiny", action="store_true")
    given = options.parse_args()
    if given.tiny:
        data, model = blocks(b"to be or not to be, that is the question. " * 100, 16), adapted(32, 1, 16)
        settings = {"per_device_train_batch_size": 32, "num_train_epochs": 2, "learning_rate": 1e-2}
    else:
        text = b"".join(path.read_bytes() for path in sorted(given.data.glob("*.txt")))
        data, model = blocks(text, 128), adapted(128, 4, 128)
        settings = {
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 10,
            "learning_rate": 3e-3,
        }
    print(f"held-out loss {train(given.run, model=model, data=data, **settings):.3f} nats per byte")


if __name__ == "__main__":
    main()
