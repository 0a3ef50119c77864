"""The inhibit by order alone: one word per flusher, requests before the look, request UNBLOCK. The default.

Each word is stored before a full barrier and the other side's word loaded after it, on both sides of both races
(docs/design/tlb-flush-inhibit.md). Nothing here waits for anybody but an inhibited target; `set` never blocks.

A suspended flusher waits inside its hypercall handler: RIP is at the instruction, and nothing remembers the call. So
there is nothing to save, and nothing for a reset to forget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vtlkit.host.api import Cell
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibit, FlushInhibitDesign, FlushInhibits
from vtlkit.kvm.hyperv.vp_set import ALL_VPS
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.parameters import Hypercall
    from vtlkit.kvm.hyperv.vcpu import HvVcpu


class WaitingOn(FlushInhibit):
    """See the module. `waiting_on` is written by the vCPU's own task, and read by inhibitors that clear."""

    __slots__ = ("_hv", "waiting_on")

    def __init__(self, hv: HvVcpu) -> None:
        self._hv = hv
        nobody: HvVcpu | None = None
        self.waiting_on: Cell[HvVcpu | None] = hv.vcpu.host.cell(nobody, f"vcpu{hv.vcpu.vcpu_id}-waiting-on")

    def set(self, inhibit: bool) -> None:
        hv = self._hv
        hv.tlb_flush_inhibit.store(inhibit)
        # The inhibit before what follows: the setter's look at page tables, or the look for those who wait.
        hv.vcpu.host.smp_mb()
        if inhibit:
            return
        for other in hv.hv_vm.vps(ALL_VPS):
            if other.flush_inhibit.waits_for() is hv:
                other.vcpu.make_request(Req.UNBLOCK)
                other.vcpu.kick()

    def flush(self, call: Hypercall, targets: Sequence[HvVcpu]) -> bool:
        # Decides nothing: a call that is going to be suspended leaves inhibited TLBs alone.
        inhibited = first_inhibited(targets)
        if inhibited is None:
            for target in targets:
                target.vcpu.request_tlb_flush()
            # The requests before the look at the inhibit; pairs with `set`.
            self._hv.vcpu.host.smp_mb()
            inhibited = first_inhibited(targets)
        if inhibited is None:
            return True
        self._suspend(call, inhibited)
        return False

    def _suspend(self, call: Hypercall, target: HvVcpu) -> None:
        """Wait until `target` is inhibited no more, or there is something else to do; then execute the call again."""
        call.reissue = True
        self.waiting_on.store(target)
        # Who is waited on before the look at the inhibit; pairs with `set`.
        self._hv.vcpu.host.smp_mb()
        if target.tlb_flush_inhibit.load():
            self._hv.vcpu.suspend()
        self.waiting_on.store(None)

    def waits_for(self) -> HvVcpu | None:
        return self.waiting_on.load()


class WaitingOnDesign(FlushInhibits):
    """Nothing is shared beyond the words of the vCPUs."""

    design = FlushInhibitDesign.WAITING_ON

    def of(self, hv: HvVcpu) -> WaitingOn:
        return WaitingOn(hv)


def first_inhibited(targets: Iterable[HvVcpu]) -> HvVcpu | None:
    """The first of them whose flushes are held up."""
    for target in targets:
        if target.tlb_flush_inhibit.load():
            return target
    return None
