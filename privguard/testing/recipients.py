# SPDX-License-Identifier: Apache-2.0
"""Whether a key service wraps file keys as the envelope needs it."""

import io
import os
import tempfile
from pathlib import Path

from privguard.checkpoint.files import open_stream, seal_stream
from privguard.checkpoint.keys.key import Key, KeyService
from privguard.errors import TamperedError
from privguard.testing.promise import promise, refused

_LARGEST = 8192  # bytes of a wrapped key: docs/spec/checkpoint-v1.md, section 4


def check_key_service(service: KeyService, *, other: KeyService) -> None:
    """Wrap, unwrap, damage and mix up file keys, then seal and open a file through the service.

    Args:
        service: the service under test; it is asked about forty times.
        other: one of the same kind with another key.

    Raises:
        AssertionError: a key does not come back, or comes back where the context, the key or a bit is another.
    """
    secret, context = os.urandom(32), b"privguard conformance\0" + os.urandom(16)
    blob = service.wrap(secret, context)
    promise(service.name and service.name == service.name, "name: is not empty, and the same each time")
    promise(service.name != other.name, "name: tells two keys apart")
    promise(len(blob) <= _LARGEST, f"wrap: gives at most {_LARGEST} bytes; got {len(blob)}")
    promise(secret not in blob, "wrap: hides the key")
    promise(service.unwrap(blob, context) == secret, "unwrap: gives back what was wrapped")
    promise(service.wrap(secret, context) != blob, "wrap: two wraps of one key differ, so none is recognised")
    with refused(ValueError, "unwrap under another context"):
        service.unwrap(blob, context + b"x")
    with refused(ValueError, "unwrap with another key"):
        other.unwrap(blob, context)
    for place in range(0, len(blob), max(1, len(blob) // 24)):
        with refused(ValueError, f"unwrap with byte {place} changed"):
            service.unwrap(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :], context)
    with refused(ValueError, "unwrap of a blob cut short"):
        service.unwrap(blob[:-1], context)
    _through_a_file(service, other)


def _through_a_file(service: KeyService, other: KeyService) -> None:
    """Seal a megabyte for the service; it opens, and the other key does not."""
    content, back = os.urandom(1 << 20), io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "content.sealed"
        seal_stream(io.BytesIO(content), path, to=Key.from_service(service))
        open_stream(path, back, key=Key.from_service(service))
        promise(back.getvalue() == content, "a file sealed for the service opens with it")
        with refused(TamperedError, "a sealed file opened with another key"):
            open_stream(path, io.BytesIO(), key=Key.from_service(other))
