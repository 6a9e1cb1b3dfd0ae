"""One loss for each example, from the logits of each kind of head in transformers.

The loss that a transformers model returns is a mean over all tokens of the batch, so one long example changes the
weight of every other one's gradient: removing it moves the clipped sum by more than C (2.02 C was measured). Here every
example's loss is the mean over its *own* labels, the value that the model itself returns for a batch of that example
alone. An example without any label has loss zero.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.errors import UnsupportedModelError

Batch: TypeAlias = Mapping[str, Any]
PerExampleLoss: TypeAlias = Callable[[Any, Batch], Tensor]
"""From a model's outputs and its batch to the losses, shape (B,)."""

_IGNORED = -100


def loss_for(model: nn.Module, *, label_smoothing: float = 0.0) -> PerExampleLoss:
    """The per-example loss of a transformers model, chosen by its head.

    ``label_smoothing`` is the share of the target's mass that is spread evenly over all classes.

    Raises:
        UnsupportedModelError: the head is not known; the message names the way out.
    """
    name = type(_bare(model)).__name__
    for ending, make in _HEADS.items():
        if name.endswith(ending):
            return make(_bare(model), label_smoothing)
    raise UnsupportedModelError(
        f"model={name}: no per-example loss is known for its head; pass per_example_loss, a function of "
        "(outputs, batch) that returns one loss for each example"
    )


def inputs_for(model: nn.Module, batch: Batch, *, labels: list[str]) -> dict[str, Any]:
    """What goes forward: the batch without its labels, with the decoder's inputs made from them where it has one."""
    inputs = {name: value for name, value in batch.items() if name not in labels}
    bare = cast("Any", _bare(model))
    if "labels" in batch and "decoder_input_ids" not in inputs and _is_sequence_to_sequence(bare):
        inputs["decoder_input_ids"] = bare.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    return inputs


def _bare(model: nn.Module) -> nn.Module:
    """The transformers model inside peft's wrapper."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def _is_sequence_to_sequence(model: Any) -> bool:
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and hasattr(
        model, "prepare_decoder_input_ids_from_labels"
    )


def _logits(outputs: Any) -> Tensor:
    return (outputs.logits if hasattr(outputs, "logits") else outputs[0]).float()


def _sequence(model: nn.Module, smoothing: float) -> PerExampleLoss:
    """Sequence and image classification, and regression, as ``config.problem_type`` or the labels' dtype say."""
    config = cast("Any", model).config

    def losses(outputs: Any, batch: Batch) -> Tensor:
        logits, labels = _logits(outputs), batch["labels"]
        rows = len(logits)
        match _problem(config, labels):
            case "regression":
                errors = logits.reshape(rows, -1) - labels.reshape(rows, -1).to(logits.dtype)
                return errors.square().mean(1)
            case "multi_label_classification":
                each = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
                return each.mean(1)
            case _:
                return _cross_entropy(logits, labels.reshape(rows), smoothing)

    return losses


def _problem(config: Any, labels: Tensor) -> str:
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    whole = labels.dtype in {torch.long, torch.int}
    return "single_label_classification" if whole else "multi_label_classification"


def _tokens(_: nn.Module, smoothing: float) -> PerExampleLoss:
    """A label beside each token: token classification, masked language modelling, a decoder's targets."""

    def losses(outputs: Any, batch: Batch) -> Tensor:
        logits = _logits(outputs)
        return _cross_entropy(logits, _aligned(batch["labels"], logits), smoothing)

    return losses


def _next_token(_: nn.Module, smoothing: float) -> PerExampleLoss:
    """Each token predicts the one after it."""

    def losses(outputs: Any, batch: Batch) -> Tensor:
        logits = _logits(outputs)
        return _cross_entropy(logits[:, :-1], _aligned(batch["labels"], logits)[:, 1:], smoothing)

    return losses


def _choice(_: nn.Module, smoothing: float) -> PerExampleLoss:
    """One logit for each choice."""
    return lambda outputs, batch: _cross_entropy(_logits(outputs), batch["labels"].reshape(-1), smoothing)


def _span(_: nn.Module, smoothing: float) -> PerExampleLoss:
    """Where an answer starts and ends; positions past the end of the sequence are ignored."""

    def losses(outputs: Any, batch: Batch) -> Tensor:
        def one(logits: Tensor, places: Tensor) -> Tensor:
            places = places.reshape(len(logits)).clamp(min=0)
            places = places.masked_fill(places >= logits.shape[1], _IGNORED)
            return _cross_entropy(logits.float(), places, smoothing)

        start = one(outputs.start_logits, batch["start_positions"])
        return (start + one(outputs.end_logits, batch["end_positions"])) / 2

    return losses


def _aligned(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as long as the logits: soft prompts come first and predict nothing."""
    return functional.pad(labels, (logits.shape[1] - labels.shape[1], 0), value=_IGNORED)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean over each example's own labels: logits (B, …, classes), labels (B, …) → (B,)."""
    rows = len(logits)
    flat = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1).to(logits.device),
        reduction="none",
        ignore_index=_IGNORED,
        label_smoothing=smoothing,
    )
    counts = (labels.reshape(rows, -1) != _IGNORED).sum(1).clamp(min=1)
    return flat.view(rows, -1).sum(1) / counts


def _conditional(model: nn.Module, smoothing: float) -> PerExampleLoss:
    """Text in, text out; models that generate from images or sound mask their labels in ways of their own."""
    if not _is_sequence_to_sequence(model):
        raise UnsupportedModelError(
            f"model={type(model).__name__}: no per-example loss is known for its head; pass per_example_loss"
        )
    return _tokens(model, smoothing)


_HEADS: dict[str, Callable[[nn.Module, float], PerExampleLoss]] = {
    "ForSequenceClassification": _sequence,
    "ForImageClassification": _sequence,
    "ForTokenClassification": _tokens,
    "ForMaskedLM": _tokens,
    "ForCausalLM": _next_token,
    "LMHeadModel": _next_token,
    "ForConditionalGeneration": _conditional,
    "ForMultipleChoice": _choice,
    "ForQuestionAnswering": _span,
}
