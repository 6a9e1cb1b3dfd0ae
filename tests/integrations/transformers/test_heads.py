# SPDX-License-Identifier: Apache-2.0
"""Sounds, videos and decoders under another name: one private step is one of Trainer with a mean over examples."""

import pytest
import torch
import transformers as hf
from drive import both, distance, private_trainer
from torch.nn import functional
from zoo import Rows, pad, same, sentences

from privguard.errors import UnsupportedModelError

pytestmark = pytest.mark.usefixtures("fine_grid")

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SOUND = {
    **TINY,
    "num_labels": 3,
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
    "pad_token_id": 0,
    "classifier_proj_size": 16,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}


def records(name, shape, labels, count=8):
    generator = torch.Generator().manual_seed(2)
    return Rows([{name: torch.randn(shape, generator=generator), "labels": labels(generator)} for _ in range(count)])


def a_class(generator):
    return torch.randint(0, 3, (), generator=generator)


def spoken(generator):
    words = torch.randint(1, 12, (4,), generator=generator)
    words[int(torch.randint(2, 5, (), generator=generator)) :] = -100
    return words


def wave(kind, **changes):
    model = kind(hf.Wav2Vec2Config(**{**SOUND, **changes}))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("masked_spec_embed" not in name)
    return model


def whisper():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    more = {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40}
    config = hf.WhisperConfig(**sizes, **more, num_mel_bins=4, max_source_positions=10, num_labels=3, dropout=0.0,
                              pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)  # fmt: skip
    return hf.WhisperForAudioClassification(config)


def spectrum():
    config = hf.ASTConfig(**TINY, num_labels=3, max_length=20, num_mel_bins=8, patch_size=4, frequency_stride=4,
                          time_stride=4)  # fmt: skip
    return hf.ASTForAudioClassification(config)


def video():
    config = hf.VideoMAEConfig(**TINY, num_labels=3, image_size=8, patch_size=4, num_frames=4, tubelet_size=2)
    return hf.VideoMAEForVideoClassification(config)


def gemma():
    text = {**{k: v for k, v in TINY.items() if "prob" not in k}, "head_dim": 8, "vocab_size": 48, "pad_token_id": 0}
    text |= {"num_key_value_heads": 1, "max_position_embeddings": 32}
    config = hf.Gemma3Config(
        text_config=text,
        vision_config={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 8, "patch_size": 4},
        mm_tokens_per_image=1, image_token_index=47, boi_token_index=46, eoi_token_index=45,
    )  # fmt: skip
    model = hf.Gemma3ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision" not in name and "multi_modal" not in name)
    return model


def to_one_length(rows):
    """Waves of a public length: the model reads its padding."""
    waves = [functional.pad(row["input_values"][:300], (0, 300 - len(row["input_values"][:300]))) for row in rows]
    return {"input_values": torch.stack(waves), "labels": torch.stack([torch.as_tensor(row["labels"]) for row in rows])}


HEADS = {
    "wav2vec2, connectionist": (
        lambda: wave(hf.Wav2Vec2ForCTC, ctc_loss_reduction="mean"), lambda: records("input_values", (300,), spoken)
    ),
    "wav2vec2, classes": (
        lambda: wave(hf.Wav2Vec2ForSequenceClassification), lambda: records("input_values", (300,), a_class)
    ),
    "whisper, classes": (whisper, lambda: records("input_features", (4, 20), a_class)),
    "spectrum transformer": (spectrum, lambda: records("input_values", (20, 8), a_class)),
    "video transformer": (video, lambda: records("pixel_values", (4, 3, 8, 8), a_class)),
    "gemma 3 of text and images": (gemma, lambda: sentences(same, 8)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:one backward pass for each example")
@pytest.mark.parametrize("name", HEADS)
def test_one_step_is_trainers_with_a_mean_over_examples(name, tmp_path):
    make, data = HEADS[name]
    torch.manual_seed(0)
    net, rows = make(), data()
    with torch.no_grad():
        for parameter in net.parameters():  # a fresh class token is 0, and its gradient behind a norm without bound
            parameter += 0.1 * torch.randn(parameter.shape)
    ours, theirs = both(net, rows, tmp_path, data_collator=to_one_length if name.startswith("wav") else pad)
    assert all(value.isfinite().all() for value in theirs.values())
    assert distance(ours, theirs) < 1e-5


def test_object_detection_is_refused_by_name(tmp_path):
    config = hf.YolosConfig(**TINY, image_size=[16, 16], patch_size=8, num_detection_tokens=2, num_labels=3)
    rows = records("pixel_values", (3, 16, 16), a_class)
    with pytest.raises(UnsupportedModelError, match="YolosForObjectDetection: its loss matches"):
        private_trainer(hf.YolosForObjectDetection(config), rows, tmp_path).train()
