"""Two vCPUs on /dev/kvm that wake each other from HLT, as the C program of the benchmarks has them: in real mode, with
an interrupt handler that does next to nothing.

Each goes round: an OUT, at which the other one is sent an interrupt, then HLT. What it has more than the rival is the
OUT, by which the guest says that it goes to sleep, and the EOI, as there is a local APIC.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from vtlkit.cli.measure import Unavailable

if TYPE_CHECKING:
    from vtlkit.engine.api import EngineFactory, RamBlock
    from vtlkit.kvm.uapi import Vcpu, Vm

_SIZE: Final = 0x10000
_CODE, _HANDLER, _STACK = 0x1000, 0x2000, 0x8000
_VECTOR: Final = 0x41
_PORT: Final = 0x88
_APIC: Final = 0xFEE00000
_SLEEPER: Final = bytes((0xFA, 0xE6, _PORT, 0xFB, 0xF4, 0xEB, 0xF9))
"""CLI, OUT, STI, HLT, JMP to the CLI: the answer to the OUT wakes the HLT, whenever it comes."""
_AWAKE: Final = b"\x66\xa3\xb0\x00\xcf"
"""MOV [APIC_EOI], EAX with DS at the local APIC, IRET."""


def seconds_per_round(rounds: int) -> float:
    """Both processors are woken once a round.

    Raises:
        Unavailable: there is no usable KVM.
    """
    from vtlkit.engine.api import EngineError
    from vtlkit.engine.devkvm import DevKvmFactory

    try:
        engines = DevKvmFactory()
    except EngineError as error:
        raise Unavailable(str(error)) from error
    try:
        return _measured(engines, rounds)
    finally:
        engines.close()


def _measured(engines: EngineFactory, rounds: int) -> float:
    from vtlkit.engine.api import RamBlock
    from vtlkit.host.threads import ThreadHost
    from vtlkit.kvm.uapi import Kvm, MemoryRegion

    with ThreadHost() as host:
        vm = Kvm(host, engines).create_vm("wakes")
        ram = RamBlock(_SIZE)
        vm.set_user_memory_region(MemoryRegion(0, 0, _SIZE, ram))
        _write(ram)
        vm.create_irqchip()
        vcpus = [vm.create_vcpu(number, is_bsp=number == 0) for number in range(2)]
        for vcpu in vcpus:
            _start(vcpu)
        left = 2 * rounds

        def written(_port: int, _size: int, _value: int) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                for vcpu in vcpus:
                    vcpu.signal()
                return
            # Whose turn it is: the one that goes to sleep wakes the other.
            _interrupt(vm, left & 1)

        vm.answer_ports(lambda _port, _size: 0, written)
        begin = time.perf_counter()
        # The second one waits for an interrupt from the start, and speaks when it has been woken.
        for vcpu in vcpus:
            host.spawn(partial(_run, vcpu, written), vcpu.name)
        host.run()
        return (time.perf_counter() - begin) / rounds


def _write(ram: RamBlock) -> None:
    ram.view[_CODE : _CODE + len(_SLEEPER)] = _SLEEPER
    ram.view[_HANDLER : _HANDLER + len(_AWAKE)] = _AWAKE
    ram.view[4 * _VECTOR : 4 * _VECTOR + 2] = _HANDLER.to_bytes(2, "little")


def _start(vcpu: Vcpu) -> None:
    from vtlkit.x86.apic import APIC_SPIV, APIC_SPIV_APIC_ENABLED
    from vtlkit.x86.registers import RFLAGS_FIXED, Regs

    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    sregs.ds.base = _APIC
    vcpu.set_sregs(sregs)
    start = _CODE if vcpu.is_bsp else _CODE + 3
    vcpu.set_regs(Regs(rip=start, rsp=_STACK - 0x1000 * vcpu.vcpu_id, rflags=RFLAGS_FIXED))
    vcpu.apic.mmio_write(APIC_SPIV, 4, APIC_SPIV_APIC_ENABLED | 0xFF)
    vcpu.start_runnable()


def _interrupt(vm: Vm, target: int) -> None:
    vm.signal_msi(_APIC | target << 12, _VECTOR)


def _run(vcpu: Vcpu, written: Callable[[int, int, int], None]) -> None:
    from vtlkit.kvm.uapi import Intr, Io

    while not isinstance(exit_ := vcpu.run(), Intr):
        if not isinstance(exit_, Io):
            raise RuntimeError(f"{vcpu.name} left the guest for {exit_}")
        # Not all are answered inside.
        written(exit_.port, exit_.size, exit_.data)
