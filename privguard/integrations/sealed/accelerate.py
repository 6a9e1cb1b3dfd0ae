# SPDX-License-Identifier: Apache-2.0
"""accelerate's ``save_state`` and ``load_state``, sealed: one folder, no file in clear, no pickle.

    save_state(accelerator, "checkpoints/3", Sealing(to=["team.pub"]))
    load_state(accelerator, "checkpoints/3", Sealing(to=["team.pub"], key=Key.read("team.key")))

accelerate's own hook cannot do this: it is asked about the models alone, and optimizer, schedules, samplers, scaler and
generators are written in clear all the same.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType

from privguard.errors import SealError, TamperedError
from privguard.integrations.sealed import state as sealed_state
from privguard.integrations.sealed.state import WEIGHTS, Sealing
from privguard.training import rng_state

_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA}


def save_state(
    accelerator: Accelerator, folder: str | Path, sealing: Sealing, *, facts: dict[str, Any] | None = None
) -> None:
    """Seal models, optimizers, schedules, samplers, scaler, generators and whatever else was registered.

    Every process has to call it. ``facts`` (JSON values, and the bytes of a ``ledger``) are for auditors.

    Args:
        accelerator: the accelerator that prepared the objects.
        folder: the checkpoint's folder.
        sealing: keys, signer and trust.
        facts: JSON values for auditors; None for none.

    Raises:
        SealError: models are sharded over processes; use ``privguard.integrations.sealed.dcp`` for those.
    """
    _refuse_sharded(accelerator)
    models = accelerator._models  # noqa: SLF001 — accelerate has no other door
    weights: dict[str, Any] = {
        _name(i): accelerator.get_state_dict(each, unwrap=False) for i, each in enumerate(models)
    }
    of_processes = rng_state.states_of_all_processes()
    if accelerator.is_main_process:
        state = {
            "optimizers": [each.state_dict() for each in accelerator._optimizers],  # noqa: SLF001
            "schedulers": [each.state_dict() for each in accelerator._schedulers],  # noqa: SLF001
            "samplers": [_sampler_state(each) for each in accelerator._dataloaders],  # noqa: SLF001
            "custom": [each.state_dict() for each in accelerator._custom_objects],  # noqa: SLF001
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "step": accelerator.step,
            "generators": of_processes,
        }
        manifest = {"tool": "accelerate", **(facts or {})}
        sealed_state.write(folder, sealing, parts=weights, state=state, facts=manifest)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: str | Path, sealing: Sealing) -> dict[str, Any]:
    """Load what ``save_state`` sealed into the same objects, and return the manifest.

    Nothing is changed before everything was authenticated.

    Args:
        accelerator: the accelerator that prepared the objects.
        folder: the checkpoint's folder.
        sealing: keys, signer and trust.

    Raises:
        TamperedError: the key does not open it, it is not what was written, or somebody else sealed it.
        RollbackError: ``sealing.trust`` wants a later step than the one among the ``facts`` that were saved.
        PlainCheckpointError: it is in clear (``Accelerator.load_state`` itself loads those, pickles and all).
    """
    _refuse_sharded(accelerator)
    with sealing.resume(folder) as sealed:
        state = sealed_state.read_state(sealed)
        weights = [sealed_state.read_tensors(sealed, _name(i)) for i in range(len(accelerator._models))]  # noqa: SLF001
        manifest = sealed.manifest
    pairs = (
        (accelerator._models, weights),  # noqa: SLF001
        (accelerator._optimizers, state["optimizers"]),  # noqa: SLF001
        (accelerator._schedulers, state["schedulers"]),  # noqa: SLF001
        (accelerator._custom_objects, state["custom"]),  # noqa: SLF001
    )
    if any(len(objects) != len(states) for objects, states in pairs):
        raise TamperedError(f"{folder}: holds another number of models, optimizers or schedules than were prepared")
    for objects, states in pairs:
        for one, its_state in zip(objects, states, strict=True):
            one.load_state_dict(its_state)
    for loader, its_state in zip(accelerator._dataloaders, state["samplers"], strict=True):  # noqa: SLF001
        _restore_sampler(loader, its_state)
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    accelerator.step = state["step"]
    saved = state["generators"]  # of every process then; there may be more of them now
    rng_state.restore(saved[accelerator.process_index % len(saved)])
    return manifest


def _name(index: int) -> str:
    return WEIGHTS if not index else WEIGHTS.replace(".", f"_{index}.")


def _refuse_sharded(accelerator: Accelerator) -> None:
    if accelerator.distributed_type in _SHARDED:
        raise SealError(
            f"distributed_type={accelerator.distributed_type.value}: expected whole models in each process; "
            "seal sharded ones with privguard.integrations.sealed.dcp"
        )


def _sampler_state(loader: Any) -> dict[str, Any]:
    """Where a seedable sampler and a stateful loader are; other samplers draw from the generators, which are kept."""
    sampler = getattr(loader, "batch_sampler", None) and getattr(loader.batch_sampler, "sampler", None)
    state: dict[str, Any] = {}
    if isinstance(sampler, SeedableRandomSampler):
        state["sampler"] = {"epoch": sampler.epoch, "seed": sampler.initial_seed}
    if getattr(loader, "use_stateful_dataloader", False):
        state["loader"] = loader.state_dict()
    return state


def _restore_sampler(loader: Any, state: dict[str, Any]) -> None:
    if "sampler" in state:
        sampler = loader.batch_sampler.sampler
        sampler.epoch, sampler.initial_seed = state["sampler"]["epoch"], state["sampler"]["seed"]
    if "loader" in state:
        loader.load_state_dict(state["loader"])
