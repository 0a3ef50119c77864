"""The hypercall page's VTL call and return sequences, executed by the embedded engine in 32- and 64-bit code."""

from __future__ import annotations

import pytest

from tests.unit.vmm.vsm.machine_code_rig import DONE, POLICY, VTL1_CODE, VTL1_STACK, CodeRig
from vtlkit.hvdef.vsm import HV_VSM_VTL_CALL_OFFSET, HV_VSM_VTL_RETURN_OFFSET, HvVtlEntryReason
from vtlkit.testing import guest_builder as builder
from vtlkit.testing.assembler import Assembler, Mem

PAGES = (0x70000, 0x72000)
"""Where VTL 0 and VTL 1 put their hypercall pages."""
ROUNDS = 3
COUNT = 0x58000


def input_registers(code: Assembler, value: int) -> None:
    """The control input of a sequence: RCX, or EDX:EAX of a 32-bit caller."""
    if code.bits == 64:
        code.mov("ecx", value)
    else:
        code.mov("eax", value)
        code.mov("edx", 0)


@pytest.mark.tlfs("vsm.code-page", "vsm.modes")
@pytest.mark.parametrize("upper", [32, 64])
@pytest.mark.parametrize("lower", [32, 64])
def test_calls_and_returns_through_the_page(lower: int, upper: int) -> None:
    seen: list[tuple[int, int]] = []

    def policy(rig: CodeRig) -> None:
        seen.append((rig.guest.read(COUNT, 4), rig.vtl1.hv.assist.entry_reason))

    rig = CodeRig(policy, bits=(lower, upper))
    offsets = []
    for vcpu, page, bits in zip((rig.vtl0, rig.vtl1), PAGES, (lower, upper), strict=True):
        assert vcpu.set_msr(0x40000001, page | 1)
        offsets.append(vcpu.vm.hv.code_page_offsets(is_64bit=bits == 64))
    register = {32: "ebx", 64: "rbx"}

    code = Assembler(upper, VTL1_CODE)
    code.label("entry")
    code.out(POLICY, "al")
    input_registers(code, 1)
    code.mov("ebx", PAGES[1] + HV_VSM_VTL_RETURN_OFFSET.get(offsets[1]))
    code.call(register[upper])
    code.jmp("entry")
    rig.vtl1_loop(code)

    caller = Assembler(lower, builder.CODE)
    for _ in range(ROUNDS):
        caller.inc(Mem(None, COUNT, size=4))
        input_registers(caller, 0)
        caller.mov("ebx", PAGES[0] + HV_VSM_VTL_CALL_OFFSET.get(offsets[0]))
        caller.call(register[lower])
    caller.out(DONE, "al")
    rig.guest.load(caller)
    stack = rig.vtl0.engine.regs.rsp

    rig.run()
    assert seen == [(number + 1, HvVtlEntryReason.HvVtlEntryVtlCall) for number in range(ROUNDS)]
    assert rig.vp.switches == 2 * ROUNDS
    assert rig.end.rsp == stack
    # From the second entry on VTL 1 goes on behind its CALL: one return address each way, none left.
    assert rig.end.upper_rsp in (VTL1_STACK, VTL1_STACK - upper // 8)
    rig.close()
