"""Virtual machines with a Hyper-V interface and no CPU: registers are attributes, local APICs and memory are real."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

from tests.unit.kvm.irqchip_rig import SPIV_ON, Owner, write
from vtlkit.engine.api import Engine, RamBlock
from vtlkit.host.api import Host
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.hypercalls import HV_HYPERCALL_RESULT_STATUS
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.cpuid import cpuid_leaves
from vtlkit.kvm.hyperv.features import HvFeatures
from vtlkit.kvm.hyperv.vcpu import HvVcpu
from vtlkit.kvm.hyperv.vm import HvVm
from vtlkit.kvm.ipi import IpiBus
from vtlkit.kvm.kvm_run import KvmRun
from vtlkit.kvm.lapic import LocalApic
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.requests import Req
from vtlkit.kvm.statistics import VcpuStatistics
from vtlkit.kvm.translate import TranslateAccess, TranslateFault, TranslateFlags, Translation
from vtlkit.trace.tracer import VcpuTrace
from vtlkit.x86.apic import APIC_SPIV

RAM_SIZE = 16 << 12
CALL_LENGTH = 3
REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip")
ALL_FEATURES = HvFeatures()
XMM0 = 160


class FakeEngine:
    """Registers, and the instruction of the hypercall page."""

    hypercall_instruction = b"\x0f\x01\xd9"

    def __init__(self) -> None:
        self.regs = SimpleNamespace(**dict.fromkeys(REGISTERS, 0))
        self.fpu = bytes(512)

    def get_fpu(self) -> bytes:
        return self.fpu

    def set_fpu(self, image: bytes) -> None:
        assert len(image) == 512
        self.fpu = image

    @property
    def xmm(self) -> bytes:
        return self.fpu[XMM0 : XMM0 + 96]

    @xmm.setter
    def xmm(self, value: bytes) -> None:
        self.fpu = self.fpu[:XMM0] + value.ljust(96, b"\0") + self.fpu[XMM0 + 96 :]


class FakeVcpu(Owner):
    """A vCPU in 64-bit CPL 0 code unless told otherwise."""

    def __init__(self, vm: FakeVm, vcpu_id: int, vp_index: int | None) -> None:
        super().__init__(vm.host, vcpu_id)
        self.vm = vm
        self.statistics = VcpuStatistics()
        self.trace: VcpuTrace | None = None
        self.fake_engine = FakeEngine()
        self.engine = cast(Engine, self.fake_engine)
        self.regs = self.fake_engine.regs
        self.bits = 64
        self.privilege_level = 0
        self.real_mode = False
        self.exceptions: list[int] = []
        self.skipped = 0
        self.tsc = 0
        self.intercepted = 0
        self.suspended = 0
        self.on_suspend: Callable[[], None] | None = None
        self.running_on = 0
        self.apic = LocalApic(self, vm.bus, apic_id=vcpu_id)
        self.apic.reset(init_event=False)
        write(self.apic, APIC_SPIV, SPIV_ON)
        self.hv = HvVcpu(self, vp_index)
        self.apic.on_eoi = self.hv.on_eoi
        self.requests.clear()
        self.kicks = 0

    def is_64bit(self) -> bool:
        return self.bits == 64

    def cpl(self) -> int:
        return self.privilege_level

    def protected_mode(self) -> bool:
        return not self.real_mode

    def queue_exception(self, vector: int, error_code: int | None = None) -> None:
        self.exceptions.append(vector)

    def skip_instruction(self, length: int) -> None:
        self.skipped += length

    def request_tlb_flush(self) -> None:
        self.requests.add(Req.TLB_FLUSH)
        self.kicks += 1
        self.running_on = min(self.running_on, 3)

    def may_run_on_old_translations(self) -> bool:
        """A few looks after the kick it has left the guest."""
        self.running_on = max(0, self.running_on - 1)
        return self.running_on > 0

    def suspend(self) -> None:
        self.suspended += 1
        if self.on_suspend is not None:
            self.on_suspend()

    def translate2(self, gva: int, access: TranslateAccess, flags: TranslateFlags = TranslateFlags.NONE) -> Translation:
        """There are no page tables here."""
        return Translation(False, fault=TranslateFault.NOT_PRESENT)

    def get_msr(self, index: int) -> int | None:
        return 0

    def update_intercepts(self) -> None:
        self.intercepted = self.hv.npiep

    def guest_tsc(self) -> int:
        return self.tsc

    def hv_auto_eoi(self, vector: int) -> bool:
        return self.hv.auto_eoi(vector)

    # --- what a guest does ----------------------------------------------------------------------------------------

    def set_parameters(self, control: int, first: int = 0, second: int = 0) -> None:
        """Put a hypercall's input value and its two register parameters where the caller's mode wants them."""
        regs = self.regs
        if self.bits == 64:
            regs.rcx, regs.rdx, regs.r8 = control, first, second
            return
        junk = 0xDEADBEEF << 32
        regs.rdx, regs.rax = junk | control >> 32, junk | control & 0xFFFFFFFF
        regs.rbx, regs.rcx = junk | first >> 32, junk | first & 0xFFFFFFFF
        regs.rdi, regs.rsi = junk | second >> 32, junk | second & 0xFFFFFFFF

    def call(self, control: int, first: int = 0, second: int = 0) -> KvmRun | None:
        self.set_parameters(control, first, second)
        self.skipped = 0
        return self.hv.hypercall(CALL_LENGTH)

    @property
    def result(self) -> int:
        """The result value of the last hypercall."""
        rax: int = self.regs.rax
        return rax if self.bits == 64 else self.regs.rdx << 32 | rax

    def status(self, control: int, first: int = 0, second: int = 0) -> HvStatus:
        """Make a hypercall that does not exit; its status."""
        assert self.call(control, first, second) is None
        assert not self.exceptions
        assert self.skipped == CALL_LENGTH
        return HvStatus(HV_HYPERCALL_RESULT_STATUS.get(self.result))

    def rdmsr(self, index: int) -> int | None:
        return self.hv.get_msr(index, host_initiated=False)

    def wrmsr(self, index: int, value: int) -> bool:
        return self.hv.set_msr(index, value, host_initiated=False)

    def take(self, *, eoi: bool = True) -> int:
        """Take the interrupt that is deliverable, -1 if none, and end it unless told otherwise."""
        vector = self.apic.get_interrupt()
        if eoi and vector >= 0:
            self.apic.set_eoi()
        return vector


class FakeVm:
    """RAM of 16 pages from 0, and vCPUs with every feature offered."""

    def __init__(
        self,
        vcpus: int = 1,
        *,
        features: HvFeatures = ALL_FEATURES,
        vp_indices: list[int] | None = None,
        host: Host | None = None,
        time_origin_ns: int = 0,
    ) -> None:
        self.host: Host = host if host is not None else Simulator()
        self.memory = GuestMemory(self.host, "vm")
        self.ram = RamBlock(RAM_SIZE)
        self.memory.set_regions([MemoryRegion(0, 0, RAM_SIZE, self.ram)])
        self.bus = IpiBus(self.host)
        self.tsc_khz = 1_000_000
        self.clock_ns = 0
        self.hv = HvVm(self, time_origin_ns)
        self.vcpus: list[FakeVcpu] = []
        for vcpu_id in range(vcpus):
            self.vcpus.append(FakeVcpu(self, vcpu_id, vp_indices[vcpu_id] if vp_indices else None))
        for vcpu in self.vcpus:
            vcpu.hv.set_cpuid(cpuid_leaves(features))
        self.cpu = self.vcpus[0]

    def kvm_clock_ns(self) -> int:
        return self.clock_ns

    def put(self, gpa: int, layout: str, *values: int) -> None:
        self.memory.write(gpa, struct.pack(layout, *values))
