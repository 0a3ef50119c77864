"""A VM's memory as user space changes it: KVM_SET_USER_MEMORY_REGION, attributes, transactions, and waiting for vCPUs.

Mirrors the memory half of `kvm_vm_ioctl`; `memory` and `memory_transactions` do the work.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from vtlkit.engine.api import Access
    from vtlkit.host.api import Host
    from vtlkit.kvm.memory_transactions import MemoryTransactions
    from vtlkit.kvm.memslots import MemoryRegion
    from vtlkit.kvm.vcpu import Vcpu


class VmMemory:
    """The part of `Vm` that has to do with memory."""

    host: Host
    transactions: MemoryTransactions
    vcpus: list[Vcpu]

    def make_all_request(self, request: Req) -> None:
        raise NotImplementedError

    def set_user_memory_region(self, region: MemoryRegion) -> None:
        """KVM_SET_USER_MEMORY_REGION. Blocks while another task's memory transaction is open: not for inside a `run`.

        Raises:
            KvmError: as `Memslots.changed`.
        """
        self.transactions.set_regions([region])

    def set_user_memory_region_list(self, regions: Iterable[MemoryRegion]) -> None:
        """Several regions in one step: no vCPU sees some of the changes without the others. Blocks as above.

        Raises:
            KvmError: as `Memslots.changed`; nothing changed.
        """
        self.transactions.set_regions(regions)

    def set_memory_attributes(self, gpa: int, size: int, access: Access) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: what guest accesses the range permits.

        Raises:
            KvmError: EINVAL if the range is not made of whole pages.
        """
        self.transactions.set_attributes(gpa, size, access)

    def begin_memory_transaction(self) -> None:
        """What this task calls of the three above takes effect with the commit, in one step (docs/design/
        memory-transactions.md). Blocks while another task's transaction is open.

        Raises:
            KvmError: EBUSY, the caller has one open.
        """
        self.transactions.begin()

    def commit_memory_transaction(self) -> None:
        """Raises `KvmError`: EINVAL, the caller has none open."""
        self.transactions.commit()

    def abort_memory_transaction(self) -> None:
        """Nothing of it has happened. Raises `KvmError`: EINVAL, the caller has none open."""
        self.transactions.abort()

    def memory_transaction(self) -> AbstractContextManager[None]:
        """A transaction around a block; aborted if the block raises."""
        return self.transactions.opened()

    def _memory_changed(self) -> None:
        self.make_all_request(Req.MEMORY_CHANGED)

    def wait_for_memory(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until no vCPU can execute under the memory map from before the last change (as KVM_REQUEST_WAIT does).

        A vCPU between two instructions looks at MEMORY_CHANGED before its next one, so only those in the guest, and
        those that have still to finish an I/O instruction, are waited for. The caller holds no lock that they may need.
        Returns early when `given_up` says so: user space may have stopped running a vCPU for good.

        Raises:
            KvmError: EDEADLK, the caller has a memory transaction open: an unfinished instruction may wait for its end.
        """
        if self.transactions.mine():
            raise KvmError(errno.EDEADLK, "waiting for vCPUs with a memory transaction open")
        for vcpu in self.vcpus:
            while vcpu.may_run_on_old_map() and not given_up():
                self.host.relax()

    def wait_for_intercepts(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until no vCPU can execute without what `Vcpu.set_user_intercepts` last set; as `wait_for_memory`."""
        for vcpu in self.vcpus:
            while vcpu.user.behind() and vcpu.may_execute() and not given_up():
                self.host.relax()

    def _memory_written(self, gpa: int, size: int) -> None:
        for vcpu in self.vcpus:
            vcpu.engine.memory_written(gpa, size)
