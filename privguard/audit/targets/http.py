# SPDX-License-Identifier: Apache-2.0
"""Questions to a model behind HTTP: counted, paced, asked again where a server is busy, and kept for a resume.

What was answered once is never asked again: answers lie in a file beside the audit, by the digest of the question.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

import httpx2

from privguard import _check
from privguard.audit.targets.kept import Kept
from privguard.errors import AuditError

BUSY = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
LONGEST_WAIT = 60.0  # seconds
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@final
@dataclass(frozen=True, kw_only=True)
class Pace:
    """``rate`` requests a second at most; at most ``budget`` of them, attempts included; ``timeout`` in seconds."""

    rate: float | None = None
    budget: int | None = None
    attempts: int = 6
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.rate is not None:
            _check.positive("rate", self.rate)
        if self.budget is not None:
            _check.count("budget", self.budget)
        _check.count("attempts", self.attempts)


@final
class Client:
    """Asks one address with JSON and takes JSON.

    Args:
        url: http or https; a token is sent over https only, or to this machine.
        pace: how often and how much may be asked.
        kept: file of answers, one a line, which a later run takes up; it says what the model said of each record.
        token: bearer token; it is sent as a header and stands nowhere else.
        clock: seconds and sleep, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        pace: Pace | None = None,
        kept: Path | None = None,
        token: str | None = None,
        clock: tuple[Callable[[], float], Callable[[float], None]] = (time.monotonic, time.sleep),
    ) -> None:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.username is None
        _check.require(good, "url", parts.hostname, wanted="http://HOST/… or https://HOST/…, without a password in it")
        if token and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError(f"url=http://{parts.hostname}: a token would travel in clear; use https")
        self._url, self._pace, self._kept = url, pace or Pace(), Kept(kept)
        self._now, self._sleep = clock
        self.sent, self._next = 0, 0.0
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(timeout=self._pace.timeout, headers=headers, follow_redirects=False)

    @property
    def address(self) -> str:
        """The address without its query, which may hold a secret."""
        return self._url.split("?", 1)[0]

    def ask(self, question: Mapping[str, Any]) -> Any:
        """The answer to one question, from the file where it was asked before.

        Args:
            question: what is sent, as JSON.

        Raises:
            AuditError: the budget is spent.
            ConnectionError: the server does not answer, or refuses.
            ValueError: the answer is no JSON.
        """
        text = json.dumps(question, sort_keys=True, separators=(",", ":"))
        digest = Kept.digest(self._url, text)
        if digest not in self._kept:
            self._kept.keep(digest, self._asked(text))
        return self._kept[digest]

    def _asked(self, text: str) -> Any:
        reason = ""
        for attempt in range(self._pace.attempts):
            self._wait()
            try:
                reply = self._http.post(self._url, content=text, headers={"Content-Type": "application/json"})
            except httpx2.TransportError as error:
                reason = type(error).__name__
                self._next = max(self._next, self._now() + min(2.0**attempt / 4, LONGEST_WAIT))
                continue
            if reply.status_code not in BUSY:
                return _json(reply)
            reason = f"status {reply.status_code}"
            self._next = max(self._next, self._now() + _seconds(reply.headers.get("Retry-After"), 2.0**attempt / 4))
        host = urlsplit(self._url).hostname
        raise ConnectionError(f"{host}: no answer after {self._pace.attempts} attempts ({reason}); run again to go on")

    def _wait(self) -> None:
        """For its turn; what is sent counts, whether it is answered or not."""
        if self._pace.budget is not None and self.sent >= self._pace.budget:
            path = self._kept.path
            where = f"; answers are kept in {path}, and a larger budget goes on from there" if path else ""
            raise AuditError(f"budget={self._pace.budget}: all of these requests are spent{where}")
        if (left := self._next - self._now()) > 0:
            self._sleep(left)
        self.sent += 1
        if self._pace.rate is not None:
            self._next = max(self._next, self._now()) + 1 / self._pace.rate


def _json(reply: httpx2.Response) -> Any:
    host = reply.url.host
    if reply.status_code != HTTPStatus.OK:
        raise ConnectionError(f"{host}: status {reply.status_code} {reply.reason_phrase}; expected 200 with JSON")
    try:
        return reply.json()
    except ValueError:
        raise ValueError(f"{host}: expected JSON, got {reply.headers.get('Content-Type', 'no type')}") from None


def _seconds(header: str | None, otherwise: float) -> float:
    """Of a Retry-After header, where it names some."""
    named = header is not None and header.strip().isdigit()
    return min(float(header) if named and header else otherwise, LONGEST_WAIT)
