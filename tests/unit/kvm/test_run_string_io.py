"""EINTR in the middle of REP OUTS and REP INS, on the embedded CPU: between two elements, as registers say."""

from __future__ import annotations

import pytest

from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm, Vcpu
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest

REP_OUTSB = b"\xf3\x6e"
REP_INSB = b"\xf3\x6c"
OUT = b"\xe6\x80"
PORT = 0x99
TEXT = b"virtual"


def machine(code: bytes) -> tuple[Vcpu, Guest]:
    vm = Kvm(Simulator(), UnicornFactory()).create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid2(vm.get_supported_cpuid())
    guest = Guest(vcpu.engine, map_ram=False)
    vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, guest.ram))
    guest.long_mode()
    guest.write(CODE, code + OUT)
    regs = vcpu.get_regs()
    regs.rip, regs.rcx, regs.rdx, regs.rsi, regs.rdi = CODE, len(TEXT), PORT, FREE, FREE
    vcpu.set_regs(regs)
    return vcpu, guest


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("code", [REP_OUTSB, REP_INSB])
def test_a_signal_leaves_a_string_instruction_between_two_elements(code: bytes, every: int) -> None:
    vcpu, guest = machine(code)
    if code == REP_OUTSB:
        guest.write(FREE, TEXT)
    passed = bytearray()
    interruptions = 0
    while True:
        exit_ = vcpu.run()
        if isinstance(exit_, Intr):
            interruptions += 1
            assert vcpu.engine.at_boundary
            regs = vcpu.get_regs()
            assert regs.rcx == len(TEXT) - len(passed)
            assert (regs.rsi if code == REP_OUTSB else regs.rdi) == FREE + len(passed)
            # At the instruction with nothing left to do it does nothing: as good as behind it.
            assert regs.rip == CODE or (regs.rip == CODE + len(code) and not regs.rcx)
            # Between two instructions registers may be written: what follows must not be upset by that.
            vcpu.set_regs(regs)
            continue
        assert isinstance(exit_, Io)
        if exit_.port != PORT:
            break
        if not exit_.write:
            exit_.data = TEXT[len(passed)]
        passed.append(exit_.data)
        if len(passed) % every == 0:
            vcpu.signal()
    assert passed == TEXT
    assert interruptions == len(TEXT) // every
    assert guest.read(FREE, len(TEXT)) == int.from_bytes(TEXT, "little")
