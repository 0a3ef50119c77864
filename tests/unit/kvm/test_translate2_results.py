"""`Vcpu.translate2`: each result and each access, worked out by hand."""

from __future__ import annotations

import pytest

from tests.unit.kvm.test_translate2 import (
    EXECUTE,
    PAGE,
    PS,
    READ,
    ROOT,
    SET,
    SUPERVISOR,
    TABLE2,
    TABLE3,
    TABLE4,
    USER,
    WRITE,
    P,
    U,
    W,
    four_levels,
    machine_in,
    put,
)
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.uapi import TranslateAccess, TranslateFault


@pytest.mark.parametrize(
    ("at", "entry", "gva", "access", "fault", "error", "gpa"),
    [
        (TABLE4, 0, 0, READ, TranslateFault.NOT_PRESENT, 0, 0),
        (TABLE2, 0, 0, WRITE | USER, TranslateFault.NOT_PRESENT, 2 | 4, 0),
        (TABLE4, PAGE | P | U, 0, WRITE | USER, TranslateFault.PRIVILEGE_VIOLATION, 1 | 2 | 4, 0),
        (TABLE4, PAGE | P | W, 0, READ | USER, TranslateFault.PRIVILEGE_VIOLATION, 1 | 4, 0),
        (TABLE4, PAGE | P | W | U | 1 << 63, 0, EXECUTE, TranslateFault.PRIVILEGE_VIOLATION, 1 | 16, 0),
        (TABLE3, TABLE4 | P | 1 << 51, 0, READ, TranslateFault.RESERVED_BITS, 1 | 8, 0),
        (TABLE2, 1 << 13 | P | PS, 0, WRITE, TranslateFault.RESERVED_BITS, 1 | 2 | 8, 0),
        (TABLE4, PAGE | P, 1 << 47, READ, TranslateFault.INVALID_GVA, 0, 0),
        (TABLE4, PAGE | P, (1 << 64) - (1 << 48), READ, TranslateFault.INVALID_GVA, 0, 0),
        (TABLE3, 0x123000 | P, 0x5000, READ, TranslateFault.INVALID_GPA, 0, 0x123028),
        (ROOT, 0x123000 | P, 0, TranslateAccess.NONE, TranslateFault.INVALID_GPA, 0, 0x123000),
    ],
)
def test_each_result_without_a_translation(
    at: int, entry: int, gva: int, access: TranslateAccess, fault: TranslateFault, error: int, gpa: int
) -> None:
    """And what comes with it: the error code of the fault, the entry that is not there. No bit is set."""
    machine = machine_in()
    machine.vcpu.set_cpuid2(for_vcpu(machine.vm.get_supported_cpuid(), 0, 1))
    four_levels(machine)
    put(machine, at, entry)
    before = bytes(machine.ram.view)
    found = machine.vcpu.translate2(gva, access, SET)
    assert (found.valid, found.fault, found.error_code, found.gpa) == (False, fault, error, gpa)
    assert found.set_bits_succeeded
    assert bytes(machine.ram.view) == before


@pytest.mark.parametrize("kind", [READ, WRITE, EXECUTE])
@pytest.mark.parametrize("user", [USER, SUPERVISOR])
def test_each_access_needs_its_own_right(kind: TranslateAccess, user: TranslateAccess) -> None:
    """A page that grants all, and one that grants all but this (a supervisor's write with CR0.WP set)."""
    machine = machine_in()
    everything, nx = PAGE | P | W | U, 1 << 63
    lacking = {READ: PAGE | P | W, WRITE: PAGE | P | U, EXECUTE: everything | nx}[kind]
    four_levels(machine, leaf=everything)
    assert machine.vcpu.translate2(0, kind | user).valid
    put(machine, TABLE4, lacking)
    # A supervisor may read what users may not.
    assert machine.vcpu.translate2(0, kind | user).valid == (kind is READ and user is SUPERVISOR)
