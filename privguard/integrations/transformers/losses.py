# SPDX-License-Identifier: Apache-2.0
"""One loss for each example, from the logits of each kind of head in transformers.

The loss that a transformers model returns is a mean over all tokens of the batch, so one long example changes the
weight of every other one's gradient: removing it moves the clipped sum by more than C (2.02 C was measured). Here every
example's loss is the mean over its *own* labels, the value that the model itself returns for a batch of that example
alone. An example without any label has loss zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from privguard.errors import UnsupportedModelError
from privguard.runs.driver import Batch, Head, PerExampleLoss
from privguard.training.probes.fields import Field, Structure

CHOICES = 2  # of a synthetic question
_TOKENS = 6  # of a synthetic text
_IGNORED = -100


def head_of(model: nn.Module, *, label_smoothing: float = 0.0, record: Structure | None = None) -> Head:
    """What is to be known about a transformers model, by the name of its class.

    ``label_smoothing`` is the share of the target's mass that is spread evenly over all classes. ``record`` is the
    structure of a collated record, from which the shapes of sounds and videos are taken; a configuration lacks them.

    Raises:
        UnsupportedModelError: the head is not known; the message names the way out.
    """
    inner = cast("Any", bare(model))
    name = type(inner).__name__
    for ending, (make, labels) in _HEADS.items():
        if name.endswith(ending):
            choices = ending == "ForMultipleChoice"
            structure = {**_inputs(inner, record, choices=choices), **labels(inner.config)}
            if ending == "ForCTC" and isinstance(record, Mapping) and isinstance(record.get("labels"), Field):
                structure["labels"] = replace(structure["labels"], shape=record["labels"].shape)
            return Head(make(inner, label_smoothing), structure, choices)
    for ending, reason in _COUPLED_HEADS.items():
        if name.endswith(ending):
            raise UnsupportedModelError(f"model={name}: {reason}")
    raise UnsupportedModelError(
        f"model={name}: no per-example loss is known for its head; pass per_example_loss, a function of "
        "(outputs, batch) that returns one loss for each example"
    )


def known_head(model: nn.Module) -> Head | None:
    """The head of ``head_of``; None where it is not known."""
    try:
        return head_of(model)
    except UnsupportedModelError:
        return None


def inputs_for(model: nn.Module, batch: Batch, *, labels: list[str]) -> dict[str, Any]:
    """What goes forward: the batch without its labels, with the decoder's inputs made from them where it has one."""
    inputs = {name: value for name, value in batch.items() if name not in labels}
    inner = cast("Any", bare(model))
    if "labels" in batch and "decoder_input_ids" not in inputs and _is_sequence_to_sequence(inner):
        inputs["decoder_input_ids"] = inner.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    return inputs


def bare(model: nn.Module) -> nn.Module:
    """The transformers model inside peft's wrapper."""
    inner = getattr(model, "get_base_model", None)
    return cast("nn.Module", inner()) if callable(inner) else model


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
    """Causal language modelling: the logits of each token predict the token after it."""

    def losses(outputs: Any, batch: Batch) -> Tensor:
        logits = _logits(outputs)
        return _cross_entropy(logits[:, :-1], _aligned(batch["labels"], logits)[:, 1:], smoothing)

    return losses


def _choice(_: nn.Module, smoothing: float) -> PerExampleLoss:
    """Multiple choice: logits (B, choices), and labels (B,) that number the right one."""
    return lambda outputs, batch: _cross_entropy(_logits(outputs), batch["labels"].reshape(-1), smoothing)


def _span(_: nn.Module, smoothing: float) -> PerExampleLoss:
    """Where an answer starts and ends, among the example's own tokens: padding takes no part in the softmax.

    In transformers it does, so there the longest example of a batch changes the loss of all the others. Positions past
    the end of the text are ignored.
    """

    def losses(outputs: Any, batch: Batch) -> Tensor:
        own = batch.get("attention_mask")

        def one(logits: Tensor, places: Tensor) -> Tensor:
            mask = torch.ones_like(logits, dtype=torch.bool) if own is None else own.bool()
            places = places.reshape(len(logits), 1)
            inside = (places >= 0) & (places < logits.shape[1])
            inside &= mask.gather(1, places.clamp(0, logits.shape[1] - 1))
            shut = torch.finfo(torch.float32).min
            return _cross_entropy(
                logits.float().masked_fill(~mask, shut), places.masked_fill(~inside, _IGNORED)[:, 0], smoothing
            )

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
    """Text in, text out; models that generate from sound mask their labels in ways of their own.

    Some classes of this name are decoders, which see text and perhaps images: each token predicts the one after it.
    """
    if type(model).__name__ in _decoders():
        return _next_token(model, smoothing)
    if not _is_sequence_to_sequence(model):
        raise UnsupportedModelError(
            f"model={type(model).__name__}: no per-example loss is known for its head; pass per_example_loss"
        )
    return _tokens(model, smoothing)


def _decoders() -> frozenset[str]:
    """The classes that transformers maps to causal language modelling, of text or of text and images."""
    names = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    found = (value for mapping in names for value in mapping.values())
    return frozenset(name for value in found for name in ([value] if isinstance(value, str) else value))


def _ctc(model: nn.Module, _: float) -> PerExampleLoss:
    """Connectionist temporal classification: the mean over an example's own labels, or their sum, as configured."""
    config, lengths = cast("Any", model).config, cast("Any", model)._get_feat_extract_output_lengths  # noqa: SLF001

    def losses(outputs: Any, batch: Batch) -> Tensor:
        logits, labels = _logits(outputs), batch["labels"]
        mask = batch.get("attention_mask")
        frames = torch.full((len(logits),), logits.shape[1], device=logits.device)
        frames = frames if mask is None else lengths(mask.sum(-1)).to(torch.long)
        targets = (labels >= 0).sum(-1)
        each = functional.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            labels.clamp(min=0),
            frames,
            targets,
            blank=config.pad_token_id,
            reduction="none",
            zero_infinity=config.ctc_zero_infinity,
        )
        return each / targets.clamp(min=1) if config.ctc_loss_reduction == "mean" else each

    return losses


def _ctc_labels(config: Any) -> dict[str, Structure]:
    return {"labels": Field((2,), torch.long, top=config.vocab_size)}


def _inputs(model: Any, record: Structure | None, *, choices: bool) -> dict[str, Structure]:
    """The main input of a model, as its configuration or a record describes it."""
    config, main = model.config, model.main_input_name
    if main not in {"input_ids", "pixel_values"} or hasattr(config, "num_frames") or not _says_shape(config, main):
        field = record.get(main) if isinstance(record, Mapping) else None
        return {} if field is None else {main: field}
    if main == "pixel_values":
        sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        return {"pixel_values": Field((config.num_channels, *sides), torch.float32)}
    shape = (CHOICES, _TOKENS) if choices else (_TOKENS,)
    return {"input_ids": Field(shape, torch.long, top=_text_top(config))}


def _says_shape(config: Any, main: str) -> bool:
    return main == "input_ids" or hasattr(config, "image_size")


def _text_top(config: Any) -> int:
    """One more than the largest id of plain text: ids that stand for images and sounds want those beside them."""
    size = config.get_text_config().vocab_size
    ids = [getattr(config, f"{kind}_token_{name}", None) for kind in _BESIDE_TEXT for name in ("id", "index")]
    return min([size, *(number for number in ids if isinstance(number, int) and number > 1)])


def _class_labels(config: Any) -> dict[str, Structure]:
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    if problem == "single_label_classification":
        return {"labels": Field((), torch.long, top=config.num_labels)}
    return {"labels": Field((config.num_labels,), torch.float32)}


def _token_labels(config: Any) -> dict[str, Structure]:
    return {"labels": Field((_TOKENS,), torch.long, top=config.num_labels, ignore=_IGNORED)}


def _text_labels(config: Any) -> dict[str, Structure]:
    return {"labels": Field((_TOKENS,), torch.long, top=_text_top(config), ignore=_IGNORED)}


def _choice_labels(_: Any) -> dict[str, Structure]:
    return {"labels": Field((), torch.long, top=CHOICES)}


def _span_labels(_: Any) -> dict[str, Structure]:
    return {name: Field((), torch.long, top=_TOKENS) for name in ("start_positions", "end_positions")}


_Make = Callable[[nn.Module, float], PerExampleLoss]
_BESIDE_TEXT = ("image", "boi", "eoi", "video", "audio", "boa", "eoa")
_BOXES = (
    "its loss matches what it finds to a record's boxes and divides by the number of boxes in the batch, which couples "
    "the examples; pass per_example_loss, a function of (outputs, batch) that divides by a record's own"
)
_COUPLED_HEADS = {"ForObjectDetection": _BOXES, "ForUniversalSegmentation": _BOXES, "ForInstanceSegmentation": _BOXES}
_HEADS: dict[str, tuple[_Make, Callable[[Any], dict[str, Structure]]]] = {
    "ForSequenceClassification": (_sequence, _class_labels),
    "ForImageClassification": (_sequence, _class_labels),
    "ForAudioClassification": (_sequence, _class_labels),
    "ForVideoClassification": (_sequence, _class_labels),
    "ForCTC": (_ctc, _ctc_labels),
    "ForTokenClassification": (_tokens, _token_labels),
    "ForMaskedLM": (_tokens, _text_labels),
    "ForCausalLM": (_next_token, _text_labels),
    "LMHeadModel": (_next_token, _text_labels),
    "WithLMHead": (_next_token, _text_labels),
    "BertGenerationDecoder": (_next_token, _text_labels),
    "ForConditionalGeneration": (_conditional, _text_labels),
    "ForMultipleChoice": (_choice, _choice_labels),
    "ForQuestionAnswering": (_span, _span_labels),
}
