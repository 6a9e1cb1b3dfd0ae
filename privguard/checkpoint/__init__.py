# SPDX-License-Identifier: Apache-2.0
"""Ledger and weights → sealed file → back.

::

    key = Key.generate()
    key.write("team.key")
    save(snapshot, "run.sealed", to=[key.recipient()])
    snapshot = load("run.sealed", Key.read("team.key"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privguard.checkpoint.files import open_into as open_into
    from privguard.checkpoint.files import seal as seal
    from privguard.checkpoint.keys.access import inspect as inspect
    from privguard.checkpoint.keys.access import rewrap as rewrap
    from privguard.checkpoint.keys.key import Key as Key
    from privguard.checkpoint.keys.key import Recipient as Recipient
    from privguard.checkpoint.keys.trust import Trust as Trust
    from privguard.checkpoint.opened import Sealed as Sealed
    from privguard.checkpoint.opened import open_sealed as open_sealed
    from privguard.checkpoint.store import Snapshot as Snapshot
    from privguard.checkpoint.store import load as load
    from privguard.checkpoint.store import save as save

_HOMES = {
    "Key": "keys.key",
    "Recipient": "keys.key",
    "Sealed": "opened",
    "Snapshot": "store",
    "Trust": "keys.trust",
    "inspect": "keys.access",
    "load": "store",
    "open_into": "files",
    "open_sealed": "opened",
    "rewrap": "keys.access",
    "save": "store",
    "seal": "files",
}

__all__ = [
    "Key",
    "Recipient",
    "Sealed",
    "Snapshot",
    "Trust",
    "inspect",
    "load",
    "open_into",
    "open_sealed",
    "rewrap",
    "save",
    "seal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'privguard.checkpoint' has no attribute {name!r}; the names are {', '.join(__all__)}"
        )
    return getattr(import_module(f"privguard.checkpoint.{_HOMES[name]}"), name)
