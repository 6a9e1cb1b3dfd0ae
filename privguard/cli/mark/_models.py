# SPDX-License-Identifier: Apache-2.0
"""Models as the ``mark`` commands read and write them: a safetensors file, or a folder as transformers writes it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from privguard.watermark.model.lay.structure import Structure

_HINTS = {
    ".bin": "convert it to safetensors, as transformers' save_pretrained does",
    ".pt": "save its state with safetensors.torch.save_file",
    ".pth": "save its state with safetensors.torch.save_file",
    ".gguf": "convert it to safetensors first",
    ".onnx": "export its tensors to safetensors first",
    ".sealed": "open it first: privguard open",
}


def tensors(path: Path) -> "dict[str, NDArray[Any]]":
    """The tensors of a model's file or folder as float32.

    Raises:
        ValueError: there is no model in safetensors, or it is an adapter without its base.
    """
    import numpy as np

    return {name: np.asarray(value.float().numpy()) for name, value in _read(path).items()}


def write(state: "dict[str, NDArray[Any]]", path: Path, *, like: Path) -> None:
    """Write tensors to one safetensors file, each in the number format that the model ``like`` has it in."""
    import safetensors.torch
    import torch

    formats = {name: value.dtype for name, value in _read(like).items()}
    plain = {name: torch.from_numpy(value).to(formats[name]).contiguous() for name, value in state.items()}
    safetensors.torch.save_file(plain, path, metadata={"format": "pt"})


def structure(path: Path, state: "dict[str, NDArray[Any]]") -> "Structure | None":
    """What the transformer in a folder (or beside a file) is made of; ``None`` where no config.json names a known one.

    Raises:
        ValueError: the configuration names a family that is known, and tensors that are not its own.
    """
    import numpy as np

    from privguard.watermark.model.lay import structure as structures

    place = (path if path.is_dir() else path.parent) / "config.json"
    config = _json(place) if place.exists() else {}
    if config.get("model_type") not in structures.FAMILIES:
        return None
    shapes = {name: value.shape for name, value in state.items()}
    found = structures.of_model(shapes, config)
    embedded = next((part.tensor for part in found.parts if part.role == "embed"), "")
    tied = [
        part.tensor
        for part in found.parts
        if part.role == "head" and np.array_equal(state[part.tensor], state[embedded])
    ]
    return structures.of_model({name: shape for name, shape in shapes.items() if name not in tied}, config)


def _read(path: Path) -> "dict[str, torch.Tensor]":
    import safetensors.torch
    from safetensors import SafetensorError

    found: dict[str, torch.Tensor] = {}
    for file in _members(path) if path.is_dir() else [path]:
        try:
            found |= safetensors.torch.load_file(file)  # of torch, because numpy has no bfloat16
        except (SafetensorError, ValueError) as error:
            hint = _HINTS.get(file.suffix)
            said = f"{file}: expected a model in safetensors; {error}"
            raise ValueError(f"{said}; {hint}" if hint else said) from None
    return found


def _members(folder: Path) -> list[Path]:
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder}: is an adapter; merge it into its base first, as peft's merge_and_unload does")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():  # transformers looks for the single file first
        return [folder / "model.safetensors"]
    if not index.exists():
        raise IsADirectoryError(f"{folder}: is a folder without model.safetensors; name the safetensors file in it")
    shards = sorted({str(name) for name in _json(index).get("weight_map", {}).values()})
    outside = [name for name in shards if Path(name).name != name or not (folder / name).exists()]
    if outside or not shards:
        raise ValueError(f"{index}: names {outside[:1] or 'no shards'}; expected files of {folder}")
    return [folder / name for name in shards]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON; {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected one JSON object")  # noqa: TRY004 — the file is wrong, not its type
    return found
