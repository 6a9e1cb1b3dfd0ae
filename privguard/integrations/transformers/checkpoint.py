# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of PrivateTrainer: Trainer's public state in clear, everything else in one sealed file beside it."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from privguard.errors import TamperedError
from privguard.runs import start
from privguard.runs.options import RunSetup
from privguard.runs.run import PrivateRun

SEALED, STATE = "state.sealed", "trainer_state.json"


def write(run: PrivateRun, state: TrainerState, *, output: Path, lead: bool) -> None:
    """Write ``output/checkpoint-N``, whole or not at all; every rank calls this, and the leading one writes."""
    final_place = output / f"checkpoint-{state.global_step}"
    folder = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=output)) if lead else output
    try:
        if lead:
            state.save_to_json(str(folder / STATE))
        run.save_to(folder / SEALED)
        if lead:
            shutil.rmtree(final_place, ignore_errors=True)
            folder.chmod(0o755)
            folder.rename(final_place)
    except BaseException:
        if lead:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def sweep(output: Path) -> None:
    """Remove what a process that was killed while it saved has left behind; the run's ledger is held meanwhile."""
    for unfinished in output.glob(".checkpoint-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


@final
class Rolling(TrainerCallback):
    """One checkpoint beside those that the arguments ask for, so that a crash loses at most ``every`` steps.

    It is written before the first step and then every so many steps, and taken away once a newer checkpoint is there.
    """

    def __init__(self, every: int, output: Path, save: Callable[[], None]) -> None:
        self._every, self._output, self._save = every, output, save
        self._wanted = False
        self._last: int | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """The state before the first step."""
        if self._every and state.global_step == 0:
            self._wanted = True
            self._save()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Ask for a checkpoint where one is due, and none is asked for by the arguments."""
        due = bool(self._every) and state.global_step % self._every == 0 and state.global_step < state.max_steps
        if due and not control.should_save:
            control.should_save = self._wanted = True

    def saved(self, state: TrainerState, *, lead: bool) -> None:
        """A checkpoint was written: the one before it goes, if it was one of these and is not the best."""
        if self._last is not None and self._last != state.global_step and lead:
            old = self._output / f"checkpoint-{self._last}"
            if str(old) != state.best_model_checkpoint:
                shutil.rmtree(old, ignore_errors=True)
        self._last = state.global_step if self._wanted else None
        self._wanted = False


def steps_done(checkpoint: str) -> int:
    """The number of steps that Trainer's state file beside the seal says were taken."""
    return json.loads(Path(checkpoint, STATE).read_text())["global_step"]


def weights(checkpoint: str, setup: RunSetup) -> Mapping[str, Tensor]:
    """The sealed weights of a checkpoint.

    Raises:
        TamperedError: the key does not open it, or it was changed.
    """
    return start.open_snapshot(Path(checkpoint, SEALED), setup).weights


def exported(callbacks: Iterable[object]) -> dict[str, Any]:
    """What stateful callbacks want back when the run goes on: by class name, a list where there are several of one."""
    states: dict[str, list[Any]] = {}
    for each in callbacks:
        if isinstance(each, ExportableState):
            states.setdefault(type(each).__name__, []).append(each.state())
    return {name: found if len(found) > 1 else found[0] for name, found in states.items()}


@final
class StepInTheSeal:
    """Trainer's step inside the seal, so that the file in clear beside it cannot be changed unnoticed."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Trainer's step, to be sealed with everything else."""
        return {"global_step": self._trainer.state.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the step in the seal is the one in the public file, which Trainer has read by now.

        Raises:
            TamperedError: the public file counts other steps.
        """
        step = self._trainer.state.global_step
        if step != state_dict["global_step"]:
            raise TamperedError(
                f"global_step={step}: {STATE} beside the sealed state of step {state_dict['global_step']} was changed; "
                "put back the checkpoint's own file"
            )
