# SPDX-License-Identifier: Apache-2.0
"""How a mark gets into transformers: ``generate(custom_generate=mark)`` runs transformers' own loop with the mark.

transformers hands a custom loop neither the streamer nor what stop strings need, does not tell it of an assistant, and
leaves it out in continuous batching, all without a word. So its ``generate`` is wrapped, once and for every model: a
call with one of our marks becomes an ordinary call during which the ordinary loop asks for the mark, and every other
loop is refused by name. Calls without a mark pass through unchanged. What is in force is kept for each thread.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

from transformers import GenerationMixin

from privguard.errors import MarkError


@runtime_checkable
class MarkOfOneCall(Protocol):
    """What the ordinary loop asks for: run ``loop``, transformers' own, with the mark among its processors."""

    def run(self, loop: Callable[..., Any], input_ids: Any, **options: Any) -> Any:
        """The loop's result."""
        ...


_active: ContextVar[MarkOfOneCall | None] = ContextVar("privguard_text_mark", default=None)
REFUSED = {
    "_beam_search": "num_beams: beams choose among whole sequences by their unmarked probability; use num_beams=1, or "
    "GreenListProcessor",
    "_assisted_decoding": "assistant_model, prompt_lookup_num_tokens or use_mtp: drafts are accepted by their unmarked "
    "probability (assisted decoding); generate without them",
    "load_custom_generate": "custom_generate or a decoding method from the hub: a loop of its own, which no mark gets "
    "into; use sampling",
    "generate_batch": "generate_batch or cache_implementation='paged': continuous batching keeps no row to a text; use "
    "generate(), or serve with vLLM",
    "init_continuous_batching": "continuous batching keeps no row to a text; use generate(), or serve with vLLM",
}


@contextmanager
def _marking(mark: MarkOfOneCall | None) -> Generator[None]:
    token = _active.set(mark)
    try:
        yield
    finally:
        _active.reset(token)


def install(kind: type) -> None:
    """Wrap transformers' generation for marks of this class; a second call does nothing."""
    mixin: Any = GenerationMixin
    if getattr(mixin.generate, "_carries_marks", False):
        return
    mixin.generate = _generate(mixin.generate, kind)
    mixin._sample = _sample(mixin._sample)  # noqa: SLF001 — the loop that generate() calls
    for name, reason in REFUSED.items():
        if hasattr(mixin, name):
            setattr(mixin, name, _refusing(getattr(mixin, name), reason, kind))


def _generate(plain: Callable[..., Any], kind: Any) -> Callable[..., Any]:
    @functools.wraps(plain)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        mark = kwargs.get("custom_generate")
        if not isinstance(mark, kind):
            return plain(self, *args, **kwargs)
        alpha = kwargs.get("penalty_alpha", getattr(kwargs.get("generation_config"), "penalty_alpha", None))
        if alpha:
            raise MarkError(f"penalty_alpha={alpha}: contrastive search takes no samples to mark; leave it out")
        with _marking(mark):
            return plain(self, *args, **{key: value for key, value in kwargs.items() if key != "custom_generate"})

    generate._carries_marks = True  # type: ignore[attr-defined]  # noqa: SLF001
    return generate


def _sample(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def sample(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        mark = _active.get()
        if mark is None:
            return plain(self, input_ids, *args, **kwargs)
        if args:
            raise MarkError("_sample: expected its options by name, as generate() gives them")
        with _marking(None):
            return mark.run(functools.partial(plain, self), input_ids, **kwargs)

    return sample


def _refusing(plain: Callable[..., Any], reason: str, kind: type) -> Callable[..., Any]:
    @functools.wraps(plain)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _active.get() is not None or isinstance(kwargs.get("custom_generate"), kind):
            raise MarkError(f"{reason}. The mark would be left out")
        return plain(self, *args, **kwargs)

    return refusing
