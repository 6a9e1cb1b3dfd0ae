# SPDX-License-Identifier: Apache-2.0
"""Runs actors that share files in every order of their system calls, with a bound on how often one is interrupted.

Each actor is a thread that stops before every system call by which others could see what it does, or it what they do.
One runs at a time; the schedule says at which call it has to make way for whom. With a bound of ``n`` interruptions all
schedules that have at most ``n`` are run (Musuvathi and Qadeer, PLDI 2007, "Iterative context bounding": most faults of
concurrent programs show with two). A blocking lock makes way until it is free. An actor can be killed before any of its
calls: its descriptors are closed, its locks go, and nothing of it runs any more.
"""

import fcntl
import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

CALLS = ("open", "rename", "unlink", "mkdir", "rmdir", "link", "pwrite", "preadv", "pread", "listdir", "ftruncate")


class Killed(BaseException):
    """The process of this actor is dead."""


@dataclass
class Actor:
    """One process: what it does, and what came of it."""

    action: Callable[[], Any]
    result: Any = None
    error: BaseException | None = None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: bool = False
    blocked: bool = False
    dead: bool = False
    steps: int = 0
    descriptors: set[int] = field(default_factory=set)


class Run:
    """One run of the actors under one schedule: ``switches`` maps a step to the actor that goes on there."""

    def __init__(self, actions: list[Callable[[], Any]], switches: dict[int, int], *, kill_at: int = -1) -> None:
        self.actors = [Actor(action) for action in actions]
        self.switches, self.kill_at = switches, kill_at
        self.step = 0
        self.trace: list[int] = []
        self._back = threading.Semaphore(0)
        self._local = threading.local()
        self._real: dict[str, Any] = {}

    def go(self) -> "Run":
        threads = [threading.Thread(target=self._live, args=(actor,), daemon=True) for actor in self.actors]
        self._patch()
        try:
            for thread in threads:
                thread.start()
            self._schedule()
        finally:
            self._restore()
        for thread in threads:
            thread.join(10)
        if any(actor.dead for actor in self.actors):
            gc.collect()  # what a killed actor left half way closes its descriptors now, and not under the next run
        return self

    def _schedule(self) -> None:
        current = self.switches.get(0, 0)
        while not all(actor.done for actor in self.actors):
            wanted = self.switches.get(self.step, current)
            ready = [at for at, actor in enumerate(self.actors) if not actor.done and not actor.blocked]
            assert ready, "deadlock"
            current = wanted if wanted in ready else ready[0]
            actor = self.actors[current]
            if current == 0 and actor.steps == self.kill_at:
                self._kill(actor)
            self.trace.append(current)
            actor.turn.release()
            assert self._back.acquire(timeout=30), "an actor hangs"
            self.step += 1
            actor.steps += 1
            if not actor.blocked:
                for other in self.actors:
                    other.blocked = False

    def _kill(self, actor: Actor) -> None:
        actor.dead = True
        nothing = self._real["open"](os.devnull, os.O_RDONLY)
        for descriptor in actor.descriptors:  # the file is let go, and its lock; the number is closed by its owner
            os.dup2(nothing, descriptor)
        self._real["close"](nothing)

    def _live(self, actor: Actor) -> None:
        actor.turn.acquire()
        self._local.actor = actor
        try:
            actor.result = None if actor.dead else actor.action()
        except BaseException as error:
            actor.error = error
        finally:
            actor.done = True
            self._local.actor = None
            self._back.release()

    def _pause(self, actor: Actor) -> None:
        if actor.dead:
            raise Killed
        self._back.release()
        actor.turn.acquire()
        if actor.dead:
            raise Killed

    def _patch(self) -> None:
        for name in (*CALLS, "close"):
            self._real[name] = getattr(os, name)
            setattr(os, name, self._wrapped(name, self._real[name], pause=name in CALLS))
        self._real["flock"], self._real["sleep"] = fcntl.flock, time.sleep
        fcntl.flock = self._flock
        time.sleep = self._sleep

    def _restore(self) -> None:
        fcntl.flock, time.sleep = self._real.pop("flock"), self._real.pop("sleep")
        for name, real in self._real.items():
            setattr(os, name, real)

    def _wrapped(self, name: str, real: Any, *, pause: bool) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            actor = getattr(self._local, "actor", None)
            if actor is None:
                return real(*arguments, **named)
            if actor.dead and name != "close":
                raise Killed
            if pause:
                self._pause(actor)
            result = real(*arguments, **named)
            if name == "open":
                actor.descriptors.add(result)
            elif name == "close":
                actor.descriptors.discard(arguments[0])
            return result

        return call

    def _flock(self, descriptor: int, how: int) -> None:
        actor = getattr(self._local, "actor", None)
        if actor is None:
            return self._real["flock"](descriptor, how)
        self._pause(actor)
        while True:
            try:
                return self._real["flock"](descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if how & fcntl.LOCK_NB:
                    raise
                actor.blocked = True
                self._pause(actor)

    def _sleep(self, _: float) -> None:
        actor = getattr(self._local, "actor", None)
        if actor is None:
            return self._real["sleep"](_)
        actor.blocked = True  # whoever sleeps waits for others
        if all(other is actor or other.done or other.blocked for other in self.actors):
            actor.blocked = False
        return self._pause(actor)


def schedules(actions: Callable[[], list[Callable[[], Any]]], *, bound: int, every: int = 1) -> Iterator[Run]:
    """All runs with at most ``bound`` interruptions; of those with ``bound`` of them one in ``every``.

    ``actions`` makes the actors anew, with the files that they share, before each run.
    """
    count = len(actions())
    frontier = [{0: first} for first in range(count)]
    for depth in range(bound + 1):
        deeper = []
        for number, switches in enumerate(frontier):
            if depth == bound and number % every:
                continue
            run = Run(actions(), switches).go()
            yield run
            last = max(switches)
            for step, other in itertools.product(range(last + 1, run.step), range(count)):
                if run.trace[step] != other:
                    deeper.append({**switches, step: other})
        frontier = deeper


def kills(actions: Callable[[], list[Callable[[], Any]]]) -> Iterator[Run]:
    """The first actor killed before each of its calls, and the others run after it."""
    gc.collect()
    gc.freeze()  # each run collects: not all that a process of many tests has imported, 0.7 s at a time
    try:
        for at in itertools.count():
            run = Run(actions(), {0: 0}, kill_at=at).go()
            if not run.actors[0].dead:
                return
            yield run
    finally:
        gc.unfreeze()
