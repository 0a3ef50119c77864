"""A virtual machine whose one vCPU is the embedded CPU: machine code in, where it ended out."""

from __future__ import annotations

from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm, Vcpu
from vtlkit.testing.guest_builder import CODE, RAM_SIZE, Guest
from vtlkit.x86.exceptions import Vector

OUT = b"\xe6\x80"
"""out 0x80, al: ends a run with an exit."""


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

    def write_cr4(self, value: int) -> None:
        """Set bits of CR4 from outside."""
        sregs = self.vcpu.get_sregs()
        sregs.cr4 |= value
        self.vcpu.set_sregs(sregs)

    def faults(self, code: bytes, vector: Vector) -> bool:
        rip = self.execute(code)
        assert rip in (CODE + len(code), self.guest.handler(vector)), hex(rip)
        return rip == self.guest.handler(vector)
