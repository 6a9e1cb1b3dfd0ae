# SPDX-License-Identifier: Apache-2.0
"""Twelve tiny transformers that stand for what people fine-tune, with random weights and padded records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import transformers as hf
from torch import Tensor, nn

WORDS, WIDTH, LONGEST, CLASSES, IGNORED = 96, 32, 12, 3, -100
Record = Mapping[str, Tensor]

_TEXT = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 2 * LONGEST,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {**_TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "head_dim": WIDTH // 4}
_OPT = {**_TEXT, "ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH, "dropout": 0.0}
_GPT2 = {
    "vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 2 * LONGEST, "pad_token_id": 0,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_T5 = {
    "vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 4,
    "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_BART = {
    "vocab_size": WORDS, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH, "dropout": 0.0,
    "max_position_embeddings": 2 * LONGEST, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
_VIT = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * WIDTH,
    "image_size": 8, "patch_size": 4, "num_labels": CLASSES, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


@final
@dataclass(frozen=True)
class Tiny:
    """A model and its records.

    Attributes:
        model: its class.
        config: its sizes.
        task: what peft calls its task, or None for one that it has no name for.
        labels: from the ids of a record, (T,), and a generator to its labels.
    """

    model: Callable[[Any], nn.Module]
    config: Callable[[], Any]
    task: str | None
    labels: Callable[[Tensor, torch.Generator], Tensor]

    def build(self, *, seed: int) -> nn.Module:
        """The model with random weights, on the CPU in float32."""
        torch.manual_seed(seed)
        return self.model(self.config())

    def records(self, count: int, *, seed: int) -> list[Record]:
        """So many records of unequal lengths; pictures where the model takes no text."""
        source = torch.Generator().manual_seed(seed)
        return [self._record(source) for _ in range(count)]

    def _record(self, source: torch.Generator) -> Record:
        if self.model is hf.ViTForImageClassification:
            return {"pixel_values": torch.randn(3, 8, 8, generator=source), "labels": _class(torch.empty(0), source)}
        ids = torch.randint(3, WORDS, (int(torch.randint(4, LONGEST + 1, (), generator=source)),), generator=source)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.labels(ids, source)}


def padded(records: list[Record]) -> dict[str, Tensor]:
    """A batch in which each field is as long as its longest: −100 where there is no label, 0 elsewhere."""

    def together(name: str) -> Tensor:
        values = [record[name] for record in records]
        if values[0].dim() != 1:
            return torch.stack(values)
        fill = IGNORED if name == "labels" else 0
        return nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)

    return {name: together(name) for name in records[0]}


def _class(_: Tensor, source: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (), generator=source)


def _class_of_some(ids: Tensor, source: torch.Generator) -> Tensor:
    labels = torch.randint(CLASSES, ids.shape, generator=source)
    return labels.masked_fill(torch.rand(ids.shape, generator=source) < 0.3, IGNORED)


def _some(ids: Tensor, source: torch.Generator) -> Tensor:
    hidden = torch.rand(ids.shape, generator=source) < 0.4
    hidden[0] = True  # a record without a label has no gradient
    return ids.masked_fill(~hidden, IGNORED)


def _same(ids: Tensor, _: torch.Generator) -> Tensor:
    return ids.clone()


TINY: Mapping[str, Tiny] = {
    "BERT, classes": Tiny(hf.BertForSequenceClassification, lambda: hf.BertConfig(**_ENCODER), "SEQ_CLS", _class),
    "BERT, masked words": Tiny(hf.BertForMaskedLM, lambda: hf.BertConfig(**_ENCODER), None, _some),
    "RoBERTa, tokens": Tiny(
        hf.RobertaForTokenClassification, lambda: hf.RobertaConfig(**_ENCODER), None, _class_of_some
    ),
    "GPT-2": Tiny(hf.GPT2LMHeadModel, lambda: hf.GPT2Config(**_GPT2), "CAUSAL_LM", _same),
    "OPT": Tiny(hf.OPTForCausalLM, lambda: hf.OPTConfig(**_OPT), "CAUSAL_LM", _same),
    "Llama": Tiny(hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**_DECODER), "CAUSAL_LM", _same),
    "Mistral": Tiny(hf.MistralForCausalLM, lambda: hf.MistralConfig(**_DECODER, sliding_window=4), "CAUSAL_LM", _same),
    "Qwen3": Tiny(hf.Qwen3ForCausalLM, lambda: hf.Qwen3Config(**_DECODER), "CAUSAL_LM", _same),
    "Gemma 2": Tiny(hf.Gemma2ForCausalLM, lambda: hf.Gemma2Config(**_DECODER), "CAUSAL_LM", _same),
    "T5": Tiny(hf.T5ForConditionalGeneration, lambda: hf.T5Config(**_T5), "SEQ_2_SEQ_LM", _same),
    "BART": Tiny(hf.BartForConditionalGeneration, lambda: hf.BartConfig(**_BART), "SEQ_2_SEQ_LM", _same),
    "ViT": Tiny(hf.ViTForImageClassification, lambda: hf.ViTConfig(**_VIT), None, _class),
}
