# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a sentence classifier on SST-2 under ε, with transformers' Trainer; the changed lines are marked with #.

python recipes/text_classifier.py --model FacebookAI/roberta-base --run runs/sst2     (weights from the hub)
python recipes/text_classifier.py --data ../shared/data/sst2 --run runs/sst2          (a small BERT from scratch)
python recipes/text_classifier.py --tiny --run runs/tiny                              (synthetic sentences, seconds)
"""

import argparse
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers as hf

import privguard as pg
from privguard import Budget, PrivateTrainer  #


def made_up(count: int, seed: int) -> datasets.Dataset:
    """Sentences of which the positive ones hold the word 7."""
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = chance.integers(10, 90, size=chance.integers(4, 12))
        label = int(chance.integers(2))
        words[0] = 7 if label else 8
        rows.append({"input_ids": words.tolist(), "attention_mask": [1] * len(words), "labels": label})
    return datasets.Dataset.from_list(rows)


def read(folder: Path, part: str) -> list[tuple[str, int]]:
    """(sentence, label) pairs of an SST-2 file in TSV, without a header."""
    found = next(folder.glob(f"{part}*.tsv"))
    lines = found.read_text().splitlines()
    return [(line.rsplit("\t", 1)[0], int(line.rsplit("\t", 1)[1])) for line in lines]


def words_as_numbers(train: list[tuple[str, int]], test: list[tuple[str, int]], size: int = 8000) -> Any:
    """Hashed words: a vocabulary made from the private sentences would tell which words are in them."""
    import zlib

    def rows(pairs: list[tuple[str, int]]) -> datasets.Dataset:
        made = []
        for sentence, label in pairs:
            ids = [1, *(2 + zlib.crc32(word.encode()) % (size - 2) for word in sentence.lower().split())][:64]
            made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label})
        return datasets.Dataset.from_list(made)

    return rows(train), rows(test)


def small_bert(vocabulary: int, width: int, layers: int) -> hf.BertForSequenceClassification:
    config = hf.BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=64, num_labels=2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return hf.BertForSequenceClassification(config)


def pad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    batch = {
        n: torch.tensor([r[n] + [0] * (longest - len(r[n])) for r in rows]) for n in ("input_ids", "attention_mask")
    }
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def accuracy(prediction: hf.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def train(
    run: Path, *, model: hf.PreTrainedModel, train_set: Any, test_set: Any, examples: int, **settings: Any
) -> float:
    """Train privately into the run folder and return the accuracy on the test set."""
    run.mkdir(parents=True, exist_ok=True)
    pg.Key.generate().write(run / "team.key")  # keep this file elsewhere: it opens the checkpoints
    args = hf.TrainingArguments(
        output_dir=str(run / "out"), eval_strategy="epoch", save_strategy="epoch", max_grad_norm=0.1, report_to="none",
        dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    trainer = PrivateTrainer(  #
        model=model,
        args=args,
        train_dataset=train_set,
        eval_dataset=test_set,
        data_collator=pad,
        compute_metrics=accuracy,
        budget=Budget(epsilon=3.0, delta=1e-5), examples=examples, seal_to=[run / "team.key"],  #
    )  # fmt: skip
    trainer.train()
    print(trainer.claim())
    return trainer.evaluate()["eval_accuracy"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=Path("runs/sst2"))
    options.add_argument("--data", type=Path, help="folder with SST-2 in TSV; without it, and without --tiny, the hub")
    options.add_argument(
        "--examples", type=int, default=6_920, help="with --data: the published size of its train file"
    )
    options.add_argument("--model", default="FacebookAI/roberta-base")
    options.add_argument("--tiny", action="store_true")
    given = options.parse_args()
    if given.tiny:
        sets = {"train_set": made_up(256, 0), "test_set": made_up(64, 1), "examples": 256}
        settings = {"per_device_train_batch_size": 32, "num_train_epochs": 2, "learning_rate": 3e-3, "use_cpu": True}
        found = train(given.run, model=small_bert(100, 16, 1), **sets, **settings)
    elif given.data:
        train_set, test_set = words_as_numbers(read(given.data, "train"), read(given.data, "dev"))
        sets = {"train_set": train_set, "test_set": test_set, "examples": given.examples}
        settings = {
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 16,
            "num_train_epochs": 5,
            "learning_rate": 2e-3,
        }
        found = train(given.run, model=small_bert(8000, 128, 2), **sets, **settings)
    else:
        tokenizer = hf.AutoTokenizer.from_pretrained(given.model)
        parts = datasets.load_dataset("stanfordnlp/sst2")
        parts = parts.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=128), batched=True)
        parts = parts.rename_column("label", "labels")
        sets = {"train_set": parts["train"], "test_set": parts["validation"], "examples": 67_349}
        settings = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 16, "learning_rate": 5e-4}
        model = hf.AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
        found = train(given.run, model=model, **sets, **settings)
    print(f"test accuracy {found:.3f}")


if __name__ == "__main__":
    main()
