"""What a guest may write to control registers and MSRs, and what follows it: a real vCPU on the embedded CPU."""

from __future__ import annotations

import pytest

from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm, Vcpu
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR4_UMIP

OUT = b"\xe6\x80"
"""out 0x80, al: ends a run with an exit."""
CANONICAL_57 = 0x00AAAAAAAAAAAAAA
CANONICAL_48 = 0xFFFFAAAAAAAAAAAA
NEVER_CANONICAL = 0xAAAAAAAAAAAAAAAA


class Machine:
    """One vCPU with RAM, whose handlers are OUT like its code's end."""

    def __init__(self) -> None:
        self.host = Simulator()
        self.factory = UnicornFactory()
        vm = Kvm(self.host, self.factory).create_vm()
        self.vcpu: Vcpu = vm.create_vcpu(0)
        self.vcpu.set_cpuid2(vm.get_supported_cpuid())
        self.guest = Guest(self.vcpu.engine, map_ram=False)
        vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.guest.ram))
        for vector in range(32):
            self.guest.write(self.guest.handler(vector), OUT)

    def execute(self, code: bytes) -> int:
        """Run `code` at CODE; RIP of the OUT that ended it."""
        self.guest.write(CODE, code + OUT)
        self.vcpu.engine.regs.rip = CODE
        found = []

        def body() -> None:
            exit_ = self.vcpu.run()
            assert isinstance(exit_, Io), exit_
            found.append(self.vcpu.engine.regs.rip)
            self.vcpu.complete_exit()

        self.host.spawn(body, "vcpu")
        self.host.run()
        return found[0]

    def faults(self, code: bytes, vector: Vector) -> bool:
        rip = self.execute(code)
        assert rip in (CODE + len(code), self.guest.handler(vector)), hex(rip)
        return rip == self.guest.handler(vector)


@pytest.mark.parametrize(
    "index", [msr.MSR_FS_BASE, msr.MSR_GS_BASE, msr.MSR_KERNEL_GS_BASE, msr.MSR_LSTAR, msr.MSR_CSTAR], ids=hex
)
def test_addresses_in_msrs_are_canonical_by_what_the_processor_supports(index: int) -> None:
    machine = Machine()
    for value, refused in ((CANONICAL_48, False), (CANONICAL_57, False), (NEVER_CANONICAL, True)):
        machine.guest.long_mode()
        regs = machine.vcpu.engine.regs
        regs.rcx, regs.rax, regs.rdx = index, value & 0xFFFFFFFF, value >> 32
        assert machine.faults(b"\x0f\x30", Vector.GP) is refused, hex(value)
        assert (machine.vcpu.get_msr(index) == value) is not refused


def test_umip_follows_registers_that_user_space_sets() -> None:
    """SMSW, SGDT and SLDT of a user fault exactly while CR4.UMIP is set, however it came to be set."""
    machine = Machine()
    for umip in (False, True, False):
        for code in (b"\x0f\x01\x23", b"\x0f\x01\x03", b"\x0f\x00\xc0"):
            machine.guest.long_mode(cpl=3)
            sregs = machine.vcpu.get_sregs()
            sregs.cr4 = (sregs.cr4 & ~CR4_UMIP) | (CR4_UMIP if umip else 0)
            machine.vcpu.set_sregs(sregs)
            machine.vcpu.engine.rflags |= 3 << 12
            machine.vcpu.engine.regs.rbx = FREE
            assert machine.faults(code, Vector.GP) is umip, code.hex()


def test_smsw_of_a_32_bit_register_stores_32_bits() -> None:
    machine = Machine()
    machine.guest.protected_mode()
    machine.vcpu.update_intercepts()
    engine = machine.vcpu.engine
    engine.regs.rax = 0x12345678
    machine.execute(b"\x0f\x01\xe0")
    assert engine.regs.rax == engine.cr0
    assert engine.cr0 >> 16 == 0
