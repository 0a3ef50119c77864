"""How many NMIs a vCPU takes, and when: a real vCPU on the embedded CPU."""

from __future__ import annotations

from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm
from vtlkit.testing.assembler import Assembler
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest
from vtlkit.x86.exceptions import Vector

COUNTER = FREE
HANDLER = FREE + 0x1000
IN_HANDLER, END = 0x81, 0x80


def _run(main: Assembler, *, before: int, within: int, shadow: bool = False, frames: list[int] | None = None) -> int:
    """Run `main`, its first instruction in an interrupt shadow if `shadow`.

    `before` NMIs are sent before it, `within` in the first handler. `frames` takes the addresses that handlers return
    to. How often the handler has run.
    """
    vm = Kvm(host := Simulator(), UnicornFactory()).create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid2(vm.get_supported_cpuid())
    guest = Guest(vcpu.engine, map_ram=False)
    vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, guest.ram))
    guest.long_mode()
    handler = Assembler(64, HANDLER)
    handler.out(IN_HANDLER, "al")
    handler.iretq()
    guest.write(HANDLER, handler.code())
    jump = Assembler(64, guest.handler(Vector.NMI))
    jump.mov("rax", HANDLER)
    jump.jmp("rax")
    guest.write(guest.handler(Vector.NMI), jump.code())
    main.out(END, "al")
    guest.write(CODE, main.code())
    vcpu.engine.regs.rip = CODE
    vcpu.engine.interrupt_shadow = shadow
    handled = 0

    def body() -> None:
        nonlocal handled
        for _ in range(before):
            vcpu.nmi()
        while True:
            exit_ = vcpu.run()
            assert isinstance(exit_, Io), exit_
            if exit_.port == END:
                return
            handled += 1
            if frames is not None:
                frames.append(guest.read(vcpu.engine.regs.rsp, 8))
            if handled == 1:
                for _ in range(within):
                    vcpu.nmi()

    host.spawn(body, "vcpu")
    host.run()
    return handled


def _nops(count: int) -> Assembler:
    code = Assembler(64, CODE)
    for _ in range(count):
        code.nop()
    return code


def test_two_nmis_at_once_are_two() -> None:
    assert _run(_nops(4), before=1, within=0) == 1
    assert _run(_nops(4), before=2, within=0) == 2
    assert _run(_nops(4), before=9, within=0) == 2


def test_beside_an_nmi_in_service_one_is_latched() -> None:
    assert _run(_nops(4), before=1, within=1) == 2
    assert _run(_nops(4), before=1, within=10) == 2


def test_an_nmi_waits_for_the_end_of_the_interrupt_shadow() -> None:
    """It is taken right behind the instruction that the shadow covers, and the guest goes on."""
    frames: list[int] = []
    assert _run(_nops(4), before=1, within=0, shadow=True, frames=frames) == 1
    assert frames == [CODE + 1]
