"""The protocols of `bench_checker` for `vtlkit check FILE.py`: those of `kernel_models`, in sizes of threads."""

from __future__ import annotations

from vtlkit.checker import protocol
from vtlkit.checker.program import Program
from vtlkit.checker.protocols import kernel_models


@protocol
def kvm_block(*, threads: int = 2) -> Program:
    """A vCPU that blocks does not sleep through an event."""
    return kernel_models.kvm_block(threads - 1)


@protocol
def tlb_inhibit(*, threads: int = 2) -> Program:
    """No flush happens while flushes are inhibited, and none waits for ever."""
    return kernel_models.tlb_inhibit(threads - 1)


@protocol
def kick_all(*, threads: int = 2) -> Program:
    """The updater is alone, and nobody waits for ever."""
    return kernel_models.kick_all(threads - 1)
