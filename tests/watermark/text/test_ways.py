# SPDX-License-Identifier: Apache-2.0
"""Twenty ways of generating: each ends in text that carries the mark, or in an error that names the reason."""

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
    StopStringCriteria,
    TextGenerationPipeline,
    TextIteratorStreamer,
)

from privguard.errors import MarkError
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import Gumbel
from privguard.watermark.text.writing.generate import MarkedGeneration

BASE = {"do_sample": True, "top_k": 0, "max_new_tokens": 60}


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({"<end>": 0, **{f"w{i}": i for i in range(1, 512)}}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<end>")


@pytest.fixture
def profile(secret, profile_for):
    return profile_for(secret, Gumbel(), free_start=True)


MARKED = {
    "plain": {},
    "temperature": {"temperature": 0.8},
    "top-k": {"top_k": 50},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.01},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "repetition penalty": {"repetition_penalty": 1.1},
    "no repeated n-grams": {"no_repeat_ngram_size": 3},
    "several sequences": {"num_return_sequences": 2},
    "a record of logits": {"return_dict_in_generate": True, "output_logits": True},
}
REFUSED = {
    "greedy": ({"do_sample": False}, "greedy"),
    "beams": ({"num_beams": 2}, "num_beams"),
    "sampled beams": ({"num_beams": 2, "do_sample": True}, "num_beams"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "assisted"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
    "paged": ({"cache_implementation": "paged"}, "paged"),
}


@pytest.mark.parametrize("options", MARKED.values(), ids=MARKED.keys())
def test_marked(model, prompts, secret, profile, options):
    out = model.generate(prompts[:2], custom_generate=MarkedGeneration(profile, secret), **{**BASE, **options})
    ids = out.sequences if hasattr(out, "sequences") else out
    found = Detector(profile, secret).detect(Documents.of_batch(ids.numpy(), prompt=8))
    assert (found.log10_p < -6).all()


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_reason(model, prompts, secret, profile, options, reason):
    with pytest.raises(MarkError, match=reason):
        model.generate(prompts[:1], custom_generate=MarkedGeneration(profile, secret), **{**BASE, **options})


def test_an_assistant_is_refused(model, prompts, secret, profile):
    with pytest.raises(MarkError, match="assistant_model"):
        mark = MarkedGeneration(profile, secret)
        model.generate(prompts[:1], custom_generate=mark, assistant_model=copy.deepcopy(model), **BASE)


def test_continuous_batching_is_refused(model, secret, profile):
    mark, config = MarkedGeneration(profile, secret), GenerationConfig(max_new_tokens=4, do_sample=True)
    with pytest.raises(MarkError, match="continuous batching"):
        model.generate_batch([[5, 6, 7]], generation_config=config, custom_generate=mark)


def test_a_streamer_streams_and_ends(model, prompts, secret, profile, tokenizer):
    streamer, out = TextIteratorStreamer(tokenizer, timeout=60, skip_prompt=True), []
    mark = MarkedGeneration(profile, secret)

    def run():
        out.append(model.generate(prompts[:1], custom_generate=mark, streamer=streamer, **BASE))

    thread = threading.Thread(target=run)
    thread.start()
    words = "".join(streamer).split()
    thread.join()
    assert words == [f"w{i}" for i in out[0][0, 8:].tolist()]
    assert Detector(profile, secret).detect(Documents.of_batch(out[0].numpy(), prompt=8)).log10_p[0] < -6


def test_stop_strings_stop(model, prompts, secret, profile):
    """With a byte-level tokenizer, as transformers wants for them, trained on this file."""
    mark, stops = MarkedGeneration(profile, secret), ["e", "t"]
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<end>"], initial_alphabet=alphabet)
    bytes_.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<end>")
    out = model.generate(prompts[:1], custom_generate=mark, stop_strings=stops, tokenizer=tokenizer, **BASE)
    assert out.shape[1] < 8 + 60
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, stops)])
    assert bool(criteria(out, None)[0])


def test_a_pipeline_is_marked(model, secret, profile, tokenizer):
    pipeline = TextGenerationPipeline(model=model, tokenizer=tokenizer)
    prompt = " ".join(f"w{i}" for i in range(20, 28))
    text = pipeline(prompt, custom_generate=MarkedGeneration(profile, secret), return_full_text=False, **BASE)
    ids = tokenizer.encode(text[0]["generated_text"], add_special_tokens=False)
    assert Detector(profile, secret).detect(Documents.of_lists([ids])).log10_p[0] < -6


def test_calls_without_a_mark_are_as_ever(model, prompts, secret, profile):
    """Also beside marked calls in another thread, and after one that was refused."""
    torch.manual_seed(3)
    before = model.generate(prompts, **BASE)
    with pytest.raises(MarkError):
        model.generate(prompts, custom_generate=MarkedGeneration(profile, secret), **{**BASE, "num_beams": 2})
    torch.manual_seed(3)
    assert torch.equal(model.generate(prompts, **BASE), before)
    beams = model.generate(prompts[:1], num_beams=2, do_sample=False, max_new_tokens=5)
    assert beams.shape == (1, 13)
    out = {}

    def run(name, mark):
        out[name] = model.generate(prompts, **BASE, **({} if mark is None else {"custom_generate": mark})).numpy()

    threads = [
        threading.Thread(target=run, args=(name, mark))
        for name, mark in (("plain", None), ("marked", MarkedGeneration(profile, secret)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    detector = Detector(profile, secret)
    p = {name: detector.detect(Documents.of_batch(ids, prompt=8)).log10_p for name, ids in out.items()}
    assert (p["marked"] < -6).all()
    assert (p["plain"] > -5).all()
    assert np.isfinite(p["plain"]).all()
