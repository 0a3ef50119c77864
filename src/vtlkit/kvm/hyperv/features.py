"""What of the Hyper-V interface a guest is offered: one switch for each part, named after QEMU's hv-* properties.

Counterpart: `kvm_hyperv_properties` of QEMU's target/i386/kvm/kvm.c, and its table of what needs what. Data only: the
CPUID bits of each switch are in `cpuid`; what CPUID does not offer is refused by `privileges`.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vtlkit.kvm.errors import KvmError

NEVER_SPIN_WAIT: Final = 0xFFFFFFFF
VENDOR_ID_BYTES: Final = 12
PREFIX: Final = "hv-"


def _switch(text: str, *, on: bool = True) -> Any:
    return dataclasses.field(default=on, metadata={"text": text})


def _value(text: str, default: int | str, maximum: int | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"text": text, "maximum": maximum})


@dataclass(frozen=True, slots=True)
class HvFeatures:
    """The default is everything that does not change what a guest sees elsewhere.

    Guest OS identity, hypercall page and debug device options come with any selection.
    """

    relaxed: bool = _switch("advice: no watchdogs that count on timely interrupts")
    vapic: bool = _switch("EOI, ICR and TPR as MSRs; VP assist page")
    vpindex: bool = _switch("HV_X64_MSR_VP_INDEX")
    runtime: bool = _switch("HV_X64_MSR_VP_RUNTIME")
    crash: bool = _switch("crash MSRs")
    reset: bool = _switch("HV_X64_MSR_RESET")
    time: bool = _switch("reference counter and reference TSC page")
    synic: bool = _switch("synthetic interrupt controller")
    stimer: bool = _switch("synthetic timers, and the one that counts time in the guest")
    stimer_direct: bool = _switch("synthetic timers that interrupt without a message")
    frequencies: bool = _switch("TSC and APIC frequency MSRs")
    reenlightenment: bool = _switch("reenlightenment MSRs")
    tsc_invariant: bool = _switch("the invariant TSC is told of when the guest asks for it by MSR", on=False)
    guest_idle: bool = _switch("HV_X64_MSR_GUEST_IDLE")
    npiep: bool = _switch("SGDT, SIDT, SLDT and STR can be kept from user mode")
    tlbflush: bool = _switch("hypercalls that flush TLBs")
    tlbflush_ext: bool = _switch("extended ranges for the flush of address lists")
    ipi: bool = _switch("cluster IPI hypercalls")
    xmm_input: bool = _switch("hypercall input in XMM registers")
    xmm_output: bool = _switch("hypercall output in registers")
    ports: bool = _switch("HvCallPostMessage, HvCallSignalEvent, and ports to connect them")
    extended_hypercalls: bool = _switch("extended hypercalls, from 0x8000 on")
    vsm: bool = _switch("virtual trust levels, if the machine has more than one")
    start_vp: bool = _switch("HvCallStartVirtualProcessor")
    avic: bool = _switch("advice: no SINT with auto-EOI", on=False)
    spinlocks: int = _value("attempts at a lock before HvCallNotifyLongSpinWait", 0xFFF, 0xFFFFFFFF)
    vendor_id: str = _value("what leaf 0x40000000 says", "Microsoft Hv")
    version_id_build: int = _value("leaf 0x40000002: build", 20348, 0xFFFFFFFF)
    version_id_major: int = _value("leaf 0x40000002: major version", 10, 0xFFFF)
    version_id_minor: int = _value("leaf 0x40000002: minor version", 0, 0xFFFF)
    version_id_spack: int = _value("leaf 0x40000002: service pack", 0, 0xFFFFFFFF)
    version_id_sbranch: int = _value("leaf 0x40000002: service branch", 0, 0xFF)
    version_id_snumber: int = _value("leaf 0x40000002: service number", 0, 0xFFFFFF)

    def changed(self, **changes: Any) -> HvFeatures:
        """The same with fields set by name, as `dataclasses.replace` with names that are data."""
        return dataclasses.replace(self, **changes)

    def check(self) -> None:
        """Raise KvmError (EINVAL) if a feature lacks one that it stands on, or a value is out of range."""
        for needed in SWITCHES:
            if getattr(self, needed):
                continue
            lacking = [name for name, needs in NEEDS.items() if needed in needs and getattr(self, name)]
            if lacking:
                verb = "needs" if len(lacking) == 1 else "need"
                names = ", ".join(spelled(name) for name in lacking)
                raise KvmError(errno.EINVAL, f"{names} {verb} {spelled(needed)}")
        for name, maximum in MAXIMA.items():
            value = getattr(self, name)
            if not 0 <= value <= maximum:
                raise KvmError(errno.EINVAL, f"{spelled(name)}: {value:#x} is not from 0 to {maximum:#x}")
        if not (self.vendor_id.isascii() and self.vendor_id.isprintable() and len(self.vendor_id) <= VENDOR_ID_BYTES):
            raise KvmError(errno.EINVAL, f"hv-vendor-id: '{self.vendor_id}' is not up to 12 printable ASCII characters")


SWITCHES: Final = tuple(field.name for field in dataclasses.fields(HvFeatures) if isinstance(field.default, bool))
VALUES: Final = tuple(field.name for field in dataclasses.fields(HvFeatures) if field.name not in SWITCHES)
MAXIMA: Final[Mapping[str, int]] = {
    field.name: field.metadata["maximum"] for field in dataclasses.fields(HvFeatures) if field.metadata.get("maximum")
}
"""The numbers among `VALUES`, and the greatest that each takes."""
DESCRIPTIONS: Final[Mapping[str, str]] = {
    field.name: field.metadata["text"] for field in dataclasses.fields(HvFeatures)
}

NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "synic": ("vpindex",),
    "stimer": ("synic", "time"),
    "stimer_direct": ("stimer",),
    "tlbflush": ("vpindex",),
    "tlbflush_ext": ("tlbflush",),
    "ipi": ("vpindex",),
    "ports": ("synic",),
    "vsm": ("synic", "vpindex", "vapic"),
    "start_vp": ("vpindex",),
}
"""QEMU's dependencies, and ours: a VTL switch speaks through the SynIC and the VP assist page (`vapic`)."""

REFUSED: Final[Mapping[str, str]] = {
    "hv-evmcs": "nested virtualisation is not offered",
    "hv-emsr-bitmap": "nested virtualisation is not offered",
    "hv-tlbflush-direct": "nested virtualisation is not offered",
    "hv-no-nonarch-coresharing": "it would not be true: virtual processors share a physical one",
    "hv-syndbg": "there is no debugger to attach",
}
"""Properties of QEMU's that can not be had, and why."""

EVERYTHING: Final = HvFeatures()
NOTHING: Final = EVERYTHING.changed(**dict.fromkeys(SWITCHES, False), spinlocks=NEVER_SPIN_WAIT)
"""The interface with none of its parts."""


def spelled(name: str) -> str:
    """A feature's name as the command line has it."""
    return PREFIX + name.replace("_", "-")
