"""One Unicorn instance and views of its live state: what every part of the engine builds on.

Opened here, set up by `UnicornEngine`, closed by `Loop`. Belongs to the vCPU's task.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from vtlkit.engine.api import (
    Engine,
)
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.unicorn import binding, registers
from vtlkit.engine.unicorn.controls import (
    ControlPages,
)
from vtlkit.engine.unicorn.delivery import CS, Delivery
from vtlkit.engine.unicorn.linear import LinearMemory
from vtlkit.engine.unicorn.memory import GuestPhysicalMap
from vtlkit.engine.unicorn.state import (
    CC_FLAGS,
    CC_OP_EFLAGS,
    HF2_NMI,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_INHIBIT_IRQ,
    CpuState,
    locate,
)
from vtlkit.x86.paging import is_canonical
from vtlkit.x86.registers import (
    CR4_LA57,
    RFLAGS_DF,
    RFLAGS_FIXED,
    RFLAGS_IF,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory


class Instance(Engine):
    """The instance, its memory and the parts of its state that exits need at once."""

    regs: CpuState

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        self._factory = factory
        self._lib = lib = factory.lib
        self.name = name
        handle = ctypes.c_void_p()
        lib.check(lib.open(binding.UC_ARCH_X86, binding.UC_MODE_64, ctypes.byref(handle)), "an instance")
        assert handle.value is not None
        self._handle = handle.value
        lib.check(lib.ctl(self._handle, binding.CTL_USE_EXITS, 1, 0), "exit points")
        no_exits = (ctypes.c_uint64 * 1)()
        lib.check(lib.ctl(self._handle, binding.CTL_EXITS, ctypes.addressof(no_exits), 0), "no exit points")
        self._counting = factory.counts_instructions()
        self._live = locate(lib, self._handle)
        self._request_low = ctypes.c_uint8.from_address(ctypes.addressof(self._live.interrupt_request))
        self._request_high = ctypes.c_uint8.from_address(ctypes.addressof(self._live.interrupt_request) + 1)
        self._count, self._counter = self._live.count, self._live.counter
        self._live.no_exit_request.value = not self._counting
        self.regs = self._live.state
        self._bind_words()
        self._controls = ControlPages()
        self._map = GuestPhysicalMap(lib, self._handle, self.regs)
        self._controls.map(lib, self._handle)
        registers.enable_features(self.regs)
        self.linear = LinearMemory(self.regs, self._map, registers.MAXPHYADDR)
        self._delivery = Delivery(self)
        self.exception_intercepts = 0
        self._chores = False
        """Whether there is something to do before the next entry: see `Loop._do_chores`."""

    def _bind_words(self) -> None:
        """Views of what every exit needs, without the detour over the structure."""
        address = self._env = ctypes.addressof(self.regs)
        self._bytes = memoryview((ctypes.c_uint8 * ctypes.sizeof(CpuState)).from_address(address)).cast("B")
        self._rip = ctypes.c_uint64.from_address(address + CpuState.rip.offset)
        self._eflags = ctypes.c_uint64.from_address(address + CpuState.eflags.offset)
        self._hflags = ctypes.c_uint32.from_address(address + CpuState.hflags.offset)
        self._cc_op = ctypes.c_uint32.from_address(address + CpuState.cc_op.offset)
        self._cr0 = ctypes.c_uint64.from_address(address + CpuState.cr.offset)
        self._cr3 = ctypes.c_uint64.from_address(address + CpuState.cr.offset + 3 * 8)

    # --- where RIP is -------------------------------------------------------------------------------------------------

    def _linear_rip(self) -> int:
        state = self.regs
        if state.hflags & HF_CS64:
            return int(state.rip)
        return int(state.rip + state.segs[CS].base) & 0xFFFFFFFF

    def _bits(self) -> int:
        hflags = self.regs.hflags
        return 64 if hflags & HF_CS64 else 32 if hflags & HF_CS32 else 16

    def _before_hole(self) -> bool:
        """Whether RIP is in the last page below the addresses that are not canonical."""
        state = self.regs
        if not state.hflags & HF_CS64:
            return False
        la57 = bool(state.cr[4] & CR4_LA57)
        return is_canonical(state.rip, la57) and not is_canonical(state.rip + 4096, la57)

    def code_bits(self) -> int:
        return self._bits()

    def instruction_bytes(self, size: int = 16) -> bytes:
        """Up to `size` bytes at RIP, fewer where they cannot be fetched."""
        try:
            return self.linear.fetch(self._linear_rip(), size)
        except (GuestFault, PhysicalFault):
            return b""

    def _note_flags(self) -> None:
        """In an access of an instruction: see `_BETWEEN_INSTRUCTIONS`."""
        if self._counting:
            self.regs.cc_op = CC_OP_EFLAGS

    def _find_instruction(self) -> None:
        """Set RIP and the flags as of the present access."""
        if self._counting:
            self.regs.cc_op = CC_OP_EFLAGS
        else:
            self._lib.restore_state(self._live.cpu, self._live.io_pc.value, False)

    # --- flags and modes ----------------------------------------------------------------------------------------------

    @property
    def rflags(self) -> int:
        state = self.regs
        # Where instructions are counted, old arithmetic flags lie about in this field.
        flags = int(state.eflags) & ~(CC_FLAGS | RFLAGS_DF) | RFLAGS_FIXED | (RFLAGS_DF if state.df < 0 else 0)
        if state.cc_op == CC_OP_EFLAGS:
            return flags | (int(state.cc_src) & CC_FLAGS)
        return flags | (self._lib.arithmetic_flags(self._env, state.cc_op) & CC_FLAGS)

    @rflags.setter
    def rflags(self, value: int) -> None:
        state = self.regs
        state.cc_src = value & CC_FLAGS
        state.cc_op = CC_OP_EFLAGS
        state.df = -1 if value & RFLAGS_DF else 1
        state.eflags = (value & ~(CC_FLAGS | RFLAGS_DF)) | RFLAGS_FIXED

    @property
    def interrupt_flag(self) -> bool:
        return bool(self._eflags.value & RFLAGS_IF)

    def change_rflags(self, *, clear: int) -> None:
        """Clear flags that are not arithmetic ones."""
        self.regs.eflags &= ~clear

    def update_hflags(self, cpl: int | None = None) -> None:
        """Recompute what the translator keys on after a change of segments or control registers."""
        registers.update_hflags(self.regs, cpl)

    @property
    def interrupt_shadow(self) -> bool:
        return bool(self.regs.hflags & HF_INHIBIT_IRQ)

    @interrupt_shadow.setter
    def interrupt_shadow(self, value: bool) -> None:
        self.regs.hflags = (self.regs.hflags & ~HF_INHIBIT_IRQ) | (HF_INHIBIT_IRQ if value else 0)

    @property
    def nmi_blocked(self) -> bool:
        return bool(self.regs.hflags2 & HF2_NMI)

    @nmi_blocked.setter
    def nmi_blocked(self, value: bool) -> None:
        self.regs.hflags2 = (self.regs.hflags2 & ~HF2_NMI) | (HF2_NMI if value else 0)

    @property
    def cpl(self) -> int:
        return int(self.regs.hflags & HF_CPL)

    @property
    def cr0(self) -> int:
        return int(self.regs.cr[0])

    @property
    def cr4(self) -> int:
        return int(self.regs.cr[4])

    def flush_tlb(self) -> None:
        self._lib.check(self._lib.ctl(self._handle, binding.CTL_TLB_FLUSH, 0, 0), "a TLB flush")
