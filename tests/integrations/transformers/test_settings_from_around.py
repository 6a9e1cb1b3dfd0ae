# SPDX-License-Identifier: Apache-2.0
"""What a launcher's environment asks for, and what shows too late or not at all: refused by name, before any step."""

import pytest
import torch
import transformers as hf
from accelerate.state import AcceleratorState, GradientState
from drive import KEY, arguments, make_plan, private_trainer
from small import SmallRun, small_data, small_plan
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from zoo import ZOO, Rows

from privguard.errors import NoRecipientError, PrivacyError, PrivguardError, ResumeError, UnsupportedModelError
from privguard.integrations.accelerate import PrivateAccelerator


@pytest.fixture
def launched(monkeypatch):
    """Sets variables as a launcher does, in a process in which accelerate has not settled anything yet."""

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield monkeypatch.setenv
    forget()


ASKED = [
    ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision='fp16'"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend=INDUCTOR"),
    ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
    ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
    ("ACCELERATE_USE_FSDP", "true", "FSDP"),
    ("PARALLELISM_CONFIG_TP_SIZE", "2", "PARALLELISM_CONFIG_TP_SIZE=2"),
    ("PARALLELISM_CONFIG_CP_SIZE", "2", "PARALLELISM_CONFIG_CP_SIZE=2"),
]


@pytest.mark.parametrize(("name", "value", "said"), ASKED)
def test_what_a_launcher_asks_for_is_refused_by_name(launched, tmp_path, name, value, said):
    make, data = ZOO["bert-sequence"]
    args = arguments(tmp_path / "trainer", 12) if "DEEPSPEED" in name else None  # they would import it
    launched(name, value)
    with pytest.raises(PrivacyError, match=said):
        private_trainer(make(), data(), tmp_path / "trainer", args=args or arguments(tmp_path / "trainer", 12))
    with pytest.raises(PrivacyError, match=said):
        PrivateAccelerator(plan=small_plan(), run=tmp_path / "loop", seal_to=[KEY], cpu=True)


def test_bf16_from_a_launcher_is_honoured(launched, tmp_path):
    launched("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = PrivateAccelerator(plan=small_plan(), run=tmp_path, seal_to=[KEY], cpu=True)
    assert accelerator.mixed_precision == "bf16"


class Stream(IterableDataset):
    def __iter__(self):
        yield from ZOO["bert-sequence"][1]().rows


def test_a_stream_of_records_is_refused_by_name(tmp_path):
    make, _ = ZOO["bert-sequence"]
    with pytest.raises(PrivacyError, match="Stream: its length is unknown"):
        private_trainer(make(), Stream(), tmp_path, plan=make_plan(12))


def test_batch_norm_is_what_is_refused_in_a_convolution_net(tmp_path):
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=2)
    rows = Rows([{"pixel_values": torch.randn(3, 32, 32), "labels": torch.tensor(i % 2)} for i in range(4)])
    with pytest.raises(UnsupportedModelError, match="BatchNorm"):
        private_trainer(hf.ResNetForImageClassification(config), rows, tmp_path).train()


def test_a_missing_key_file_shows_before_the_model_is_looked_at(tmp_path):
    make, data = ZOO["bert-sequence"]
    with pytest.raises((NoRecipientError, PrivguardError, FileNotFoundError), match=r"nowhere\.key"):
        private_trainer(make(), data(), tmp_path, seal_to=[tmp_path / "nowhere.key"])
    small = SmallRun(tmp_path / "run")
    small.key = tmp_path / "nowhere.key"
    small.model.forward = lambda *_: pytest.fail("the probe came first")
    with pytest.raises((NoRecipientError, PrivguardError, FileNotFoundError), match=r"nowhere\.key"):
        small.start()


def test_another_optimizer_is_refused_by_name_when_a_run_goes_on(tmp_path):
    make, data = ZOO["bert-sequence"]
    plan = make_plan(12, noise_multiplier=1.0, steps=2)

    def run(optim, steps, **more):
        args = arguments(tmp_path, 12, optim=optim, max_steps=steps, save_strategy="steps", save_steps=1)
        private_trainer(make(), data(), tmp_path, plan=plan, args=args).train(**more)

    run("sgd", 1)
    left = tmp_path / ".checkpoint-killed"
    left.mkdir()
    with pytest.raises(ResumeError, match="another kind of optimizer"):
        run("adafactor", 2, resume_from_checkpoint=True)
    run("sgd", 2, resume_from_checkpoint=True)
    assert not left.exists()  # what a killed process had left


def test_a_loader_with_a_batch_sampler_goes_forward_in_its_batches(tmp_path):
    small = SmallRun(tmp_path / "run")
    loader = DataLoader(small_data(), batch_sampler=BatchSampler(SequentialSampler(range(100)), 16, drop_last=False))
    private = small.start(loader=loader, insecure_seed=1)
    rows = max(len(inputs) for inputs, _ in _first_batches(private))
    assert rows > 4
    private.close()


def _first_batches(private):
    for number, batch in enumerate(private.batches()):
        yield batch
        private.backward(torch.nn.functional.cross_entropy(private.model(batch[0]), batch[1], reduction="none"))
        private.step()
        if number == 2:
            return
