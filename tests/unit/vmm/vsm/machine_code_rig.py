"""A processor of the embedded engine with machine code in VTL 0, and a VTL 1 whose policy is a Python function.

VTL 1 is a loop of an OUT to POLICY and a VTL return: the test's function runs at each OUT, that is at each entry, in
the processor's own task. VTL 0 ends the run by an OUT to DONE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.unit.vmm.vsm.vsm_rig import initial_context
from vtlkit.engine.api import Access, RamBlock
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER, HV_X64_TABLE_REGISTER
from vtlkit.kvm.uapi import HvFeatures, Io, Kvm, KvmRun, MemoryRegion, Vcpu, cr4_allowed
from vtlkit.testing import guest_builder as builder
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.vmm.vsm import context
from vtlkit.vmm.vsm.partition import Partition
from vtlkit.vmm.vsm.vp import Vp

PAGE: Final = 4096
RAM_SIZE: Final = 0x100000
POLICY: Final = 0x91
DONE: Final = 0x90
COUNTS: Final = 0x50000
"""A counter of 8 bytes for each vector that VTL 0 has taken."""
VTL1_CODE: Final = 0x60000
VTL1_STACK: Final = 0x62000
LIMIT_NS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class End:
    """Where VTL 0 stood when the run ended; the processors are gone then."""

    rsp: int
    frame: tuple[int, ...]
    """Eight words from RSP on."""
    cr2: int
    nmi_blocked: bool
    upper_rsp: int
    """VTL 1's."""


class CodeRig:
    """One processor; `policy` is called at each entry of VTL 1."""

    def __init__(self, policy: Callable[[CodeRig], None], *, cpl: int = 0, bits: tuple[int, int] = (64, 64)) -> None:
        """`bits`: the code of VTL 0 and VTL 1, 32 or 64."""
        self.host = Simulator()
        self.policy = policy
        self.entries = 0
        self.exits: list[KvmRun] = []
        self.end = End(0, (), 0, False, 0)
        self._ending = self.host.cell(False, "rig-ending")
        self.ram = RamBlock(RAM_SIZE)
        self.factory = UnicornFactory()
        region = MemoryRegion(0, 0, RAM_SIZE, self.ram, 0)
        self.partition = Partition(Kvm(self.host, self.factory), [region], **self._options())
        self.vp = self.partition.vps[0]
        self.vtl0 = self.vp.vcpus[0]
        self.guest = builder.Guest(self.vtl0.engine, self.ram, map_ram=False)
        self.guest._tables()
        if bits[0] == 64:
            self.guest.long_mode(cpl)
        else:
            self.guest.protected_mode()
        for vector in range(256):
            self._handler(vector)
        self.vtl0.start_runnable()
        self.vtl1 = self._enable_vtl1(bits[1])

    def _options(self) -> dict[str, Any]:
        return {"cpus": 1, "vtls": 2, "hyperv": HvFeatures(), "supervisor": self}

    def _handler(self, vector: int) -> None:
        """Counts and ends the run; the frame stays on the stack."""
        at = builder.Guest.handler(vector)
        code = Assembler(64, at)
        code.inc(Mem(None, COUNTS + 8 * vector, size=8))
        code.out(DONE, "al")
        self.guest.write(at, code.code())

    def vtl1_loop(self, code: Assembler) -> None:
        """Replace what VTL 1 executes."""
        self.guest.write(VTL1_CODE, code.code())

    def _enable_vtl1(self, bits: int) -> Vcpu:
        code = Assembler(bits, VTL1_CODE)
        code.label("entry")
        code.out(POLICY, "al")
        code.mov("eax", 1)
        code.mov("ecx", HvCallCode.HvCallVtlReturn)
        code.vmmcall()
        code.jmp("entry")
        self.vtl1_loop(code)
        tables = HV_X64_TABLE_REGISTER(Limit=0xFFF, Base=builder.IDT)
        mode: dict[str, Any] = {}
        if bits == 32:
            mode = {"Cs": HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 0x18, 0xC09B), "Efer": 0, "Cr0": 0x33, "Cr4": 0}
        state = context.decode(
            initial_context(VTL1_CODE, Rsp=VTL1_STACK, Cr3=builder.PML4, Idtr=tables, **mode), cr4_allowed(self.vtl0)
        )
        assert state is not None
        with self.partition.lock:
            self.partition.enable_vtl(1)
            vcpu = self.partition.create_vcpu(0, 1)
            state.apply(vcpu)
            self.vp.add_vcpu(vcpu, 1)
        for vtl in self.partition.vtls.values():
            vtl.vm.hv.set_guest_os_id(1)
        return vcpu

    # --- what tests do ----------------------------------------------------------------------------------------------

    def code(self) -> Assembler:
        """Where VTL 0 starts."""
        return self.guest.assembler()

    @staticmethod
    def enable_apic(vcpu: Vcpu) -> None:
        """In x2APIC mode."""
        assert vcpu.apic.set_base(0xFEE00D00, host_initiated=True)
        assert vcpu.set_msr(0x80F, 0x1FF)

    def protect(self, gpa: int, access: Access) -> None:
        """VTL 1 permits VTL 0 this on the page of an address."""
        with self.partition.lock:
            self.partition.protect(1, 0, gpa & -PAGE, PAGE, access)

    def message(self) -> bytes:
        """The intercept message that VTL 1 finds in its assist page: its SINT 0 takes none."""
        return self.vtl1.hv.assist.read(0x70, 256)

    def taken(self) -> dict[int, int]:
        """How often VTL 0 has taken which vector."""
        counts = {vector: self.guest.read(COUNTS + 8 * vector, 8) for vector in range(256)}
        return {vector: count for vector, count in counts.items() if count}

    def run(self) -> CodeRig:
        for vp in self.partition.vps:
            vp.start()
        try:
            self.host.run(until=LIMIT_NS)
            assert self.ending(), "the guest goes nowhere"
        finally:
            self.host.stop()
        return self

    def close(self) -> None:
        self.factory.close()

    # --- vsm.partition.Supervisor -----------------------------------------------------------------------------------

    def ending(self) -> bool:
        return self._ending.load()

    def must_park(self) -> bool:
        return False

    def park(self) -> None:
        raise AssertionError("nothing parks here")

    def task_started(self) -> None: ...

    def task_finished(self, *_vcpu: Vcpu) -> None: ...

    def vcpu_finished(self, vcpu: Vcpu) -> None:
        """The test looks at the processor yet: closing the factory ends it."""
        vcpu.__dict__["close"] = lambda: None

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        if isinstance(exit_, Io) and exit_.port == POLICY:
            assert vcpu is self.vtl1
            self.entries += 1
            self.policy(self)
            return
        self.exits.append(exit_)
        engine = self.vtl0.engine
        self.end = End(
            engine.regs.rsp,
            self.guest.frame(8),
            self.vtl0.get_sregs().cr2,
            engine.nmi_blocked,
            self.vtl1.engine.regs.rsp,
        )
        self._ending.store(True)
        for each in self.partition.all_vcpus():
            each.signal()
        self.partition.wake_all()
