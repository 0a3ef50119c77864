"""Multiprocessing state of a vCPU (KVM_GET/SET_MP_STATE)."""

from __future__ import annotations

import enum
from typing import Final


class MpState(enum.IntEnum):
    """KVM_MP_STATE_*. HV_INACTIVE_VTL is the list's proposal: blocked until a wake event, RFLAGS.IF ignored."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    HV_INACTIVE_VTL = 11


UNSTARTED: Final = (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)
"""Waiting for INIT or SIPI."""
