# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with sealed checkpoints: saving, rotation, best model, resuming and pushing stay as they are.

    trainer = SealedTrainer(model, args, train_dataset=data, sealing=Sealing(to=["team.pub"], key=Key.read("team.key")))
    trainer.train(resume_from_checkpoint=True)

Each ``checkpoint-N`` is a sealed folder. Trainer writes its files one after the other, each by a function of its own;
here those functions collect what they would have written, and the last of them seals it all at once. Beside the sealed
parts lies one constant file, ``trainer_state.json``, which only says that the folder is sealed: Trainer looks for it.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import transformers.trainer
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from privguard.checkpoint.archive import HEAD
from privguard.checkpoint.opened import Sealed
from privguard.errors import PlainCheckpointError, RollbackError, SealError
from privguard.integrations.sealed import pretrained
from privguard.integrations.sealed import state as sealed_state
from privguard.integrations.sealed.state import Sealing
from privguard.training import rng_state

_SIGN = b'{"sealed": "privguard.seal"}\n'


class SealedCheckpoints:
    """Mixin before ``transformers.Trainer``; the class that uses it sets ``sealing`` before training.

    ``sealed_facts`` may be overridden to tell auditors more: JSON values, and the bytes of a ``ledger``.
    """

    sealing: Sealing
    _collected: dict[str, Any] | None = None

    def sealed_facts(self) -> dict[str, Any]:
        """What an auditor may know of a checkpoint besides its step."""
        return {}

    # Saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        trainer = _trainer(self)
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise SealError(
                "Trainer with DeepSpeed or FSDP writes shards in clear; use privguard.integrations.sealed.dcp"
            )
        self._collected = {}
        save_to_json = mock.patch.object(trainer.state, "save_to_json", self._seal_with_state, create=True)
        try:
            with save_to_json:  # the last file that Trainer writes before it pushes and rotates
                super()._save_checkpoint(model, trial)  # type: ignore[misc] — Trainer comes behind the mixin
        finally:
            self._collected = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002 — Trainer's signature
        """Seal the model, its configuration and its tokenizer into a folder.

        Args:
            output_dir: where to; None for the Trainer's own.
            _internal_call: as Trainer's.
        """
        trainer = _trainer(self)
        folder = output_dir or cast("str", trainer.args.output_dir)
        collected = self._model_parts()
        if self._collected is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)  # Trainer looks whether the best folder is there
            self._collected["parts"] = collected
        elif trainer.args.should_save:
            facts = {"tool": "transformers", "step": trainer.state.global_step, **self.sealed_facts()}
            sealed_state.write(Path(folder), self.sealing, parts=collected, state={}, facts=facts)
        if trainer.args.push_to_hub and not _internal_call:
            trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:  # noqa: ARG002
        trainer = _trainer(self)
        self._collect(optimizer=trainer.optimizer.state_dict(), scheduler=trainer.lr_scheduler.state_dict())

    def _save_scaler(self, output_dir: str) -> None:  # noqa: ARG002
        scaler = getattr(_trainer(self).accelerator, "scaler", None)
        if scaler is not None:
            self._collect(scaler=scaler.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:  # noqa: ARG002
        self._collect(generators=rng_state.states_of_all_processes())

    def _collect(self, **state: Any) -> None:
        if self._collected is None:
            raise SealError("state: is sealed together with the model only; call Trainer's own saving")
        self._collected.setdefault("state", {}).update(state)

    def _seal_with_state(self, json_path: str) -> None:
        """In the place of ``TrainerState.save_to_json``: seal what was collected, and that state with it."""
        trainer, collected = _trainer(self), cast("dict[str, Any]", self._collected)
        folder = Path(json_path).parent
        parts = {**collected["parts"], TRAINER_STATE_NAME: json.dumps(dataclasses.asdict(trainer.state))}
        facts = {"tool": "transformers", "step": trainer.state.global_step, **self.sealed_facts()}
        state = collected.get("state", {})
        sign = {Path(json_path).name: _SIGN}
        sealed_state.write(folder, self.sealing, parts=parts, state=state, facts=facts, beside=sign)

    def _model_parts(self) -> dict[str, Any]:
        trainer = _trainer(self)
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        weights, texts = pretrained.model_parts(model)
        processing = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
        texts |= pretrained.tokenizer_texts(processing)
        return {**weights, **texts, "training_args.json": trainer.args.to_json_string()}

    # Loading

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """Train as ever; a checkpoint to resume from has to be sealed, unless ``sealing.allow_plain`` allows others.

        Args:
            resume_from_checkpoint: a sealed checkpoint, True for the newest, or None to begin.
            trial: as Trainer's.
            ignore_keys_for_eval: as Trainer's.
        """
        if _trainer(self).is_world_process_zero():
            self.sealing.signing_key()  # what is missing shows before training and not at the first checkpoint
        if resume_from_checkpoint is True and not self.sealing.allow_plain:
            resume_from_checkpoint = _newest_whole(Path(_trainer(self).args.output_dir))
        with _states_from_seals(self.sealing):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._plain(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        trainer = _trainer(self)
        with self.sealing.open(resume_from_checkpoint) as sealed:
            _expect_step(sealed, resume_from_checkpoint)
            target = trainer.accelerator.unwrap_model(model if model is not None else trainer.model)
            pretrained.load_model_parts(target, sealed)

    def _load_best_model(self) -> None:
        best = cast("str", _trainer(self).state.best_model_checkpoint)
        if self._plain(best):
            super()._load_best_model()  # type: ignore[misc]
        else:
            self._load_from_checkpoint(best)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        trainer = _trainer(self)
        if self._plain(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        elif "optimizer" in (state := self._state(checkpoint)):
            trainer.optimizer.load_state_dict(state["optimizer"])
            trainer.lr_scheduler.load_state_dict(state["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._plain(checkpoint):
            super()._load_scaler(checkpoint)  # type: ignore[misc]
        elif "scaler" in (state := self._state(checkpoint)):
            _trainer(self).accelerator.scaler.load_state_dict(state["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._plain(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]
        elif "generators" in (state := self._state(checkpoint)):
            saved = state["generators"]  # of every process then; there may be more of them now
            rng_state.restore(saved[_trainer(self).args.process_index % len(saved)])

    def _plain(self, checkpoint: str | None) -> bool:
        return checkpoint is not None and self.sealing.allow_plain and not self.sealing.is_sealed(checkpoint)

    def _state(self, checkpoint: str | None) -> dict[str, Any]:
        if checkpoint is None:
            return {}
        with self.sealing.open(checkpoint) as sealed:
            return sealed_state.read_state(sealed)

    # Pushing

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the sealed folder as it is; Trainer would write model and arguments into the output folder in clear."""
        trainer = _trainer(self)
        if trainer.is_world_process_zero() and trainer.args.hub_strategy != "end":
            trainer.push_in_progress = _upload(
                trainer, checkpoint_folder, f"Step {trainer.state.global_step}, sealed", blocking=False
            )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,  # noqa: FBT001, FBT002
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,  # noqa: FBT001
        **_: Any,
    ) -> Any:
        """Seal the model into the output folder and push that, without a model card: it would tell figures in clear.

        Args:
            commit_message: as Trainer's.
            blocking: as Trainer's.
            token: as Trainer's.
            revision: as Trainer's.
            private: as Trainer's.
        """
        trainer = _trainer(self)
        if trainer.hub_model_id is None:
            trainer.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not trainer.is_world_process_zero():
            return None
        folder, message = cast("str", trainer.args.output_dir), commit_message or "Sealed"
        return _upload(trainer, folder, message, blocking=blocking, token=token, revision=revision)


class SealedTrainer(SealedCheckpoints, Trainer):
    """``transformers.Trainer`` whose checkpoints only recipients can open."""

    def __init__(self, *arguments: Any, sealing: Sealing, **named: Any) -> None:  # the fifteen arguments of Trainer
        self.sealing = sealing
        super().__init__(*arguments, **named)


def _trainer(mixed: SealedCheckpoints) -> Any:
    return mixed


def _upload(
    trainer: Any, folder: str, message: str, *, blocking: bool, token: str | None = None, revision: str | None = None
) -> Any:
    from huggingface_hub import HfApi

    return HfApi().upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=folder,
        commit_message=message,
        token=token or trainer.args.hub_token,
        run_as_future=not blocking,
        allow_patterns=["privguard.seal", "????????????????????????????????.*"],
        revision=revision or trainer.args.hub_revision,
    )


@contextlib.contextmanager
def _states_from_seals(sealing: Sealing) -> Generator[None]:
    """While a Trainer trains, the class by which it reads ``trainer_state.json`` looks into sealed folders."""

    class FromSeal(TrainerState):
        @classmethod
        def load_from_json(cls, json_path: str) -> TrainerState:
            folder = Path(json_path).parent
            if sealing.allow_plain and not sealing.is_sealed(folder):
                return TrainerState.load_from_json(json_path)
            with sealing.resume(folder) as sealed:
                return TrainerState(**json.loads(sealed.read(TRAINER_STATE_NAME)))

    with mock.patch.object(transformers.trainer, "TrainerState", FromSeal):
        yield


def _newest_whole(output: Path) -> str:
    """The newest checkpoint that was sealed to its end; a save that was killed leaves an empty folder, or none.

    Raises:
        PlainCheckpointError: there are checkpoints, and none of them is sealed.
        ValueError: there are none, as Trainer says it.
    """
    numbered = {int(path.name[11:]): path for path in output.glob("checkpoint-*") if path.name[11:].isdigit()}
    for number in sorted(numbered, reverse=True):
        path = numbered[number]
        if (path / HEAD).is_file():
            return str(path)
        if any(not _of_a_save(each.name) for each in path.iterdir()):
            raise PlainCheckpointError(
                f"{path}: expected a sealed checkpoint and found one in clear; seal it with `privguard seal`, "
                "or pass allow_plain=True where you trust whoever wrote it"
            )
    raise ValueError(f"resume_from_checkpoint=True: no checkpoint is in {output}; train from the start, or name one")


def _of_a_save(name: str) -> bool:
    """Whether a killed save may have left this: a part, or a hidden name."""
    return name.startswith(".") or name == TRAINER_STATE_NAME or bool(re.fullmatch(r"[0-9a-f]{32}\.\w+", name))


def _expect_step(sealed: Sealed, folder: str) -> None:
    """The folder's number is the step that Trainer believes in; an older checkpoint under a newer name is refused."""
    named = re.fullmatch(r"checkpoint-(\d+)", Path(folder).name)
    if named and sealed.manifest.get("step") != int(named[1]):
        raise RollbackError(
            f"{folder}: holds step {sealed.manifest.get('step')}, not the one in its name; find the right one"
        )
