# SPDX-License-Identifier: Apache-2.0
"""How commands keep the access journal: where the environment names one, strictly."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def recorded() -> Generator[None]:
    """Write to the journal that PRIVGUARD_JOURNAL names, signed by the key in PRIVGUARD_JOURNAL_KEY; strictly.

    Without the first of them nothing is recorded.

    Raises:
        ValueError: a journal without a signing key.
        OSError: the journal or the key cannot be opened; what was to be recorded does not happen.
    """
    place, signer = os.environ.get("PRIVGUARD_JOURNAL"), os.environ.get("PRIVGUARD_JOURNAL_KEY")
    if not place:
        yield
        return
    from privguard.attest.journal import Journal, recorded_in
    from privguard.attest.statement import SigningKey

    if not signer:
        raise ValueError(
            "PRIVGUARD_JOURNAL_KEY='': expected a signing key file; `privguard key new --signing` makes one"
        )
    with recorded_in(Journal(place, by=SigningKey.read(Path(signer)))):
        yield
