# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers of transformers, to and from sealed folders without a copy in clear.

model = from_pretrained(AutoModelForCausalLM, "llama.sealed", key=Key.read("team.key"))
"""

import json
import warnings
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.auto_factory import _get_model_class

from privguard.checkpoint.content import model_files
from privguard.checkpoint.keys.key import Key
from privguard.checkpoint.opened import Sealed
from privguard.errors import SealError
from privguard.integrations.sealed.state import WEIGHTS, read_tensors

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def from_pretrained(model_class: Any, path: str | Path, *, key: Key, variant: str | None = None, **loading: Any) -> Any:
    """The model in a sealed folder: a Trainer's checkpoint, or any folder of transformers that was sealed.

    ``model_class`` is a class of transformers, such as ``AutoModelForCausalLM``. The weights have the types in which
    they were saved, unless ``dtype`` is given; that, ``device_map``, ``quantization_config`` and whatever else the
    class's own ``from_pretrained`` takes go there. ``variant`` chooses among copies, as there.

    Args:
        model_class: a class of transformers with ``from_pretrained``.
        path: the sealed folder.
        key: what opens it.
        variant: which copy of the weights; None for the plain one.
        **loading: what the class's own ``from_pretrained`` takes besides.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        SealError: the folder holds no model of transformers.
    """
    with Sealed(path, key) as sealed:
        if CONFIG not in sealed.names():
            raise SealError(f"{path}: expected a member {CONFIG}; this is no model of transformers")
        facts = json.loads(sealed.read(CONFIG))
        config = AutoConfig.for_model(facts.pop("model_type"), **facts)
        weights = _weights(sealed, variant=variant)
        if (choices := getattr(model_class, "_model_mapping", None)) is not None:  # an Auto class wants a path
            model_class = _get_model_class(config, choices)
        model = model_class.from_pretrained(
            None, config=config, state_dict=weights, **{"dtype": config.dtype, **loading}
        )
        if GENERATION_CONFIG in sealed.names():
            model.generation_config = GenerationConfig.from_dict(json.loads(sealed.read(GENERATION_CONFIG)))
    return model


def load_tokenizer(path: str | Path, *, key: Key) -> PreTrainedTokenizerFast:
    """The tokenizer in a sealed folder.

    Args:
        path: the sealed folder.
        key: what opens it.

    Raises:
        SealError: there is none.
    """
    from tokenizers import Tokenizer

    with Sealed(path, key) as sealed:
        if TOKENIZER not in sealed.names():
            raise SealError(f"{path}: expected a member {TOKENIZER}; this folder was sealed without a fast tokenizer")
        backend = Tokenizer.from_str(sealed.read(TOKENIZER).decode())
        settings = json.loads(sealed.read(TOKENIZER_CONFIG))
    found = getattr(transformers, str(settings.pop("tokenizer_class", "")), PreTrainedTokenizerFast)
    return found(tokenizer_object=backend, **settings)


def model_parts(model: nn.Module) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Tensor files and texts of a model: for an adapter of peft the adapter alone.

    Args:
        model: a model of torch or transformers.
    """
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        adapter = model.active_adapters[0]  # type: ignore[index,operator] — peft's own attribute
        config = model.peft_config[adapter].to_dict()  # type: ignore[index,operator]
        return {ADAPTER: get_peft_model_state_dict(model)}, {ADAPTER_CONFIG: json.dumps(config, default=_sets)}
    texts = dict[str, str]()
    if hasattr(model, "config") and hasattr(model.config, "to_json_string"):
        texts[CONFIG] = model.config.to_json_string(use_diff=False)  # type: ignore[operator]
    if getattr(model, "generation_config", None) is not None:
        texts[GENERATION_CONFIG] = model.generation_config.to_json_string(use_diff=True)  # type: ignore[operator,union-attr]
    return {WEIGHTS: dict(model.state_dict())}, texts


def load_model_parts(model: nn.Module, sealed: Sealed) -> None:
    """Load the tensors of ``model_parts`` into a model of the same shape.

    Args:
        model: a model of torch or transformers.
        sealed: an opened checkpoint.
    """
    if ADAPTER in sealed.names():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, read_tensors(sealed, ADAPTER))
    else:
        model.load_state_dict(_weights(sealed))


def tokenizer_texts(tokenizer: Any) -> dict[str, str]:
    """A fast tokenizer as the two texts that transformers keeps; others are left out, with a warning.

    Args:
        tokenizer: a tokenizer of transformers.
    """
    if tokenizer is None:
        return {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        warnings.warn(f"{type(tokenizer).__name__}: only fast tokenizers are sealed with a checkpoint", stacklevel=2)
        return {}
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if _is_json(value)}
    settings |= {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    settings |= {"model_max_length": tokenizer.model_max_length, "tokenizer_class": type(tokenizer).__name__}
    settings.pop("tokenizer_file", None)
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        settings["chat_template"] = tokenizer.chat_template
    return {TOKENIZER: backend.to_str(), TOKENIZER_CONFIG: json.dumps(settings)}


def _weights(sealed: Sealed, *, variant: str | None = None) -> dict[str, Tensor]:
    """All tensors of the model, from the members that transformers would load."""
    names = [name for name in model_files.tensor_members(sealed, variant=variant) if not name.startswith("adapter_")]
    files = {name: read_tensors(sealed, name) for name in names}
    model_files.require_one_home(sealed.path, files)
    if not files:
        raise SealError(f"{sealed.path}: expected safetensors of a model and found none")
    return {name: tensor for file in files.values() for name, tensor in file.items()}


def _sets(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
