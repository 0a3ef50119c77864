"""The guests of the C programs over /dev/kvm, in real mode, on this hypervisor: a port written again and again, and two
vCPUs that wake each other from HLT.

Guests in long mode cost more to execute where the kernel emulates them; here the run loop alone is what differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from vtlkit.cli.measure import Unavailable

if TYPE_CHECKING:
    from vtlkit.host.threads import ThreadHost
    from vtlkit.kvm.uapi import Vcpu, Vm

_SIZE: Final = 0x10000
_CODE, _HANDLER, _STACK = 0x1000, 0x2000, 0x8000
_VECTOR: Final = 0x41
_PORT: Final = 0x80
_APIC: Final = 0xFEE00000
_WRITER: Final = bytes((0xE6, _PORT, 0xEB, 0xFC))
"""OUT, JMP to it."""
_SLEEPER: Final = bytes((0xFA, 0xE6, _PORT, 0xFB, 0xF4, 0xEB, 0xF9))
"""CLI, OUT, STI, HLT, JMP to the CLI: the answer to the OUT wakes the HLT, whenever it comes."""
_AWAKE: Final = b"\x66\xa3\xb0\x00\xcf"
"""MOV [APIC_EOI], EAX with DS at the local APIC, IRET."""


def seconds_per_write(writes: int, *, exits: bool) -> float:
    """One OUT and back: answered from inside `run`, or (`exits`) by whoever called it.

    Raises:
        Unavailable: there is no usable KVM.
    """
    from vtlkit.kvm.uapi import Io

    with _vm(_WRITER, 1) as (host, vm, (vcpu,)):
        left = writes

        def written(_port: int, _size: int, _value: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                vcpu.signal()

        def counts() -> None:
            run = vcpu.run
            for _ in range(writes):
                exit_ = run()
                assert isinstance(exit_, Io), exit_

        if not exits:
            vm.answer_ports(_nothing, written)
        return _timed(host, [counts if exits else partial(_run, vcpu, written)]) / writes


def seconds_per_round(rounds: int) -> float:
    """Two processors, each of which is woken once a round.

    Each goes round: an OUT, at which the other one is sent an interrupt, then HLT. What it has more than the rival is
    the OUT, by which the guest says that it goes to sleep, and the EOI, as there is a local APIC.

    Raises:
        Unavailable: there is no usable KVM.
    """
    with _vm(_SLEEPER, 2) as (host, vm, vcpus):
        left = 2 * rounds

        def written(_port: int, _size: int, _value: int) -> None:
            nonlocal left
            left -= 1
            if left > 0:
                # Whose turn it is: the one that goes to sleep wakes the other.
                vm.signal_msi(_APIC | (left & 1) << 12, _VECTOR)
                return
            for vcpu in vcpus:
                vcpu.signal()

        vm.answer_ports(_nothing, written)
        # The second one waits for an interrupt from the start, and writes when it has been woken.
        vcpus[1].engine.regs.rip += _SLEEPER.index(b"\xfb")
        return _timed(host, [partial(_run, vcpu, written) for vcpu in vcpus]) / rounds


def _nothing(_port: int, _size: int) -> int:
    return 0


@contextmanager
def _vm(code: bytes, cpus: int) -> Iterator[tuple[ThreadHost, Vm, list[Vcpu]]]:
    from vtlkit.engine.api import EngineError, RamBlock
    from vtlkit.engine.devkvm import DevKvmFactory
    from vtlkit.host.threads import ThreadHost
    from vtlkit.kvm.uapi import Kvm, MemoryRegion

    try:
        engines = DevKvmFactory()
    except EngineError as error:
        raise Unavailable(str(error)) from error
    try:
        with ThreadHost() as host:
            vm = Kvm(host, engines).create_vm("bench")
            ram = RamBlock(_SIZE)
            vm.set_user_memory_region(MemoryRegion(0, 0, _SIZE, ram))
            for place, piece in ((_CODE, code), (_HANDLER, _AWAKE), (4 * _VECTOR, _HANDLER.to_bytes(2, "little"))):
                ram.view[place : place + len(piece)] = piece
            vm.create_irqchip()
            vcpus = [vm.create_vcpu(number, is_bsp=number == 0) for number in range(cpus)]
            for vcpu in vcpus:
                _start(vcpu)
            yield host, vm, vcpus
    finally:
        engines.close()


def _start(vcpu: Vcpu) -> None:
    from vtlkit.x86.apic import APIC_SPIV, APIC_SPIV_APIC_ENABLED
    from vtlkit.x86.registers import RFLAGS_FIXED, Regs

    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    sregs.ds.base = _APIC
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=_CODE, rsp=_STACK - 0x1000 * vcpu.vcpu_id, rflags=RFLAGS_FIXED))
    vcpu.apic.mmio_write(APIC_SPIV, 4, APIC_SPIV_APIC_ENABLED | 0xFF)
    vcpu.start_runnable()


def _timed(host: ThreadHost, tasks: list[Callable[[], None]]) -> float:
    begin = time.perf_counter()
    for number, task in enumerate(tasks):
        host.spawn(task, f"cpu{number}")
    host.run()
    return time.perf_counter() - begin


def _run(vcpu: Vcpu, written: Callable[[int, int, int], None]) -> None:
    """Until a signal."""
    from vtlkit.kvm.uapi import Intr, Io

    while not isinstance(exit_ := vcpu.run(), Intr):
        if not isinstance(exit_, Io):
            raise RuntimeError(f"{vcpu.name} left the guest for {exit_}")
        # Not all are answered inside.
        written(exit_.port, exit_.size, exit_.data)
