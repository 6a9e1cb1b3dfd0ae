# SPDX-License-Identifier: Apache-2.0
"""Answers of a model, kept in a file by the digest of what was asked, so that a stopped audit goes on where it was.

The file says what a model said of each record: it is written for its owner's eyes only.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, final


@final
class Kept:
    """Answers by question; without a ``path`` they last as long as this object."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers = _read(path) if path is not None and path.exists() else dict[str, Any]()

    @staticmethod
    def digest(*parts: str) -> str:
        """SHA-256 of what was asked."""
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def __contains__(self, digest: str) -> bool:
        return digest in self._answers

    def __getitem__(self, digest: str) -> Any:
        return self._answers[digest]

    def keep(self, digest: str, answer: Any) -> None:
        """Write one answer down; it is on its way to the disk before the next question is asked."""
        self._answers[digest] = answer
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(file, "a", encoding="utf-8") as out:
            out.write(json.dumps({"question": digest, "answer": answer}) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """Answers by question; a last line that was cut off is taken away and asked for again."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    answers = dict[str, Any]()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            answers[entry["question"]] = entry["answer"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}: line {number} is no answer of an audit; move the file away") from None
    return answers
