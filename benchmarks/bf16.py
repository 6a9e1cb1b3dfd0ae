# SPDX-License-Identifier: Apache-2.0
"""Training in bfloat16 through PrivateTrainer: one backward pass, near float32, and a thousandth of a mix refused.

python -m benchmarks.bf16                       twelve models × three precisions × full, LoRA; minutes
python -m benchmarks.bf16 --model Llama         only these; no result is replaced

Each cell takes one step of ``PrivateTrainer`` without noise. Its clipped sum is compared with the same records one at a
time in float32, from the weights as they are after rounding: distance over the root of the sum of the squares of the
clipped gradients, which is how the probe measures (``largest_change``). The same distance for ordinary backward passes,
one record at a time in the cell's own types, says what bfloat16 itself costs; ours may be farther by bfloat16's unit
roundoff, since an ordinary pass rounds each gradient once more and its norm differs by as much.

Then a thousandth of another record is added to each record's embedding, and in another run to its logits, and the run
has to be refused before its first step. A mix that never ran is an error: it would be counted as one that was missed.
"""

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.bf16_models import TINY, Record, Tiny, padded
from privguard import PrivateTrainer
from privguard.checkpoint.keys.key import Key
from privguard.errors import PrivguardError, SensitivityError
from privguard.runs.options import RunOptions
from privguard.training.bookkeeping.bookkeeper import BookKeeper
from privguard.training.clip import ClippedSum
from privguard.training.plan import Plan

RESULTS = Path(__file__).parent / "results"
RECORDS, MIX = 6, 1e-3
FARTHER = {"float32": 1e-5, "bf16 autocast": 2**-8, "bf16 weights": 2**-8}
"""By how much our distance from float32 may exceed that of ordinary passes: what the probe allows, unit roundoff."""
FOUR_PLACES = 4 * 2**-7  # four units in bfloat16's last place, which many ordinary passes exceed as well
PLACES = ("embedding", "logits")


@final
@dataclass(frozen=True)
class Cell:
    """One of the model's trainings.

    Attributes:
        tiny: the model.
        precision: a key of ``FARTHER``.
        lora: whether all but adapters of every linear layer is frozen.
    """

    tiny: Tiny
    precision: str
    lora: bool

    def model(self, seed: int) -> nn.Module:
        model = self.tiny.build(seed=seed)
        model = model.to(torch.bfloat16) if self.precision == "bf16 weights" else model
        return adapted(model, task=self.tiny.task) if self.lora else model

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16 autocast")


def adapted(model: nn.Module, *, task: str | None) -> nn.Module:
    """LoRA of rank 4 in every linear layer, both factors random, so that no gradient is zero."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a config without a name, and of what transformers has renamed
        config = LoraConfig(r=4, target_modules="all-linear", task_type=task, init_lora_weights=False)
        return get_peft_model(model, config)


class Sums(hf.TrainerCallback):
    """Keeps the clipped sum that the trainer's clipper hands over, before noise and grid; and how it was made."""

    trainer: PrivateTrainer

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.clipper = ""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        clipper = self.trainer._private.setup.clipper
        take, self.clipper = clipper.take, type(clipper).__name__

        def kept() -> ClippedSum:
            clipped = take()
            self.sums = {name: value.clone() for name, value in clipped.gradients.items()}
            return clipped

        clipper.take = kept


def trained(cell: Cell, model: nn.Module, data: list[Record], *, norm: float) -> Sums:
    """One step of the real trainer on all records, without noise."""
    sums = Sums()
    plan = Plan(
        sample_rate=1.0, noise_multiplier=0.0, max_grad_norm=norm, steps=1, delta=1e-5,
        expected_batch_size=len(data),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = hf.TrainingArguments(
            folder, per_device_train_batch_size=len(data), optim="sgd", learning_rate=1e-3, use_cpu=True,
            lr_scheduler_type="constant", disable_tqdm=True, save_strategy="no", report_to="none",
            logging_strategy="no", dataloader_pin_memory=False, bf16=cell.precision == "bf16 autocast",
        )  # fmt: skip
        sums.trainer = PrivateTrainer(
            model, args, train_dataset=data, data_collator=padded, plan=plan, seal_to=[Key.generate_symmetric()],
            options=RunOptions(insecure_seed=1), callbacks=[sums],
        )  # fmt: skip
        sums.trainer.remove_callback(hf.PrinterCallback)
        sums.trainer.train()
    return sums


def one_by_one(cell: Cell, model: nn.Module, data: list[Record]) -> list[dict[str, Tensor]]:
    """Each record's gradient of the model's own loss by an ordinary backward pass, float64."""
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    each: list[dict[str, Tensor]] = []
    for record in data:
        batch = {n: v.to(model.dtype) if v.is_floating_point() else v for n, v in padded([record]).items()}
        with cell.autocast():
            loss = model(**batch).loss
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        each.append({name: part.double() for name, part in zip(parameters, gradients, strict=True)})
    return each


def norm_of(gradients: Mapping[str, Tensor]) -> float:
    """The L2 norm over all parameters together."""
    return float(torch.stack([part.norm() for part in gradients.values()]).norm())


def clip(each: list[dict[str, Tensor]], norm: float) -> list[dict[str, Tensor]]:
    """Each gradient times min(1, norm over its own norm)."""
    factors = [min(1.0, norm / max(norm_of(gradients), 1e-30)) for gradients in each]
    return [{name: f * part for name, part in g.items()} for f, g in zip(factors, each, strict=True)]


def added(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum over records."""
    return {name: torch.stack([gradients[name] for gradients in each]).sum(0) for name in each[0]}


def distance(sums: Mapping[str, Tensor], each: list[dict[str, Tensor]]) -> float:
    """From the sum of ``each``, over the root of the sum of their squared norms."""
    total = added(each)
    off = norm_of({name: sums[name] - total[name] for name in total})
    return off / sum(norm_of(gradients) ** 2 for gradients in each) ** 0.5


def measure(cell: Cell, *, seeds: int) -> dict[str, Any]:
    """The worst figures of a cell over ``seeds`` draws of weights and records, and what the planted mixes were told."""
    found = [sound(cell, seed) for seed in range(seeds)]
    excess = [each["distance"] - each["ordinary"] for each in found if "distance" in each]
    return {
        "one pass": sum(each.get("clipper") == BookKeeper.__name__ for each in found),
        "refused": [each["refused"] for each in found if "refused" in each],
        "distance": max((each["distance"] for each in found if "distance" in each), default=None),
        "ordinary": max((each["ordinary"] for each in found if "ordinary" in each), default=None),
        "farther": max(excess, default=None),
        "mix refused": {place: refusal_of_mix(cell, place) for place in PLACES},
    }


def sound(cell: Cell, seed: int) -> dict[str, Any]:
    """The figures of one draw; ``refused`` where a sound model was."""
    model, data = cell.model(seed), cell.tiny.records(RECORDS, seed=seed)
    reference = one_by_one(Cell(cell.tiny, "float32", cell.lora), copy.deepcopy(model).float(), data)
    ordinary = one_by_one(cell, copy.deepcopy(model), data)
    norm = sorted(map(norm_of, reference))[RECORDS // 2]  # about half of the records are clipped
    wanted = clip(reference, norm)
    try:
        sums = trained(cell, model, data, norm=norm)
    except PrivguardError as refusal:
        return {"refused": str(refusal)}
    return {
        "clipper": sums.clipper,
        "distance": distance(sums.sums, wanted),
        "ordinary": distance(added(clip(ordinary, norm)), wanted),
    }


def refusal_of_mix(cell: Cell, place: str) -> str:
    """What a mix of one in a thousand at ``place`` is refused with; empty where it trains.

    Raises:
        RuntimeError: the mix was never reached, so that nothing was tried.
    """
    model, runs = cell.model(0), [0]

    def leak(_: nn.Module, __: Any, out: Any) -> Any:
        runs[0] += 1
        if isinstance(out, Tensor):
            return out + MIX * out.roll(1, 0)
        out["logits"] = out["logits"] + MIX * out["logits"].roll(1, 0)
        return out

    _place(model, place).register_forward_hook(leak)
    try:
        trained(cell, model, cell.tiny.records(RECORDS, seed=0), norm=1.0)
    except SensitivityError as refusal:
        return str(refusal)
    finally:
        if not runs[0]:
            raise RuntimeError(f"{type(model).__name__}, {place}: the planted mix never ran")
    return ""


def _place(model: Any, place: str) -> nn.Module:
    """The module whose output is mixed. An encoder looks its words up itself, beside the table that it shares."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if place == "logits":
        return bare
    return (bare.get_encoder() if bare.config.is_encoder_decoder else bare).get_input_embeddings()


def counted(results: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: int) -> dict[str, str]:
    """The bars over all cells, as "so many of so many"."""
    cells = [(precision, cell) for model in results.values() for (precision, _, cell) in _cells(model)]
    mixes = [said for _, cell in cells for said in cell["mix refused"].values()]
    trained_ones = [(precision, cell) for precision, cell in cells if cell["distance"] is not None]
    near = [cell["farther"] <= FARTHER[precision] for precision, cell in trained_ones]
    narrow = [cell["distance"] <= FOUR_PLACES for precision, cell in trained_ones if precision != "float32"]
    return {
        "runs in one backward pass": f"{sum(cell['one pass'] for _, cell in cells)} of {seeds * len(cells)}",
        "cells at most 2⁻⁸ (float32: 1e-5) farther from float32 than ordinary passes": f"{sum(near)} of {len(cells)}",
        "bfloat16 cells within 3.1e-2 of float32, whatever ordinary passes are": f"{sum(narrow)} of {_narrow(cells)}",
        "mixes of 0.1 % refused": f"{sum(map(bool, mixes))} of {len(mixes)}",
    }


def _narrow(cells: list[tuple[str, Any]]) -> int:
    return sum(precision != "float32" for precision, _ in cells)


def _cells(model: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(precision, kind, cell) for precision, kinds in model.items() for kind, cell in kinds.items()]


def page(results: Mapping[str, Any], seeds: int) -> str:
    """The table in Markdown."""
    columns = [f"{precision}, {kind}" for precision in FARTHER for kind in ("full", "LoRA")]
    told = (
        "Distance of the clipped sum from float32, and in brackets that of ordinary backward passes in the same types, "
        f"one record at a time; the largest of {seeds} seeds each."
    )
    lines = [
        told,
        "",
        f"| model | {' | '.join(columns)} |",
        "|" + "---|" * (len(columns) + 1),
        *(f"| {name} | {' | '.join(_shown(cell) for *_, cell in _cells(model))} |" for name, model in results.items()),
        "",
        *(f"* {what}: {count}" for what, count in counted(results, seeds).items()),
    ]
    return "\n".join(lines) + "\n"


def _shown(cell: Mapping[str, Any]) -> str:
    return "refused" if cell["distance"] is None else f"{cell['distance']:.1e} ({cell['ordinary']:.1e})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TINY, action="append", help="only this one; no result is replaced")
    parser.add_argument("--seeds", type=int, default=3, help="draws of weights and records for each cell (3)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="one backward pass for each example")  # the table says it
    results = {
        name: {
            precision: {
                kind: measure(Cell(TINY[name], precision, lora), seeds=given.seeds)
                for kind, lora in (("full", False), ("LoRA", True))
            }
            for precision in FARTHER
        }
        for name in given.model or TINY
    }
    print(page(results, given.seeds))
    if not given.model:
        RESULTS.mkdir(exist_ok=True)
        whole = {"counts": counted(results, given.seeds), "seeds": given.seeds, "results": results}
        (RESULTS / "bf16.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        (RESULTS / "bf16.md").write_text(page(results, given.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
