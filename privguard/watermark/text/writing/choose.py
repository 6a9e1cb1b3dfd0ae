# SPDX-License-Identifier: Apache-2.0
"""One step of writing: rows of final logits and their contexts go in, marked rows come out.

Neither transformers nor vLLM is known here. Whoever generates brings logits and token ids and says which pen each row
is written with; which contexts are fresh, how a token is chosen from its words and what a marked row looks like is said
here once for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from privguard import _check
from privguard.watermark.text.prf.streams import ContextStream
from privguard.watermark.text.profile import Profile, rotation
from privguard.watermark.text.scheme import GreenList, Payload
from privguard.watermark.text.writing import device, host


@final
@dataclass(frozen=True)
class Pen:
    """What one sequence is written with: the secret bytes of its sub-key, and a chooser for each piece of a message."""

    stream: ContextStream
    choosers: tuple[host.Chooser, ...]

    def pick(self, row: host.Row, context: NDArray[np.int64], *, chance: NDArray[np.float64]) -> int:
        """The marked token of a row of final logits under its context, (1, h)."""
        piece = piece_of(self.stream, context, len(self.choosers)) if len(self.choosers) > 1 else 0
        return self.choosers[piece](row, self.stream, context, chance=chance)


def mark(
    scores: torch.Tensor,
    contexts: NDArray[np.int64],
    repeated: NDArray[np.bool_],
    *,
    profile: Profile,
    pens: Sequence[Pen],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Marked rows of (B, V) final logits: green tokens raised, or one-hot rows of the tokens that the mark chose.

    ``contexts`` (B, h) are the tokens before, ``repeated`` (B,) the rows that ordinary chance decides (see
    ``left_to_chance``). ``generator``, on the device of the scores, is that chance; torch's own by default.
    """
    if isinstance(profile.scheme, GreenList):
        raised = _raise_green(scores, contexts, pens, scheme=profile.scheme)
        return scores.where(torch.from_numpy(repeated).to(scores.device)[:, None], raised)
    if scores.device.type == "cpu":
        chosen = _choose_on_host(scores, contexts, repeated, pens=pens, generator=generator)
    else:
        streams = [pen.stream for pen in pens]
        chosen = device.choose(scores, contexts, streams, profile=profile, repeated=repeated, generator=generator)
    return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def repeats(ids: NDArray[np.int64], *, prompt: int, width: int) -> NDArray[np.bool_]:
    """Rows whose context already chose a token of this sequence: a second choice from it would not be fresh.

    ``ids`` (B, width + T) are the sequences behind ``width`` fillers; the first ``prompt`` of the T chose nothing.
    """
    end = ids.shape[1]
    rows, at = np.nonzero(ids[:, prompt + width - 1 : end - 1] == ids[:, -1:])
    for j in range(width - 1):
        same = ids[rows, prompt + at + j] == ids[rows, end - width + j]
        rows, at = rows[same], at[same]
    out = np.zeros(len(ids), np.bool_)
    out[rows] = True
    return out


def left_to_chance(profile: Profile, ids: NDArray[np.int64], *, prompt: int) -> NDArray[np.bool_]:
    """Rows whose next token the mark leaves alone: at a free start, and where ``repeats`` says so.

    ``ids`` (B, width + T) and ``prompt`` as there. The green list chooses nothing, so its repetitions are marked alike.
    """
    width = profile.context_width
    start = prompt + width if profile.free_start else prompt
    if ids.shape[1] - width < start:
        return np.ones(len(ids), np.bool_)
    if profile.mask_repeats and profile.scheme.samples:
        return repeats(ids, prompt=start, width=width)
    return np.zeros(len(ids), np.bool_)


def piece_of(stream: ContextStream, context: NDArray[np.int64], pieces: int) -> int:
    """Which piece of a payload a context carries: a word that stands beyond all vocabularies, modulo the pieces."""
    return int(host.selector_words(stream, context)[0] % np.uint32(pieces))


def pieces_of(profile: Profile, message: int | None) -> tuple[int, ...]:
    """The pieces of a message, the low one first; none where the scheme carries none.

    Raises:
        ValueError: a message without a payload scheme, or none with one, or one that does not fit.
    """
    if not isinstance(profile.scheme, Payload):
        _check.require(message is None, "message", message, wanted="none", remedy="use a profile with scheme=Payload()")
        return ()
    limit = 1 << profile.scheme.bits
    if message is None or not 0 <= message < limit:
        raise ValueError(f"message={message}: expected a whole number in [0, 2**{profile.scheme.bits})")
    out: list[int] = []
    for bits in profile.scheme.pieces:
        out.append(message & ((1 << bits) - 1))
        message >>= bits
    return tuple(out)


def choosers_of(profile: Profile, pieces: tuple[int, ...]) -> tuple[host.Chooser, ...]:
    """How the scheme chooses a token: one chooser, one for each piece of a message, none where it raises logits.

    Raises:
        MarkError: a scheme that nobody entered a way to write for.
    """
    if isinstance(profile.scheme, Payload):
        return tuple(host.PickGumbel(turn=piece, modulus=rotation(profile)) for piece in pieces)
    return () if isinstance(profile.scheme, GreenList) else (host.chooser_of(profile.scheme),)


def _choose_on_host(
    scores: torch.Tensor,
    contexts: NDArray[np.int64],
    repeated: NDArray[np.bool_],
    *,
    pens: Sequence[Pen],
    generator: torch.Generator | None,
) -> torch.Tensor:
    rows = scores.detach().float().numpy()
    chance = torch.rand((len(rows), 3), dtype=torch.float64, generator=generator).numpy()
    tokens = [
        _draw_unmarked(row, generator) if plain else pen.pick(row, context[None, :], chance=u)
        for row, pen, context, u, plain in zip(rows, pens, contexts, chance, repeated, strict=True)
    ]
    return torch.tensor(tokens, device=scores.device)


def _draw_unmarked(row: host.Row, generator: torch.Generator | None) -> int:
    return int(torch.multinomial(torch.softmax(torch.from_numpy(row), -1), 1, generator=generator))


def _raise_green(
    scores: torch.Tensor, contexts: NDArray[np.int64], pens: Sequence[Pen], *, scheme: GreenList
) -> torch.Tensor:
    if scores.device.type != "cpu":
        return device.raise_green(scores, contexts, [pen.stream for pen in pens], scheme=scheme)
    out = scores.detach().float().clone()
    for row, pen, context in zip(out.numpy(), pens, contexts, strict=True):
        host.raise_green(row, pen.stream, context[None, :], scheme=scheme)
    return out.to(scores.dtype)
