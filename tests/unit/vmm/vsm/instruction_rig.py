"""One processor on the embedded CPU: VTL 0 runs machine code of the test, VTL 1 hears of it and reacts by its hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.unit.vmm.vsm.vsm_rig import initial_context
from vtlkit.engine.api import Access, RamBlock
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.intercepts import HV_INPUT_INSTALL_INTERCEPT, HvInterceptType
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import HvFeatures, Io, Kvm, KvmRun, MemoryRegion, Vcpu
from vtlkit.testing import guest_builder as layout
from vtlkit.testing.assembler import Assembler
from vtlkit.testing.guest_builder import Guest
from vtlkit.vmm.vsm import context, vp_registers
from vtlkit.vmm.vsm.intercepts import install
from vtlkit.vmm.vsm.partition import Partition
from vtlkit.vmm.vsm.vp import Vp

RAM_SIZE = 0x200000
CLOSED = 0x1A0000
ALIAS = 0x1B0000
"""A virtual address that the tables map to CLOSED."""
VTL1_CODE = 0x150000
VTL1_MESSAGES = 0x160000
END_PORT = 0x10
VTL1_PORT = 0x11
SINT0_POLLED = 0x30 | 1 << 18
"""Messages come without interrupt: VTL1's code here takes none."""
GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))


class Rig:
    """One processor on the embedded CPU: VTL 0 runs the test's code, VTL 1 writes to a port each time it is entered."""

    def __init__(self) -> None:
        self.host = Simulator()
        self.factory = UnicornFactory()
        self.ram = RamBlock(RAM_SIZE)
        kvm = Kvm(self.host, self.factory)
        region = MemoryRegion(0, 0, RAM_SIZE, self.ram, 0)
        self.partition = Partition(kvm, [region], cpus=1, vtls=2, hyperv=HvFeatures(), supervisor=self)
        self.vp = self.partition.vps[0]
        self.vcpu = self.vp.vcpus[0]
        self.guest = Guest(self.vcpu.engine, self.ram, map_ram=False)
        self.guest._tables()
        self.guest.map_page(ALIAS, CLOSED | 7)
        self.messages: list[bytes] = []
        self.states: list[dict[str, int]] = []
        self.react: list[Any] = []
        """What VTL1 does at each entry, one after the other."""
        self.host_ports: list[int] = []
        self.written: list[tuple[int, int]] = []
        """What was written to `host_ports`: (port, value)."""
        self._ended = False
        self._enable_vtl1()

    def _enable_vtl1(self) -> None:
        """By the host's hand: what VTL1's own code would do is not what is tested here."""
        code = Assembler(64, VTL1_CODE)
        code.label("again")
        code.mov("eax", 1)
        code.out(VTL1_PORT, "al")
        code.mov("eax", 0)
        code.mov("ecx", 0x12)
        code.vmmcall()
        code.jmp("again")
        self.ram.view[VTL1_CODE : VTL1_CODE + len(code.code())] = code.code()
        with self.partition.lock:
            self.partition.enable_vtl(1)
            vcpu = self.partition.create_vcpu(0, 1)
            state = context.decode(initial_context(VTL1_CODE, Cr3=layout.PML4, Rsp=0x140000), 0x620)
            assert state is not None
            state.apply(vcpu)
            self.vp.add_vcpu(vcpu, 1)
        vcpu.vm.hv.set_guest_os_id(1)
        for index, value in ((0x1B, 0xFEE00D00), (0x80F, 0x1FF), (0x40000083, VTL1_MESSAGES | 1), (0x40000080, 1)):
            assert vcpu.set_guest_msr(index, value)
        assert vcpu.set_guest_msr(0x40000090, SINT0_POLLED)

    def close(self, access: Access, gpa: int = CLOSED) -> None:
        """VTL 1 permits VTL 0 so much of the page."""
        with self.partition.lock:
            self.partition.protect(1, 0, gpa, 0x1000, access)

    def install(self, kind: HvInterceptType, parameter: int = 0, access: int = 7) -> None:
        """VTL 1 installs an intercept, or removes it with access mask 0."""
        access &= install._TYPES[kind][0]
        request = HV_INPUT_INSTALL_INTERCEPT(HV_PARTITION_ID_SELF, access, kind, parameter)
        call: Any = SimpleNamespace(data=request.pack())
        assert install.install(self.vp, 1, call) == (HvStatus.SUCCESS, 0)

    def set(self, name: Name, value: int, *, vtl: int = 0) -> None:
        """VTL 1 writes a register of a VTL."""
        assert vp_registers.set(self.vp, self.vp, vtl, name, value) == HvStatus.SUCCESS

    def skip(self, length: int) -> None:
        """VTL 1 moves VTL 0's RIP past an instruction, as who has emulated it does."""
        self.set(Name.HvX64RegisterRip, self.vcpu.get_regs().rip + length)

    def run(self, code: Assembler) -> Rig:
        self.guest.load(code)
        for vp in self.partition.vps:
            vp.start()
        self.host.run()
        return self

    # --- vsm.partition.Supervisor ---

    def ending(self) -> bool:
        return self._ended

    def must_park(self) -> bool:
        return False

    def park(self) -> None:
        raise AssertionError("nothing parks here")

    def task_started(self) -> None: ...

    def task_finished(self) -> None: ...

    def vcpu_finished(self, vcpu: Vcpu) -> None:
        """The test looks at the processor yet: closing the factory ends it."""
        vcpu.__dict__["close"] = lambda: None

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        assert isinstance(exit_, Io), exit_
        if exit_.port == VTL1_PORT:
            memory = self.partition.vtls[1].vm.memory
            self.messages.append(memory.read(VTL1_MESSAGES, 256))
            memory.write(VTL1_MESSAGES, bytes(4))
            regs = self.vcpu.get_regs()
            self.states.append({name: getattr(regs, name) for name in (*GPRS, "rip", "rflags")})
            # VTL1's code uses two registers that VTL0 shares: its return restores them from here.
            vcpu.hv.assist.write(16, regs.rax.to_bytes(8, "little") + regs.rcx.to_bytes(8, "little"))
            if self.react:
                self.react.pop(0)(self)
            return
        if exit_.port in self.host_ports:
            self.written.append((exit_.port, exit_.data))
            return
        self._ended = True
        for each in self.partition.all_vcpus():
            each.signal()
        self.partition.wake_all()


def number(message: bytes, offset: int, size: int) -> int:
    return int.from_bytes(message[offset : offset + size], "little")


def program(rig: Rig, body: Any, *, bits: int = 64) -> Assembler:
    """Distinct values in all registers, the instruction (what `body` emits from label `target` on), the run's end."""
    code = rig.guest.assembler(bits)
    names = GPRS if bits == 64 else GPRS[:8]
    for position, name in enumerate(names):
        if name == "rsp":
            continue
        if bits == 64:
            code.mov(name, 0x1111_0000_0000_0000 * (position + 1) % (1 << 64) | 0x100 + position)
        else:
            code.mov("e" + name[1:], 0x11110000 * (position + 1) % (1 << 32) | 0x100 + position)
    start = code.here
    body(code)
    code._labels.setdefault("target", start)
    code.label("next")
    code.out(END_PORT, "al")
    return code


READ, WRITE, EXECUTE = 0, 1, 2
STATE_64 = 1 << 2 | 1 << 4
"""CR0.PE, EFER.LMA, CPL 0, VTL 0."""


def remove(kind: HvInterceptType, parameter: int = 0) -> Callable[[Rig], None]:
    return lambda rig: rig.install(kind, parameter, 0)


def the_message(rig: Rig, kind: HvMessageType, size: int) -> bytes:
    """The payload of the only message: its header is checked, and that nothing is behind it."""
    (message,) = rig.messages
    assert (number(message, 0, 4), number(message, 4, 1), number(message, 8, 8)) == (kind, size, 1)
    assert not any(message[16 + size :])
    return message[16 : 16 + size]


def check_header(rig: Rig, payload: bytes, code: Assembler, access: int, *, state: int = STATE_64) -> None:
    """Of a message about the instruction at `target`."""
    start, length = code.at("target"), code.at("next") - code.at("target")
    assert number(payload, 0, 4) == 0
    assert number(payload, 4, 1) == length
    assert number(payload, 5, 1) == access
    assert number(payload, 6, 2) == state
    assert (number(payload, 8, 8), number(payload, 0x10, 4)) == (0, 0xFFFFFFFF)
    assert (number(payload, 0x14, 2), number(payload, 0x16, 2)) == (layout.KERNEL_CODE64, 0xA09B)
    assert number(payload, 0x18, 8) == start
    assert number(payload, 0x20, 8) == rig.states[0]["rflags"]
    assert rig.states[0]["rip"] == start


def code_at(rig: Rig, code: Assembler, size: int = 16) -> bytes:
    return bytes(rig.ram.view[code.at("target") : code.at("target") + size])
