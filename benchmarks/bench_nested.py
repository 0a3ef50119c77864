"""What L2 costs: VMRUN with the #VMEXIT that follows, and exits that L2 makes past L1, beside the same exits of L1."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from vtlkit.cli.measure import Case, Figure
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.nested.registers import save_state
from vtlkit.kvm.nested.vmcb import VMCB_SAVE_OFFSET, VmcbControl, VmcbSave
from vtlkit.kvm.uapi import Kvm
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest
from vtlkit.x86.msr import MSR_EFER, MSR_VM_HSAVE_PA
from vtlkit.x86.registers import EFER_SVME

ROUNDS: Final = 3000
_BLOCK: Final = FREE
_GUEST: Final = CODE + 0x200
_OUT: Final = b"\xe6\x80"
_VMRUN: Final = b"\x0f\x01\xd8"
_VMMCALL: Final = b"\x0f\x01\xd9"
_CPUID: Final = b"\x0f\xa2"
_LOOP: Final = b"\x49\xff\xcf\x75"
"""dec r15; jnz"""


def _loop(body: bytes) -> bytes:
    return body + _LOOP + (0x100 - len(body) - len(_LOOP) - 1).to_bytes(1, "little")


def _seconds(host_code: bytes, guest_code: bytes) -> float:
    """Seconds a round of L1's code, RAX the control block of an L2 that runs the other and R15 the rounds."""
    host, factory = Simulator(), UnicornFactory()
    vm = Kvm(host, factory, nested=True).create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid2(vm.get_supported_cpuid())
    guest = Guest(vcpu.engine, map_ram=False)
    vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, guest.ram))
    guest.long_mode()
    vcpu.set_msr(MSR_EFER, vcpu.engine.get_msr(MSR_EFER) | EFER_SVME)
    vcpu.set_msr(MSR_VM_HSAVE_PA, _BLOCK)
    guest.write(CODE, host_code + _OUT)
    guest.write(_GUEST, guest_code)
    save = VmcbSave()
    save_state(vcpu.engine, save)
    save.rip = _GUEST
    # VMRUN and VMMCALL.
    guest.write(_BLOCK, VmcbControl(asid=1, intercept_4=3).pack())
    guest.write(_BLOCK + VMCB_SAVE_OFFSET, save.pack())
    regs = vcpu.engine.regs
    regs.rip, regs.rax, regs.r15 = CODE, _BLOCK, ROUNDS
    taken = []

    def body() -> None:
        begin = time.perf_counter()
        exit_ = vcpu.run()
        taken.append(time.perf_counter() - begin)
        assert isinstance(exit_, Io), exit_
        vcpu.complete_exit()

    host.spawn(body, "vcpu")
    host.run()
    factory.close()
    return taken[0] / ROUNDS


def cases() -> list[Case | Figure]:
    """A round trip into L2 against an exit of L1; an exit of L2 that the hypervisor answers against the same of L1."""
    vmrun = partial(_seconds, _loop(_VMRUN), _VMMCALL)
    l1_cpuid = partial(_seconds, _loop(_CPUID), _VMMCALL)
    l2_cpuid = partial(_seconds, _VMRUN, _loop(_CPUID) + _VMMCALL)
    return [
        Case("nested-vmrun-vmexit", vmrun, "cpuid of L1", l1_cpuid),
        Case("nested-cpuid-of-l2", l2_cpuid, "cpuid of L1", l1_cpuid),
    ]
