"""Identifiers with special values, and page sizes (TLFS, HV_PARTITION_ID, HV_VP_INDEX, HV_VTL)."""

from __future__ import annotations

from typing import Final

HV_PAGE_SIZE: Final = 4096
HV_PAGE_SHIFT: Final = 12
GPA_LIMIT: Final = 1 << 52
"""No x86 processor has wider physical addresses (SDM volume 3, 5.1.4)."""

HV_PARTITION_ID_INVALID: Final = 0
HV_PARTITION_ID_SELF: Final = 0xFFFFFFFFFFFFFFFF

HV_VP_INDEX_SELF: Final = 0xFFFFFFFE
HV_ANY_VP: Final = 0xFFFFFFFF

HV_NUM_VTLS: Final = 2
"""VTLs that Hyper-V implements; the architecture has HV_MAX_VTLS."""
HV_MAX_VTLS: Final = 16
HV_INVALID_VTL: Final = 0xFF
HV_VTL_ALL: Final = 0xF
