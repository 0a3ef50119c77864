"""Several changes of a VM's memory as one: staged by the task that began, published in one step by the commit.

docs/design/memory-transactions.md says what each way to change memory guarantees. The lock (MEMORY_CHANGE) is held from
begin to commit or abort, and by every other change of slots; what is staged is the holder's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vtlkit.engine.api import Access
from vtlkit.host.api import Host, LockRank
from vtlkit.kvm.address_space import AttributeChange, SlotChange
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memslots import MemoryRegion


class MemoryTransactions:
    """One VM's: at most one is open."""

    def __init__(self, host: Host, name: str, memory: GuestMemory) -> None:
        self._memory = memory
        self._lock = host.lock(f"{name}-memory-transaction", LockRank.MEMORY_CHANGE)
        self._changes: list[SlotChange | AttributeChange] | None = None
        """What has been staged; None: no transaction is open, although somebody may be changing slots."""
        self._space = memory.space
        """What it would make of memory, were nothing else to change."""

    def mine(self) -> bool:
        """Whether the calling task has a transaction open."""
        return self._lock.held()

    # --- the calls that change memory -------------------------------------------------------------------------------

    def set_regions(self, regions: Iterable[MemoryRegion]) -> None:
        """As one step of its own, or of the caller's transaction. Blocks while another task's is open.

        Raises:
            KvmError: as `Memslots.changed`; nothing of the call has been done.
        """
        change = SlotChange(tuple(regions))
        if self._lock.held():
            self._stage(change)
            return
        with self._lock:
            self._memory.change([change])

    def set_attributes(self, gpa: int, size: int, access: Access) -> None:
        """As `set_regions`, but it waits for nobody's transaction.

        Raises:
            KvmError: as `GuestMemory.set_attributes`.
        """
        change = AttributeChange(gpa, size, access)
        if self._lock.held():
            self._stage(change)
        else:
            self._memory.change([change])

    def _stage(self, change: SlotChange | AttributeChange) -> None:
        assert self._changes is not None
        self._space, _ = change.apply(self._space)
        self._changes.append(change)

    # --- transactions -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open one. Blocks while another task's is open.

        Raises:
            KvmError: EBUSY, the caller has one open.
        """
        if self._lock.held():
            raise KvmError(errno.EBUSY, "a memory transaction of this task is open")
        self._lock.acquire()
        self._changes = []
        self._space = self._memory.space

    def commit(self) -> None:
        """Publish what was staged, in one step, and end the transaction.

        Raises:
            KvmError: EINVAL, the caller has none open.
        """
        changes = self._end("commit")
        try:
            if changes:
                # On what there is now: a guest may have changed attributes and overlays meanwhile.
                self._memory.change(changes)
        finally:
            self._lock.release()

    def abort(self) -> None:
        """Forget what was staged, and end the transaction.

        Raises:
            KvmError: EINVAL, the caller has none open.
        """
        self._end("abort")
        self._lock.release()

    def _end(self, what: str) -> list[SlotChange | AttributeChange]:
        if not self._lock.held() or self._changes is None:
            raise KvmError(errno.EINVAL, f"no memory transaction of this task is open: nothing to {what}")
        changes, self._changes = self._changes, None
        return changes

    @contextmanager
    def opened(self) -> Iterator[None]:
        """A transaction around a block: aborted if the block raises."""
        self.begin()
        try:
            yield
        except BaseException:
            self.abort()
            raise
        self.commit()
