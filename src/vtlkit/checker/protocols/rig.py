"""Virtual machines to check: the hypervisor is the code that ships, the processors are scripted.

As `scenarios.rig`, with the kick of a processor as a word of the host, and with guests that run until they are kicked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.hosted.places import place_of_script
from vtlkit.checker.hosted.words import CheckCell
from vtlkit.checker.scenarios.rig import Factory, Processor, Rig
from vtlkit.engine.api import EngineFactory
from vtlkit.engine.scripted import Guest, Handler, ScriptedEngine, ops
from vtlkit.host.api import Host


class CheckedProcessor(Processor):
    """A kick of it is seen between two instructions, and ends `run_until_kicked`."""

    def __init__(self, host: Host, name: str, program: Guest, handlers: Mapping[int, Handler]) -> None:
        self._kick = host.cell(False, f"{name}-kick")
        super().__init__(name, program, handlers)
        self.taken: list[int] = []
        """For guests: vectors of events whose handlers have begun."""

    @property
    def _kicked(self) -> bool:
        # A guest that has gone on stands somewhere else: a variable, as a task's place is its functions' variables.
        scripts = [place_of_script(frame.script) for frame in self._frames]
        kicked = self._kick.load()
        del scripts
        return kicked

    @_kicked.setter
    def _kicked(self, value: bool) -> None:
        self._kick.store(value)

    def wait_for_kick(self, *, may_sleep: bool = True) -> int:
        """What a guest does that computes for ever. It may be left alone with that, unless somebody has to kick it."""
        assert isinstance(self._kick, CheckCell)
        self._kick.await_value(bool, may_sleep=may_sleep)
        return 0


class _Factory(Factory):
    def __init__(self, host: Host, programs: Sequence[Guest], handlers: Mapping[int, Handler]) -> None:
        super().__init__(programs, handlers)
        self._host = host

    def create(self, vcpu_name: str) -> ScriptedEngine:
        return CheckedProcessor(self._host, vcpu_name, next(self._programs), self._handlers)


class CheckedRig(Rig):
    """A VM whose tasks are spawned one by one: `spawn`."""

    def __init__(self, host: Host, programs: Sequence[Guest], **options: Any) -> None:
        self._checked = host
        super().__init__(host, programs, **options)  # type: ignore[arg-type]

    def _factory(self, programs: Sequence[Guest], handlers: Mapping[int, Handler]) -> EngineFactory:
        return _Factory(self._checked, programs, handlers)

    def spawn(self, function: Callable[[], object], name: str, *, daemon: bool = False) -> None:
        """A task; its result is of no interest. `daemon`: it may be left waiting."""

        def body() -> None:
            function()

        self.host.spawn(body, name, daemon=daemon)


def run_until_kicked(engine: CheckedProcessor) -> ops.Op:
    """An instruction: compute for ever."""
    return ops.Host(engine.wait_for_kick)


def run_until_somebody_kicks(engine: CheckedProcessor) -> ops.Op:
    """The same, where it is an error if nobody does."""
    return ops.Host(partial(engine.wait_for_kick, may_sleep=False))


def hosted(build: Callable[[Host], object], model: str, *, rounds: int | None = None) -> HostedProgram:
    """The tasks that `build` spawns, as a program."""
    return HostedProgram(build, model, rounds=rounds)
