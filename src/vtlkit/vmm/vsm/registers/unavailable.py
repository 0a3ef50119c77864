"""Names that the TLFS knows and this partition does not have: to it they are unknown names, INVALID_PARAMETER.

Why each is missing is said here, so that every name of HV_REGISTER_NAME is either in a table of this package or below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtlkit.hvdef.registers import HvRegisterName as Name

_NOT_OF_THIS_PROCESSOR: Final = (
    # MPX, SGX, speculation control, TSX, XSAVES, CET, UMWAIT, AMX: not in its CPUID.
    Name.HvX64RegisterBndcfgs,
    *(Name[f"HvX64RegisterSgxLaunchControl{number}"] for number in range(4)),
    Name.HvX64RegisterSpecCtrl,
    Name.HvX64RegisterPredCmd,
    Name.HvX64RegisterVirtSpecCtrl,
    Name.HvX64RegisterTsxCtrl,
    Name.HvX64RegisterXss,
    Name.HvX64RegisterUCet,
    Name.HvX64RegisterSCet,
    Name.HvX64RegisterSsp,
    *(Name[f"HvX64RegisterPl{number}Ssp"] for number in range(4)),
    Name.HvX64RegisterInterruptSspTableAddr,
    Name.HvX64RegisterUmwaitControl,
    Name.HvX64RegisterXfd,
    Name.HvX64RegisterXfdErr,
    Name.HvX64RegisterPasid,
    # An AMD processor without nested virtualisation.
    Name.HvX64RegisterIa32FeatureControl,
    Name.HvX64RegisterAmdVmHsavePa,
    *(name for name in Name if name.name.startswith("HvX64RegisterIa32Vmx")),
    # SVM holds no debug exception back: a trap is delivered, or lost with the instruction that is emulated.
    Name.HvX64RegisterPendingDebugException,
    # No PMU, no processor trace, no branch records.
    *(name for name in Name if Name.HvX64RegisterPerfGlobalCtrl <= name <= Name.HvX64RegisterLbrInfo0),
)
_NOT_OF_THIS_HYPERVISOR: Final = (
    # Suspension and scheduling are the machine's, migration and statistics there are none.
    Name.HvRegisterExplicitSuspend,
    Name.HvRegisterInterceptSuspend,
    Name.HvRegisterDispatchSuspend,
    Name.HvRegisterMemoryZeroingControl,
    Name.HvRegisterStatsPartitionRetail,
    Name.HvRegisterStatsVpRetail,
    Name.HvX64RegisterTscVirtualOffset,
    Name.HvX64RegisterTscVirtualMultiplier,
    Name.HvX64RegisterAvailable1,
    # The root partition's.
    Name.HvRegisterCpuManagementVersion,
    Name.HvRegisterVpRootSignalCount,
    Name.HvRegisterVpConfig,
    Name.HvRegisterGuestSchedulerEvent,
    Name.HvRegisterSirbp,
    # The sequence number is in the page; emulated timers are devices.
    Name.HvRegisterReferenceTscSequence,
    Name.HvX64RegisterEmulatedTimerPeriod,
    Name.HvX64RegisterEmulatedTimerControl,
    Name.HvX64RegisterPmTimerAssist,
    # No isolation, no SEV, no nested guests.
    Name.HvRegisterIsolationCapabilities,
    Name.HvRegisterGuestVsmPartitionConfig,
    Name.HvX64RegisterSevControl,
    Name.HvX64RegisterSevGhcbGpa,
    Name.HvX64RegisterSevAvicGpa,
    Name.HvX64RegisterGhcb,
    Name.HvRegisterNestedVpIndex,
    Name.HvX64RegisterNestedGuestState,
    Name.HvX64RegisterNestedCurrentVmGpa,
    Name.HvX64RegisterNestedVmxInvEpt,
    Name.HvX64RegisterNestedVmxInvVpid,
)

UNAVAILABLE: Final[Mapping[int, str]] = {
    **dict.fromkeys(_NOT_OF_THIS_PROCESSOR, "not of this processor"),
    **dict.fromkeys(_NOT_OF_THIS_HYPERVISOR, "not of this hypervisor"),
}
