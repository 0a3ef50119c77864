"""What raises #DB, and what debuggers rely on around it: a real vCPU on the embedded CPU."""

from __future__ import annotations

import pytest

from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm, Vcpu
from vtlkit.testing.assembler import Assembler
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, STACK, USER_CODE64, USER_DATA, Guest
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_FIXED, RFLAGS_TF

OUT = b"\xe6\x80"
INT1 = 0xF1
DR6_CLEAR = 0xFFFF0FF0
DR6_BS = 1 << 14


class Machine:
    """One vCPU in 64-bit mode; its handlers are OUT."""

    def __init__(self, *, user: bool = False) -> None:
        self.host = Simulator()
        vm = Kvm(self.host, UnicornFactory()).create_vm()
        self.vcpu: Vcpu = vm.create_vcpu(0)
        self.vcpu.set_cpuid2(vm.get_supported_cpuid())
        self.guest = Guest(self.vcpu.engine, map_ram=False)
        vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.guest.ram))
        for vector in range(32):
            self.guest.write(self.guest.handler(vector), OUT)
        self.guest.long_mode(cpl=3 if user else 0)

    def run(self, code: bytes) -> int:
        """Execute `code` at CODE; RIP of the first OUT."""
        self.guest.write(CODE, code)
        self.vcpu.engine.regs.rip = CODE

        def body() -> None:
            exit_ = self.vcpu.run()
            assert isinstance(exit_, Io), exit_

        self.host.spawn(body, "vcpu")
        self.host.run()
        return int(self.vcpu.engine.regs.rip)

    def saved_rip(self) -> int:
        return self.guest.read(self.vcpu.engine.regs.rsp, 8)

    def dr6(self) -> int:
        return self.vcpu.engine.get_debugregs()[4]


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("prefixes", [b"", b"\x2e\x2e", b"\x66\x48"])
def test_int1_traps_behind_itself_whatever_the_gates_privilege(prefixes: bytes, user: bool) -> None:
    machine = Machine(user=user)
    assert machine.run(prefixes + bytes([INT1])) == machine.guest.handler(Vector.DB)
    assert machine.saved_rip() == CODE + len(prefixes) + 1
    assert machine.dr6() == DR6_CLEAR


def test_a_locked_int1_is_invalid() -> None:
    machine = Machine()
    assert machine.run(bytes([0xF0, INT1])) == machine.guest.handler(Vector.UD)
    assert machine.saved_rip() == CODE


def test_int1_in_the_shadow_of_mov_ss_is_not_a_single_step() -> None:
    """The shadow holds the single step off, and INT1 takes its place."""
    code = Assembler(64, CODE)
    code.mov("ax", "ss")
    code.mov("rcx", RFLAGS_FIXED | RFLAGS_TF)
    code.push("rcx")
    code.popfq()
    code.mov("ss", "ax")
    start = len(code.code())
    machine = Machine()
    assert machine.run(code.code() + bytes([INT1])) == machine.guest.handler(Vector.DB)
    assert machine.saved_rip() == CODE + start + 1
    assert not machine.dr6() & DR6_BS


def test_iret_to_user_mode_keeps_the_base_of_gs() -> None:
    """The selector of a kernel segment is not left to user mode, but the base that WRMSR has set stays."""
    machine = Machine()
    regs = machine.vcpu.engine.regs
    base = 0x12345000
    assert machine.vcpu.set_guest_msr(msr.MSR_GS_BASE, base)
    code = Assembler(64, CODE)
    for value in (USER_DATA | 3, STACK, RFLAGS_FIXED | 3 << 12, USER_CODE64 | 3, FREE):
        code.mov("rax", value)
        code.push("rax")
    code.iretq()
    machine.guest.write(FREE, OUT)
    assert machine.run(code.code()) == FREE
    assert machine.vcpu.engine.cpl == 3
    assert machine.vcpu.get_msr(msr.MSR_GS_BASE) == base
    assert regs.rsp == STACK


def test_debug_registers_set_from_outside_arm_and_disarm_breakpoints() -> None:
    machine = Machine()
    engine = machine.vcpu.engine
    code = b"\x90\x90\x90" + OUT
    engine.set_debugregs((CODE + 1, 0, 0, 0, DR6_CLEAR, 0x402))
    assert machine.run(code) == machine.guest.handler(Vector.DB)
    assert machine.saved_rip() == CODE + 1
    assert machine.dr6() == DR6_CLEAR | 1
    machine = Machine()
    engine = machine.vcpu.engine
    engine.set_debugregs((CODE + 1, 0, 0, 0, DR6_CLEAR, 0x402))
    engine.set_debugregs((CODE + 2, 0, 0, 0, DR6_CLEAR, 0x402))
    engine.set_debugregs((CODE + 1, 0, 0, 0, DR6_CLEAR, 0x400))
    assert machine.run(code) == CODE + 3
