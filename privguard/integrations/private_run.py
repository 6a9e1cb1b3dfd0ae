"""One private run: plan, ledger, clipper, noise and sealed snapshots, kept in step with each other.

Every wrapper (the plain loop, accelerate, transformers) is a thin shell around a :class:`PrivateRun`. The run folder
holds ``run.json`` (public manifest), ``ledger.jsonl``, ``checkpoints/`` (sealed), ``evidence/`` and the report.
"""

import contextlib
import json
import os
import random
import secrets
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from privguard._random import Stream
from privguard.accounting.accountant import spent
from privguard.accounting.ledger import Ledger
from privguard.checkpoint import durable
from privguard.checkpoint.key import Key, Recipient, recipients
from privguard.checkpoint.store import Snapshot, load, save
from privguard.errors import PrivacyError, ResumeError, SealError
from privguard.integrations import manifest
from privguard.records import Claim, Manifest
from privguard.training.clip import Clipper, trainable
from privguard.training.plan import Plan, Speed
from privguard.training.ranks import Ranks
from privguard.training.step import Follower, PrivateStep, check_optimizer

To: TypeAlias = "Iterable[Recipient | Key | str | os.PathLike[str]]"

_KEPT = 2  # snapshots on disk: the newest, and one before it


class Stateful(Protocol):
    """Anything with torch's pair of state methods: a schedule, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...  # noqa: D102


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run is made of besides its plan.

    Attributes:
        model: the module to train.
        optimizer: any optimizer over exactly the model's trainable parameters.
        clipper: its per-example clipper.
        folder: the run folder.
        seal_to: who can open the checkpoints: recipients, keys or paths of their files.
        also: further state to keep in the snapshots, such as a schedule.
        key: opens the snapshot to resume from; where None, the key files among ``seal_to`` are tried.
        every: steps between snapshots; None takes a tenth of the run, 0 leaves saving to the wrapper.
        insecure_seed: makes sampler and noise repeatable by anybody; such a run has no claim.
        speed: settings without influence on privacy.
        ranks: the processes that share the run.
        probed: what was probed for cross-example leaks, in words for the report.
    """

    model: nn.Module
    optimizer: Optimizer
    clipper: Clipper
    folder: Path
    seal_to: To
    also: Mapping[str, Stateful] = field(default_factory=dict[str, Stateful])
    key: Key | str | os.PathLike[str] | None = None
    every: int | None = None
    insecure_seed: int | None = None
    speed: Speed = field(default_factory=Speed)
    ranks: Ranks = field(default_factory=Ranks)
    probed: str = "nothing"


@final
class PrivateRun:
    """A run that is under way; made by :meth:`start` or :meth:`resume`."""

    def __init__(
        self, plan: Plan, setting: Setting, *, facts: Manifest, ledger: Ledger | Follower, streams: Stream
    ) -> None:
        self.plan = plan
        self.manifest = facts
        self.folder = setting.folder
        self._setting = setting
        self._ledger = ledger
        self._streams = streams
        self._to = recipients(setting.seal_to)
        self._parameters = trainable(setting.model)
        self._every = max(1, plan.steps // 10) if setting.every is None else setting.every
        self._saved = -1
        self._generators: list[Any] = []  # of each rank, as the snapshot that the run came from found them
        self._step = PrivateStep(
            plan,
            clipper=setting.clipper,
            ledger=ledger,
            noise=streams.child("noise"),
            reserve=setting.speed.reserve,
            ranks=setting.ranks,
        )
        self._end = weakref.finalize(self, _end, self._step, ledger)

    @classmethod
    def start(cls, plan: Plan, setting: Setting, *, loader: DataLoader[Any] | None = None) -> "PrivateRun":
        """Begin a run in a new folder.

        Raises:
            ResumeError: the folder holds a run already.
            NoRecipientError: nobody could open the checkpoints.
            PrivacyError: the optimizer's parameters are not the model's.
        """
        to = recipients(setting.seal_to)
        check_optimizer(setting.optimizer, trainable(setting.model).values())
        ledgers: list[Ledger] = []

        def begin() -> tuple[Manifest, bytes]:
            folder = setting.folder
            if (folder / "run.json").exists():
                raise ResumeError(
                    f"run={folder}: holds a run already; resume it (resume=True, resume_from_checkpoint=True), or name "
                    "a new folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            streams = _fresh(setting)
            facts = manifest.describe(
                secrets.token_hex(8),
                plan=plan,
                model=setting.model,
                clipper=setting.clipper,
                probed=setting.probed,
                recipients=to,
                streams=streams,
                commitment=None
                if loader is None
                else manifest.commitment(loader, streams.child("data commitment").secret()),
            )
            text = json.dumps(facts.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            about = {"run": facts.run, "manifest": facts.digest(), "plan": plan.facts()}
            ledgers.append(Ledger.create(folder / "ledger.jsonl", about))
            durable.create(folder / "run.json", text.encode(), mode=0o644)
            return facts, streams.secret()

        facts, secret = setting.ranks.from_lead(begin)
        setting.ranks.copy_from_lead(setting.model.state_dict().values())
        return cls(plan, setting, facts=facts, ledger=_mine(ledgers, 0), streams=_stream(secret, setting))

    @classmethod
    def resume(cls, plan: Plan, setting: Setting, *, snapshot: Path | None = None) -> "PrivateRun":
        """Go on with the run in the folder, from ``snapshot`` or else from its newest one.

        After a clean stop the streams go on as if nothing had happened: same samples, same noise. After a crash the
        ledger is ahead of the snapshot; what it reserved stays spent, and sampler and noise are keyed afresh.

        Raises:
            ResumeError: no run or no snapshot is there, the plan is another one, a seed is given to a run that has a
                claim, or the ledger does not extend the snapshot.
            LedgerError: the ledger is missing or not what was written.
            TamperedError: the key does not open the snapshot, or it was changed.
        """
        check_optimizer(setting.optimizer, trainable(setting.model).values())
        facts = read_manifest(setting.folder)
        if facts.plan != plan.facts():
            changed = sorted(name for name, value in plan.facts().items() if facts.plan.get(name) != value)
            raise ResumeError(f"plan: {', '.join(changed)} differ from the run's own; a budget is planned once")
        if setting.insecure_seed is not None and not facts.insecure:
            raise ResumeError(
                f"insecure_seed={setting.insecure_seed}: this run was started without one and has a claim, which "
                "anybody who can repeat its noise would break; resume it without a seed"
            )
        state = cls.open(snapshot or _newest(setting), setting)
        ledgers: list[Ledger] = []

        def begin() -> tuple[int, bytes]:
            ledger = Ledger.open(setting.folder / "ledger.jsonl")
            ledgers.append(ledger)
            _check_extends(ledger, state, facts)
            clean = ledger.position == state.step
            return ledger.position, state.generators["streams"] if clean else _fresh(setting).secret()

        try:
            position, secret = setting.ranks.from_lead(begin)
            _restore(state, setting)
            streams = _stream(secret, setting)
            run = cls(plan, setting, facts=facts, ledger=_mine(ledgers, position), streams=streams)
        except BaseException:
            for ledger in ledgers:
                ledger.close()
            raise
        run._saved = state.step
        run._generators = state.generators["ranks"]
        return run

    @staticmethod
    def open(snapshot: Path, setting: Setting) -> Snapshot:
        """The content of a sealed snapshot."""
        return load(snapshot, key_for(setting.seal_to, setting.key))

    def rewind_generators(self) -> None:
        """Put the global generators where the snapshot that the run came from found them."""
        _rewind(self._generators, self._setting)

    @property
    def sampler_source(self) -> Stream:
        """The stream whose child number ``i`` draws the batch of ledger position ``i``."""
        return self._streams.child("sampler")

    @property
    def taken(self) -> int:
        """Steps of the plan that are spent."""
        return self._step.taken

    @property
    def remaining(self) -> int:
        """Steps of the plan that are left."""
        return self._step.remaining

    def reserve(self) -> int:
        """Ledger position of the next step, durably reserved."""
        return self._step.position()

    def release(self) -> None:
        """End a logical batch: the noisy gradient stands in the gradient fields, for the wrapper's optimizer step."""
        self._step.release(self._parameters)

    def finish_step(self) -> None:
        """End a logical batch: one noise, one optimizer step; a snapshot when it is due."""
        self._step.finish(self._setting.optimizer, self._parameters)
        if self._every and self.taken % self._every == 0 and self.remaining:
            self.save()

    @property
    def noise_to_signal(self) -> float:
        """σC√d over the norm of the last noisy sum; see :attr:`PrivateStep.noise_to_signal`."""
        return self._step.noise_to_signal

    def claim(self) -> Claim:
        """What the ledger costs by now: all reserved events count.

        Raises:
            PrivacyError: the run was started with an insecure seed.
        """
        if self.manifest.insecure:
            raise PrivacyError(
                "insecure_seed: this run's noise can be repeated by anybody, so it has no claim; run it without"
            )
        if isinstance(self._ledger, Follower):
            raise PrivacyError("claim: only the leading process holds the ledger; ask for it where rank == 0")
        return spent(self._ledger.spent(), delta=self.plan.delta, relation=self.plan.relation, unit=self.plan.unit)

    def save(self) -> Path:
        """Seal a snapshot of everything that resuming needs; the ones before the last two are removed."""
        folder = self.folder / "checkpoints"
        path = folder / f"step-{self.taken:08d}.sealed"
        if self._saved == self.taken and path.exists():
            return path
        self.save_to(path)
        self._saved = self.taken
        if self._setting.ranks.lead:
            for old in sorted(folder.glob("step-*.sealed"))[:-_KEPT]:
                old.unlink()
        return path

    def save_to(self, path: Path) -> None:
        """Seal a snapshot into the file ``path``. With several ranks all of them call this, and the leading one writes.

        Raises:
            OSError: the disk is full, or the folder cannot be made; nothing is left behind.
        """
        generators = self._setting.ranks.gather(_generators())
        ledger = self._ledger
        if isinstance(ledger, Follower):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        setting = self._setting
        snapshot = Snapshot(
            run=self.manifest.run,
            step=self.taken,
            ledger_head=ledger.head,
            ledger_size=ledger.size,
            weights=setting.model.state_dict(),
            optimizer=setting.optimizer.state_dict(),
            generators={"ranks": generators, "streams": self._streams.secret()},
            extra={name: thing.state_dict() for name, thing in setting.also.items()},
        )
        save(snapshot, path, to=self._to)

    def settle(self) -> None:
        """Give reserved steps that were not taken back to the ledger; part of a clean stop."""
        self._step.settle()

    def close(self) -> None:
        """A clean stop: settle the ledger, seal the last state, give the model back. Harmless when done twice."""
        if self._end.alive:
            self.settle()
            self.save()
            self.end()

    def end(self) -> None:
        """Settle the ledger and give the model back, without a snapshot. Harmless when done twice."""
        if self._end.alive:
            self._end()
            self._setting.clipper.close()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in ``folder``.

    Raises:
        ResumeError: there is no run.
    """
    try:
        return Manifest.from_json(json.loads((folder / "run.json").read_text()))
    except FileNotFoundError:
        raise ResumeError(
            f"run={folder}: there is no run.json, so no run to go on with; start one without resume=True"
        ) from None


def _mine(ledgers: list[Ledger], position: int) -> Ledger | Follower:
    """The ledger on the process that opened it, a follower of it on the others."""
    return ledgers[0] if ledgers else Follower(position)


def _end(step: PrivateStep, ledger: Ledger | Follower) -> None:
    """What an abandoned run still owes: the ledger says how far it came. Runs at garbage collection and at exit too."""
    with contextlib.suppress(OSError, ValueError):
        step.settle()
    ledger.close()


def _fresh(setting: Setting) -> Stream:
    if setting.insecure_seed is None:
        return Stream.from_entropy("run")
    return Stream.from_insecure_seed(setting.insecure_seed, "run")


def _newest(setting: Setting) -> Path:
    found = sorted((setting.folder / "checkpoints").glob("step-*.sealed"))
    if not found:
        raise ResumeError(
            f"run={setting.folder}: there is no snapshot; what the ledger reserved is spent, start a new run"
        )
    return found[-1]


def as_list(to: To) -> list[Any]:
    """Recipients as a list, also where a single one was given."""
    return [to] if isinstance(to, str | os.PathLike | Key | Recipient) else list(to)


def key_for(seal_to: To, key: Any) -> Key:
    """The key that opens a run's snapshots: ``key``, or the first one among ``seal_to``.

    Raises:
        ResumeError: there is none.
    """
    if key is not None:
        return key if isinstance(key, Key) else Key.read(key)
    for one in as_list(seal_to):
        if isinstance(one, Key):
            return one
        if isinstance(one, str | os.PathLike):
            with contextlib.suppress(SealError):
                return Key.read(one)
    raise ResumeError("key=None: the recipients can only seal; give the key that opens the run's snapshots")


def _check_extends(ledger: Ledger, snapshot: Snapshot, facts: Manifest) -> None:
    if snapshot.run != facts.run or ledger.facts.get("manifest") != facts.digest():
        raise ResumeError(
            f"run={facts.run}: manifest, ledger and snapshot belong to different runs; put back the run's own files"
        )
    if not ledger.extends(snapshot.ledger_head, snapshot.ledger_size):
        raise ResumeError(
            f"ledger={ledger.path}: does not extend the one that the snapshot of step {snapshot.step} was taken with; "
            "it was replaced by an older or another one, put back the run's own"
        )


def _restore(snapshot: Snapshot, setting: Setting) -> None:
    setting.model.load_state_dict(dict(snapshot.weights))
    setting.optimizer.load_state_dict(snapshot.optimizer)
    for name, thing in setting.also.items():
        thing.load_state_dict(snapshot.extra[name])
    _rewind(snapshot.generators["ranks"], setting)


def _rewind(states: list[Any], setting: Setting) -> None:
    if setting.ranks.rank < len(states):
        _set_generators(states[setting.ranks.rank])


def _stream(secret: bytes, setting: Setting) -> Stream:
    return Stream(secret, "run", insecure=setting.insecure_seed is not None)


def _generators() -> dict[str, Any]:
    """State of the global generators, which dropout and augmentation draw from; sampler and noise never do."""
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 — the global generator is what is to be kept
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
