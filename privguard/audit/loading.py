# SPDX-License-Identifier: Apache-2.0
"""Files and names that a command line gives: models by ``module:name``, records and designs from files."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from privguard import _check
from privguard.audit.membership import score
from privguard.audit.membership.audit import Examples
from privguard.audit.membership.scores import array, read_scores
from privguard.audit.one_run.design import Bound, Design
from privguard.errors import TamperedError
from privguard.records import Unit


def named(name: str) -> Any:
    """The object that ``module:name`` stands for, with modules of the current folder in reach.

    Raises:
        ValueError: where the name has another form, or nothing is there.
    """
    module, colon, attribute = name.partition(":")
    _check.require(bool(module and colon and attribute), "target", name, wanted="module:name, as in my_model:predict")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"target={name!r}: {error}") from error
    finally:
        sys.path.pop(0)


def model_named(name: str) -> Any:
    """A module, an estimator or a scoring function; a function without arguments is called and its result taken.

    Raises:
        ValueError: where it is none of these.
    """
    import inspect

    target = named(name)
    if isinstance(target, nn.Module) or (not isinstance(target, type) and hasattr(target, "predict")):
        return target
    _check.require(callable(target), name, type(target).__name__, wanted="a module, an estimator or a function")
    try:
        asks = bool(inspect.signature(target).parameters)
    except ValueError:  # built in, and without a signature
        asks = True
    made = isinstance(target, type) or not asks
    _check.require(not (made and asks), name, "a class with arguments", wanted="a function that makes the model")
    return target() if made else target


def examples(path: Path) -> Examples:
    """Records from an ``.npz``, CSV or Parquet file: ``inputs`` (n, ...), ``labels`` (n,) and ``groups`` (n,) if any.

    Whole numbers stay whole, as they may be tokens; all other numbers become float32.
    """
    arrays = read_scores(path)
    inputs, labels = (np.asarray(array(arrays, name, path=path)) for name in ("inputs", "labels"))
    kind = np.int64 if inputs.dtype.kind in "iu" and inputs.dtype.itemsize > 1 else np.float32
    groups = np.asarray(arrays["groups"]) if "groups" in arrays else None
    return Examples(torch.from_numpy(inputs.astype(kind)), torch.from_numpy(labels), groups)


def classes(*sides: Examples) -> int:
    """How many classes the labels of all sides number, from 0.

    Raises:
        ValueError: where a label is no class.
    """
    return int(max(score.class_numbers(None, side.labels.numpy()).max() for side in sides)) + 1


def read_design(path: Path) -> Design:
    """A design as ``to_json`` wrote it.

    Raises:
        TamperedError: where the file is no design.
    """
    try:
        value = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        kind = value.pop("record")
        _check.require(kind == "Design", "record", kind, wanted="Design")
        value["bounds"] = tuple(Bound(name) for name in value["bounds"])
        value["unit"] = Unit(value["unit"])
        return Design(**value)
    except (KeyError, TypeError, ValueError) as error:
        raise TamperedError(f"{path}: not a design; privguard audit plan --out writes one") from error
