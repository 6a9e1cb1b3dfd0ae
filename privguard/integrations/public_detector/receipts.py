# SPDX-License-Identifier: Apache-2.0
"""A signed receipt for each answer: what was asked, by its digest, what was said, and under which profile.

The key is the one that signed the profile, so whoever trusts the profile needs no other. A receipt repeats the coarse
answer and nothing else.
"""

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, final

from privguard.attest import statement
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import TamperedError
from privguard.integrations.public_detector.answers import MEANING, Answer, Reader
from privguard.records import Digest, Record

RECEIPT_TYPE = f"{statement.PREDICATES}mark-receipt/v1"
NOTES = (
    "The answer is about the secret that the profile names: not about truth, authorship or date.",
    "The time is that of the detector's clock, and says nothing about when the content was made.",
)


@final
@dataclass(frozen=True, kw_only=True)
class Receipt(Record):
    """What was answered.

    Attributes:
        number: random, and the same in the detector's journal.
        time: when it was answered, by the detector's clock.
        kind: ``image`` or ``text``.
        answer: what was said.
        meaning: the same in a sentence.
        log10_level: log10 of the probability that content made without the secret is called marked.
        profile: the digest of the profile.
        key_id: the secret's name.
        content: SHA-256 of the content, in hexadecimal.
    """

    number: str
    time: str
    kind: str
    answer: Answer
    meaning: str
    log10_level: float
    profile: str
    key_id: str
    content: str
    notes: tuple[str, ...] = NOTES

    @classmethod
    def of(cls, answer: Answer, content: bytes, reader: Reader) -> "Receipt":
        """The receipt of an answer, with a fresh number and the time.

        Args:
            answer: what the reader said.
            content: of this content.
            reader: who said it.
        """
        return cls(
            number=os.urandom(16).hex(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            kind=reader.kind,
            answer=answer,
            meaning=MEANING[answer],
            log10_level=reader.log10_level,
            profile=reader.profile.digest(),
            key_id=reader.profile.key_id,
            content=hashlib.sha256(content).hexdigest(),
        )

    def signed(self, by: SigningKey) -> Envelope:
        """The receipt in a signed envelope, its subject the content.

        Args:
            by: the key that signed the profile.
        """
        subject = Digest(name="content", sha256=self.content)
        return statement.sign(
            Statement(subjects=(subject,), predicate_type=RECEIPT_TYPE, predicate=self.to_json()), by=by
        )


def check(envelope: Envelope, content: bytes, *, by: Identity) -> Receipt:
    """The receipt in an envelope, once it is certain that ``by`` signed it and that it is about this content.

    Args:
        envelope: the signed receipt.
        content: the bytes that were asked about.
        by: who signed the profile.

    Raises:
        TamperedError: not signed by that identity, no receipt, or one of other content.
    """
    told = statement.verify(envelope, by=by)
    if told.predicate_type != RECEIPT_TYPE:
        raise TamperedError(f"receipt: a signed {told.predicate_type}, expected {RECEIPT_TYPE}")
    try:
        facts: dict[str, Any] = {key: value for key, value in told.predicate.items() if key != "record"}
        facts |= {"answer": Answer(facts["answer"]), "notes": tuple(facts["notes"])}
        receipt = Receipt(**facts)
    except (KeyError, TypeError, ValueError) as error:
        raise TamperedError(f"receipt: signed, but not of this form ({error})") from None
    digest = hashlib.sha256(content).hexdigest()
    if receipt.content != digest or [subject.sha256 for subject in told.subjects] != [digest]:
        raise TamperedError(
            f"content={digest}: the receipt is about {receipt.content}; give the very bytes asked about"
        )
    return receipt
