# SPDX-License-Identifier: Apache-2.0
"""privguard's text mark in vLLM's older runner: ``--logits-processors privguard.integrations.vllm.runner_v1:TextMark``.

That is the runner where ``VLLM_USE_V2_MODEL_RUNNER=0``, where Triton is missing, and before vLLM 0.33. Processors that
never change the likeliest token run there behind penalties, temperature and min-p, and only for requests that sample;
all others run before penalties and temperature. The schemes that choose the token are of the first kind, for no greedy
request is marked by them: what is left to apply before the choice is the request's own top-k and top-p. The green list
is of the second kind, raised by δ times the temperature; a repetition penalty then scales it for tokens it penalises.
"""

from dataclasses import replace
from typing import Any, final

import torch

from privguard.integrations.vllm import requests as serving
from privguard.watermark.text.writing.serve import Batch, Request

try:
    from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
        BatchUpdate,
        LogitsProcessor,
        MoveDirectionality,
    )
except ImportError as error:
    raise ImportError(f"vllm: {error}; install vLLM, whose engine this processor runs in") from error


@final
class TextMark(LogitsProcessor):  # pyright: ignore[reportUntypedBaseClass] — vLLM is not installed where types are checked
    """The mark of one engine under the model runner V1; a request is what stands in a row of the batch."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002, FBT001
        self._desk = serving.desk_for(vllm_config, device)
        self._batch = Batch()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request that cannot be marked as it is; vLLM answers it with an error (HTTP 400).

        Raises:
            ValueError: the message gives the reason.
        """
        serving.operator().order_of(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Whether to run behind temperature and min-p: yes for the schemes that choose the token."""
        return self._desk.profile.scheme.samples

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that leave, enter and move, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._batch.remove(row)
        for row, params, prompt, written in batch_update.added:
            self._batch.put(row, self._begin(params, prompt or [], written))
        for origin, target, direction in batch_update.moved:
            self._batch.move(origin, target, swap=direction is MoveDirectionality.SWAP)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mark the rows of marked requests; each text is brought up to the engine's own list of its tokens first.

        Raises:
            MarkError: a list that holds placeholders.
        """
        rows = sorted(self._batch.rows)
        requests = [self._batch.rows[row] for row in rows]
        for request in requests:
            request.text.follow(request.written)
        return serving.write_rows(self._desk, logits, rows, requests)

    def _begin(self, params: Any, prompt: list[int], written: list[int]) -> Request | None:
        order = serving.order_or_warn(params)
        if order is None:
            return None
        filters = serving.filters_of(params)
        if self.is_argmax_invariant():
            filters = replace(filters, temperature=1.0, min_p=0.0)  # vLLM has applied these two
        return self._desk.begin(prompt, written, order=order, filters=filters)
