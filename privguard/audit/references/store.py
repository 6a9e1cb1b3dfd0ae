# SPDX-License-Identifier: Apache-2.0
"""Where finished reference models are kept: in memory, or in a folder from which an interrupted training goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file, save_file
from torch import Tensor

from privguard import _canon
from privguard.errors import AuditError


@final
class ReferenceStore:
    """Finished groups of models, each group whole; a group is the range of the models' numbers.

    Without a folder they stay in memory. A folder holds one safetensors file for each group, and belongs to one set of
    ``settings``: a second training goes on with it only under the same ones.

    Raises:
        AuditError: the folder holds references of other settings.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._kept: dict[int, list[dict[str, Tensor]]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _pin(folder / "references.json", settings)

    def has(self, group: range) -> bool:
        """Whether a folder holds this group, so that it need not be trained again."""
        return self._folder is not None and self._path(group).exists()

    def write(self, group: range, states: list[dict[str, Tensor]]) -> None:
        """Keep the state dictionaries of a group, in the order of its numbers."""
        if self._folder is None:
            self._kept[group.start] = states
            return
        flat = {f"{i}/{name}": value for i, state in enumerate(states) for name, value in state.items()}
        _replace(self._path(group), lambda part: save_file(flat, part))

    def read(self, group: range) -> list[dict[str, Tensor]]:
        """The state dictionaries of a group, in the order of its numbers.

        Raises:
            AuditError: another process was to train the group and has not yet.
        """
        if self._folder is None:
            return self._kept.get(group.start, [])
        if not self.has(group):
            raise AuditError(f"{self._path(group)}: not trained yet; run the other shares, then this one again")
        states: list[dict[str, Tensor]] = [{} for _ in group]
        for name, value in load_file(self._path(group)).items():
            number, _, rest = name.partition("/")
            states[int(number)][rest] = value
        return states

    def _path(self, group: range) -> Path:
        return (self._folder or Path()) / f"references-{group.start:05d}.safetensors"


def _pin(path: Path, settings: dict[str, Any]) -> None:
    """Write down what the folder's references are trained with, or refuse other settings than are written there."""
    if not path.exists():
        _replace(path, lambda part: part.write_bytes(_canon.canonical(settings)))
    elif json.loads(path.read_bytes()) != settings:
        raise AuditError(f"{path}: these references were trained with other settings; choose an empty folder")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path`` and move into place, so that a killed run leaves no half file under the name."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)
