# SPDX-License-Identifier: Apache-2.0
"""A finding in a picture as evidence: the verdict, which file it is about, and what the log says of it.

Whoever reads a report sees one line of it, so the line says *copied* where the mark was carried to other content, and
never shows a small p-value alone. Noise that was recovered has its log entry in the verdict, or there is no verdict.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from privguard import _canon
from privguard.errors import MarkError
from privguard.records import Verdict
from privguard.watermark.image.latent import VERSION as LATENT
from privguard.watermark.image.registry import Attributed, Attribution

_MEANING = {
    Attributed.FOUND: "found, and what carries the mark looks like its log entry",
    Attributed.COPIED: "COPIED: the mark lies on other content than its log entry",
    Attributed.UNDECIDED: "undecided: too little of it carries the mark, or it is too changed, to compare with the log",
    Attributed.NOT_FOUND: "not found in the log",
}


def of_mark(told: Attribution, *, name: str, content: bytes) -> Verdict:
    """The verdict on the mark in a picture, with what the log says of it.

    Args:
        told: what attribution answered.
        name: the picture's name, for people.
        content: the picture's file.
    """
    facts = {
        "answer": told.answer,
        "accepted": told.accepted,
        "log_entries": list(told.entries),
        "log_entries_alike": list(told.alike),
        "likeness": list(told.likeness),
        "carrying": told.carrying,
    }
    meaning = f"{_MEANING[told.answer]}; the mark is in {told.carrying:.0%} of the blocks that can carry one"
    if told.same_file and not told.mark_found:
        meaning = "a logged file in which no mark is found"
    return _about(told.verdict, facts, name=name, content=content, meaning=meaning)


def of_noise(verdict: Verdict, *, name: str, content: bytes, looks_like_entry: bool) -> Verdict:
    """The verdict on noise recovered from a picture, with its log entry, which the verdict already holds.

    Args:
        verdict: what ``latent_verdict`` gave.
        name: the picture's name, for people.
        content: the picture's file.
        looks_like_entry: whether you compared it with the picture that was made of that entry's noise, and it is that
            one. Noise can be carried to another picture, so False is shown as COPIED.

    Raises:
        MarkError: a verdict on something else, or one without its log entry.
    """
    if verdict.scheme != f"image/{LATENT}" or "log_entry" not in verdict.details:
        raise MarkError(f"verdict={verdict.scheme}: expected one on recovered noise, with its log entry")
    answer = Attributed.FOUND if looks_like_entry else Attributed.COPIED
    return _about(verdict, {"answer": answer}, name=name, content=content, meaning=_MEANING[answer])


def write(verdict: Verdict, folder: Path) -> Path:
    """Write a verdict where a report finds it: the ``evidence`` folder of a run.

    Args:
        verdict: what ``of_mark`` or ``of_noise`` gave.
        folder: the folder; made where there is none.

    Returns:
        The file, named after the picture's digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = "noise" if verdict.scheme == f"image/{LATENT}" else "mark"
    path = folder / f"picture-{kind}-{verdict.details['sha256'][:16]}.json"
    path.write_bytes(_canon.canonical(verdict.to_json()) + b"\n")
    return path


def _about(verdict: Verdict, facts: Mapping[str, object], *, name: str, content: bytes, meaning: str) -> Verdict:
    digest = hashlib.sha256(content).hexdigest()
    suspect = f"{name} ({digest[:16]}…): {meaning}"
    return replace(verdict, details={**verdict.details, **facts, "sha256": digest, "suspect": suspect})
