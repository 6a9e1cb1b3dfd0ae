# SPDX-License-Identifier: Apache-2.0
"""The public detector on a loopback port, for a reverse proxy in front of it that speaks TLS to the world.

One connection, one request: uvicorn has no limit on how long a request's head may take, so a connection that has not
asked anything in time is closed here.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast, final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from privguard import _check
from privguard.integrations.public_detector.app import PublicDetector

HOST = "127.0.0.1"
_CONNECTIONS = 64
_MOST_PORT = 65_535


def _impatient(seconds: float) -> type[H11Protocol]:
    """The protocol that closes a connection whose request is not there after so many seconds."""

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._deadline = self.loop.call_later(seconds, self._close_unless_asked)

        def connection_lost(self, exc: Exception | None) -> None:
            self._deadline.cancel()
            super().connection_lost(exc)

        def _close_unless_asked(self) -> None:
            if cast("Any", self).cycle is None:  # uvicorn's type leaves out the time before the first request
                self.transport.close()

    return Impatient


@final
class _Server(uvicorn.Server):
    """Says when it listens, and where."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready(self.servers[0].sockets[0].getsockname()[1])


def serve(detector: PublicDetector, *, port: int, ready: Callable[[int], None]) -> None:
    """Answer on 127.0.0.1 until the process is told to end.

    Args:
        detector: who answers.
        port: the port; 0 for any that is free.
        ready: called with the port once it listens.

    Raises:
        ValueError: no port.
        OSError: the port is taken.
    """
    _check.require(0 <= port <= _MOST_PORT, "port", port, wanted="0 to 65535")
    config = uvicorn.Config(
        detector.app(),
        host=HOST,
        port=port,
        http=_impatient(detector.bounds.head_seconds),
        ws="none",
        lifespan="off",
        loop="asyncio",
        access_log=False,  # it would hold addresses of whoever asks
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=16 << 10,
    )
    server = _Server(config, ready)
    with contextlib.suppress(SystemExit):  # uvicorn's way to say that it cannot listen
        server.run()
    if not server.started:
        raise OSError(f"port={port}: cannot be listened on; name another with --port")
