"""A scripted L1 that runs a scripted L2, for unit tests: the control block is a pair of structures in page 1 of RAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.unit.kvm.core_rig import DONE, Machine, Script
from vtlkit.checker.scenarios.nested_rig import L2_RIP as L2_RIP
from vtlkit.checker.scenarios.nested_rig import VMCB as VMCB
from vtlkit.checker.scenarios.nested_rig import Nesting
from vtlkit.engine.scripted import Guest, Handler, ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.kvm.kvm_run import Io
from vtlkit.trace.sinks import Sink
from vtlkit.x86.registers import RFLAGS_IF

IO_MAP = 0x4000
MSR_MAP = 0x8000


class Nest(Nesting, Machine):
    """L1 does `before`, VMRUN, then `after`; L2 is `guest`. VMRUN and VMMCALL are intercepted."""

    def __init__(
        self,
        guest: Guest,
        *,
        before: tuple[Op, ...] = (),
        after: Callable[[Nest], Script] | None = None,
        handlers: Mapping[int, Handler] | None = None,
        vendor: str | None = None,
        sink: Sink | None = None,
    ) -> None:
        def program(_engine: object) -> Script:
            for instruction in before:  # noqa: UP028 - RAX is sent, which a tuple does not take
                yield instruction
            yield ops.Set(VMCB)
            yield ops.Intercepted("vmrun")
            if after is not None:
                yield from after(self)
            yield ops.Out(DONE, 1, 0)

        super().__init__(program, handlers=handlers, nested=True, vendor=vendor, sink=sink)
        self.nest(guest, msr_map=MSR_MAP, io_map=IO_MAP)

    def interrupts_on(self) -> None:
        """Of L1, before VMRUN."""
        self.cpu.rflags |= RFLAGS_IF

    def enter(self) -> int:
        """Run to L1's end; the exit code of the last #VMEXIT."""
        self.store()
        exit_ = self.vcpu.run()
        assert isinstance(exit_, Io), exit_
        assert exit_.port == DONE
        assert not self.vcpu.guest_mode
        self.load()
        return self.control.exit_code
