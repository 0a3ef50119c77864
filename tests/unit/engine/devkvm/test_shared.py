"""What VTLs of a processor share and KVM's page does not hold: handed over whole, whatever is remembered of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance import devkvm_here
from vtlkit.engine.api import Hlt
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.devkvm.engine import DevKvmEngine
from vtlkit.engine.probe import HLT, flat

XMM0 = 160
MOV_DR0_EAX = b"\x0f\x23\xc0"


@pytest.fixture
def engines() -> Iterator[list[DevKvmEngine]]:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    factory = DevKvmFactory()
    made = []
    for number in range(2):
        engine = factory.create(f"vcpu{number}")
        assert isinstance(engine, DevKvmEngine)
        flat(engine, MOV_DR0_EAX + HLT)
        made.append(engine)
    yield made
    factory.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["copy", "breakpoint", "xmm", "guest"]), st.integers(0, 1), st.integers(1, 0xFFFF)),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(STEPS)
def test_a_copy_is_whole(engines: list[DevKvmEngine], steps: list[tuple[str, int, int]]) -> None:
    """Any order of changes by the hypervisor, by the guest, and of copies either way, against two plain pairs."""
    held = []
    for engine in engines:
        held.append({"dr0": engine.get_debugregs()[0], "xmm": engine.get_fpu()[XMM0 : XMM0 + 16]})
    for step, which, value in steps:
        engine, mine = engines[which], held[which]
        if step == "copy":
            engine.copy_shared_state(engines[1 - which])
            held[which] = dict(held[1 - which])
        elif step == "breakpoint":
            engine.set_debugregs((value, *engine.get_debugregs()[1:]))
            mine["dr0"] = value
        elif step == "xmm":
            image = bytearray(engine.get_fpu())
            image[XMM0 : XMM0 + 16] = mine["xmm"] = value.to_bytes(16, "little")
            engine.set_fpu(bytes(image))
        else:
            start = engine.regs.rip
            engine.regs.rax = mine["dr0"] = value
            assert isinstance(engine.run(None), Hlt)
            engine.regs.rip = start
        for other, theirs in zip(engines, held, strict=True):
            assert other.get_debugregs()[0] == theirs["dr0"]
            assert other.get_fpu()[XMM0 : XMM0 + 16] == theirs["xmm"]
