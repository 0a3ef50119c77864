"""What a machine is made of. Counterpart: QEMU's machine properties."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vtlkit.hvdef.identifiers import HV_MAX_VTLS
from vtlkit.kvm.uapi import DEFAULT_VENDOR, FlushInhibitDesign, HvFeatures
from vtlkit.vmm.vsm.vtl_wait import VtlWait

MAX_CPUS: Final = 255
MIN_MEMORY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What the machine is made of. `memory` in bytes, `vtls` from 1 to 16; without `hyperv` no Hyper-V interface.
    `vtl_wait`: how events for inactive VTLs are heard of; `halt_poll_ns`: how long a halted vCPU polls at most;
    `nested`: SVM for guests."""

    cpus: int = 1
    memory: int = 256 << 20
    vtls: int = 2
    append: str = ""
    initrd: Path | None = None
    hyperv: HvFeatures | None = field(default_factory=HvFeatures)
    tlb_flush_inhibit: FlushInhibitDesign = FlushInhibitDesign.WAITING_ON
    vendor: str = DEFAULT_VENDOR
    vtl_wait: VtlWait = VtlWait.POLL
    halt_poll_ns: int = 0
    nested: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ValueError(f"{self.cpus} processors: give 1 to {MAX_CPUS}")
        if not 1 <= self.vtls <= HV_MAX_VTLS:
            raise ValueError(f"{self.vtls} VTLs: give 1 to {HV_MAX_VTLS}")
        if self.memory < MIN_MEMORY or self.memory % 4096:
            raise ValueError(f"{self.memory} bytes of memory: give whole pages, at least {MIN_MEMORY >> 20} MiB")
