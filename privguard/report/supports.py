# SPDX-License-Identifier: Apache-2.0
"""Which duties of four frameworks the evidence in a report supports, and what it leaves to the organisation.

The table says *supports* and never *complies*: whether a duty is met depends on the organisation, its purpose and its
law, of which a report of one training run knows nothing. Sources: NIST AI RMF 1.0 (AI 100-1, 2023), core tables;
ISO/IEC 42001:2023, Annex A; Regulation (EU) 2016/679 (GDPR); Regulation (EU) 2024/1689 (AI Act).
"""

from dataclasses import dataclass
from typing import final

from privguard.records import Record


@final
@dataclass(frozen=True, kw_only=True)
class Support(Record):
    """One duty: where it stands, what it asks for, which sections of the report support it, and what is left to do."""

    framework: str
    clause: str
    subject: str
    evidence: str
    left: str


_JOURNAL = "access journal"
_RMF, _ISO, _GDPR, _ACT = "NIST AI RMF 1.0", "ISO/IEC 42001:2023", "GDPR", "EU AI Act"
_ROWS = (
    (
        _RMF,
        "MEASURE 2.10",
        "Privacy risk is examined and documented",
        "guarantee, trade-off curve, audits",
        "deciding whether this ε is acceptable for these people and this purpose",
    ),
    (
        _RMF,
        "MEASURE 2.7",
        "Security and resilience are evaluated and documented",
        "sealed checkpoints, access journal, marks",
        "everything that is not training: serving, accounts, supply chain",
    ),
    (
        _RMF,
        "MEASURE 2.13",
        "Effectiveness of the measurements is evaluated",
        "caps and controls of the audits",
        "choosing attacks that match the real adversary",
    ),
    (
        _RMF,
        "MANAGE 1.4",
        "Residual risks are documented",
        "what is not covered, assumptions not checked",
        "accepting, transferring or treating those risks",
    ),
    (
        _ISO,
        "A.6.2.4",
        "Verification and validation of the AI system",
        "audits with verdicts and caps",
        "validation of everything but privacy",
    ),
    (
        _ISO,
        "A.6.2.7",
        "Technical documentation",
        "what was done, software, guarantee",
        "documentation of the rest of the system",
    ),
    (
        _ISO,
        "A.6.2.8",
        "Recording of event logs",
        "ledger head and size, access journal",
        "logs of the system in operation",
    ),
    (
        _ISO,
        "A.7.5",
        "Data provenance",
        "data commitment, unit of privacy",
        "where the data came from and on what ground",
    ),
    (
        _GDPR,
        "Art. 25",
        "Data protection by design and by default",
        "guarantee, and that the loop enforced it step by step",
        "lawful basis, minimisation, and whether the model counts as personal data",
    ),
    (
        _GDPR,
        "Art. 32",
        "Security of processing, with regular testing",
        "encryption of checkpoints, access journal, audits",
        "all other processing of the same data",
    ),
    (
        _GDPR,
        "Art. 35",
        "Data protection impact assessment",
        "attacker's best odds, residual risks, measures taken",
        "the assessment itself: necessity, proportionality, the people's view",
    ),
    (
        _ACT,
        "Art. 10",
        "Data and data governance",
        "data commitment, unit of privacy, assumptions on the records",
        "relevance, representativeness, bias",
    ),
    (
        _ACT,
        "Art. 11 and Annex IV",
        "Technical documentation",
        "what was done, software, guarantee",
        "all other parts of Annex IV",
    ),
    (_ACT, "Art. 12", "Record-keeping", "ledger and access journal", "logs of the system in operation"),
    (
        _ACT,
        "Art. 15",
        "Accuracy, robustness and cybersecurity",
        "attacker's best odds, audits, sealed checkpoints",
        "accuracy and robustness, and attacks other than on privacy and theft",
    ),
)  # fmt: skip — one duty to a row


def table(*, journal: bool) -> tuple[Support, ...]:
    """The rows, grouped by framework; ``journal`` is whether an access journal was at hand."""
    return tuple(
        Support(
            framework=framework,
            clause=clause,
            subject=subject,
            evidence=evidence if journal else evidence.replace(_JOURNAL, f"{_JOURNAL} (none was at hand)"),
            left=left,
        )
        for framework, clause, subject, evidence, left in _ROWS
    )
