# SPDX-License-Identifier: Apache-2.0
"""Writing the mark with transformers: ``model.generate(..., custom_generate=MarkedGeneration(profile, secret))``.

A plain logits processor runs before temperature, top-k and top-p and cannot see beams, so the mark enters as a
``custom_generate`` object, which ``hooks`` puts behind all of them. For the
sampling schemes it takes the token itself and hands on a one-hot row, so transformers' argmax keeps it; caches, left
padding, streaming, stopping and scores stay transformers' own. Its state is ``input_ids`` alone.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from random import SystemRandom
from typing import Any, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.configuration_utils import GenerationMode

from privguard import _check
from privguard.errors import MarkError, ProfileMismatchError
from privguard.watermark.secret import Secret
from privguard.watermark.text.prf.streams import FILLER, ContextStream
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import GreenList
from privguard.watermark.text.writing import hooks
from privguard.watermark.text.writing.choose import Pen, choosers_of, left_to_chance, mark, pieces_of

Context: TypeAlias = NDArray[np.int64]
_chance = SystemRandom()


@final
class MarkedGeneration:
    """The callable for ``generate(custom_generate=...)``: one mark, for any number of calls and batches.

    Each sequence is written under a sub-key drawn from the operating system's entropy; sequences of one call get
    different sub-keys as far as there are enough. ``user`` writes under that user's own keys, for tracing; ``message``
    is the payload of a payload profile.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
        ValueError: a message without a payload scheme, or none with one, or one that does not fit.
    """

    def __init__(
        self, profile: Profile, secret: Secret, *, user: str | None = None, message: int | None = None
    ) -> None:
        self.profile = profile
        self._streams = [profile.stream(secret, subkey=j, user=user) for j in range(profile.subkeys)]
        self._messages = pieces_of(profile, message)

    def __call__(self, model: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        """What transformers calls where a model brings a ``generate`` of its own: its sampling loop, marked.

        Raises:
            MarkError: as ``run``.
        """
        return self.run(model._sample, input_ids, **options)  # noqa: SLF001 — the loop generate() would call here

    def run(self, loop: Callable[..., Any], input_ids: torch.Tensor, **options: Any) -> Any:
        """Run transformers' sampling ``loop`` with the mark behind all its processors.

        Args:
            loop: transformers' own decoding loop.
            input_ids: prompts, (B, T).
            **options: what the loop takes besides.

        Raises:
            MarkError: beams, assisted decoding, or greedy decoding under a scheme that needs sampling.
        """
        config: GenerationConfig = options.pop("generation_config")
        processors = options.pop("logits_processor")
        mode = _refuse_unmarkable(config, self.profile)
        pad = getattr(config, "_pad_token_tensor", None)
        processor = MarkProcessor(
            self.profile,
            streams=self._rows(len(input_ids)),
            prompt=input_ids.shape[1],
            pad=None if pad is None else int(pad.flatten()[0]),
            messages=self._messages,
        )
        if self.profile.scheme.samples and mode == GenerationMode.SAMPLE:
            config = copy.deepcopy(config)
            config.do_sample = False  # the row is one-hot: argmax takes the token that the mark chose
        marked = LogitsProcessorList([*processors, processor])
        return loop(input_ids, logits_processor=marked, generation_config=config, **options)

    def _rows(self, rows: int) -> list[ContextStream]:
        order: list[int] = []
        while len(order) < rows:
            order += _chance.sample(range(len(self._streams)), len(self._streams))
        return [self._streams[j] for j in order[:rows]]


@final
class MarkProcessor(LogitsProcessor):
    """The mark of one ``generate`` call, last of the processors: (B, T) ids and (B, V) final logits to (B, V)."""

    supports_continuous_batching = False

    def __init__(
        self,
        profile: Profile,
        *,
        streams: list[ContextStream],
        prompt: int,
        pad: int | None = None,
        messages: tuple[int, ...] = (),
    ) -> None:
        self.profile, self._prompt, self._pad = profile, prompt, pad
        choosers = choosers_of(profile, messages)
        self._pens = [Pen(stream, choosers) for stream in streams]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Green logits raised, or one-hot rows of the chosen tokens.

        Raises:
            ProfileMismatchError: the logits have another width than the profile says.
            MarkError: a row holds NaN or no finite logit.
        """
        if scores.shape[-1] != self.profile.logits_width:
            raise ProfileMismatchError(
                f"logits_width={scores.shape[-1]}: expected {self.profile.logits_width}, as the profile says"
            )
        if not bool(torch.isfinite(scores.amax(-1)).all()):
            raise MarkError("logits: a row holds NaN or no finite value; look at the model and at the other processors")
        ids = self._history(input_ids)
        alone = left_to_chance(self.profile, ids, prompt=self._prompt)
        context = ids[:, ids.shape[1] - self.profile.context_width :]
        return mark(scores, context, alone, profile=self.profile, pens=self._pens)

    def _history(self, input_ids: torch.Tensor) -> NDArray[np.int64]:
        """Ids on the host with fillers before each row and in place of its left padding."""
        ids = input_ids.detach().cpu().numpy()
        if self._pad is not None:
            leading = np.logical_and.accumulate(ids == self._pad, axis=1)
            ids = np.where(leading, FILLER, ids)
        return np.pad(ids, ((0, 0), (self.profile.context_width, 0)), constant_values=FILLER)


@final
class GreenListProcessor(LogitsProcessor):
    """The green list as a plain processor, for greedy decoding, beams and loops of your own.

    One sub-key serves all sequences of this object (drawn from the operating system unless ``subkey`` names it); make a
    new one per request. Placed before temperature, the effective bias is δ divided by the temperature.

    Raises:
        ValueError: the profile's scheme is not a green list.
    """

    def __init__(self, profile: Profile, secret: Secret, *, user: str | None = None, subkey: int | None = None) -> None:
        _check.require(isinstance(profile.scheme, GreenList), "scheme", profile.scheme.name, wanted="green-list")
        number = _chance.randrange(profile.subkeys) if subkey is None else subkey
        self._profile = replace(profile, free_start=False)  # a plain processor is not told where the prompt ends
        self._stream = profile.stream(secret, subkey=number, user=user)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, T) ids and (B, V) logits to (B, V) logits with the green ones raised."""
        processor = MarkProcessor(self._profile, streams=[self._stream] * len(scores), prompt=input_ids.shape[1])
        return processor(input_ids, scores)


def _refuse_unmarkable(config: GenerationConfig, profile: Profile) -> GenerationMode:
    mode = config.get_generation_mode()
    if mode not in {GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH}:
        raise MarkError(
            f"generation mode {mode.value}: a mark chooses one token after the other, beams and drafts choose among "
            "whole sequences by their unmarked probability; use num_beams=1 and no assistant, or GreenListProcessor"
        )
    if mode == GenerationMode.GREEDY_SEARCH and profile.scheme.samples:
        raise MarkError(
            f"do_sample=False: {profile.scheme.name} hides the mark in the choice among likely tokens, and greedy "
            "decoding makes none; pass do_sample=True, or use a profile with scheme=GreenList()"
        )
    return mode


hooks.install(MarkedGeneration)
