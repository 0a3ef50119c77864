"""The hypervisor that a machine runs on, as its configuration has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.engine.api import EngineFactory
from vtlkit.host.api import Host
from vtlkit.kvm.uapi import Kvm
from vtlkit.trace.tracer import Tracer

if TYPE_CHECKING:
    from vtlkit.vmm.machine import MachineConfig


def open_kvm(config: MachineConfig, host: Host, engines: EngineFactory, trace: Tracer | None) -> Kvm:
    """Open /dev/kvm, so to speak.

    Raises:
        KvmError: EINVAL for a vendor that there is not.
    """
    return Kvm(
        host,
        engines,
        vendor=config.vendor,
        nested=config.nested,
        tlb_flush_inhibit=config.tlb_flush_inhibit,
        trace=trace,
    )
