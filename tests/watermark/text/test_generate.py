# SPDX-License-Identifier: Apache-2.0
"""Writing with transformers: what is written is read, what cannot be marked is refused, nothing else changes."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LogitsProcessorList

from privguard.errors import MarkError, ProfileMismatchError
from privguard.watermark.secret import Secret
from privguard.watermark.text.prf.streams import ChaChaStream
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament
from privguard.watermark.text.writing import device, host
from privguard.watermark.text.writing.generate import GreenListProcessor, MarkedGeneration, MarkProcessor

VOCABULARY = 512


def write(model, prompts, mark, **options):
    options = {"max_new_tokens": 80, "do_sample": True, "top_k": 0, **options}
    return model.generate(prompts, custom_generate=mark, **options).numpy()


@pytest.mark.parametrize("prf", ["aes256-v1", "aes256-chacha8-v1"])
def test_what_is_written_is_read_and_only_with_the_key(model, prompts, secret, scheme, prf, profile_for):
    profile = profile_for(secret, scheme, prf=prf)
    text = Documents.of_batch(write(model, prompts, MarkedGeneration(profile, secret)), prompt=8)
    found = Detector(profile, secret).detect(text)
    assert (found.log10_p < -6).all()
    assert (found.scored <= 80).all()
    stranger = Secret(bytes(32))
    other = profile_for(stranger, scheme, prf=prf)
    assert (Detector(other, stranger).detect(text).log10_p > -4).all()


def test_all_of_transformers_options_still_work(model, prompts, secret, profile_for):
    """Temperature, top-k, top-p, no cache: the mark comes after them and never takes what they removed."""
    profile = profile_for(secret, Gumbel())
    for options in ({"top_k": 20}, {"top_p": 0.7, "temperature": 0.8}, {"use_cache": False, "repetition_penalty": 1.2}):
        text = write(model, prompts, MarkedGeneration(profile, secret), **options)
        assert (Detector(profile, secret).detect(Documents.of_batch(text, prompt=8)).log10_p < -3).all()
    out = model.generate(
        prompts,
        custom_generate=MarkedGeneration(profile, secret),
        do_sample=True,
        top_k=5,
        max_new_tokens=20,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for step, logits in enumerate(out.logits):
        allowed = logits.index_fill(1, torch.tensor([0]), -torch.inf).topk(5).indices
        assert (allowed == out.sequences[:, 8 + step, None]).any(1).all()


def test_a_plain_processor_before_the_warpers_would_be_another_text(model, prompts, secret, profile_for):
    """The reason for custom_generate: top-k applied after a one-hot row cannot change it, applied before it must."""
    profile = profile_for(secret, Gumbel(), subkeys=1)
    streams = [profile.stream(secret, subkey=0)] * len(prompts)
    plain = LogitsProcessorList([MarkProcessor(profile, streams=streams, prompt=8)])
    early = model.generate(prompts, logits_processor=plain, do_sample=True, top_k=5, max_new_tokens=30).numpy()
    late = write(model, prompts, MarkedGeneration(profile, secret), top_k=5, max_new_tokens=30)
    assert (early != late).any()


def test_left_padding_and_batching_do_not_change_the_text(model, secret, profile_for):
    """One sub-key, so the same prompt gives the same text alone, in a batch, and with padding on its left."""
    profile = profile_for(secret, Gumbel(), subkeys=1)
    mark = MarkedGeneration(profile, secret)
    short, long = torch.tensor([[5, 6]]), torch.tensor([[9, 8, 7, 6, 5]])
    alone = write(model, short, mark, max_new_tokens=20)[0, 2:]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1)
    batch = torch.cat([padded, long])
    both = model.generate(
        batch, attention_mask=(batch != 0).long(), custom_generate=mark, do_sample=True, top_k=0, max_new_tokens=20
    ).numpy()
    assert both[0, 5:].tolist() == alone.tolist()
    assert both[1, 5:].tolist() == write(model, long, mark, max_new_tokens=20)[0, 5:].tolist()


def test_cached_and_uncached_generation_agree(model, prompts, secret, profile_for):
    profile = profile_for(secret, Gumbel(), subkeys=1)
    mark = MarkedGeneration(profile, secret)
    assert (
        write(model, prompts, mark, max_new_tokens=25)
        == write(model, prompts, mark, max_new_tokens=25, use_cache=False)
    ).all()


def test_samples_of_one_prompt_differ_under_different_subkeys(model, prompts, secret, profile_for):
    profile = profile_for(secret, Gumbel(), subkeys=4)
    same = prompts[:1].repeat(4, 1)
    texts = {tuple(row) for row in write(model, same, MarkedGeneration(profile, secret), max_new_tokens=30)}
    assert len(texts) == 4
    found = Detector(profile, secret).detect(Documents.of_lists([np.array(t) for t in texts], prompts=[8] * 4))
    assert sorted(found.subkey.tolist()) == [0, 1, 2, 3]


def test_one_subkey_gives_one_text_which_is_why_there_are_more(model, prompts, secret, profile_for):
    profile = profile_for(secret, Gumbel(), subkeys=1)
    same = prompts[:1].repeat(3, 1)
    assert len({tuple(row) for row in write(model, same, MarkedGeneration(profile, secret), max_new_tokens=30)}) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"num_beams": 3}, "beam"), ({"do_sample": False}, "greedy"), ({"prompt_lookup_num_tokens": 3}, "assisted")],
)
def test_what_cannot_be_marked_is_refused_with_the_reason(model, prompts, secret, options, reason, profile_for):
    for scheme in (Gumbel(), Tournament()):
        with pytest.raises(MarkError, match=reason):
            write(
                model, prompts[:1], MarkedGeneration(profile_for(secret, scheme), secret), max_new_tokens=5, **options
            )


def test_the_green_list_marks_greedy_decoding_and_beams(model, prompts, secret, profile_for):
    profile = profile_for(secret, GreenList(bias=4.0), context_width=1)
    detector = Detector(profile, secret)
    greedy = write(model, prompts, MarkedGeneration(profile, secret), do_sample=False, repetition_penalty=1.5)
    assert np.median(detector.detect(Documents.of_batch(greedy, prompt=8)).log10_p) < -3
    processors = LogitsProcessorList([GreenListProcessor(profile, secret)])
    beams = model.generate(
        prompts, logits_processor=processors, num_beams=3, do_sample=False, max_new_tokens=60, repetition_penalty=1.5
    )
    assert np.median(detector.detect(Documents.of_batch(beams.numpy(), prompt=8)).log10_p) < -3
    with pytest.raises(ValueError, match="green-list"):
        GreenListProcessor(profile_for(secret, Gumbel()), secret)


def test_wrong_width_and_wrong_secret_are_refused(model, prompts, secret, profile_for):
    narrow = profile_for(secret, Gumbel(), logits_width=VOCABULARY - 1)
    with pytest.raises(ProfileMismatchError, match="logits_width"):
        write(model, prompts, MarkedGeneration(narrow, secret), max_new_tokens=2)
    with pytest.raises(ProfileMismatchError, match="secret"):
        MarkedGeneration(profile_for(secret, Gumbel()), Secret(bytes(32)))
    with pytest.raises(ValueError, match="message"):
        MarkedGeneration(profile_for(secret, Gumbel()), secret, message=3)


def test_logits_that_are_not_numbers_are_refused(secret, profile_for):
    profile = profile_for(secret, Gumbel())
    processor = MarkProcessor(profile, streams=[profile.stream(secret, subkey=0)], prompt=3)
    for bad in (
        torch.full((1, VOCABULARY), -torch.inf),
        torch.zeros(1, VOCABULARY).index_fill(1, torch.tensor([7]), torch.nan),
    ):
        with pytest.raises(MarkError, match="finite"):
            processor(torch.tensor([[1, 2, 3]]), bad)


def one_step(profile, secret, logits, *, ids, prompt):
    streams = [profile.stream(secret, subkey=0)] * len(logits)
    return MarkProcessor(profile, streams=streams, prompt=prompt)(ids, logits).argmax(-1)


def test_a_repeated_context_is_drawn_by_ordinary_chance(secret, profile_for):
    """Context 1 2 3 4 chose a token of this sequence already; the second time, chance decides."""
    logits = torch.zeros(1, VOCABULARY)
    ids = torch.tensor([[9, 9, 1, 2, 3, 4, 7, 1, 2, 3, 4]])
    profile = profile_for(secret, Gumbel())
    masked = {int(one_step(profile, secret, logits, ids=ids, prompt=6)) for _ in range(20)}
    assert len(masked) > 10
    for other in (profile_for(secret, Gumbel(), mask_repeats=False), profile):
        prompt = 6 if other is not profile else 7  # as prompt, the first occurrence chose nothing
        assert len({int(one_step(other, secret, logits, ids=ids, prompt=prompt)) for _ in range(5)}) == 1


def test_device_choosers_agree_with_host_choosers(secret, profile_for):
    """The torch path, run on the CPU: same words, and the same token for Gumbel, where no chance enters."""
    rng = np.random.default_rng(3)
    contexts = rng.integers(0, VOCABULARY, (16, 4))
    logits = torch.from_numpy(rng.normal(0, 2, (16, VOCABULARY)).astype(np.float32))
    none = np.zeros(16, np.bool_)
    for prf in ("aes256-v1", "aes256-chacha8-v1"):
        profile = profile_for(secret, Gumbel(), prf=prf)
        streams = [profile.stream(secret, subkey=i % 4) for i in range(16)]
        words = device.vocabulary_words(contexts, streams, width=VOCABULARY, device=torch.device("cpu"))
        expected = np.concatenate(
            [s.vocabulary(c[None], 4 * VOCABULARY).view(np.int32) for s, c in zip(streams, contexts, strict=True)]
        )
        assert (words.numpy() == expected).all()
        on_device = device.choose(logits, contexts, streams, profile=profile, repeated=none)
        on_host = [
            host.PickGumbel()(row, s, c[None], chance=np.zeros(3))
            for row, s, c in zip(logits.numpy(), streams, contexts, strict=True)
        ]
        assert on_device.tolist() == on_host
    green = GreenList()
    raised = device.raise_green(logits, contexts, streams, scheme=green).numpy()
    for row, before, stream, context in zip(raised, logits.numpy(), streams, contexts, strict=True):
        copy = before.copy()
        host.raise_green(copy, stream, context[None], scheme=green)
        assert copy == pytest.approx(row)
    assert isinstance(streams[0], ChaChaStream)


def test_few_tokens_left_and_all_tokens_left_give_the_same_choice(secret, profile_for):
    """Below V/16 tokens single words are looked up; the choice must not depend on that."""
    profile = profile_for(secret, Gumbel())
    stream, rng = profile.stream(secret, subkey=0), np.random.default_rng(4)
    for _ in range(50):
        context = rng.integers(0, VOCABULARY, (1, 4))
        sparse = np.full(VOCABULARY, -np.inf, np.float32)
        kept = rng.choice(VOCABULARY, 20, replace=False)
        sparse[kept] = rng.normal(size=20)
        dense = np.where(np.isinf(sparse), np.float32(-1e30), sparse)
        for pick in (host.PickGumbel(), host.PickGumbel(turn=37, modulus=1024)):
            assert pick(sparse, stream, context, chance=np.zeros(3)) == pick(dense, stream, context, chance=np.zeros(3))


@pytest.mark.parametrize("k", [1, 5, 64, 500, 600])
def test_largest_is_the_top_k(k):
    rng = np.random.default_rng(k)
    for row in (
        rng.normal(size=600),
        np.round(rng.normal(size=600), 1),
        np.where(rng.random(600) < 0.5, -np.inf, rng.normal(size=600)),
    ):
        values = row.astype(np.float32)
        top = host.largest(values, k)
        wanted = np.sort(values[values > -np.inf])[::-1][:k]
        assert np.sort(values[top])[::-1].tolist() == wanted.tolist()
        assert len(set(top.tolist())) == len(top)


def test_the_first_tokens_are_left_to_chance_and_never_scored(model, prompts, secret, scheme, profile_for):
    """One sub-key, one prompt: with a free start texts differ from the first token on and are read behind it."""
    profile = profile_for(secret, scheme, subkeys=1, free_start=True)
    same = prompts[:1].repeat(6, 1)
    text = write(model, same, MarkedGeneration(profile, secret), max_new_tokens=60)
    assert len({tuple(row) for row in text[:, 8:12].tolist()}) > 1
    found = Detector(profile, secret).detect(Documents.of_batch(text, prompt=8))
    assert (found.scored <= 56).all()
    assert np.median(found.log10_p) < -3
    whole = Detector(profile_for(secret, scheme, subkeys=1), secret).detect(Documents.of_batch(text, prompt=8))
    assert (whole.scored > found.scored).all()


def test_a_free_start_takes_tokens_with_the_models_own_chance(secret, profile_for):
    """The first token over 3,000 texts of one template, under one sub-key: chi-square against the model at 1e-6."""
    profile = profile_for(secret, Gumbel(), subkeys=1, free_start=True)
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.5] + [-torch.inf] * (VOCABULARY - 4)])
    ids, chosen = torch.tensor([[9, 8, 7, 6, 5]]), np.zeros(4)
    torch.manual_seed(0)
    for _ in range(3000):
        chosen[int(one_step(profile, secret, logits, ids=ids, prompt=5))] += 1
    expected = torch.softmax(logits[0, :4].double(), -1).numpy() * 3000
    assert stats.chisquare(chosen, expected).pvalue > 1e-6
    later = {int(one_step(profile, secret, logits, ids=ids, prompt=1)) for _ in range(5)}
    assert len(later) == 1  # behind the start the key chooses
