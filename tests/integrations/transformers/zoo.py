# SPDX-License-Identifier: Apache-2.0
"""Tiny transformers of every kind, with data of unequal lengths, padding and masks."""

import torch
import transformers as hf

VOCABULARY, WIDTH = 48, 16
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCABULARY}
BERT = {
    **SMALL,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GPT2 = {
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": VOCABULARY,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


class Rows(torch.utils.data.Dataset):
    """A list of dictionaries."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def pad(rows):
    """Pads every field to its longest: labels with -100, the rest with 0."""
    batch = {}
    for name in rows[0]:
        values = [torch.as_tensor(row[name]) for row in rows]
        if values[0].dim() == 0:
            batch[name] = torch.stack(values)
            continue
        longest = [max(value.shape[d] for value in values) for d in range(values[0].dim())]
        full = torch.full((len(rows), *longest), -100 if name == "labels" else 0, dtype=values[0].dtype)
        for i, value in enumerate(values):
            full[(i, *(slice(0, n) for n in value.shape))] = value
        batch[name] = full
    return batch


def _text(count, generator):
    for _ in range(count):
        length = int(torch.randint(3, 12, (), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones(length, dtype=torch.long)}


def sentences(labels, count=12):
    generator = torch.Generator().manual_seed(7)
    return Rows([{**row, "labels": labels(row, generator)} for row in _text(count, generator)])


def one_class(_row, generator):
    return torch.randint(0, 3, (), generator=generator)


def number(_row, generator):
    return torch.randn((), generator=generator)


def many_classes(_row, generator):
    return torch.randint(0, 2, (3,), generator=generator).float()


def some_tokens(row, generator):
    labels = torch.randint(0, 3, row["input_ids"].shape, generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.4, -100)


def masked_words(row, generator):
    keep = torch.rand(row["input_ids"].shape, generator=generator) < 0.4
    return row["input_ids"].masked_fill(~keep, -100)


def same(row, _generator):
    return row["input_ids"].clone()


def other_text(_row, generator):
    return torch.randint(3, VOCABULARY, (int(torch.randint(2, 7, (), generator=generator)),), generator=generator)


def images(count=8):
    generator = torch.Generator().manual_seed(3)
    return Rows(
        [
            {
                "pixel_values": torch.randn(3, 8, 8, generator=generator),
                "labels": torch.randint(0, 3, (), generator=generator),
            }
            for _ in range(count)
        ]
    )


def choices(count=8):
    generator = torch.Generator().manual_seed(5)
    rows = []
    for _ in range(count):
        length = int(torch.randint(3, 9, (), generator=generator))
        ids = torch.randint(3, VOCABULARY, (4, length), generator=generator)
        rows.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": torch.randint(0, 4, (), generator=generator),
            }
        )
    return Rows(rows)


def spans(count=8):
    generator = torch.Generator().manual_seed(6)
    rows = []
    for row in _text(count, generator):
        start, end = torch.randint(0, len(row["input_ids"]), (2,), generator=generator)
        rows.append({**row, "start_positions": start, "end_positions": end})
    return Rows(rows)


def _bert(kind, **more):
    return kind(hf.BertConfig(**BERT, **more))


def _t5():
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def _bart():
    config = hf.BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, dropout=0.0,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2, init_std=0.3,
    )  # fmt: skip
    return hf.BartForConditionalGeneration(config)


def _llama():
    config = hf.LlamaConfig(
        **SMALL, intermediate_size=24, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    return hf.LlamaForCausalLM(config)


def _opt():
    config = hf.OPTConfig(
        **SMALL, ffn_dim=24, max_position_embeddings=32, dropout=0.0, word_embed_proj_dim=WIDTH, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return hf.OPTForCausalLM(config)


def _roberta():
    return hf.RobertaForSequenceClassification(
        hf.RobertaConfig(**BERT, num_labels=3, bos_token_id=1, eos_token_id=2, type_vocab_size=1)
    )


def _deberta():
    config = hf.DebertaV2Config(
        **BERT, num_labels=3, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"], share_att_key=True, pooler_dropout=0.0, type_vocab_size=0,
    )  # fmt: skip
    return hf.DebertaV2ForSequenceClassification(config)


def _vit():
    config = hf.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return hf.ViTForImageClassification(config)


ZOO = {
    "bert-sequence": (lambda: _bert(hf.BertForSequenceClassification, num_labels=3), lambda: sentences(one_class)),
    "bert-regression": (lambda: _bert(hf.BertForSequenceClassification, num_labels=1), lambda: sentences(number)),
    "bert-multilabel": (
        lambda: _bert(hf.BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"),
        lambda: sentences(many_classes),
    ),
    "bert-tokens": (lambda: _bert(hf.BertForTokenClassification, num_labels=3), lambda: sentences(some_tokens)),
    "bert-masked": (lambda: _bert(hf.BertForMaskedLM), lambda: sentences(masked_words)),
    "bert-choice": (lambda: _bert(hf.BertForMultipleChoice), choices),
    "bert-span": (lambda: _bert(hf.BertForQuestionAnswering), spans),
    "roberta-sequence": (_roberta, lambda: sentences(one_class)),
    "deberta-sequence": (_deberta, lambda: sentences(one_class)),
    "gpt2-causal": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), lambda: sentences(same)),
    "llama-causal": (_llama, lambda: sentences(same)),
    "opt-causal": (_opt, lambda: sentences(same)),
    "t5-seq2seq": (_t5, lambda: sentences(other_text)),
    "bart-seq2seq": (_bart, lambda: sentences(other_text)),
    "vit-image": (_vit, images),
}
