"""Exit handlers: memory faults, halts, and the rarer instructions (`svm_exit_handlers`)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.kvm.core_rig import DONE, Cpu, Machine, Script, recorder, script
from vtlkit.engine import api
from vtlkit.engine.api import Access, RamBlock
from vtlkit.engine.scripted import ops
from vtlkit.kvm import exits as handlers
from vtlkit.kvm.kvm_run import InternalErrorExit, Io, MemoryFault, Shutdown
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.requests import Req
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR4_OSXSAVE

# --- memory faults ----------------------------------------------------------------------------------------------------


def test_the_map_is_made_as_the_guest_goes() -> None:
    """A fault because the engine's map is behind is no fault of the guest."""
    machine = Machine(script(ops.Write(0x100000, 4, 9), ops.Read(0x100000, 4), ops.Out(DONE, 1, 0)))
    machine.vm.set_user_memory_region(MemoryRegion(1, 0x100000, 4096, RamBlock(4096)))
    machine.vcpu.requests.clear(Req.MEMORY_CHANGED)
    machine.vcpu.run()
    assert machine.cpu.regs.rax == 9


@pytest.mark.parametrize(
    ("instruction", "access"), [(ops.Read(0x3000, 2), Access.READ), (ops.Write(0x3000, 2, 1), Access.WRITE)]
)
def test_what_attributes_forbid_is_told_to_user_space_and_tried_again(instruction: Any, access: Access) -> None:
    machine = Machine(script(instruction, ops.Out(DONE, 1, 0)))
    permitted = Access.READ | Access.EXECUTE if access is Access.WRITE else Access.NONE
    machine.vm.set_memory_attributes(0x3000, 4096, permitted)
    for _ in range(2):
        assert machine.vcpu.run() == MemoryFault(0x3000, 2, access, None, b"", 0)
    machine.vm.set_memory_attributes(0x3000, 4096, Access.ALL)
    assert isinstance(machine.vcpu.run(), Io)


def test_a_write_to_a_read_only_slot_is_refused() -> None:
    machine = Machine(script(ops.Write(0x100000, 4, 9)))
    machine.vm.set_user_memory_region(MemoryRegion(1, 0x100000, 4096, RamBlock(4096), flags=2))
    exit_ = machine.vcpu.run()
    assert isinstance(exit_, InternalErrorExit)
    assert "write of 4 bytes at GPA 0x100000 in a read-only memory slot" in exit_.message


# --- other exits ------------------------------------------------------------------------------------------------------


def test_the_engines_verdicts_go_to_user_space() -> None:
    machine = Machine(script(ops.Intercepted("getsec")))
    exit_ = machine.vcpu.run()
    assert isinstance(exit_, InternalErrorExit)
    assert "getsec" in exit_.message
    assert isinstance(Machine(script(ops.Int(0x80))).vcpu.run(), Shutdown)


def test_every_exit_has_a_handler() -> None:
    def leaves(kind: type[api.Exit]) -> list[type[api.Exit]]:
        below = kind.__subclasses__()
        return [leaf for child in below for leaf in leaves(child)] or [kind]

    assert set(leaves(api.Exit)) == set(handlers.HANDLERS)


# --- rarer instructions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "vector"),
    [
        (ops.Intercepted("rdpmc"), Vector.GP),
        (ops.Intercepted("vmrun"), Vector.UD),
        (ops.Intercepted("monitor"), Vector.UD),
        (ops.Intercepted("mwait"), Vector.UD),
    ],
)
def test_what_is_not_offered_faults(instruction: Any, vector: int) -> None:
    log: list[int] = []
    machine = Machine(script(instruction), handlers={vector: recorder(log, ops.Out(DONE, 1, 0))})
    assert isinstance(machine.vcpu.run(), Io)
    assert log == [vector]


def test_a_hypercall_without_an_interface_is_unknown() -> None:
    """-KVM_ENOSYS, in 32 bits outside 64-bit code."""
    machine = Machine(script(ops.Set(99), ops.Vmmcall(), ops.Out(DONE, 1, 0)))
    machine.vcpu.run()
    assert machine.cpu.regs.rax == -1000 & 0xFFFFFFFF


def test_cpuid_is_answered_from_the_table() -> None:
    read: list[tuple[int, int]] = []

    def program(engine: Cpu) -> Script:
        yield ops.Set(0xFFFFFFFF_00000001)
        yield ops.Cpuid()
        read.append((engine.regs.rax, engine.regs.rcx))
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program)
    leaf = machine.vcpu.cpuid.find(1)
    assert leaf is not None
    sregs = machine.vcpu.get_sregs()
    sregs.cr4 |= CR4_OSXSAVE
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.run()
    assert read == [(leaf.eax, leaf.ecx | 1 << 27)]
