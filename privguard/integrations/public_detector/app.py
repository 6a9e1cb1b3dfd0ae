# SPDX-License-Identifier: Apache-2.0
"""The public detector as an ASGI application: token, rate, size and time first, and only then the content.

Every answer is written to the journal before it leaves: number, kind, client and answer, and nothing of the content, no
digest either. It leaves at the next tick of a coarse clock, so how long the reading took tells nobody how near it was.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import anyio
from anyio import CapacityLimiter, to_thread
from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from privguard import _canon
from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.errors import MarkError, TamperedError
from privguard.integrations.public_detector.answers import MEANING, Answer, Reader
from privguard.integrations.public_detector.receipts import NOTES, Receipt
from privguard.integrations.public_detector.tokens import Client, Tokens

RATE = "20/minute;500/day"
_CLOSE = {"connection": "close", "cache-control": "no-store"}


@final
@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What strangers may take of the machine.

    Attributes:
        rate: answers for each client, such as ``20/minute;500/day``; counted in memory, so anew after a restart.
        head_seconds: the longest that a request's head may take to arrive.
        body_seconds: the longest that a content may take to arrive.
        waiting: how many contents may wait for the one that is read.
        tick: seconds between the moments at which answers leave.
    """

    rate: str = RATE
    head_seconds: float = 10.0
    body_seconds: float = 15.0
    waiting: int = 8
    tick: float = 0.25

    def items(self) -> list[RateLimitItem]:
        """The rates as the limiter counts them.

        Raises:
            ValueError: no rate.
        """
        try:
            return parse_many(self.rate)
        except ValueError:
            raise ValueError(f"rate={self.rate!r}: expected such as {RATE!r}") from None


class _RefusalError(Exception):
    """An answer that is none: status, reason and headers."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


@final
@dataclass
class PublicDetector:
    """Readers, key, tokens and journal behind ``POST /v1/image`` and ``POST /v1/text``; ``app`` is what a server runs.

    Attributes:
        readers: by kind, ``image`` and ``text``.
        signer: the key that signed the profiles.
        tokens: who may ask.
        journal: where each answer is written before it leaves.
        bounds: what strangers may take of the machine.

    Raises:
        MarkError: a journal that is not strict: answers would leave without a line.
        ValueError: no reader, or no rate.
    """

    readers: Mapping[str, Reader]
    signer: SigningKey
    tokens: Tokens
    journal: Journal
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        if not self.readers:
            raise ValueError("readers={}: expected a reader of pictures, of texts, or both")
        if not self.journal.strict:
            raise MarkError("journal: expected a strict one; answers would leave without a line")
        self._rates, self._limiter = self.bounds.items(), MovingWindowRateLimiter(MemoryStorage())
        self._one_at_a_time, self._waiting = CapacityLimiter(1), 0

    def app(self) -> Starlette:
        """The application, for any ASGI server that closes slow connections; ``server.serve`` is one."""
        return Starlette(
            routes=[
                Route("/v1", self._facts, methods=["GET"]),
                Route("/v1/{kind}", self._ask, methods=["POST"]),
            ],
            exception_handlers={Exception: _broken},
        )

    async def _facts(self, _request: Request) -> JSONResponse:
        profiles = {
            kind: {"profile": r.profile.digest(), "key_id": r.profile.key_id, "log10_level": r.log10_level}
            for kind, r in self.readers.items()
        }
        facts = {"profiles": profiles, "signer": self.signer.identity.pem(), "answers": MEANING, "notes": NOTES}
        return JSONResponse(facts, headers=_CLOSE)

    async def _ask(self, request: Request) -> JSONResponse:
        try:
            reader = self._reader(request.path_params["kind"])
            client = await to_thread.run_sync(self._client, request)
            content = await self._content(request, reader)
            answer = await self._read(reader, content)
            body = await to_thread.run_sync(self._receipt, client, answer, content, reader)
        except _RefusalError as refused:
            return JSONResponse({"error": refused.reason}, refused.status, headers={**_CLOSE, **refused.headers})
        await anyio.sleep(-time.monotonic() % self.bounds.tick)
        return JSONResponse(body, headers=_CLOSE)

    def _reader(self, kind: str) -> Reader:
        if kind not in self.readers:
            raise _RefusalError(404, f"expected one of {', '.join(f'/v1/{each}' for each in self.readers)}")
        return self.readers[kind]

    def _client(self, request: Request) -> Client:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            client = self.tokens.client(token.strip()) if scheme.lower() == "bearer" else None
        except OSError:
            raise _RefusalError(503, "the tokens cannot be read; tell the owner") from None
        if client is None:
            raise _RefusalError(
                401, "token: expected one that is valid, as Authorization: Bearer …", **{"www-authenticate": "Bearer"}
            )
        for rate in self._rates:
            if not self._limiter.hit(rate, client.limited_as):
                reset = self._limiter.get_window_stats(rate, client.limited_as).reset_time
                wait = str(max(1, math.ceil(reset - time.time())))
                raise _RefusalError(
                    429, f"expected at most {self.bounds.rate}; come back later", **{"retry-after": wait}
                )
        return client

    async def _content(self, request: Request, reader: Reader) -> bytes:
        most = reader.most_bytes
        too_much = _RefusalError(413, f"content: expected at most {most} bytes")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise too_much
        if request.headers.get("content-encoding", "identity") != "identity":
            raise _RefusalError(415, "content-encoding: expected none; send the file as it is")
        content = bytearray()
        try:
            with anyio.fail_after(self.bounds.body_seconds):
                async for part in request.stream():
                    content += part
                    if len(content) > most:
                        raise too_much
        except TimeoutError:
            raise _RefusalError(408, f"content: expected within {self.bounds.body_seconds:g} seconds") from None
        except ClientDisconnect:
            raise _RefusalError(400, "content: the connection was closed before its end") from None
        return bytes(content)

    async def _read(self, reader: Reader, content: bytes) -> Answer:
        if self._waiting > self.bounds.waiting:
            raise _RefusalError(503, "busy; come back later", **{"retry-after": "5"})
        self._waiting += 1
        try:
            return await to_thread.run_sync(reader.answer, content, limiter=self._one_at_a_time)
        except (ValueError, MarkError) as error:
            raise _RefusalError(422, str(error)) from None
        finally:
            self._waiting -= 1

    def _receipt(self, client: Client, answer: Answer, content: bytes, reader: Reader) -> dict[str, Any]:
        """Spend the token, write the line, and only then sign: what fails half-way leaves no answer behind."""
        try:
            if not self.tokens.spend(client):
                raise _RefusalError(401, "token: spent by another request", **{"www-authenticate": "Bearer"})
            receipt = Receipt.of(answer, content, reader)
            who = "one-time" if client.one_time else client.name
            facts = {"answer": answer, "client": who, "number": receipt.number, "profile": receipt.profile}
            self.journal.record("answer", reader.kind, role=_canon.canonical(facts).decode())
        except (OSError, TamperedError):
            raise _RefusalError(503, "the answer cannot be recorded, so there is none; tell the owner") from None
        return {"answer": answer, "receipt": receipt.signed(self.signer).to_json()}


async def _broken(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"error": "this should not have happened; tell the owner"}, 500, headers=_CLOSE)
