# SPDX-License-Identifier: Apache-2.0
"""A tiny random GPT-2, fixed secrets, and profiles of every scheme."""

from random import Random

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import GreenList, Gumbel, Payload, Tournament
from privguard.watermark.text.writing import generate

VOCABULARY = 512
SCHEMES = {"gumbel": Gumbel(), "green-list": GreenList(), "tournament": Tournament(depth=12, top_k=64)}


@pytest.fixture(autouse=True)
def _drawn(monkeypatch):
    """Sub-keys from a seed, so that a text is the same in every run; otherwise they are the operating system's."""
    monkeypatch.setattr(generate, "_chance", Random(0))


@pytest.fixture(scope="session")
def secret() -> Secret:
    return Secret(bytes(range(32)))


@pytest.fixture(params=SCHEMES.values(), ids=SCHEMES.keys())
def scheme(request):
    return request.param


def make_profile(secret: Secret, scheme=None, **changes) -> Profile:
    fields = {"vocabulary": "tiny", "logits_width": VOCABULARY, "subkeys": 4, "special_ids": (0,)}
    fields |= {"free_start": False, **changes}  # so that one sub-key and one prompt give one text
    return Profile(scheme=scheme or Gumbel(), key_id=secret.key_id, **fields)


@pytest.fixture(scope="session")
def profile_for():
    """``profile_for(secret, scheme, **changes)``: a small profile; four sub-keys, id 0 special, every token marked."""
    return make_profile


@pytest.fixture
def profile(secret, scheme):
    return make_profile(secret, scheme)


@pytest.fixture(scope="session")
def payload_profile(secret):
    return make_profile(secret, Payload(bits=12), subkeys=1)


def make_gpt2(*, vocabulary: int = VOCABULARY, width: int = 32, layers: int = 2) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=256,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def tiny_gpt2():
    """``tiny_gpt2(vocabulary=…, width=…, layers=…)``: an untrained GPT-2 in which id 0 is padding and end of text."""
    return make_gpt2


@pytest.fixture(scope="session")
def model() -> GPT2LMHeadModel:
    """Random weights, of a scale that gives about 4 nats per token; id 0 is never written."""
    generator = torch.Generator().manual_seed(0)
    model = make_gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.generation_config.suppress_tokens = [0]
    return model


@pytest.fixture(scope="session")
def prompts() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(1, VOCABULARY, (6, 8)))
