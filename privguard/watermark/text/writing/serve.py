# SPDX-License-Identifier: Apache-2.0
"""Marks in a serving engine, where requests come and go between any two tokens: no type of any engine is known here.

Each request is written under one sub-key, dealt from a shuffled deck so that samples of one prompt differ as far as
there are sub-keys. The state of a request is its token ids and nothing else; one that an engine puts aside and takes up
again is known by them, and goes on under the sub-key that it began with.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from privguard.errors import MarkError
from privguard.watermark.secret import Prf, Secret
from privguard.watermark.text.prf.streams import FILLER
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import GreenList
from privguard.watermark.text.writing.choose import Pen, choosers_of, left_to_chance, mark, pieces_of
from privguard.watermark.text.writing.filters import Filters, final_logits

_REMEMBERED = 1024  # requests at least, running or put aside, whose sub-key is known


@final
@dataclass(frozen=True)
class Order:
    """What a request may say about its mark: whose keys it is written under, and what message it carries."""

    user: str | None = None
    message: int | None = None


@final
class Text:
    """The token ids of one request: its prompt, of which nothing was chosen here, and then what is written.

    A place of the prompt that no token fills, such as an embedding's, holds the filler.
    """

    def __init__(self, prompt: Sequence[int], *, width: int) -> None:
        self.prompt, self._width = len(prompt), width
        given = np.asarray(prompt, np.int64)
        given = np.where((given < 0) | (given > FILLER), FILLER, given)
        self._ids = np.concatenate([np.full(width, FILLER, np.int64), given])
        self._end = len(self._ids)

    def __len__(self) -> int:
        return self._end - self._width

    def extend(self, ids: Sequence[int]) -> None:
        """Take in the next tokens.

        Raises:
            MarkError: an id below 0, which is a placeholder for a token that is not known yet, or above 2²⁴.
        """
        if not len(ids):
            return
        if min(ids) < 0 or max(ids) >= FILLER:
            raise MarkError(
                f"token ids from {min(ids)} to {max(ids)}: expected 0 to {FILLER - 1}; an engine that shows -1 for "
                "a token was not told that a processor reads tokens: name the processor in logits_processors=[...]"
            )
        end = self._end + len(ids)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(end, np.int64)])
        self._ids[self._end : end] = ids
        self._end = end

    def follow(self, written: Sequence[int]) -> None:
        """Become the prompt and ``written``, of which the part known so far is not read again.

        Raises:
            MarkError: as ``extend``.
        """
        known = min(len(written), len(self) - self.prompt)
        self._end = self._width + self.prompt + known
        self.extend(written[known:])

    def ids(self, count: int) -> NDArray[np.int64]:
        """The first ``count`` tokens."""
        return self._ids[self._width : self._width + count]

    def context(self) -> NDArray[np.int64]:
        """The tokens that choose the next one's words, (h,)."""
        return self._ids[self._end - self._width : self._end]

    def left_to_chance(self, profile: Profile) -> bool:
        """Whether the mark leaves the next token alone: at a free start, or where this context chose one before."""
        return bool(left_to_chance(profile, self._ids[None, : self._end], prompt=self.prompt)[0])

    def begins(self, other: "Text") -> bool:
        """Whether the other text goes on from this one, in which at least one token was chosen."""
        if self.prompt != other.prompt or not self.prompt < len(self) <= len(other):
            return False
        return bool((other.ids(len(self)) == self.ids(len(self))).all())


@final
@dataclass(frozen=True)
class Request:
    """One request that is being written: what was ordered, the text so far, the pen, and what its sampling removes.

    ``written`` is the engine's own growing list of chosen tokens, where it keeps one.
    """

    order: Order
    text: Text
    pen: Pen
    filters: Filters
    written: Sequence[int] = ()


@final
class Desk:
    """The mark of one engine, for all its requests.

    ``entropy`` (32 bytes) is all chance there is: which sub-key a request gets, and the draws of repeated contexts.
    Desks with the same entropy that see the same requests in the same order write the same tokens, as the ranks of a
    tensor-parallel group must.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
    """

    def __init__(
        self, profile: Profile, secret: Secret, *, entropy: bytes, device: torch.device, requests: int = _REMEMBERED
    ) -> None:
        self.profile = profile
        self._stream = lru_cache(maxsize=8 * _REMEMBERED)(
            lambda subkey, user: profile.stream(secret, subkey=subkey, user=user)
        )
        self._stream(0, None)
        self._chance = Prf(entropy)
        seed = self._chance.blocks(np.array([[0, 0, 0, 1]], "<u4")).view("<u8")[0, 0]
        self._generator = torch.Generator(device)
        self._generator.manual_seed(int(seed) >> 1)
        self._deck: list[int] = []
        self._decks = 0
        self._known: deque[Request] = deque(maxlen=max(_REMEMBERED, 2 * requests))

    def begin(self, prompt: Sequence[int], written: Sequence[int], *, order: Order, filters: Filters) -> Request:
        """A request with its prompt and what was ``written`` of it: nothing, unless it was put aside before.

        Raises:
            ValueError: a message that the profile's scheme does not carry, or none where it carries one.
        """
        text = Text(prompt, width=self.profile.context_width)
        text.extend(written)
        before = self._before(text, order) if len(written) else None
        pen = self._deal(order) if before is None else before.pen
        request = Request(order, text, pen, filters, written)
        self._known.append(request)
        return request

    def write(self, logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
        """Marked rows of (B, V) logits, one request a row: raised green tokens, or one-hot rows.

        A row without a finite largest logit is handed back as it came: it is the engine's to deal with.
        """
        contexts = np.stack([request.text.context() for request in requests])
        pens, filters = [request.pen for request in requests], [request.filters for request in requests]
        alone = np.array([request.text.left_to_chance(self.profile) for request in requests], np.bool_)
        if isinstance(self.profile.scheme, GreenList):
            heat = torch.tensor([each.temperature for each in filters], device=logits.device)[:, None]
            return mark(logits / heat, contexts, alone, profile=self.profile, pens=pens) * heat
        final = final_logits(logits, filters)
        sound = torch.isfinite(final.amax(-1, keepdim=True))
        marked = mark(
            final.where(sound, 0.0), contexts, alone, profile=self.profile, pens=pens, generator=self._generator
        )
        return marked.where(sound, logits)

    def _before(self, text: Text, order: Order) -> Request | None:
        """The request that this text goes on from: the one that is known to have come furthest."""
        same = [request for request in self._known if request.order == order and request.text.begins(text)]
        return max(same, key=lambda request: len(request.text), default=None)

    def _deal(self, order: Order) -> Pen:
        if not self._deck:
            self._decks += 1
            cards = np.zeros((self.profile.subkeys, 4), "<u4")
            cards[:, 0], cards[:, 1] = np.arange(len(cards)), self._decks
            self._deck = np.argsort(self._chance.blocks(cards)[:, 0], kind="stable").tolist()
        choosers = choosers_of(self.profile, pieces_of(self.profile, order.message))
        return Pen(self._stream(self._deck.pop(), order.user), choosers)


@final
class Batch:
    """Which request stands in which row: the three things that an engine does to a batch between two tokens.

    A row without a request here is not marked.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Request] = {}

    def remove(self, row: int) -> None:
        """The request of this row is finished or put aside."""
        self.rows.pop(row, None)

    def put(self, row: int, request: Request | None) -> None:
        """A request enters, in place of whatever stood there; ``None`` is one that is not marked."""
        self.rows.pop(row, None)
        if request is not None:
            self.rows[row] = request

    def move(self, origin: int, target: int, *, swap: bool) -> None:
        """A request goes to another row, in place of the one there, or changing places with it."""
        moved, there = self.rows.pop(origin, None), self.rows.pop(target, None)
        self.put(target, moved)
        if swap:
            self.put(origin, there)
