"""RESET and INIT of a vCPU."""

from __future__ import annotations

import pytest

from tests.unit.kvm.core_rig import Machine, script
from vtlkit.engine.scripted import ops


@pytest.mark.parametrize("init", [False, True])
def test_extended_state_survives_init_and_no_reset(init: bool) -> None:
    vcpu = Machine(script(ops.Hlt())).vcpu
    vcpu.engine.pkru = 0x55
    vcpu.engine.xcr0 = 3
    if init:
        vcpu.reset(init_event=True)
    else:
        vcpu.reset_to_power_on()
    assert (vcpu.engine.pkru, vcpu.engine.xcr0) == ((0x55, 3) if init else (0, 1))
