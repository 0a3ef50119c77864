"""The embedded engine: one Unicorn instance as the CPU of one vCPU.

The guest runs in emulated SVM guest mode that is entered once and never left: the translator's own intercept checks
turn CPUID, HLT, MSR accesses and the rest into calls of the interrupt hook with the state precise at the instruction.
The instance runs in a greenlet of its own. A hook that must exit switches to the greenlet that called `run` and stays
suspended, C frames included, until the next `run` switches back: an exit neither stops nor restarts the translator.

Where it stays suspended decides what may be touched. In the interrupt hook no translated block is running and all state
may change. In an I/O hook (port or memory-mapped) the rest of the block still runs afterwards, so registers may be read
only: `at_boundary` says which of the two it is.

The class is built in layers, each on what is below it: `instance` (the live state), `code` (translated code and
instructions), `stopping` (kicks, windows, undoing), `io` (ports and memory-mapped I/O), `hooks` (what the translator
calls back), `loop` (entering and leaving), and here the registers and the memory map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from vtlkit.engine.api import (
    NO_REGISTERS,
    Access,
    Engine,
    Intercept,
    RegisterIntercepts,
)
from vtlkit.engine.mapped import MappedMemory
from vtlkit.engine.unicorn import registers
from vtlkit.engine.unicorn.controls import (
    MSR_PERMISSION_GPA,
    VMCB_GPA,
    intercept_words,
)
from vtlkit.engine.unicorn.loop import Loop
from vtlkit.engine.unicorn.shared_state import copy_shared_state
from vtlkit.engine.unicorn.state import (
    HF2_GIF,
)
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import (
    DR7_BP_EN_MASK,
    Sregs,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory


_ALL_EXCEPTIONS: Final = 0xFFFFFFFF


class UnicornEngine(Loop, MappedMemory):
    """See `vtlkit.engine.api.Engine` for the contract."""

    hypercall_instruction: ClassVar[bytes] = b"\x0f\x01\xd9"
    """VMMCALL: an intercepted instruction in SVM guest mode, at any CPL."""
    native_msrs: ClassVar[frozenset[int]] = registers.NATIVE_MSRS
    free_msr_reads: ClassVar[frozenset[int]] = frozenset(registers.READ_NATIVELY)

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        super().__init__(factory, name)
        registers.set_sregs(self, Sregs.reset())
        self.regs.vm_vmcb = VMCB_GPA
        self.regs.hflags2 |= HF2_GIF
        self.regs.old_exception = -1
        self.set_intercepts(Intercept.NONE)
        for msr in registers.READ_NATIVELY:
            self.intercept_msr(msr, False, True)

    # --- intercepts ---------------------------------------------------------------------------------------------------

    def set_intercepts(
        self, intercepts: Intercept, exceptions: int = 0, moves: RegisterIntercepts = NO_REGISTERS
    ) -> None:
        words = intercept_words(intercepts, moves)
        state = self.regs
        state.intercept = words.instructions
        state.intercept_cr_read = words.cr_read
        state.intercept_cr_write = words.cr_write
        state.intercept_dr_read = words.dr_read
        state.intercept_dr_write = words.dr_write
        # All exceptions come as intercepts: the instance then keeps no half-delivered exception of its own. But a page
        # fault writes CR2 only if it is none, so it is one only if somebody wants to see it before CR2 is written.
        state.intercept_exceptions = _ALL_EXCEPTIONS & ~(1 << Vector.PF) | exceptions & 1 << Vector.PF
        self.exception_intercepts = exceptions
        self._software_exits = Intercept.SOFTWARE_INTERRUPT in intercepts
        self._xsetbv_exits = Intercept.XSETBV in intercepts
        registers.offer_xcr0(state, not self._xsetbv_exits)

    def intercept_msr(self, index: int, read: bool, write: bool) -> None:
        self._controls.intercept_msr(index, read, write)

    # --- registers ----------------------------------------------------------------------------------------------------

    def get_sregs(self) -> Sregs:
        return registers.get_sregs(self.regs)

    def set_sregs(self, sregs: Sregs) -> None:
        assert not self._unfinished, "system registers cannot change in an unfinished I/O instruction"
        registers.set_sregs(self, sregs)

    def set_control_registers(self, cr0: int, cr4: int, efer: int) -> None:
        assert not self._unfinished, "control registers cannot change in an unfinished I/O instruction"
        state = self.regs
        state.cr[0], state.cr[4], state.efer = cr0, cr4, efer
        registers.update_hflags(state, None)
        self.flush_tlb()

    def get_msr(self, index: int) -> int:
        return registers.get_msr(self.regs, index)

    def set_msr(self, index: int, value: int) -> None:
        if registers.set_msr(self.regs, index, value):
            self.flush_tlb()

    def get_fpu(self) -> bytes:
        return registers.get_fpu(self.regs)

    def set_fpu(self, image: bytes) -> None:
        registers.set_fpu(self.regs, image)

    def get_debugregs(self) -> tuple[int, int, int, int, int, int]:
        dr = self.regs.dr
        return dr[0], dr[1], dr[2], dr[3], dr[6], dr[7]

    def set_debugregs(self, values: tuple[int, int, int, int, int, int]) -> None:
        dr = self.regs.dr
        *others, dr7 = values
        armed = (dr[7] | dr7) & DR7_BP_EN_MASK
        if armed:
            # Those that are armed are known by their old addresses.
            self._lib.update_dr7(self._env, 0)
        for number, value in zip((0, 1, 2, 3, 6), others, strict=True):
            dr[number] = value
        if armed:
            self._lib.update_dr7(self._env, dr7 & 0xFFFFFFFF)
        dr[7] = dr7

    @property
    def xcr0(self) -> int:
        return int(self.regs.xcr0)

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self.regs.xcr0 = value

    @property
    def pkru(self) -> int:
        return int(self.regs.pkru)

    @pkru.setter
    def pkru(self, value: int) -> None:
        self.regs.pkru = value
        self.flush_tlb()

    def copy_shared_state(self, source: Engine) -> None:
        assert isinstance(source, UnicornEngine)
        assert not self._unfinished
        assert not source._unfinished
        if copy_shared_state(self._bytes, source._bytes):
            self.flush_tlb()

    # --- memory -------------------------------------------------------------------------------------------------------

    def unmap(self, gpa: int, size: int) -> None:
        self._forget_moved_code(gpa, size)
        # They look into RAM that may be going.
        self._lengths.clear()
        super().unmap(gpa, size)

    def protect(self, gpa: int, size: int, access: Access) -> None:
        self._forget_moved_code(gpa, size)
        super().protect(gpa, size, access)


assert MSR_PERMISSION_GPA > VMCB_GPA
