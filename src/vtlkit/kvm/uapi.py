"""The hypervisor's user API: the only door through which the VMM enters (`/dev/kvm`'s ioctls as methods).

`Kvm.create_vm`, then `Vm` and `Vcpu`; `Vcpu.run` returns a `KvmRun`. A caller's mistake raises `KvmError` with KVM's
errno; what the guest can see is a value, never an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.engine.api import EngineFactory
from vtlkit.host.api import Host
from vtlkit.kvm.attributes import MemoryAttributes
from vtlkit.kvm.caps import Cap
from vtlkit.kvm.control_registers import cr4_allowed, set_cr0, set_cr3, set_cr4, set_xcr0, xcr0_allowed
from vtlkit.kvm.cpuid import CpuidEntry, for_vcpu
from vtlkit.kvm.errors import GuestMemoryError, KvmError
from vtlkit.kvm.hyperv.cpuid import cpuid_leaves
from vtlkit.kvm.hyperv.features import HvFeatures
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
from vtlkit.kvm.hyperv.message_buffers import MessageBuffers
from vtlkit.kvm.hyperv.overlays import OverlayPage as HvOverlayPage
from vtlkit.kvm.hyperv.parameters import HypercallParameters, decode_exit
from vtlkit.kvm.hyperv.tlb_flush import FlushRequest, decode_flush
from vtlkit.kvm.hyperv.translate_gva import (
    TRANSLATE_CALLS,
    TranslateAnswer,
    TranslateRequest,
    paged_memory_type,
    pending_event_header,
)
from vtlkit.kvm.hyperv.translate_gva import failure as translate_failure
from vtlkit.kvm.hyperv.translate_gva import success as translate_success
from vtlkit.kvm.hyperv.vp_set import ALL_VPS, sparse_set
from vtlkit.kvm.kick_all import KickDesign
from vtlkit.kvm.kvm_run import (
    Debug,
    Hyperv,
    Intercepted,
    InterceptedApicWrite,
    InterceptedCpuid,
    InterceptedEoi,
    InterceptedException,
    InterceptedHypercall,
    InterceptedIo,
    InterceptedMsr,
    InterceptedRegister,
    InterceptedStartup,
    InternalErrorExit,
    Intr,
    Io,
    IrqWindowOpen,
    KvmRun,
    MemoryFault,
    Mmio,
    Rdmsr,
    Shutdown,
    SystemEvent,
    SystemEventExit,
    Wrmsr,
)
from vtlkit.kvm.memslots import KVM_MEM_READONLY, MAXPHYADDR, MemoryRegion
from vtlkit.kvm.mpstate import UNSTARTED, MpState
from vtlkit.kvm.namespaces import ApicNamespace
from vtlkit.kvm.nested.state import NestedState
from vtlkit.kvm.routing import (
    KVM_MAX_IRQ_ROUTES,
    HvSintRoute,
    Irqchip,
    IrqchipRoute,
    MsiRoute,
    Route,
    default_routing,
)
from vtlkit.kvm.statistics import MANY_KICKED_ENTRIES, VcpuStatistics
from vtlkit.kvm.translate import TranslateAccess, TranslateFault, TranslateFlags, Translation
from vtlkit.kvm.user_intercepts import CpuidOverride, UserIntercepts
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vcpu_events import EventsValid, VcpuEvents
from vtlkit.kvm.vendor import DEFAULT_VENDOR, VENDORS, vendor_named
from vtlkit.kvm.vm import MAX_VCPUS, Vm
from vtlkit.kvm.wait_state import WaitFlags, WaitResult, WaitType
from vtlkit.kvm.windows import Windows
from vtlkit.kvm.windows import request as windows_request

if TYPE_CHECKING:
    from vtlkit.trace.tracer import Tracer

__all__ = [
    "ALL_VPS",
    "DEFAULT_VENDOR",
    "KVM_MAX_IRQ_ROUTES",
    "KVM_MEM_READONLY",
    "MANY_KICKED_ENTRIES",
    "MAXPHYADDR",
    "MAX_VCPUS",
    "TRANSLATE_CALLS",
    "UNSTARTED",
    "VENDORS",
    "ApicNamespace",
    "Cap",
    "CpuidEntry",
    "CpuidOverride",
    "Debug",
    "EventsValid",
    "FlushInhibitDesign",
    "FlushRequest",
    "GuestMemoryError",
    "HvFeatures",
    "HvOverlayPage",
    "HvSintRoute",
    "HypercallParameters",
    "Hyperv",
    "Intercepted",
    "InterceptedApicWrite",
    "InterceptedCpuid",
    "InterceptedEoi",
    "InterceptedException",
    "InterceptedHypercall",
    "InterceptedIo",
    "InterceptedMsr",
    "InterceptedRegister",
    "InterceptedStartup",
    "InternalErrorExit",
    "Intr",
    "Io",
    "IrqWindowOpen",
    "Irqchip",
    "IrqchipRoute",
    "KickDesign",
    "Kvm",
    "KvmError",
    "KvmRun",
    "MemoryAttributes",
    "MemoryFault",
    "MemoryRegion",
    "MessageBuffers",
    "Mmio",
    "MpState",
    "MsiRoute",
    "NestedState",
    "Rdmsr",
    "Route",
    "Shutdown",
    "SystemEvent",
    "SystemEventExit",
    "TranslateAccess",
    "TranslateAnswer",
    "TranslateFault",
    "TranslateFlags",
    "TranslateRequest",
    "Translation",
    "UserIntercepts",
    "Vcpu",
    "VcpuEvents",
    "VcpuStatistics",
    "Vm",
    "WaitFlags",
    "WaitResult",
    "WaitType",
    "Windows",
    "Wrmsr",
    "cr4_allowed",
    "decode_exit",
    "decode_flush",
    "default_routing",
    "for_vcpu",
    "hv_cpuid_entries",
    "paged_memory_type",
    "pending_event_header",
    "set_cr0",
    "set_cr3",
    "set_cr4",
    "set_xcr0",
    "sparse_set",
    "translate_failure",
    "translate_success",
    "windows_request",
    "xcr0_allowed",
]


def hv_cpuid_entries(features: HvFeatures) -> list[CpuidEntry]:
    """KVM_GET_SUPPORTED_HV_CPUID for a choice of features.

    Raises:
        KvmError: EINVAL, features that do not go together.
    """
    return [
        CpuidEntry(function, 0, eax, ebx, ecx, edx)
        for function, eax, ebx, ecx, edx in cpuid_leaves(features, physical_address_bits=MAXPHYADDR, max_vps=MAX_VCPUS)
    ]


class Kvm:
    """The hypervisor on one host with one kind of engine (an open /dev/kvm). `vendor`: which of kvm_amd, kvm_intel."""

    def __init__(
        self,
        host: Host,
        engines: EngineFactory,
        *,
        vendor: str = DEFAULT_VENDOR,
        nested: bool = False,
        tlb_flush_inhibit: FlushInhibitDesign = FlushInhibitDesign.WAITING_ON,
        trace: Tracer | None = None,
    ) -> None:
        """`nested`: its VMs have Cap.NESTED; `tlb_flush_inhibit`: how they hold flushes up. Module parameters both.
        `trace`: where all its VMs write what they do.

        Raises:
            KvmError: EINVAL for a vendor that there is not.
        """
        self.nested = nested
        self.host = host
        self.engines = engines
        self.vendor = vendor_named(vendor).name
        self.tlb_flush_inhibit = tlb_flush_inhibit
        self.trace = trace
        self._created = 0

    def create_vm(self, name: str | None = None) -> Vm:
        """KVM_CREATE_VM."""
        self._created += 1
        vm = Vm(self.host, self.engines, name or f"vm{self._created - 1}", vendor=self.vendor, trace=self.trace)
        vm.enable_cap(Cap.NESTED, int(self.nested))
        vm.hv.set_flush_inhibit_design(self.tlb_flush_inhibit)
        return vm
