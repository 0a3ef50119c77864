"""A kernel VM with one vCPU in it, and what is asked of them by ioctl: everything that KVM_RUN's page does not hold.

One kernel VM per engine: each vCPU's own task changes its own map, so no memslot of anybody else's running vCPU is ever
touched, and every VTL's view of memory is its own. There is no in-kernel interrupt controller.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterable
from typing import Final

from vtlkit.engine.api import EngineError
from vtlkit.engine.devkvm import abi, syscalls
from vtlkit.engine.devkvm.live import Live
from vtlkit.engine.devkvm.memory import GuestPhysicalMap
from vtlkit.engine.devkvm.shared import SharedRegisters
from vtlkit.engine.devkvm.system import Capabilities
from vtlkit.x86 import msr
from vtlkit.x86.registers import XCR0_SSE, XCR0_X87

KICK_SIGNAL: Final = signal.SIGURG
"""Ignored by default, so that one that comes too late, or to a wrong thread, does nothing. vCPU threads block it but
inside KVM_RUN, which it ends."""
PROCESS_SIGNALS: Final = frozenset({signal.SIGALRM, signal.SIGINT, signal.SIGTERM})
"""Those that end or time a run. A thread of a vCPU leaves them to the main thread, whose wait they have to end."""

_TSS_ADDRESS: Final = 0xFFFBD000
"""Three pages that KVM on old Intel processors needs for real mode; elsewhere it does nothing."""
_FILTERED: Final = (
    (0x00000000, 0x2000),
    (0xC0000000, 0x2000),
    (0xC0010000, 0x2000),
)
"""MSRs that can be opened to the guest, as (first, count); each range has a bitmap for reads and one for writes."""
DR7_GLOBAL: Final = 2
DR7_FIXED: Final = 0x400
MAXPHYADDR_DEFAULT: Final = 36
_LEGACY_SIZE: Final = 464
"""Bytes of an FXSAVE image that the processor defines."""
_XSTATE_BV: Final = 512
"""Which components of an XSAVE image are not in their initial state."""


class KernelVcpu:
    """See the module. Belongs to the vCPU's task."""

    def __init__(self, system: int, capabilities: Capabilities) -> None:
        self._capabilities = capabilities
        self.shared = SharedRegisters(capabilities.xsave_size)
        self.tsc_khz = 0
        self.vm = syscalls.ioctl(system, abi.CREATE_VM, 0, "KVM_CREATE_VM")
        self.fd = -1
        try:
            self._configure_vm()
            self.fd = syscalls.ioctl(self.vm, abi.CREATE_VCPU, 0, "KVM_CREATE_VCPU")
            self.live = Live(self.fd, capabilities.mmap_size)
            self.map = GuestPhysicalMap(
                self.vm, capabilities.slots, emulates_no_execute=capabilities.emulates_no_execute
            )
            self._let_kicks_in()
            self.set_cpuid(capabilities.cpuid)
            self.tsc_khz = syscalls.ioctl(self.fd, abi.GET_TSC_KHZ, 0, "KVM_GET_TSC_KHZ")
        except OSError as error:
            self._close_descriptors()
            raise EngineError(f"/dev/kvm: {error.strerror}") from error
        self._open_reads: set[int] = set()
        self._open_writes: set[int] = set()
        self.filter_changed = True

    def _configure_vm(self) -> None:
        syscalls.ioctl(self.vm, abi.SET_TSS_ADDR, _TSS_ADDRESS, "KVM_SET_TSS_ADDR")
        reasons = abi.MSR_EXIT_REASON_INVAL | abi.MSR_EXIT_REASON_UNKNOWN | abi.MSR_EXIT_REASON_FILTER
        self._enable(abi.CAP_X86_USER_SPACE_MSR, reasons)
        if self._capabilities.emulation_failure:
            self._enable(abi.CAP_EXIT_ON_EMULATION_FAILURE, 1)
        if self._capabilities.quirks & abi.QUIRK_FIX_HYPERCALL_INSN:
            self._enable(abi.CAP_DISABLE_QUIRKS2, abi.QUIRK_FIX_HYPERCALL_INSN)

    def _enable(self, capability: int, argument: int) -> None:
        syscalls.ioctl(
            self.vm, abi.ENABLE_CAP, abi.EnableCap(capability, 0, (argument, 0, 0, 0)).pack(), "KVM_ENABLE_CAP"
        )

    def _let_kicks_in(self) -> None:
        """The signals that KVM_RUN has blocked: the caller's and the process's, but for the kick's."""
        blocked = (signal.pthread_sigmask(signal.SIG_BLOCK, ()) | PROCESS_SIGNALS) - {KICK_SIGNAL}
        mask = sum(1 << number - 1 for number in blocked)
        syscalls.ioctl(self.fd, abi.SET_SIGNAL_MASK, struct.pack("<IQ", 8, mask), "KVM_SET_SIGNAL_MASK")

    def set_cpuid(self, entries: Iterable[abi.CpuidEntry2]) -> None:
        """What CPUID answers; the kernel lets it be set until the vCPU has first run."""
        packed = [entry.pack() for entry in entries]
        data = struct.pack("<II", len(packed), 0) + b"".join(packed)
        syscalls.ioctl(self.fd, abi.SET_CPUID2, data, "KVM_SET_CPUID2")

    # --- MSRs -------------------------------------------------------------------------------------------------------

    def get_msr(self, index: int) -> int:
        buffer = bytearray(abi.OneMsr(entry=abi.MsrEntry(index)).pack())
        if syscalls.ioctl(self.fd, abi.GET_MSRS, buffer, f"MSR {index:#x}") != 1:
            raise EngineError(f"/dev/kvm has no MSR {index:#x}")
        return abi.OneMsr.unpack(buffer).entry.data

    def set_msr(self, index: int, value: int) -> None:
        data = abi.OneMsr(entry=abi.MsrEntry(index, 0, value)).pack()
        if syscalls.ioctl(self.fd, abi.SET_MSRS, data, f"MSR {index:#x}") != 1:
            raise EngineError(f"/dev/kvm refuses MSR {index:#x} = {value:#x}")

    def open_msr(self, index: int, read: bool, write: bool) -> None:
        """Whether the guest's RDMSR and WRMSR of `index` do not exit. All do at first."""
        (self._open_reads.add if read else self._open_reads.discard)(index)
        (self._open_writes.add if write else self._open_writes.discard)(index)
        self.filter_changed = True

    def apply_filter(self) -> None:
        """Before the guest is entered: deny all but what is open."""
        self.filter_changed = False
        buffer = bytearray(abi.MSR_FILTER_SIZE)
        struct.pack_into("<I", buffer, 0, abi.MSR_FILTER_DEFAULT_DENY)
        bitmaps = []
        at = 8
        for first, count in _FILTERED:
            for opened, flag in ((self._open_reads, abi.MSR_FILTER_READ), (self._open_writes, abi.MSR_FILTER_WRITE)):
                bits = sum(1 << index - first for index in opened if first <= index < first + count)
                bitmap = (ctypes.c_char * (count // 8)).from_buffer_copy(bits.to_bytes(count // 8, "little"))
                bitmaps.append(bitmap)
                abi.MsrFilterRange(flag, count, first, 0, ctypes.addressof(bitmap)).pack_into(buffer, at)
                at += abi.MsrFilterRange.SIZE
        syscalls.ioctl(self.vm, abi.X86_SET_MSR_FILTER, bytes(buffer), "KVM_X86_SET_MSR_FILTER")

    # --- other registers --------------------------------------------------------------------------------------------

    def get_fpu(self) -> bytes:
        """The legacy area of the XSAVE image, which is FXSAVE64's."""
        return self.get_xsave()[:_LEGACY_SIZE].ljust(512, b"\0")

    def set_fpu(self, image: bytes) -> None:
        area = bytearray(self.get_xsave())
        area[:_LEGACY_SIZE] = image[:_LEGACY_SIZE]
        (present,) = struct.unpack_from("<Q", area, _XSTATE_BV)
        struct.pack_into("<Q", area, _XSTATE_BV, present | XCR0_X87 | XCR0_SSE)
        self.set_xsave(bytes(area))

    def get_xsave(self) -> bytes:
        return self.shared.xsave.fetch(self.fd)

    def set_xsave(self, area: bytes) -> None:
        self.shared.put(self.fd, self.shared.xsave, area)

    def get_xcr0(self) -> int:
        record = abi.OneXcr.unpack(self.shared.xcrs.fetch(self.fd))
        return record.value if record.nr_xcrs else 1

    def set_xcr0(self, value: int) -> None:
        self.shared.put(self.fd, self.shared.xcrs, abi.OneXcr(value=value).pack())

    def get_debugregs(self) -> abi.DebugRegs:
        return abi.DebugRegs.unpack(self.shared.debug.fetch(self.fd))

    def set_debugregs(self, values: abi.DebugRegs) -> None:
        self.shared.put(self.fd, self.shared.debug, values.pack())

    def set_guest_debug(self, control: int, breakpoints: tuple[int, ...] = ()) -> None:
        """Single steps, up to four breakpoints on execution, or (0) neither."""
        enabled = sum(DR7_GLOBAL << 2 * number for number in range(len(breakpoints)))
        debug = (*breakpoints, *(0,) * (7 - len(breakpoints)), DR7_FIXED | enabled if breakpoints else 0)
        syscalls.ioctl(self.fd, abi.SET_GUEST_DEBUG, abi.GuestDebug(control, 0, debug).pack(), "KVM_SET_GUEST_DEBUG")

    def flush_tlb(self) -> None:
        """Have the kernel drop what it has translated, by a CR3 that changes and changes back.

        The page's system registers are taken over, too. A kernel that shadows page tables watches its own guest's
        stores to them, and not those of other engines' guests.
        """
        if self._capabilities.shadows:
            self.map.drop_translations()
        live = self.live
        record = abi.SregsRecord.unpack_from(live.view, abi.RUN_SREGS)
        record.cr3 ^= 0x1000
        syscalls.ioctl(self.fd, abi.SET_SREGS, record.pack(), "KVM_SET_SREGS")
        live.dirty |= abi.SYNC_SREGS

    def maxphyaddr(self) -> int:
        """Width of a guest-physical address, in bits."""
        for entry in self._capabilities.cpuid:
            if entry.function == 0x80000008:
                return entry.eax & 0xFF
        return MAXPHYADDR_DEFAULT

    # --- the end ----------------------------------------------------------------------------------------------------

    def _close_descriptors(self) -> None:
        for fd in (self.fd, self.vm):
            if fd >= 0:
                os.close(fd)
        self.fd = self.vm = -1

    def close(self) -> None:
        """Destroy the vCPU and its VM."""
        if self.fd < 0:
            return
        self._close_descriptors()
        self.map.close()


NATIVE_MSRS: Final = frozenset(
    {
        msr.MSR_EFER,
        msr.MSR_STAR,
        msr.MSR_LSTAR,
        msr.MSR_CSTAR,
        msr.MSR_SYSCALL_MASK,
        msr.MSR_FS_BASE,
        msr.MSR_GS_BASE,
        msr.MSR_KERNEL_GS_BASE,
        msr.MSR_IA32_SYSENTER_CS,
        msr.MSR_IA32_SYSENTER_ESP,
        msr.MSR_IA32_SYSENTER_EIP,
        msr.MSR_IA32_CR_PAT,
        msr.MSR_TSC_AUX,
    }
)
FREE_MSR_READS: Final = NATIVE_MSRS - {msr.MSR_EFER, msr.MSR_IA32_CR_PAT, msr.MSR_TSC_AUX}
"""MSRs whose reads need no exit."""
