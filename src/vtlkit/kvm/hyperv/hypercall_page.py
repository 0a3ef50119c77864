"""The hypercall page: code that a guest calls so as not to know which instruction makes a hypercall (TLFS,
"Establishing the Hypercall Interface", "Hypercall Page Assist"; `kvm_hv_set_msr_pw` in arch/x86/kvm/hyperv.c).

The page holds the ordinary call at offset 0 and, after it, a VTL call and a VTL return for 32- and for 64-bit callers.
A caller of these passes the control input in RCX (EAX and EDX in 32-bit code); the sequence moves it to RAX (ECX), puts
the call code where the ordinary call has it, and returns when the caller's VTL runs again.
"""

from __future__ import annotations

from dataclasses import dataclass

from vtlkit.engine.api import PAGE_SIZE
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.vsm import HV_VSM_VTL_CALL_OFFSET, HV_VSM_VTL_RETURN_OFFSET

_RET = b"\xc3"
_MOV_RAX_RCX = b"\x48\x89\xc8"
_MOV_ECX = b"\xb9"
_MOV_ECX_EAX = b"\x89\xc1"
_MOV_EAX = b"\xb8"
_INT3 = b"\xcc"
"""Fills the rest, so that a wrong offset is noticed."""


@dataclass(frozen=True, slots=True)
class CodePageOffsets:
    """Offsets in bytes of the VTL switch sequences."""

    call_32: int
    return_32: int
    call_64: int
    return_64: int

    def register(self, *, is_64bit: bool) -> int:
        """HvRegisterVsmCodePageOffsets as a VTL of that mode reads it."""
        call, back = (self.call_64, self.return_64) if is_64bit else (self.call_32, self.return_32)
        return HV_VSM_VTL_CALL_OFFSET.make(call) | HV_VSM_VTL_RETURN_OFFSET.make(back)


def hypercall_page(instruction: bytes) -> tuple[bytes, CodePageOffsets]:
    """The page's contents around an engine's hypercall instruction, and where its sequences begin."""
    page = bytearray(instruction + _RET)
    offsets = []
    for code in (HvCallCode.HvCallVtlCall, HvCallCode.HvCallVtlReturn):
        immediate = int(code).to_bytes(4, "little")
        for sequence in (_MOV_ECX_EAX + _MOV_EAX + immediate, _MOV_RAX_RCX + _MOV_ECX + immediate):
            offsets.append(len(page))
            page += sequence + instruction + _RET
    call_32, call_64, return_32, return_64 = offsets
    return bytes(page).ljust(PAGE_SIZE, _INT3), CodePageOffsets(call_32, return_32, call_64, return_64)
