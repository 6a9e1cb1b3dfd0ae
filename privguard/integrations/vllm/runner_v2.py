# SPDX-License-Identifier: Apache-2.0
"""The text mark in vLLM: ``vllm serve MODEL --logits-processors privguard.integrations.vllm.runner_v2:TextMark``.

For vLLM's model runner V2, its default on GPUs; ``privguard.integrations.vllm.runner_v1`` serves the older runner.
The environment names profile, secret and signer, and says whether requests have a say: see
``privguard.integrations.vllm.requests``.

V2 lets processors in after penalties, bad words and grammar and before temperature, min-p, top-k and top-p. So for the
schemes that choose the token, this one applies a request's own temperature, min-p, top-k and top-p to its row, chooses,
and hands on a row with that token alone, which none of them can change. The green list is raised by δ times the
temperature, which is δ where the token is drawn; the filters see it.

No entry point is registered, on purpose: vLLM loads every installed one into every engine, refuses to start where it is
written for the other runner, and leaves it out without a word under speculative decoding.
"""

from typing import Any, final

import torch

from privguard.integrations.vllm import requests as serving
from privguard.watermark.text.writing.serve import Batch, Request

try:
    from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
        LogitsContext,
        LogitsProcessor,
        LogitsProcRequestState,
    )
except ImportError as error:
    raise ImportError(
        f"vllm: {error}; install vLLM 0.33 or later, or use privguard.integrations.vllm.runner_v1 for runner V1"
    ) from error


@final
class TextMark(LogitsProcessor):  # pyright: ignore[reportUntypedBaseClass] — vLLM is not installed where types are checked
    """The mark of one engine under the model runner V2; a request is what stands in a slot of the runner's state."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._states = req_states
        self._desk = serving.desk_for(vllm_config, req_states.device)
        self._slots = Batch()
        self._entering: dict[int, Any] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request that cannot be marked as it is; vLLM answers it with an error (HTTP 400).

        Raises:
            ValueError: the message gives the reason.
        """
        serving.operator().order_of(sampling_params)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Whether the request in this slot will be marked."""
        self._slots.remove(req_idx)
        self._entering.pop(req_idx, None)
        order = serving.order_or_warn(sampling_params)
        if order is not None:
            self._entering[req_idx] = (order, serving.filters_of(sampling_params))
        return order is not None

    def apply_staged_writes(self) -> None:
        """Begin the requests that entered, whose tokens can be read from now on; all ranks do so in one order."""
        for slot, (order, filters) in self._entering.items():
            prompt, filled = int(self._states.prompt_len.np[slot]), int(self._states.prefill_len.np[slot])
            ids = self._tokens(slot, 0, filled)
            self._slots.put(slot, self._desk.begin(ids[:prompt], ids[prompt:], order=order, filters=filters))
        self._entering.clear()

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Mark the rows whose token counts; a row in the middle of a prompt is left, as its token is thrown away."""
        slots = ctx.idx_mapping_np.tolist()
        if not any(slot in self._slots.rows for slot in slots):
            return logits
        seen, last = torch.stack([ctx.pos.long() + 1, ctx.input_ids.long()]).tolist()
        rows: list[int] = []
        requests: list[Request] = []
        for row, slot in enumerate(slots):
            request = self._slots.rows.get(slot)
            if request is not None and seen[row] >= self._states.prefill_len.np[slot]:
                self._catch_up(request, slot, seen[row], last[row])
                rows.append(row)
                requests.append(request)
        return serving.write_rows(self._desk, logits, rows, requests)

    def _catch_up(self, request: Request, slot: int, seen: int, last: int) -> None:
        """Bring a text to its first ``seen`` tokens: as a rule only the last one is new, and stands in the batch."""
        text = request.text
        if seen == len(text) + 1:
            text.extend([last])
        elif seen != len(text):
            text.follow(self._tokens(slot, text.prompt, seen))

    def _tokens(self, slot: int, start: int, end: int) -> list[int]:
        return self._states.all_token_ids.gpu[slot, start:end].tolist()
