"""Ports that are answered from inside `run`, and instructions that the hypervisor finishes."""

from __future__ import annotations

from typing import Final

import pytest

from tests.unit.engine.devkvm.kvm_rig import PAGE, flat_engine
from vtlkit.engine import api
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.probe import HLT
from vtlkit.x86.msr import MSR_EFER
from vtlkit.x86.registers import EFER_SCE

OUT_IN_OUT: Final = b"\xe6\x80\xe4\x60\xe6\x81"


@pytest.mark.parametrize("change", ["nothing", "flush", "efer"])
@pytest.mark.parametrize("code", [b"\x0f\x32", b"\x0f\x30"])
def test_an_msr_is_accessed_once_whatever_changes_meanwhile(factory: DevKvmFactory, code: bytes, change: str) -> None:
    """A second exit would have the hypervisor send an IPI twice, say."""
    engine = flat_engine(factory, code + HLT)
    start = engine.regs.rip
    reason = engine.run(None)
    assert isinstance(reason, api.Rdmsr | api.Wrmsr)
    engine.regs.rax, engine.regs.rdx = 0x1234, 0x5678
    if change == "flush":
        engine.flush_tlb()
    elif change == "efer":
        engine.set_msr(MSR_EFER, engine.get_msr(MSR_EFER) ^ EFER_SCE)
    engine.skip(reason.length)
    assert type(engine.run(None)) is api.Hlt
    assert (engine.regs.rip, engine.regs.rax, engine.regs.rdx) == (start + 2, 0x1234, 0x5678)


def test_ports_are_answered_without_an_exit(factory: DevKvmFactory) -> None:
    engine = flat_engine(factory, OUT_IN_OUT + HLT)
    written: list[tuple[int, int, int]] = []

    def write(*access: int) -> bool:
        written.append(access)  # type: ignore[arg-type]
        return True

    engine.answer_ports(lambda port, size: 0x100 | port, write)
    engine.regs.rax = 0x7F
    assert isinstance(engine.run(None), api.Hlt)
    assert written == [(0x80, 1, 0x7F), (0x81, 1, 0x60)]


def test_a_kick_from_an_answer_ends_the_run_behind_the_access(factory: DevKvmFactory) -> None:
    engine = flat_engine(factory, OUT_IN_OUT + HLT)
    start = engine.regs.rip

    def read(_port: int, _size: int) -> int:
        engine.kick()
        return 5

    engine.answer_ports(read, lambda *_: True)
    assert isinstance(engine.run(None), api.Interrupted)
    assert engine.at_boundary
    assert (engine.regs.rip, engine.regs.rax & 0xFF) == (start + 4, 5)
    assert isinstance(engine.run(None), api.Hlt)


def test_an_answer_that_fails_leaves_the_access_unfinished(factory: DevKvmFactory) -> None:
    engine = flat_engine(factory, OUT_IN_OUT + HLT)
    broken = True

    def read(_port: int, _size: int) -> int | None:
        if broken:
            raise RuntimeError("no such device")
        return None

    engine.answer_ports(read, lambda *_: True)
    with pytest.raises(RuntimeError, match="no such device"):
        engine.run(None)
    assert not engine.at_boundary
    broken = False
    engine.abandon()
    assert engine.at_boundary


def test_hypercalls_and_strings_are_never_answered_as_ports(factory: DevKvmFactory) -> None:
    """OUT 0x7E, AL is a hypercall; from EAX, or by way of DX, it is not. Of a string instruction each element exits."""
    engine = flat_engine(factory, b"\xe6\x7e\xe7\x7e\x66\xba\x7e\0\xee\xf3\x6e" + HLT)
    asked: list[int] = []

    def write(port: int, _size: int, _value: int) -> bool:
        asked.append(port)
        return True

    engine.answer_ports(lambda *_: None, write)
    engine.regs.rsi, engine.regs.rcx = PAGE, 2
    assert isinstance(engine.run(None), api.Hypercall)
    engine.skip(2)
    for _ in range(4):
        reason = engine.run(None)
        assert isinstance(reason, api.PortOut)
        assert reason.port == 0x7E
    assert isinstance(engine.run(None), api.Hlt)
    assert asked == []
