"""The synthetic interrupt controller of one vCPU (TLFS, "SynIC Messages", "SynIC Event Flags", "SynIC Registers"; the
synic half of arch/x86/kvm/hyperv.c).

Promise: a message that `post` accepted reaches its slot, in order, unless the vCPU is reset or its port deleted: at
once, or when the guest ends the message or the interrupt before it. An event flag that `signal_event` accepted is set
before the vCPU next runs guest code, and `test_and_signal_event` says truly whether it was clear.

Registers, queues and pages are protected by `lock` (rank SYNIC; never held together with another of that rank, nor
around a call to a vCPU). `vectors` and `auto_eoi_vectors` are written under it and read without by the vCPU's own task,
the only one that writes SINTs. Against the guest there is no lock:

    poster                                   guest
    slot busy? yes                           take the message; type = None
    MessagePending = 1; smp_mb               smp_mb; MessagePending? yes: write EOM
    slot still busy? no: deliver now

Without the second look, the guest may empty the slot and miss the flag in between, and nobody would deliver. The flag
is a byte of its own, stored whole, so that it can not undo the guest's store to the type. Event flags share bytes with
flags that the guest clears: they are set by the vCPU's own task outside guest code, where the guest's read-modify-write
is either done or not begun. Until then a signalled flag is in `_events`; only that task moves it to the page, under the
lock, so a signaller that holds the lock and finds the flag in neither place is the one that sets it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.engine.api import Access
from vtlkit.host.api import LockRank
from vtlkit.hvdef.messages import HV_MESSAGE_FLAG_MESSAGE_PENDING, HV_MESSAGE_HEADER, HV_MESSAGE_SIZE, HvMessageType
from vtlkit.hvdef.msrs import HV_MSR_PAGE_ENABLE, HV_MSR_PAGE_GPA
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import (
    HV_EVENT_FLAGS_BYTE_COUNT,
    HV_EVENT_FLAGS_COUNT,
    HV_SYNIC_FIRST_VALID_VECTOR,
    HV_SYNIC_SCONTROL_ENABLE,
    HV_SYNIC_SINT_AUTO_EOI,
    HV_SYNIC_SINT_COUNT,
    HV_SYNIC_SINT_MASKED,
    HV_SYNIC_SINT_POLLING,
    HV_SYNIC_SINT_PROXY,
    HV_SYNIC_SINT_RESET,
    HV_SYNIC_SINT_VECTOR,
)
from vtlkit.kvm.hyperv.overlays import OverlayPage, Precedence
from vtlkit.kvm.requests import Req
from vtlkit.x86.apic import DeliveryMode

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.message_buffers import MessageBuffers
    from vtlkit.kvm.hyperv.owner import VcpuOwner

    Queue: TypeAlias = deque[tuple[bytes, MessageBuffers | None]]
    """Messages, each with the port's buffers that it has one of."""

MESSAGE_BUFFERS: Final = 16
"""Messages that belong to no port (intercepts, messages posted directly) that may be queued to one SINT."""
_NO_VECTOR: Final = -1
_FLAGS_OFFSET: Final = HV_MESSAGE_HEADER.OFFSETS["MessageFlags"]
_TYPE_SIZE: Final = 4
_NO_MESSAGE: Final = int(HvMessageType.HvMessageTypeNone).to_bytes(_TYPE_SIZE, "little")
_PENDING: Final = bytes([HV_MESSAGE_FLAG_MESSAGE_PENDING])
_VECTOR: Final = HV_SYNIC_SINT_VECTOR.mask
_MASKED: Final = HV_SYNIC_SINT_MASKED.mask
_AUTO_EOI: Final = HV_SYNIC_SINT_AUTO_EOI.mask
_POLLING: Final = HV_SYNIC_SINT_POLLING.mask
_PROXY: Final = HV_SYNIC_SINT_PROXY.mask
_SINTS: Final = range(HV_SYNIC_SINT_COUNT)


def sint_vector(sint: int) -> int:
    """The vector that a SINT register interrupts with, -1 if it does not: masked, polled, or proxied to user space."""
    return _NO_VECTOR if sint & (_MASKED | _POLLING | _PROXY) else sint & _VECTOR


class SynIc:
    """SynIC registers, message queues, message and event flag pages."""

    __slots__ = (
        "_events",
        "_queues",
        "_vcpu",
        "auto_eoi_vectors",
        "event_page",
        "lock",
        "message_page",
        "scontrol",
        "siefp",
        "simp",
        "sints",
        "vectors",
        "waiting",
    )

    def __init__(self, vcpu: VcpuOwner, lock_name: str) -> None:
        memory = vcpu.vm.memory
        self._vcpu = vcpu
        self.lock = vcpu.host.lock(lock_name, LockRank.SYNIC)
        self.scontrol = self.simp = self.siefp = 0
        self.sints = [HV_SYNIC_SINT_RESET] * HV_SYNIC_SINT_COUNT
        self.vectors = 0
        """A bit per vector that an unmasked SINT uses."""
        self.auto_eoi_vectors = 0
        """Those of them whose SINT has auto-EOI."""
        self._queues: list[Queue] = [deque() for _ in _SINTS]
        self.waiting = vcpu.host.bitmap(f"{lock_name}-waiting")
        """SINTs with messages in their queue: written under the lock, read without by the vCPU's own task."""
        self._events = [0] * HV_SYNIC_SINT_COUNT
        """Event flags signalled and not set in the page yet, one integer per SINT."""
        self.message_page = OverlayPage(memory, Precedence.MESSAGES, Access.READ | Access.WRITE)
        self.event_page = OverlayPage(memory, Precedence.EVENT_FLAGS, Access.READ | Access.WRITE)

    # --- registers: the vCPU's own task ---------------------------------------------------------------------------

    def set_scontrol(self, value: int) -> None:
        with self.lock:
            self.scontrol = value

    def set_simp(self, value: int) -> int | None:
        """Write SIMP; where the message page shall lie."""
        with self.lock:
            self.simp = value
        return value & HV_MSR_PAGE_GPA if value & HV_MSR_PAGE_ENABLE else None

    def set_siefp(self, value: int) -> int | None:
        """Write SIEFP; where the event flags page shall lie."""
        with self.lock:
            self.siefp = value
        return value & HV_MSR_PAGE_GPA if value & HV_MSR_PAGE_ENABLE else None

    def set_sint(self, sint: int, value: int, *, host_initiated: bool = False) -> bool:
        """Write a SINT; False is #GP: a vector below 16 in an unmasked SINT."""
        if value & _VECTOR < HV_SYNIC_FIRST_VALID_VECTOR and not value & _MASKED and not host_initiated:
            return False
        with self.lock:
            self.sints[sint] = value
            vectors = auto_eoi = 0
            for register in self.sints:
                vector = sint_vector(register)
                if vector >= 0:
                    vectors |= 1 << vector
                    if register & _AUTO_EOI:
                        auto_eoi |= 1 << vector
            self.vectors, self.auto_eoi_vectors = vectors, auto_eoi
        return True

    def end_of_message(self) -> None:
        """Write EOM: deliver what the guest has made room for."""
        self._scan(_SINTS)

    def awaits_eoi(self, vector: int) -> bool:
        """Whether messages are queued that an EOI of `vector` may bring."""
        waiting = self.waiting.load()
        return waiting != 0 and any(waiting >> sint & 1 and sint_vector(self.sints[sint]) == vector for sint in _SINTS)

    def end_of_interrupt(self, vector: int) -> None:
        """The guest ended an interrupt with this vector at its local APIC."""
        if self.vectors >> vector & 1:
            self._scan([sint for sint in _SINTS if sint_vector(self.sints[sint]) == vector])

    def reset(self) -> None:
        """RESET: registers and pages as at creation, nothing queued."""
        with self.lock:
            self.scontrol = self.simp = self.siefp = 0
            self.sints = [HV_SYNIC_SINT_RESET] * HV_SYNIC_SINT_COUNT
            self.vectors = self.auto_eoi_vectors = 0
            self._events = [0] * HV_SYNIC_SINT_COUNT
            for sint in _SINTS:
                self._keep(sint, lambda _buffers: False)
            self.message_page.clear()
            self.event_page.clear()

    # --- messages: any task ---------------------------------------------------------------------------------------

    def _accepts_messages(self) -> bool:
        return self.scontrol & HV_SYNIC_SCONTROL_ENABLE != 0 and self.simp & HV_MSR_PAGE_ENABLE != 0

    def deliver_message(self, sint: int, message: bytes) -> HvStatus:
        """Put a message into its slot now, behind no queue.

        INVALID_SYNIC_STATE: the SynIC or its message page is disabled, or the SINT is proxied. OBJECT_IN_USE: the slot
        is busy, or messages are queued before this one; the guest has been asked for an EOM.
        """
        with self.lock:
            if not self._accepts_messages() or self.sints[sint] & _PROXY:
                return HvStatus.INVALID_SYNIC_STATE
            if self._queues[sint] or not self._slot_free(sint):
                return HvStatus.OBJECT_IN_USE
            vector = self._fill_slot(sint, message)
        self._interrupt(vector)
        return HvStatus.SUCCESS

    def post(self, sint: int, message: bytes, buffers: MessageBuffers | None = None) -> HvStatus:
        """Deliver a message (HV_MESSAGE, 256 bytes), or queue it behind those before it, in a buffer of its port's.

        INVALID_SYNIC_STATE as `deliver_message`; INVALID_PORT_ID if the buffers are closed; INSUFFICIENT_BUFFERS if
        none is free: of the port's, or, if it belongs to no port, of the SINT's own.
        """
        assert len(message) == HV_MESSAGE_SIZE
        with self.lock:
            if buffers is not None and buffers.closed:
                return HvStatus.INVALID_PORT_ID
            if not self._accepts_messages() or self.sints[sint] & _PROXY:
                return HvStatus.INVALID_SYNIC_STATE
            queue = self._queues[sint]
            if not buffers.take() if buffers is not None else self._own_buffers_full(queue):
                return HvStatus.INSUFFICIENT_BUFFERS
            queue.append((message, buffers))
            self.waiting.set(sint)
            vector = self._deliver_queued(sint)
            waits = bool(queue)
        self._interrupt(vector)
        if waits:
            # The EOI of the SINT's interrupt has something to do from now on: it may not be skipped (`eoi_assist`).
            self._vcpu.kick()
        return HvStatus.SUCCESS

    @staticmethod
    def _own_buffers_full(queue: Queue) -> bool:
        return sum(buffers is None for _, buffers in queue) >= MESSAGE_BUFFERS

    def drop_messages(self, buffers: MessageBuffers) -> None:
        """Forget the queued messages of a port whose buffers are closed."""
        with self.lock:
            for sint in _SINTS:
                self._keep(sint, lambda other: other is not buffers)

    def _keep(self, sint: int, wanted: Callable[[MessageBuffers | None], bool]) -> None:
        """Forget the queued messages of all other buffers. The caller holds the lock."""
        queue = self._queues[sint]
        kept: Queue = deque()
        for entry in queue:
            if wanted(entry[1]):
                kept.append(entry)
            elif entry[1] is not None:
                entry[1].give()
        self._queues[sint] = kept
        if not kept:
            self.waiting.clear(sint)

    def has_room(self, sint: int) -> bool:
        """Whether a message would go into its slot now; if not for want of room, the guest is asked for an EOM."""
        with self.lock:
            return self._accepts_messages() and not self._queues[sint] and self._slot_free(sint)

    def queued(self, sint: int) -> int:
        """How many messages wait for the slot."""
        with self.lock:
            return len(self._queues[sint])

    def _scan(self, sints: range | list[int]) -> None:
        vectors = []
        with self.lock:
            for sint in sints:
                if self._queues[sint]:
                    vectors.append(self._deliver_queued(sint))
        for vector in vectors:
            self._interrupt(vector)

    def _deliver_queued(self, sint: int) -> int:
        """Move queued messages to the slot while there is room; the vector to interrupt with, or -1."""
        queue = self._queues[sint]
        vector = _NO_VECTOR
        # Another round, if the guest emptied the slot before it could see that more is to come.
        while queue and self._accepts_messages() and self._slot_free(sint):
            message, buffers = queue.popleft()
            vector = self._fill_slot(sint, message)
            if buffers is not None:
                buffers.give()
        if not queue:
            self.waiting.clear(sint)
        return vector

    def _slot_free(self, sint: int) -> bool:
        """Whether the slot is empty; if it is not, ask the guest for an EOM. See the race above."""
        slot = sint * HV_MESSAGE_SIZE
        view = self.message_page.view
        if view[slot : slot + _TYPE_SIZE] == _NO_MESSAGE:
            return True
        self.message_page.write(slot + _FLAGS_OFFSET, _PENDING)
        self._vcpu.host.smp_mb()
        return view[slot : slot + _TYPE_SIZE] == _NO_MESSAGE

    def _fill_slot(self, sint: int, message: bytes) -> int:
        slot = sint * HV_MESSAGE_SIZE
        self.message_page.write(slot + _TYPE_SIZE, message[_TYPE_SIZE:])
        # The guest may poll the type: what it announces is there before it.
        self._vcpu.host.smp_wmb()
        self.message_page.write(slot, message[:_TYPE_SIZE])
        return sint_vector(self.sints[sint])

    # --- event flags and interrupts: any task ---------------------------------------------------------------------

    def signal_event(self, sint: int, flag: int) -> HvStatus:
        """Set an event flag (0 to 2047) and interrupt if it was clear; done before the vCPU next runs guest code.

        INVALID_SYNIC_STATE: SynIC or event flags page disabled, or SINT masked or proxied. INVALID_PARAMETER: there is
        no such flag.
        """
        outcome = self.test_and_signal_event(sint, flag)
        return outcome if isinstance(outcome, HvStatus) else HvStatus.SUCCESS

    def test_and_signal_event(self, sint: int, flag: int) -> bool | HvStatus:
        """As `signal_event`; whether the flag was clear before, in place of SUCCESS."""
        if not 0 <= flag < HV_EVENT_FLAGS_COUNT:
            return HvStatus.INVALID_PARAMETER
        # What the signaller has stored is to be seen by a guest that clears the flag after the look below.
        self._vcpu.host.smp_mb()
        with self.lock:
            register = self.sints[sint]
            enabled = self.scontrol & HV_SYNIC_SCONTROL_ENABLE and self.siefp & HV_MSR_PAGE_ENABLE
            if not enabled or register & _PROXY or register & (_MASKED | _POLLING) == _MASKED:
                return HvStatus.INVALID_SYNIC_STATE
            if (self._events[sint] | self._flags_in_page(sint)) >> flag & 1:
                return False
            self._events[sint] |= 1 << flag
        self._vcpu.make_request(Req.HV_STIMER)
        self._vcpu.kick()
        return True

    def _flags_in_page(self, sint: int) -> int:
        start = sint * HV_EVENT_FLAGS_BYTE_COUNT
        return int.from_bytes(self.event_page.view[start : start + HV_EVENT_FLAGS_BYTE_COUNT], "little")

    def process_events(self) -> None:
        """Set the flags that were signalled (Req.HV_STIMER). The vCPU's own task, outside guest code."""
        vectors = []
        with self.lock:
            for sint in _SINTS:
                flags = self._events[sint]
                if flags:
                    self._events[sint] = 0
                    if self._set_flags(sint, flags):
                        vectors.append(sint_vector(self.sints[sint]))
        for vector in vectors:
            self._interrupt(vector)

    def _set_flags(self, sint: int, flags: int) -> bool:
        """Whether one of `flags` was clear before."""
        if not self.siefp & HV_MSR_PAGE_ENABLE:
            return False
        new = flags & ~self._flags_in_page(sint)
        # Byte by byte, and no others: a guest on another processor may be clearing flags of its own there.
        for number in range((new & -new).bit_length() - 1 >> 3, new.bit_length() + 7 >> 3):
            bits = new >> 8 * number & 0xFF
            if bits:
                offset = sint * HV_EVENT_FLAGS_BYTE_COUNT + number
                self.event_page.write(offset, bytes([self.event_page.view[offset] | bits]))
        return new != 0

    def set_irq(self, sint: int) -> int:
        """Raise a SINT's interrupt (KVM_IRQ_ROUTING_HV_SINT): how many APICs accepted it, -1 if the SINT gives none."""
        vector = sint_vector(self.sints[sint])
        return self._interrupt(vector) if vector >= 0 else -1

    def _interrupt(self, vector: int) -> int:
        if vector < 0:
            return 0
        return self._vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)
