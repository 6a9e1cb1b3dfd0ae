"""Which rule serves which module class."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.call import Rule
from privguard.training.bookkeeping.convolution import convolution
from privguard.training.bookkeeping.embedding import embedding
from privguard.training.bookkeeping.linear import conv1d_of_transformers, linear
from privguard.training.bookkeeping.normalisation import group_norm, layer_norm

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    Conv1D: conv1d_of_transformers,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.Conv2d: convolution,
}


def rule_for(name: str, module: nn.Module) -> Rule:
    """The rule of a module that owns trainable parameters, by its exact class: a subclass may do something else."""
    if type(module) not in RULES:
        raise UnsupportedModelError(f"module={name!r} ({type(module).__name__}): no exact per-example rule")
    return RULES[type(module)]
