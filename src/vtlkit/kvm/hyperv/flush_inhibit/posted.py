"""The inhibit in the form in which it was posted for KVM: a suspended state, and grace periods in place of order.

A flusher looks at the inhibit of its targets first and makes its requests after. If one is inhibited it stores
`waiting_on` (that vCPU's number), then `suspended`, and leaves RIP at the hypercall; the run loop does not enter the
guest of a suspended vCPU but blocks. Clearing looks for vCPUs that are suspended for its sake, takes both words back
and makes request EVENT.

Look-then-act is a race twice (flush against set, suspend against clear). What closes both is that a vCPU's task is in a
read section of the VM's SRCU wherever it is neither in the guest nor blocked, as KVM's `vcpu_run` is, and that a change
of the inhibit ends with a grace period: whoever has looked at the old value has acted by then.

The price: a change waits for every vCPU of the VM, whatever keeps it in the hypervisor. And the suspension is a state
between two calls of `run`: a signal leaves it, a reset has to forget it, a pending interrupt keeps the task turning.

Own to this project: `_lock`, in place of the vCPU mutex under which KVM's ioctl runs, since a lock on a TLB is taken by
another processor's task here; and that INIT and RESET end the suspension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vtlkit.host.api import Cell, Host, Srcu
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibit, FlushInhibitDesign, FlushInhibits, KernelSection
from vtlkit.kvm.hyperv.flush_inhibit.waiting_on import first_inhibited
from vtlkit.kvm.hyperv.vp_set import ALL_VPS
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.parameters import Hypercall
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

NOBODY: Final = -1


class Posted(FlushInhibit):
    """See the module. Both words are stored by the vCPU's own task in a read section, and taken back under `_lock`."""

    __slots__ = ("_design", "_hv", "_suspended", "_waiting_on")

    def __init__(self, hv: HvVcpu, design: PostedDesign) -> None:
        self._hv = hv
        self._design = design
        host, number = hv.vcpu.host, hv.vcpu.vcpu_id
        self._suspended: Cell[bool] = host.cell(False, f"vcpu{number}-suspended")
        self._waiting_on: Cell[int] = host.cell(NOBODY, f"vcpu{number}-waiting-on")

    def set(self, inhibit: bool) -> None:
        hv = self._hv
        hv.tlb_flush_inhibit.store(inhibit)
        # Whoever has looked at the old value has made its requests, or is suspended, when this returns.
        self._design.grace_period()
        if inhibit:
            return
        freed = []
        with self._design.lock:
            for other in hv.hv_vm.vps(ALL_VPS):
                theirs = other.flush_inhibit
                if isinstance(theirs, Posted) and theirs.is_suspended_for(hv.vcpu.vcpu_id):
                    theirs.take_back()
                    freed.append(other)
        for other in freed:
            # Orders the words before the request (`make_request`): whoever wakes finds itself not suspended.
            other.vcpu.make_request(Req.EVENT)
            other.vcpu.kick()

    def flush(self, call: Hypercall, targets: Sequence[HvVcpu]) -> bool:
        inhibited = first_inhibited(targets)
        if inhibited is not None:
            call.reissue = True
            self._hv.vcpu.statistics.suspends += 1
            self._say_suspended(inhibited.vcpu.vcpu_id)
            return False
        for target in targets:
            target.vcpu.request_tlb_flush()
        return True

    def _say_suspended(self, vcpu_id: int) -> None:
        self._waiting_on.store(vcpu_id)
        # As posted; the grace period makes it redundant.
        self._hv.vcpu.host.smp_wmb()
        self._suspended.store(True)

    def is_suspended_for(self, vcpu_id: int) -> bool:
        """Whether the vCPU waits for this one. Under the lock; both words are stored, or neither."""
        return self._suspended.load() and self._waiting_on.load() == vcpu_id

    def take_back(self) -> None:
        """The suspension ends. Under the lock."""
        self._waiting_on.store(NOBODY)
        self._hv.vcpu.host.smp_wmb()
        self._suspended.store(False)

    def waits_for(self) -> HvVcpu | None:
        number = self._waiting_on.load()
        if number == NOBODY:
            return None
        return next((other for other in self._hv.hv_vm.vps(ALL_VPS) if other.vcpu.vcpu_id == number), None)

    def suspended(self) -> bool:
        return self._suspended.load()

    def forget(self) -> None:
        with self._design.lock:
            self.take_back()


class PostedDesign(FlushInhibits):
    """The SRCU of one VM, whose readers are its vCPUs."""

    design = FlushInhibitDesign.POSTED

    def __init__(self, host: Host) -> None:
        self._srcu = host.srcu("vm-srcu")
        self.lock = host.lock("flush-inhibit")
        """A suspension ends in one step: nobody takes one back that has ended and begun anew."""

    def grace_period(self) -> None:
        """Wait until every vCPU has been in the guest, blocked, or out of `run`. Blocks."""
        self._srcu.synchronize()

    def of(self, hv: HvVcpu) -> Posted:
        return Posted(hv, self)

    def section(self) -> SrcuSection:
        return SrcuSection(self._srcu)


class SrcuSection(KernelSection):
    """A vCPU's read section (`kvm_vcpu_srcu_read_lock` and `..._unlock`). Belongs to the vCPU's task."""

    __slots__ = ("_index", "_srcu")

    def __init__(self, srcu: Srcu) -> None:
        self._srcu = srcu
        self._index: int | None = None

    def enter(self) -> None:
        assert self._index is None, "a vCPU's read section begins inside itself"
        self._index = self._srcu.read_lock()

    def leave(self) -> None:
        index, self._index = self._index, None
        assert index is not None, "a vCPU's read section ends twice"
        self._srcu.read_unlock(index)

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *exc: object) -> None:
        # A task that is ended inside the guest has left already.
        if self._index is not None:
            self.leave()

    @contextmanager
    def outside(self) -> Iterator[None]:
        if self._index is None:
            yield
            return
        self.leave()
        try:
            yield
        finally:
            self.enter()
