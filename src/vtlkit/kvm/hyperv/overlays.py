"""Overlay pages of one VM: which page lies over which guest-physical address (TLFS, "GPA Overlay Pages").

Promise: an overlay's contents stay with it while it is moved, disabled and enabled again; what lies under it is not
touched and shows again when it goes. Where several overlays claim one address, the one of the lowest `Precedence`
shows, and among equals the one that came last; the next shows when it goes. When a register write returns, its overlay
is in place.

`claims` and `changes` are protected by the lock of the `HvVm` (rank SYNIC), which is taken inside of, and so can not be
held around, the SLOTS lock that `map_overlay` takes. Two vCPUs that move overlays at one time:

    vCPU 0                                   vCPU 1
    under the lock: claim A for page P       under the lock: claim B for page P
    map P at A                               unmap A, map P at B

With the mapping left to each, vCPU 0 may be late and map P at A for good. So one of them, the one that finds nobody
`busy`, maps for both, always from the claims as they are under the lock, until nothing is left to change; the other
waits for `applied` to reach its own change.
"""

from __future__ import annotations

import enum
from typing import Final

from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.host.api import Cell, Host, Lock
from vtlkit.kvm.memory import GuestMemory


class Precedence(enum.IntEnum):
    """Which of several overlays at one address shows: the lowest number."""

    HYPERCALL = 0
    REFERENCE_TSC = 1
    VP_ASSIST = 2
    EVENT_FLAGS = 3
    MESSAGES = 4
    VP_STATE = 5


class OverlayPage:
    """One page that the hypervisor owns. `gpa` is where it is claimed to lie, None if nowhere.

    The contents belong to whoever owns the register (SynIC: under its lock); host memory is made at first use.
    """

    __slots__ = ("_block", "_memory", "access", "gpa", "precedence")

    def __init__(self, memory: GuestMemory, precedence: Precedence, access: Access) -> None:
        self._memory = memory
        self._block: RamBlock | None = None
        self.precedence: Final = precedence
        self.access: Final = access
        self.gpa: int | None = None

    @property
    def block(self) -> RamBlock:
        if self._block is None:
            self._block = RamBlock(PAGE_SIZE)
        return self._block

    @property
    def view(self) -> memoryview:
        """The contents, live."""
        return self.block.view

    def write(self, offset: int, data: bytes) -> None:
        """Store `data`, and tell the engines, as code may lie there."""
        self.block.view[offset : offset + len(data)] = data
        gpa = self.gpa
        if gpa is not None:
            self._memory.on_write(gpa + offset, len(data))

    def clear(self) -> None:
        """Zero the contents."""
        if self._block is not None:
            self.write(0, bytes(PAGE_SIZE))


class Overlays:
    """The claims of all overlay pages of a VM, and their mapping."""

    __slots__ = ("_applied", "_busy", "_changes", "_claims", "_dirty", "_host", "_lock", "_memory", "_queue")

    def __init__(self, host: Host, memory: GuestMemory, lock: Lock) -> None:
        self._host = host
        self._memory = memory
        self._lock = lock
        self._claims: dict[int, list[OverlayPage]] = {}
        self._dirty: dict[int, None] = {}
        self._changes = 0
        self._busy = False
        self._applied: Cell[int] = host.cell(0, "hv-overlays-applied")
        self._queue = host.wait_queue("hv-overlays")

    def claim(self, page: OverlayPage, gpa: int | None) -> None:
        """Let `page` lie at `gpa`, or nowhere. The caller holds the lock, lets it go, and calls `apply`."""
        old = page.gpa
        if old == gpa:
            return
        if old is not None:
            claims = self._claims[old]
            claims.remove(page)
            if not claims:
                del self._claims[old]
            self._dirty[old] = None
        page.gpa = gpa
        if gpa is not None:
            claims = self._claims.setdefault(gpa, [])
            claims.insert(0, page)
            claims.sort(key=lambda claim: claim.precedence)
            self._dirty[gpa] = None
        self._changes += 1

    def apply(self) -> None:
        """Bring guest memory up to date with every claim so far. May block; the caller holds no lock from SLOTS up."""
        with self._lock:
            mine = self._changes
            mapping = not self._busy
            self._busy = True
        if mapping:
            while self._apply_some():
                pass
            self._queue.wake()
        else:
            self._host.wait_event(self._queue, lambda: self._applied.load_acquire() >= mine, interruptible=False)

    def _apply_some(self) -> bool:
        with self._lock:
            changes = self._changes
            if not self._dirty:
                self._busy = False
                self._applied.store_release(changes)
                return False
            tops = [(gpa, self._claims[gpa][0] if gpa in self._claims else None) for gpa in self._dirty]
            self._dirty = {}
        for gpa, page in tops:
            if page is None:
                self._memory.unmap_overlay(gpa)
            else:
                self._memory.map_overlay(gpa, page.block, 0, page.access)
        self._applied.store_release(changes)
        self._queue.wake()
        return True

    def move(self, page: OverlayPage, gpa: int | None) -> None:
        """`claim` and `apply`."""
        if page.gpa == gpa:
            return
        with self._lock:
            self.claim(page, gpa)
        self.apply()
