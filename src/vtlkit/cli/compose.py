"""The composition root: which host and which engine a machine gets, from what the command line asks.

Deterministic (the default): the simulator, and an engine that counts instructions; a run is a function of the guest and
the seed. Real time: a thread per virtual processor, the machine's own clock, and an engine that counts nothing. On
/dev/kvm there is no other.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vtlkit.cli.words import word_parser

if TYPE_CHECKING:
    from vtlkit.engine.api import EngineFactory
    from vtlkit.host.api import RunnableHost
    from vtlkit.trace.tracer import Tracer
    from vtlkit.vmm.config import MachineConfig
    from vtlkit.vmm.machine import Machine

    TraceOf = Callable[[RunnableHost], Tracer | None]
    """Begins the trace of what runs on a host, if there is to be one."""


class EngineChoice(enum.StrEnum):
    """What `--engine` takes."""

    AUTO = "auto"
    UNICORN = "unicorn"
    KVM = "kvm"


EngineOption = Annotated[
    EngineChoice,
    typer.Option(
        parser=word_parser(EngineChoice), metavar="|".join(EngineChoice), help="What executes guest instructions."
    ),
]
"""`--engine`."""


VENDORS: Final = ("svm", "vmx")
"""As `vtlkit.kvm.uapi.VENDORS`, which would take too long to import for --help."""
VendorOption = Annotated[
    str,
    typer.Option(parser=word_parser(VENDORS), metavar="|".join(VENDORS), help="How the hypervisor's run loop behaves."),
]
"""`--vendor`."""


NO_EXECUTE: Final = ("emulate", "refuse")
NoExecuteOption = Annotated[
    str,
    typer.Option(
        parser=word_parser(NO_EXECUTE),
        metavar="|".join(NO_EXECUTE),
        help="On /dev/kvm, memory that may be read and not executed: emulate its accesses, or end the run.",
    ),
]
"""`--no-execute`."""


class CannotCompose(Exception):
    """The machine asked for cannot be had here. One line: why, and what to do."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How a machine is run. `seed` draws the order of virtual processors and is for the deterministic mode only."""

    engine: EngineChoice = EngineChoice.AUTO
    realtime: bool = False
    seed: int | None = None
    no_execute: str = "emulate"

    def check(self) -> None:
        """Raise `CannotCompose` for what is not to be had, before anything is made."""
        if self.engine is EngineChoice.KVM and self.seed is not None:
            raise CannotCompose(
                "a seed cannot reproduce a run on --engine kvm, which is in real time: "
                "leave out --seed, or use --engine unicorn"
            )
        if self.realtime and self.seed is not None:
            raise CannotCompose("a seed cannot reproduce a run in real time: leave out --seed or --realtime")

    @property
    def real(self) -> bool:
        """Whether it is in real time: a processor that nobody counts the instructions of knows no other."""
        return self.realtime or self.engine is EngineChoice.KVM

    def reproduce(self) -> str:
        """What to tell a user who wants to see the same run again; empty where that cannot be had."""
        if self.real:
            return ""
        return "reproduce with: the same command" if self.seed is None else f"reproduce with: --seed {self.seed}"


@contextmanager
def composed(
    mode: Mode, config: MachineConfig, console: Callable[[bytes], None], trace: TraceOf | None = None
) -> Iterator[Machine]:
    """A machine that is ready to load an image; its host and engines end with the block.

    Raises:
        CannotCompose: the mode, the engine or so much memory is not to be had here.
    """
    from vtlkit.engine.api import EngineError
    from vtlkit.vmm.machine import Machine

    mode.check()
    if config.nested:
        if mode.engine is EngineChoice.KVM:
            raise CannotCompose("--nested needs an engine that exits where L1 wants it: use --engine unicorn")
        mode = replace(mode, engine=EngineChoice.UNICORN)
    try:
        engines = make_engines(mode)
    except EngineError as error:
        raise CannotCompose(str(error)) from error
    try:
        with _host(mode) as host:
            try:
                machine = Machine(config, host, engines, console, None if trace is None else trace(host))
            except MemoryError as error:
                raise CannotCompose(f"{error}; give less with --memory") from error
            yield machine
    finally:
        engines.close()


def make_engines(mode: Mode) -> EngineFactory:
    """The engine factory of a mode. Raises EngineError where the engine cannot be used."""
    if mode.engine is EngineChoice.KVM or (mode.engine is EngineChoice.AUTO and mode.realtime and _kvm_preferred()):
        from vtlkit.engine.devkvm import DevKvmFactory

        return DevKvmFactory(emulate_no_execute=mode.no_execute == "emulate")
    from vtlkit.engine.unicorn import UnicornFactory

    return UnicornFactory(counting=not mode.real, threaded=mode.real)


def _kvm_preferred() -> bool:
    from vtlkit.cli.engine_choice import judge_kvm

    return judge_kvm().preferred


@contextmanager
def _host(mode: Mode) -> Iterator[RunnableHost]:
    if mode.real:
        from vtlkit.host.threads import ThreadHost

        with ThreadHost() as threads:
            yield threads
        return
    from vtlkit.host.sim import Simulator

    simulator = Simulator() if mode.seed is None else Simulator(seed=mode.seed)
    try:
        yield simulator
    finally:
        simulator.stop()
