# SPDX-License-Identifier: Apache-2.0
"""A model's folder gives the tensors that transformers gives, whatever other copies lie beside them."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from privguard.checkpoint import Key, open_sealed, seal
from privguard.errors import SealError, TamperedError
from privguard.integrations.sealed.pretrained import from_pretrained

KEY = Key.generate_symmetric()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=50, n_positions=8, bos_token_id=0, eos_token_id=0)
    )


def halves(model):
    return {
        name: tensor.detach().clone().half() for name, tensor in model.state_dict().items() if "lm_head" not in name
    }


def same(left, right) -> bool:
    right = right.state_dict()
    return all(torch.equal(tensor, right[name]) for name, tensor in left.state_dict().items())


@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_a_variant_beside_the_model_is_not_taken_for_it(tmp_path, model, size):
    model.save_pretrained(tmp_path / "m", max_shard_size=size)
    save_file(halves(model), tmp_path / "m" / "model.fp16.safetensors", metadata={"format": "pt"})
    seal(tmp_path / "m", tmp_path / "s", to=KEY)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert same(from_pretrained(AutoModelForCausalLM, tmp_path / "s", key=KEY), reference)
    with open_sealed(tmp_path / "s", KEY) as opened:
        assert torch.equal(opened["transformer.wte.weight"], model.transformer.wte.weight)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "m", variant="fp16")
    assert same(from_pretrained(AutoModelForCausalLM, tmp_path / "s", key=KEY, variant="fp16"), reference)
    with pytest.raises(SealError, match="variant='bf16'"):
        from_pretrained(AutoModelForCausalLM, tmp_path / "s", key=KEY, variant="bf16")


def test_a_type_asked_for_is_the_type_that_comes(tmp_path, model):
    model.save_pretrained(tmp_path / "m")
    seal(tmp_path / "m", tmp_path / "s", to=KEY)
    loaded = from_pretrained(AutoModelForCausalLM, tmp_path / "s", key=KEY, dtype=torch.bfloat16)
    assert same(loaded, AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16))


def test_two_copies_of_a_tensor_without_an_index_are_refused(tmp_path):
    (tmp_path / "m").mkdir()
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"w": torch.full((2,), value)}, tmp_path / "m" / f"{name}.safetensors")
    seal(tmp_path / "m", tmp_path / "s", to=KEY)
    with open_sealed(tmp_path / "s", KEY) as opened, pytest.raises(SealError, match=r"a.safetensors and b.safetensors"):
        opened["w"]


@pytest.mark.parametrize("index", ["{}", '{"weight_map": 3}', '{"weight_map": {"w": "absent.safetensors"}}', "no"])
def test_an_index_that_does_not_fit_is_refused(tmp_path, index):
    (tmp_path / "m").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "m" / "model-00001-of-00001.safetensors")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(index)
    seal(tmp_path / "m", tmp_path / "s", to=KEY)
    with open_sealed(tmp_path / "s", KEY) as opened, pytest.raises(TamperedError):
        opened["w"]


def test_shards_are_read_through_their_index(tmp_path):
    (tmp_path / "m").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "m" / "model-00001-of-00001.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "m" / "old.safetensors")
    listed = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(listed))
    seal(tmp_path / "m", tmp_path / "s", to=KEY)
    with open_sealed(tmp_path / "s", KEY) as opened:
        assert torch.equal(opened["w"], torch.ones(2))
