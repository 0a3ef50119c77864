"""Accesses that the engine's map does not permit. Mirrors `kvm_mmu_page_fault` of arch/x86/kvm/mmu/mmu.c.

Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.engine import api
from vtlkit.engine.api import Access
from vtlkit.kvm import kvm_run
from vtlkit.kvm.kvm_run import KvmRun
from vtlkit.kvm.mmu import forbids
from vtlkit.x86.exceptions import Vector

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu


def memory_fault(vcpu: Vcpu, exit_: api.MemoryFault) -> KvmRun | None:
    """A stale map, an I/O page, a read-only slot, or forbidden by attributes: handle it, or exit to user space."""
    if exit_.vectoring is not None:
        vcpu.events.interrupted = exit_.vectoring
    if vcpu.map.behind():
        vcpu.map.sync()
        return None
    found = _judge(vcpu, exit_)
    if found is not None and vcpu.map.behind():
        # It may have been judged by a state that the map has not been brought to: let the instruction try again.
        vcpu.map.sync()
        return None
    return found


def _judge(vcpu: Vcpu, exit_: api.MemoryFault) -> KvmRun | None:
    """The access by the present state of memory."""
    memory = vcpu.vm.memory
    if memory.find(exit_.gpa) is not None and forbids(memory, exit_.gpa, exit_.access):
        return _forbidden(vcpu, exit_)
    if not exit_.mapped:
        if exit_.access is not Access.EXECUTE and vcpu.map.map_io(exit_.gpa):
            return None
        return kvm_run.InternalErrorExit(f"{_describe(exit_)} where there is no memory")
    if memory.overlay_at(exit_.gpa) is not None:
        # The hypervisor's own page, which permits less than memory does (TLFS, "Hypercall Page": a write is #GP).
        vcpu.queue_exception(Vector.GP, 0)
        return None
    return kvm_run.InternalErrorExit(f"{_describe(exit_)} in a read-only memory slot")


def _describe(exit_: api.MemoryFault) -> str:
    verb = {Access.READ: "read", Access.WRITE: "write", Access.EXECUTE: "instruction fetch"}[exit_.access]
    return f"guest {verb} of {exit_.size} bytes at GPA {exit_.gpa:#x}"


def _forbidden(vcpu: Vcpu, exit_: api.MemoryFault) -> KvmRun:
    code = b"" if exit_.access is Access.EXECUTE else vcpu.engine.instruction_bytes()
    return kvm_run.MemoryFault(
        exit_.gpa, exit_.size, exit_.access, exit_.gva, code, vcpu.engine.instruction_length(code) if code else 0
    )
