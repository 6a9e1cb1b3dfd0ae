# SPDX-License-Identifier: Apache-2.0
"""What evidence holds, as JSON: written in one way, and read back only where it is exactly that.

Format: ``docs/spec/claim-v1.md``, section 6. What it is worth is for ``privguard.watermark.claims.evidence`` to say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from privguard import _canon
from privguard.attest.log import Extract
from privguard.attest.statement import Identity
from privguard.errors import TamperedError
from privguard.watermark.claims.challenge import Answer, ChallengePlan, Transcript
from privguard.watermark.claims.commitment import Commitment
from privguard.watermark.claims.leaf import Opening
from privguard.watermark.model.weights import Reading


@final
@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the verifier saw: answers to queries, readings of weights by mark, and controls.

    ``controls`` are the matches of models that are certainly not stolen, on the same triggers: {name: {mark: matches}}.
    """

    transcript: Transcript
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])
    controls: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])


def write(
    commitment: Commitment,
    plan: ChallengePlan,
    openings: Sequence[Opening],
    findings: Findings,
    *,
    extract: Extract | None,
    verifier: Identity,
) -> dict[str, Any]:
    """The predicate of a signed statement of evidence."""
    return {
        "commitment": commitment.to_json(),
        "plan": _canon.to_json(plan),
        "openings": [opening.to_json() for opening in openings],
        "findings": _canon.to_json(findings),
        "log": None if extract is None else extract.to_json(),
        "verifier": verifier.to_json(),
    }


def read(value: Mapping[str, Any]) -> tuple[Commitment, ChallengePlan, list[Opening], Findings, Extract | None]:
    """What ``write`` was given, from its predicate.

    Raises:
        TamperedError: a field is missing, or of another type.
    """
    try:
        found = value["findings"]
        lines = tuple(_answer(line) for line in found["transcript"]["answers"])
        readings = {name: _reading(item) for name, item in found["readings"].items()}
        findings = Findings(
            transcript=Transcript(answers=lines, head=str(found["transcript"]["head"])),
            readings=readings,
            controls={
                str(name): {str(mark): _whole(matches) for mark, matches in marks.items()}
                for name, marks in found["controls"].items()
            },
        )
        return (
            Commitment.from_json(value["commitment"]),
            ChallengePlan.from_json(value["plan"]),
            [Opening.from_json(item) for item in value["openings"]],
            findings,
            None if value["log"] is None else Extract.from_json(value["log"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TamperedError(f"evidence: not in the form of claim v1 ({type(error).__name__})") from None


def _answer(value: Mapping[str, Any]) -> Answer:
    line = Answer(**value)
    leaf = (line.mark is None and line.index is None) or (isinstance(line.mark, str) and _whole(line.index) >= 0)
    if not leaf or not _canon.is_digest(line.query) or abs(_whole(line.answer)) >= 2**63:
        raise ValueError("an answer holds a query's digest, a whole number, and a leaf or none")
    return line


def _whole(value: object) -> int:
    if type(value) is not int:  # True counts as an int, and "5" or 5.7 could be made into one
        raise TypeError(f"{value!r}: expected a whole number")
    return value


def _number(value: object) -> float:
    return float(value) if type(value) is float else float(_whole(value))


def _reading(value: Mapping[str, Any]) -> Reading:
    parts: dict[str, Callable[[Any], Any]] = {"indices": _whole, "dots": _number, "squares": _number}
    lists = {name: tuple(kind(item) for item in value[name]) for name, kind in parts.items()}
    return Reading(**lists, unmarked=str(value["unmarked"]), aligned=str(value["aligned"]))
