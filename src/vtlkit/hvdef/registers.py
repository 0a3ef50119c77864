"""Virtual processor register names (TLFS, HV_REGISTER_NAME, the x64 and the architecture-neutral ones)."""

from __future__ import annotations

import enum


class HvRegisterName(enum.IntEnum):
    """HV_REGISTER_NAME: the 32-bit names that HvCallGetVpRegisters and HvCallSetVpRegisters take."""

    # Suspend / Migration
    HvRegisterExplicitSuspend = 0x00000000
    HvRegisterInterceptSuspend = 0x00000001
    HvRegisterInstructionEmulationHints = 0x00000002
    HvRegisterDispatchSuspend = 0x00000003
    HvRegisterInternalActivityState = 0x00000004

    # Version & Feature Discovery
    HvRegisterHypervisorVersion = 0x00000100
    HvRegisterPrivilegesAndFeaturesInfo = 0x00000200
    HvRegisterFeaturesInfo = 0x00000201
    HvRegisterImplementationLimitsInfo = 0x00000202
    HvRegisterHardwareFeaturesInfo = 0x00000203
    HvRegisterCpuManagementFeaturesInfo = 0x00000204
    HvRegisterPasidFeaturesInfo = 0x00000205
    HvRegisterNestedVirtFeaturesInfo = 0x00000207
    HvRegisterIptFeaturesInfo = 0x00000208

    # Guest Crash Registers
    HvRegisterGuestCrashP0 = 0x00000210
    HvRegisterGuestCrashP1 = 0x00000211
    HvRegisterGuestCrashP2 = 0x00000212
    HvRegisterGuestCrashP3 = 0x00000213
    HvRegisterGuestCrashP4 = 0x00000214
    HvRegisterGuestCrashCtl = 0x00000215

    # Frequency / Timing
    HvRegisterProcessorClockFrequency = 0x00000240
    HvRegisterInterruptClockFrequency = 0x00000241

    # Idle & Debug
    HvRegisterGuestIdle = 0x00000250
    HvRegisterDebugDeviceOptions = 0x00000260
    HvRegisterMemoryZeroingControl = 0x00000270

    # Pending Events & Interrupt State
    HvRegisterPendingEvent0 = 0x00010004
    HvRegisterPendingEvent1 = 0x00010005
    HvRegisterDeliverabilityNotifications = 0x00010006
    HvRegisterPendingEvent2 = 0x00010008
    HvRegisterPendingEvent3 = 0x00010009

    # Runtime / Context
    HvRegisterVpRuntime = 0x00090000
    HvRegisterGuestOsId = 0x00090002
    HvRegisterVpIndex = 0x00090003
    HvRegisterTimeRefCount = 0x00090004
    HvRegisterCpuManagementVersion = 0x00090007
    HvRegisterVpAssistPage = 0x00090013
    HvRegisterVpRootSignalCount = 0x00090014
    HvRegisterReferenceTsc = 0x00090017
    HvRegisterReferenceTscSequence = 0x0009001A
    HvRegisterNestedVpIndex = 0x00091003

    # Performance Statistics
    HvRegisterStatsPartitionRetail = 0x00090020
    HvRegisterStatsVpRetail = 0x00090022

    # Synthetic Interrupt Controller
    HvRegisterSint0 = 0x000A0000
    HvRegisterSint1 = 0x000A0001
    HvRegisterSint2 = 0x000A0002
    HvRegisterSint3 = 0x000A0003
    HvRegisterSint4 = 0x000A0004
    HvRegisterSint5 = 0x000A0005
    HvRegisterSint6 = 0x000A0006
    HvRegisterSint7 = 0x000A0007
    HvRegisterSint8 = 0x000A0008
    HvRegisterSint9 = 0x000A0009
    HvRegisterSint10 = 0x000A000A
    HvRegisterSint11 = 0x000A000B
    HvRegisterSint12 = 0x000A000C
    HvRegisterSint13 = 0x000A000D
    HvRegisterSint14 = 0x000A000E
    HvRegisterSint15 = 0x000A000F
    HvRegisterScontrol = 0x000A0010
    HvRegisterSversion = 0x000A0011
    HvRegisterSifp = 0x000A0012
    HvRegisterSipp = 0x000A0013
    HvRegisterEom = 0x000A0014
    HvRegisterSirbp = 0x000A0015

    # Synthetic Timers
    HvRegisterStimer0Config = 0x000B0000
    HvRegisterStimer0Count = 0x000B0001
    HvRegisterStimer1Config = 0x000B0002
    HvRegisterStimer1Count = 0x000B0003
    HvRegisterStimer2Config = 0x000B0004
    HvRegisterStimer2Count = 0x000B0005
    HvRegisterStimer3Config = 0x000B0006
    HvRegisterStimer3Count = 0x000B0007
    HvRegisterStimeUnhaltedTimerConfig = 0x000B0100
    HvRegisterStimeUnhaltedTimerCount = 0x000B0101

    # Virtual Secure Mode
    HvRegisterVsmCodePageOffsets = 0x000D0002
    HvRegisterVsmVpStatus = 0x000D0003
    HvRegisterVsmPartitionStatus = 0x000D0004
    HvRegisterVsmVina = 0x000D0005
    HvRegisterVsmCapabilities = 0x000D0006
    HvRegisterVsmPartitionConfig = 0x000D0007
    HvRegisterVsmVpSecureConfigVtl0 = 0x000D0010
    HvRegisterVsmVpSecureConfigVtl1 = 0x000D0011
    HvRegisterVsmVpSecureConfigVtl2 = 0x000D0012
    HvRegisterVsmVpSecureConfigVtl3 = 0x000D0013
    HvRegisterVsmVpSecureConfigVtl4 = 0x000D0014
    HvRegisterVsmVpSecureConfigVtl5 = 0x000D0015
    HvRegisterVsmVpSecureConfigVtl6 = 0x000D0016
    HvRegisterVsmVpSecureConfigVtl7 = 0x000D0017
    HvRegisterVsmVpSecureConfigVtl8 = 0x000D0018
    HvRegisterVsmVpSecureConfigVtl9 = 0x000D0019
    HvRegisterVsmVpSecureConfigVtl10 = 0x000D001A
    HvRegisterVsmVpSecureConfigVtl11 = 0x000D001B
    HvRegisterVsmVpSecureConfigVtl12 = 0x000D001C
    HvRegisterVsmVpSecureConfigVtl13 = 0x000D001D
    HvRegisterVsmVpSecureConfigVtl14 = 0x000D001E
    HvRegisterVsmVpWaitForTlbLock = 0x000D0020
    HvRegisterIsolationCapabilities = 0x000D0100

    # Interrupt & Pending State
    HvRegisterPendingInterruption = 0x00010002
    HvRegisterInterruptState = 0x00010003
    HvX64RegisterPendingDebugException = 0x00010007

    # General Purpose & Instruction State
    HvX64RegisterRax = 0x00020000
    HvX64RegisterRcx = 0x00020001
    HvX64RegisterRdx = 0x00020002
    HvX64RegisterRbx = 0x00020003
    HvX64RegisterRsp = 0x00020004
    HvX64RegisterRbp = 0x00020005
    HvX64RegisterRsi = 0x00020006
    HvX64RegisterRdi = 0x00020007
    HvX64RegisterR8 = 0x00020008
    HvX64RegisterR9 = 0x00020009
    HvX64RegisterR10 = 0x0002000A
    HvX64RegisterR11 = 0x0002000B
    HvX64RegisterR12 = 0x0002000C
    HvX64RegisterR13 = 0x0002000D
    HvX64RegisterR14 = 0x0002000E
    HvX64RegisterR15 = 0x0002000F
    HvX64RegisterRip = 0x00020010
    HvX64RegisterRflags = 0x00020011

    # Floating Point / SIMD
    HvX64RegisterXmm0 = 0x00030000
    HvX64RegisterXmm1 = 0x00030001
    HvX64RegisterXmm2 = 0x00030002
    HvX64RegisterXmm3 = 0x00030003
    HvX64RegisterXmm4 = 0x00030004
    HvX64RegisterXmm5 = 0x00030005
    HvX64RegisterXmm6 = 0x00030006
    HvX64RegisterXmm7 = 0x00030007
    HvX64RegisterXmm8 = 0x00030008
    HvX64RegisterXmm9 = 0x00030009
    HvX64RegisterXmm10 = 0x0003000A
    HvX64RegisterXmm11 = 0x0003000B
    HvX64RegisterXmm12 = 0x0003000C
    HvX64RegisterXmm13 = 0x0003000D
    HvX64RegisterXmm14 = 0x0003000E
    HvX64RegisterXmm15 = 0x0003000F
    HvX64RegisterFpMmx0 = 0x00030010
    HvX64RegisterFpMmx1 = 0x00030011
    HvX64RegisterFpMmx2 = 0x00030012
    HvX64RegisterFpMmx3 = 0x00030013
    HvX64RegisterFpMmx4 = 0x00030014
    HvX64RegisterFpMmx5 = 0x00030015
    HvX64RegisterFpMmx6 = 0x00030016
    HvX64RegisterFpMmx7 = 0x00030017
    HvX64RegisterFpControlStatus = 0x00030018
    HvX64RegisterXmmControlStatus = 0x00030019

    # Control & Intermediate Control Registers
    HvX64RegisterCr0 = 0x00040000
    HvX64RegisterCr2 = 0x00040001
    HvX64RegisterCr3 = 0x00040002
    HvX64RegisterCr4 = 0x00040003
    HvX64RegisterCr8 = 0x00040004
    HvX64RegisterXfem = 0x00040005
    HvX64RegisterIntermediateCr0 = 0x00041000
    HvX64RegisterIntermediateCr4 = 0x00041003
    HvX64RegisterIntermediateCr8 = 0x00041004

    # Debug Registers
    HvX64RegisterDr0 = 0x00050000
    HvX64RegisterDr1 = 0x00050001
    HvX64RegisterDr2 = 0x00050002
    HvX64RegisterDr3 = 0x00050003
    HvX64RegisterDr6 = 0x00050004
    HvX64RegisterDr7 = 0x00050005

    # Segment Registers
    HvX64RegisterEs = 0x00060000
    HvX64RegisterCs = 0x00060001
    HvX64RegisterSs = 0x00060002
    HvX64RegisterDs = 0x00060003
    HvX64RegisterFs = 0x00060004
    HvX64RegisterGs = 0x00060005
    HvX64RegisterLdtr = 0x00060006
    HvX64RegisterTr = 0x00060007

    # Table Registers
    HvX64RegisterIdtr = 0x00070000
    HvX64RegisterGdtr = 0x00070001

    # Virtualized MSRs – Core & System
    HvX64RegisterTsc = 0x00080000
    HvX64RegisterEfer = 0x00080001
    HvX64RegisterKernelGsBase = 0x00080002
    HvX64RegisterApicBase = 0x00080003
    HvX64RegisterPat = 0x00080004
    HvX64RegisterSysenterCs = 0x00080005
    HvX64RegisterSysenterEip = 0x00080006
    HvX64RegisterSysenterEsp = 0x00080007
    HvX64RegisterStar = 0x00080008
    HvX64RegisterLstar = 0x00080009
    HvX64RegisterCstar = 0x0008000A
    HvX64RegisterSfmask = 0x0008000B
    HvX64RegisterInitialApicId = 0x0008000C

    # Cache Control
    HvX64RegisterMsrMtrrCap = 0x0008000D
    HvX64RegisterMsrMtrrDefType = 0x0008000E
    HvX64RegisterMsrMtrrPhysBase0 = 0x00080010
    HvX64RegisterMsrMtrrPhysBase1 = 0x00080011
    HvX64RegisterMsrMtrrPhysBase2 = 0x00080012
    HvX64RegisterMsrMtrrPhysBase3 = 0x00080013
    HvX64RegisterMsrMtrrPhysBase4 = 0x00080014
    HvX64RegisterMsrMtrrPhysBase5 = 0x00080015
    HvX64RegisterMsrMtrrPhysBase6 = 0x00080016
    HvX64RegisterMsrMtrrPhysBase7 = 0x00080017
    HvX64RegisterMsrMtrrPhysBase8 = 0x00080018
    HvX64RegisterMsrMtrrPhysBase9 = 0x00080019
    HvX64RegisterMsrMtrrPhysBaseA = 0x0008001A
    HvX64RegisterMsrMtrrPhysBaseB = 0x0008001B
    HvX64RegisterMsrMtrrPhysBaseC = 0x0008001C
    HvX64RegisterMsrMtrrPhysBaseD = 0x0008001D
    HvX64RegisterMsrMtrrPhysBaseE = 0x0008001E
    HvX64RegisterMsrMtrrPhysBaseF = 0x0008001F
    HvX64RegisterMsrMtrrPhysMask0 = 0x00080040
    HvX64RegisterMsrMtrrPhysMask1 = 0x00080041
    HvX64RegisterMsrMtrrPhysMask2 = 0x00080042
    HvX64RegisterMsrMtrrPhysMask3 = 0x00080043
    HvX64RegisterMsrMtrrPhysMask4 = 0x00080044
    HvX64RegisterMsrMtrrPhysMask5 = 0x00080045
    HvX64RegisterMsrMtrrPhysMask6 = 0x00080046
    HvX64RegisterMsrMtrrPhysMask7 = 0x00080047
    HvX64RegisterMsrMtrrPhysMask8 = 0x00080048
    HvX64RegisterMsrMtrrPhysMask9 = 0x00080049
    HvX64RegisterMsrMtrrPhysMaskA = 0x0008004A
    HvX64RegisterMsrMtrrPhysMaskB = 0x0008004B
    HvX64RegisterMsrMtrrPhysMaskC = 0x0008004C
    HvX64RegisterMsrMtrrPhysMaskD = 0x0008004D
    HvX64RegisterMsrMtrrPhysMaskE = 0x0008004E
    HvX64RegisterMsrMtrrPhysMaskF = 0x0008004F
    HvX64RegisterMsrMtrrFix64k00000 = 0x00080070
    HvX64RegisterMsrMtrrFix16k80000 = 0x00080071
    HvX64RegisterMsrMtrrFix16kA0000 = 0x00080072
    HvX64RegisterMsrMtrrFix4kC0000 = 0x00080073
    HvX64RegisterMsrMtrrFix4kC8000 = 0x00080074
    HvX64RegisterMsrMtrrFix4kD0000 = 0x00080075
    HvX64RegisterMsrMtrrFix4kD8000 = 0x00080076
    HvX64RegisterMsrMtrrFix4kE0000 = 0x00080077
    HvX64RegisterMsrMtrrFix4kE8000 = 0x00080078
    HvX64RegisterMsrMtrrFix4kF0000 = 0x00080079
    HvX64RegisterMsrMtrrFix4kF8000 = 0x0008007A

    # Additional Virtualized MSRs & Controls
    HvX64RegisterTscAux = 0x0008007B
    HvX64RegisterBndcfgs = 0x0008007C
    HvX64RegisterDebugCtl = 0x0008007D
    HvX64RegisterMCount = 0x0008007E
    HvX64RegisterACount = 0x0008007F
    HvX64RegisterSgxLaunchControl0 = 0x00080080
    HvX64RegisterSgxLaunchControl1 = 0x00080081
    HvX64RegisterSgxLaunchControl2 = 0x00080082
    HvX64RegisterSgxLaunchControl3 = 0x00080083
    HvX64RegisterSpecCtrl = 0x00080084
    HvX64RegisterPredCmd = 0x00080085
    HvX64RegisterVirtSpecCtrl = 0x00080086
    HvX64RegisterTscVirtualOffset = 0x00080087
    HvX64RegisterTsxCtrl = 0x00080088
    HvX64RegisterXss = 0x0008008B
    HvX64RegisterUCet = 0x0008008C
    HvX64RegisterSCet = 0x0008008D
    HvX64RegisterSsp = 0x0008008E
    HvX64RegisterPl0Ssp = 0x0008008F
    HvX64RegisterPl1Ssp = 0x00080090
    HvX64RegisterPl2Ssp = 0x00080091
    HvX64RegisterPl3Ssp = 0x00080092
    HvX64RegisterInterruptSspTableAddr = 0x00080093
    HvX64RegisterTscDeadline = 0x00080095
    HvX64RegisterTscAdjust = 0x00080096
    HvX64RegisterUmwaitControl = 0x00080098
    HvX64RegisterXfd = 0x00080099
    HvX64RegisterXfdErr = 0x0008009A

    # Feature / Nested Virtualization Capability MSRs
    HvX64RegisterMsrIa32MiscEnable = 0x000800A0
    HvX64RegisterIa32FeatureControl = 0x000800A1
    HvX64RegisterIa32VmxBasic = 0x000800A2
    HvX64RegisterIa32VmxPinbasedCtls = 0x000800A3
    HvX64RegisterIa32VmxExitCtls = 0x000800A5
    HvX64RegisterIa32VmxEntryCtls = 0x000800A6
    HvX64RegisterIa32VmxMisc = 0x000800A7
    HvX64RegisterIa32VmxCr0Fixed0 = 0x000800A8
    HvX64RegisterIa32VmxCr0Fixed1 = 0x000800A9
    HvX64RegisterIa32VmxCr4Fixed0 = 0x000800AA
    HvX64RegisterIa32VmxCr4Fixed1 = 0x000800AB
    HvX64RegisterIa32VmxVmcsEnum = 0x000800AC
    HvX64RegisterIa32VmxProcbasedCtls2 = 0x000800AD
    HvX64RegisterIa32VmxEptVpidCap = 0x000800AE
    HvX64RegisterIa32VmxTruePinbasedCtls = 0x000800AF
    HvX64RegisterIa32VmxTrueProcbasedCtls = 0x000800B0
    HvX64RegisterIa32VmxTrueExitCtls = 0x000800B1
    HvX64RegisterIa32VmxTrueEntryCtls = 0x000800B2
    HvX64RegisterAmdVmHsavePa = 0x000800B3
    HvX64RegisterAmdVmCr = 0x000800B4

    # Performance Monitoring & Tracing
    HvX64RegisterPerfGlobalCtrl = 0x00081000
    HvX64RegisterPerfGlobalStatus = 0x00081001
    HvX64RegisterPerfGlobalInUse = 0x00081002
    HvX64RegisterFixedCtrCtrl = 0x00081003
    HvX64RegisterDsArea = 0x00081004
    HvX64RegisterPebsEnable = 0x00081005
    HvX64RegisterPebsLdLat = 0x00081006
    HvX64RegisterPebsFrontend = 0x00081007
    HvX64RegisterRtitCtl = 0x00081008
    HvX64RegisterRtitStatus = 0x00081009
    HvX64RegisterRtitOutputBase = 0x0008100A
    HvX64RegisterRtitOutputMaskPtrs = 0x0008100B
    HvX64RegisterRtitCr3Match = 0x0008100C
    HvX64RegisterPerfEvtSel0 = 0x00081100
    HvX64RegisterPmc0 = 0x00081200
    HvX64RegisterFixedCtr0 = 0x00081300
    HvX64RegisterLbrTos = 0x00082000
    HvX64RegisterLbrSelect = 0x00082001
    HvX64RegisterLerFromLip = 0x00082002
    HvX64RegisterLerToLip = 0x00082003
    HvX64RegisterLbrFrom0 = 0x00082100
    HvX64RegisterLbrTo0 = 0x00082200
    HvX64RegisterLbrInfo0 = 0x00083300

    # APIC
    HvX64RegisterApicId = 0x00084802
    HvX64RegisterApicVersion = 0x00084803
    HvX64RegisterApicTpr = 0x00084808
    HvX64RegisterApicPpr = 0x0008480A
    HvX64RegisterApicEoi = 0x0008480B
    HvX64RegisterApicLdr = 0x0008480D
    HvX64RegisterApicSpurious = 0x0008480F
    HvX64RegisterApicIsr0 = 0x00084810
    HvX64RegisterApicIsr1 = 0x00084811
    HvX64RegisterApicIsr2 = 0x00084812
    HvX64RegisterApicIsr3 = 0x00084813
    HvX64RegisterApicIsr4 = 0x00084814
    HvX64RegisterApicIsr5 = 0x00084815
    HvX64RegisterApicIsr6 = 0x00084816
    HvX64RegisterApicIsr7 = 0x00084817
    HvX64RegisterApicTmr0 = 0x00084818
    HvX64RegisterApicTmr1 = 0x00084819
    HvX64RegisterApicTmr2 = 0x0008481A
    HvX64RegisterApicTmr3 = 0x0008481B
    HvX64RegisterApicTmr4 = 0x0008481C
    HvX64RegisterApicTmr5 = 0x0008481D
    HvX64RegisterApicTmr6 = 0x0008481E
    HvX64RegisterApicTmr7 = 0x0008481F
    HvX64RegisterApicIrr0 = 0x00084820
    HvX64RegisterApicIrr1 = 0x00084821
    HvX64RegisterApicIrr2 = 0x00084822
    HvX64RegisterApicIrr3 = 0x00084823
    HvX64RegisterApicIrr4 = 0x00084824
    HvX64RegisterApicIrr5 = 0x00084825
    HvX64RegisterApicIrr6 = 0x00084826
    HvX64RegisterApicIrr7 = 0x00084827
    HvX64RegisterApicEse = 0x00084828
    HvX64RegisterApicIcr = 0x00084830
    HvX64RegisterApicLvtTimer = 0x00084832
    HvX64RegisterApicLvtThermal = 0x00084833
    HvX64RegisterApicLvtPerfmon = 0x00084834
    HvX64RegisterApicLvtLint0 = 0x00084835
    HvX64RegisterApicLvtLint1 = 0x00084836
    HvX64RegisterApicLvtError = 0x00084837
    HvX64RegisterApicInitCount = 0x00084838
    HvX64RegisterApicCurrentCount = 0x00084839
    HvX64RegisterApicDivide = 0x0008483E
    HvX64RegisterApicSelfIpi = 0x0008483F

    # Hypervisor-defined
    HvX64RegisterHypercall = 0x00090001
    HvX64RegisterSyntheticEoi = 0x00090010
    HvX64RegisterSyntheticIcr = 0x00090011
    HvX64RegisterSyntheticTpr = 0x00090012
    HvX64RegisterEmulatedTimerPeriod = 0x00090030
    HvX64RegisterEmulatedTimerControl = 0x00090031
    HvX64RegisterPmTimerAssist = 0x00090032

    # AMD SEV Configuration
    HvX64RegisterSevControl = 0x00090040
    HvX64RegisterSevGhcbGpa = 0x00090041
    HvX64RegisterSevAvicGpa = 0x00090043

    # Nested State
    HvX64RegisterNestedGuestState = 0x00090050
    HvX64RegisterNestedCurrentVmGpa = 0x00090051
    HvX64RegisterNestedVmxInvEpt = 0x00090052
    HvX64RegisterNestedVmxInvVpid = 0x00090053

    # Intercept Control
    HvX64RegisterCrInterceptControl = 0x000E0000
    HvX64RegisterCrInterceptCr0Mask = 0x000E0001
    HvX64RegisterCrInterceptCr4Mask = 0x000E0002
    HvX64RegisterCrInterceptIa32MiscEnableMask = 0x000E0003

    # x64 GHCB
    HvX64RegisterGhcb = 0x00090019

    # Known to OpenVMM, absent from the published list
    HvRegisterVpConfig = 0x00090018
    HvRegisterGuestSchedulerEvent = 0x0009001B
    HvRegisterGuestVsmPartitionConfig = 0x000D0008
    HvX64RegisterIntermediateCr3 = 0x00041002
    HvX64RegisterMsrMcUpdatePatchLevel = 0x00080089
    HvX64RegisterAvailable1 = 0x0008008A
    HvX64RegisterTscVirtualMultiplier = 0x00080094
    HvX64RegisterPasid = 0x00080097
    HvX64RegisterRegisterPage = 0x0009001C
