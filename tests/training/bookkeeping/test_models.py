# SPDX-License-Identifier: Apache-2.0
"""Whole models: transformers, adapters, checkpointing, mixed precision, and two opinions of Opacus'."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.models import CASES, Case
from privguard.training.bookkeeping import BookKeeper
from privguard.training.one_by_one import OneByOne
from tests.training.bookkeeping.compare import distance

HUGE = 1e6

transformers = pytest.importorskip("transformers")


def sums(model: nn.Module, losses: Callable[..., Tensor], batch: tuple[Tensor, ...], **how: float) -> dict[str, Tensor]:
    """The fast sum, dropout off."""
    clipper = BookKeeper(model, max_grad_norm=HUGE, **how)
    clipper.begin(torch.ones(len(batch[0]), dtype=torch.bool))
    clipper.backward(losses(model, batch))
    total = clipper.take()
    clipper.close()
    assert all(p.grad is None for p in model.parameters())
    return total.gradients


def slow(
    model: nn.Module, losses: Callable[..., Tensor], batch: tuple[Tensor, ...], bound: float = HUGE
) -> dict[str, Tensor]:
    clipper = OneByOne(model, max_grad_norm=bound)
    for i in range(len(batch[0])):
        clipper.begin(torch.ones(1, dtype=torch.bool))
        clipper.backward(losses(model, tuple(t[i : i + 1] for t in batch)))
    total = clipper.take()
    clipper.close()
    return total.gradients


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", [{}, {"budget": 0}], ids=["auto", "ghost"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_benchmark_models_are_exact(case: Case, mode: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, batch = case.model().eval(), case.data(3)
    assert distance(sums(model, case.losses, batch, **mode), slow(model, case.losses, batch)) < 1e-5


class Classifier(nn.Module):
    """A transformer with a linear loss on its last hidden state."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, **inputs: Tensor) -> Tensor:
        hidden = self.body(**inputs)[0]
        return hidden.sin().flatten(1).mean(1)


def config_sizes() -> dict[str, int]:
    return {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(**config_sizes(), max_position_embeddings=40)
    return transformers.RobertaModel(config, add_pooling_layer=False)


def llama() -> nn.Module:
    return transformers.LlamaModel(transformers.LlamaConfig(**config_sizes(), num_key_value_heads=1, use_cache=False))


def opt() -> nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.OPTModel(transformers.OPTConfig(**sizes, **layers, max_position_embeddings=20, use_cache=False))


def bart() -> nn.Module:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"vocab_size": 50, "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    return transformers.BartModel(
        transformers.BartConfig(**layers, **sizes, max_position_embeddings=20, use_cache=False)
    )


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def text(rows: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(4, 50, (rows, length))
    mask = torch.ones_like(ids)
    mask[:, -2:] = (ids[:, :1] > 25).long()  # some examples are shorter
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [roberta, llama, opt, bart, vit], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rows", [3, 7])
def test_transformers_models_are_exact(make: Callable[[], nn.Module], rows: int) -> None:
    torch.manual_seed(1)
    model = Classifier(make().eval())
    whole = {"pixel_values": torch.randn(rows, 3, 8, 8)} if make is vit else text(rows, 7)
    names = list(whole)

    def losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return model(**dict(zip(names, batch, strict=True)))

    batch = tuple(whole.values())
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "mask_token" not in name  # only used when images are masked
    if make is opt and rows == 7:
        pytest.skip("its positions come from the mask, (B, T): nothing to tell apart")
    assert distance(sums(model, losses, batch), slow(model, losses, batch)) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["lora", "lora, embeddings", "dora", "ia3"])
def test_adapters_are_exact(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, use_cache=False, bos_token_id=0, eos_token_id=0)
    base = transformers.GPT2LMHeadModel(config)
    configs = {
        "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["c_attn"], init_lora_weights=False),
        "lora, embeddings": peft.LoraConfig(
            task_type="CAUSAL_LM", r=3, target_modules=["c_attn", "wte", "wpe"], init_lora_weights=False
        ),
        "dora": peft.LoraConfig(
            task_type="CAUSAL_LM", r=3, target_modules=["c_attn"], use_dora=True, init_lora_weights=False
        ),
        "ia3": peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]
        ),
    }
    model = peft.get_peft_model(base, configs[kind]).eval()

    def losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        logits = model(input_ids=batch[0]).logits[:, -8:-1]
        return functional.cross_entropy(logits.transpose(1, 2), batch[0][:, -7:], reduction="none").mean(1)

    batch = (torch.randint(50, (3, 8)),)
    assert distance(sums(model, losses, batch), slow(model, losses, batch)) < 1e-5


class Checkpointed(nn.Module):
    """Three blocks, the middle of which is recomputed."""

    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.block = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(2):  # the block is reused, too
            h = self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)
        return self.last(h).square().flatten(1).sum(1)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_exact(reentrant: bool) -> None:
    plain = Checkpointed(reentrant=None)
    model = copy.deepcopy(plain)
    model.reentrant = reentrant
    batch = (torch.randn(4, 3, 5),)

    def losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return model(batch[0])

    assert distance(sums(model, losses, batch), slow(plain, losses, batch)) < 1e-6


@pytest.mark.parametrize("bound", [HUGE, 0.05])
def test_bf16_autocast_keeps_the_bound_and_the_sum(bound: float) -> None:
    """Norms and sums are float32 on bfloat16 factors, so rounding moves the sensitivity by float32 rounding alone."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
    x = torch.randn(6, 5, 8)

    def one(rows: Tensor) -> dict[str, Tensor]:
        clipper = BookKeeper(model, max_grad_norm=bound)
        clipper.begin(torch.ones(len(rows), dtype=torch.bool))
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(rows).float().square().flatten(1).sum(1)
        clipper.backward(losses)
        total = clipper.take().gradients
        clipper.close()
        assert all(value.dtype == torch.float64 for value in total.values())
        return total

    whole, rest = one(x), one(x[1:])
    moved = sum(float((whole[n].double() - rest[n].double()).square().sum()) for n in whole) ** 0.5
    assert moved <= bound * (1 + 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        plain = torch.autograd.grad(model(x).float().square().sum(), list(model.parameters()))
    if bound == HUGE:  # the same sum as ordinary training, to bfloat16
        assert distance(whole, dict(zip(whole, (g.float() for g in plain), strict=True))) < 1e-2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", [c for c in CASES if c.name in {"MLP", "WRN", "GPT-2 untied"}], ids=lambda c: c.name)
def test_opacus_agrees(case: Case) -> None:
    from opacus.grad_sample import GradSampleModule

    torch.manual_seed(5)
    model, batch = case.model().eval(), case.data(3)
    fast = sums(model, case.losses, batch)
    wrapped = GradSampleModule(copy.deepcopy(model).train(), loss_reduction="sum")
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    case.losses(wrapped, batch).sum().backward()
    theirs = {n.removeprefix("_module."): p.grad_sample.sum(0) for n, p in wrapped.named_parameters()}
    assert distance(fast, theirs) < 1e-5
