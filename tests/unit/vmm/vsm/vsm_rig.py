"""A partition without a machine around it, whose guests are Python generators: one per processor and VTL.

A guest is a generator function over a `Guest`, which makes its hypercalls, MSR accesses and VTL switches; what it saw
it keeps in variables of the test. The run ends when a guest calls `Guest.end`, or when all sleep (Deadlock).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from vtlkit.engine.api import Event, EventType, RamBlock
from vtlkit.engine.scripted import ScriptedEngine, ScriptedFactory, ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import msrs as hv_msrs
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_INITIAL_VP_CONTEXT, HV_X64_SEGMENT_REGISTER, HV_X64_TABLE_REGISTER
from vtlkit.kvm.uapi import HvFeatures, Io, Kvm, KvmRun, MemoryRegion, Vcpu
from vtlkit.vmm.vsm.partition import Partition
from vtlkit.vmm.vsm.vp import Vp
from vtlkit.vmm.vsm.vtl_wait import VtlWait
from vtlkit.x86.registers import RFLAGS_FIXED, Regs, Segment

RAM_SIZE: Final = 0x200000
PROGRAMS: Final = 0x10000  # one page per VTL, 0x10 bytes per processor
INPUT_PAGES: Final = 0x40000  # hypercall input and output: two per processor and VTL
SYNIC_PAGES: Final = 0xC0000  # VP assist page and message page, likewise
FREE: Final = 0x150000  # from here on RAM is the test's
PAGE: Final = 0x1000
CR0: Final = 0x80010033
CR4: Final = 0x20
EFER: Final = 0x500
PAT_RESET: Final = 0x0007040600070406
U32: Final = 0xFFFFFFFF
DESIGN: Final = VtlWait(os.environ.get("VTLKIT_VTL_WAIT", VtlWait.POLL))
"""Of a rig that names none: all tests of VSM can be run over each design."""
ALL_FEATURES: Final = HvFeatures()

Script: TypeAlias = Generator[Op, int, Any]
Body: TypeAlias = Callable[["Guest"], Script]
InterruptBody: TypeAlias = Callable[["Guest", Event], Script]


def reps(count: int, start: int = 0) -> int:
    """The rep fields of a hypercall input value."""
    return count << 32 | start << 48


def input_vtl(level: int) -> int:
    """HV_INPUT_VTL that names a VTL."""
    return level | 0x10


def initial_context(rip: int, **changes: Any) -> HV_INITIAL_VP_CONTEXT:
    """A 64-bit context, changed where the test says."""
    data = HV_X64_SEGMENT_REGISTER(0, U32, 0x10, 0xC093)
    fields: dict[str, Any] = {
        "Rip": rip,
        "Rsp": 0x9000,
        "Rflags": RFLAGS_FIXED,
        "Cs": HV_X64_SEGMENT_REGISTER(0, U32, 8, 0xA09B),
        **dict.fromkeys(("Ds", "Es", "Fs", "Gs", "Ss"), data),
        "Tr": HV_X64_SEGMENT_REGISTER(0x3000, 0x67, 0x50, 0x8B),
        "Ldtr": HV_X64_SEGMENT_REGISTER(0, 0xFFFF, 0, 0x82),
        "Idtr": HV_X64_TABLE_REGISTER(Limit=0xFFF, Base=0x2000),
        "Gdtr": HV_X64_TABLE_REGISTER(Limit=0x7F, Base=0x1000),
        "Efer": EFER,
        "Cr0": CR0,
        "Cr3": 0x8000,
        "Cr4": CR4,
        "MsrCrPat": PAT_RESET,
    }
    return HV_INITIAL_VP_CONTEXT(**{**fields, **changes})


@dataclass(frozen=True, slots=True)
class Taken:
    """An event that a guest's handler was entered for."""

    vp: int
    vtl: int
    vector: int
    error_code: int | None


class World(Protocol):
    """What a guest needs of the rig that it is in."""

    log: list[Any]
    partition: Partition
    taken: list[Taken]

    def end(self) -> None: ...

    def entry(self, vp: int, vtl: int) -> int: ...

    def write(self, gpa: int, data: bytes) -> None: ...

    def read(self, gpa: int, size: int) -> int: ...

    def read_vtl(self, vtl: int, gpa: int, size: int) -> int: ...


class Guest:
    """One VTL of one processor, as the code in it sees the world."""

    def __init__(self, rig: World, engine: ScriptedEngine) -> None:
        self.rig = rig
        self.engine = engine
        vtl, vp = engine.name.removeprefix("vtl").split("-vcpu")
        self.vtl, self.vp = int(vtl), int(vp)
        self.regs = engine.regs
        slot = (self.vtl * 16 + self.vp) * 2 * PAGE % (SYNIC_PAGES - INPUT_PAGES)
        self.input = INPUT_PAGES + slot
        self.output = self.input + PAGE
        self.assist = SYNIC_PAGES + slot
        self.messages = self.assist + PAGE

    def end(self) -> Script:
        yield ops.Host(self.rig.end)

    def note(self, what: Any) -> None:
        self.rig.log.append(what)

    # --- hypercalls -------------------------------------------------------------------------------------------------

    def call(self, code: int, data: bytes = b"", *, elements: int = 0, start: int = 0) -> Generator[Op, int, int]:
        """A memory-based hypercall; its result value."""
        self.rig.write(self.input, data)
        yield ops.Set(code | reps(elements, start), "rcx")
        yield ops.Set(self.input, "rdx")
        yield ops.Set(self.output, "r8")
        return (yield ops.Vmmcall())

    def enable_partition_vtl(
        self, vtl: int, *, flags: int = 0, partition: int = HV_PARTITION_ID_SELF, reserved: bytes = bytes(6)
    ) -> Generator[Op, int, int]:
        request = io.HV_INPUT_ENABLE_PARTITION_VTL(partition, vtl, flags, reserved)
        return (yield from self.call(Call.HvCallEnablePartitionVtl, request.pack()))

    def enable_vp_vtl(
        self,
        vtl: int,
        *,
        vp: int = HV_VP_INDEX_SELF,
        context: HV_INITIAL_VP_CONTEXT | None = None,
        partition: int = HV_PARTITION_ID_SELF,
        reserved: bytes = bytes(3),
    ) -> Generator[Op, int, int]:
        number = self.vp if vp == HV_VP_INDEX_SELF else vp
        context = initial_context(self.rig.entry(number, vtl)) if context is None else context
        request = io.HV_INPUT_ENABLE_VP_VTL(partition, vp, vtl, reserved, context)
        return (yield from self.call(Call.HvCallEnableVpVtl, request.pack()))

    def start_vp(
        self,
        vp: int,
        vtl: int = 0,
        *,
        context: HV_INITIAL_VP_CONTEXT | None = None,
        partition: int = HV_PARTITION_ID_SELF,
        reserved: bytes = bytes(3),
    ) -> Generator[Op, int, int]:
        """HvCallStartVirtualProcessor; the result value."""
        context = initial_context(self.rig.entry(vp, vtl)) if context is None else context
        request = io.HV_INPUT_START_VIRTUAL_PROCESSOR(partition, vp, vtl, reserved, context)
        return (yield from self.call(Call.HvCallStartVirtualProcessor, request.pack()))

    def enable(self, vtl: int) -> Script:
        """A VTL on the partition and on this processor; both must succeed."""
        assert (yield from self.enable_partition_vtl(vtl)) == HvStatus.SUCCESS
        assert (yield from self.enable_vp_vtl(vtl)) == HvStatus.SUCCESS

    def get(self, name: int, *, vtl: int = 0, vp: int = HV_VP_INDEX_SELF) -> Generator[Op, int, tuple[int, int]]:
        """(status, value) of one register; `vtl` is an HV_INPUT_VTL byte, 0 meaning the caller's."""
        request = io.HV_INPUT_GET_VP_REGISTERS(HV_PARTITION_ID_SELF, vp, vtl)
        data = request.pack() + name.to_bytes(4, "little")
        result = yield from self.call(Call.HvCallGetVpRegisters, data, elements=1)
        return result & 0xFFFF, self.rig.read(self.output, 16)

    def set(self, name: int, value: int, *, vtl: int = 0, vp: int = HV_VP_INDEX_SELF) -> Generator[Op, int, int]:
        """Status of a write of one register."""
        request = io.HV_INPUT_SET_VP_REGISTERS(HV_PARTITION_ID_SELF, vp, vtl)
        pair = io.HV_REGISTER_ASSOC(name, (0, 0, 0), value.to_bytes(16, "little"))
        result = yield from self.call(Call.HvCallSetVpRegisters, request.pack() + pair.pack(), elements=1)
        return result & 0xFFFF

    def protect(self, gpas: list[int], flags: int, *, vtl: int = 0) -> Generator[Op, int, int]:
        """HvCallModifyVtlProtectionMask; the result value."""
        request = io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK(HV_PARTITION_ID_SELF, flags, vtl)
        pages = b"".join((gpa // PAGE).to_bytes(8, "little") for gpa in gpas)
        return (yield from self.call(Call.HvCallModifyVtlProtectionMask, request.pack() + pages, elements=len(gpas)))

    def vtl_call(self, control: int = 0) -> Script:
        yield ops.Set(control, "rax")
        yield ops.Set(Call.HvCallVtlCall, "rcx")
        yield ops.Vmmcall()

    def vtl_return(self, control: int = 1) -> Script:
        yield ops.Set(control, "rax")
        yield ops.Set(Call.HvCallVtlReturn, "rcx")
        yield ops.Vmmcall()

    # --- MSRs and interrupts ----------------------------------------------------------------------------------------

    def wrmsr(self, index: int, value: int) -> Script:
        yield ops.Set(index, "rcx")
        yield ops.Set(value >> 32, "rdx")
        yield ops.Set(value & U32)
        yield ops.Wrmsr()

    def rdmsr(self, index: int) -> Generator[Op, int, int]:
        """Of an MSR that exits."""
        yield ops.Set(index, "rcx")
        low = yield ops.Rdmsr()
        return self.regs.rdx << 32 | low

    def enable_assist_page(self) -> Script:
        yield from self.wrmsr(hv_msrs.HV_X64_MSR_VP_ASSIST_PAGE, self.assist | 1)

    def enable_synic(self, vector: int = 0x30) -> Script:
        """Message page, and SINT 0 with this vector, in an enabled APIC."""
        yield from self.enable_apic()
        yield from self.wrmsr(hv_msrs.HV_X64_MSR_SIMP, self.messages | 1)
        yield from self.wrmsr(hv_msrs.HV_X64_MSR_SINT0, vector)
        yield from self.wrmsr(hv_msrs.HV_X64_MSR_SCONTROL, 1)

    def enable_apic(self) -> Script:
        """x2APIC mode, software-enabled, spurious vector 255."""
        yield from self.wrmsr(0x1B, 0xFEE00C00 | (0x100 if self.vp == 0 else 0))
        yield from self.wrmsr(0x80F, 0x1FF)

    def send_ipi(self, vp: int, vector: int) -> Script:
        """A fixed IPI in this VTL's own APIC namespace."""
        yield from self.wrmsr(0x830, vp << 32 | 0x4000 | vector)

    @property
    def entry_reason(self) -> int:
        """What the VP assist page says."""
        return self.rig.read_vtl(self.vtl, self.assist + 8, 4)

    def take_message(self) -> bytes:
        """The message in the slot of SINT 0, which is emptied; empty if there is none."""
        vm = self.rig.partition.vtls[self.vtl].vm
        message = vm.memory.read(self.messages, 256)
        if not int.from_bytes(message[:4], "little"):
            return b""
        vm.memory.write(self.messages, bytes(4))
        return message


class VsmRig:
    """The partition, its guests, and what the machine around it would do."""

    def __init__(
        self,
        guests: Mapping[tuple[int, int], Body],
        *,
        cpus: int = 1,
        vtls: int = 2,
        host: RunnableHost | None = None,
        hyperv: HvFeatures | None = ALL_FEATURES,
        ram: int = RAM_SIZE,
        vtl_wait: VtlWait | None = None,
    ) -> None:
        """`guests`: (VP, VTL) -> what runs there."""
        self.host = Simulator() if host is None else host
        self.log: list[Any] = []
        self.taken: list[Taken] = []
        self.handlers: dict[tuple[int, int], InterruptBody] = {}
        """(VTL, vector) -> what a handler does besides being noted; EOI follows for interrupts."""
        self.exits: list[KvmRun] = []
        """Exits that had nothing to do with VTLs."""
        self._ending = self.host.cell(False, "rig-ending")
        self._guests = guests
        self._ports = False
        programs = {self.entry(vp, vtl): self._program for vp in range(cpus) for vtl in range(vtls)}
        self.factory = ScriptedFactory(programs, dict.fromkeys(range(256), self._handler))
        self.ram = RamBlock(ram)
        self.kvm = Kvm(self.host, self.factory)
        region = MemoryRegion(0, 0, ram, self.ram, 0)
        make = partial(Partition, self.kvm, [region], supervisor=self, vtl_wait=vtl_wait or DESIGN)
        self.partition = make(cpus=cpus, vtls=vtls, hyperv=hyperv)
        self.tasks = 0
        for vp in range(cpus):
            if (vp, 0) in guests:
                self._boot(vp)

    @staticmethod
    def entry(vp: int, vtl: int) -> int:
        """Where a VTL of a processor starts."""
        return PROGRAMS + vtl * PAGE + vp * 0x10

    def _boot(self, index: int) -> None:
        vcpu = self.partition.vps[index].vcpus[0]
        sregs = vcpu.get_sregs()
        sregs.cs = Segment(8, 0, U32, 0xA9B)
        sregs.ss = Segment(0x10, 0, U32, 0xC93)
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = CR0, 0x8000, CR4, EFER
        vcpu.set_sregs(sregs)
        vcpu.set_regs(Regs(rip=self.entry(index, 0), rsp=0x8000, rflags=RFLAGS_FIXED))
        vcpu.start_runnable()
        # Hypercalls need a guest OS identity; every VTL has its own.
        vcpu.vm.hv.set_guest_os_id(1)

    # --- guests -----------------------------------------------------------------------------------------------------

    def _program(self, engine: ScriptedEngine) -> Script:
        guest = Guest(self, engine)
        if guest.vtl:
            yield from guest.wrmsr(hv_msrs.HV_X64_MSR_GUEST_OS_ID, 1)
        yield from self._guests[guest.vp, guest.vtl](guest)

    def _handler(self, engine: ScriptedEngine, event: Event) -> Script:
        guest = Guest(self, engine)
        # Registers that the interrupted code was using.
        saved = {name: getattr(engine.regs, name) for name in ("rax", "rcx", "rdx", "r8")}
        self.taken.append(Taken(guest.vp, guest.vtl, event.vector, event.error_code))
        body = self.handlers.get((guest.vtl, event.vector))
        assert body is not None or event.type is not EventType.EXCEPTION, f"{self.taken[-1]}, RCX {engine.regs.rcx:#x}"
        if body is not None:
            yield from body(guest, event)
        if event.vector >= 32:
            yield from guest.wrmsr(0x80B, 0)
            for name, value in saved.items():
                yield ops.Set(value, name)

    # --- memory -----------------------------------------------------------------------------------------------------

    def write(self, gpa: int, data: bytes) -> None:
        """Into RAM, whatever is laid over it."""
        self.ram.view[gpa : gpa + len(data)] = data

    def read(self, gpa: int, size: int) -> int:
        """A number from RAM, whatever is laid over it."""
        return int.from_bytes(self.ram.view[gpa : gpa + size], "little")

    def read_vtl(self, vtl: int, gpa: int, size: int) -> int:
        """A number as a VTL sees it, its overlay pages included."""
        return int.from_bytes(self.partition.vtls[vtl].vm.memory.read(gpa, size), "little")

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self) -> VsmRig:
        """Run to the end; every engine is closed then."""
        for vp in self.partition.vps:
            vp.start()
        try:
            self.host.run()
        finally:
            self.factory.close()
        return self

    def run_with_ports(self) -> VsmRig:  # ports are devices that nobody asks anything of
        self._ports = True
        return self.run()

    def end(self) -> None:
        """End the run; from any task."""
        self._ending.store(True)
        for vcpu in self.partition.all_vcpus():
            vcpu.signal()
        self.partition.wake_all()

    # --- vsm.partition.Supervisor -----------------------------------------------------------------------------------

    def ending(self) -> bool:
        return self._ending.load()

    def must_park(self) -> bool:
        return False

    def park(self) -> None:
        raise AssertionError("nothing parks here")

    def task_started(self) -> None:
        self.tasks += 1

    def task_finished(self) -> None:
        self.tasks -= 1

    def vcpu_finished(self, vcpu: Vcpu) -> None: ...

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        self.exits.append(exit_)
        if not (self._ports and isinstance(exit_, Io)):
            self.end()


def run_guests(guests: Mapping[tuple[int, int], Body], **options: Any) -> VsmRig:
    """Make a rig and run it to the end."""
    return VsmRig(guests, **options).run()
