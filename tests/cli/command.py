# SPDX-License-Identifier: Apache-2.0
"""A command as ``main`` runs it, in this process: exit code and all."""

import sys

import pytest

from privguard.cli import main


def privguard(*arguments: str, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["privguard", *arguments])
        main()
        raise SystemExit(0)
    assert (end.value.code or 0) == code
