"""The virtual machine control block as it lies in guest memory (AMD APM volume 2, appendix B; `struct vmcb` of
arch/x86/include/asm/svm.h), and the fields inside its words.
"""

from __future__ import annotations

from typing import Annotated, Final

from vtlkit.layout import Bytes, Struct, u8, u16, u32, u64

VMCB_SAVE_OFFSET: Final = 0x400
VMCB_SIZE: Final = 0x698
"""Bytes of the block that have a meaning here; its page has 4096."""

# int_ctl
V_TPR_MASK: Final = 0x0F
V_IRQ: Final = 1 << 8
V_INTR_PRIO_SHIFT: Final = 16
V_INTR_PRIO_MASK: Final = 0xF << V_INTR_PRIO_SHIFT
V_IGN_TPR: Final = 1 << 20
V_INTR_MASKING: Final = 1 << 24

INTERRUPT_SHADOW: Final = 1
"""Bit of int_state."""

NESTED_CTL_NP_ENABLE: Final = 1
TLB_CONTROL_DO_NOTHING: Final = 0
TLB_CONTROL_FLUSH_ALL: Final = 1

EVENTINJ_VECTOR: Final = 0xFF
EVENTINJ_TYPE_SHIFT: Final = 8
EVENTINJ_TYPE_MASK: Final = 7 << EVENTINJ_TYPE_SHIFT
EVENTINJ_EV: Final = 1 << 11
"""There is an error code."""
EVENTINJ_VALID: Final = 1 << 31

IOIO_IN: Final = 1
IOIO_STRING: Final = 1 << 2
IOIO_REP: Final = 1 << 3
IOIO_SIZE_SHIFT: Final = 4
"""SZ8, SZ16, SZ32 are the sizes 1, 2, 4 in place."""
IOIO_ADDRESS_16: Final = 1 << 7
IOIO_ADDRESS_32: Final = 1 << 8
IOIO_ADDRESS_64: Final = 1 << 9
IOIO_PORT_SHIFT: Final = 16

IOPM_SIZE: Final = 3 << 12
MSRPM_SIZE: Final = 2 << 12


class VmcbSegment(Struct, size=16):
    """Attributes: descriptor bits 47:40 in 7:0, bits 55:52 in 11:8."""

    selector: u16 = 0
    attributes: u16 = 0
    limit: u32 = 0
    base: u64 = 0


class VmcbControl(
    Struct,
    size=0x400,
    offsets={
        "pause_filter_threshold": 0x3C,
        "iopm_base_pa": 0x40,
        "tsc_offset": 0x50,
        "asid": 0x58,
        "int_ctl": 0x60,
        "int_state": 0x68,
        "exit_code": 0x70,
        "exit_int_info": 0x88,
        "nested_ctl": 0x90,
        "event_inj": 0xA8,
        "nested_cr3": 0xB0,
        "clean": 0xC0,
        "next_rip": 0xC8,
    },
):
    """The control area."""

    intercept_cr: u32 = 0
    """Reads in 15:0, writes in 31:16; so `intercept_dr`."""
    intercept_dr: u32 = 0
    intercept_exceptions: u32 = 0
    intercept_3: u32 = 0
    """Bit n: exit code 60h + n; in `intercept_4` 80h + n."""
    intercept_4: u32 = 0
    intercept_5: u32 = 0
    reserved_18: Annotated[bytes, Bytes(0x24)] = bytes(0x24)
    pause_filter_threshold: u16 = 0
    pause_filter_count: u16 = 0
    iopm_base_pa: u64 = 0
    msrpm_base_pa: u64 = 0
    tsc_offset: u64 = 0
    asid: u32 = 0
    tlb_control: u8 = 0
    reserved_5d: Annotated[bytes, Bytes(3)] = bytes(3)
    int_ctl: u32 = 0
    int_vector: u32 = 0
    int_state: u64 = 0
    exit_code: u64 = 0
    exit_info_1: u64 = 0
    exit_info_2: u64 = 0
    exit_int_info: u32 = 0
    exit_int_info_error: u32 = 0
    nested_ctl: u64 = 0
    reserved_98: Annotated[bytes, Bytes(0x10)] = bytes(0x10)
    event_inj: u32 = 0
    event_inj_error: u32 = 0
    nested_cr3: u64 = 0
    virt_ext: u64 = 0
    clean: u32 = 0
    reserved_c4: u32 = 0
    next_rip: u64 = 0
    instruction_length: u8 = 0
    instruction_bytes: Annotated[bytes, Bytes(15)] = bytes(15)
    reserved_e0: Annotated[bytes, Bytes(0x320)] = bytes(0x320)


class VmcbSave(
    Struct,
    size=0x298,
    offsets={
        "tr": 0x90,
        "cpl": 0xCB,
        "efer": 0xD0,
        "cr4": 0x148,
        "rflags": 0x170,
        "rsp": 0x1D8,
        "rax": 0x1F8,
        "kernel_gs_base": 0x220,
        "cr2": 0x240,
        "g_pat": 0x268,
    },
):
    """The state save area."""

    es: VmcbSegment = VmcbSegment()
    cs: VmcbSegment = VmcbSegment()
    ss: VmcbSegment = VmcbSegment()
    ds: VmcbSegment = VmcbSegment()
    fs: VmcbSegment = VmcbSegment()
    gs: VmcbSegment = VmcbSegment()
    gdtr: VmcbSegment = VmcbSegment()
    ldtr: VmcbSegment = VmcbSegment()
    idtr: VmcbSegment = VmcbSegment()
    tr: VmcbSegment = VmcbSegment()
    reserved_a0: Annotated[bytes, Bytes(43)] = bytes(43)
    cpl: u8 = 0
    reserved_cc: u32 = 0
    efer: u64 = 0
    reserved_d8: Annotated[bytes, Bytes(112)] = bytes(112)
    cr4: u64 = 0
    cr3: u64 = 0
    cr0: u64 = 0
    dr7: u64 = 0
    dr6: u64 = 0
    rflags: u64 = 0
    rip: u64 = 0
    reserved_180: Annotated[bytes, Bytes(88)] = bytes(88)
    rsp: u64 = 0
    reserved_1e0: Annotated[bytes, Bytes(24)] = bytes(24)
    rax: u64 = 0
    star: u64 = 0
    lstar: u64 = 0
    cstar: u64 = 0
    sfmask: u64 = 0
    kernel_gs_base: u64 = 0
    sysenter_cs: u64 = 0
    sysenter_esp: u64 = 0
    sysenter_eip: u64 = 0
    cr2: u64 = 0
    reserved_248: Annotated[bytes, Bytes(32)] = bytes(32)
    g_pat: u64 = 0
    dbgctl: u64 = 0
    br_from: u64 = 0
    br_to: u64 = 0
    last_excp_from: u64 = 0
    last_excp_to: u64 = 0
