# SPDX-License-Identifier: Apache-2.0
"""The architectures of transformers that are fine-tuned most: what a user gets for each is fast and exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privguard.training.clip import Clipper
from privguard.training.one_by_one import OneByOne
from privguard.training.probes.examples import choose
from privguard.training.probes.fields import Field, Structure
from tests.training.bookkeeping.compare import distance

transformers = pytest.importorskip("transformers")
LENGTH, VOCABULARY = 6, 40
Batch = dict[str, Tensor]

TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = TEXT | {"num_key_value_heads": 1, "head_dim": 8, "use_cache": False}
SOUND = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
POSITIONS = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
QUIET = {"layerdrop": 0.0, "mask_time_prob": 0.0} | {
    f"{which}_dropout": 0.0 for which in ("hidden", "activation", "attention", "feat_proj", "final")
}
LAYERS = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("Qwen3ForCausalLM", DECODER),
    "Mistral": ("MistralForCausalLM", DECODER | {"sliding_window": 4}),
    "Gemma2": ("Gemma2ForCausalLM", DECODER | {"sliding_window": 4}),
    "Falcon": ("FalconForCausalLM", TEXT | {"use_cache": False}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", TEXT | {"use_cache": False, "hidden_dropout": 0.0}),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "ALBERT": ("AlbertForSequenceClassification", TEXT | STILL | {"embedding_size": 8}),
    "ModernBERT": ("ModernBertForSequenceClassification", TEXT | {"local_attention": 4}),
    "MPNet": ("MPNetForSequenceClassification", TEXT | STILL),
    "Longformer": ("LongformerForSequenceClassification", TEXT | STILL | {"attention_window": 4}),
    "Whisper": (
        "WhisperForConditionalGeneration",
        TEXT | LAYERS | {"d_model": 16, "num_mel_bins": 8, "max_source_positions": LENGTH, "encoder_ffn_dim": 24,
         "decoder_ffn_dim": 24, "decoder_start_token_id": 1, "dropout": 0.0, "use_cache": False},
    ),
    "wav2vec 2.0": ("Wav2Vec2ForSequenceClassification", TEXT | SOUND | POSITIONS | QUIET),
    "Swin": (
        "SwinForImageClassification",
        {"image_size": 48, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4,
         "drop_path_rate": 0.0},
    ),
    "BEiT": (
        "BeitForImageClassification",
        TEXT | STILL | {"image_size": 8, "patch_size": 4, "use_relative_position_bias": True, "drop_path_rate": 0.0},
    ),
    "ConvNeXt": ("ConvNextForImageClassification", {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}),
}  # fmt: skip
SIDES = {"Swin": 48, "BEiT": 8, "ConvNeXt": 16}
FROZEN = ("mask_token", "masked_spec_embed", "query_global")  # trained by pre-training alone


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, sizes = MODELS[name]
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**sizes)).train()
    for path, parameter in model.named_parameters():
        parameter.requires_grad &= not any(part in path for part in FROZEN)
        with torch.no_grad():
            parameter += 0.1 * torch.randn_like(parameter)  # no bias and no table is at zero
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def fields(name: str) -> Structure:
    """A synthetic batch without masks."""
    ids = Field((LENGTH,), torch.long, top=VOCABULARY)
    if name in SIDES:
        return {"pixel_values": Field((3, SIDES[name], SIDES[name]), torch.float32)}
    if name == "Whisper":
        return {"input_features": Field((8, 2 * LENGTH), torch.float32), "decoder_input_ids": ids}
    return {"input_values": Field((120,), torch.float32)} if name == "wav2vec 2.0" else {"input_ids": ids}


def batch_of(name: str, rows: int) -> Batch:
    """Drawn alike, and padded: every second example is shorter."""
    source = torch.Generator().manual_seed(rows)
    batch = {key: field.draw(rows, source=source) for key, field in fields(name).items()}
    first = next(iter(batch))
    if first in {"input_ids", "input_values"}:
        mask = torch.ones(batch[first].shape, dtype=torch.long)
        mask[::2, 2 * mask.shape[1] // 3 :] = 0
        batch["attention_mask"] = mask
    return batch


def losses_of(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: model(**batch).logits.flatten(1).sin().mean(1)


def clipped(clipper: Clipper, losses: Callable[[Batch], Tensor], batch: Batch) -> dict[str, Tensor]:
    size = len(next(iter(batch.values())))
    each = clipper.rows or size
    for start in range(0, size, each):
        clipper.begin(torch.ones(each, dtype=torch.bool))
        clipper.backward(losses({key: value[start : start + each] for key, value in batch.items()}))
    sums = clipper.take().gradients
    clipper.close()
    return sums


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_what_a_user_gets_is_fast_and_exact(name: str) -> None:
    model = model_of(name)
    losses = losses_of(model)
    for rows, bound in [(3, 1e6), (LENGTH, 0.01)]:  # six examples of six tokens look alike
        clipper, why = choose(model, losses, fields(name), max_grad_norm=bound)
        assert why is None
        fast = clipped(clipper, losses, batch_of(name, rows))
        slow = clipped(OneByOne(model, max_grad_norm=bound), losses, batch_of(name, rows))
        assert distance(fast, slow) < 1e-5
        if bound < 1:
            assert sum(float(g.double().square().sum()) for g in slow.values()) ** 0.5 > bound  # the bound acts
