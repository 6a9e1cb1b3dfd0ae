# SPDX-License-Identifier: Apache-2.0
"""Every exception that privguard raises on purpose.

::

    PrivguardError
    ├── PrivacyError                 the guarantee would not hold
    │   ├── BudgetExceededError      the next step would spend more than the plan or the data set allows
    │   ├── UnknownEventError        an event that no accountant here can price
    │   ├── SensitivityError         one example could move the sum by more than the clipping norm
    │   │   └── InteractionError     examples were found to interact while training; steps released before have no claim
    │   └── ResumeError              a run cannot go on from what was found on disk
    ├── UnsupportedModelError        a module mixes examples, or has no exact per-example gradient
    ├── TamperedError                a ledger, a sealed file, a signature or a record is not what was written
    │   ├── LedgerError              the ledger was truncated, reordered, edited, or is missing
    │   │   ├── NotALedgerError      a file of another kind; also a ValueError
    │   │   └── BookUnavailableError the database of a budget book does not answer; also an OSError
    │   └── UnrecognisedError        a file of another kind, or without its first bytes; also a ValueError
    ├── SealError                    a file cannot be sealed or opened for a reason that is not tampering
    │   ├── NoRecipientError         sealing for nobody
    │   ├── NotAKeyError             a file that holds no key; also a ValueError
    │   ├── RollbackError            an older snapshot stands where a newer one is wanted
    │   └── PlainCheckpointError     a file in clear stands where a sealed one is expected
    ├── MarkError                    a watermark cannot be written or read as asked
    │   ├── ProfileMismatchError     writer and detector do not speak of the same mark
    │   └── ProtocolInvalidError     a claim whose order of commitment, timestamp and beacon does not hold
    └── AuditError                   a design that could not show anything, or guesses that were not decided beforehand

A bad argument is a ``ValueError`` or ``TypeError`` of Python's own; the tree is for refusals. What is both, such as
a file of another kind where a ledger is expected, is most likely a mistyped name. Every message says the name, the
value, what was wanted and what to do. Secrets never appear in a message.
"""


class PrivguardError(Exception):
    """Base of every refusal of privguard; catch it to catch them all."""


class PrivacyError(PrivguardError):
    """The privacy guarantee would not hold if this went on."""


class BudgetExceededError(PrivacyError):
    """The next step would spend more than the plan or the data set allows."""


class UnknownEventError(PrivacyError):
    """A privacy event that no accountant here can price."""


class SensitivityError(PrivacyError):
    """One example could move the clipped sum by more than the clipping norm."""


class InteractionError(SensitivityError):
    """Examples were found to interact in a batch of the training; what was released before rests on no bound."""


class ResumeError(PrivacyError):
    """A run cannot go on from what was found on disk."""


class UnsupportedModelError(PrivguardError):
    """A module mixes examples, or has no exact per-example gradient."""


class TamperedError(PrivguardError):
    """What was read is not what was written; nothing of it was released."""


class LedgerError(TamperedError):
    """The ledger was truncated, reordered or edited, or is missing."""


class NotALedgerError(LedgerError, ValueError):
    """A file whose first line does not open a ledger: another file, most likely, and nothing that was tampered with."""


class BookUnavailableError(LedgerError, OSError):
    """The database of a budget book does not answer; what was asked may be asked again."""


class UnrecognisedError(TamperedError, ValueError):
    """A file that does not begin as its kind does: another file, or one whose first bytes were destroyed."""


class SealError(PrivguardError):
    """A file cannot be sealed or opened for a reason that is not tampering."""


class NoRecipientError(SealError):
    """Sealing without any recipient would lose the data for good."""


class NotAKeyError(SealError, ValueError):
    """A file that holds no key or recipient of privguard."""


class RollbackError(SealError):
    """An older snapshot stands where a newer one is wanted."""


class PlainCheckpointError(SealError):
    """A checkpoint in clear stands where a sealed one is expected."""


class MarkError(PrivguardError):
    """A watermark cannot be written or read as asked."""


class ProfileMismatchError(MarkError):
    """Writer and detector of a mark do not share one profile."""


class ProtocolInvalidError(MarkError):
    """The order commitment, timestamp, beacon, embedding does not hold, so no verdict may be given."""


class AuditError(PrivguardError):
    """An audit whose design could not show anything, or whose guesses were not decided beforehand."""
