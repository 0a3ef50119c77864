"""What all VTLs of a processor share, as bytes of the CPU's state (TLFS, "Virtual Processor State", shared registers).

Belongs to the vCPU's task, between instructions.
"""

from __future__ import annotations

from typing import Final

from vtlkit.engine.unicorn.state import CpuState

_RSP: Final = CpuState.rsp.offset
_BEHIND_RSP: Final = _RSP + 8
_BEHIND_GPRS: Final = CpuState.r15.offset + 8
_FPU_FIRST: Final = CpuState.fpstt.offset
_BEHIND_FPU: Final = CpuState.xmm.offset + CpuState.xmm.size
_DR: Final = CpuState.dr.offset
_BEHIND_DR3: Final = _DR + 4 * 8
_CR2: Final = CpuState.cr.offset + 2 * 8
_BEHIND_CR2: Final = _CR2 + 8
_XCR0: Final = CpuState.xcr0.offset
_BEHIND_XCR0: Final = _XCR0 + 8
_PKRU: Final = CpuState.pkru.offset
_BEHIND_PKRU: Final = _PKRU + 4


def copy_shared_state(to: memoryview, of: memoryview) -> bool:
    """RAX..R15 but RSP, CR2, DR0..DR3, x87 and SSE, XCR0, PKRU; True if translations of addresses depend on it.

    Both are the bytes of a `CpuState`.
    """
    to[:_RSP] = of[:_RSP]
    to[_BEHIND_RSP:_BEHIND_GPRS] = of[_BEHIND_RSP:_BEHIND_GPRS]
    to[_FPU_FIRST:_BEHIND_FPU] = of[_FPU_FIRST:_BEHIND_FPU]
    to[_DR:_BEHIND_DR3] = of[_DR:_BEHIND_DR3]
    to[_CR2:_BEHIND_CR2] = of[_CR2:_BEHIND_CR2]
    to[_XCR0:_BEHIND_XCR0] = of[_XCR0:_BEHIND_XCR0]
    if to[_PKRU:_BEHIND_PKRU] == of[_PKRU:_BEHIND_PKRU]:
        return False
    to[_PKRU:_BEHIND_PKRU] = of[_PKRU:_BEHIND_PKRU]
    return True
