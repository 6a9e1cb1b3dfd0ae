# SPDX-License-Identifier: Apache-2.0
"""Classifiers of transformers, from a folder as ``save_pretrained`` writes it, as modules that an audit can ask."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from privguard import _check

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"


@final
class Pretrained(nn.Module):
    """A classifier of tokens (n, T) or pixels (n, channels, height, width) by what its inputs are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Any:
        """The network's output; padding tokens are masked.

        Args:
            inputs: token ids (n, T), or pixels (n, channels, height, width).
        """
        if inputs.is_floating_point():
            return self.network(pixel_values=inputs)
        padding = getattr(self.network.config, "pad_token_id", None)
        mask = torch.ones_like(inputs) if padding is None else (inputs != padding).long()
        return self.network(input_ids=inputs, attention_mask=mask)


def load(folder: Path, *, base: Path | None = None) -> Pretrained:
    """The classifier in a folder, or the adapter there on its ``base``; nothing is fetched and no pickle read.

    Args:
        folder: as ``save_pretrained`` writes it.
        base: the folder of an adapter's base; None takes the one that the adapter names.

    Raises:
        ValueError: the folder holds no classifier, or an adapter whose base is not at hand.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return Pretrained(_adapted(folder, base, _plain))
    _check.require((folder / CONFIG).is_file(), "folder", str(folder), wanted=f"{CONFIG}, as save_pretrained writes it")
    return Pretrained(_plain(folder))


def class_of(config: dict[str, Any]) -> Any:
    """The class of transformers that a config names.

    Args:
        config: the fields of ``config.json``.

    Raises:
        ValueError: where it is none that classifies.
    """
    import transformers

    names = config.get("architectures") or [""]
    fitting = names[0].endswith(("Classification", "ClassificationWithTeacher"))
    _check.require(
        fitting and hasattr(transformers, names[0]),
        "architectures",
        names,
        wanted="a classifier of transformers",
        remedy="for a language model use privguard audit text",
    )
    return getattr(transformers, names[0])


def _plain(folder: Path) -> nn.Module:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return class_of(config).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: expected a model of transformers; {str(error).splitlines()[0]}") from None


def _adapted(folder: Path, base: Path | None, load: Callable[[Path], nn.Module]) -> nn.Module:
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder}: reading an adapter needs peft; pip install peft") from error
    place = base or base_of(folder)
    here = place is not None and (place / CONFIG).is_file()
    _check.require(here, "base", str(place), wanted="the adapter's base folder", remedy="name it with --base")
    return PeftModel.from_pretrained(load(cast("Path", place)), str(folder), local_files_only=True)


def load_language(folder: Path, *, base: Path | None = None) -> nn.Module:
    """The causal language model in a folder, or the adapter there on its ``base``.

    Args:
        folder: as ``save_pretrained`` writes it.
        base: the folder of an adapter's base; None takes the one that the adapter names.

    Raises:
        ValueError: the folder holds none, or an adapter whose base is not at hand.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapted(folder, base, _causal)
    _check.require((folder / CONFIG).is_file(), "folder", str(folder), wanted=f"{CONFIG}, as save_pretrained writes it")
    return _causal(folder)


def base_of(folder: Path) -> Path | None:
    """The base that an adapter's folder names, where it is a folder here.

    Args:
        folder: of the adapter.
    """
    config = folder / ADAPTER_CONFIG
    if not config.is_file():
        return None
    named = Path(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    return named if (named / CONFIG).is_file() else None


def _causal(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: expected a causal language model; {str(error).splitlines()[0]}") from None


def load_tokenizer(folder: Path, base: Path | None = None) -> Any:
    """The tokenizer in a folder, or in that of the base where an adapter has none.

    Args:
        folder: of the model or adapter.
        base: the folder of the adapter's base.

    Raises:
        ValueError: there is none in either.
    """
    from transformers import AutoTokenizer

    for place in (folder, base):
        if place is not None and (place / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(place, local_files_only=True)
    raise ValueError(f"{folder}: expected a tokenizer beside the model, as its save_pretrained writes it")
