# SPDX-License-Identifier: Apache-2.0
"""The structure of batches and state dictionaries: what they are made of, whatever classes hold it.

``torch.utils._pytree`` takes dictionaries, lists, tuples, named tuples and transformers' outputs apart. Added here:
other mappings (``UserDict``, ``BatchEncoding``) and dataclasses. Text is a leaf. What comes back has the classes of
what went in.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, cast

from torch import Tensor
from torch.utils import _pytree as pytree

Whole = Callable[[Any], bool]
"""Which values are leaves although they are containers."""


def named(function: Callable[[Any, str], Any], tree: Any, *, whole: Whole | None = None, name: str = "") -> Any:
    """``tree`` with ``function`` of each leaf and its name in the leaf's place.

    Args:
        function: from a leaf, and the nearest key or field name around it, to what replaces it.
        tree: a leaf or any nesting of containers.
        whole: which values are leaves although they are containers.
        name: of the tree itself.
    """

    def below(value: Any, key: object) -> Any:
        return named(function, value, whole=whole, name=key if isinstance(key, str) else name)

    if whole is not None and whole(tree):
        return function(tree, name)
    if type(tree) not in pytree.SUPPORTED_NODES:
        if isinstance(tree, Mapping):
            return _with_items(tree, {key: below(value, key) for key, value in tree.items()})
        if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
            return _with_fields(tree, {key: below(value, key) for key, value in _fields_of(tree).items()})
    children, spec = pytree.tree_flatten(tree, is_leaf=lambda value: value is not tree)
    if spec.is_leaf():
        return function(tree, name)
    keys = list(tree) if isinstance(tree, Mapping) else getattr(tree, "_fields", range(len(children)))
    return pytree.tree_unflatten([below(child, key) for child, key in zip(children, keys, strict=True)], spec)


def mapped(function: Callable[[Any], Any], tree: Any, *, whole: Whole | None = None) -> Any:
    """``named`` for a function that needs no names."""
    return named(lambda leaf, _: function(leaf), tree, whole=whole)


def tensors_mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """``tree`` with ``function`` of each tensor in its place, and all else as it is."""
    return mapped(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def leaves(tree: Any, *, whole: Whole | None = None) -> list[Any]:
    """The leaves in order; equal structures give equal orders."""
    collected: list[Any] = []
    mapped(collected.append, tree, whole=whole)
    return collected


def tensors(tree: Any) -> list[Tensor]:
    """The tensors among the leaves, in order."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def paired(function: Callable[[Any, Any], Any], tree: Any, other: Any) -> Any:
    """``tree`` with ``function`` of each leaf, and of the one in the same place of ``other``, in its place.

    Raises:
        ValueError: the two are of different structure.
    """
    others = leaves(other)
    if len(leaves(tree)) != len(others):
        raise ValueError(f"leaves={len(others)}: expected {len(leaves(tree))}, those of the other structure")
    following = iter(others)
    return mapped(lambda leaf: function(leaf, next(following)), tree)


def _fields_of(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _with_items(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if not isinstance(value, MutableMapping):
        return items
    changed = copy.copy(value)
    changed.update(items)
    return cast("Any", changed)


def _with_fields(value: Any, fields: dict[str, Any]) -> Any:
    changed = copy.copy(value)
    for name, field in fields.items():
        object.__setattr__(changed, name, field)  # also of a frozen one
    return changed
