# SPDX-License-Identifier: Apache-2.0
"""Marks in a serving engine: requests come, go and move, and each text is the one that it would be alone."""

import numpy as np
import pytest
import torch

from privguard.errors import MarkError, ProfileMismatchError
from privguard.watermark.secret import Secret
from privguard.watermark.text.prf.streams import FILLER
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.message import read
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import GreenList, Gumbel, Payload, Tournament
from privguard.watermark.text.writing.filters import Filters, final_logits
from privguard.watermark.text.writing.generate import MarkProcessor
from privguard.watermark.text.writing.serve import Batch, Desk, Order, Text

VOCABULARY, CPU = 512, torch.device("cpu")
ENTROPY = bytes(range(32, 64))


@pytest.fixture
def desk_for(secret, profile_for):
    def make(scheme=None, entropy=ENTROPY, **changes):
        return Desk(profile_for(secret, scheme, **changes), secret, entropy=entropy, device=CPU)

    return make


def begin(desk, prompt=(1, 2, 3), written=(), *, order=Order(), filters=Filters()):  # noqa: B008 — frozen values
    return desk.begin(prompt, list(written), order=order, filters=filters)


def some_logits(rows, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (rows, VOCABULARY)).astype(np.float32))


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_context_is_repeated_if_it_chose_a_token_of_this_text_before(width, secret, profile_for):
    """Against the definition, over texts of two letters, where most contexts come again."""
    rng, profile = np.random.default_rng(width), profile_for(secret, context_width=width)
    found = set()
    for _ in range(200):
        prompt, ids = int(rng.integers(0, 6)), rng.integers(1, 3, 14).tolist()
        text = Text(ids[:prompt], width=width)
        padded = [FILLER] * width + ids
        for end in range(prompt, len(ids)):
            used = [padded[i : i + width] for i in range(prompt, end)]
            context = padded[end : end + width]
            assert text.context().tolist() == context
            assert text.left_to_chance(profile) == (context in used)
            found.add(context in used)
            text.follow(ids[prompt : end + 1])
    assert found == {True, False}


def test_a_text_follows_the_list_of_its_engine_even_back():
    text, written = Text([5, 6], width=2), []
    for token in (7, 8, 9):
        written.append(token)
        text.follow(written)
    assert text.ids(len(text)).tolist() == [5, 6, 7, 8, 9]
    del written[1:]
    written.append(4)
    text.follow(written[:1])
    text.follow(written)
    assert text.ids(len(text)).tolist() == [5, 6, 7, 4]


def test_placeholders_are_refused_in_a_text_and_fillers_in_a_prompt():
    text = Text([5, -1, 6], width=3)
    assert text.context().tolist() == [5, FILLER, 6]
    for bad in (-1, FILLER):
        with pytest.raises(MarkError, match="logits_processors"):
            text.follow([7, bad])


def test_requests_move_with_their_rows(desk_for):
    desk, batch = desk_for(), Batch()
    a, b, c = (begin(desk) for _ in range(3))
    batch.put(0, a), batch.put(1, b), batch.put(2, c)
    batch.move(0, 2, swap=True)
    assert batch.rows == {0: c, 1: b, 2: a}
    batch.remove(1)
    batch.move(2, 1, swap=False)
    assert batch.rows == {0: c, 1: a}
    batch.move(0, 1, swap=False)  # in place of the one there
    assert batch.rows == {1: c}
    batch.move(0, 1, swap=False)  # a request without a mark comes there
    assert batch.rows == {}
    batch.put(3, b), batch.move(3, 4, swap=True)
    assert batch.rows == {4: b}
    batch.put(4, None)
    assert batch.rows == {}


def test_all_subkeys_are_dealt_before_one_comes_again(desk_for):
    desk = desk_for(subkeys=8)
    rounds = [words([begin(desk) for _ in range(8)]) for _ in range(6)]
    assert all(len({tuple(word) for word in dealt}) == 8 for dealt in rounds)
    assert rounds[0] != rounds[1]
    other = desk_for(subkeys=8, entropy=bytes(32))
    assert words([begin(other) for _ in range(8)]) != rounds[0]


def words(requests):
    return [request.pen.stream.vocabulary(np.array([[1, 2, 3, 4]]), 8)[0].tolist() for request in requests]


def test_desks_with_one_entropy_write_alike_as_the_ranks_of_a_group_must(desk_for, scheme):
    logits, texts = some_logits(6), []
    for _ in range(2):
        desk = desk_for(scheme)
        requests = [begin(desk, [1, 1, 1, 1, 1], [1]) for _ in range(6)]  # a repeated context: chance decides
        texts.append([desk.write(logits, requests).tolist() for _ in range(3)])
    assert texts[0] == texts[1]


def test_a_request_that_was_put_aside_goes_on_under_its_subkey(desk_for):
    desk = desk_for(subkeys=64)
    requests = [begin(desk, [1, 2, 3], [i]) for i in range(20)]
    for request in requests:
        request.text.extend([7])
    for i, request in enumerate(requests):
        assert begin(desk, [1, 2, 3], [i, 7, 8]).pen.stream is request.pen.stream
    streams = {id(request.pen.stream) for request in [*requests, begin(desk, [8, 8])]}
    for prompt, written, order in (
        ([1, 2, 3], [], Order()),  # a new request, not one taken up again
        ([1, 2], [3, 5], Order()),
        ([8, 8], [5], Order()),  # of this prompt nothing was written before
        ([1, 2, 3], [5, 9], Order()),
        ([1, 2, 3], [5, 7], Order(user="ann")),
    ):
        assert id(begin(desk, prompt, written, order=order).pen.stream) not in streams


def test_a_repeated_context_is_left_to_chance(desk_for):
    """Even logits: the mark would take one token every time, chance hardly one token twice."""
    flat = torch.zeros(1, VOCABULARY)
    for desk, written, distinct in (
        (desk_for(), [1], True),
        (desk_for(), [], False),
        (desk_for(mask_repeats=False), [1], False),
    ):
        request = begin(desk, [1] * 5, written)
        draws = {int(desk.write(flat, [request]).argmax()) for _ in range(20)}
        assert (len(draws) > 10) if distinct else (len(draws) == 1)


@pytest.mark.parametrize("prf", ["aes256-v1", "aes256-chacha8-v1"])
def test_a_row_holds_the_token_that_generation_would_take_from_the_same_logits(desk_for, prf):
    desk = desk_for(Gumbel(), prf=prf)
    filters = [Filters(top_k=9), Filters(top_p=0.7), Filters(temperature=0.5, min_p=0.02), Filters()]
    ids = np.random.default_rng(4).integers(1, VOCABULARY, (4, 6))
    requests = [begin(desk, row.tolist(), filters=f) for row, f in zip(ids, filters, strict=True)]
    logits = some_logits(4)
    rows = desk.write(logits, requests)
    assert ((rows == 0).sum(1) == 1).all()
    assert ((rows == 0) | (rows == -torch.inf)).all()
    last = final_logits(logits, filters)
    alone = MarkProcessor(desk.profile, streams=[r.pen.stream for r in requests], prompt=6)
    assert rows.argmax(1).tolist() == alone(torch.from_numpy(ids), last).argmax(1).tolist()
    assert (last.gather(1, rows.argmax(1)[:, None]) > -torch.inf).all()


def test_the_green_list_is_raised_by_its_bias_where_the_token_is_drawn(desk_for):
    desk = desk_for(GreenList(bias=3.0))
    logits = some_logits(2)
    out = desk.write(logits, [begin(desk, filters=Filters(temperature=heat)) for heat in (0.5, 2.0)])
    raised = (out - logits) / torch.tensor([[0.5], [2.0]])
    assert ((raised.abs() < 1e-5) | ((raised - 3.0).abs() < 1e-5)).all()
    assert (raised > 1).any(1).all()


@pytest.mark.parametrize("scheme", [Gumbel(), Tournament(depth=8, top_k=32)], ids=lambda s: s.name)
def test_a_row_that_is_not_numbers_is_handed_back_and_harms_no_other(desk_for, scheme):
    desk = desk_for(scheme)
    logits = some_logits(3)
    logits[0, 3], logits[1] = torch.nan, -torch.inf
    out = desk.write(logits, [begin(desk) for _ in range(3)])
    assert torch.equal(out[:2].nan_to_num(1.5), logits[:2].nan_to_num(1.5))
    assert (out[2] == 0).sum() == 1


def test_each_request_has_its_own_user_and_message(desk_for, secret, profile_for):
    """Two texts side by side, each read back with its own message and under its own user's keys."""
    desk = desk_for(Payload(bits=4), subkeys=1)
    orders = [Order(message=3), Order(message=12, user="ann")]
    requests = [begin(desk, [i], order=order) for i, order in enumerate(orders)]
    written = [[], []]
    for step in range(60):
        for tokens, row in zip(written, desk.write(some_logits(2, seed=step), requests), strict=True):
            tokens.append(int(row.argmax()))
        for request, tokens in zip(requests, written, strict=True):
            request.text.follow(tokens)
    documents = Documents.of_lists([np.array([i, *tokens]) for i, tokens in enumerate(written)], prompts=[1, 1])
    for number, order in enumerate(orders):
        found = read(desk.profile, secret, documents, user=order.user)[number]
        assert found.value == order.message
        assert found.verdict.log10_p < -6
    with pytest.raises(ValueError, match="message"):
        begin(desk, [1])
    with pytest.raises(ValueError, match="message"):
        begin(desk_for(Gumbel()), [1], order=Order(message=3))


def test_another_secret_is_refused_at_once(profile_for, secret):
    with pytest.raises(ProfileMismatchError, match="secret"):
        Desk(profile_for(secret), Secret(bytes(32)), entropy=ENTROPY, device=CPU)


def test_texts_of_a_desk_are_detected(desk_for, secret, scheme):
    desk = desk_for(scheme)
    requests = [begin(desk, [i + 1]) for i in range(4)]
    generator = torch.Generator().manual_seed(0)
    written = [[] for _ in requests]
    for step in range(100):
        chances = torch.softmax(desk.write(some_logits(4, seed=step), requests), -1)
        for request, tokens, row in zip(requests, written, chances, strict=True):
            tokens.append(int(torch.multinomial(row, 1, generator=generator)))
            request.text.follow(tokens)
    texts = Documents.of_lists([np.array(tokens) for tokens in written])
    assert (Detector(desk.profile, secret).detect(texts).log10_p < -6).all()
