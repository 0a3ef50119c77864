"""Every vCPU out of `run`, and in again: KVM_KICK_ALL_RUNNING_VCPUS and KVM_RESUME_ALL_KICKED_VCPUS of KVM's list.

The promise, the races and what speaks for each design are in docs/design/kick.md. Shared: the requests, and under
`_lock` (LEAF) the two counts and the VM's list of vCPUs. Every `run` reads `transaction`, which kickers write.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING

from vtlkit.host.api import LockRank
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.kvm_run import Intr
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vtlkit.kvm.vcpu import Vcpu
    from vtlkit.kvm.vm import Vm


class KickDesign(enum.Enum):
    """Who clears the request."""

    STICKY = "sticky"
    """The last resume alone: until then every `run` returns INTR."""
    CLEARED_BY_FIRST_EXIT = "first-exit"
    """The INTR that it causes; resume clears those of vCPUs that were not entered."""
    CLEARED_BEFORE_UNLOCK = "unlock"
    """The kicker, once every vCPU is out and before it lets any in again."""


class KickAll:
    """One VM's."""

    def __init__(self, vm: Vm) -> None:
        host = vm.host
        self._vm = vm
        self.transaction = host.rwsem(f"{vm.name}-running", LockRank.MEMORY_TRANSACTION)
        self._design = KickDesign.STICKY
        self._lock = host.lock(f"{vm.name}-kicks", LockRank.LEAF)
        self._holds = 0
        """Kicks that have not been resumed."""
        self._kicking = host.cell(0, f"{vm.name}-kicking")
        """Kickers that have made their requests and not let go of `transaction` yet. Written under `_lock`."""

    @property
    def design(self) -> KickDesign:
        return self._design

    def set_design(self, design: KickDesign) -> None:
        """Raises `KvmError`: EBUSY, somebody's kick has not been resumed."""
        with self._lock:
            if self._holds:
                raise KvmError(errno.EBUSY, "the design of kick-all cannot change while vCPUs are kicked")
            self._design = design

    # --- vCPUs come and go ------------------------------------------------------------------------------------------

    def admit(self, vcpu: Vcpu) -> None:
        """A vCPU is there; kicked if the others are."""
        with self._lock:
            # Replaced whole: others go through it without the lock.
            self._vm.vcpus = [*self._vm.vcpus, vcpu]
            before_unlock = self._design is KickDesign.CLEARED_BEFORE_UNLOCK
            if self._kicking.load() if before_unlock else self._holds:
                vcpu.make_request(Req.USERSPACE_KICK)

    def dismiss(self, vcpu: Vcpu) -> None:
        """The vCPU is being destroyed."""
        with self._lock:
            self._vm.vcpus = [other for other in self._vm.vcpus if other is not vcpu]

    # --- the two calls ----------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """`Vm.kick_all_running_vcpus`."""
        if any(vcpu.mutex.held() for vcpu in self._vm.vcpus):
            raise KvmError(errno.EDEADLK, "kick-all from inside a vCPU's own call would wait for itself")
        with self._lock:
            self._holds += 1
            self._kicking.store(self._kicking.load() + 1)
            kicked = self._vm.vcpus
            for vcpu in kicked:
                vcpu.make_request(Req.USERSPACE_KICK)
        for vcpu in kicked:
            vcpu.kick()
        # After the requests: they are what makes the readers leave.
        self.transaction.down_write()
        with self._lock:
            self._kicking.store(self._kicking.load() - 1)
            # One that has made its requests still needs them to get the vCPUs out.
            if self._design is KickDesign.CLEARED_BEFORE_UNLOCK and not self._kicking.load():
                _let_in(self._vm.vcpus)
        self.transaction.up_write()

    def resume(self) -> None:
        """`Vm.resume_all_kicked_vcpus`."""
        with self._lock:
            # A kicker that still waits for the vCPUs to leave has nothing to resume yet, and needs its requests.
            if self._holds <= self._kicking.load():
                raise KvmError(errno.EINVAL, "no kick of all vCPUs is to be resumed")
            self._holds -= 1
            if not self._holds:
                # What was done while the vCPUs were out is seen by a guest whose `run` finds no request: pairs with
                # the barrier between that look and the guest.
                self._vm.host.smp_mb()
                _let_in(self._vm.vcpus)

    # --- the vCPU's side --------------------------------------------------------------------------------------------

    def has_to_leave(self, vcpu: Vcpu) -> bool:
        """Whether this `run` has to return INTR, which it then does: it is between two instructions. The vCPU's task.

        What a signal to the vCPU wants, it gets with that.
        """
        if not vcpu.requests.test(Req.USERSPACE_KICK):
            return False
        if self._design is KickDesign.CLEARED_BY_FIRST_EXIT and not vcpu.check_request(Req.USERSPACE_KICK):
            return False
        vcpu.take_signal()
        vcpu.statistics.kicked_exits += 1
        return True

    def refused(self, vcpu: Vcpu) -> Intr | None:
        """INTR for a `run` that begins while the vCPU is kicked, and has no instruction to finish first. As below."""
        if (vcpu.requests.test(Req.USERSPACE_KICK) or self._kicker_waits()) and vcpu.engine.at_boundary:
            self._turn_away(vcpu)
            return Intr()
        return None

    def refuses_wait(self, vcpu: Vcpu) -> bool:
        """The same for a call that waits and executes nothing. May block for a moment."""
        if not vcpu.requests.test(Req.USERSPACE_KICK) and not self._kicker_waits():
            return False
        self._turn_away(vcpu)
        return True

    def _turn_away(self, vcpu: Vcpu) -> None:
        """A caller that tries again and again gives way to those that it waits for."""
        self.has_to_leave(vcpu)
        vcpu.statistics.kicked_entries += 1
        vcpu.host.relax()

    def _kicker_waits(self) -> bool:
        """Whether a vCPU whose request the exit before has taken may not come in again yet: nothing would make it
        leave, and a kicker waits for nobody to be inside."""
        return self._design is KickDesign.CLEARED_BY_FIRST_EXIT and bool(self._kicking.load())


def _let_in(vcpus: Iterable[Vcpu]) -> None:
    for vcpu in vcpus:
        vcpu.requests.clear(Req.USERSPACE_KICK)
        if vcpu.trace is not None:
            vcpu.trace.kick()
        vcpu.wait_queue.wake()


def wait_until_resumed(vcpu: Vcpu) -> None:
    """Sleep while the vCPU is kicked, until `Vcpu.signal`. For the task that runs it, outside `run`, after INTR."""
    requests = vcpu.requests
    if not requests.test(Req.USERSPACE_KICK):
        return
    if vcpu.trace is not None:
        vcpu.trace.block("KICKED")
    vcpu.host.wait_event(
        vcpu.wait_queue,
        lambda: not requests.test(Req.USERSPACE_KICK) or vcpu.signal_pending(),
        interruptible=False,
    )
    if vcpu.trace is not None:
        vcpu.trace.wakeup()
