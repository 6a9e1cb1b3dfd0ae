# SPDX-License-Identifier: Apache-2.0
"""Which version of a data set lies at a path, as the team's data versioning wrote it down beside the data.

DVC keeps ``NAME.dvc`` with the MD5 of what it stored; ``lakectl local`` keeps ``.lakefs_ref.yaml`` with the lakeFS
address and commit. Both are YAML of single lines, and only those lines are read. An identifier says where a data set
came from; what it *is* remains the SHA-256 of its content.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

_OUT = re.compile(r"^\s*(?:-\s+)?md5:\s*([0-9a-f]{32}(?:\.dir)?)\s*$", re.MULTILINE)
_LAKEFS = {name: re.compile(rf"^{name}:\s*[\"']?([^\s\"']+)[\"']?\s*$", re.MULTILINE) for name in ("src", "at_head")}


@final
@dataclass(frozen=True)
class Lineage:
    """Where a data set comes from, and its version there; empty where nothing beside it says so."""

    source: str = ""
    version: str = ""

    @classmethod
    def beside(cls, path: Path) -> "Lineage":
        """What DVC or lakeFS say about the file or folder at ``path``.

        Args:
            path: a data file or folder.
        """
        return _dvc(path) or _lakefs(path) or cls()


def _dvc(path: Path) -> Lineage | None:
    note = path.with_name(path.name + ".dvc")
    if not note.is_file():
        return None
    _, _, outs = note.read_text(encoding="utf-8").partition("outs:")
    found = _OUT.search(outs)
    return None if found is None else Lineage(source=note.name, version=f"dvc:{found[1]}")


def _lakefs(path: Path) -> Lineage | None:
    for folder in (path, *path.resolve().parents):
        if (note := folder / ".lakefs_ref.yaml").is_file():
            text = note.read_text(encoding="utf-8")
            source, head = (pattern.search(text) for pattern in (_LAKEFS["src"], _LAKEFS["at_head"]))
            return Lineage(source=source[1], version=f"lakefs:{head[1]}") if source and head else None
    return None
