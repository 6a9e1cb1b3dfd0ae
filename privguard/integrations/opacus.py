# SPDX-License-Identifier: Apache-2.0
"""A run of Opacus' ``PrivacyEngine``, taken over: its history in our ledger, priced by PLD, its state sealed.

>>> taken = take_over(engine, model, optimizer, loader, delta=1e-5, run="runs/a", seal_to=[key])  # doctest: +SKIP
>>> print(taken.claim)                                                                            # doctest: +SKIP

What Opacus counted is priced; what nobody can know afterwards is not made up, but written into manifest, claim and
report: whether the loader that is shown fed every step, what drew the noise, and whether the count is whole.
"""

import copy
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final

from opacus import GradSampleModule, PrivacyEngine
from opacus.data_loader import DPDataLoader
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping, DPPerLayerOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from privguard.accounting.calibrate import dp_sgd
from privguard.accounting.claim import claim_of
from privguard.accounting.events import Events
from privguard.checkpoint.archive import Audience
from privguard.checkpoint.keys.key import To
from privguard.checkpoint.store import Snapshot
from privguard.errors import PrivacyError
from privguard.records import Claim, Manifest
from privguard.runs import folder as names
from privguard.runs import manifest, start
from privguard.runs.data_commitment import commitment
from privguard.runs.options import RunOptions, as_list
from privguard.runs.outlook import outlook_of
from privguard.runs.run import write_snapshot
from privguard.runs.seeds import Streams
from privguard.training import rng_state
from privguard.training.clip import trainable
from privguard.training.noise.mechanism import mechanism
from privguard.training.plan import Plan
from privguard.training.probes.modules import refuse_mixing

_CLIPPED = {
    DPOptimizer: "flat, per-example gradients kept",
    DPOptimizerFastGradientClipping: "flat, ghost norms",
    DPPerLayerOptimizer: "one norm for each parameter, whose root of summed squares is the bound",
}
_UNCHECKED = (
    (
        "The first {taken} steps were counted by Opacus in memory: a step whose count was lost, in a crash or with "
        "another accountant, is not in this ledger."
    ),
    (
        "The loader that was shown samples at the recorded rate; that it, and no other, fed every one of those steps "
        "is the word of whoever trained."
    ),
    "Rate and denominator were computed by Opacus from the number of records, so that number is public.",
    "No gradient of an example was NaN or infinite in those steps: Opacus does not bound those.",
    (
        "Sums and noise of those steps were float32: what rounding added to a record's influence is not known, and "
        "attacks on floating-point noise (Mironov 2012) are not ruled out."
    ),
)
_NEXT_RUNS = (
    "key",
    "checkpoint_every",
    "performance",
    "book",
    "data_set",
    "insecure_seed",
    "continue_exactly",
    "other_data",
    "public_evaluation",
    "show_private_loss",
    "quiet",
)
_SAME_RATE = 1e-9  # relative


@final
@dataclass(frozen=True, kw_only=True)
class TakenOver:
    """What became of an Opacus run.

    Attributes:
        plan: the setting of its last step, for ``privatize(model, optimizer, loader, plan, run=…, resume=True)``.
        claim: ε of its steps so far; None where a generator for the noise was handed to Opacus, so that whoever has
            its seed can take the noise away.
        folder: the run folder, which ``privguard report`` reads.
        snapshot: its sealed state.
    """

    plan: Plan
    claim: Claim | None
    folder: Path
    snapshot: Path


def take_over(  # noqa: PLR0913 — Opacus' four objects, and what a person decides about a run
    engine: PrivacyEngine,
    model: nn.Module,
    optimizer: DPOptimizer,
    loader: DPDataLoader,
    *,
    delta: float,
    run: str | os.PathLike[str],
    seal_to: To,
    steps: int | None = None,
    options: RunOptions | None = None,
) -> TakenOver:
    """Make a private run of ours out of one of Opacus', between two of its steps.

    Nothing of Opacus' is changed; to go on with our engine, give it ``model.to_standard_module()`` and
    ``optimizer.original_optimizer``.

    Args:
        engine: the ``PrivacyEngine`` that made the other three, with its accountant.
        model: the trained module, wrapped by Opacus or not.
        optimizer: what ``make_private`` returned.
        loader: what ``make_private`` returned; it has to sample at the rate that the accountant recorded.
        delta: δ at which ε is reported.
        run: a new folder for the run.
        seal_to: who can open the state: recipients, keys, or paths of their files.
        steps: of the whole run, where it is to go on; those that were taken count.
        options: ``auditors``, ``trust`` and ``also``; the others belong to the run that goes on, and are refused.

    Raises:
        SealError: this user's own signing key can be read by others, or cannot be made.
        PrivacyError: nothing was trained, the count cannot be whole, the loader does not sample at the recorded rate,
            or the optimizer is of a kind whose steps the recorded history does not price.
        ResumeError: the folder holds a run already.
        NoRecipientError: nobody could open the state.
    """
    history = _history(engine, optimizer)
    _check_sampler(loader, history)
    options = options or RunOptions()
    options.refuse(dict.fromkeys(_NEXT_RUNS, "pass it to the entry point that goes on with the run"))
    whom, folder = as_list(seal_to), Path(run)
    audience, signer = Audience.of(whom, as_list(options.auditors)), options.trust.signing_key(whom)
    start.require_no_run(folder)
    bare = model._module if isinstance(model, GradSampleModule) else model  # noqa: SLF001 — what it wraps
    events: Events = [(dp_sgd(sample_rate=q, noise_multiplier=z), times) for z, q, times in history]
    taken = sum(times for _, times in events)
    plan = _plan(optimizer, loader, history[-1], delta=delta, steps=taken if steps is None else steps)
    streams = Streams.fresh(None)
    described = manifest.describe(
        secrets.token_hex(8),
        plan=plan,
        model=bare,
        clipper=optimizer,
        probed="nothing: the steps were taken before privguard saw the run",
        recipients=audience.to,
        insecure=False,
        commitment=commitment(loader.dataset, streams.salt),
        outlook=outlook_of(plan, bare),
        mechanism=mechanism(plan, trainable(bare), processes=1, noise="exact"),  # of the steps to come
    )
    facts = _honest(described, engine, optimizer, taken)
    with start.write_public_files(folder, facts) as ledger:
        for event, times in events:
            ledger.reserve(event, times)
        ledger.settle(taken)
        state = Snapshot(
            run=facts.run,
            step=taken,
            weights=bare.state_dict(),
            optimizer=optimizer.state_dict(),
            generators={"ranks": [rng_state.states()], "streams": streams.secrets(), "place": ledger.place},
            extra={name: thing.state_dict() for name, thing in options.also.items()},
        )
        snapshot = names.snapshot(folder, taken)
        snapshot.parent.mkdir(exist_ok=True)
        write_snapshot(snapshot, state, audience, ledger=ledger, signer=signer)
        history = ledger.history
    claim = None if facts.insecure else claim_of(facts, history)
    return TakenOver(plan=plan, claim=claim, folder=folder, snapshot=snapshot)


def fixed(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which Opacus' fixers have replaced the layers that normalise over the batch.

    Batch norms become group norms with fresh parameters, so fix a model before it is trained, and make its optimizer
    afterwards. Recurrent and attention layers stay: this engine has exact rules for torch's own.

    Args:
        model: the model to be fixed; it is not changed.

    Raises:
        UnsupportedModelError: a module mixes examples and Opacus has no fixer for it.
    """
    model = copy.deepcopy(model)
    fixers: dict[type, Any] = cast("Any", ModuleValidator).FIXERS
    norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)  # noqa: SLF001 — their parents
    for path, module in list(model.named_modules()):
        if isinstance(module, norms) and type(module) in fixers:
            replacement = fixers[type(module)](module)
            if path:
                model.set_submodule(path, _placed_like(replacement, model, module))
            else:
                model = _placed_like(replacement, model, module)
    refuse_mixing(model)
    return model


def _placed_like(replacement: nn.Module, model: nn.Module, module: nn.Module) -> nn.Module:
    """On the device and in the mode of what it replaces; a norm may have no parameters of its own to ask."""
    here: Tensor | None = next(module.parameters(), next(model.parameters(), None))
    if here is not None:
        replacement.to(here.device)
    return replacement.train(module.training)


def _history(engine: PrivacyEngine, optimizer: DPOptimizer) -> Sequence[tuple[float, float, int]]:
    """(noise multiplier, rate, steps) as Opacus counted them, where they can price what the optimizer did."""
    if type(optimizer) not in _CLIPPED:
        raise PrivacyError(
            f"optimizer={type(optimizer).__name__}: expected one of {[kind.__name__ for kind in _CLIPPED]}; adaptive "
            "clipping divides by the realised batch size, which carries no noise, and a distributed one draws from "
            "shards, so their recorded history is not what happened"
        )
    history = [(float(z), float(q), int(times)) for z, q, times in engine.accountant.history]
    counted = sum(times for _, _, times in history)
    if not counted:
        raise PrivacyError("engine.accountant.history=[]: expected at least one step; train first, then take it over")
    states = [state for state in optimizer.state.values() if "step" in state]
    if (moved := max((int(state["step"]) for state in states), default=0)) > counted:
        raise PrivacyError(
            f"engine.accountant.history: counts {counted} steps, and the optimizer has taken {moved}; load the "
            "accountant that counted all of them"
        )
    return history


def _check_sampler(loader: DPDataLoader, history: Sequence[tuple[float, float, int]]) -> None:
    """The loader that is shown has to do what the last entries of the history say.

    Without Poisson sampling the history's rates mean nothing, and a shuffled loader costs more than they say (Chua et
    al. 2024, arXiv 2403.17673).
    """
    if not isinstance(cast("object", loader), DPDataLoader) or loader.distributed:
        raise PrivacyError(
            f"loader={type(loader).__name__}: expected the DPDataLoader that make_private returned, on one process; "
            "without Poisson sampling (poisson_sampling=False) the recorded rates are not what happened, and ε would "
            "be too small"
        )
    rate, recorded = loader.sample_rate, history[-1][1]
    if abs(rate - recorded) > _SAME_RATE * rate:
        raise PrivacyError(
            f"loader.sample_rate={rate:.9g}: the accountant recorded {recorded:.9g}; take over with the loader that "
            "fed the loop (gradients that were accumulated over several draws are recorded at a multiple of its rate)"
        )


def _plan(
    optimizer: DPOptimizer, loader: DPDataLoader, last: tuple[float, float, int], *, delta: float, steps: int
) -> Plan:
    noise, rate, _ = last
    return Plan(
        sample_rate=rate,
        noise_multiplier=noise,
        max_grad_norm=float(optimizer.max_grad_norm),
        steps=steps,
        delta=delta,
        expected_batch_size=float(optimizer.expected_batch_size or 1) if optimizer.loss_reduction == "mean" else 1.0,
        examples=len(cast("Any", loader.dataset)),
    )


def _honest(facts: Manifest, engine: PrivacyEngine, optimizer: DPOptimizer, taken: int) -> Manifest:
    """The manifest with what is known and what is not about the steps that Opacus took."""
    given = optimizer.generator is not None and not engine.secure_mode
    drawn = (
        "by Opacus in secure mode"
        if engine.secure_mode
        else "by torch from a generator that was handed to Opacus"
        if given
        else "by torch from its default generator (secure mode off)"
    )
    unchecked = [*facts.unchecked, *(sentence.format(taken=f"{taken:,}") for sentence in _UNCHECKED)]
    if not engine.secure_mode:
        unchecked.append(
            f"The noise of those steps was drawn {drawn}, which is not a cipher: whoever learns its seed or its state "
            "can take the noise away."
        )
    return replace(
        facts,
        clipping=f"first {taken:,} steps by Opacus ({type(optimizer).__name__}: {_CLIPPED[type(optimizer)]}); later "
        "ones as the engine that resumes the run does it",
        noise=f"first {taken:,} steps Gaussian, {drawn}; later ones by Box–Muller from AES-256-CTR",
        insecure=given,
        unchecked=(*unchecked, *manifest.UNCHECKED),
    )
