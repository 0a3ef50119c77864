"""Model-specific registers: indices and bits (Linux `arch/x86/include/asm/msr-index.h` names; SDM volume 4).

Data only. Synthetic Hyper-V MSRs are in `hvdef.msrs`.
"""

from __future__ import annotations

import enum
from typing import Final

MSR_IA32_P5_MC_ADDR: Final = 0x00
MSR_IA32_P5_MC_TYPE: Final = 0x01
MSR_IA32_TSC: Final = 0x10
MSR_IA32_PLATFORM_ID: Final = 0x17
MSR_IA32_APICBASE: Final = 0x1B
MSR_IA32_EBL_CR_POWERON: Final = 0x2A
MSR_SMI_COUNT: Final = 0x34
MSR_IA32_FEAT_CTL: Final = 0x3A
MSR_IA32_TSC_ADJUST: Final = 0x3B
MSR_IA32_SPEC_CTRL: Final = 0x48
MSR_IA32_PRED_CMD: Final = 0x49
MSR_IA32_UCODE_WRITE: Final = 0x79
MSR_IA32_UCODE_REV: Final = 0x8B
MSR_IA32_SGXLEPUBKEYHASH0: Final = 0x8C
MSR_IA32_SMBASE: Final = 0x9E
MSR_IA32_PERFCTR0: Final = 0xC1
MSR_PLATFORM_INFO: Final = 0xCE
MSR_IA32_UMWAIT_CONTROL: Final = 0xE1
MSR_IA32_MPERF: Final = 0xE7
MSR_IA32_APERF: Final = 0xE8
MSR_MTRRcap: Final = 0xFE
MSR_IA32_ARCH_CAPABILITIES: Final = 0x10A
MSR_IA32_FLUSH_CMD: Final = 0x10B
MSR_IA32_BBL_CR_CTL3: Final = 0x11E
MSR_IA32_TSX_CTRL: Final = 0x122
MSR_MISC_FEATURES_ENABLES: Final = 0x140
MSR_IA32_SYSENTER_CS: Final = 0x174
MSR_IA32_SYSENTER_ESP: Final = 0x175
MSR_IA32_SYSENTER_EIP: Final = 0x176
MSR_IA32_MCG_CAP: Final = 0x179
MSR_IA32_MCG_STATUS: Final = 0x17A
MSR_IA32_MCG_CTL: Final = 0x17B
MSR_P6_EVNTSEL0: Final = 0x186
MSR_IA32_PERF_STATUS: Final = 0x198
MSR_IA32_PERF_CTL: Final = 0x199
MSR_IA32_THERM_INTERRUPT: Final = 0x19B
MSR_IA32_THERM_STATUS: Final = 0x19C
MSR_IA32_MISC_ENABLE: Final = 0x1A0
MSR_IA32_ENERGY_PERF_BIAS: Final = 0x1B0
MSR_IA32_XFD: Final = 0x1C4
MSR_IA32_XFD_ERR: Final = 0x1C5
MSR_IA32_DEBUGCTLMSR: Final = 0x1D9
MSR_IA32_LASTBRANCHFROMIP: Final = 0x1DB
MSR_IA32_LASTBRANCHTOIP: Final = 0x1DC
MSR_IA32_LASTINTFROMIP: Final = 0x1DD
MSR_IA32_LASTINTTOIP: Final = 0x1DE

MTRR_VARIABLE_COUNT_MAX: Final = 16
MSR_MTRRphysBase0: Final = 0x200
"""Base of variable range n: MSR_MTRRphysBase0 + 2 * n; its mask is the next register."""
MSR_MTRRphysMask0: Final = 0x201
MSR_MTRRfix64K_00000: Final = 0x250
MSR_MTRRfix16K_80000: Final = 0x258
MSR_MTRRfix16K_A0000: Final = 0x259
MSR_MTRRfix4K_C0000: Final = 0x268
MSR_MTRRfix4K_F8000: Final = 0x26F
MSR_IA32_CR_PAT: Final = 0x277
MSR_IA32_MC0_CTL2: Final = 0x280
MSR_MTRRdefType: Final = 0x2FF
MSR_CORE_PERF_FIXED_CTR0: Final = 0x309
MSR_IA32_PERF_CAPABILITIES: Final = 0x345
MSR_CORE_PERF_FIXED_CTR_CTRL: Final = 0x38D
MSR_CORE_PERF_GLOBAL_STATUS: Final = 0x38E
MSR_CORE_PERF_GLOBAL_CTRL: Final = 0x38F
MSR_CORE_PERF_GLOBAL_OVF_CTRL: Final = 0x390
MSR_IA32_MC0_CTL: Final = 0x400
"""Bank n: CTL, STATUS, ADDR and MISC at MSR_IA32_MC0_CTL + 4 * n."""
MSR_IA32_MC0_STATUS: Final = 0x401
MSR_IA32_MC0_ADDR: Final = 0x402
MSR_IA32_MC0_MISC: Final = 0x403
MSR_IA32_VMX_BASIC: Final = 0x480
MSR_IA32_VMX_VMFUNC: Final = 0x491
MSR_IA32_MCG_EXT_CTL: Final = 0x4D0
MSR_IA32_DS_AREA: Final = 0x600
MSR_IA32_U_CET: Final = 0x6A0
MSR_IA32_S_CET: Final = 0x6A2
MSR_IA32_TSC_DEADLINE: Final = 0x6E0
MSR_IA32_BNDCFGS: Final = 0xD90
MSR_IA32_XSS: Final = 0xDA0

APIC_BASE_MSR: Final = 0x800
"""x2APIC register at offset `o` of the xAPIC page: APIC_BASE_MSR + (o >> 4)."""
MSR_X2APIC_LAST: Final = 0x8FF

MSR_EFER: Final = 0xC0000080
MSR_STAR: Final = 0xC0000081
MSR_LSTAR: Final = 0xC0000082
MSR_CSTAR: Final = 0xC0000083
MSR_SYSCALL_MASK: Final = 0xC0000084
MSR_FS_BASE: Final = 0xC0000100
MSR_GS_BASE: Final = 0xC0000101
MSR_KERNEL_GS_BASE: Final = 0xC0000102
MSR_TSC_AUX: Final = 0xC0000103
MSR_AMD64_TSC_RATIO: Final = 0xC0000104

MSR_K7_EVNTSEL0: Final = 0xC0010000
MSR_K7_PERFCTR0: Final = 0xC0010004
MSR_AMD64_SYSCFG: Final = 0xC0010010
MSR_K7_HWCR: Final = 0xC0010015
MSR_K8_TOP_MEM1: Final = 0xC001001A
MSR_K8_TOP_MEM2: Final = 0xC001001D
MSR_AMD64_NB_CFG: Final = 0xC001001F
MSR_AMD64_PATCH_LOADER: Final = 0xC0010020
MSR_K8_INT_PENDING_MSG: Final = 0xC0010055
MSR_AMD_PERF_CTL: Final = 0xC0010062
MSR_K8_TSEG_ADDR: Final = 0xC0010112
MSR_K8_TSEG_MASK: Final = 0xC0010113
MSR_VM_CR: Final = 0xC0010114
MSR_VM_IGNNE: Final = 0xC0010115
MSR_VM_HSAVE_PA: Final = 0xC0010117
MSR_AMD64_VIRT_SPEC_CTRL: Final = 0xC001011F
MSR_AMD64_OSVW_ID_LENGTH: Final = 0xC0010140
MSR_AMD64_OSVW_STATUS: Final = 0xC0010141
MSR_F15H_PERF_CTL0: Final = 0xC0010200
MSR_FAM10H_MMIO_CONF_BASE: Final = 0xC0010058
MSR_AMD64_LS_CFG: Final = 0xC0011020
MSR_AMD64_DC_CFG: Final = 0xC0011022
MSR_AMD64_DE_CFG: Final = 0xC0011029
MSR_AMD64_BU_CFG2: Final = 0xC001102A

MSR_KVM_WALL_CLOCK: Final = 0x11
MSR_KVM_SYSTEM_TIME: Final = 0x12
MSR_KVM_WALL_CLOCK_NEW: Final = 0x4B564D00
MSR_KVM_SYSTEM_TIME_NEW: Final = 0x4B564D01
MSR_KVM_ASYNC_PF_EN: Final = 0x4B564D02
MSR_KVM_STEAL_TIME: Final = 0x4B564D03
MSR_KVM_PV_EOI_EN: Final = 0x4B564D04
MSR_KVM_POLL_CONTROL: Final = 0x4B564D05

APICBASE_BSP: Final = 1 << 8
X2APIC_ENABLE: Final = 1 << 10
APICBASE_ENABLE: Final = 1 << 11
XAPIC_ENABLE: Final = APICBASE_ENABLE
APICBASE_BASE: Final = 0x000FFFFFFFFFF000
"""Bits of the base address, before the limit that MAXPHYADDR sets."""

FEAT_CTL_LOCKED: Final = 1 << 0
FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX: Final = 1 << 2

SPEC_CTRL_IBRS: Final = 1 << 0
SPEC_CTRL_STIBP: Final = 1 << 1
SPEC_CTRL_SSBD: Final = 1 << 2
PRED_CMD_IBPB: Final = 1 << 0

MISC_ENABLE_FAST_STRING: Final = 1 << 0
MISC_ENABLE_TCC: Final = 1 << 1
MISC_ENABLE_EMON: Final = 1 << 7
MISC_ENABLE_BTS_UNAVAIL: Final = 1 << 11
MISC_ENABLE_PEBS_UNAVAIL: Final = 1 << 12
MISC_ENABLE_ENHANCED_SPEEDSTEP: Final = 1 << 16
MISC_ENABLE_MWAIT: Final = 1 << 18
MISC_ENABLE_LIMIT_CPUID: Final = 1 << 22
MISC_ENABLE_XTPR_DISABLE: Final = 1 << 23
MISC_ENABLE_XD_DISABLE: Final = 1 << 34

MCG_BANKCNT_MASK: Final = 0xFF
MCG_CTL_P: Final = 1 << 8
MCG_EXT_P: Final = 1 << 9
MCG_CMCI_P: Final = 1 << 10
MCG_TES_P: Final = 1 << 11
MCG_SER_P: Final = 1 << 24
MCG_LMCE_P: Final = 1 << 27
MCG_STATUS_RIPV: Final = 1 << 0
MCG_STATUS_EIPV: Final = 1 << 1
MCG_STATUS_MCIP: Final = 1 << 2
MCG_STATUS_LMCES: Final = 1 << 3
MCI_STATUS_PCC: Final = 1 << 57
MCI_STATUS_ADDRV: Final = 1 << 58
MCI_STATUS_MISCV: Final = 1 << 59
MCI_STATUS_EN: Final = 1 << 60
MCI_STATUS_UC: Final = 1 << 61
MCI_STATUS_OVER: Final = 1 << 62
MCI_STATUS_VAL: Final = 1 << 63

DEBUGCTLMSR_LBR: Final = 1 << 0
DEBUGCTLMSR_BTF: Final = 1 << 1
DEBUGCTLMSR_BUS_LOCK_DETECT: Final = 1 << 2

VM_CR_DPD: Final = 1 << 0
VM_CR_R_INIT: Final = 1 << 1
VM_CR_DIS_A20M: Final = 1 << 2
VM_CR_LOCK: Final = 1 << 3
VM_CR_SVMDIS: Final = 1 << 4

HWCR_SMMLOCK: Final = 1 << 0
HWCR_MC_STATUS_WR_EN: Final = 1 << 18
HWCR_IRPERF_EN: Final = 1 << 30

PLATFORM_INFO_CPUID_FAULT: Final = 1 << 31
MISC_FEATURES_ENABLES_CPUID_FAULT: Final = 1 << 0

MTRRCAP_FIX: Final = 1 << 8
MTRRCAP_WC: Final = 1 << 10
MTRR_DEF_TYPE_TYPE: Final = 0xFF
MTRR_DEF_TYPE_FE: Final = 1 << 10
MTRR_DEF_TYPE_E: Final = 1 << 11
MTRR_PHYS_MASK_V: Final = 1 << 11


class MemoryType(enum.IntEnum):
    """Memory types of PAT and MTRR entries; UC_MINUS in the PAT only."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7


_MTRR_TYPES: Final = frozenset({0, 1, 4, 5, 6})
_PAT_TYPES: Final = frozenset(int(t) for t in MemoryType)
PAT_RESET: Final = 0x0007040600070406


def pat_entry(pat: int, index: int) -> MemoryType:
    """The memory type that entry `index` (0 to 7) of a valid PAT selects."""
    return MemoryType((pat >> (8 * index)) & 0xFF)


def pat_valid(pat: int) -> bool:
    """Whether WRMSR accepts the value: eight defined memory types, all reserved bits clear."""
    return pat >> 64 == 0 and all(byte in _PAT_TYPES for byte in pat.to_bytes(8, "little"))


def mtrr_type_valid(memory_type: int) -> bool:
    """Whether an MTRR may name this memory type."""
    return memory_type in _MTRR_TYPES


MTRR_FIXED: Final = (
    MSR_MTRRfix64K_00000,
    MSR_MTRRfix16K_80000,
    MSR_MTRRfix16K_A0000,
    *range(MSR_MTRRfix4K_C0000, MSR_MTRRfix4K_F8000 + 1),
)
"""The eleven fixed-range MTRRs in address order."""
