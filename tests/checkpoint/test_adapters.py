# SPDX-License-Identifier: Apache-2.0
"""Trainer, accelerate and from_pretrained on sealed folders: they go on exactly, and nothing lies in clear."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainingArguments

from privguard.checkpoint import Key, Sealed, seal
from privguard.errors import NoRecipientError, PlainCheckpointError, RollbackError, SealError, TamperedError
from privguard.integrations.sealed import accelerate as sealed_accelerate
from privguard.integrations.sealed.pretrained import from_pretrained, load_tokenizer
from privguard.integrations.sealed.state import Sealing
from privguard.integrations.sealed.trainer import SealedTrainer

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # transformers' and accelerate's own, on a machine without accelerator


def tiny() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=31, n_positions=16, resid_pdrop=0.1))


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {f"canaryword{i}": i for i in range(30)} | {"<unk>": 30}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")


def examples() -> list[dict]:
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 31, (6,), generator=draws) for _ in range(24)]
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(folder: Path, sealing: Sealing, **changes) -> SealedTrainer:
    settings = {
        "max_steps": 6,
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "learning_rate": 0.01,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    arguments = TrainingArguments(output_dir=str(folder), **(settings | changes))
    return SealedTrainer(
        tiny(),
        arguments,
        train_dataset=examples(),
        eval_dataset=examples()[:4],
        processing_class=tokenizer(),
        sealing=sealing,
    )


def weights(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict, right: dict) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def in_clear(folder: Path) -> list[Path]:
    """Files that hold a word that no sealed file can hold: six bytes, which 10⁶ random ones hold once in 10⁸ runs."""
    words = (b"transformer.wte", b"canaryword", b"learning_rate", b"exp_avg", b'"loss"', b"n_embd")
    return [path for path in folder.rglob("*") if path.is_file() and any(word in path.read_bytes() for word in words)]


def test_trainer_resumes_exactly_from_sealed_checkpoints(tmp_path, key):
    whole = trainer(tmp_path / "whole", Sealing(to=[key]))
    whole.train()
    half = trainer(tmp_path / "half", Sealing(to=[key]))
    half.args.save_total_limit = None
    half.train()
    again = trainer(tmp_path / "half", Sealing(to=[key]))
    again.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    assert again.state.global_step == 6
    assert same(weights(again.model), weights(whole.model))
    assert [each["loss"] for each in again.state.log_history if "loss" in each] == [
        each["loss"] for each in whole.state.log_history if "loss" in each
    ]


def test_rotation_best_model_and_save_model_work_and_nothing_lies_in_clear(tmp_path, key):
    run = trainer(tmp_path / "run", Sealing(to=[key]), load_best_model_at_end=True, metric_for_best_model="loss")
    run.train()
    folders = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert len(folders) == 2
    assert run.state.best_model_checkpoint is not None
    with Sealed(run.state.best_model_checkpoint, key) as sealed:
        assert torch.equal(sealed["transformer.wte.weight"], run.model.state_dict()["transformer.wte.weight"])
        assert sealed.manifest["step"] == int(run.state.best_model_checkpoint.rsplit("-", 1)[1])
        assert json.loads(sealed.read("training_args.json"))["learning_rate"] == 0.01
    run.save_model(str(tmp_path / "run" / "final"))
    assert in_clear(tmp_path / "run") == []
    model = from_pretrained(AutoModelForCausalLM, tmp_path / "run" / "final", key=key)
    assert same(weights(model), weights(run.model))
    assert load_tokenizer(tmp_path / "run" / "final", key=key).encode("canaryword3 canaryword7") == [3, 7]


def test_pushing_uploads_sealed_folders_only(tmp_path, key, monkeypatch):
    import huggingface_hub

    pushed = []
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **given: pushed.append(given))
    run = trainer(tmp_path / "run", Sealing(to=[key]))
    run.hub_model_id = "team/model"
    run.train()
    run._push_from_checkpoint(str(tmp_path / "run" / "checkpoint-6"))
    run.push_to_hub()
    assert [Path(each["folder_path"]).name for each in pushed] == ["checkpoint-6", "run"]
    assert not list((tmp_path / "run").glob("README*"))
    assert in_clear(tmp_path / "run") == []


def test_a_checkpoint_in_clear_an_older_one_or_one_for_others_is_refused(tmp_path, key, other_key):
    from transformers import Trainer

    run = trainer(tmp_path / "run", Sealing(to=[key]))
    run.args.save_total_limit = None
    run.train()
    resume = trainer(tmp_path / "run", Sealing(to=[Key.generate().recipient()], key=other_key))
    with pytest.raises(TamperedError):
        resume.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    (tmp_path / "run" / "checkpoint-6").rename(tmp_path / "run" / "checkpoint-8")
    with pytest.raises(RollbackError, match="holds step 6"):
        trainer(tmp_path / "run", Sealing(to=[key])).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8")
        )
    plain = Trainer(
        tiny(),
        TrainingArguments(
            output_dir=str(tmp_path / "plain"), max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
        ),
        train_dataset=examples(),
    )
    plain.train()
    found = {path.name for path in in_clear(tmp_path / "plain")}
    assert found >= {"config.json", "model.safetensors", "optimizer.pt"}  # the search does find something
    with pytest.raises(PlainCheckpointError, match="in clear"):
        trainer(tmp_path / "plain", Sealing(to=[key])).train(resume_from_checkpoint=True)
    trusted = trainer(tmp_path / "plain", Sealing(to=[key], allow_plain=True), max_steps=3)
    trusted.train(resume_from_checkpoint=True)
    assert trusted.state.global_step == 3


def test_an_adapter_of_peft_is_sealed_by_itself_and_resumes(tmp_path, key):
    peft = pytest.importorskip("peft")

    def with_adapter(folder):
        torch.manual_seed(5)
        run = trainer(folder, Sealing(to=[key]))
        model = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True))
        return SealedTrainer(
            model, run.args, train_dataset=examples(), eval_dataset=examples()[:4], sealing=Sealing(to=[key])
        )

    whole = with_adapter(tmp_path / "a")
    whole.train()
    with Sealed(tmp_path / "a" / "checkpoint-4", key) as sealed:
        assert "adapter_model.safetensors" in sealed.names()
        assert "model.safetensors" not in sealed.names()
    again = with_adapter(tmp_path / "a")
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert same(weights(again.model), weights(whole.model))


def test_sealing_without_recipients_or_key_is_refused_early():
    with pytest.raises(NoRecipientError):
        Sealing(to=[])
    with pytest.raises(SealError, match="opens nothing"):
        Sealing(to=[Key.generate().recipient()])._key()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_transformers_that_was_sealed_loads_without_a_copy_in_clear(tmp_path, key, shards):
    model = tiny().bfloat16()
    model.save_pretrained(tmp_path / "plain", max_shard_size="2KB" if shards > 1 else "1GB")
    seal(tmp_path / "plain", tmp_path / "sealed", to=[key])
    loaded = from_pretrained(AutoModelForCausalLM, tmp_path / "sealed", key=key)
    assert same(weights(loaded), weights(model))
    assert loaded.dtype == torch.bfloat16
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x").touch()
    seal(tmp_path / "empty", tmp_path / "no-model", to=[key])
    with pytest.raises(SealError, match=r"config\.json"):
        from_pretrained(AutoModelForCausalLM, tmp_path / "no-model", key=key)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]


def prepared() -> tuple:
    torch.manual_seed(2)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(12, 4)), batch_size=3, shuffle=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    counter = Counter()
    parts = accelerator.prepare(model, optimizer, loader, schedule)
    accelerator.register_for_checkpointing(counter)
    return accelerator, counter, *parts


def trained(parts: tuple, epochs: int) -> None:
    accelerator, counter, model, optimizer, loader, schedule = parts
    for _ in range(epochs):
        for (inputs,) in loader:
            accelerator.backward(model(inputs).square().mean())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            counter.count += 1


def test_accelerate_goes_on_exactly_and_nothing_lies_in_clear(tmp_path, key):
    first = prepared()
    trained(first, 2)
    sealing = Sealing(to=[key])
    sealed_accelerate.save_state(first[0], tmp_path / "state", sealing, facts={"run": "r", "step": 8})
    trained(first, 2)
    second = prepared()
    assert sealed_accelerate.load_state(second[0], tmp_path / "state", sealing)["step"] == 8
    trained(second, 2)
    assert same(weights(first[2]), weights(second[2]))
    assert first[1].count == second[1].count == 16
    for path in (tmp_path / "state").iterdir():
        assert b"weight" not in path.read_bytes()


def test_accelerate_refuses_what_is_in_clear_or_does_not_fit(tmp_path, key):
    parts = prepared()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts[0].save_state(str(tmp_path / "plain"))
    with pytest.raises(PlainCheckpointError):
        sealed_accelerate.load_state(parts[0], tmp_path / "plain", Sealing(to=[key]))
    other = Accelerator(cpu=True)
    sealed_accelerate.save_state(parts[0], tmp_path / "state", Sealing(to=[key]))
    other.prepare(torch.nn.Linear(2, 2))
    with pytest.raises((TamperedError, KeyError)):
        sealed_accelerate.load_state(other, tmp_path / "state", Sealing(to=[key]))
