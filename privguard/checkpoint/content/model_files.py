# SPDX-License-Identifier: Apache-2.0
"""Which tensor files of a model's folder count, as transformers decides it: the index, the variant, the plain name.

A folder can hold the same model several times over: in shards, in one file, as ``model.fp16.safetensors``. Taking
whatever is there would load one copy over the other without a word.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from privguard.errors import SealError, TamperedError


class Members(Protocol):
    """An opened file or folder: ``privguard.checkpoint.opened.Sealed``."""

    path: Path

    def names(self) -> list[str]: ...  # noqa: D102
    def read(self, name: str) -> bytearray: ...  # noqa: D102


def tensor_members(sealed: Members, *, variant: str | None = None, stem: str = "model") -> list[str]:
    """The members whose tensors are the model's; every tensor file but a state's where it is no model's folder.

    ``variant`` is the word between the name and its ending, as in ``model.fp16.safetensors``.

    Raises:
        SealError: the variant is not there.
        TamperedError: the index is not what transformers writes, or names a shard that is not there.
    """
    names = sealed.names()
    infix = f".{variant}" if variant else ""
    whole, index = f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"
    if whole in names:  # transformers looks for the single file first
        return [whole]
    if index in names:
        return _shards_of(sealed, index)
    if variant:
        raise SealError(f"variant={variant!r}: expected {whole} or {index} in {sealed.path}; name one that is there")
    return [name for name in names if name.endswith(".safetensors") and not name.startswith("state.")]


def require_one_home(path: Path, files: Mapping[str, Collection[str]]) -> None:
    """Return when no two members hold a tensor of one name.

    Raises:
        SealError: two do; the message names them.
    """
    homes = dict[str, str]()
    for member, tensors in files.items():
        for tensor in tensors:
            if homes.setdefault(tensor, member) != member:
                raise SealError(
                    f"{path}: {homes[tensor]} and {member} both hold {tensor!r}, and no index says which counts; "
                    "read one of them by its name"
                )


def _shards_of(sealed: Members, index: str) -> list[str]:
    try:
        listed = json.loads(sealed.read(index))["weight_map"]
        shards = sorted({str(name) for name in listed.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TamperedError(f"{sealed.path}: {index} is not an index of shards") from None
    absent = [name for name in shards if name not in sealed.names()]
    if absent:
        raise TamperedError(f"{sealed.path}: {index} names {absent[0]}, which is not there; the model is not whole")
    return shards
