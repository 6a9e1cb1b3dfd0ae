# SPDX-License-Identifier: Apache-2.0
"""What the operator of a serving engine says about marks, and which engines and requests are refused, with the reason.

Secrets come neither in arguments nor in requests: the environment names files. ``PRIVGUARD_MARK_PROFILE``,
``PRIVGUARD_MARK_SECRET`` and ``PRIVGUARD_MARK_TRUST`` are what ``privguard mark text detect`` calls ``--profile``,
``--secret`` and ``--trust``. ``PRIVGUARD_MARK_REQUESTS`` says who decides:

* ``all`` (the default): every request is marked, and none may say anything about it. A request that could switch its
  mark off, or have it written under another user's keys, would be a way around the mark for everybody who sends one.
* ``told``: every request is marked, and callers are trusted to name whose keys and which message:
  ``extra_args={"privguard": {"user": "ann", "message": 7}}``, each of the two optional.
* ``asked``: only requests with such ``extra_args`` are marked; an empty dictionary asks for the mark.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, final

import torch

from privguard.attest.statement import Identity
from privguard.errors import MarkError, ProfileMismatchError
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import Payload
from privguard.watermark.text.writing.choose import pieces_of
from privguard.watermark.text.writing.filters import Filters
from privguard.watermark.text.writing.serve import Desk, Order, Request

PROFILE, SECRET, TRUST, REQUESTS = (f"PRIVGUARD_MARK_{word}" for word in ("PROFILE", "SECRET", "TRUST", "REQUESTS"))
KEY = "privguard"
_log = logging.getLogger(__name__)
GREEDY = 1e-5  # below this temperature vLLM takes the likeliest token


class Requests(StrEnum):
    """Who decides about the mark of a request; see the module."""

    ALL = "all"
    TOLD = "told"
    ASKED = "asked"


@final
@dataclass(frozen=True)
class Operator:
    """The operator's word: the verified profile, where the secret lies, and who decides about a request's mark."""

    profile: Profile
    secret: Path
    requests: Requests = Requests.ALL

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the environment; the profile's signature is checked, the secret is not opened.

        Args:
            environment: variables by name; None for the process's own.

        Raises:
            MarkError: a variable is missing or is not one of the words above, or a payload could not get its message.
            TamperedError: the profile is not signed by the trusted identity.
        """
        said = os.environ if environment is None else environment
        missing = [name for name in (PROFILE, SECRET, TRUST) if not said.get(name)]
        if missing:
            raise MarkError(
                f"{', '.join(missing)}: not set; name the signed profile, the file of the secret and the signer's "
                "public key, as `privguard mark text setup` made them, in the environment of the engine's processes"
            )
        word = said.get(REQUESTS) or Requests.ALL.value
        if word not in set(Requests):
            raise MarkError(f"{REQUESTS}={word}: expected {', '.join(Requests)}")
        profile = Profile.read(said[PROFILE], by=Identity.read(Path(said[TRUST])))
        if isinstance(profile.scheme, Payload) and word == Requests.ALL:
            raise MarkError(
                f"{REQUESTS}={word}: a payload profile needs a message from each request; where callers are trusted, "
                f'set {REQUESTS}={Requests.TOLD}; they then send extra_args={{"{KEY}": {{"message": 7}}}}'
            )
        return cls(profile, Path(said[SECRET]), Requests(word))

    def read_secret(self) -> Secret:
        """The secret, from its file."""
        return Secret.read(self.secret)

    def order_of(self, params: Any) -> Order | None:
        """What a request's ``SamplingParams`` order; ``None`` where it is not to be marked.

        Args:
            params: vLLM's ``SamplingParams`` of one request.

        Raises:
            ValueError: it cannot be marked as it is, or it says what it may not say; the message gives the reason.
        """
        said = (params.extra_args or {}).get(KEY)
        if said is None and self.requests is Requests.ASKED:
            return None
        if said is not None and self.requests is Requests.ALL:
            raise ValueError(f"extra_args[{KEY!r}]: this server marks every request, and requests have no say in it")
        order = _order(said)
        pieces_of(self.profile, order.message)
        if self.profile.scheme.samples and params.temperature < GREEDY:
            raise ValueError(
                f"temperature={params.temperature}: this server's texts carry a mark ({self.profile.scheme.name}) that "
                "hides in the choice among likely tokens, and greedy decoding makes none; use a temperature above 0"
            )
        return order


@lru_cache(maxsize=1)
def operator() -> Operator:
    """The operator's word from this process's environment, read once.

    Raises:
        MarkError: as ``Operator.from_environment``.
    """
    return Operator.from_environment()


def order_or_warn(params: Any) -> Order | None:
    """As ``Operator.order_of`` for a request that the engine already runs: what cannot be marked is left, loudly.

    It should have been refused when it was sent. Raising here would end the engine and every other request with it.

    Args:
        params: vLLM's ``SamplingParams`` of one request.
    """
    try:
        return operator().order_of(params)
    except ValueError as error:
        _log.warning("a request runs without a mark: %s", error)
        return None


def write_rows(desk: Desk, logits: torch.Tensor, rows: list[int], requests: list[Request]) -> torch.Tensor:
    """(B, V) logits with ``rows`` replaced by marked ones.

    Args:
        desk: profile, secret and device of one engine.
        logits: final logits, (B, V).
        rows: numbers of the rows to be marked.
        requests: one for each of these rows.
    """
    if not rows:
        return logits
    if len(rows) == len(logits):
        return desk.write(logits, requests)
    at = torch.tensor(rows, device=logits.device)
    logits[at] = desk.write(logits[at], requests)
    return logits


def filters_of(params: Any) -> Filters:
    """What the sampling of a request removes, from its ``SamplingParams``; a greedy one counts as temperature 1.

    Args:
        params: vLLM's ``SamplingParams`` of one request.
    """
    temperature = params.temperature if params.temperature >= GREEDY else 1.0
    return Filters(temperature=temperature, min_p=params.min_p, top_k=params.top_k, top_p=params.top_p)


def refuse_engine(config: Any, profile: Profile) -> None:
    """Refuse an engine whose ``VllmConfig`` would not give exactly the profile's mark.

    Args:
        config: the engine's ``VllmConfig``.
        profile: the profile that the operator chose.

    Raises:
        MarkError: speculative decoding, vLLM's own watermark, diffusion, or processed logprobs.
        ProfileMismatchError: the model's logits have another width than the profile says.
    """
    model = config.model_config
    if config.speculative_config is not None:
        raise MarkError(
            "speculative_config: a draft's tokens are accepted by comparing probabilities, which a row with one token "
            "left does not have; serve without it"
        )
    if getattr(config, "watermark_config", None) is not None:
        raise MarkError("watermark_config: a text cannot carry vLLM's mark and privguard's; leave one of them out")
    if getattr(model, "is_diffusion", False):
        raise MarkError("model: a diffusion model does not write one token after the other")
    if profile.scheme.samples and str(model.logprobs_mode).startswith("processed"):
        raise MarkError(
            f"logprobs_mode={model.logprobs_mode}: the row that is sampled from holds the marked token alone, so this "
            "would report every token as certain; use raw_logprobs or raw_logits"
        )
    width = model.get_vocab_size()
    if width != profile.logits_width:
        raise ProfileMismatchError(f"logits_width={width}: expected {profile.logits_width}, as the profile says")


def desk_for(config: Any, device: Any) -> Desk:
    """The mark of the engine that ``config``, a ``VllmConfig``, describes, as the environment says.

    Args:
        config: the engine's ``VllmConfig``.
        device: where the logits live.

    Raises:
        MarkError: the environment is incomplete, or the engine would not give exactly the mark.
        ProfileMismatchError: secret or model are not the profile's.
    """
    said = operator()
    refuse_engine(config, said.profile)
    return Desk(
        said.profile,
        said.read_secret(),
        entropy=_agreed_entropy(config),
        device=torch.device(device),
        requests=config.scheduler_config.max_num_seqs,
    )


def _agreed_entropy(config: Any) -> bytes:
    """32 bytes from the operating system; the ranks of a tensor-parallel group, which all sample, share the first's."""
    entropy = os.urandom(32)
    if config.parallel_config.tensor_parallel_size > 1:
        import vllm.distributed  # pyright: ignore[reportMissingImports] — installed where an engine runs

        return vllm.distributed.get_tp_group().broadcast_object(entropy, src=0)
    return entropy


def _order(said: Any) -> Order:
    if said is None:
        return Order()
    if not isinstance(said, dict) or set(said) - {"user", "message"}:
        raise ValueError(f'extra_args[{KEY!r}]: expected {{"user": …, "message": …}}, each of them optional')
    user, message = said.get("user"), said.get("message")
    if user is not None and not (isinstance(user, str) and user):
        raise ValueError(f"extra_args[{KEY!r}]['user']: expected a name")
    if message is not None and type(message) is not int:
        raise ValueError(f"extra_args[{KEY!r}]['message']: expected a whole number")
    return Order(user, message)
