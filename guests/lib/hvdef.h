/* Names, numbers and layouts of the Hypervisor Top Level Functional Specification. */
#ifndef HVDEF_H
#define HVDEF_H

#include "vp.h"

#define HV_CPUID_VENDOR 0x40000000
#define HV_CPUID_INTERFACE 0x40000001
#define HV_CPUID_FEATURES 0x40000003
#define HV_INTERFACE_HV1 0x31237648 /* "Hv#1" */
#define HV_EAX_ACCESS_SYNIC_REGS (1u << 2)
#define HV_EAX_ACCESS_HYPERCALL_MSRS (1u << 5)
#define HV_EBX_ACCESS_VSM (1u << 16)
#define HV_EBX_ACCESS_VP_REGISTERS (1u << 17)

#define HV_EDX_XMM_INPUT (1u << 4)

#define HV_X64_MSR_GUEST_OS_ID 0x40000000
#define HV_X64_MSR_HYPERCALL 0x40000001
#define HV_X64_MSR_VP_INDEX 0x40000002
#define HV_X64_MSR_RESET 0x40000003
#define HV_X64_MSR_VP_RUNTIME 0x40000010
#define HV_X64_MSR_TIME_REF_COUNT 0x40000020
#define HV_X64_MSR_REFERENCE_TSC 0x40000021
#define HV_X64_MSR_TSC_FREQUENCY 0x40000022
#define HV_X64_MSR_APIC_FREQUENCY 0x40000023
#define HV_X64_MSR_NPIEP_CONFIG 0x40000040
#define HV_X64_MSR_EOI 0x40000070
#define HV_X64_MSR_ICR 0x40000071
#define HV_X64_MSR_TPR 0x40000072
#define HV_X64_MSR_VP_ASSIST_PAGE 0x40000073
#define HV_X64_MSR_SCONTROL 0x40000080
#define HV_X64_MSR_SVERSION 0x40000081
#define HV_X64_MSR_SIEFP 0x40000082
#define HV_X64_MSR_SIMP 0x40000083
#define HV_X64_MSR_EOM 0x40000084
#define HV_X64_MSR_SINT0 0x40000090
#define HV_X64_MSR_STIMER0_CONFIG 0x400000b0
#define HV_X64_MSR_STIMER0_COUNT 0x400000b1
#define HV_X64_MSR_GUEST_IDLE 0x400000f0
#define HV_X64_MSR_CRASH_P0 0x40000100
#define HV_X64_MSR_CRASH_CTL 0x40000105
#define HV_MSR_ENABLE 1
#define HV_MSR_HYPERCALL_LOCKED 2
#define HV_SINT_MASKED (1u << 16)
#define HV_SINT_AUTO_EOI (1u << 17)
#define HV_CRASH_NOTIFY (1ull << 63)
#define HV_CRASH_MESSAGE (1ull << 62)

#define HvCallFlushVirtualAddressSpace 0x0002
#define HvCallFlushVirtualAddressList 0x0003
#define HvCallNotifyLongSpinWait 0x0008
#define HvCallSendSyntheticClusterIpi 0x000b
#define HvCallModifyVtlProtectionMask 0x000c
#define HvCallEnablePartitionVtl 0x000d
#define HvCallEnableVpVtl 0x000f
#define HvCallVtlCall 0x0011
#define HvCallVtlReturn 0x0012
#define HvCallFlushVirtualAddressSpaceEx 0x0013
#define HvCallFlushVirtualAddressListEx 0x0014
#define HvCallSendSyntheticClusterIpiEx 0x0015
#define HvCallInstallIntercept 0x004d
#define HvCallGetVpRegisters 0x0050
#define HvCallSetVpRegisters 0x0051
#define HvCallTranslateVirtualAddress 0x0052
#define HvCallDeletePort 0x0058
#define HvCallDisconnectPort 0x005b
#define HvCallPostMessage 0x005c
#define HvCallSignalEvent 0x005d
#define HvCallCreatePort 0x0095
#define HvCallConnectPort 0x0096
#define HvCallStartVirtualProcessor 0x0099
#define HvCallGetVpIndexFromApicId 0x009a

enum hv_status {
    HV_STATUS_SUCCESS = 0x00,
    HV_STATUS_INVALID_HYPERCALL_CODE = 0x02,
    HV_STATUS_INVALID_HYPERCALL_INPUT = 0x03,
    HV_STATUS_INVALID_ALIGNMENT = 0x04,
    HV_STATUS_INVALID_PARAMETER = 0x05,
    HV_STATUS_ACCESS_DENIED = 0x06,
    HV_STATUS_OPERATION_DENIED = 0x08,
    HV_STATUS_INVALID_PARTITION_ID = 0x0d,
    HV_STATUS_INVALID_VP_INDEX = 0x0e,
    HV_STATUS_INVALID_PORT_ID = 0x11,
    HV_STATUS_INVALID_CONNECTION_ID = 0x12,
    HV_STATUS_INSUFFICIENT_BUFFERS = 0x13,
    HV_STATUS_INVALID_VP_STATE = 0x15,
    HV_STATUS_INVALID_REGISTER_VALUE = 0x50,
    HV_STATUS_INVALID_VTL_STATE = 0x51,
    HV_STATUS_VTL_ALREADY_ENABLED = 0x86,
};

#define HV_PARTITION_ID_SELF (~0ull)
#define HV_VP_INDEX_SELF 0xfffffffe
#define HV_VP_INDEX_ANY 0xffffffff
#define HV_INPUT_VTL_CURRENT 0x00
#define HV_INPUT_VTL(vtl) (0x10 | (vtl))

#define HvRegisterPendingEvent0 0x00010004
#define HvX64RegisterRax 0x00020000
#define HvX64RegisterRcx 0x00020001
#define HvX64RegisterRdx 0x00020002
#define HvX64RegisterRbx 0x00020003
#define HvX64RegisterRsp 0x00020004
#define HvX64RegisterRsi 0x00020006
#define HvX64RegisterRip 0x00020010
#define HvX64RegisterRflags 0x00020011
#define HvX64RegisterCr0 0x00040000
#define HvX64RegisterCr2 0x00040001
#define HvX64RegisterCr3 0x00040002
#define HvX64RegisterLstar 0x00080009
#define HvRegisterVpIndex 0x00090003
#define HvRegisterVsmCodePageOffsets 0x000d0002
#define HvRegisterVsmVpStatus 0x000d0003
#define HvRegisterVsmPartitionStatus 0x000d0004
#define HvRegisterVsmVina 0x000d0005
#define HvRegisterVsmCapabilities 0x000d0006
#define HvRegisterVsmPartitionConfig 0x000d0007
#define HvRegisterVsmVpSecureConfigVtl0 0x000d0010
#define HvX64RegisterCrInterceptControl 0x000e0000
#define HvX64RegisterCrInterceptCr0Mask 0x000e0001
#define HvX64RegisterCrInterceptCr4Mask 0x000e0002

#define HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION 0x01
#define HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP 0x40
#define HV_VSM_PARTITION_CONFIG_DEFAULT_MASK(flags) ((flags) << 1)

#define HV_MAP_GPA_NONE 0x0
#define HV_MAP_GPA_READ 0x1
#define HV_MAP_GPA_READ_WRITE 0x3
#define HV_MAP_GPA_READ_EXECUTE 0xd
#define HV_MAP_GPA_ALL 0xf

#define HV_PENDING_EXCEPTION(vector, error_code) ((u64)(error_code) << 32 | (u64)(vector) << 16 | 0x101)

#define HV_VTL_RETURN_NORMAL 0
#define HV_VTL_RETURN_FAST 1

enum hv_vtl_entry_reason {
    HvVtlEntryVtlCall = 1,
    HvVtlEntryInterrupt = 2,
    HvVtlEntryIntercept = 3,
};

struct hv_vp_assist_page {
    u32 apic_assist;
    u32 reserved;
    u32 entry_reason;
    u8 vina_status;
    u8 reserved_control[3];
    u64 vtl_return_rax;
    u64 vtl_return_rcx;
};

/* How many hypercalls begin; `vtl` is an HV_INPUT_VTL, or the number of a VTL. */
struct hv_target {
    u64 partition;
    u32 vp_index;
    u8 vtl;
    u8 reserved[3];
};

struct hv_segment_register {
    u64 base;
    u32 limit;
    u16 selector;
    u16 attributes;
};

struct hv_table_register {
    u16 pad[3];
    u16 limit;
    u64 base;
};

struct hv_initial_vp_context {
    u64 rip, rsp, rflags;
    struct hv_segment_register cs, ds, es, fs, gs, ss, tr, ldtr;
    struct hv_table_register idtr, gdtr;
    u64 efer, cr0, cr3, cr4, pat;
};

#define HvMessageTypeNone 0
#define HvMessageTypeX64IoPortIntercept 0x80010000
#define HvMessageTypeX64MsrIntercept 0x80010001
#define HvMessageTypeX64CpuidIntercept 0x80010002
#define HvMessageTypeExceptionIntercept 0x80010003
#define HvMessageTypeRegisterIntercept 0x80010006
#define HvMessageTimerExpired 0x80000010
#define HvMessageTypeGpaIntercept 0x80000001
#define HV_MESSAGE_FLAG_PENDING 1

enum hv_intercept_access {
    HV_INTERCEPT_ACCESS_READ = 0,
    HV_INTERCEPT_ACCESS_WRITE = 1,
    HV_INTERCEPT_ACCESS_EXECUTE = 2,
};

/* How every intercept message begins. */
#define HV_INTERCEPT_HEADER                                                                                            \
    u32 vp_index;                                                                                                      \
    u8 instruction_length : 4;                                                                                         \
    u8 cr8 : 4;                                                                                                        \
    u8 access;                                                                                                         \
    u16 execution_state;                                                                                               \
    struct hv_segment_register cs;                                                                                     \
    u64 rip;                                                                                                           \
    u64 rflags

struct hv_io_port_intercept {
    HV_INTERCEPT_HEADER;
    u16 port;
    u8 access_info;
    u8 instruction_byte_count;
    u32 reserved;
    u64 rax;
    u8 instruction_bytes[16];
    struct hv_segment_register ds, es;
    u64 rcx, rsi, rdi;
};

struct hv_msr_intercept {
    HV_INTERCEPT_HEADER;
    u32 msr;
    u32 reserved;
    u64 rdx, rax;
};

struct hv_cpuid_intercept {
    HV_INTERCEPT_HEADER;
    u64 rax, rcx, rdx, rbx;
    u64 default_rax, default_rcx, default_rdx, default_rbx;
};

struct hv_exception_intercept {
    HV_INTERCEPT_HEADER;
    u16 vector;
    u8 exception_info;
    u8 instruction_byte_count;
    u32 error_code;
    u64 parameter;
};

struct hv_register_intercept {
    HV_INTERCEPT_HEADER;
    u8 is_memory_operand;
    u8 reserved[3];
    u32 name;
    u64 value[2];
};

enum hv_intercept_type {
    HvInterceptTypeX64IoPort = 0,
    HvInterceptTypeX64Msr = 1,
    HvInterceptTypeX64Cpuid = 2,
    HvInterceptTypeException = 3,
};

struct hv_memory_intercept {
    HV_INTERCEPT_HEADER;
    u32 cache_type;
    u8 instruction_byte_count;
    u8 access_info;
    u8 tpr_priority;
    u8 reserved;
    u64 gva;
    u64 gpa;
    u8 instruction_bytes[16];
    struct hv_segment_register ds, ss;
    u64 registers[16]; /* RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15 */
};

#define HV_EXECUTION_STATE_VTL(state) ((state) >> 7 & 0xf)
#define HV_ACCESS_INFO_GVA_VALID 1

_Static_assert(sizeof(struct hv_initial_vp_context) == 224, "hv_initial_vp_context");
_Static_assert(offsetof(struct hv_vp_assist_page, vtl_return_rax) == 16, "hv_vp_assist_page");
_Static_assert(offsetof(struct hv_memory_intercept, gpa) == 0x38, "hv_memory_intercept");
_Static_assert(offsetof(struct hv_memory_intercept, registers) == 0x70, "hv_memory_intercept");
_Static_assert(sizeof(struct hv_memory_intercept) == 0xf0, "hv_memory_intercept");

#endif
