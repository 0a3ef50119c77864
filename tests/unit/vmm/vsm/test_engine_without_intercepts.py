"""An engine that cannot stop at instructions, as /dev/kvm: what a VTL would not hear of is refused to it."""

from __future__ import annotations

from typing import Any

from tests.unit.vmm.vsm.intercept_guests import X, install, register_cpuid
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvCrInterceptControl as Control
from vtlkit.x86.exceptions import Vector


def test_what_needs_an_exit_at_an_instruction_is_refused() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        for kind, parameter in (
            (Type.HvInterceptTypeX64Cpuid, 1),
            (Type.HvInterceptTypeX64GlobalCpuid, 0),
            (Type.HvInterceptTypeException, Vector.UD),
            (Type.HvInterceptTypeHypercall, 0),
        ):
            seen.append((yield from install(guest, kind, parameter, X)))
        seen.append((yield from register_cpuid(guest, 1)))
        for control in (Control.Cr4Write, Control.XCr0Write, Control.GdtrWrite, Control.MsrLstarWrite):
            seen.append((yield from guest.set(Name.HvX64RegisterCrInterceptControl, int(control))))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    create = rig.factory.create

    def without_intercepts(name: str) -> Any:
        engine: Any = create(name)
        engine.intercepts_instructions = engine.cpuid_exits = False
        return engine

    rig.factory.create = without_intercepts  # type: ignore[method-assign, assignment]
    rig.run()
    missing, refused, ok = HvStatus.FEATURE_UNAVAILABLE, HvStatus.INVALID_REGISTER_VALUE, HvStatus.SUCCESS
    assert seen == [missing, missing, missing, ok, missing, refused, refused, refused, ok]
