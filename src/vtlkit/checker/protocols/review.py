"""Questions of a review, asked of the code that ships: who clears a kick, and which request ends a suspension."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vtlkit.checker.protocols import Expected, KnownBad, Protocol, Sizes
from vtlkit.checker.protocols.kernel import with_variants
from vtlkit.checker.result import ProblemKind

if TYPE_CHECKING:
    from vtlkit.checker.program import Program
    from vtlkit.host.api import Host

_RIGHT: Final[Expected] = {"sc": None, "tso": None, "rc11": None}


def _built(build: Callable[[Host], None]) -> Callable[[str, Sizes], Program]:
    def program(model: str, _sizes: Sizes) -> Program:
        from vtlkit.checker.protocols.rig import hosted

        return hosted(build, model, rounds=2)

    return program


# --- kick all ---------------------------------------------------------------------------------------------------------


def _kick(host: Host, design: str = "sticky", *, promise: bool = True, as_proposed: bool = False) -> None:
    """One vCPU whose guest never exits by itself, run again and again; user space kicks it, changes slots, resumes."""
    from vtlkit.checker.protocols.rig import CheckedRig, run_until_kicked
    from vtlkit.engine.scripted import ops
    from vtlkit.kvm.kick_all import KickDesign

    changing = host.cell(False, "changing")

    def look() -> int:
        # To enter a guest orders what is before and behind it.
        host.smp_mb()
        assert not changing.load(), "a guest runs while user space changes the slots"
        return 0

    def guest(engine: Any) -> Iterator[ops.Op]:
        while True:
            if promise:
                yield ops.Host(look)
            yield run_until_kicked(engine)

    rig = CheckedRig(host, [guest], prepare=lambda vm: vm.set_kick_design(KickDesign(design)))  # type: ignore[list-item]
    if as_proposed:
        rig.vm.kicks._kicker_waits = lambda: False  # type: ignore[method-assign]

    def run() -> None:
        for _ in range(2):
            rig.vcpus[0].run()

    def kick() -> None:
        rig.vm.kick_all_running_vcpus()
        changing.store(True)
        # A change of slots ends with a barrier of its own; the resume has none.
        host.smp_mb()
        changing.store(False)
        host.smp_mb()
        rig.vm.resume_all_kicked_vcpus()

    rig.spawn(run, "vcpu", daemon=True)
    rig.spawn(kick, "kicker")
