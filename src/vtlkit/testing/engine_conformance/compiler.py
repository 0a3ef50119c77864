"""Programs of scripted operations as x86 code, one instruction each."""

from __future__ import annotations

from typing import Final

from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.x86.exceptions import Vector

_ACCUMULATOR: Final = {1: "al", 2: "ax", 4: "eax", 8: "rax"}

_PLAIN: Final = {
    ops.Cpuid: "cpuid",
    ops.Hlt: "hlt",
    ops.Vmmcall: "vmmcall",
    ops.Rdmsr: "rdmsr",
    ops.Wrmsr: "wrmsr",
    ops.Pause: "pause",
    ops.Rdtsc: "rdtsc",
    ops.Sti: "sti",
    ops.Cli: "cli",
}


def compile_op(a: Assembler, op: Op) -> None:
    """Append one operation. Expects RDX 0 and CPL 0 in 64-bit mode.

    Raises:
        ValueError: the operation exists in scripts only.
    """
    plain = _PLAIN.get(type(op))
    if plain is not None:
        getattr(a, plain)()
        return
    match op:
        case ops.Set(value, register):
            a.mov(register, value)
        case ops.Read(gpa, size):
            a.mov(_ACCUMULATOR[size], Mem(None, gpa))
        case ops.Write(gpa, size, None):
            a.mov(Mem(None, gpa), _ACCUMULATOR[size])
        case ops.Write(gpa, size, value):
            assert value is not None
            a.mov(Mem(None, gpa, size=size), value)
        case ops.Add(gpa, size):
            a.add(Mem(None, gpa), _ACCUMULATOR[size])
        case ops.In(port, size):
            a.in_(_ACCUMULATOR[size], port)
        case ops.Out(port, size, None):
            a.out(port, _ACCUMULATOR[size])
        case ops.MovFromCr(number):
            a.mov("rax", f"cr{number}")
        case ops.MovToCr(number):
            a.mov(f"cr{number}", "rax")
        case ops.Intercepted(mnemonic):
            getattr(a, mnemonic)()
        case ops.Compute(count):
            a.raw(b"\x90" * count)
        case ops.MovSs():
            a.mov("ss", "dx")
        case ops.Int(vector):
            a.int_(vector)
        case ops.Fault(Vector.UD, None, False):
            a.ud2()
        case ops.Fault(Vector.DE, None, False):
            a.div("dl")
        case _:
            raise ValueError(f"{op} is for scripts only")
