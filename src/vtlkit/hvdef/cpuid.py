"""Hypervisor CPUID leaves (TLFS, "Feature and Interface Discovery"; HV_PARTITION_PRIVILEGE_MASK).

EAX (low half) and EBX of leaf 0x40000003 hold the `HvPartitionPrivilege` mask.
"""

from __future__ import annotations

import enum
from typing import Final

from vtlkit.layout import Bits

HV_CPUID_FUNCTION_VERSION_AND_FEATURES: Final = 0x00000001
HV_CPUID_HYPERVISOR_PRESENT: Final = 1 << 31
"""CPUID.1:ECX."""

HV_CPUID_FUNCTION_HV_VENDOR_AND_MAX_FUNCTION: Final = 0x40000000
HV_CPUID_FUNCTION_HV_INTERFACE: Final = 0x40000001
HV_CPUID_FUNCTION_MS_HV_VERSION: Final = 0x40000002
HV_CPUID_FUNCTION_MS_HV_FEATURES: Final = 0x40000003
HV_CPUID_FUNCTION_MS_HV_ENLIGHTENMENT_INFORMATION: Final = 0x40000004
HV_CPUID_FUNCTION_MS_HV_IMPLEMENTATION_LIMITS: Final = 0x40000005
HV_CPUID_FUNCTION_MS_HV_HARDWARE_FEATURES: Final = 0x40000006
HV_CPUID_FUNCTION_MS_HV_CPU_MANAGEMENT_FEATURES: Final = 0x40000007
HV_CPUID_FUNCTION_MS_HV_SVM_FEATURES: Final = 0x40000008
HV_CPUID_FUNCTION_MS_HV_NESTED_HYPERVISOR_FEATURES: Final = 0x40000009
HV_CPUID_FUNCTION_MS_HV_NESTED_FEATURES: Final = 0x4000000A
HV_CPUID_FUNCTION_MS_HV_ISOLATION_CONFIGURATION: Final = 0x4000000C

HV_CPUID_MIN_MAX_FUNCTION: Final = 0x40000005
HV_CPUID_VENDOR_SIGNATURE: Final = (0x7263694D, 0x666F736F, 0x76482074)
"""EBX, ECX, EDX of 0x40000000: "Microsoft Hv"."""
HV_CPUID_INTERFACE_SIGNATURE: Final = 0x31237648
"""EAX of 0x40000001: "Hv#1"."""

HV_VERSION_MINOR: Final = Bits(0, 16)
HV_VERSION_MAJOR: Final = Bits(16, 16)
HV_VERSION_SERVICE_NUMBER: Final = Bits(0, 24)
HV_VERSION_SERVICE_BRANCH: Final = Bits(24, 8)


class HvPartitionPrivilege(enum.IntFlag):
    """HV_PARTITION_PRIVILEGE_MASK."""

    AccessVpRunTimeReg = 1 << 0
    AccessPartitionReferenceCounter = 1 << 1
    AccessSynicRegs = 1 << 2
    AccessSyntheticTimerRegs = 1 << 3
    AccessIntrCtrlRegs = 1 << 4
    AccessHypercallMsrs = 1 << 5
    AccessVpIndex = 1 << 6
    AccessResetReg = 1 << 7
    AccessStatsReg = 1 << 8
    AccessPartitionReferenceTsc = 1 << 9
    AccessGuestIdleReg = 1 << 10
    AccessFrequencyRegs = 1 << 11
    AccessDebugRegs = 1 << 12
    AccessReenlightenmentControls = 1 << 13
    AccessRootSchedulerReg = 1 << 14
    AccessTscInvariantControls = 1 << 15
    CreatePartitions = 1 << 32
    AccessPartitionId = 1 << 33
    AccessMemoryPool = 1 << 34
    AdjustMessageBuffers = 1 << 35
    PostMessages = 1 << 36
    SignalEvents = 1 << 37
    CreatePort = 1 << 38
    ConnectPort = 1 << 39
    AccessStats = 1 << 40
    Debugging = 1 << 43
    CpuManagement = 1 << 44
    ConfigureProfiler = 1 << 45
    AccessVpExitTracing = 1 << 46
    EnableExtendedGvaRangesForFlushVirtualAddressList = 1 << 47
    AccessVsm = 1 << 48
    AccessVpRegisters = 1 << 49
    FastHypercallOutput = 1 << 51
    EnableExtendedHypercalls = 1 << 52
    StartVirtualProcessor = 1 << 53
    Isolation = 1 << 54


class HvFeaturesEcx(enum.IntFlag):
    """ECX of leaf 0x40000003."""

    InvariantMperfAvailable = 1 << 5
    SupervisorShadowStackAvailable = 1 << 6
    ArchitecturalPmuAvailable = 1 << 7
    ExceptionTrapInterceptAvailable = 1 << 8


class HvFeaturesEdx(enum.IntFlag):
    """EDX of leaf 0x40000003."""

    GuestDebuggingAvailable = 1 << 1
    PerformanceMonitorsAvailable = 1 << 2
    CpuDynamicPartitioningAvailable = 1 << 3
    XmmRegistersForFastHypercallAvailable = 1 << 4
    GuestIdleAvailable = 1 << 5
    HypervisorSleepStateSupportAvailable = 1 << 6
    NumaDistanceQueryAvailable = 1 << 7
    FrequencyRegsAvailable = 1 << 8
    SyntheticMachineCheckAvailable = 1 << 9
    GuestCrashRegsAvailable = 1 << 10
    DebugRegsAvailable = 1 << 11
    Npiep1Available = 1 << 12
    DisableHypervisorAvailable = 1 << 13
    ExtendedGvaRangesForFlushVirtualAddressListAvailable = 1 << 14
    FastHypercallOutputAvailable = 1 << 15
    SvmFeaturesAvailable = 1 << 16
    SintPollingModeAvailable = 1 << 17
    HypercallMsrLockAvailable = 1 << 18
    DirectSyntheticTimers = 1 << 19
    RegisterPatAvailable = 1 << 20
    RegisterBndcfgsAvailable = 1 << 21
    WatchdogTimerAvailable = 1 << 22
    SyntheticTimeUnhaltedTimerAvailable = 1 << 23
    DeviceDomainsAvailable = 1 << 24
    S1DeviceDomainsAvailable = 1 << 25
    LbrAvailable = 1 << 26
    IptAvailable = 1 << 27
    CrossVtlFlushAvailable = 1 << 28
    IdleSpecCtrlAvailable = 1 << 29
    TranslateGvaFlagsAvailable = 1 << 30
    ApicEoiInterceptAvailable = 1 << 31


class HvEnlightenments(enum.IntFlag):
    """EAX of leaf 0x40000004."""

    UseHypercallForAddressSpaceSwitch = 1 << 0
    UseHypercallForLocalFlush = 1 << 1
    UseHypercallForRemoteFlush = 1 << 2
    UseApicMsrs = 1 << 3
    UseMsrForReset = 1 << 4
    UseRelaxedTiming = 1 << 5
    UseDmaRemapping = 1 << 6
    UseInterruptRemapping = 1 << 7
    UseX2ApicMsrs = 1 << 8
    DeprecateAutoEoi = 1 << 9
    UseSyntheticClusterIpi = 1 << 10
    UseExProcessorMasks = 1 << 11
    Nested = 1 << 12
    UseIntForMbecSystemCalls = 1 << 13
    UseEnlightenedVmcs = 1 << 14
    UseSyncedTimeline = 1 << 15
    CoreSchedulerRequested = 1 << 16
    UseDirectLocalFlushEntire = 1 << 17
    NoNonArchitecturalCoreSharing = 1 << 18
    UseX2Apic = 1 << 19
    RestoreTimeOnResume = 1 << 20
    UseHypercallForMmioAccess = 1 << 21
    UseGpaPinningHypercall = 1 << 22
    WakeVps = 1 << 23


HV_NEVER_NOTIFY_LONG_SPIN_WAIT: Final = 0xFFFFFFFF
"""EBX of leaf 0x40000004: spin attempts before HvCallNotifyLongSpinWait."""
HV_IMPLEMENTED_PHYSICAL_ADDRESS_BITS: Final = Bits(0, 7)
"""ECX of leaf 0x40000004."""


class HvHardwareFeatures(enum.IntFlag):
    """EAX of leaf 0x40000006; bits 13:10 are HV_HYPERVISOR_LEVEL."""

    ApicOverlayAssistInUse = 1 << 0
    MsrBitmapsInUse = 1 << 1
    ArchitecturalPerformanceCountersInUse = 1 << 2
    SecondLevelAddressTranslationInUse = 1 << 3
    DmaRemappingInUse = 1 << 4
    InterruptRemappingInUse = 1 << 5
    MemoryPatrolScrubberPresent = 1 << 6
    DmaProtectionInUse = 1 << 7
    HpetRequested = 1 << 8
    SyntheticTimersVolatile = 1 << 9
    PhysicalDestinationModeRequired = 1 << 14
    UseVmfuncForAliasMapSwitch = 1 << 15
    HvRegisterForMemoryZeroingSupported = 1 << 16
    UnrestrictedGuestSupported = 1 << 17
    RdtAFeaturesSupported = 1 << 18
    RdtMFeaturesSupported = 1 << 19
    ChildPerfmonPmuSupported = 1 << 20
    ChildPerfmonLbrSupported = 1 << 21
    ChildPerfmonIptSupported = 1 << 22
    ApicEmulationSupported = 1 << 23
    WdatInUse = 1 << 24


HV_HYPERVISOR_LEVEL: Final = Bits(10, 4)


class HvNestedFeatures(enum.IntFlag):
    """EAX of leaf 0x4000000A, above the two bytes of enlightened VMCS versions."""

    DirectVirtualFlush = 1 << 17
    FlushGuestPhysicalAddress = 1 << 18
    EnlightenedMsrBitmap = 1 << 19
    VirtualizationExceptionCombining = 1 << 20
    GuestDebugCtl = 1 << 21
    EnlightenedTlb = 1 << 22


HV_ENLIGHTENED_VMCS_VERSION_LOW: Final = Bits(0, 8)
HV_ENLIGHTENED_VMCS_VERSION_HIGH: Final = Bits(8, 8)
