"""One private run: plan, ledger, clipper, noise and sealed snapshots, kept in step with each other.

Every wrapper (the plain loop, accelerate, transformers) is a thin shell around a :class:`PrivateRun`. The run folder
holds ``run.json`` (public manifest), ``ledger.jsonl``, ``checkpoints/`` (sealed), ``evidence/`` and the report.
"""

import contextlib
import json
import os
import secrets
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final

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
from privguard.training.noise import NoisySum
from privguard.training.plan import Plan, Speed
from privguard.training.step import PrivateStep, check_optimizer

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
        every: steps between snapshots; None takes a tenth of the run.
        insecure_seed: makes sampler and noise repeatable by anybody; such a run has no claim.
        speed: settings without influence on privacy.
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


@final
class PrivateRun:
    """A run that is under way; made by :meth:`start` or :meth:`resume`."""

    def __init__(self, plan: Plan, setting: Setting, *, facts: Manifest, ledger: Ledger, streams: Stream) -> None:
        self.plan = plan
        self.manifest = facts
        self.folder = setting.folder
        self._setting = setting
        self._ledger = ledger
        self._streams = streams
        self._to = recipients(setting.seal_to)
        self._parameters = trainable(setting.model)
        self._every = setting.every or max(1, plan.steps // 10)
        self._saved = -1
        self._step = PrivateStep(
            plan, clipper=setting.clipper, ledger=ledger, noise=streams.child("noise"), reserve=setting.speed.reserve
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
        folder = setting.folder
        if (folder / "run.json").exists():
            raise ResumeError(
                f"run={folder}: holds a run already; pass resume=True to go on with it, or name a new folder"
            )
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        streams = _fresh(setting)
        facts = manifest.describe(
            secrets.token_hex(8),
            plan=plan,
            model=setting.model,
            clipper=setting.clipper,
            recipients=to,
            streams=streams,
            commitment=None
            if loader is None
            else manifest.commitment(loader, streams.child("data commitment").secret()),
        )
        text = json.dumps(facts.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        ledger = Ledger.create(
            folder / "ledger.jsonl", {"run": facts.run, "manifest": facts.digest(), "plan": plan.facts()}
        )
        durable.create(folder / "run.json", text.encode(), mode=0o644)
        return cls(plan, setting, facts=facts, ledger=ledger, streams=streams)

    @classmethod
    def resume(cls, plan: Plan, setting: Setting) -> "PrivateRun":
        """Go on with the run in the folder, from its newest snapshot.

        After a clean stop the streams go on as if nothing had happened: same samples, same noise. After a crash the
        ledger is ahead of the snapshot; what it reserved stays spent, and sampler and noise are keyed afresh.

        Raises:
            ResumeError: no run or no snapshot is there, the plan is another one, or the ledger does not extend the
            snapshot. LedgerError: the ledger is missing or not what was written. TamperedError: the key does not open
            the snapshot, or it was changed.
        """
        check_optimizer(setting.optimizer, trainable(setting.model).values())
        facts = read_manifest(setting.folder)
        if facts.plan != plan.facts():
            changed = sorted(name for name, value in plan.facts().items() if facts.plan.get(name) != value)
            raise ResumeError(f"plan: {', '.join(changed)} differ from the run's own; a budget is planned once")
        snapshot = _newest(setting)
        ledger = Ledger.open(setting.folder / "ledger.jsonl")
        try:
            _check_extends(ledger, snapshot, facts)
            streams = _restore(snapshot, setting) if ledger.position == snapshot.step else _afresh(snapshot, setting)
            run = cls(plan, setting, facts=facts, ledger=ledger, streams=streams)
        except BaseException:
            ledger.close()
            raise
        run._saved = snapshot.step
        return run

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

    def finish_step(self) -> NoisySum:
        """End a logical batch: one noise, one optimizer step; a snapshot when it is due."""
        noisy = self._step.finish(self._setting.optimizer, self._parameters)
        if self.taken % self._every == 0 and self.remaining:
            self.save()
        return noisy

    def claim(self) -> Claim:
        """What the ledger costs by now: all reserved events count.

        Raises:
            PrivacyError: the run was started with an insecure seed.
        """
        if self.manifest.insecure:
            raise PrivacyError(
                "insecure_seed: this run's noise can be repeated by anybody, so it has no claim; run it without"
            )
        return spent(self._ledger.spent(), delta=self.plan.delta, relation=self.plan.relation)

    def save(self) -> Path:
        """Seal a snapshot of everything that resuming needs; the ones before the last two are removed."""
        folder = self.folder / "checkpoints"
        path = folder / f"step-{self.taken:08d}.sealed"
        if self._saved == self.taken and path.exists():
            return path
        save(self._snapshot(), path, to=self._to)
        self._saved = self.taken
        for old in sorted(folder.glob("step-*.sealed"))[:-_KEPT]:
            old.unlink()
        return path

    def close(self) -> None:
        """A clean stop: settle the ledger, seal the last state, give the model back. Harmless when done twice."""
        if self._end.alive:
            self._step.settle()
            self.save()
            self._end()
            self._setting.clipper.close()

    def _snapshot(self) -> Snapshot:
        setting = self._setting
        return Snapshot(
            run=self.manifest.run,
            step=self.taken,
            ledger_head=self._ledger.head,
            ledger_size=self._ledger.size,
            weights=setting.model.state_dict(),
            optimizer=setting.optimizer.state_dict(),
            generators={"torch": _generators(), "streams": self._streams.secret()},
            extra={name: thing.state_dict() for name, thing in setting.also.items()},
        )


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


def _end(step: PrivateStep, ledger: Ledger) -> None:
    """What an abandoned run still owes: the ledger says how far it came. Runs at garbage collection and at exit too."""
    with contextlib.suppress(OSError, ValueError):
        step.settle()
    ledger.close()


def _fresh(setting: Setting) -> Stream:
    if setting.insecure_seed is None:
        return Stream.from_entropy("run")
    return Stream.from_insecure_seed(setting.insecure_seed, "run")


def _newest(setting: Setting) -> Snapshot:
    found = sorted((setting.folder / "checkpoints").glob("step-*.sealed"))
    if not found:
        raise ResumeError(
            f"run={setting.folder}: there is no snapshot; what the ledger reserved is spent, start a new run"
        )
    return load(found[-1], _key(setting))


def _key(setting: Setting) -> Key:
    if setting.key is not None:
        return setting.key if isinstance(setting.key, Key) else Key.read(setting.key)
    for one in setting.seal_to:
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


def _restore(snapshot: Snapshot, setting: Setting) -> Stream:
    setting.model.load_state_dict(dict(snapshot.weights))
    setting.optimizer.load_state_dict(snapshot.optimizer)
    for name, thing in setting.also.items():
        thing.load_state_dict(snapshot.extra[name])
    _set_generators(snapshot.generators["torch"])
    return Stream(snapshot.generators["streams"], "run", insecure=setting.insecure_seed is not None)


def _afresh(snapshot: Snapshot, setting: Setting) -> Stream:
    _restore(snapshot, setting)
    return _fresh(setting)


def _generators() -> dict[str, Any]:
    """State of torch's own generators, which dropout and augmentation draw from; sampler and noise never do."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
