"""Messages and events to a virtual processor without a port."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.ports_rig import SINT, VECTOR, flags, post_direct, signal_direct, slot, synic, take
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import msrs
from vtlkit.hvdef.identifiers import HV_VP_INDEX_SELF
from vtlkit.hvdef.messages import HV_MESSAGE, HV_MESSAGE_HEADER, HvMessageType, make_message
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import HV_SYNIC_SINT_MASKED
from vtlkit.kvm.hyperv.synic import MESSAGE_BUFFERS

OK, PARAMETER, DENIED = HvStatus.SUCCESS, HvStatus.INVALID_PARAMETER, HvStatus.ACCESS_DENIED
PARTITION, BAD_VP = HvStatus.INVALID_PARTITION_ID, HvStatus.INVALID_VP_INDEX
NO_SYNIC, NO_VTL = HvStatus.INVALID_SYNIC_STATE, HvStatus.INVALID_VTL_STATE
TIMER = HvMessageType.HvMessageTimerExpired


def vtl1_with_synic_below(body: Any, seen: list[Any]) -> None:
    """VTL 1 of VP 0 runs `body` over a VTL 0 that has a SynIC; what VTL 0 then finds is added to `seen`."""

    def vtl1(guest: Guest) -> Script:
        yield from body(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from synic(guest)
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Compute(1)
        message = slot(guest)
        seen.append((message.Header.MessageType, message.Header.Sender, message.Payload[:2], flags(guest)))
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1}, cpus=2)


@pytest.mark.tlfs("synic.direct")
def test_a_higher_vtl_stands_in_for_the_hypervisor() -> None:
    """A message of any type, as it was made; a flag, and whether it was clear."""
    seen: list[Any] = []

    def body(guest: Guest) -> Script:
        seen.append((yield from post_direct(guest, HV_VP_INDEX_SELF, 0, make_message(TIMER, b"ab", sender=9))))
        for flag in (2047, 3, 3, 2047):
            seen.append((yield from signal_direct(guest, 0, 0, flag)))

    vtl1_with_synic_below(body, seen)
    assert seen == [OK, (OK, 1), (OK, 1), (OK, 0), (OK, 0), (TIMER, 9, b"ab", 1 << 2047 | 1 << 3)]


@pytest.mark.tlfs("synic.direct")
def test_whom_a_direct_call_may_name() -> None:
    seen: list[Any] = []
    message = make_message(1, b"")
    wrong = [
        ((0, 0), {"partition": 1}, PARTITION),
        ((2, 0), {}, BAD_VP),
        ((0xFFFFFFFF, 0), {}, BAD_VP),
        ((0, 16), {}, PARAMETER),
        ((0, 2), {}, DENIED),
        ((1, 1), {}, NO_VTL),
        ((0, 0), {"sint": 16}, PARAMETER),
        ((1, 0), {}, NO_SYNIC),
        ((0, 1), {}, NO_SYNIC),
    ]

    def body(guest: Guest) -> Script:
        for (vp, vtl), options, _ in wrong:
            posted = yield from post_direct(guest, vp, vtl, message, **options)
            signalled = yield from signal_direct(guest, vp, vtl, 0, **options)
            seen.append((posted, signalled))

    vtl1_with_synic_below(body, seen)
    untouched = int.from_bytes(b"\xff" * 8, "little")
    assert seen[:-1] == [(status, (status, untouched)) for _, _, status in wrong]
    assert seen[-1] == (0, 0, b"\0\0", 0)


@pytest.mark.tlfs("synic.direct")
def test_what_a_direct_call_may_send() -> None:
    seen: list[Any] = []

    def body(guest: Guest) -> Script:
        for message, options in (
            (make_message(0, b""), {}),
            (HV_MESSAGE(HV_MESSAGE_HEADER(1, 241)), {}),
            (make_message(1, b""), {"pad": 1}),
        ):
            seen.append((yield from post_direct(guest, 0, 0, message, **options)))
        for sint, flag in ((0, 0), (SINT, 2048), (SINT, 0xFFFF), (SINT + 1, 0)):
            seen.append((yield from signal_direct(guest, 0, 0, flag, sint=sint))[0])

    vtl1_with_synic_below(body, seen)
    assert seen == [*[PARAMETER] * 6, NO_SYNIC, (0, 0, b"\0\0", 0)]


@pytest.mark.tlfs("synic.direct")
def test_direct_messages_queue_and_their_pending_bit_is_the_receivers() -> None:
    seen: list[Any] = []

    def guest(guest: Guest) -> Script:
        yield from synic(guest, sti=False)
        for number in range(MESSAGE_BUFFERS + 1):
            flagged = HV_MESSAGE(HV_MESSAGE_HEADER(1, 1, MessageFlags=1), bytes([number]).ljust(240, b"\0"))
            assert not (yield from post_direct(guest, 0, 0, flagged))
            if not number:
                assert not slot(guest).Header.MessageFlags
        seen.append((yield from post_direct(guest, 0, 0, make_message(1, b""))))
        for number in range(MESSAGE_BUFFERS + 1):
            assert (yield from take(guest)).Payload[0] == number
        assert not slot(guest).Header.MessageType
        yield from guest.wrmsr(msrs.HV_X64_MSR_SINT0 + SINT, VECTOR | HV_SYNIC_SINT_MASKED.mask)
        seen.append((yield from signal_direct(guest, 0, 0, 1))[0])
        yield from guest.end()

    run_guests({(0, 0): guest})
    assert seen == [HvStatus.INSUFFICIENT_BUFFERS, NO_SYNIC]
